/* Standard normals of a stream (llmc_like/philox.h), drawn where they are used: the numbers of the
 * CPU, but for the last bits of log, sin and cos. */
#include "kernels/cuda/philox.cuh"

/* In (0, 1), as philox.c rounds it. */
static __device__ __forceinline__ float to_uniform(uint32_t bits) {
    return fminf(((float)bits + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
}

/* A thread takes a block of the generator, four numbers by Box and Muller, of which the first and
 * the last block may be asked for a part alone. */
static __global__ void draw_normals(float *x, Stream s, int64_t n) {
    const uint64_t block = s.first / 4 + (uint64_t)global_thread();
    const int64_t at = (int64_t)(block * 4 - s.first); /* of the block's first number; may be < 0 */
    if (at >= n) return;
    const uint4 bits = stream_block(s, block);
    const float u[4] = {to_uniform(bits.x), to_uniform(bits.y), to_uniform(bits.z),
                        to_uniform(bits.w)};
    for (int pair = 0; pair < 4; pair += 2) {
        const float r = sqrtf(-2.0f * logf(u[pair])), angle = 6.28318530718f * u[pair + 1];
        const float y[2] = {r * cosf(angle), r * sinf(angle)};
        for (int j = 0; j < 2; j++)
            if (at + pair + j >= 0 && at + pair + j < n) x[at + pair + j] = y[j];
    }
}

void cuda_normal_forward(Ctx *c, const OpCall *o) {
    const int64_t n = tensor_numel(o->out[0]);
    launch(c, draw_normals, grid_for(div_up(n, 4) + 1), BLOCK, 0, (float *)o->out[0]->data,
           stream_of(o, o->attr.layer, o->attr.first), n);
}
