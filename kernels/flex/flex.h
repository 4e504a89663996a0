/* flex: a small language for attention masks and scores. An expression is parsed to a tree, typed,
 * differentiated by the score, and printed as C, which the system's compiler (for CUDA: NVRTC)
 * builds into the very kernel source that sdpa is made from. The user's text itself never reaches a
 * compiler.
 *
 * The language: C expressions of two types, int (32 bits, wraps) and float.
 *   names      b, h, q, k (batch, head, position of query and key; int), score (float, in --score
 *              only: scale q k' before the softmax), arrays of int: frame[k], doc[q], any int
 *              index; in --score learned arrays of float, slope[h] or bias[q - k + 63], whose index
 *              may ask all but the score and learned arrays
 *   literals   12 (int), 0.5, 1e-3 (float)
 *   operators  ?: || && | ^ & == != < <= > >= + - * / % unary - ! ( ), with C's precedence; an int
 *              beside a float becomes a float; % & | ^ and indices take ints only; a comparison
 *              may not be chained (a < b < c is refused, since C means something else by it)
 *   functions  min max abs (int or float) floor ceil exp exp2 log log2 sqrt tanh sigmoid,
 *              pow(x, c) with a constant c, where(c, a, b) = c ? a : b
 * Anything else is refused, with a caret under the place. A mask is an int, nonzero: visible.
 *
 * Where C leaves something undefined, this language does not: int arithmetic wraps; a / 0 and a % 0
 * and an index outside its array are found and named when a program is made (every position below T
 * is tried with score 0 and learned arrays of 0; a branch that ?:, && or || does not take is not),
 * and in kernels, where positions beyond T may be asked, they give 0 and the nearest element. NaN
 * stays NaN: min and max return it.
 *
 * The derivative d score' / d score is symbolic: sums, products, quotients, the chain rule; ?: by
 * branch; min, max and abs by a subgradient (abs has 0 at 0); comparisons, floor and ceil give 0.
 * So are those by the learned arrays' elements, d score' / d slope[h]: see captures below.
 *
 * One thread at a time may use a program (it remembers plans and modules); evaluation and finished
 * plans are read-only and may be used by many. Tests and masks use all of this; kernels need
 * flex_env, flex_plan and flex_module. */
#ifndef KERNELS_FLEX_FLEX_H
#define KERNELS_FLEX_FLEX_H

#include <stdbool.h>
#include <stdint.h>

#include "llmc_like/error.h"

enum {
    FLEX_MAX_TEXT = 1000,       /* characters of an expression */
    FLEX_MAX_DEPTH = 100,       /* levels of its tree */
    FLEX_NAME = 32,             /* bytes of an array's name, with the 0 at its end */
    FLEX_MAX_ARRAYS = 8,        /* of int */
    FLEX_MAX_LEARNED = 8,       /* arrays of float, */
    FLEX_MAX_NUMBERS = 1 << 20, /* of so many numbers each */
    FLEX_MAX_CAPTURES = 16,
    FLEX_PAD = 256 /* arrays may be read this far beyond their end; see flex_env */
};

typedef struct FlexProgram FlexProgram;

/* An array that expressions may name. The program copies it. data NULL: a learned array, of floats,
 * for score expressions alone. Its values are no part of the program, since every step changes
 * them; see flex_set_learned. */
typedef struct FlexArray {
    const char *name;
    const int *data;
    int length;
} FlexArray;

/* What generated code reads; the same text opens every generated source. */
typedef struct FlexEnv {
    const int *array[8];
    int length[8];
    const float *learned; /* all learned arrays, one after the other */
} FlexEnv;

/* Parses, types, differentiates and checks. mask_text, score_text: an expression each, or NULL or
 * "" for none. T positions, B and H what b and h run over. On success *out is the caller's, to be
 * freed by flex_free. -1 and a sentence, with the expression and a caret under the place, for
 * anything outside the language, for a division by zero or an index outside its array at any
 * position, for a mask that leaves a query nothing to see (the first such query is named), and for
 * a learned array whose name is taken or by which the score has no derivative. */
