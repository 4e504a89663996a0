#include "kernels/device.h"

#include <stdio.h>
#include <string.h>

const Device *const devices[] = {&cpu_device_avx512, &cpu_device_avx2, &cpu_device_portable,
                                 &plain_device, NULL};

bool device_runs_here(const Device *d) {
    __builtin_cpu_init();
    if (d == &cpu_device_avx512) /* x86-64-v4 */
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
    if (d == &cpu_device_avx2) /* x86-64-v3 */
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi2");
    return true;
}

const Device *device_find(const char *name, Err *e) {
    if (!strcmp(name, "cpu")) {
        for (int i = 0; devices[i]; i++)
            if (device_runs_here(devices[i])) return devices[i];
    }
    char known[256] = "cpu";
    for (int i = 0; devices[i]; i++) {
        if (!strcmp(name, devices[i]->name)) {
            if (device_runs_here(devices[i])) return devices[i];
            err_set(e,
                    "--device %s: this processor lacks its instructions; --device cpu takes the "
                    "best it has",
                    name);
            return NULL;
        }
        strncat(known, ", ", sizeof known - strlen(known) - 1);
        strncat(known, devices[i]->name, sizeof known - strlen(known) - 1);
    }
    if (!strcmp(name, "cuda"))
        err_set(e, "--device cuda: this program was built without CUDA; use --device cpu");
    else
        err_set(e, "--device %s: no such device; known are %s", name, known);
    return NULL;
}
