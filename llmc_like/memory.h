/* Where tensors live: the host's memory, or a device's. Arenas take from it; nothing else does.
 *
 * The host may read and write host memory alone. What lies elsewhere goes there and comes back by
 * put and get, which wait for all kernels that were started before; a step uses neither
 * (ctx_input and ctx_fetch, ctx.h). */
#ifndef LLMC_LIKE_MEMORY_H
#define LLMC_LIKE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

typedef struct Memory {
    const char *name; /* "machine", "GPU": for messages */
    bool is_host;
    void *(*take)(size_t bytes); /* NULL: there is not that much left */
    void (*give)(void *p, size_t bytes);
    void (*put)(void *to, const void *from_host, size_t bytes);
    void (*get)(void *to_host, const void *from, size_t bytes);
    void (*zero)(void *p, size_t bytes);
    double (*left)(void); /* bytes that can still be taken (of the host's: MemAvailable, or what is
                             left under the process's control group); below 0: unknown */
} Memory;

/* Fresh pages of the system, zero, in huge pages where it has them; put and get copy. */
extern const Memory host_memory;

#endif
