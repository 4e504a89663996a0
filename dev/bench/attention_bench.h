/* What the parts of bench_attention share: a kernel alone (bench_attention.c), and a whole layer of
 * the IceCube model (attention_layer.c) and of the world model (attention_wm_layer.c). */
#ifndef BENCH_ATTENTION_BENCH_H
#define BENCH_ATTENTION_BENCH_H

#include <math.h>
#include <stdbool.h>

#include "kernels/attention.h"
#include "kernels/ops.h"
#include "llmc_like/ctx.h"

struct cJSON;

enum { MAX_REPEATS = 200, MAX_BACKENDS = 16, ROOF_N = 1024 };

typedef struct Bench {
    int batch, threads, repeats;
    bool portable;
    const char *name, *attn, *mask, *score, *device, *dtype, *cache, *json;
} Bench;

/* One backend's measurements, a number a turn. */
typedef struct Row {
    const AttnBackend *backend;
    const Mask *mask;
    bool portable; /* by the kernels that every GPU runs */
    double prepare_s, plan_s;
    double forward_s[MAX_REPEATS], backward_s[MAX_REPEATS];
    double attention_s[MAX_REPEATS]; /* of a layer's forward_s */
    double max_error;
} Row;

/* The context computes by the row's backend from now on. */
static inline void row_take(Ctx *c, const Row *row) {
    c->attn = row->backend;
    c->portable = row->portable;
}

static inline const char *row_name(const Row *row) {
    return row->portable ? "sdpa-portable" : row->backend->name;
}

/* Standard normals; with unit, each row of D scaled to root mean square 1, as QK-norm leaves it.
 * The caller frees them. */
float *bench_normals(uint32_t stream, size_t n, int D, bool unit);

/* A layer (out, in) of normal weights / sqrt(in) and as normal biases from two random streams, in
 * the device's memory; device_give gives the tensors back. */
void bench_linear(Ctx *c, Linear *w, Tensor tensor[2], uint32_t stream, int64_t out, int64_t in);

/* Rows (MAX_BACKENDS of them) of the backends asked for that support the masks; how many. The flex
 * backends get the written mask, the others the named one; with o->portable sdpa has two. Prints a
 * line for each that declines. -1 and a sentence for one asked for by name that declines, a name
 * that is none, or a compiler that fails. */
int bench_rows(const Bench *o, Ctx *c, AttnArgs *a, const Mask *named, const Mask *written,
               Row *row, Err *e);

/* The larger of two errors; one that is no number is the largest (fmax would pass it over). */
static inline double bench_worse(double a, double b) {
    return isnan(a) || isnan(b) ? NAN : fmax(a, b);
}

/* A context on the device and in the dtype asked for. */
int bench_context(const Bench *o, Ctx *c, Err *e);

/* GFLOP/s of the device's product; where that is the host's, of ROOF_N x ROOF_N matrices, of which
 * gemm holds three. */
double bench_roof(Ctx *c, float *gemm);

/* Adds a field to a JSON object. */
void bench_number(struct cJSON *o, const char *name, double x);

/* Writes the array, where o->json wants it, and frees it. */
int bench_save(const Bench *o, struct cJSON *all, Err *e);

/* --case icecube, for the batches that o->batch asks for. */
int layer_bench(const Bench *o, Err *e);

/* --case wm-layer. */
int wm_layer_bench(const Bench *o, Err *e);

#endif
