/* The ops: what a model is made of. This header is the contract; ops.c checks it once (shapes,
 * dtypes, overlap), so that the kernels of each device may assume valid input. An op call allocates
 * its output in the context's arena, starts its kernel on the context's device (which on a CPU has
 * computed when the call returns), leaves a record on the tape, and returns the output.
 *
 * Dimensions: B batch, F frames, S tokens a frame (patches and registers), N patches a frame, T = F
 * S tokens, C d_model, H heads, D = C / H, M hidden, V vocabulary, R registers, P patch side, O and
 * I channels out and in.
 * "..." stands for any leading dimensions. All tensors are contiguous, row-major; activations and
 * weights have c->dtype, accumulation is at least float32, losses and their sums are double. What
 * stays float32 where c->dtype is bf16 is called exact (ctx_exact): the weights of norms, tables of
 * rotations, learned factors, targets, and what ops save. No input may
 * overlap an output. An op may not be given the same tensor twice where both want a gradient.
 *
 * A new op: one row in OP_LIST, its prototype here, its shapes in ops.c or ops_event.c, forward and
 * backward in kernels/cpu/NAME.c and kernels/cuda/NAME.cu and the plain ones in kernels/plain. The
 * tests and the self-test take it from the list. */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include "kernels/attention.h"
#include "llmc_like/ctx.h"
#include "llmc_like/philox.h"

/*      enum             kernels' name        */
#define OPS_WITH_BACKWARD(X)              \
    X(LINEAR, linear)                     \
    X(CONV2D, conv2d)                     \
    X(SILU, silu)                         \
    X(ADD, add)                           \
    X(GROUPNORM, groupnorm)               \
    X(PATCHIFY, patchify)                 \
    X(UNPATCHIFY, unpatchify)             \
    X(APPEND_REGISTERS, append_registers) \
    X(DROP_REGISTERS, drop_registers)     \
    X(EMBEDDING, embedding)               \
    X(RMSNORM_MODULATE, rmsnorm_modulate) \
    X(QKV_ROPE, qkv_rope)                 \
    X(ATTENTION, attention)               \
    X(GATE_ADD, gate_add)                 \
    X(GEGLU, geglu)                       \
    X(MSE_LOSS, mse_loss)                 \
    X(LAYERNORM, layernorm)               \
    X(GELU, gelu)                         \
    X(RELU, relu)                         \
    X(DROPOUT, dropout)                   \
    X(DROPOUT_ADD, dropout_add)           \
    X(SEGMENT_MEAN, segment_mean)         \
    X(SEGMENT_MAX, segment_max)           \
    X(SEGMENT_FIRST, segment_first)       \
    X(SEGMENT_PREPEND, segment_prepend)   \
    X(CONCAT, concat)                     \
    X(UNIT_VECTOR, unit_vector)           \
    X(ANGLE_LOSS, angle_loss)             \
    X(RMSNORM, rmsnorm)                   \
    X(RELU_SQUARED, relu_squared)         \
    X(MIX, mix)
#define OPS_WITHOUT_BACKWARD(X)               \
    X(TIMESTEP_EMBEDDING, timestep_embedding) \
    X(NORMAL, normal)                         \
    X(FLOW_NOISE, flow_noise)                 \
    X(COPY, copy)                             \
    X(PAD, pad)
#define OP_LIST(X) OPS_WITH_BACKWARD(X) OPS_WITHOUT_BACKWARD(X)

#define OP_ENUM(NAME, name) OP_##NAME,
typedef enum { OP_LIST(OP_ENUM) OP_COUNT } Op;

const char *op_name(int op);

/* Floating-point operations of one call (a multiply-add is two; only visible pairs count in
 * attention; elementwise work counts as nothing beside the matrix products), and the bytes it must
 * at least move. */
double op_flops(const OpCall *o, bool backward);
double op_bytes(const OpCall *o, bool backward);

/* What a layer may end with, computed with it: op_gelu's and op_relu's formulas. */
typedef enum Activation { ACT_NONE, ACT_GELU, ACT_RELU } Activation;

/* The layers that the ops take. weight NULL is not allowed; bias NULL is. */
typedef struct Linear {
    Tensor *weight, *bias; /* (out, in), (out) */
} Linear;

typedef struct Conv2d {
    Tensor *weight, *bias; /* (O, I, k, k), (O) */
} Conv2d;

typedef struct LayerNorm {
    Tensor *weight, *bias; /* (C), (C) */
} LayerNorm;

