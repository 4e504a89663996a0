/* Options of a program: one table makes the parser, --help, the banner and run.json.
 *
 *   static const char *const MODES = "cpu|cuda";
 *   const Option table[] = {
 *       {"Model", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
 *       {"d-model", OPT_INT, &cfg.d_model, "384", 32, 8192, "width of the residual stream", NULL},
 *       {"device", OPT_STRING, &cfg.device, "cpu", 0, 0, "where the ops run", MODES},
 *       {"plan", OPT_FLAG, &cfg.plan, "off", 0, 0, "print memory and time, then leave", NULL},
 *   };
 *
 * Accepted are --name value, --name=value, --flag, --no-flag, -h and --help; after "--" everything
 * is an argument. A value that begins with "--" must be written --name=value. Given twice, the last
 * one counts. */
#ifndef LLMC_LIKE_OPTIONS_H
#define LLMC_LIKE_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "llmc_like/error.h"

struct cJSON; /* cjson/cJSON.h */

typedef enum {
    OPT_HEADING,  /* no option: begins a group of the help text; only name is used */
    OPT_INT,      /* value: int *          */
    OPT_U64,      /* value: uint64_t *     */
    OPT_DOUBLE,   /* value: double *       */
    OPT_STRING,   /* value: const char **  NULL where nothing was given and fallback is NULL */
    OPT_OPTIONAL, /* a string, too: --name alone gives "" */
    OPT_FLAG      /* value: bool *         fallback "on" or "off" */
} OptionKind;

typedef struct Option {
    const char *name; /* without the dashes; at most 40 characters */
    OptionKind kind;
    void *value;
    const char *fallback; /* the default as the user would type it; NULL: none (strings only) */
    double min, max;     /* both allowed; min == max: no limits. An int, uint64 or double's value */
    const char *help;    /* one sentence or two; wrapped to the page */
    const char *choices; /* "a|b|c" for a string that must be one of these, or NULL */
} Option;

/* Where a value comes from. */
typedef enum { FROM_DEFAULT, FROM_PRESET, FROM_CHECKPOINT, FROM_USER } OptionOrigin;

typedef struct Options {
    const Option *row; /* for (i = 0; i < o.n; i++), headings included */
    int n;
    OptionOrigin *origin; /* one a row */
    char **text;          /* one a row: the text that the value was made from; NULL: none */
    bool help;            /* --help was asked for: print options_help and leave */
    bool takes_args;
    char **arg; /* what was no option, in order; points into argv */
    int n_args;
} Options;

/* Takes the table (not copied) and sets every value to its default; a bad default is a bug.
 * takes_args: whether the program has arguments that are no options (otherwise one is an error). */
void options_init(Options *o, const Option *row, int n, bool takes_args);
void options_free(Options *o); /* string values end here */

/* Reads argv[1 .. argc-1]. -1 and a sentence for an unknown option (naming the nearest ones), a
 * missing or superfluous value, one that is no number, is out of range or none of the choices.
 * Stops with o->help set at --help. */
int options_parse(Options *o, int argc, char **argv, Err *e);

/* Sets `name` (a bug if there is none) from `text`, but only where the user did not: for a preset,
 * and for what a checkpoint says. The text is checked and copied. */
int options_preset(Options *o, const char *name, const char *text, Err *e);
int options_adopt(Options *o, const char *name, const char *text, Err *e);

bool option_was_set(const Options *o, const char *name); /* by the user */

/* Row i's value now, as the user would type it: "384", "0.02", "on"; "" for a string that is NULL
 * and for headings. */
enum { OPTION_TEXT = 1024 };
const char *option_text(const Options *o, int i, char buf[OPTION_TEXT]);
const char *option_origin_name(OptionOrigin from); /* "default", "preset", "checkpoint", "user" */

/* The help text: usage (one line, given by the program), then the table by headings with defaults,
 * ranges and choices, 100 columns wide. */
void options_help(const Options *o, const char *usage, FILE *out);

/* {"d-model": {"value": 384, "from": "user"}, ...}; the caller frees it with cJSON_Delete. */
struct cJSON *options_json(const Options *o);

/* The names of a list "a|b|c" that are nearest to `text`, as "'a' or 'b'", into buf; "" where none
 * is near. For sentences about presets, backends and masks too. Distance: insertions, deletions,
 * changes, and swaps of neighbours. */
enum { NEAREST_TEXT = 192 };
const char *nearest_names(const char *text, const char *list, char buf[NEAREST_TEXT]);

#endif
