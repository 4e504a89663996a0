/* Checkpoints: all that a run needs to go on, in one safetensors file.
 *
 *   param.NAME                    the weights, NAME the row's state_dict key
 *   optim.m.NAME, optim.v.NAME    the moments that the row's rule has (Muon: m; Adam: m and v)
 *   metadata                      "optim.t" (updates made), "checksum" (of all tensors' bytes), and
 *                                 what the caller adds: config, step, seed, loader position, ...
 * All tensors are float32. Nothing in it could run; Python reads it with the safetensors package.
 */
#ifndef LLMC_LIKE_CHECKPOINT_H
#define LLMC_LIKE_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "llmc_like/error.h"
#include "llmc_like/optim.h"
#include "llmc_like/params.h"
#include "llmc_like/safetensors.h"

/* One string of the metadata. Its key is the caller's, but for the keys named in this header. */
typedef struct MetaPair {
    const char *key, *value;
} MetaPair;

/* Writes PATH atomically (fsio.h): after a failure, a full disk or kill -9, PATH is what it was. o
 * NULL: weights alone. -1 and a sentence where it cannot be written. */
int checkpoint_save(const char *path, const ParamTable *p, const Optim *o, const MetaPair *meta,
                    int n_meta, Err *e);

/* Fills the table from PATH, and with o the moments and o->t (the rules stay the caller's). First
 * everything is verified, and where anything is amiss nothing is changed, and the text lists tensor
 * by tensor what is missing, superfluous, of another shape or of another dtype.
 *   o given (to go on with a run): the file must hold exactly what checkpoint_save writes.
 *   o NULL (to start from weights): exactly the rows' weights, under param.NAME; where no name in
 * the file begins with "param.", under the bare NAME. With param., tensors of other kinds (optim.,
 *     grad., ...) are passed over.
 * file: receives the open file, for its metadata and whatever else is in it; the caller closes it.
 * NULL: not wanted. On failure it needs no closing. */
int checkpoint_load(const char *path, ParamTable *p, Optim *o, StFile *file, Err *e);

/* ---- The best few, and the last ---- */

/* The checkpoints of a run in its folder: step_000500.safetensors (step 500, among the best by
 * held-out loss) and last.safetensors. The folder itself is the list: each step_ file carries its
 * "step" and "heldout_loss" in its metadata, so nothing else must be kept in agreement with it. */
enum { KEEP_MAX = 32, KEEP_PATH = 1024 };

typedef struct CheckpointKeeper {
    char dir[KEEP_PATH];
    int limit; /* how many of the best are kept: the specification says 5 */
    struct {
        int64_t step;
        double loss;
    } best[KEEP_MAX + 1]; /* n of them, the lowest loss first; of equals the earlier step */
    int n;
} CheckpointKeeper;

/* Makes the folder if it is not there, removes leftovers (*.safetensors.*.tmp) of killed processes,
 * reads the list of the best from its step_ files (and last.safetensors, where that belongs to the
 * best), and deletes those beyond `limit` (1 .. KEEP_MAX). Files of those names that are damaged or
 * carry no loss are left alone and not counted. resume false: -1 and a sentence where the folder
 * holds checkpoints, since a new run would mix with an old one. */
int keeper_open(CheckpointKeeper *k, const char *dir, int limit, bool resume, Err *e);

/* "DIR/last.safetensors" into buf, which is returned. */
const char *keeper_last_path(const CheckpointKeeper *k, char buf[KEEP_PATH + 64]);

/* Writes last.safetensors; "step" goes into the metadata. */
int keeper_save_last(CheckpointKeeper *k, const ParamTable *p, const Optim *o, const MetaPair *meta,
                     int n_meta, int64_t step, Err *e);

/* After an evaluation: writes last.safetensors, and where heldout_loss is among the `limit` best
 * (NaN never is) gives the file a second name, step_NNNNNN.safetensors; at the very end deletes
 * what fell out of the best. "step" and "heldout_loss" go into the metadata. Where it is killed
 * between two of these acts, keeper_open finishes them. On failure nothing that was kept is lost.
 */
int keeper_save(CheckpointKeeper *k, const ParamTable *p, const Optim *o, const MetaPair *meta,
                int n_meta, int64_t step, double heldout_loss, Err *e);

#endif
