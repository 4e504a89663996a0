#include "kernels/op_call.h"

#define OP_NAME(NAME, name) [OP_##NAME] = #name,
static const char *const names[OP_COUNT] = {OP_LIST(OP_NAME)};

const char *op_name(int op) { return names[op]; }

/* ---- layers ---- */

static Tensor *linear(Ctx *c, Tensor *x, const Linear *w, Activation activation, Tensor *add) {
    OpCall o = {.op = OP_LINEAR, .in = {x, w->weight, w->bias, add}, .n_in = 4, .n_out = 1};
    o.attr.activation = activation;
    need_dtype(c, &o, o.n_in);
    NEED(o, w->weight->ndim == 2 && w->weight->shape[1] == tensor_cols(x), w->weight);
    NEED(o, is_vector(w->bias, w->weight->shape[0]), w->bias);
    if (activation == ACT_GELU && c->recording)
        o.saved[0] = output_cols(c, &o, x, w->weight->shape[0]);
    o.out[0] = output_cols(c, &o, x, w->weight->shape[0]);
    NEED(o, !add || tensor_same_shape(o.out[0], add), add);
    run(c, &o);
    return o.out[0];
}

Tensor *op_linear(Ctx *c, Tensor *x, const Linear *w) { return linear(c, x, w, ACT_NONE, NULL); }

Tensor *op_linear_gelu(Ctx *c, Tensor *x, const Linear *w) {
    return linear(c, x, w, ACT_GELU, NULL);
}

Tensor *op_linear_relu(Ctx *c, Tensor *x, const Linear *w) {
    return linear(c, x, w, ACT_RELU, NULL);
}

Tensor *op_linear_dropout_add(Ctx *c, Tensor *x, Tensor *y, const Linear *w, float p, uint32_t step,
                              uint32_t layer) {
    if (c->recording) return op_dropout_add(c, x, op_linear(c, y, w), p, step, layer);
    return linear(c, y, w, ACT_NONE, x);
}

Tensor *op_linear_heads(Ctx *c, Tensor *x, const Linear *w, int n_heads) {
    Tensor *y = op_linear(c, x, w);
    NEED((OpCall){.op = OP_LINEAR}, y->ndim == 3 && y->shape[2] % n_heads == 0, y);
    y->ndim = 4;
    y->shape[3] = y->shape[2] / n_heads;
    y->shape[2] = n_heads;
    return y;
}

Tensor *op_conv2d(Ctx *c, Tensor *x, const Conv2d *w) {
    OpCall o = {.op = OP_CONV2D, .in = {x, w->weight, w->bias}, .n_in = 3, .n_out = 1};
    need_dtype(c, &o, o.n_in);
    const int64_t *s = w->weight->shape;
    NEED(o, w->weight->ndim == 4 && s[1] == tensor_cols(x) && s[2] == s[3] && s[2] % 2 == 1,
         w->weight);
    NEED(o, is_vector(w->bias, s[0]), w->bias);
    NEED(o, x->ndim >= 4, x);
    o.out[0] = output_cols(c, &o, x, s[0]);
    run(c, &o);
    return o.out[0];
}

Tensor *op_silu(Ctx *c, Tensor *x) {
    OpCall o = {.op = OP_SILU, .in = {x}, .n_in = 1, .n_out = 1};
    need_dtype(c, &o, o.n_in);
    o.out[0] = output_like(c, &o, x);
    run(c, &o);
    return o.out[0];
}

Tensor *op_add(Ctx *c, Tensor *a, Tensor *b) {
    OpCall o = {.op = OP_ADD, .in = {a, b}, .n_in = 2, .n_out = 1};
    need_dtype(c, &o, o.n_in);
    NEED(o, tensor_same_shape(a, b), b);
    o.out[0] = output_like(c, &o, a);
    run(c, &o);
    return o.out[0];
}

