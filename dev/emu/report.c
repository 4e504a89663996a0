/* Sentences about what went wrong, and the names of functions and places in them. */
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/emu/parts.h"

/* ---- the objects that code lies in: the program, and modules loaded by dlopen ---- */

typedef struct Object {
    uintptr_t pc;          /* in: of this code */
    uintptr_t base, bytes; /* addresses in the file begin at base; its segment with pc */
    char file[512];
} Object;

static int find_object(struct dl_phdr_info *info, size_t size, void *arg) {
    (void)size;
    Object *o = arg;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t low = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        if (info->dlpi_phdr[i].p_type != PT_LOAD || o->pc - low >= info->dlpi_phdr[i].p_memsz)
            continue;
        o->base = info->dlpi_addr;
        o->bytes = low + info->dlpi_phdr[i].p_memsz - o->base;
        snprintf(o->file, sizeof o->file, "%s",
                 *info->dlpi_name ? info->dlpi_name : "/proc/self/exe");
        return 1;
    }
    return 0;
}

/* Modules have numbers of 8 bits, and code in them of 23. */
enum { MODULE_SHIFT = 23, MAX_MODULES = 256 };
static Object modules[MAX_MODULES];
static int n_modules, recent_module;

static uint32_t module_number(int module, uintptr_t offset) {
    if (offset >> MODULE_SHIFT) emu_fail("a module has more than %d bytes", 1 << MODULE_SHIFT);
    return 1u << 31 | (uint32_t)module << MODULE_SHIFT | (uint32_t)offset;
}

uint32_t emu_module_pc(const void *pc) {
    const uintptr_t at = (uintptr_t)pc;
    for (int i = 0; i < n_modules; i++) {
        const int m = (recent_module + i) % n_modules;
        if (at - modules[m].base >= modules[m].bytes) continue;
        recent_module = m;
        return module_number(m, at - modules[m].base);
    }
    if (n_modules == MAX_MODULES) emu_fail("more than %d modules with kernels", MAX_MODULES);
    Object *o = &modules[n_modules];
    o->pc = at;
    if (!dl_iterate_phdr(find_object, o)) emu_fail("code at %p, which no object has", pc);
    recent_module = n_modules++;
    return module_number(recent_module, at - o->base);
}

const void *emu_pc_of_module(uint32_t number) {
    const uintptr_t offset = number & ((1u << MODULE_SHIFT) - 1);
    return (const void *)(modules[number >> MODULE_SHIFT & (MAX_MODULES - 1)].base + offset);
}

/* ---- names ---- */

/* Those that wrap instructions: what called them is of interest. */
static bool is_wrapper(const char *place) {
    static const char *const FILES[] = {"ptx.h:", "ptx.cuh:", "ptx_sm90.h:", "ptx_sm90.cuh:"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
        if (!strncmp(place, FILES[i], strlen(FILES[i]))) return true;
    return false;
}

/* What addr2line says of code: function and place, a line each, and again for what they were
 * inlined into; false where it says nothing. */
static bool ask_addr2line(const void *pc, char function[256], char place[256]) {
    Object o = {.pc = (uintptr_t)pc};
    char path[512], command[640];
    if (!dl_iterate_phdr(find_object, &o)) return false;
    const ssize_t n =
        readlink(o.file, path, sizeof path - 1); /* the program's own name is a link */
    path[n < 0 ? 0 : n] = 0;
    snprintf(command, sizeof command, "addr2line -i -s -f -C -e '%s' 0x%zx 2>/dev/null",
             n < 0 ? o.file : path, o.pc - o.base);
    FILE *f = popen(command, "r");
    if (!f) return false;
    bool said = fgets(function, 256, f) && fgets(place, 256, f) && function[0] != '?';
    while (said && is_wrapper(place) && fgets(function, 256, f)) said = fgets(place, 256, f);
    pclose(f);
    if (!said) return false;
    function[strcspn(function, "\n")] = 0;
    place[strcspn(place, " \n")] = 0; /* drops "(discriminator 2)" */
    return true;
}

static char *next_text(void) {
    static char texts[8][256];
    static int turn;
    return texts[turn++ % 8];
}

const char *emu_code_name(const void *pc) {
    char function[256], *place = next_text();
    /* A return address: the call is before it. */
    if (!pc || !ask_addr2line((const char *)pc - 1, function, place)) return "?";
    return place;
}

const char *emu_function_name(const void *function) {
    char *name = next_text(), place[256];
    if (!ask_addr2line(function, name, place)) snprintf(name, 256, "%p", function);
    return name;
}

void emu_fail(const char *format, ...) {
    emu_own_everything();
    fflush(stdout);
    fprintf(stderr, "emu: ");
    if (emu_now.running) {
        const uint3 b = emu_block_idx(), t = emu_thread_idx();
        fprintf(stderr, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ",
                emu_function_name(emu_kernel()), b.x, b.y, b.z, t.x, t.y, t.z);
    }
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    abort();
}
