/* What the backends share that write their scores down (vanilla, loop, padded): products by the
 * library, and between them the softmax of whole rows.
 *
 *   forward    S = scale Q K', P = softmax(S), out = P V
 *   backward   P from S and the saved log-sum-exp; dV = P' dO, dP = dO V', dS = P (dP - delta),
 *              dQ = scale dS K, dK = scale dS' Q, with delta = rowsum(P dP)
 *
 * S and dP are float32. P and dS have the call's dtype, and are written over S and dP: where that
 * is bf16 they fill the first half of each row's memory. */
#ifndef KERNELS_CUDA_ATTENTION_SCORES_CUH
#define KERNELS_CUDA_ATTENTION_SCORES_CUH

#include "kernels/cuda/attention.cuh"

/* What a call has of one document of batch row b: `rows` queries from `row` on and `cols` keys from
 * `col` on. With cached keys there may be documents without a query, and beyond Tk some without
 * either. Document number n of a call is document n % n_docs of batch row n / n_docs. offsets: the
 * host's on the host, the device's in a kernel. */
typedef struct Document {
    int b, row, rows, col, cols;
} Document;

static __host__ __device__ inline Document document_of(const AttnArgs *a, const int32_t *offsets,
                                                       int n_docs, int n) {
    const int first = offsets[n % n_docs], end = offsets[n % n_docs + 1];
    const int row = first > a->offset ? first - a->offset : 0;
    const int last = end < a->offset + a->Tq ? end - a->offset : a->Tq;
    const int col_end = end < a->Tk ? end : a->Tk;
    return {n / n_docs, row, last > row ? last - row : 0, first,
            col_end > first ? col_end - first : 0};
}

/* Keys of the longest document that the call has; its queries are no more. */
static inline int document_longest(const AttnArgs *a) {
    return a->mask->longest < a->Tk ? a->mask->longest : a->Tk;
}

/* Why a backend that knows nothing but documents declines, or NULL. */
static inline const char *documents_declined(const Ctx *c, const AttnArgs *a) {
    (void)c;
    if (a->dtype != DT_F32 && a->dtype != DT_BF16) return "it computes in float32 and bf16 alone";
    if (!a->mask->offsets) return "it needs a mask of documents";
    if (a->mask->within) return "a query sees its whole document there, and this mask hides some";
    if (a->mask->has_score_expr) return "it has no score expressions";
    return NULL;
}

/* A call is computed in parts. A part has tensors and a shape of its own: `part` says where its q,
 * k, v, out, dout, dq, dk, dv are, and its B is the number of its blocks, each of Tq rows and Tk
 * columns with H heads. Block n is document first + n of the call `a`, or first is WHOLE and it is
 * batch row n. A block may be larger than its document: what lies beyond is padding, which must be
 * finite in the part's inputs, and no score there counts.
 *
 * forward writes part->out, and lse of `a`. It may be that part->out is part->q.
 * backward reads lse of `a` and q, k, v, dout of the part; it writes the part's dq, dk, dv (NULL:
 * not wanted). It may be that dq is dout, dk is k, dv is v.
 * memory: scores_bytes, aligned to 64. */
enum { WHOLE = -1 };
size_t scores_bytes(const AttnArgs *part, bool backward);
void scores_forward(Ctx *c, const AttnArgs *a, CudaMask m, const AttnArgs *part, int first,
                    void *memory);
void scores_backward(Ctx *c, const AttnArgs *a, CudaMask m, const AttnArgs *part, int first,
                     void *memory);

#endif
