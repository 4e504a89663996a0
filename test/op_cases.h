/* The cases of test_ops.c: for each op a few odd shapes (primes, ones, no multiples of 16, and some
 * large enough for all threads). A new op needs a `call` function and a row or two. */
#ifndef TEST_OP_CASES_H
#define TEST_OP_CASES_H

#include "kernels/ops.h"

typedef enum {
    ABSENT,  /* an optional input left out */
    REAL,    /* an activation: the context's dtype, standard normal, wants a gradient */
    WEIGHT,  /* a parameter: likewise, and its gradient is float32 where the context has bf16 */
    EXACT,   /* likewise, and itself float32 where the context has bf16 */
    FIXED,   /* like REAL, wants no gradient */
    TARGET,  /* like EXACT, wants none */
    UNIFORM, /* float32 whatever the context's dtype, in (0, 1), wants none */
    IDS,     /* int32 in 0 .. Case.a - 1, wants none */
    OFFSETS, /* int32: rows 0 .. Case.a cut into segments of odd lengths, the last one long */
    BUFFER   /* like FIXED, and the op writes into it */
} Kind;

typedef struct Input {
    Kind kind;
    int64_t shape[TENSOR_MAX_DIMS]; /* a zero ends it */
} Input;

typedef struct Case Case;
struct Case {
    Op op;
    void (*call)(Ctx *c, const Case *k, Tensor **in, Tensor **out); /* fills out */
    Input in[OP_MAX_IN];
    int a, b; /* numbers of the op: see its call function */
};

static void call_linear(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_linear(c, in[0], &(Linear){in[1], in[2]});
}

static void call_linear_gelu(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_linear_gelu(c, in[0], &(Linear){in[1], in[2]});
}

static void call_linear_relu(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_linear_relu(c, in[0], &(Linear){in[1], in[2]});
}

static void call_linear_add(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k; /* what a context that does not record makes of it: one call, the residual in[3] */
    c->recording = false;
    out[0] = op_linear_dropout_add(c, in[3], in[0], &(Linear){in[1], in[2]}, 0.3f, 1, 2);
}

static void call_linear_heads(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_linear_heads(c, in[0], &(Linear){in[1], in[2]}, k->a); /* a: heads */
}

static void call_conv2d(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_conv2d(c, in[0], &(Conv2d){in[1], in[2]});
}

static void call_silu(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_silu(c, in[0]);
}

static void call_add(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_add(c, in[0], in[1]);
}

static void call_groupnorm(Ctx *c, const Case *k, Tensor **in, Tensor **out) { /* a: groups */
    out[0] = op_groupnorm(c, in[0], &(GroupNorm){in[1], in[2], k->a});
}

static void call_patchify(Ctx *c, const Case *k, Tensor **in, Tensor **out) { /* a: patch */
    out[0] = op_patchify(c, in[0], k->a);
}

static void call_unpatchify(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    /* a: patch, b: height; the width follows */
    const int pixels = (int)in[0]->shape[2] * k->a * k->a;
    out[0] = op_unpatchify(c, in[0], k->a, k->b, pixels / k->b);
}

static void call_append_registers(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_append_registers(c, in[0], in[1]);
}

static void call_drop_registers(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_drop_registers(c, in[0], k->a, k->b); /* a: frames, b: registers */
}

static void call_embedding(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k; /* a: vocabulary */
    out[0] = op_embedding(c, in[0], in[1]);
}

static void call_timestep_embedding(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_timestep_embedding(c, in[0], k->a, k->b); /* a: columns, b: steps */
}

static void call_rmsnorm_modulate(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_rmsnorm_modulate(c, in[0], in[1], in[2], k->a); /* a: part */
}

static void call_qkv_rope(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    /* a: heads, b: offset */
    Qkv y = op_qkv_rope(c, in[0], in[1], in[2], &(Rope){in[3], in[4]}, k->a, k->b);
    out[0] = y.q;
    out[1] = y.k;
    out[2] = y.v;
}

/* Position i sees from 0, or from i - 3 in the second case, to itself: attention's own test has
 * the rest. */