Tensor *op_groupnorm(Ctx *c, Tensor *x, const GroupNorm *w) {
    OpCall o = {.op = OP_GROUPNORM, .in = {x, w->weight, w->bias}, .n_in = 3, .n_out = 1};
    o.attr.groups = w->groups;
    o.attr.eps = 1e-5f;
    need_dtype(c, &o, 1);
    NEED(o, x->ndim >= 4 && tensor_cols(x) % w->groups == 0, x);
    NEED(o, is_vector(w->weight, tensor_cols(x)) && is_vector(w->bias, tensor_cols(x)), w->weight);
    int64_t images = tensor_rows(x) / (x->shape[x->ndim - 2] * x->shape[x->ndim - 3]);
    o.saved[0] = exact_output(c, &o, 2, (int64_t[]){images, w->groups});
    o.saved[1] = exact_output(c, &o, 2, (int64_t[]){images, w->groups});
    o.out[0] = output_like(c, &o, x);
    run(c, &o);
    return o.out[0];
}

/* ---- layout ---- */

Tensor *op_patchify(Ctx *c, Tensor *x, int patch) {
    OpCall o = {.op = OP_PATCHIFY, .in = {x}, .n_in = 1, .n_out = 1, .attr.patch = patch};
    need_dtype(c, &o, o.n_in);
    const int64_t *s = x->shape;
    NEED(o, x->ndim == 5 && s[2] % patch == 0 && s[3] % patch == 0, x);
    o.out[0] = output(c, &o, 4,
                      (int64_t[]){s[0], s[1], s[2] / patch * (s[3] / patch), s[4] * patch * patch});
    run(c, &o);
    return o.out[0];
}

Tensor *op_unpatchify(Ctx *c, Tensor *x, int patch, int height, int width) {
    OpCall o = {.op = OP_UNPATCHIFY, .in = {x}, .n_in = 1, .n_out = 1, .attr.patch = patch};
    need_dtype(c, &o, o.n_in);
    const int64_t *s = x->shape;
    NEED(o,
         x->ndim == 4 && s[2] * patch * patch == (int64_t)height * width &&
             s[3] == 3 * patch * patch,
         x);
    o.out[0] = output(c, &o, 5, (int64_t[]){s[0], s[1], height, width, 3});
    run(c, &o);
    return o.out[0];
}

Tensor *op_append_registers(Ctx *c, Tensor *x, Tensor *registers) {
    OpCall o = {.op = OP_APPEND_REGISTERS, .in = {x, registers}, .n_in = 2, .n_out = 1};
    need_dtype(c, &o, o.n_in);
    const int64_t *s = x->shape, R = registers->shape[0];
    NEED(o, x->ndim == 4, x);
    NEED(o, registers->ndim == 2 && registers->shape[1] == s[3], registers);
    o.attr.registers = (int)R;
    o.out[0] = output(c, &o, 3, (int64_t[]){s[0], s[1] * (s[2] + R), s[3]});
    run(c, &o);
    return o.out[0];
}

Tensor *op_drop_registers(Ctx *c, Tensor *x, int frames, int registers) {
    OpCall o = {
        .op = OP_DROP_REGISTERS, .in = {x}, .n_in = 1, .n_out = 1, .attr.registers = registers};
    need_dtype(c, &o, o.n_in);
    const int64_t *s = x->shape;
    NEED(o, x->ndim == 3 && s[1] % frames == 0 && s[1] / frames > registers, x);
    o.out[0] = output(c, &o, 4, (int64_t[]){s[0], frames, s[1] / frames - registers, s[2]});
    run(c, &o);
    return o.out[0];
}

/* ---- conditioning ---- */

Tensor *op_embedding(Ctx *c, Tensor *ids, Tensor *table) {
    OpCall o = {.op = OP_EMBEDDING, .in = {ids, table}, .n_in = 2, .n_out = 1};
    CHECK(ids->dtype == DT_I32 && table->dtype == c->dtype, "embedding: ids are %s",
          dtype_name(ids->dtype));
    NEED(o, ids->ndim == 2, ids);
    NEED(o, table->ndim == 2, table);
    if (!c->dry && c->dev->memory->is_host) /* elsewhere the kernel looks */
        for (int64_t i = 0; i < tensor_numel(ids); i++) {
            int32_t id = ((const int32_t *)ids->data)[i];
            CHECK(id >= 0 && id < table->shape[0], "embedding: id %d of %d", id,
                  (int)table->shape[0]);
        }
    o.out[0] = output(c, &o, 3, (int64_t[]){ids->shape[0], ids->shape[1], table->shape[1]});
    run(c, &o);
    return o.out[0];
}

