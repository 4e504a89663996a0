/* The three classes of error, and nothing else in the project prints one or exits.
 *
 * A bug: CHECK(cond, "fmt", ...), always compiled in, prints where, what and the values, and
 * aborts.
 *
 * A user or a file: a function returns an int status (0 good, -1 bad) and fills an Err with one
 * sentence that says what was found, what was expected and what to do next; main() prints it and
 * exits 1.
 *
 * A device: every return is checked where it is made and becomes one of the two above. */
#ifndef LLMC_LIKE_ERROR_H
#define LLMC_LIKE_ERROR_H

#include <stdarg.h>

typedef struct Err {
    char text[2048]; /* "" while nothing is wrong; may hold several lines (a caret under an
                        expression) */
} Err;

/* Writes the sentence (printf format) into e and returns -1, so that a caller can `return
 * err_set(e, ...)`. e may be NULL: then only the status is passed on. */
int err_set(Err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts a context ("clips.npy: ") before the sentence that e already holds; returns -1. */
int err_prefix(Err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Prints "file:line: in function: check `cond` failed: message" to stderr and aborts. */
void check_failed(const char *file, int line, const char *func, const char *cond, const char *fmt,
                  ...) __attribute__((noreturn, format(printf, 5, 6)));

#define CHECK(cond, ...) \
    ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, __func__, #cond, __VA_ARGS__))

#endif
