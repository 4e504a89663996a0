/* Masks on the device. A context keeps the few that its calls go round with (one a layer's kind,
 * and of a model of events those of the batch in work); the one that was not used for longest makes
 * way.
 *
 * A mask is known by its numbers, not by its address: mask_set_documents puts each batch's in the
 * same place. Comparing them is a few microseconds of the host, where whole documents are known by
 * their offsets alone. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention.cuh"

enum { KEPT = 8 };

/* The runs of numbers that make a mask: lo, hi, offsets, and the arrays of its expressions. */
enum { LO, HI, OFFSETS, ARRAYS, RUNS = ARRAYS + FLEX_MAX_ARRAYS };

typedef struct Runs {
    const int32_t *at[RUNS]; /* LO, HI: NULL where whole documents, by their offsets, say them */
    size_t n[RUNS];          /* 0: the mask has none */
} Runs;

typedef struct KeptMask {
    CudaMask on_device;
    FlexEnv env;
    Runs runs; /* the host's copy of what is on the device */
    int32_t *numbers;
    Arena memory; /* the device's */
    uint64_t last_use;
} KeptMask;

struct CudaMasks {
    KeptMask kept[KEPT];
    uint64_t n_uses, n_versions;
};

static Runs runs_of(const Mask *m, const FlexEnv *env) {
    Runs r = {};
    if (m->lo || m->offsets) r.n[LO] = r.n[HI] = (size_t)m->T;
    if (m->lo && !(m->offsets && !m->within)) r.at[LO] = m->lo, r.at[HI] = m->hi;
    if (m->offsets) r.at[OFFSETS] = m->offsets, r.n[OFFSETS] = (size_t)m->n_docs + 1;
    for (int i = 0; env && i < FLEX_MAX_ARRAYS && env->array[i]; i++) {
        r.at[ARRAYS + i] = env->array[i];
        r.n[ARRAYS + i] = (size_t)env->length[i] + FLEX_PAD; /* flex_env: they may be read there */
    }
    return r;
}

static bool is_kept(const KeptMask *k, const Mask *m, const Runs *r) {
    if (!k->numbers || k->on_device.T != m->T) return false;
    for (int i = 0; i < RUNS; i++) {
        const Runs *mine = &k->runs;
        if (mine->n[i] != r->n[i] || !mine->at[i] != !r->at[i]) return false;
        if (r->at[i] && memcmp(mine->at[i], r->at[i], sizeof(int32_t) * r->n[i])) return false;
    }
    return true;
}

static void copy_run(int32_t *to, int run, const Runs *r, const Mask *m) {
    if (r->at[run]) {
        memcpy(to, r->at[run], sizeof(int32_t) * r->n[run]);
        return;
    }
    for (int d = 0; d < m->n_docs; d++)
        for (int i = m->offsets[d]; i < m->offsets[d + 1]; i++)
            to[i] = m->offsets[run == LO ? d : d + 1];
}

/* Kernels that read the memory's former numbers were started before, and so end before the upload.
 */
static void keep(Ctx *c, KeptMask *k, const Mask *m, const Runs *r, const FlexEnv *env) {
    size_t n = 0;
    for (int i = 0; i < RUNS; i++) n += r->n[i];
    const size_t bytes = sizeof(int32_t) * n;
    k->numbers = (int32_t *)realloc(k->numbers, bytes + 1);
    CHECK(k->numbers, "no memory for the mask '%s' of %d positions", m->text, m->T);
    if (!k->memory.memory) arena_init(&k->memory, "a mask", c->dev->memory, false);
    arena_reset(&k->memory);
    int32_t *device = (int32_t *)arena_alloc(&k->memory, bytes), *host = k->numbers;
    const int32_t *at[RUNS] = {};
    k->runs = *r;
    for (int i = 0; i < RUNS; i++) {
        if (!r->n[i]) continue;
        copy_run(host, i, r, m);
        if (r->at[i]) k->runs.at[i] = host;
        at[i] = device + (host - k->numbers);
        host += r->n[i];
    }
    c->dev->queue->upload(c, device, k->numbers, bytes);
    k->on_device = {
        at[LO], at[HI], at[OFFSETS], m->T, m->n_docs, m->longest, ++cuda_of(c)->masks->n_versions,
        NULL};
    k->env = {};
    for (int i = 0; env && i < FLEX_MAX_ARRAYS; i++) {
        k->env.array[i] = at[ARRAYS + i];
        k->env.length[i] = env->length[i];
    }
}

CudaMask cuda_mask(Ctx *c, const Mask *m, FlexEnv *env) {
    CudaMasks *all = cuda_of(c)->masks;
    if (!all) all = cuda_of(c)->masks = (CudaMasks *)calloc(1, sizeof *all);
    CHECK(all, "no memory for the list of masks");
    const FlexEnv *arrays = env ? flex_env(m->code) : NULL;
    const Runs r = runs_of(m, arrays);
    KeptMask *k = NULL, *oldest = all->kept;
    for (int i = 0; i < KEPT && !k; i++) {
        if (is_kept(&all->kept[i], m, &r)) k = &all->kept[i];
        if (all->kept[i].last_use < oldest->last_use) oldest = &all->kept[i];
    }
    if (!k) keep(c, k = oldest, m, &r, arrays);
    k->last_use = ++all->n_uses;
    if (env) *env = k->env;
    return k->on_device;
}

void cuda_masks_free(CudaMasks *masks) {
    for (int i = 0; masks && i < KEPT; i++) {
        free(masks->kept[i].numbers);
        arena_free(&masks->kept[i].memory);
    }
    free(masks);
}