Tensor *op_timestep_embedding(Ctx *c, Tensor *t, int64_t dim, int steps) {
    OpCall o = {.op = OP_TIMESTEP_EMBEDDING, .in = {t}, .n_in = 1, .n_out = 1, .attr.steps = steps};
    need_dtypes(&o, 0, 1, DT_F32);
    NEED(o, t->ndim == 2 && dim % 2 == 0, t);
    o.out[0] = output(c, &o, 3, (int64_t[]){t->shape[0], t->shape[1], dim});
    run(c, &o);
    return o.out[0];
}

/* x (B, T, C) and mod (B, F, n C) with T = F S; parts first .. last are used */
static void need_modulation(const OpCall *o, const Tensor *x, const Tensor *mod, int last) {
    NEED(*o, x->ndim == 3, x);
    NEED(*o,
         mod->ndim == 3 && mod->shape[0] == x->shape[0] && x->shape[1] % mod->shape[1] == 0 &&
             mod->shape[2] % x->shape[2] == 0 && mod->shape[2] / x->shape[2] > last,
         mod);
}

Tensor *op_rmsnorm_modulate(Ctx *c, Tensor *x, Tensor *weight, Tensor *mod, int part) {
    OpCall o = {.op = OP_RMSNORM_MODULATE, .in = {x, weight, mod}, .n_in = 3, .n_out = 1};
    o.attr.part = part;
    o.attr.eps = 1e-6f;
    need_dtypes(&o, 1, 2, ctx_exact(c));
    need_dtypes(&o, 0, 1, c->dtype);
    need_dtypes(&o, 2, 3, c->dtype);
    need_modulation(&o, x, mod, part + 1);
    NEED(o, is_vector(weight, tensor_cols(x)), weight);
    o.saved[0] = exact_output(c, &o, 2, x->shape);
    o.out[0] = output_like(c, &o, x);
    run(c, &o);
    return o.out[0];
}

Tensor *op_gate_add(Ctx *c, Tensor *x, Tensor *y, Tensor *mod, int part) {
    OpCall o = {.op = OP_GATE_ADD, .in = {x, y, mod}, .n_in = 3, .n_out = 1, .attr.part = part};
    need_dtype(c, &o, o.n_in);
    need_modulation(&o, x, mod, part);
    NEED(o, tensor_same_shape(x, y), y);
    o.out[0] = output_like(c, &o, x);
    run(c, &o);
    return o.out[0];
}

Tensor *op_geglu(Ctx *c, Tensor *up, Tensor *gate) {
    OpCall o = {.op = OP_GEGLU, .in = {up, gate}, .n_in = 2, .n_out = 1};
    need_dtype(c, &o, o.n_in);
    NEED(o, tensor_same_shape(up, gate), gate);
    o.out[0] = output_like(c, &o, up);
    run(c, &o);
    return o.out[0];
}

/* ---- attention ---- */

Qkv op_qkv_rope(Ctx *c, Tensor *qkv, Tensor *ln_q, Tensor *ln_k, const Rope *rope, int n_heads,
                int offset) {
    OpCall o = {
        .op = OP_QKV_ROPE, .in = {qkv, ln_q, ln_k, rope->sin, rope->cos}, .n_in = 5, .n_out = 3};
    o.attr.heads = n_heads;
    o.attr.offset = offset;
    o.attr.eps = 1e-6f;
    need_dtype(c, &o, 1);
    NEED(o, qkv->ndim == 3 && qkv->shape[2] % (3 * (int64_t)n_heads) == 0 && offset < qkv->shape[1],
         qkv);
    int64_t B = qkv->shape[0], T = qkv->shape[1], H = n_heads, D = qkv->shape[2] / (3 * H);
    NEED(o, D % 2 == 0, qkv);
    NEED(o, is_vector(ln_q, D) && is_vector(ln_k, D), ln_q);
    NEED(o, tensor_rows(rope->sin) >= T && tensor_cols(rope->sin) == D, rope->sin);
    NEED(o, tensor_same_shape(rope->sin, rope->cos), rope->cos);
    o.out[0] = output(c, &o, 4, (int64_t[]){B, T - offset, H, D});
    o.out[1] = output(c, &o, 4, (int64_t[]){B, T, H, D});
    o.out[2] = output(c, &o, 4, (int64_t[]){B, T, H, D});
    run(c, &o);
    return (Qkv){o.out[0], o.out[1], o.out[2]};
}

