/* A model's config: its sizes as JSON text, as a checkpoint keeps them, and back into the options
 * of the program that reads it.
 *
 *   {"model": "wm", "d_model": 384, "rope": "vid", "rope_base": 5000}
 *
 * A model gives one table, and writer, reader and options follow from it. */
#ifndef LLMC_LIKE_CONFIG_H
#define LLMC_LIKE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

#include "llmc_like/error.h"
#include "llmc_like/options.h"

typedef enum {
    CONFIG_INT,    /* value: int *, to 2^20 either way                       */
    CONFIG_DOUBLE, /* value: double *, finite; written with nine digits      */
    CONFIG_NAME    /* value: const char **, one of names; read, it is theirs */
} ConfigKind;

typedef struct ConfigRow {
    const char *key, *option; /* in the text, and on the command line (NULL: none) */
    ConfigKind kind;
    void *value;
    const char *const *names; /* NULL at the end; of CONFIG_NAME alone */
    bool needed;              /* a text without it is refused          */
} ConfigRow;

/* The model's name and all rows. A bug: they do not fit `size` bytes. */
void config_write(char *text, size_t size, const char *model, const ConfigRow *row, int n);

/* Sets the values of the keys that the text has; other keys it may have, too. -1 and a sentence for
 * text that is no JSON object, another model's name (or none, unless `unnamed`), a needed row that
 * is missing, and a value of another kind: a number as a string is none. */
int config_read(const char *json, const char *model, bool unnamed, const ConfigRow *row, int n,
                Err *e);

/* Each row's value to its option, where the user named none. -1 and a sentence for one that the
 * option does not take. */
int config_adopt(Options *o, const ConfigRow *row, int n, Err *e);

/* The list's own copy of a name; NULL: it is none of them. */
const char *config_name(const char *const *names, const char *text);

#endif
