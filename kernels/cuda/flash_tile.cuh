/* What the bf16 flash kernels are made of: tiles of rows in shared memory, and the fragments of
 * tensor cores that are read from them.
 *
 * A tile has COLS columns (32, 64, 96 or 128) of bf16, cut into chunks of 16 bytes. Chunks are
 * permuted within their row so that the 8 rows of a matrix that ldmatrix reads, and the 8 chunks
 * that neighbours of cp.async write, lie in different banks: row r has its chunk c at
 *   c ^ (r mod 8)         where rows are whole lines of 128 bytes (COLS 64, 128),
 *   c ^ (r / 2 mod 4)     where two rows share a line (COLS 32, 96).
 * Eight rows of one c then meet eight different groups of four banks. */
#ifndef KERNELS_CUDA_FLASH_TILE_CUH
#define KERNELS_CUDA_FLASH_TILE_CUH

#include "kernels/cuda/flash_mask.cuh"
#include "kernels/cuda/ptx.cuh"

/* ---- tensors ---- */

/* A (B, T, H, D) view. wide: rows may be moved 16 bytes at a time. */
typedef struct FlashView {
    bf16 *data;
    int64_t b, h;
    int t;
    bool wide;
} FlashView;

/* The rows of one batch and head; `rows` of them exist, of D numbers each. */
typedef struct FlashRows {
    bf16 *data;
    int step, rows, D;
    bool wide;
} FlashRows;

static __device__ __forceinline__ FlashRows head_rows(const FlashView &v, int b, int h, int rows,
                                                      int D) {
    return {v.data + b * v.b + h * v.h, v.t, rows, D, v.wide};
}

/* ---- tiles ---- */

template <int COLS>
static __device__ __forceinline__ bf16 *tile_at(bf16 *tile, int row, int chunk) {
    constexpr int ROWS = COLS % 64 == 0 ? 1 : 2; /* that share a line */
    return tile + row * COLS + (chunk ^ row / ROWS % (8 / ROWS)) * 8;
}

/* Begins to copy rows first .. first + ROWS - 1; zeros where a row or column does not exist.
 * Complete after cp_async_wait and a barrier. All threads of a block of THREADS call it. */
template <int ROWS, int COLS, int THREADS>
static __device__ __forceinline__ void tile_load(bf16 *tile, const FlashRows &from, int first) {
    constexpr unsigned CHUNKS = COLS / 8, EACH = ROWS * CHUNKS / THREADS;
    static_assert(EACH * THREADS == ROWS * CHUNKS, "every thread copies as many chunks");
    if (from.wide) {
#pragma unroll
        for (unsigned i = 0; i < EACH; i++) {
            const int row = (threadIdx.x + i * THREADS) / CHUNKS;
            const int chunk = (threadIdx.x + i * THREADS) % CHUNKS;
            cp_async_16(tile_at<COLS>(tile, row, chunk),
                        from.data + (int64_t)(first + row) * from.step + chunk * 8,
                        first + row < from.rows && chunk * 8 < from.D);
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bf16 *at = from.data + (int64_t)(first + row) * from.step + chunk * 8;
        Pack<bf16> x;
        for (int e = 0; e < 8; e++)
            x.at[e] =
                first + row < from.rows && chunk * 8 + e < from.D ? at[e] : from_float<bf16>(0);
        *(Pack<bf16> *)tile_at<COLS>(tile, row, chunk) = x;
    }
}

/* Copies `count` rows of a tile, from tile_row on, to rows first ... of global memory: as many as
 * exist. By one warp, which wrote them itself and has called __syncwarp. */
template <int COLS>
static __device__ __forceinline__ void tile_store(const FlashRows &to, int first, bf16 *tile,
                                                  int tile_row, int count) {
    constexpr int CHUNKS = COLS / 8;
    for (int i = threadIdx.x % WARP; i < count * CHUNKS; i += WARP) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        if (first + row >= to.rows || chunk * 8 >= to.D) continue;
        bf16 *at = to.data + (int64_t)(first + row) * to.step + chunk * 8;
        const Pack<bf16> x = load_pack(tile_at<COLS>(tile, tile_row + row, chunk));
        if (to.wide)
            *(Pack<bf16> *)at = x;
        else
            for (int e = 0; e < 8; e++)
                if (chunk * 8 + e < to.D) at[e] = x.at[e];
    }
}