int flex_parse(FlexProgram **out, const char *mask_text, const char *score_text,
               const FlexArray *arrays, int n_arrays, int T, int B, int H, Err *e);
void flex_free(FlexProgram *p); /* closes its modules too; NULL is allowed */

bool flex_has_mask(const FlexProgram *p);
bool flex_has_score(const FlexProgram *p);
bool flex_mask_asks_batch(
    const FlexProgram *p);                      /* whether the mask depends on b (h): if not, one */
bool flex_mask_asks_head(const FlexProgram *p); /* answer serves all                              */
bool flex_score_asks(const FlexProgram *p, char name); /* whether the score depends on 'b' 'h' 'q'
                                                          or 'k' */

/* Masks by document. A mask that is doc[q] == doc[k], or has that as a factor (joined to the rest
 * by
 * && at the top; either side first), keeps documents apart. A kernel that goes through documents
 * one by one asks the rest alone, inside them. */
bool flex_by_document(const FlexProgram *p);
bool flex_has_rest(const FlexProgram *p); /* whether anything is left beside the factor */

/* The array of that name has other elements from now on, and there are `length` positions. Nothing
 * is checked or compiled anew; plans and counts are forgotten. data stays the caller's, must stay
 * where it is while the program is used, and may be read FLEX_PAD elements beyond its length. */
void flex_bind(FlexProgram *p, const char *name, const int *data, int length);

/* The arrays, to be handed to generated code. Each is padded with its last element, so that a
 * kernel may ask q and k up to T + FLEX_PAD - 1 (a tile that hangs over the edge); the answers
 * there mean nothing, but nothing is read out of bounds. Lives as long as the program. */
const FlexEnv *flex_env(const FlexProgram *p);

/* Captures: the places of the score expression where a learned array is read, each with
 *   index   which number it reads, counted through all arrays in the order of their declaration
 *   grad    d score' / d that number, all others held
 * so that d loss / d number i is the sum of (d loss / d score') grad over all captures, b, h, q and
 * k whose index is i. (What adds the same to all keys of a query, as score + bias[h] does, has the
 * gradient 0, since the softmax does not see it.) Equal reads are one capture. */
int flex_captures(const FlexProgram *p); /* how many; 0: nothing is learned */
int flex_learned(const FlexProgram *p);  /* numbers of all learned arrays together */

/* What learned arrays hold from now on: flex_learned numbers, the caller's, in the memory of the
 * device that is to read them. NULL, as at first: zeros (for the interpreter alone). */
void flex_set_learned(const FlexProgram *p, const float *values);

/* The interpreter. Without a mask (score) expression everything is visible (the score stays). The
 * row versions do keys k0 .. k0 + n - 1 at about half a nanosecond per operation and key; out may
 * be score. Tests compare generated code with these; on a CPU they use the same elementary
 * functions, so
 * the two differ by rounding alone. */
bool flex_eval_mask(const FlexProgram *p, int b, int h, int q, int k);
float flex_eval_score(const FlexProgram *p, float score, int b, int h, int q, int k);
float flex_eval_score_grad(const FlexProgram *p, float score, int b, int h, int q, int k);
void flex_eval_mask_row(const FlexProgram *p, int b, int h, int q, int k0, int n,
                        unsigned char *out); /* 0 or 1 each */
void flex_eval_score_row(const FlexProgram *p, const float *score, int b, int h, int q, int k0,
                         int n, float *out);
void flex_eval_score_grad_row(const FlexProgram *p, const float *score, int b, int h, int q, int k0,
                              int n, float *out);

/* Capture number j of keys k0 .. k0 + n - 1, by their scores before the expression. */
void flex_eval_capture_row(const FlexProgram *p, int j, const float *score, int b, int h, int q,
                           int k0, int n, int *index, float *grad);

/* Visible pairs of queries offset .. offset + Tq - 1 and keys 0 .. Tk - 1, the mean over (b, h);
 * remembered by shape. */
