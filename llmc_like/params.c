#include "llmc_like/params.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/philox.h"

void params_init(ParamTable *p, bool dry) {
    memset(p, 0, sizeof *p);
    arena_init(&p->values, "parameters", dry);
    arena_init(&p->grads, "parameter gradients", dry);
    arena_init(&p->state, "optimiser state", dry);
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
    t->dtype = DT_F32;
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

void params_add_linear(ParamTable *p, Tensor **weight, Tensor **bias, ParamGroup group,
                       ParamInit bias_init, int64_t out, int64_t in, const char *name) {
    const float bound = 1.0f / sqrtf((float)in);
    const ParamGroup bias_group = group == GROUP_MUON ? GROUP_ADAM : group;
    params_add(p, weight, group, INIT_UNIFORM, bound, 2, (int64_t[]){out, in}, "%s.weight", name);
    params_add(p, bias, bias_group, bias_init, bound, 1, (int64_t[]){out}, "%s.bias", name);
}

static void initialise(Param *r, uint64_t seed, int number) {
    float *x = r->tensor.data;
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

int params_commit(ParamTable *p, uint64_t seed, bool training, Err *e) {
    size_t bytes = (size_t)p->numel * sizeof(float) + (size_t)p->n * ARENA_ALIGN;
    if (arena_commit(&p->values, bytes, e)) return -1;
    if (training && (arena_commit(&p->grads, bytes, e) || arena_commit(&p->state, 2 * bytes, e)))
        return -1;
    for (int i = 0; i < p->n; i++) {
        Param *r = &p->row[i];
        size_t size = tensor_bytes(&r->tensor);
        r->tensor.data = arena_alloc(&p->values, size);
        if (training) {
            r->tensor.grad = arena_alloc(&p->grads, size);
            if (p->grads.dry) r->tensor.grad = p; /* never read: says that there is one */
            r->m = arena_alloc(&p->state, size);
            if (r->group != GROUP_MUON) r->v = arena_alloc(&p->state, size);
        }
        if (!p->values.dry) initialise(r, seed, i);
        *p->slot[i] = &r->tensor;
    }
    return 0;
}

void params_free(ParamTable *p) {
    arena_free(&p->values);
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

double params_grad_norm(Ctx *c, ParamTable *p) {
    double sum = 0;
    for (int i = 0; i < p->n; i++) {
        Tensor *t = &p->row[i].tensor;
        if (!t->grad_set) {
            memset(t->grad, 0, tensor_bytes(t));
            t->grad_set = true;
        }
        sum += c->dev->sum_squares(c, t->grad, tensor_numel(t));
    }
    return sqrt(sum);
}
