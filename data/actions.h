/* Actions: the model's numbers, the recordings' numbers, and how both are read from files.
 *
 *              none  stay  up  down
 *   model        0     1    2    3      what a model is conditioned on; none = "no action given"
 *   recording    -     0    1    2      what actions.npy and actions.csv hold
 *
 * Every function returns 0, or -1 with a sentence in Err that names the file or the text. Arrays
 * are malloc'd for the caller, who frees them; on an error there is nothing to free. */
#ifndef DATA_ACTIONS_H
#define DATA_ACTIONS_H

#include <stdint.h>

#include "llmc_like/error.h"

enum { ACTION_NONE, ACTION_STAY, ACTION_UP, ACTION_DOWN, ACTION_COUNT };

/* The action `id` of the model in words; "?" where there is none. Static. */
const char *action_name(int id);

/* Reads a recording's actions as the model's numbers (1 to 3): an .npy of shape (N,) and any
 * integer dtype; or text of one number a line, or of "frame,action" lines that count up from 0,
 * either with or without a header line. An action outside 0..2 is an error that names the first and
 * its index. */
int actions_read(const char *path, int32_t **ids, int64_t *n, Err *e);

/* Reads the actions to sample with, as the model's numbers: `text` is a path to a file that
 * actions_read takes, or a pattern: words (none, stay, up, down) or a recording's numbers (0 to 2),
 * each with an optional repeat, between commas: "stay*30,up*60,down*60,none*30". At most 2^20. */
int actions_parse(const char *text, int32_t **ids, int64_t *n, Err *e);

#endif