enum { MASK_T = 11 };
static int32_t mask_lo[2][MASK_T] = {{0}, {0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7}};
static int32_t mask_hi[MASK_T] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
static const Mask masks[2] = {{.text = "causal", .T = MASK_T, .lo = mask_lo[0], .hi = mask_hi},
                              {.text = "window", .T = MASK_T, .lo = mask_lo[1], .hi = mask_hi}};

static void call_attention(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    c->attn = attn_find("sdpa");
    out[0] = op_attention(c, in[0], in[1], in[2], &masks[k->a], NULL, 0.5f); /* a: mask */
}

static void call_attention_packed(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    c->attn = attn_find("sdpa");
    out[0] = op_attention_packed(c, in[0], k->b, &masks[k->a], NULL, 0.5f); /* a: mask, b: heads */
}

static void call_gate_add(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_gate_add(c, in[0], in[1], in[2], k->a); /* a: part */
}

static void call_geglu(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_geglu(c, in[0], in[1]);
}

static void call_flow_noise(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    Flow flow = op_flow_noise(c, in[0], in[1], in[2]);
    out[0] = flow.x_t;
    out[1] = flow.v;
}

static void call_mse_loss(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_mse_loss(c, in[0], in[1]);
}

/* a: the window's first row, b: its rows; it grows by x and then moves to the buffer's start. */
static void call_copy(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_cache_extend(c, in[0], k->a, k->b, in[1]);
    op_cache_rewind(c, in[0], k->a, k->b);
}

static void call_layernorm(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_layernorm(c, in[0], &(LayerNorm){in[1], in[2]});
}

static void call_gelu(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_gelu(c, in[0]);
}

static void call_relu(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_relu(c, in[0]);
}

static void call_dropout(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_dropout(c, in[0], 0.3f, (uint32_t)k->a, (uint32_t)k->b); /* a: step, b: layer */
}

static void call_dropout_add(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_dropout_add(c, in[0], in[1], 0.3f, (uint32_t)k->a, (uint32_t)k->b);
}

/* The segments' a: rows. */
static void call_segment_mean(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_segment_mean(c, in[0], in[1]);
}

static void call_segment_max(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_segment_max(c, in[0], in[1]);
}

static void call_segment_first(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_segment_first(c, in[0], in[1]);
}

static void call_segment_prepend(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_segment_prepend(c, in[0], in[1], in[2]);
}

static void call_concat(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_concat(c, in[0], in[1]);
}

static void call_unit_vector(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_unit_vector(c, in[0]);
}

static void call_angle_loss(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_angle_loss(c, in[0], in[1]);
}

static void call_rmsnorm(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_rmsnorm(c, in[0]);
}

static void call_relu_squared(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)k;
    out[0] = op_relu_squared(c, in[0]);
}

static void call_mix(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    /* a: which factors; without in[1], in[0] is mixed with itself */
    out[0] = op_mix(c, in[0], in[1] ? in[1] : in[0], in[2], in[3], k->a);
}

static void call_normal(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    (void)in; /* a: how many, b: from which on */
    out[0] = op_normal(c, 1, (int64_t[]){k->a}, (RngKey){5, 7, RNG_TEST}, (uint64_t)k->b);
}

static void call_pad(Ctx *c, const Case *k, Tensor **in, Tensor **out) {
    out[0] = op_pad(c, in[0], k->a); /* a: columns */
}

#define R(...)                \
    {                         \
        REAL, { __VA_ARGS__ } \
    }
#define P(...)                  \
    {                           \
        WEIGHT, { __VA_ARGS__ } \
    }
#define E(...)                 \
    {                          \
        EXACT, { __VA_ARGS__ } \
    }
#define X(...)                 \
    {                          \
        FIXED, { __VA_ARGS__ } \
    }
#define T(...)                  \
    {                           \
        TARGET, { __VA_ARGS__ } \
    }
#define U(...)                   \
    {                            \
        UNIFORM, { __VA_ARGS__ } \
    }
#define I(...)               \
    {                        \
        IDS, { __VA_ARGS__ } \
    }
#define O(...)                   \
    {                            \
        OFFSETS, { __VA_ARGS__ } \
    }
