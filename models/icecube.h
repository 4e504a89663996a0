/* The IceCube DOM transformer: the direction of a neutrino from pulses of light on sensors (DOMs).
 * Hierarchical: T1 makes a vector of each DOM's pulses, T2 a direction of each event's DOMs. After
 * timinar/iceaggr (the specification: shared/spec/icecube.md).
 *
 *   T1   x = W pulse;  layers of  x = LN(x + drop(Attention(x)));  x = LN(x + drop(FFN(x)));  LN;
 *        a pulse sees the pulses of its own DOM; FFN with GELU. Pooling over each DOM's pulses:
 *          mean, max    of the rows
 *          mean+max     both side by side, projected back to C
 *          class        a learned row before each DOM's pulses, which sees them and is their sum
 *          embedding    the mean straight after W: no layers, no LN
 *   T2   x + MLP(position);  layers of  x = x + drop(Attention(LN(x)));  x = x + drop(FFN(LN(x)));
 *        a DOM sees the DOMs of its own event; FFN with ReLU. Mean over each event's DOMs; head
 *        C -> C -> 3 (ReLU, drop); unit vector.
 *
 * B events, M DOMs, N pulses, C d_model, H heads, D = C / H, all without padding: rows are
 * (1, N, C) for attention. */
#ifndef MODELS_ICECUBE_H
#define MODELS_ICECUBE_H

#include "kernels/ops.h"
#include "llmc_like/config.h"
#include "llmc_like/params.h"

typedef struct IceConfig {
    int d_model, n_heads, t1_layers, t2_layers, d_ff;
    const char *pooling; /* mean, max, mean+max, class, embedding */
    double dropout;
    double time_scale, position_scale; /* what times (ns) and positions (m) are divided by: kept
                                          with the parameters that were trained on it */
    int max_doms;                      /* DOMs of an event that T2 reads, the earliest */
} IceConfig;

/* The specification's: 128, 8, 4, 4, 512, mean, 0.1, 3e4, 2048. */
IceConfig ice_config_default(void);
/* -1 and a sentence that names the option for sizes that do not fit together. */
int ice_config_check(const IceConfig *g, Err *e);
/* The same for what both models have: how they read events, and dropout. */
int ice_reading_check(double dropout, double time_scale, double position_scale, int max_doms,
                      Err *e);
/* What the JSON text holds, and the options that set it (llmc_like/config.h); values point into *g.
 */
enum { ICE_CONFIG_ROWS = 10 };
void ice_config_rows(IceConfig *g, ConfigRow row[ICE_CONFIG_ROWS]);
/* {"model": "hierarchical", "d_model": ..}; the reader also takes the originals' "n_layers" for
 * both. -1 for another model's. */
void ice_config_json(const IceConfig *g, char *text, size_t size);
int ice_config_parse(IceConfig *g, const char *json, Err *e);

/* T1's layers and T2's differ in where their norms stand, not in what they have. */
typedef struct IceLayer {
    Linear qkv, out;        /* (3C, C), (C, C)         */
    Linear up, down;        /* (d_ff, C), (C, d_ff)    */
    LayerNorm norm1, norm2; /* (C)                     */
    Tensor *learned;        /* (the mask's n_learned); NULL where that is 0 */
} IceLayer;

/* What a model reads of a batch: the tensors of data/icecube_batch.h. The model knows no events but
 * these rows; all its activations are (1, rows, columns). */
typedef struct IceInput {
    Tensor *pulse;                   /* (1, N, 4) float32; hierarchical alone       */
    Tensor *dom_vector;              /* (1, M, 4 + 3K) float32; flat alone          */
    Tensor *xyz;                     /* (1, M, 3) float32, scaled                   */
    Tensor *dom_offsets;             /* (M + 1) int32: first pulse of each DOM      */
    Tensor *event_offsets;           /* (B + 1) int32: first DOM of each event      */
    Tensor *dom_token, *event_token; /* the same with a class row each    */
    uint32_t step;                   /* of training, for dropout */
    uint32_t part;                   /* of the step's batch, likewise */
} IceInput;

typedef struct Ice {
    IceConfig cfg;
    ParamTable params;
    struct {
        Linear input;        /* (C, 4)                                */
        IceLayer *layer;     /* (t1_layers)                           */
        LayerNorm norm;      /* (C)                                   */
        Tensor *class_token; /* (C); pooling "class" alone         */
        Linear projection;   /* (C, 2C); pooling "mean+max" alone  */
    } t1;
    struct {
        Linear geometry1, geometry2; /* (C / 2, 3), (C, C / 2) */
        IceLayer *layer;             /* (t2_layers)            */
        Linear head1, head2;         /* (C, C), (3, C)         */
    } t2;
    const Mask *dom_mask, *event_mask; /* the caller's: see ice_init */
} Ice;

/* Registers the parameters, allocates and initialises them; with `training` their gradients and
 * optimiser state too, in the memory of the context's device; drawn from its seed; a dry one
 * counts only. The masks must outlive the model: dom_mask keeps DOMs
 * apart over the pulses (with pooling "class" over dom_token's rows), event_mask events over the
 * DOMs. */
int ice_init(Ice *m, const IceConfig *cfg, const Mask *dom_mask, const Mask *event_mask,
             const Ctx *c, bool training, Err *e);
void ice_free(Ice *m);

/* T1 alone: (1, M, C), one row a DOM. */
Tensor *ice_dom_embedding(Ctx *c, const Ice *m, const IceInput *in);

/* Unit vectors (1, B, 3): where the neutrinos come from. The masks must hold the batch's documents.
 */
Tensor *ice_forward(Ctx *c, const Ice *m, const IceInput *in);

#endif