/* A dry context counts the backend's workspace. */
static Tensor *attend(Ctx *c, OpCall *o) {
    if (c->dry && c->attn) {
        AttnArgs a = attention_args(o);
        const size_t forward = c->attn->workspace(c, &a, false),
                     backward = c->attn->workspace(c, &a, true);
        ctx_workspace(c, forward > backward || !c->recording ? forward : backward);
    }
    run(c, o);
    return o->out[0];
}

/* What the mask's score expression learns: float32 in any context. */
static void need_learned(const OpCall *o, const Mask *mask, const Tensor *learned) {
    CHECK(!learned == !mask->n_learned, "attention: mask '%s' learns %d numbers, and %s given",
          mask->text, mask->n_learned, learned ? "some are" : "none are");
    if (!learned) return;
    NEED(*o, learned->dtype == DT_F32 && is_vector(learned, mask->n_learned), learned);
}

Tensor *op_attention(Ctx *c, Tensor *q, Tensor *k, Tensor *v, const Mask *mask, Tensor *learned,
                     float scale) {
    OpCall o = {.op = OP_ATTENTION, .in = {q, k, v, learned}, .n_in = 4, .n_out = 1};
    need_dtypes(&o, 0, 3, c->dtype);
    need_learned(&o, mask, learned);
    NEED(o, q->ndim == 4, q);
    NEED(o,
         k->ndim == 4 && k->shape[0] == q->shape[0] && k->shape[2] == q->shape[2] &&
             k->shape[3] == q->shape[3] && k->shape[1] >= q->shape[1] && k->shape[1] <= mask->T,
         k);
    NEED(o, tensor_same_shape(k, v), v);
    o.attr.scale = scale;
    o.attr.mask = mask;
    o.attr.offset = (int)(k->shape[1] - q->shape[1]);
    o.saved[0] = exact_output(c, &o, 3, (int64_t[]){q->shape[0], q->shape[2], q->shape[1]});
    o.out[0] = output(c, &o, 3, (int64_t[]){q->shape[0], q->shape[1], q->shape[2] * q->shape[3]});
    return attend(c, &o);
}

Tensor *op_attention_packed(Ctx *c, Tensor *qkv, int n_heads, const Mask *mask, Tensor *learned,
                            float scale) {
    OpCall o = {.op = OP_ATTENTION, .in = {qkv, learned}, .n_in = 2, .n_out = 1};
    need_dtypes(&o, 0, 1, c->dtype);
    need_learned(&o, mask, learned);
    NEED(o, qkv->ndim == 3 && qkv->shape[2] % (3 * (int64_t)n_heads) == 0, qkv);
    NEED(o, qkv->shape[1] <= mask->T, qkv);
    const int64_t B = qkv->shape[0], T = qkv->shape[1], C = qkv->shape[2] / 3;
    o.attr.heads = n_heads;
    o.attr.scale = scale;
    o.attr.mask = mask;
    o.saved[0] = exact_output(c, &o, 3, (int64_t[]){B, n_heads, T});
    o.out[0] = output(c, &o, 3, (int64_t[]){B, T, C});
    return attend(c, &o);
}

/* ---- key and value caches ---- */

static Tensor *cache_rows(Ctx *c, const Tensor *buffer, int64_t first, int64_t n) {
    NEED((OpCall){.op = OP_COPY}, buffer->ndim == 2 && first + n <= buffer->shape[0], buffer);
    Tensor *t = ctx_host(c, sizeof *t);
    *t = *buffer;
    t->ndim = 3;
    t->shape[0] = 1;
    t->shape[1] = n;
    t->shape[2] = buffer->shape[1];
    if (!c->dry)
        t->data =
            (char *)buffer->data + (size_t)(first * buffer->shape[1]) * dtype_size(buffer->dtype);
    return t;
}

