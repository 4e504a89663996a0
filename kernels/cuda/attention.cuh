/* What the attention backends on CUDA share. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.cuh"

extern "C" {
#include "kernels/flex/flex.h"
}

/* What flex knows of a mask beside its intervals. */
typedef struct CudaFlex {
    const FlexProgram *code;      /* the expressions */
    FlexEnv env;                  /* the arrays that they name, on the device */
    bool asks;                    /* the intervals are bounds: what they show is asked as well */
    const uint32_t *visit, *full; /* a plan, as FlashMask has it (flash_mask.cuh), or NULL */
    int words, b_rows, h_rows, plan_heads;
} CudaFlex;

/* A mask's arrays on the device; NULL where the mask has none. They stay until the context's masks
 * are freed; kept by content, so that a mask whose documents change with each batch costs one
 * upload a batch. */
typedef struct CudaMask {
    const int32_t *lo, *hi; /* (T): of interval masks and of documents: query at position q sees
                               lo[q] <= k < hi[q] */
    const int32_t *offsets; /* (n_docs + 1) */
    int T, n_docs, longest;
    uint64_t version;     /* another whenever one of the numbers is */
    const CudaFlex *flex; /* the caller's; NULL: the kernels that were built with the program */
} CudaMask;

/* attention_mask.cu. env: where the arrays that the mask's expressions name shall be told, or NULL.
 */
CudaMask cuda_mask(Ctx *c, const Mask *m, FlexEnv *env);
void cuda_masks_free(struct CudaMasks *masks);

/* A source of kernels that is compiled at run time behind a program's expressions: a file of
 * kernels/cuda, with FLEX_D and FLEX_ROWS defined as these numbers. */
typedef struct FlexSource {
    const char *file;
    int D, rows;
} FlexSource;

/* flex_code.cu. Compiles the sources behind p's expressions, each in a thread, by NVRTC for the
 * context's GPU, or takes them from p's cache folder; the context remembers them. -1 and a sentence
 * where there is no NVRTC, where it fails and where the folder is not safe. */
int flex_compile(Ctx *c, const FlexProgram *p, const FlexSource *sources, int n_sources, Err *e);
/* The kernel of that name; one that cannot be compiled now ends the run. */
const void *flex_kernel(Ctx *c, const FlexProgram *p, FlexSource source, const char *name);
void flex_codes_free(struct FlexCodes *codes);

/* Adds the plan of an expression mask for a's shape to *f, made on the device and kept by what it
 * depends on (flex_plan.cu): of m its numbers, by their version. */
void flex_plan_add(Ctx *c, const AttnArgs *a, const CudaMask *m, CudaFlex *f);
void flex_plans_free(struct FlexPlans *plans);
FlexSource flex_plan_source(void);

/* The fused kernels of sdpa and flex: float32, bf16, and bf16 for Hopper. Queries are taken in
 * tiles of consecutive rows, and a tile visits the keys from the smallest lo to the largest hi of
 * its rows; a tile of keys that every row of a warp sees whole needs no test. Documents of a few
 * rows therefore cost one or two tiles a tile of queries, all in one launch. Head sizes: 1 .. 128,
 * padded in shared memory to the next of 16, 32, 64 or 128 (float32) or of 32, 64, 96 or 128
 * (bf16). Strides are any; 16-byte loads where addresses and strides allow them. Hopper's: heads of
 * 64 and 128 numbers, tensors that the copy engine takes (tensor_map.cuh).
 *
 * delta (B, H, Tq) float32 = rowsum(dout out), the first pass of backward, into the workspace.
 *
 * A mask with flex launches the same kernels as they are compiled behind its expressions: those of
 * the sources below. dense: documents are not told apart. */
void flash_forward(Ctx *c, const AttnArgs *a, CudaMask m); /* flash.cu: the kernels that fit */
void flash_backward(Ctx *c, const AttnArgs *a, CudaMask m);
size_t flash_workspace(const Ctx *c, const AttnArgs *a, bool dense, bool backward);
FlexSource flash_source(const Ctx *c, const AttnArgs *a, bool backward);

void flash_forward_f32(Ctx *c, const AttnArgs *a, CudaMask m); /* flash_f32.cu */
void flash_backward_f32(Ctx *c, const AttnArgs *a, CudaMask m);
size_t flash_workspace_f32(const AttnArgs *a, bool backward);
FlexSource flash_source_f32(const AttnArgs *a);

void flash_forward_bf16(Ctx *c, const AttnArgs *a, CudaMask m);  /* flash_forward_bf16.cu */
void flash_backward_bf16(Ctx *c, const AttnArgs *a, CudaMask m); /* flash_backward_bf16.cu */
size_t flash_workspace_bf16(const Ctx *c, const AttnArgs *a, bool dense, bool backward);
FlexSource flash_source_forward_bf16(const AttnArgs *a);
FlexSource flash_source_backward_bf16(const Ctx *c, const AttnArgs *a);

void flash_forward_sm90(Ctx *c, const AttnArgs *a, CudaMask m);  /* flash_forward_sm90.cu */
void flash_backward_sm90(Ctx *c, const AttnArgs *a, CudaMask m); /* flash_backward_sm90.cu */
size_t flash_workspace_sm90(const AttnArgs *a, bool dense, bool backward);
FlexSource flash_source_forward_sm90(const AttnArgs *a);
FlexSource flash_source_backward_sm90(const AttnArgs *a);

#endif