#define W(...)                  \
    {                           \
        BUFFER, { __VA_ARGS__ } \
    }
#define NONE          \
    {                 \
        ABSENT, { 0 } \
    }

static const Case cases[] = {
    {OP_LINEAR, call_linear, {R(1, 1), P(1, 1), P(1)}, 0, 0},
    {OP_LINEAR, call_linear, {R(2, 3, 17), P(19, 17), P(19)}, 0, 0},
    {OP_LINEAR, call_linear, {R(131, 33), P(67, 33), P(67)}, 0, 0},
    {OP_LINEAR, call_linear, {R(5, 7), P(3, 7), NONE}, 0, 0},
    {OP_LINEAR, call_linear, {R(811, 5), P(7, 5), P(7)}, 0, 0},
    {OP_CONV2D, call_conv2d, {R(2, 5, 7, 3), P(17, 3, 5, 5), P(17)}, 0, 0},
    {OP_CONV2D, call_conv2d, {R(1, 3, 6, 5, 16), P(32, 16, 3, 3), P(32)}, 0, 0},
    {OP_CONV2D, call_conv2d, {R(3, 4, 4, 48), P(5, 48, 1, 1), NONE}, 0, 0},
    {OP_CONV2D, call_conv2d, {X(2, 9, 8, 3), P(16, 3, 5, 5), P(16)}, 0, 0},
    {OP_SILU, call_silu, {R(1)}, 0, 0},
    {OP_SILU, call_silu, {R(3, 5, 7)}, 0, 0},
    {OP_SILU, call_silu, {R(3, 3001)}, 0, 0},
    {OP_ADD, call_add, {R(1), R(1)}, 0, 0},
    {OP_ADD, call_add, {R(3, 7), R(3, 7)}, 0, 0},
    {OP_ADD, call_add, {R(5, 2003), R(5, 2003)}, 0, 0},
    {OP_GROUPNORM, call_groupnorm, {R(1, 1, 3, 2), E(2), E(2)}, 1, 0},
    {OP_GROUPNORM, call_groupnorm, {R(2, 3, 5, 7, 12), E(12), E(12)}, 4, 0},
    {OP_GROUPNORM, call_groupnorm, {R(5, 4, 6, 96), E(96), E(96)}, 32, 0},
    {OP_PATCHIFY, call_patchify, {R(1, 1, 2, 2, 1)}, 1, 0},
    {OP_PATCHIFY, call_patchify, {R(2, 3, 6, 9, 5)}, 3, 0},
    {OP_UNPATCHIFY, call_unpatchify, {R(1, 1, 1, 3)}, 1, 1},
    {OP_UNPATCHIFY, call_unpatchify, {R(2, 3, 6, 27)}, 3, 6},
    {OP_APPEND_REGISTERS, call_append_registers, {R(1, 1, 1, 1), P(1, 1)}, 0, 0},
    {OP_APPEND_REGISTERS, call_append_registers, {R(2, 3, 5, 7), P(2, 7)}, 0, 0},
    {OP_DROP_REGISTERS, call_drop_registers, {R(1, 2, 1)}, 1, 1},
    {OP_DROP_REGISTERS, call_drop_registers, {R(2, 21, 5)}, 3, 2},
    {OP_EMBEDDING, call_embedding, {I(1, 1), P(1, 1)}, 1, 0},
    {OP_EMBEDDING, call_embedding, {I(3, 7), P(4, 13)}, 4, 0},
    {OP_EMBEDDING, call_embedding, {I(5, 13), P(7, 131)}, 7, 0},
    {OP_TIMESTEP_EMBEDDING, call_timestep_embedding, {U(1, 1)}, 2, 1000},
    {OP_TIMESTEP_EMBEDDING, call_timestep_embedding, {U(3, 11)}, 38, 1000},
    {OP_RMSNORM_MODULATE, call_rmsnorm_modulate, {R(1, 1, 1), E(1), R(1, 1, 2)}, 0, 0},
    {OP_RMSNORM_MODULATE, call_rmsnorm_modulate, {R(2, 15, 17), E(17), R(2, 3, 102)}, 3, 0},
    {OP_RMSNORM_MODULATE, call_rmsnorm_modulate, {R(1, 77, 130), E(130), R(1, 7, 260)}, 0, 0},
    {OP_QKV_ROPE, call_qkv_rope, {R(1, 1, 6), E(2), E(2), E(1, 2), E(1, 2)}, 1, 0},
    {OP_QKV_ROPE, call_qkv_rope, {R(2, 7, 90), E(10), E(10), E(7, 10), E(7, 10)}, 3, 0},
    {OP_QKV_ROPE, call_qkv_rope, {R(1, 9, 216), E(36), E(36), T(11, 36), T(11, 36)}, 2, 5},
    {OP_QKV_ROPE, call_qkv_rope, {R(2, 67, 96), E(16), E(16), E(70, 16), E(70, 16)}, 2, 3},
    /* the first row sees one key: dq and dk are rounding alone there, the second row's set the rule
     */
    {OP_ATTENTION, call_attention, {R(1, 2, 1, 4), R(1, 2, 1, 4), R(1, 2, 1, 4)}, 0, 0},
    {OP_ATTENTION, call_attention, {R(2, 11, 3, 16), R(2, 11, 3, 16), R(2, 11, 3, 16)}, 1, 0},
    {OP_ATTENTION, call_attention, {R(1, 3, 2, 12), R(1, 10, 2, 12), R(1, 10, 2, 12)}, 0, 0},
    {OP_ATTENTION, call_attention_packed, {R(1, 2, 12)}, 0, 1},
    {OP_ATTENTION, call_attention_packed, {R(2, 11, 3 * 48)}, 1, 3},
    {OP_ATTENTION, call_attention_packed, {R(1, 10, 3 * 40)}, 0, 2},
    {OP_GATE_ADD, call_gate_add, {R(1, 1, 1), R(1, 1, 1), R(1, 1, 1)}, 0, 0},
    {OP_GATE_ADD, call_gate_add, {R(2, 15, 17), R(2, 15, 17), R(2, 5, 51)}, 2, 0},
    {OP_GATE_ADD, call_gate_add, {R(1, 77, 130), R(1, 77, 130), R(1, 7, 130)}, 0, 0},
    {OP_GEGLU, call_geglu, {R(1), R(1)}, 0, 0},
    {OP_GEGLU, call_geglu, {R(3, 5, 7), R(3, 5, 7)}, 0, 0},
    {OP_GEGLU, call_geglu, {R(3, 3001), R(3, 3001)}, 0, 0},
    {OP_FLOW_NOISE, call_flow_noise, {T(1, 1, 1, 1, 3), T(1, 1, 1, 1, 3), U(1, 1)}, 0, 0},
    {OP_FLOW_NOISE, call_flow_noise, {T(2, 3, 5, 7, 3), T(2, 3, 5, 7, 3), U(2, 3)}, 0, 0},
    {OP_MSE_LOSS, call_mse_loss, {R(1), E(1)}, 0, 0},
    {OP_MSE_LOSS, call_mse_loss, {R(3, 5, 7), E(3, 5, 7)}, 0, 0},
    {OP_MSE_LOSS, call_mse_loss, {R(7, 1999), T(7, 1999)}, 0, 0},
    {OP_COPY, call_copy, {W(9, 5), X(1, 3, 5)}, 4, 2},
    {OP_COPY, call_copy, {W(25, 7), X(1, 4, 7)}, 13, 8},
    {OP_LAYERNORM, call_layernorm, {R(1, 2), E(2), E(2)}, 0, 0},
    {OP_LAYERNORM, call_layernorm, {R(3, 5, 17), E(17), E(17)}, 0, 0},
    {OP_LAYERNORM, call_layernorm, {R(1, 131, 130), E(130), E(130)}, 0, 0},
    {OP_GELU, call_gelu, {R(1)}, 0, 0},
    {OP_GELU, call_gelu, {R(3, 5, 7)}, 0, 0},
    {OP_GELU, call_gelu, {R(3, 3001)}, 0, 0},
    {OP_RELU, call_relu, {R(1)}, 0, 0},
    {OP_RELU, call_relu, {R(3, 5, 7)}, 0, 0},
    {OP_RELU, call_relu, {R(3, 3001)}, 0, 0},
    {OP_DROPOUT, call_dropout, {R(1)}, 3, 0},
    {OP_DROPOUT, call_dropout, {R(3, 5, 7)}, 0, 1},
    {OP_DROPOUT, call_dropout, {R(3, 3001)}, 1000, 77},
    {OP_SEGMENT_MEAN, call_segment_mean, {R(1, 1), O(2)}, 1, 0},
    {OP_SEGMENT_MEAN, call_segment_mean, {R(1, 37, 5), O(8)}, 37, 0},
    {OP_SEGMENT_MEAN, call_segment_mean, {R(401, 33), O(71)}, 401, 0},
    {OP_SEGMENT_MAX, call_segment_max, {R(1, 1), O(2)}, 1, 0},
    {OP_SEGMENT_MAX, call_segment_max, {R(1, 37, 5), O(8)}, 37, 0},
    {OP_SEGMENT_MAX, call_segment_max, {R(401, 33), O(71)}, 401, 0},
    {OP_SEGMENT_FIRST, call_segment_first, {R(1, 1), O(2)}, 1, 0},
    {OP_SEGMENT_FIRST, call_segment_first, {R(1, 37, 5), O(8)}, 37, 0},
    {OP_SEGMENT_FIRST, call_segment_first, {R(401, 33), O(71)}, 401, 0},
    {OP_SEGMENT_PREPEND, call_segment_prepend, {R(1, 1), O(2), P(1)}, 1, 0},
    {OP_SEGMENT_PREPEND, call_segment_prepend, {R(1, 37, 5), O(8), P(5)}, 37, 0},
    {OP_SEGMENT_PREPEND, call_segment_prepend, {R(401, 33), O(71), P(33)}, 401, 0},
    {OP_CONCAT, call_concat, {R(1, 1), R(1, 1)}, 0, 0},
    {OP_CONCAT, call_concat, {R(2, 3, 7), R(2, 3, 5)}, 0, 0},
    {OP_CONCAT, call_concat, {R(131, 70), R(131, 33)}, 0, 0},
    {OP_UNIT_VECTOR, call_unit_vector, {R(1, 3)}, 0, 0},
    {OP_UNIT_VECTOR, call_unit_vector, {R(2, 11, 3)}, 0, 0},
    {OP_ANGLE_LOSS, call_angle_loss, {E(7, 3), E(7, 3)}, 0, 0},
    {OP_ANGLE_LOSS, call_angle_loss, {E(5, 11, 3), T(5, 11, 3)}, 0, 0},
    {OP_RMSNORM, call_rmsnorm, {R(1, 1)}, 0, 0},
    {OP_RMSNORM, call_rmsnorm, {R(3, 5, 17)}, 0, 0},
    {OP_RMSNORM, call_rmsnorm, {R(1, 67, 3, 48)}, 0, 0},
    {OP_RELU_SQUARED, call_relu_squared, {R(1)}, 0, 0},
    {OP_RELU_SQUARED, call_relu_squared, {R(3, 5, 7)}, 0, 0},
    {OP_RELU_SQUARED, call_relu_squared, {R(3, 3001)}, 0, 0},
    {OP_MIX, call_mix, {R(1), R(1), E(1), E(1)}, 0, 0},
    {OP_MIX, call_mix, {R(3, 5, 7), R(3, 5, 7), E(5), E(5)}, 3, 0},
    {OP_MIX, call_mix, {R(3, 3001), R(3, 3001), E(2), E(2)}, 1, 0},
    {OP_MIX, call_mix, {R(3, 3001), NONE, E(2), E(2)}, 0, 0},
    {OP_MIX, call_mix, {R(13, 7), X(13, 7), E(4), T(4)}, 2, 0},
    {OP_PAD, call_pad, {T(1, 1)}, 1, 0},
    {OP_PAD, call_pad, {T(2, 3, 5)}, 11, 0},
    {OP_PAD, call_pad, {T(131, 16)}, 70, 0},
    {OP_LINEAR, call_linear_heads, {R(1, 5, 7), P(12, 7), NONE}, 3, 0},
    {OP_LINEAR, call_linear_add, {X(1, 1), X(1, 1), X(1), X(1, 1)}, 0, 0},
    {OP_LINEAR, call_linear_add, {X(3, 27, 17), X(35, 17), X(35), X(3, 27, 35)}, 0, 0},
    {OP_LINEAR, call_linear_add, {X(145, 32), X(64, 32), NONE, X(145, 64)}, 0, 0},
    {OP_DROPOUT_ADD, call_dropout_add, {R(1), R(1)}, 3, 0},
    {OP_DROPOUT_ADD, call_dropout_add, {R(3, 5, 7), R(3, 5, 7)}, 0, 1},
    {OP_DROPOUT_ADD, call_dropout_add, {R(3, 3001), R(3, 3001)}, 1000, 77},
    {OP_LINEAR, call_linear_gelu, {R(5, 1), P(7, 1), P(7)}, 0, 0},
    {OP_LINEAR, call_linear_gelu, {R(3, 27, 17), P(35, 17), P(35)}, 0, 0},
    {OP_LINEAR, call_linear_gelu, {R(145, 33), P(67, 33), P(67)}, 0, 0},
    {OP_LINEAR, call_linear_gelu, {R(64, 16), P(48, 16), NONE}, 0, 0},
    {OP_LINEAR, call_linear_gelu, {X(145, 3), P(67, 3), P(67)}, 0, 0},
    {OP_LINEAR, call_linear_relu, {R(1, 1), P(1, 1), P(1)}, 0, 0},
    {OP_LINEAR, call_linear_relu, {R(3, 27, 17), P(35, 17), P(35)}, 0, 0},
    {OP_LINEAR, call_linear_relu, {R(145, 33), P(67, 33), P(67)}, 0, 0},
    {OP_LINEAR, call_linear_relu, {R(64, 16), P(48, 16), NONE}, 0, 0},
    {OP_LINEAR, call_linear_relu, {X(145, 3), P(67, 3), P(67)}, 0, 0},
    /* rows of whole 16 bytes, short and long ones, and long ones that are not */
    {OP_LINEAR, call_linear, {R(70, 64), P(48, 64), P(48)}, 0, 0},
    {OP_SILU, call_silu, {R(5, 48)}, 0, 0},
    {OP_ADD, call_add, {R(7, 48), R(7, 48)}, 0, 0},
    {OP_PATCHIFY, call_patchify, {R(1, 2, 8, 4, 16)}, 2, 0},
    {OP_UNPATCHIFY, call_unpatchify, {R(1, 2, 6, 48)}, 4, 8},
    {OP_APPEND_REGISTERS, call_append_registers, {R(2, 3, 5, 16), P(2, 16)}, 0, 0},
    {OP_DROP_REGISTERS, call_drop_registers, {R(2, 21, 16)}, 3, 2},
    {OP_EMBEDDING, call_embedding, {I(3, 7), P(4, 48)}, 4, 0},
    {OP_TIMESTEP_EMBEDDING, call_timestep_embedding, {U(3, 11)}, 48, 1000},
    {OP_RMSNORM_MODULATE, call_rmsnorm_modulate, {R(2, 6, 48), E(48), R(2, 3, 144)}, 1, 0},
    {OP_RMSNORM_MODULATE, call_rmsnorm_modulate, {R(1, 4, 271), E(271), R(1, 2, 542)}, 0, 0},
    {OP_RMSNORM_MODULATE, call_rmsnorm_modulate, {R(1, 4, 640), E(640), R(1, 2, 1280)}, 0, 0},
    {OP_RMSNORM_MODULATE, call_rmsnorm_modulate, {R(1, 4, 1032), E(1032), R(1, 2, 2064)}, 0, 0},
    {OP_QKV_ROPE, call_qkv_rope, {R(1, 9, 384), E(64), E(64), E(9, 64), E(9, 64)}, 2, 0},
    {OP_GATE_ADD, call_gate_add, {R(2, 6, 48), R(2, 6, 48), R(2, 3, 96)}, 1, 0},
    {OP_GATE_ADD, call_gate_add, {R(1, 4, 1032), R(1, 4, 1032), R(1, 2, 1032)}, 0, 0},
    {OP_GEGLU, call_geglu, {R(5, 48), R(5, 48)}, 0, 0},
    {OP_FLOW_NOISE, call_flow_noise, {T(1, 2, 4, 4, 3), T(1, 2, 4, 4, 3), U(1, 2)}, 0, 0},
    {OP_MSE_LOSS, call_mse_loss, {R(7, 48), T(7, 48)}, 0, 0},
    {OP_COPY, call_copy, {W(9, 16), X(1, 3, 16)}, 4, 2},
    {OP_LAYERNORM, call_layernorm, {R(6, 48), E(48), E(48)}, 0, 0},
    {OP_LAYERNORM, call_layernorm, {R(4, 271), E(271), E(271)}, 0, 0},
    {OP_LAYERNORM, call_layernorm, {R(4, 640), E(640), E(640)}, 0, 0},
    {OP_LAYERNORM, call_layernorm, {R(4, 1032), E(1032), E(1032)}, 0, 0},
    {OP_GELU, call_gelu, {R(5, 48)}, 0, 0},
    {OP_RELU, call_relu, {R(5, 48)}, 0, 0},
    {OP_RELU_SQUARED, call_relu_squared, {R(5, 48)}, 0, 0},
    {OP_DROPOUT, call_dropout, {R(5, 48)}, 3, 5},
    {OP_DROPOUT_ADD, call_dropout_add, {R(5, 48), R(5, 48)}, 3, 5},
    {OP_SEGMENT_MEAN, call_segment_mean, {R(101, 48), O(23)}, 101, 0},
    {OP_SEGMENT_MAX, call_segment_max, {R(101, 48), O(23)}, 101, 0},
    {OP_SEGMENT_FIRST, call_segment_first, {R(101, 48), O(23)}, 101, 0},
    {OP_SEGMENT_PREPEND, call_segment_prepend, {R(101, 48), O(23), P(48)}, 101, 0},
    {OP_CONCAT, call_concat, {R(7, 48), R(7, 16)}, 0, 0},
    {OP_RMSNORM, call_rmsnorm, {R(4, 271)}, 0, 0},
    {OP_RMSNORM, call_rmsnorm, {R(4, 640)}, 0, 0},
    {OP_RMSNORM, call_rmsnorm, {R(4, 1032)}, 0, 0},
    {OP_MIX, call_mix, {R(3, 48), R(3, 48), E(3), E(3)}, 1, 0},
    {OP_PAD, call_pad, {T(13, 16)}, 32, 0},
    {OP_NORMAL, call_normal, {NONE}, 1, 0},
    {OP_NORMAL, call_normal, {NONE}, 4099, 3},
    {OP_NORMAL, call_normal, {NONE}, 20000, 8},
    /* a position with more heads than a block on CUDA takes at once */
    {OP_QKV_ROPE, call_qkv_rope, {R(3, 2, 90), E(10), E(10), E(2, 10), E(2, 10)}, 3, 0},
    /* channels by 64, which CUDA on Hopper takes without im2col */
    {OP_CONV2D, call_conv2d, {R(1, 5, 5, 64), P(64, 64, 5, 5), P(64)}, 0, 0},
    {OP_CONV2D, call_conv2d, {R(1, 3, 15, 64), P(64, 64, 3, 3), NONE}, 0, 0},
    {OP_CONV2D, call_conv2d, {R(1, 3, 8, 128), P(64, 128, 3, 3), P(64)}, 0, 0},
    {OP_CONV2D, call_conv2d, {R(2, 9, 10, 64), P(64, 64, 1, 1), NONE}, 0, 0},
    {OP_CONV2D, call_conv2d, {R(1, 3, 8, 64), P(704, 64, 1, 1), NONE}, 0, 0},
    {OP_CONV2D, call_conv2d, {R(1, 3, 8, 64), P(192, 64, 1, 1), P(192)}, 0, 0},
};
enum { N_CASES = sizeof cases / sizeof *cases };

#undef R
#undef P
#undef E
#undef X
#undef T
#undef U
#undef I
#undef O
#undef W
#undef NONE

#endif
