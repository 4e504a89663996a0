/* Attention on the plain device, for both types, and as kernels in bf16 round: the text of
 * real_attention.h three times. Every mask and score expression; what the backends and finite
 * differences are compared with. */
#include <math.h>
#include <string.h>

#include "kernels/flex/flex.h"
#include "kernels/plain/plain.h"

#define ROUND(x) (x)
#define REAL float
#define FN(name) name##_f32
#include "kernels/plain/real_attention.h"
#undef REAL
#undef FN

#define REAL double
#define FN(name) name##_f64
#include "kernels/plain/real_attention.h"
#undef REAL
#undef FN
#undef ROUND

/* The number of bf16 that is nearest, ties to even. */
static float round_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return x;
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#define ROUND(x) round_to_bf16(x)
#define REAL float
#define FN(name) name##_rounded
#include "kernels/plain/real_attention.h"
#undef REAL
#undef FN
#undef ROUND

void plain_attn(const AttnArgs *a, bool backward) {
    if (a->mask->flex) flex_set_learned(a->mask->flex, a->learned);
    if (a->dtype == DT_F64)
        (backward ? attn_backward_f64 : attn_forward_f64)(a);
    else
        (backward ? attn_backward_f32 : attn_forward_f32)(a);
}

void plain_attn_rounded(const AttnArgs *a, bool backward) {
    if (a->mask->flex) flex_set_learned(a->mask->flex, a->learned);
    (backward ? attn_backward_rounded : attn_forward_rounded)(a);
}

static void run(Ctx *c, const OpCall *o, bool backward) {
    AttnArgs a = attention_args(o);
    a.workspace = ctx_workspace(c, sizeof(double) * (size_t)(a.Tk + a.mask->n_learned));
    plain_attn(&a, backward);
}

void plain_attention_forward(Ctx *c, const OpCall *o) { run(c, o, false); }
void plain_attention_backward(Ctx *c, const OpCall *o) { run(c, o, true); }