typedef struct GroupNorm {
    Tensor *weight, *bias; /* (C), (C) */
    int groups;
} GroupNorm;

/* y = x W' + b: (..., K) -> (..., N). torch.nn.functional.linear. */
Tensor *op_linear(Ctx *c, Tensor *x, const Linear *w);

/* act(x W' + b) in one call of op_linear's kernel: (..., K) -> (..., N). attr: activation. saved by
 * GELU, where the context records: the sum before it (ReLU's slope is read off its output).
 * Backward may overwrite out->grad, with d loss / d sum. */
Tensor *op_linear_gelu(Ctx *c, Tensor *x, const Linear *w);
Tensor *op_linear_relu(Ctx *c, Tensor *x, const Linear *w);

/* op_linear with its output seen as heads: (B, T, K) -> (B, T, H, N / H). */
Tensor *op_linear_heads(Ctx *c, Tensor *x, const Linear *w, int n_heads);

/* Correlation, stride 1, zero padding k / 2, k odd, channels last: (..., h, w, I) -> (..., h, w,
 * O). torch.nn.functional.conv2d on NHWC data; the weight keeps PyTorch's order (O, I, ky, kx). */
Tensor *op_conv2d(Ctx *c, Tensor *x, const Conv2d *w);

/* x sigmoid(x), any shape. */
Tensor *op_silu(Ctx *c, Tensor *x);

/* a + b, equal shapes. */
Tensor *op_add(Ctx *c, Tensor *a, Tensor *b);

/* Per image and group of C / groups channels: (x - mean) / sqrt(var + 1e-5) * weight + bias, the
 * variance over h, w and the group's channels, biased. (..., h, w, C) -> same.
 * torch.nn.functional.group_norm on NHWC data. attr: groups, eps. saved: mean, rstd (images,
 * groups). */
Tensor *op_groupnorm(Ctx *c, Tensor *x, const GroupNorm *w);

/* Cuts images into P x P patches, rows of patches first, each flattened channel-major (c, py, px):
 * (B, F, h, w, c) -> (B, F, N = h/P w/P, c P P). attr: patch. */
Tensor *op_patchify(Ctx *c, Tensor *x, int patch);

/* The way back for pixels: each row of x is a patch as (py, px, channel):
 * (B, F, N, P P 3) -> (B, F, height, width, 3). attr: patch. */
Tensor *op_unpatchify(Ctx *c, Tensor *x, int patch, int height, int width);

/* The registers go behind the patches of each frame, and frames are laid end to end:
 * (B, F, N, C), (R, C) -> (B, T = F (N + R), C). */
Tensor *op_append_registers(Ctx *c, Tensor *x, Tensor *registers);

/* (B, T = F S, C) -> (B, F, N = S - R, C). attr: registers; frames from the output's shape. */
Tensor *op_drop_registers(Ctx *c, Tensor *x, int frames, int registers);

/* Rows of a table: ids int32 (B, F) in 0 .. V-1, table (V, C) -> (B, F, C). */
Tensor *op_embedding(Ctx *c, Tensor *ids, Tensor *table);

/* Row floor(t (steps - 1)) of the sin/cos table: out[2i] = sin(n w_i), out[2i+1] = cos(n w_i), w_i
 * = 1e4^(-2i/C). t float32 (B, F) in [0, 1] -> (B, F, C). The product t (steps - 1) is rounded in
 * float32, as the original does. No gradient. attr: steps. */
Tensor *op_timestep_embedding(Ctx *c, Tensor *t, int64_t dim, int steps);

/* Adaptive RMSNorm: y = x / sqrt(mean(x^2) + 1e-6) * weight * (1 + scale) + shift, the modulation
 * shared by the tokens of a frame. x (B, T, C), weight (C), mod (B, F, n C) with shift in part
 * `part` and scale in part + 1 -> (B, T, C). attr: part, eps. saved: rstd (B, T). Backward must
 * clear mod's whole gradient where grad_set is false. */
Tensor *op_rmsnorm_modulate(Ctx *c, Tensor *x, Tensor *weight, Tensor *mod, int part);

typedef struct Rope {
    Tensor *sin, *cos; /* (positions, D): row p rotates the token at position p; parameters in the
                          variant `learn` */
} Rope;

typedef struct Qkv {
    Tensor *q, *k, *v;
} Qkv;

