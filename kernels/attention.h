/* Attention: the argument struct, masks, and the registry of backends.
 *
 * A backend is one file a device (kernels/cpu/attention_NAME.c, kernels/cuda/attention_NAME.cu)
 * with one AttnBackend, and one line in the registry below. The flag --attn, its help, the tests
 * and the benchmark walk the registry. A choice that a backend declines is an error with its reason
 * and the names that would work; nothing falls back silently. */
#ifndef KERNELS_ATTENTION_H
#define KERNELS_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "llmc_like/error.h"
#include "llmc_like/params.h"
#include "llmc_like/tape.h"
#include "llmc_like/tensor.h"

typedef struct FlexProgram
    FlexProgram; /* kernels/flex/flex.h: parsed mask and score expressions, and their code */

/* A mask is data. Interval masks (full, causal, frame-causal, window, document and their
 * intersections): the query at position i sees the keys at positions lo[i] <= j < hi[i]. An
 * expression mask has lo = hi = NULL and is evaluated through `flex`. Masks know positions 0 ..
 * T-1; with fewer keys, hi is cut at Tk. */
typedef struct Mask {
    char text[256]; /* as the user gave it */
    int T;
    int32_t *lo, *hi; /* (T) each, or NULL where the mask is an expression that is no interval */
    const FlexProgram *flex; /* the mask and / or score expression; NULL where there is neither */
    bool has_mask_expr;      /* flex holds a mask expression; lo and hi are NULL */
    bool has_score_expr;     /* flex holds a score expression; sdpa declines it  */
    int n_learned;           /* numbers of the arrays that the score expression learns; 0: none */
    const FlexProgram *code; /* what flex compiles: the mask as an expression, of a name's mask too
                                ("causal" is k <= q), and the score. NULL where lo and hi were
                                filled by hand: then flex is sdpa */

    /* A mask that keeps documents apart: document d has the positions offsets[d] .. offsets[d + 1]
     * - 1, and no query sees a key of another document. NULL where the mask is none of that kind.
     * Backends work through documents one by one; nothing is made for each pair of tiles. */
    const int32_t *offsets; /* (n_docs + 1) */
    int n_docs, longest;    /* longest: positions of the longest document */
    bool within;    /* inside a document not everything is visible: lo and hi, or (where they are
                       NULL) the rest of the mask expression, say what is */
    int32_t *own;   /* offsets, document by position, lo and hi live here */
    size_t own_cap; /* in numbers; 0 where mask_init made it, once for all */
} Mask;

/* Whether a mask's text is made of names alone; otherwise it is an expression. */
bool mask_is_named(const char *text);

/* What a mask is made from. S tokens a frame for frame-causal. mask_text: a name (full, causal,
 * frame-causal, window:W (q - W < k <= q), document:LEN), names joined by '&' for their
 * intersection, or an expression. score_text: "" or an expression. learned_text: "", or the float
 * arrays that the score expression names and that are learned: "slope:6,bias:127", names and how
 * many numbers each. T: positions. H: heads (for expressions that ask h), B: batch. -1 and a
 * sentence (with a caret under an expression's error) for anything else, and for a mask that leaves
 * a query nothing to see: the first such query is named. The other arrays that expressions may name
 * are frame[i] = i / S and, with document masks, doc[i]. */
int mask_init(Mask *m, const char *mask_text, const char *score_text, const char *learned_text,
              int T, int S, int B, int H, Err *e);
void mask_free(Mask *m);

/* One row of a model's parameters, for one layer: the mask->n_learned numbers that its score
 * expression learns, float32, 0 to begin with; *slot stays NULL where there are none or mask is
 * NULL. Models add these rows last, so that the other rows' initial values are those of a model
 * without them. */
void mask_add_learned(ParamTable *p, Tensor **slot, ParamGroup group, const Mask *mask,
                      const char *name);

/* A mask over documents that come with each batch: rows without padding, B = 1, document after
 * document. mask_text: "document" (a query sees its own document), or an expression with the factor
 * doc[q] == doc[k] (the whole, or joined to the rest by &&; either side first): the factor is
 * recognised as what it is, and only the rest is asked, inside documents. An expression without it
 * is refused. score_text, learned_text: as above. Positions q and k count from the batch's first
 * row; the array that expressions may name besides is doc[i]. They are tried on documents of 1 to
 * 89 positions, 232 in all; what goes wrong in a batch alone does no harm (kernels/flex/flex.h),
 * and a query that sees nothing there has out 0 and lse -inf. Before the first mask_set_documents
 * the mask knows no rows. -1 and a sentence as mask_init. */
int mask_init_documents(Mask *m, const char *mask_text, const char *score_text,
                        const char *learned_text, int H, Err *e);

/* The next batch's documents: offsets[0] = 0 < offsets[1] < ... < offsets[n_docs] = T (copied; the
 * mask's memory grows geometrically and stays). O(T); nothing is compiled, no pair of positions is
 * asked. A mask made by mask_init_documents alone; anything else about the offsets is a bug
 * (CHECK). */
void mask_set_documents(Mask *m, const int32_t *offsets, int n_docs);

