#include "llmc_like/params.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/philox.h"

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

void params_init(ParamTable *p, const Ctx *c) {
    const Memory *memory = c->dev->memory;
    memset(p, 0, sizeof *p);
    p->dtype = c->dtype;
    p->seed = c->seed;
    arena_init(&p->values, "parameters", memory, c->dry);
    arena_init(&p->rounded, "parameters in bf16", memory, c->dry);
    arena_init(&p->grads, "parameter gradients", memory, c->dry);
    arena_init(&p->state, "optimiser state", memory, c->dry);
}

void params_add(ParamTable *p, Tensor **slot, ParamGroup group, ParamInit init, float init_arg,
                int ndim, const int64_t *shape, const char *name_fmt, ...) {
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 64;
        p->row = realloc(p->row, (size_t)p->cap * sizeof *p->row);
        p->slot = realloc(p->slot, (size_t)p->cap * sizeof *p->slot);
        CHECK(p->row && p->slot, "no memory for %d rows", p->cap);
    }
    Param *r = &p->row[p->n];
    memset(r, 0, sizeof *r);
    r->group = group;
    r->init = init;
    r->init_arg = init_arg;
    Tensor *t = &r->tensor;
    t->dtype = p->dtype;
    t->is_param = t->needs_grad = true;
    t->ndim = ndim;
    for (int i = 0; i < ndim; i++) t->shape[i] = shape[i];
    va_list ap;
    va_start(ap, name_fmt);
    vsnprintf(t->name, sizeof t->name, name_fmt, ap);
    va_end(ap);
    p->numel += tensor_numel(t);
    p->slot[p->n++] = slot;
}

void params_set_init_data(ParamTable *p, const float *data) { p->row[p->n - 1].init_data = data; }

void params_set_exact(ParamTable *p) {
    Tensor *t = &p->row[p->n - 1].tensor;
    if (t->dtype == DT_BF16) t->dtype = DT_F32;
}

void params_add_linear(ParamTable *p, Tensor **weight, Tensor **bias, ParamGroup group,
                       ParamInit bias_init, int64_t out, int64_t in, const char *name) {
    const float bound = 1.0f / sqrtf((float)in);
    const ParamGroup bias_group = group == GROUP_MUON ? GROUP_ADAM : group;
    params_add(p, weight, group, INIT_UNIFORM, bound, 2, (int64_t[]){out, in}, "%s.weight", name);
    params_add(p, bias, bias_group, bias_init, bound, 1, (int64_t[]){out}, "%s.bias", name);
}

/* x: the row's values, on the host */
static void initialise(const Param *r, uint64_t seed, int number, float *x) {
    int64_t n = tensor_numel(&r->tensor);
    RngKey key = {seed, (uint32_t)number, RNG_INIT};
    switch (r->init) {
        case INIT_ZERO:
            memset(x, 0, (size_t)n * sizeof *x);
            break;
        case INIT_ONE:
            for (int64_t i = 0; i < n; i++) x[i] = 1.0f;
            break;
        case INIT_VALUE:
            for (int64_t i = 0; i < n; i++) x[i] = r->init_arg;
            break;
        case INIT_UNIFORM:
            rng_uniform(key, 0, x, n);
            for (int64_t i = 0; i < n; i++) x[i] = (2.0f * x[i] - 1.0f) * r->init_arg;
            break;
        case INIT_NORMAL:
            rng_normal(key, 0, x, n);
            for (int64_t i = 0; i < n; i++) x[i] *= r->init_arg;
            break;
        case INIT_COPY:
            memcpy(x, r->init_data, (size_t)n * sizeof *x);
            break;
    }
}

void params_read(const ParamTable *p, const Param *r, float *x) {
    p->values.memory->get(x, r->master, sizeof(float) * (size_t)tensor_numel(&r->tensor));
}

void params_write(ParamTable *p, Param *r, const float *x) {
    const Memory *memory = p->values.memory;
    const int64_t n = tensor_numel(&r->tensor);
    memory->put(r->master, x, sizeof(float) * (size_t)n);
    if (r->tensor.dtype != DT_BF16) return;
    uint16_t *rounded = malloc(sizeof *rounded * (size_t)n);
    CHECK(rounded, "no memory for %lld numbers of %s", (long long)n, r->tensor.name);
    for (int64_t i = 0; i < n; i++) rounded[i] = bf16_round(x[i]);
    memory->put(r->tensor.data, rounded, sizeof *rounded * (size_t)n);
    free(rounded);
}

static int draw_values(ParamTable *p, Err *e) {
    int64_t most = 0;
    for (int i = 0; i < p->n; i++) most = max(most, tensor_numel(&p->row[i].tensor));
    float *x = malloc(sizeof *x * (size_t)most);
    if (!x) return err_set(e, "no memory for the initial values of %lld numbers", (long long)most);
    for (int i = 0; i < p->n; i++) {
        initialise(&p->row[i], p->seed, i, x);
        params_write(p, &p->row[i], x);
    }
    free(x);
    return 0;
}

static int commit_zero(Arena *a, size_t bytes, Err *e) {
    if (arena_commit(a, bytes, e)) return -1;
    if (!a->dry && !a->memory->is_host) a->memory->zero(a->chunk[0].base, a->chunk[0].size);
    return 0;
}

int params_commit(ParamTable *p, bool training, Err *e) {
    const size_t bytes = (size_t)p->numel * sizeof(float) + (size_t)p->n * ARENA_ALIGN;
    const bool rounded = p->dtype == DT_BF16;
    if (arena_commit(&p->values, bytes, e)) return -1;
    if (rounded && arena_commit(&p->rounded, bytes / 2 + (size_t)p->n * ARENA_ALIGN, e)) return -1;
    if (training && (commit_zero(&p->grads, bytes, e) || commit_zero(&p->state, 2 * bytes, e)))
        return -1;
    for (int i = 0; i < p->n; i++) {
        Param *r = &p->row[i];
        const size_t size = sizeof(float) * (size_t)tensor_numel(&r->tensor);
        r->master = arena_alloc(&p->values, size);
        r->tensor.data =
            r->tensor.dtype == DT_BF16 ? arena_alloc(&p->rounded, size / 2) : r->master;
        if (training) {
            r->tensor.grad = arena_alloc(&p->grads, size);
            if (p->grads.dry) r->tensor.grad = p; /* never read: says that there is one */
            r->m = arena_alloc(&p->state, size);
            if (r->group != GROUP_MUON) r->v = arena_alloc(&p->state, size);
        }
        *p->slot[i] = &r->tensor;
    }
    return p->values.dry ? 0 : draw_values(p, e);
}

void params_free(ParamTable *p) {
    arena_free(&p->values);
    arena_free(&p->rounded);
    arena_free(&p->grads);
    arena_free(&p->state);
    free(p->row);
    free(p->slot);
    memset(p, 0, sizeof *p);
}

Param *params_find(ParamTable *p, const char *name) {
    for (int i = 0; i < p->n; i++)
        if (!strcmp(p->row[i].tensor.name, name)) return &p->row[i];
    return NULL;
}

void params_zero_grad(ParamTable *p) {
    for (int i = 0; i < p->n; i++) p->row[i].tensor.grad_set = false;
}

void params_settle_grad(ParamTable *p) {
    for (int i = 0; i < p->n; i++) {
        Tensor *t = &p->row[i].tensor;
        if (t->grad_set) continue;
        p->grads.memory->zero(t->grad, sizeof(float) * (size_t)tensor_numel(t));
        t->grad_set = true;
    }
}
