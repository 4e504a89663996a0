/* The flat IceCube transformer: one vector a DOM, no T1 (models/icecube.h). After timinar/iceaggr's
 * flat_transformer_v2.
 *
 *   x0 = norm(input(dom_vector)), a class token before each event's DOMs;  norm(x) = x /
 *   sqrt(mean(x^2) + eps), no weights (torch.nn.functional.rms_norm: eps is float32's 2^-23)
 *   block i:  x = r_i x + s_i x0;  x = x + Wo Attention(norm(q), norm(k), v) of norm(x), q and k
 *             normed per head;  x = x + Wd relu(Wu norm(x))^2;  no biases; r 1, s 0.1, Wo 0, Wd 0
 *             at the start
 *   the class token's row of norm(x); head C -> head_hidden -> 3 (GELU); unit vector.
 *
 *   input  linear: C x (4 + 3K);  mlp: linear, GELU, linear;  none: padded with zeros to C
 *
 * B events, M DOMs, K pulses kept a DOM, C d_model. Rows with class tokens: M + B. */
#ifndef MODELS_ICECUBE_FLAT_H
#define MODELS_ICECUBE_FLAT_H

#include "models/icecube.h"

typedef struct IceFlatConfig {
    int d_model, n_heads, n_layers, d_ff, head_hidden;
    int K;                             /* pulses kept a DOM */
    const char *input;                 /* linear, mlp, none */
    double dropout;                    /* on the residual branches and in the head */
    double time_scale, position_scale; /* as the hierarchical model's */
    int max_doms;
} IceFlatConfig;

/* 128, 8, 4, 256 (0.55 M parameters); head 128, K 16, linear, 0.1, 3e4, 128. */
IceFlatConfig ice_flat_config_default(void);
int ice_flat_config_check(const IceFlatConfig *g, Err *e);
/* As the hierarchical model's rows. */
enum { ICE_FLAT_CONFIG_ROWS = 11 };
void ice_flat_config_rows(IceFlatConfig *g, ConfigRow row[ICE_FLAT_CONFIG_ROWS]);
/* The originals' names: max_pulses_per_dom, d_model, max_doms, num_heads, num_layers, hidden_dim,
 * head_hidden_dim, input_mode, model "flat". */
void ice_flat_config_json(const IceFlatConfig *g, char *text, size_t size);
int ice_flat_config_parse(IceFlatConfig *g, const char *json, Err *e);

typedef struct IceFlatBlock {
    Linear q, k, v, out; /* (C, C) each, no bias      */
    Linear up, down;     /* (d_ff, C), (C, d_ff), no bias */
    Tensor *learned;     /* (the mask's n_learned); NULL where that is 0 */
} IceFlatBlock;

typedef struct IceFlat {
    IceFlatConfig cfg;
    ParamTable params;
    Linear input1, input2;              /* (C, 4 + 3K), (C, C): what the input mode has */
    Tensor *class_token;                /* (C), kept as (1, 1, C)                       */
    Tensor *resid_lambdas, *x0_lambdas; /* (n_layers) */
    IceFlatBlock *block;
    Linear head1, head2;    /* (head_hidden, C), (3, head_hidden) */
    const Mask *event_mask; /* events over event_token's rows     */
} IceFlat;

int ice_flat_init(IceFlat *m, const IceFlatConfig *cfg, const Mask *event_mask, const Ctx *c,
                  bool training, Err *e);
void ice_flat_free(IceFlat *m);

/* Unit vectors (1, B, 3). The mask must hold the documents of event_token. */
Tensor *ice_flat_forward(Ctx *c, const IceFlat *m, const IceInput *in);

#endif