/* ---- fragments: one ldmatrix each ---- */

/* The address of the chunk at col, in the row and chunk that a lane has of a 16 x 16 block whose
 * first row is `row`, a multiple of 8, and first column col, a multiple of 16 (of 8 where the
 * lane's chunk is 0). Such a block moves the lane's chunk by an exclusive or alone, so that what
 * depends on the lane is computed once. */
template <int COLS>
static __device__ __forceinline__ bf16 *lane_at(bf16 *tile, int row, int col, int lane_row,
                                                int lane_chunk) {
    constexpr int SPAN = COLS % 64 == 0 ? 64 : 32; /* columns among which chunks are permuted */
    const int lane = (int)(tile_at<COLS>(tile, lane_row, lane_chunk) - tile);
    return tile + row * COLS + col / SPAN * SPAN + (lane ^ col % SPAN);
}

/* A (16, 16) = tile[row ..][col ..] */
template <int COLS>
static __device__ __forceinline__ void load_a(uint32_t a[4], bf16 *tile, int row, int col) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, lane_at<COLS>(tile, row, col, lane % 16, lane / 16));
}

/* A[m][k] = tile[row + k][col + m] */
template <int COLS>
static __device__ __forceinline__ void load_a_trans(uint32_t a[4], bf16 *tile, int row, int col) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(a, lane_at<COLS>(tile, row, col, lane % 8 + lane / 16 * 8, lane / 8 % 2));
}

/* B (16, 8) twice: B[k][n] = tile[row + n][col + k] in b[0..1]; of rows 8 further in b[2..3] */
template <int COLS>
static __device__ __forceinline__ void load_b(uint32_t b[4], bf16 *tile, int row, int col) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(b, lane_at<COLS>(tile, row, col, lane % 8 + lane / 16 * 8, lane / 8 % 2));
}

/* B[k][n] = tile[row + k][col + n] in b[0..1]; of columns 8 further in b[2..3] */
template <int COLS>
static __device__ __forceinline__ void load_b_trans(uint32_t b[4], bf16 *tile, int row, int col) {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(b, lane_at<COLS>(tile, row, col, lane % 16, lane / 16));
}

/* tile[row ..][col ..] = the sums x (16, 8 N) of products, rounded: lane 4 g + t has columns 2t and
 * 2t + 1 of every 8, of row g times `scale` and of row g + 8 times `below`. */
template <int COLS, int N>
static __device__ __forceinline__ void tile_put(bf16 *tile, int row, int col, const float x[N][4],
                                                float scale, float below) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; n++) {
        bf16 *to = lane_at<COLS>(tile + 2 * t, row, col + 8 * n, g, 0);
        *(uint32_t *)to = pack_bf16(x[n][0] * scale, x[n][1] * scale);
        *(uint32_t *)(to + 8 * COLS) = pack_bf16(x[n][2] * below, x[n][3] * below);
    }
}

/* The sums of two products with neighbouring n are, rounded, the A of a product over n: x[0] and
 * x[1] hold columns n .. n + 7 and n + 8 .. n + 15. */
static __device__ __forceinline__ void pack_a(uint32_t a[4], const float x[2][4]) {
    a[0] = pack_bf16(x[0][0], x[0][1]);
    a[1] = pack_bf16(x[0][2], x[0][3]);
    a[2] = pack_bf16(x[1][0], x[1][1]);
    a[3] = pack_bf16(x[1][2], x[1][3]);
}

#endif