/* Splits the packed projections, normalises each head's q and k (RMSNorm over D, eps 1e-6, weights
 * ln_q, ln_k (D)) and rotates pairs: y[2i] = x[2i] cos[2i] - x[2i+1] sin[2i],  y[2i+1] = x[2i+1]
 * cos[2i+1] + x[2i] sin[2i+1]. qkv (B, Tk, 3 C) as q, k, v each (H, D); token j has position j.
 * Keys and values are made for all Tk tokens, queries for those from `offset` on: q (B, Tk -
 * offset, H, D), k and v (B, Tk, H, D). attr: heads, offset, eps. */
Qkv op_qkv_rope(Ctx *c, Tensor *qkv, Tensor *ln_q, Tensor *ln_k, const Rope *rope, int n_heads,
                int offset);

/* softmax(scale q k' masked) v by the backend in c->attn; see kernels/attention.h.
 * q (B, Tq, H, D), k and v (B, Tk, H, D) -> (B, Tq, H D). Query i has position Tk - Tq + i (attr:
 * offset), key j position j; the mask is asked with positions. attr: scale, mask, offset. saved:
 * lse (B, H, Tq). learned: the arrays of the mask's score expression, float32 (mask->n_learned);
 * NULL where it has none. Backward overwrites; the tape adds where an input had a gradient before.
 */
Tensor *op_attention(Ctx *c, Tensor *q, Tensor *k, Tensor *v, const Mask *mask, Tensor *learned,
                     float scale);

/* The same of packed projections, which need no norm and no rotation, read where they are: qkv (B,
 * T, 3 C), a row being q, k, v, each (H, D) -> (B, T, C). attr: heads, scale, mask. saved: lse (B,
 * H, T). */
Tensor *op_attention_packed(Ctx *c, Tensor *qkv, int n_heads, const Mask *mask, Tensor *learned,
                            float scale);

/* x + gate y, the gate in part `part` of mod (B, F, n C), shared by a frame's tokens. x, y (B, T,
 * C) -> (B, T, C). In backward x's gradient may be the very buffer of the output's: then there is
 * nothing to do for x. attr: part. */
Tensor *op_gate_add(Ctx *c, Tensor *x, Tensor *y, Tensor *mod, int part);

/* up SiLU(gate): two (..., M) -> (..., M). */
Tensor *op_geglu(Ctx *c, Tensor *up, Tensor *gate);

/* Numbers first, first + 1, ... of the key's stream of standard normals (rng_normal, to rounding of
 * log, sin and cos), drawn where they are needed: exact. No gradient. attr: seed, step, layer the
 * purpose, first. */
Tensor *op_normal(Ctx *c, int ndim, const int64_t *shape, RngKey key, uint64_t first);

/* Rectified flow, one noise level a frame: v = x0 - z, x_t = x0 - t v. x0, z (B, F, h, w, 3) exact,
 * t float32 (B, F) -> x_t, and v exact. No gradient. */
typedef struct Flow {
    Tensor *x_t, *v;
} Flow;
Flow op_flow_noise(Ctx *c, Tensor *x0, Tensor *z, Tensor *t);

/* A KV cache is a buffer (rows, C) of c->dtype that outlives the step. Copies x (1, T, C) behind
 * its rows first .. first + n - 1 and returns the window as a view (1, n + T, C): no memory of its
 * own, no gradient. The buffer must have first + n + T rows. */
Tensor *op_cache_extend(Ctx *c, Tensor *buffer, int64_t first, int64_t n, Tensor *x);

/* Moves rows first .. first + n - 1 of the buffer to its start; first >= n. */
void op_cache_rewind(Ctx *c, Tensor *buffer, int64_t first, int64_t n);

/* mean((x - target)^2), the target exact, summed in double in an order that does not depend on the
 * threads -> float64 (1). */
Tensor *op_mse_loss(Ctx *c, Tensor *x, Tensor *target);

/* ---- models of events: rows without padding, cut into segments ----
 *
 * N rows (pulses) in M segments (DOMs, or events of DOMs): offsets int32 (M + 1), segment m has
 * rows offsets[m] .. offsets[m+1] - 1; offsets[0] = 0, offsets[M] = N, and no segment is empty. x
 * is (N, C) or (1, N, C), and the output has as many dimensions. Class rows: op_segment_prepend
 * before attention, op_segment_first after it. */

/* Per row: (x - mean) / sqrt(var + 1e-5) * weight + bias, the variance biased. (..., C) -> same.
 * torch.nn.functional.layer_norm. attr: eps. saved: mean, rstd (rows). */
Tensor *op_layernorm(Ctx *c, Tensor *x, const LayerNorm *w);