static void copy(Ctx *c, Tensor *to, Tensor *from) {
    OpCall o = {.op = OP_COPY, .in = {from}, .n_in = 1, .out = {to}, .n_out = 1};
    need_dtype(c, &o, o.n_in);
    NEED(o, tensor_same_shape(to, from), from);
    run(c, &o);
}

Tensor *op_cache_extend(Ctx *c, Tensor *buffer, int64_t first, int64_t n, Tensor *x) {
    copy(c, cache_rows(c, buffer, first + n, x->shape[1]), x);
    return cache_rows(c, buffer, first, n + x->shape[1]);
}

void op_cache_rewind(Ctx *c, Tensor *buffer, int64_t first, int64_t n) {
    if (n) copy(c, cache_rows(c, buffer, 0, n), cache_rows(c, buffer, first, n));
}

/* ---- the task: rectified flow ---- */

Tensor *op_normal(Ctx *c, int ndim, const int64_t *shape, RngKey key, uint64_t first) {
    OpCall o = {.op = OP_NORMAL, .n_out = 1};
    o.attr.seed = key.seed;
    o.attr.step = key.step;
    o.attr.layer = key.purpose;
    o.attr.first = first;
    o.out[0] = exact_output(c, &o, ndim, shape);
    run(c, &o);
    return o.out[0];
}

Flow op_flow_noise(Ctx *c, Tensor *x0, Tensor *z, Tensor *t) {
    OpCall o = {.op = OP_FLOW_NOISE, .in = {x0, z, t}, .n_in = 3, .n_out = 2};
    need_dtypes(&o, 0, 2, ctx_exact(c));
    need_dtypes(&o, 2, 3, DT_F32);
    NEED(o, tensor_same_shape(x0, z), z);
    NEED(
        o,
        x0->ndim == 5 && t->ndim == 2 && t->shape[0] == x0->shape[0] && t->shape[1] == x0->shape[1],
        t);
    o.out[0] = output_like(c, &o, x0);
    o.out[1] = exact_output(c, &o, x0->ndim, x0->shape);
    run(c, &o);
    return (Flow){o.out[0], o.out[1]};
}

Tensor *op_mse_loss(Ctx *c, Tensor *x, Tensor *target) {
    OpCall o = {.op = OP_MSE_LOSS, .in = {x, target}, .n_in = 2, .n_out = 1};
    need_dtype(c, &o, 1);
    NEED(o, tensor_same_shape(x, target), target);
    o.out[0] = ctx_tensor(c, names[o.op], DT_F64, 1, (int64_t[]){1});
    run(c, &o);
    return o.out[0];
}

/* ---- work ---- */

double op_flops(const OpCall *o, bool backward) {
    const Tensor *x = o->in[0], *w = o->in[1];
    double products = (x && x->needs_grad ? 1 : 0) + (w && w->needs_grad ? 1 : 0); /* dX and dW */
    switch (o->op) {
        case OP_LINEAR:
        case OP_CONV2D: /* a row of the output is a row of patches times the weight */
            return 2.0 * (double)tensor_rows(x) * (double)tensor_numel(w) *
                   (backward ? products : 1);
        case OP_ATTENTION: {
            const AttnArgs a = attention_args(o); /* q k' and p v; backward: five such products */
            const double pairs = mask_visible(a.mask, a.Tq, a.Tk, a.offset);
            return (backward ? 10.0 : 4.0) * a.B * a.H * a.D * pairs;
        }
        default:
            return 0;
    }
}

double op_bytes(const OpCall *o, bool backward) {
    double n = 0;
    for (int i = 0; i < o->n_in; i++)
        if (o->in[i])
            n += (double)tensor_bytes(o->in[i]) * (backward && o->in[i]->needs_grad ? 2 : 1);
    for (int j = 0; j < o->n_out; j++) n += (double)tensor_bytes(o->out[j]);
    return n;
}
