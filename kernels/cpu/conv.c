/* Convolution on channels-last images by oneDNN's primitives, which reach more than its sgemm does
 * (dev/bench/SPEED.md). Activations stay as they are; the weight is reordered from PyTorch's (O, I,
 * ky, kx) into the order that a primitive wants and back, each call, since it changes each step.
 *
 * A primitive is made once for each shape and kept: a model has two
 * convolutions, and training, evaluation and sampling have each their own number of images. */
#include <stdlib.h>

#include "kernels/cpu/onednn.h"

typedef struct Shape {
    int64_t images, h, w, I, O, k, bias; /* bias: 0 or 1 */
} Shape;

typedef enum { FORWARD, BACKWARD_DATA, BACKWARD_WEIGHTS, PASSES } Pass;

/* One compiled pass of one shape. Its memory objects get their addresses call by call. */
typedef struct Compiled {
    dnnl_primitive_t run, reorder;
    dnnl_memory_t x, y, bias, packed, weight, scratch; /* or, in a backward, their gradients */
    size_t packed_bytes, scratch_bytes;
} Compiled;

enum { MAX_SHAPES = 16 };

typedef struct Convolutions {
    struct {
        Shape shape;
        Compiled pass[PASSES];
    } entry[MAX_SHAPES];
    int n, next; /* `next` is overwritten when all are in use */
} Convolutions;

/* ---- making and freeing ---- */

static void compiled_free(Compiled *p) {
    if (!p->run) return;
    dnnl_memory_t *const memories[] = {&p->x, &p->y, &p->bias, &p->packed, &p->weight, &p->scratch};
    for (int i = 0; i < 6; i++)
        if (*memories[i]) dnnl_memory_destroy(*memories[i]);
    dnnl_primitive_destroy(p->run);
    dnnl_primitive_destroy(p->reorder);
    memset(p, 0, sizeof *p);
}

void ISA_FN(convolutions_free)(Convolutions *s) {
    for (int i = 0; s && i < s->n; i++)
        for (int p = 0; p < PASSES; p++) compiled_free(&s->entry[i].pass[p]);
    free(s);
}

/* The plan of a pass; a backward's is made beside the forward's, which oneDNN asks for as a hint.
 */
