/* Sentences about what went wrong, and the names of functions and places in them. */
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/emu/parts.h"

static int first_object(struct dl_phdr_info *info, size_t size, void *base) {
    (void)size;
    *(uintptr_t *)base = info->dlpi_addr;
    return 1;
}

/* What addr2line says of an address of the program: function and place, a line each; false where
 * it says nothing. */
static bool ask_addr2line(const void *pc, char function[256], char place[256]) {
    uintptr_t base = 0;
    char program[512], command[640];
    dl_iterate_phdr(first_object, &base);
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n < 0) return false;
    program[n] = 0;
    snprintf(command, sizeof command, "addr2line -s -f -C -e '%s' 0x%zx 2>/dev/null", program,
             (uintptr_t)pc - base);
    FILE *f = popen(command, "r");
    if (!f) return false;
    const bool said = fgets(function, 256, f) && fgets(place, 256, f) && function[0] != '?';
    pclose(f);
    if (!said) return false;
    function[strcspn(function, "\n")] = 0;
    place[strcspn(place, " \n")] = 0; /* drops "(discriminator 2)" */
    return true;
}

static char *next_text(void) {
    static char texts[4][256];
    static int turn;
    return texts[turn++ % 4];
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
