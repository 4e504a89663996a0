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

typedef struct KeptMask {
    CudaMask on_device;
    bool within;
    int32_t *numbers; /* what is on the device, the host's copy: lo, hi, offsets */
    Arena memory;     /* the device's */
    uint64_t last_use;
} KeptMask;

struct CudaMasks {
    KeptMask kept[KEPT];
    uint64_t n_uses;
};

static bool equal(const int32_t *x, const int32_t *y, int n) {
    return !memcmp(x, y, sizeof *x * (size_t)n);
}

static bool is_kept(const KeptMask *k, const Mask *m) {
    const CudaMask *d = &k->on_device;
    if (!k->numbers || d->T != m->T || d->n_docs != m->n_docs || k->within != m->within ||
        !d->lo != !m->lo || !d->offsets != !m->offsets)
        return false;
    const int n = m->lo ? m->T : 0;
    if (m->offsets && !equal(k->numbers + 2 * n, m->offsets, m->n_docs + 1)) return false;
    const bool whole_documents = m->offsets && !m->within;
    return !m->lo || whole_documents ||
           (equal(k->numbers, m->lo, n) && equal(k->numbers + n, m->hi, n));
}

/* Kernels that read the memory's former numbers were started before, and so end before the upload.
 */
static void keep(Ctx *c, KeptMask *k, const Mask *m) {
    const size_t n = m->lo ? (size_t)m->T : 0, n_offsets = m->offsets ? (size_t)m->n_docs + 1 : 0,
                 bytes = sizeof(int32_t) * (2 * n + n_offsets);
    k->numbers = (int32_t *)realloc(k->numbers, bytes);
    CHECK(k->numbers, "no memory for the mask '%s' of %d positions", m->text, m->T);
    if (n) memcpy(k->numbers, m->lo, sizeof(int32_t) * n);
    if (n) memcpy(k->numbers + n, m->hi, sizeof(int32_t) * n);
    if (n_offsets) memcpy(k->numbers + 2 * n, m->offsets, sizeof(int32_t) * n_offsets);
    if (!k->memory.memory) arena_init(&k->memory, "a mask", c->dev->memory, false);
    arena_reset(&k->memory);
    int32_t *at = (int32_t *)arena_alloc(&k->memory, bytes);
    c->dev->queue->upload(c, at, k->numbers, bytes);
    k->within = m->within;
    k->on_device = {n ? at : NULL, n ? at + n : NULL, n_offsets ? at + 2 * n : NULL,
                    m->T,          m->n_docs,         m->longest};
}

CudaMask cuda_mask(Ctx *c, const Mask *m) {
    CudaMasks *all = cuda_of(c)->masks;
    if (!all) all = cuda_of(c)->masks = (CudaMasks *)calloc(1, sizeof *all);
    CHECK(all, "no memory for the list of masks");
    KeptMask *k = NULL, *oldest = all->kept;
    for (int i = 0; i < KEPT && !k; i++) {
        if (is_kept(&all->kept[i], m)) k = &all->kept[i];
        if (all->kept[i].last_use < oldest->last_use) oldest = &all->kept[i];
    }
    if (!k) keep(c, k = oldest, m);
    k->last_use = ++all->n_uses;
    return k->on_device;
}

void cuda_masks_free(CudaMasks *masks) {
    for (int i = 0; masks && i < KEPT; i++) {
        free(masks->kept[i].numbers);
        arena_free(&masks->kept[i].memory);
    }
    free(masks);
}
