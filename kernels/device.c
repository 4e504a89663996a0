#include "kernels/device.h"

#include <stdio.h>
#include <string.h>

const Device *const devices[] = {&cuda_device,         &cpu_device_avx512, &cpu_device_avx2,
                                 &cpu_device_portable, &plain_device,      NULL};

static int check(const Device *d, Err *e) { return d->check ? d->check(e) : 0; }

bool device_runs_here(const Device *d) { return check(d, NULL) == 0; }

const Device *device_find(const char *name, Err *e) {
    const bool any = !strcmp(name, "auto"), cpu = !strcmp(name, "cpu");
    char known[256] = "auto, cpu";
    for (int i = 0; devices[i]; i++) {
        const Device *d = devices[i];
        if ((any || (cpu && d != &cuda_device)) && device_runs_here(d)) return d;
        if (!strcmp(name, d->name)) {
            Err why = {""};
            if (!check(d, &why)) return d;
            err_set(e, "--device %s: %s; use --device cpu", name, why.text);
            return NULL;
        }
        strncat(known, ", ", sizeof known - strlen(known) - 1);
        strncat(known, d->name, sizeof known - strlen(known) - 1);
    }
    err_set(e, "--device %s: no such device; known are %s", name, known);
    return NULL;
}
