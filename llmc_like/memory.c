#include "llmc_like/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void *take(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void give(void *p, size_t bytes) { munmap(p, bytes); }
static void copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static void zero(void *p, size_t bytes) { memset(p, 0, bytes); }

/* The number behind `key` in a file of the system; -1 where there is none. key "": the first one.
 */
static double system_number(const char *path, const char *key) {
    FILE *f = fopen(path, "r");
    double value = -1;
    char line[256];
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, key, strlen(key))) continue;
        char *end, *text = line + strlen(key);
        double v = strtod(text, &end);
        if (end != text) value = v;
        break;
    }
    if (f) fclose(f);
    return value;
}

static double left(void) {
    double left_bytes = system_number("/proc/meminfo", "MemAvailable:") * 1024;
    double limit = system_number("/sys/fs/cgroup/memory.max", "");
    double used = system_number("/sys/fs/cgroup/memory.current", "");
    used -= fmax(0, system_number("/sys/fs/cgroup/memory.stat", "file ")); /* cache gives way */
    if (limit > 0 && used >= 0 && (left_bytes < 0 || limit - used < left_bytes))
        left_bytes = limit - used;
    return left_bytes;
}

const Memory host_memory = {.name = "machine",
                            .is_host = true,
                            .take = take,
                            .give = give,
                            .put = copy,
                            .get = copy,
                            .zero = zero,
                            .left = left};