static dnnl_primitive_desc_t describe(const OneDnn *s, const Shape *h, Pass pass,
                                      const dnnl_memory_desc_t d[4],
                                      dnnl_primitive_desc_t forward) {
    const dnnl_dims_t strides = {1, 1}, pad = {h->k / 2, h->k / 2};
    const dnnl_memory_desc_t *bias = h->bias ? &d[2] : NULL;
    dnnl_convolution_desc_t conv;
    if (pass == FORWARD)
        DNNL(dnnl_convolution_forward_desc_init(&conv, dnnl_forward_training,
                                                dnnl_convolution_direct, &d[0], &d[1], bias, &d[3],
                                                strides, pad, pad));
    else if (pass == BACKWARD_DATA)
        DNNL(dnnl_convolution_backward_data_desc_init(&conv, dnnl_convolution_direct, &d[0], &d[1],
                                                      &d[3], strides, pad, pad));
    else
        DNNL(dnnl_convolution_backward_weights_desc_init(&conv, dnnl_convolution_direct, &d[0],
                                                         &d[1], bias, &d[3], strides, pad, pad));
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t plan = NULL;
    DNNL(dnnl_primitive_attr_create(&attr));
    DNNL(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    DNNL(dnnl_primitive_desc_create(&plan, &conv, attr, s->engine, forward));
    DNNL(dnnl_primitive_attr_destroy(attr));
    return plan;
}

static void compile(const OneDnn *s, const Shape *h, Pass pass, Compiled *p) {
    const dnnl_dims_t x = {h->images, h->I, h->h, h->w}, y = {h->images, h->O, h->h, h->w};
    const dnnl_dims_t w = {h->O, h->I, h->k, h->k}, b = {h->O};
    dnnl_memory_desc_t d[4], plain; /* x, weight in any order, bias, y; weight in PyTorch's order */
    DNNL(dnnl_memory_desc_init_by_tag(&d[0], 4, x, dnnl_f32, dnnl_nhwc));
    DNNL(dnnl_memory_desc_init_by_tag(&d[1], 4, w, dnnl_f32, dnnl_format_tag_any));
    DNNL(dnnl_memory_desc_init_by_tag(&d[2], 1, b, dnnl_f32, dnnl_x));
    DNNL(dnnl_memory_desc_init_by_tag(&d[3], 4, y, dnnl_f32, dnnl_nhwc));
    DNNL(dnnl_memory_desc_init_by_tag(&plain, 4, w, dnnl_f32, dnnl_oihw));
    dnnl_primitive_desc_t forward = describe(s, h, FORWARD, d, NULL);
    dnnl_primitive_desc_t plan = pass == FORWARD ? forward : describe(s, h, pass, d, forward);
    const bool to_plain = pass == BACKWARD_WEIGHTS;
    const dnnl_memory_desc_t *packed = dnnl_primitive_desc_query_md(
        plan, to_plain ? dnnl_query_diff_weights_md : dnnl_query_weights_md, 0);
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(plan, dnnl_query_scratchpad_md, 0);
    dnnl_primitive_desc_t reorder = NULL;
    DNNL(dnnl_reorder_primitive_desc_create(&reorder, to_plain ? packed : &plain, s->engine,
                                            to_plain ? &plain : packed, s->engine, NULL));
    DNNL(dnnl_primitive_create(&p->run, plan));
    DNNL(dnnl_primitive_create(&p->reorder, reorder));
    p->x = onednn_memory(s, &d[0]);
    p->y = onednn_memory(s, &d[3]);
    p->bias = h->bias ? onednn_memory(s, &d[2]) : NULL;
    p->packed = onednn_memory(s, packed);
    p->weight = onednn_memory(s, &plain);
    p->scratch = onednn_memory(s, scratch);
    p->packed_bytes = dnnl_memory_desc_get_size(packed);
    p->scratch_bytes = dnnl_memory_desc_get_size(scratch);
    DNNL(dnnl_primitive_desc_destroy(reorder));
    if (plan != forward) DNNL(dnnl_primitive_desc_destroy(plan));
    DNNL(dnnl_primitive_desc_destroy(forward));
}

static Compiled *compiled(OneDnn *d, const Shape *h, Pass pass) {
    if (!d->convolutions) d->convolutions = calloc(1, sizeof *d->convolutions);
    Convolutions *s = d->convolutions;
    CHECK(s, "no memory for the table of convolutions (%zu bytes)", sizeof *s);
    int at = 0;
    while (at < s->n && memcmp(&s->entry[at].shape, h, sizeof *h)) at++;
    if (at == s->n && s->n == MAX_SHAPES) {
        at = s->next;
        s->next = (s->next + 1) % MAX_SHAPES;
        for (int p = 0; p < PASSES; p++) compiled_free(&s->entry[at].pass[p]);
    } else if (at == s->n) {
        s->n++;
    }
    s->entry[at].shape = *h;
    Compiled *p = &s->entry[at].pass[pass];
    if (!p->run) compile(d, h, pass, p);
    return p;
}

/* ---- running ---- */

static Shape shape_of(const OpCall *o) {
    const Tensor *x = o->in[0], *w = o->in[1];
    const int64_t h = x->shape[x->ndim - 3], width = x->shape[x->ndim - 2];
    return (Shape){tensor_rows(x) / (h * width),
                   h,
                   width,
                   tensor_cols(x),
                   w->shape[0],
                   w->shape[2],
                   o->in[2] != NULL};
}

static void reorder(const OneDnn *s, const Compiled *p, dnnl_memory_t from, dnnl_memory_t to) {
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    DNNL(dnnl_primitive_execute(p->reorder, s->stream, 2, args));
}

/* Scratch for the packed weight and the primitive's own, and `extra` bytes, whose place it returns.
 */
static void *place_scratch(Ctx *c, const Compiled *p, size_t extra) {
    char *at = ctx_workspace(
        c, onednn_aligned(p->packed_bytes) + onednn_aligned(p->scratch_bytes) + extra);
    onednn_place(p->packed, at);
    onednn_place(p->scratch, at + onednn_aligned(p->packed_bytes));
    return at + onednn_aligned(p->packed_bytes) + onednn_aligned(p->scratch_bytes);
}

static void add_to(Ctx *c, float *dst, const float *src, int64_t n) {
#pragma omp parallel for simd num_threads(c->n_threads) if (parallel : n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) dst[i] += src[i];
}

void ISA_FN(conv2d_forward)(Ctx *c, const OpCall *o) {
    const Shape h = shape_of(o);
    OneDnn *s = ISA_FN(onednn)(c);
    const Compiled *p = compiled(s, &h, FORWARD);
    place_scratch(c, p, 0);
    onednn_place(p->x, o->in[0]->data);
    onednn_place(p->y, o->out[0]->data);
    onednn_place(p->weight, o->in[1]->data);
    if (h.bias) onednn_place(p->bias, o->in[2]->data);
    reorder(s, p, p->weight, p->packed);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->x},
                                    {DNNL_ARG_WEIGHTS, p->packed},
                                    {DNNL_ARG_DST, p->y},
                                    {DNNL_ARG_SCRATCHPAD, p->scratch},
                                    {DNNL_ARG_BIAS, p->bias}};
    DNNL(dnnl_primitive_execute(p->run, s->stream, 4 + (int)h.bias, args));
}

