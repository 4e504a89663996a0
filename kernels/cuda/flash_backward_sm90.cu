#include "kernels/cuda/flash_backward_sm90.cuh"
#include "kernels/cuda/flash_host.cuh"
#include "kernels/cuda/tensor_map.cuh"
template <int D>
static void backward_start(Ctx *c, const BackwardSm90 &p) {
    launch(c, tiles_sm90_kernel<D>, dim3((unsigned)(p.b.cut.heads * p.b.cut.chunks)),
           dim3(SM90_THREADS), sizeof(BackwardSm90Shared<D>), p);
    if (p.b.dq.data)
        launch(c, add_kernel<D, QUERIES>, dim3((unsigned)(p.b.cut.heads * p.b.cut.n_q)),
               dim3(THREADS), 0, p.b);
}
void f(Ctx *c, const BackwardSm90 &p) {
    launch(c, limits_kernel, grid_for((int64_t)p.b.cut.n_q * WARP), dim3(BLOCK), 0, p.b);
    launch(c, rows_kernel, grid_for((int64_t)p.b.cut.heads * p.b.cut.q_pad * 8), dim3(BLOCK), 0, p.b);
backward_start<64>(c,p); backward_start<128>(c,p);}