double flex_visible(const FlexProgram *p, int Tq, int Tk, int offset);

/* The same of a mask by document, document d having the positions offsets[d] .. offsets[d + 1] - 1:
 * pairs across documents are not asked. */
double flex_visible_within(const FlexProgram *p, const int32_t *offsets, int n_docs, int Tq, int Tk,
                           int offset);

/* ---- Plans: which tiles a kernel may skip, and in which it must ask the mask. ---- */

typedef enum { FLEX_SKIP = 0, FLEX_PARTIAL = 1, FLEX_FULL = 2 } FlexTile;

/* Two bits a tile, in rows of 64-bit words, one row a tile of BM queries:
 * row number b b_rows + h h_rows + qt (see flex_plan_row), and bit kt of the row in `visit`
 * (something is visible) and in `partial` (not everything is). Tiles at the edges hang over Tq and
 * Tk; only pairs inside count. Plain data, so that code compiled at run time can read it with the
 * same struct. */
typedef struct FlexPlan {
    int Tq, Tk, offset, BM, BN;
    int q_tiles, k_tiles, words; /* words: 64-bit words a row */
    int b_rows, h_rows;          /* rows to the next b, to the next h; 0
                                             where the mask does not ask b (h) */
    const uint64_t *visit, *partial;
    int64_t n_skip, n_partial, n_full; /* tiles, over all b and h that were asked */
} FlexPlan;

/* The plan for queries at positions offset .. offset + Tq - 1 and keys 0 .. Tk - 1, made by asking
 * the mask for each pair once, tile by tile, and remembered by shape: the second call costs a
 * look-up. Owned by the program. Never NULL; a program without a mask gets a plan of full tiles. */
const FlexPlan *flex_plan(const FlexProgram *p, int B, int H, int Tq, int Tk, int offset, int BM,
                          int BN);

static inline const uint64_t *flex_plan_row(const uint64_t *bits, const FlexPlan *p, int b, int h,
                                            int qt) {
    return bits + ((int64_t)b * p->b_rows + (int64_t)h * p->h_rows + qt) * p->words;
}

static inline FlexTile flex_plan_tile(const FlexPlan *p, int b, int h, int qt, int kt) {
    const uint64_t bit = (uint64_t)1 << (kt & 63);
    if (!(flex_plan_row(p->visit, p, b, h, qt)[kt >> 6] & bit)) return FLEX_SKIP;
    return flex_plan_row(p->partial, p, b, h, qt)[kt >> 6] & bit ? FLEX_PARTIAL : FLEX_FULL;
}

/* The first tile at or after kt in row qt that is not skipped; k_tiles where there is none:
 *   for (int kt = flex_plan_next(p, b, h, qt, 0); kt < p->k_tiles;
 *        kt = flex_plan_next(p, b, h, qt, kt + 1)) */
static inline int flex_plan_next(const FlexPlan *p, int b, int h, int qt, int kt) {
    const uint64_t *row = flex_plan_row(p->visit, p, b, h, qt);
    if (kt >= p->k_tiles) return p->k_tiles;
    int w = kt >> 6;
    uint64_t bits = row[w] & (~(uint64_t)0 << (kt & 63));
    while (!bits) {
        if (++w >= p->words) return p->k_tiles;
        bits = row[w];
    }
    return w * 64 + __builtin_ctzll(bits);
}

/* ---- Code. ---- */