/* x Phi(x), Phi the normal distribution (1 + erf(x / sqrt 2)) / 2; any shape. In float32 to 1e-6 of
 * the formula, absolute for |x| < 1 and relative to |x| beyond.
 * torch.nn.functional.gelu(approximate='none'). */
Tensor *op_gelu(Ctx *c, Tensor *x);

/* max(x, 0), any shape; the slope at 0 is 0. */
Tensor *op_relu(Ctx *c, Tensor *x);

/* Each element is zero with probability p, else x / (1 - p): (...) -> same. Element i is dropped
 * where number (layer << 40) + i of the stream (c->seed, step, RNG_DROPOUT) is below p 2^32, so
 * calls of one step must have different layers (0 .. 2^24 - 1). 0 <= p < 1; where p is 0 or the
 * context is not recording, x itself is returned. attr: p, seed, step, layer. */
Tensor *op_dropout(Ctx *c, Tensor *x, float p, uint32_t step, uint32_t layer);

/* x + dropout(y), a residual branch in one pass: equal shapes -> same; op_add where nothing is
 * dropped. In backward x's gradient may be the very buffer of the output's. attr: as op_dropout. */
Tensor *op_dropout_add(Ctx *c, Tensor *x, Tensor *y, float p, uint32_t step, uint32_t layer);

/* x + dropout(y W' + b), the end of a residual branch: op_dropout_add of op_linear, which it calls
 * where the context records; else it is one call of op_linear's kernel, in[3] = x, with the same
 * result (in bf16 but for one rounding). x (..., N), y (..., K) -> (..., N). */
Tensor *op_linear_dropout_add(Ctx *c, Tensor *x, Tensor *y, const Linear *w, float p, uint32_t step,
                              uint32_t layer);

/* The mean, the largest per column (the first one of equals gets the gradient), or the first of
 * each segment's rows: x (N, C), offsets (M + 1) -> (M, C). saved by max: int32 (M, C), the row
 * that each number came from. */
Tensor *op_segment_mean(Ctx *c, Tensor *x, Tensor *offsets);
Tensor *op_segment_max(Ctx *c, Tensor *x, Tensor *offsets);
Tensor *op_segment_first(Ctx *c, Tensor *x, Tensor *offsets);

/* The same row, `token` (C numbers of any shape), before each segment: x (N, C) -> (N + M, C).
 * Segment m then starts at offsets[m] + m. */
Tensor *op_segment_prepend(Ctx *c, Tensor *x, Tensor *offsets, Tensor *token);

/* Columns side by side: a (..., C), b (..., K) -> (..., C + K), equal leading dimensions. */
Tensor *op_concat(Ctx *c, Tensor *a, Tensor *b);

/* x / (|x| + 1e-8) per row, |x| the Euclidean norm: (..., C) -> same shape, exact. A row of zeros
 * gives zeros, and the norm's slope there counts as 0, as torch's does. attr: eps. */
Tensor *op_unit_vector(Ctx *c, Tensor *x);

/* The mean over rows of the angle arccos(x . target) in radians, for rows of length one: x, target
 * (..., C), both exact -> float64 (1). The dot product is cut to +-(1 - 1e-4) first, and has slope
 * 0 where it was cut (torch.clamp); all in double. */
Tensor *op_angle_loss(Ctx *c, Tensor *x, Tensor *target);

/* x / sqrt(mean(x^2) + 2^-23) per row, no weights: (..., C) -> same. torch.nn.functional.rms_norm,
 * whose eps is that of float32 unless it is told otherwise. attr: eps. saved: rstd (rows). */
Tensor *op_rmsnorm(Ctx *c, Tensor *x);

/* max(x, 0)^2, any shape. So et al., "Primer", 2021. */
Tensor *op_relu_squared(Ctx *c, Tensor *x);

/* r[i] x + s[i] y with learned factors: x, y (...), r and s (n) -> (...). y may be x itself (the
 * call then has no in[1]). The sums over all elements that are the factors' gradients are double,
 * in an order that does not depend on the threads; backward must clear the other factors' where
 * grad_set is false. attr: part = i. */
Tensor *op_mix(Ctx *c, Tensor *x, Tensor *y, Tensor *r, Tensor *s, int i);

/* Zeros behind each row: (..., K), exact -> (..., cols) of c->dtype, cols >= K. No gradient: for
 * inputs. */
Tensor *op_pad(Ctx *c, Tensor *x, int64_t cols);

/* An input, exact, as activations are: x itself, or where they are bf16 rounded by op_pad. */
Tensor *op_cast(Ctx *c, Tensor *x);

#endif