/* Where the code of its expressions is compiled and kept: cache, a folder (made with mode 0700
 * where it is missing), and compiler, NULL for cc. Without this call nothing is kept. Main decides
 * the folder; see kernels/flex/flex.h on what makes one safe. Does nothing for other masks. */
void mask_set_build(Mask *m, const char *cache, const char *compiler);

/* Whether the query at position q sees the key at position k. Slow; for tests, vanilla and plans.
 */
bool mask_sees(const Mask *m, int b, int h, int q, int k);

/* Visible (query, key) pairs of one head for queries offset .. offset + Tq - 1 and Tk keys: what
 * flops are counted by. */
double mask_visible(const Mask *m, int Tq, int Tk, int offset);

/* Strides in elements of a (B, T, H, D) view; D is contiguous. */
typedef struct AttnStride {
    int64_t b, t, h;
} AttnStride;

typedef struct AttnArgs {
    int B, H, Tq, Tk, D;
    DType dtype; /* of q, k, v, out and their gradients; lse and accumulation are float32 (F64:
                    double) */
    float scale; /* s = scale q k' */
    int offset;  /* position of query 0; key j has position j */
    const Mask *mask;
    const void *q, *k, *v;
    AttnStride qs, ks, vs, os; /* gradients have the strides of their tensors; dout those of out */
    /* forward writes */
    void *out, *lse; /* lse (B, H, Tq): log of the sum of exp(s) over visible keys, natural log */
    /* backward reads out, lse and dout, and overwrites dq, dk, dv (NULL: not wanted) */
    const void *dout;
    void *dq, *dk, *dv;
    /* What the mask's score expression learns: mask->n_learned numbers, and d loss / d them, which
     * backward overwrites (NULL: not wanted). Float32 whatever the dtype. */
    const float *learned;
    float *dlearned;
    void *workspace; /* as many bytes as workspace() said, aligned to 256 */
} AttnArgs;

/* The shape of a call, for choosing a backend: as many queries as keys, rows of H heads
 * behind each other, no tensors yet; scale 1. */
AttnArgs attn_shape(int B, int H, int T, int D, const Mask *mask);

typedef struct AttnBackend {
    const char *name;
    const char *help;
    /* NULL: this backend does it. Otherwise why not, a clause such as "it has no score
     * expressions". */
    const char *(*supports)(const Ctx *c, const AttnArgs *a);
    /* Once, before the first call for a's mask: compiles its expressions. -1 and a sentence where
     * that fails. NULL where there is nothing to prepare. */
    int (*prepare)(Ctx *c, const AttnArgs *a, Err *e);
    size_t (*workspace)(Ctx *c, const AttnArgs *a, bool backward);
    void (*forward)(Ctx *c, const AttnArgs *a);
    void (*backward)(Ctx *c, const AttnArgs *a);
} AttnBackend;

/* ---- the registry: one line a backend ---- */

/* clang-format off */
/*        the file's name   --attn       help                                              */
#define ATTN_LIST(X)                                                                          \
    X(loop,       "loop",       "one document after the other, products by the library")      \
    X(padded,     "padded",     "documents padded to the longest")                            \
    X(vanilla,    "vanilla",    "the whole score matrix in memory, products by the library")  \
    X(sdpa,       "sdpa",       "our fused flash kernel, built-in masks")                     \
    X(flex,       "flex",       "the fused kernel, compiled with the mask and score expressions") \
    X(flex_dense, "flex-dense", "flex without its plan: every tile visited, every cell asked")
/* clang-format on */

/* Each device has its own (Device.attn, in this order: kernels/DEVICE/attention_*); the registry's
 * entry calls the one of the context's device. */
extern const AttnBackend *const attn_backends[]; /* NULL at the end */
extern const char attn_choices[];                /* their names, "auto" and "all", as "a|b|c" */
const AttnBackend *attn_find(const char *name);  /* NULL: no such backend */

/* Sets c->attn to the backend of that name for calls shaped like `a` in c->dtype, or to the fastest
 * for "auto": times every backend that supports a (forward and backward, real shape and mask),
 * checks that they agree with the first, prints the table to stdout. -1 with the reason and the
 * names that would work.
 */
int attn_choose(Ctx *c, const char *name, const AttnArgs *a, Err *e);

/* The arguments of a recorded op_attention; attention_forward and attention_backward are its
 * kernels on every device but plain, and call attn_run. */
AttnArgs attention_args(const OpCall *o);
void attention_forward(Ctx *c, const OpCall *o);
void attention_backward(Ctx *c, const OpCall *o);

/* Runs one forward or backward through c->attn with workspace from the context. Called by
 * op_attention's kernels. */
void attn_run(Ctx *c, AttnArgs *a, bool backward);

/* The plain loops in float32 or float64 (kernels/plain/attention.c): one thread, any mask and score
 * expression (those evaluate in float32). Workspace: forward Tk doubles, backward
 * mask->n_learned. */
void plain_attn(const AttnArgs *a, bool backward);

/* Float32 as kernels in bf16 compute: P and dS = P (dP - delta) are rounded to bf16 before they are
 * multiplied by v, dout, k and q, since matrix units take no other. For tests. */
void plain_attn_rounded(const AttnArgs *a, bool backward);

#endif
