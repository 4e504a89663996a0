/* Attention on the plain device, for both types: the text of real_attention.h twice. Every mask and
 * score expression; what the backends and finite differences are compared with. */
#include <math.h>
#include <string.h>

#include "kernels/flex/flex.h"
#include "kernels/plain/plain.h"

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

void plain_attn(const AttnArgs *a, bool backward) {
    if (a->dtype == DT_F64)
        (backward ? attn_backward_f64 : attn_forward_f64)(a);
    else
        (backward ? attn_backward_f32 : attn_forward_f32)(a);
}

static void run(Ctx *c, const OpCall *o, bool backward) {
    AttnArgs a = attention_args(o);
    a.workspace = ctx_workspace(c, sizeof(double) * (size_t)a.Tk);
    plain_attn(&a, backward);
}

void plain_attention_forward(Ctx *c, const OpCall *o) { run(c, o, false); }
void plain_attention_backward(Ctx *c, const OpCall *o) { run(c, o, true); }
