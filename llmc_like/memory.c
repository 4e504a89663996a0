#include "llmc_like/memory.h"

#include <string.h>
#include <sys/mman.h>

#include "llmc_like/run.h"

static void *take(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void give(void *p, size_t bytes) { munmap(p, bytes); }
static void copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static void zero(void *p, size_t bytes) { memset(p, 0, bytes); }

const Memory host_memory = {.name = "system",
                            .is_host = true,
                            .take = take,
                            .give = give,
                            .put = copy,
                            .get = copy,
                            .zero = zero,
                            .left = memory_left};