/* The C text that defines, for kernels,
 *   #define FLEX_INLINE static inline (in device code static __device__ __forceinline__)
 *   typedef struct FlexEnv { const int *array[8]; int length[8]; const float *learned; } FlexEnv;
 *   #define FLEX_HAS_SCORE 0|1
 *   #define FLEX_HAS_MASK 0|1
 *   #define FLEX_BY_DOCUMENT 0|1
 *   #define FLEX_HAS_REST 0|1
 *   FLEX_INLINE float flex_score(float score, int b, int h, int q, int k, const FlexEnv *env);
 *   FLEX_INLINE float flex_score_grad(float score, int b, int h, int q, int k,
 *                                       const FlexEnv *env);       d flex_score / d score
 *   #define FLEX_CAPTURES n, #define FLEX_LEARNED n        flex_captures, flex_learned
 *   #define FLEX_EACH_CAPTURE(X) X(0, FLEX_ONE_PLACE) ...   J and what its index asks:
 *       FLEX_ONE_PLACE neither q nor k, FLEX_BY_DISTANCE both through q - k alone, FLEX_ANY_PLACE
 *   FLEX_INLINE int flex_capture_index_J(int b, int h, int q, int k, const FlexEnv *env);
 *   FLEX_INLINE float flex_capture_grad_J(float score, int b, int h, int q, int k,
 *                                         const FlexEnv *env);
 *   FLEX_INLINE int flex_mask(int b, int h, int q, int k, const FlexEnv *env);         0 or 1
 *   FLEX_INLINE int flex_rest(int b, int h, int q, int k, const FlexEnv *env);
 *       flex_mask inside a document, where FLEX_BY_DOCUMENT
 * whatever of them the program has (all are defined always: score itself, 1, 1 and 1 stand in).
 * They are branch-free and call no library, so that a loop over k vectorises:
 *   for (int k = k0; k < k1; k++) s[k - k0] = flex_score(s[k - k0], b, h, q, k, env);
 * at -O3 -fno-math-errno -fno-trapping-math. So does one over flex_mask that stores floats (ints
 * might be the very arrays that it reads). The elementary functions are those of
 * kernels/flex/flex_math.h, relative error about 1e-6 (on CUDA its own). p NULL: the stand-ins
 * alone. The text is the caller's, to be freed by free(). As CUDA (where __CUDACC__ is defined) it
 * is device code. */
char *flex_prelude(const FlexProgram *p);

/* The same text, made at the first call; the program's. */
const char *flex_prelude_kept(const FlexProgram *p);

/* Where code is compiled and kept. */
typedef struct FlexBuild {
    const char *compiler; /* NULL: cc, found by PATH */
    const char *cache; /* folder for compiled code; made with mode 0700 where it is missing. NULL:
                          a folder of its own under /tmp, removed as soon as it is loaded */
} FlexBuild;

typedef struct FlexModule {
    void *handle;
} FlexModule;

/* Compiles prelude + kernel_source (self-contained C) with fixed flags and isa_flags (such as
 * "-march=x86-64-v3", split at blanks) to a shared object, or takes it from the cache, and loads
 * it.
 *
 * Safety: the cache must be a folder (no symbolic link) that belongs to the user and that nobody
 * else can write; an entry must be a regular file of the user's with no rights for others, and its
 * SHA-256 must be the one written beside it; if not it is compiled again. Its name is the SHA-256
 * of source, flags, compiler version and processor. Entries are written beside and renamed, so
 * concurrent processes are fine. The compiler is started without a shell.
 *
 * -1 and a sentence where there is no compiler, where it fails, where the folder is not safe or
 * cannot be written, and where the object cannot be loaded. */
int flex_module_load(const FlexProgram *p, const FlexBuild *build, const char *kernel_source,
                     const char *isa_flags, FlexModule *out, Err *e);
/* A symbol of the module; a missing one is a bug of the kernel source (CHECK). */
void *flex_module_symbol(const FlexModule *m, const char *name);
void flex_module_close(FlexModule *m);

/* What a program's modules are built with from now on (strings are copied); before, FlexBuild's
 * NULLs hold. */
void flex_set_build(const FlexProgram *p, const FlexBuild *build);
const char *flex_cache(const FlexProgram *p); /* FlexBuild.cache of that, or NULL */

/* The program's own module for this source (compared by address) and these flags: loaded at the
 * first call, remembered from then on, and so is a failure with its sentence. Owned by the program.
 * NULL and a sentence in e where it cannot be built. */
const FlexModule *flex_module(const FlexProgram *p, const char *kernel_source,
                              const char *isa_flags, Err *e);

#endif
