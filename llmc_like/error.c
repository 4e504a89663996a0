#include "llmc_like/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int err_set(Err *e, const char *fmt, ...) {
    if (!e) return -1;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    return -1;
}

int err_prefix(Err *e, const char *fmt, ...) {
    if (!e) return -1;
    const Err old = *e;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    const size_t n = strlen(e->text);
    snprintf(e->text + n, sizeof e->text - n, "%s", old.text);
    return -1;
}

void check_failed(const char *file, int line, const char *func, const char *cond, const char *fmt,
                  ...) {
    fflush(stdout);
    fprintf(stderr, "%s:%d: in %s: check `%s` failed: ", file, line, func, cond);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    abort();
}