static void backward_data(Ctx *c, const OpCall *o, const Shape *h) {
    const Tensor *x = o->in[0];
    OneDnn *s = ISA_FN(onednn)(c);
    const Compiled *p = compiled(s, h, BACKWARD_DATA);
    float *fresh = place_scratch(c, p, x->grad_set ? tensor_bytes(x) : 0);
    if (!x->grad_set) fresh = x->grad;
    onednn_place(p->x, fresh);
    onednn_place(p->y, o->out[0]->grad);
    onednn_place(p->weight, o->in[1]->data);
    reorder(s, p, p->weight, p->packed);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_DIFF_SRC, p->x},
                                    {DNNL_ARG_WEIGHTS, p->packed},
                                    {DNNL_ARG_DIFF_DST, p->y},
                                    {DNNL_ARG_SCRATCHPAD, p->scratch}};
    DNNL(dnnl_primitive_execute(p->run, s->stream, 4, args));
    if (x->grad_set) add_to(c, x->grad, fresh, tensor_numel(x));
}

static void backward_weights(Ctx *c, const OpCall *o, const Shape *h) {
    const Tensor *w = o->in[1], *b = o->in[2];
    OneDnn *s = ISA_FN(onednn)(c);
    const Compiled *p = compiled(s, h, BACKWARD_WEIGHTS);
    const bool direct_w = w->grad && !w->grad_set, direct_b = b && b->grad && !b->grad_set;
    const size_t room = onednn_aligned(tensor_bytes(w));
    float *fresh_w = place_scratch(c, p, room + sizeof(float) * (size_t)h->O);
    float *fresh_b = fresh_w + room / sizeof(float);
    if (direct_w) fresh_w = w->grad;
    if (direct_b) fresh_b = b->grad;
    onednn_place(p->x, o->in[0]->data);
    onednn_place(p->y, o->out[0]->grad);
    onednn_place(p->weight, fresh_w);
    if (h->bias) onednn_place(p->bias, fresh_b);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->x},
                                    {DNNL_ARG_DIFF_WEIGHTS, p->packed},
                                    {DNNL_ARG_DIFF_DST, p->y},
                                    {DNNL_ARG_SCRATCHPAD, p->scratch},
                                    {DNNL_ARG_DIFF_BIAS, p->bias}};
    DNNL(dnnl_primitive_execute(p->run, s->stream, 4 + (int)h->bias, args));
    reorder(s, p, p->packed, p->weight);
    if (w->grad && !direct_w) add_to(c, w->grad, fresh_w, tensor_numel(w));
    if (b && b->grad && !direct_b) add_to(c, b->grad, fresh_b, h->O);
}

void ISA_FN(conv2d_backward)(Ctx *c, const OpCall *o) {
    const Shape h = shape_of(o);
    if (o->in[0]->grad) backward_data(c, o, &h);
    if (o->in[1]->grad || (o->in[2] && o->in[2]->grad)) backward_weights(c, o, &h);
}
