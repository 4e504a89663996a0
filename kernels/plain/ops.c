/* The plain ops for both types: the text of real_ops.h and real_event.h twice, and for each op a
 * function that takes the one the context's dtype asks for. */
#include <math.h>
#include <string.h>

#include "kernels/plain/plain.h"
#include "llmc_like/philox.h"

#define REAL float
#define FN(name) name##_f32
#include "kernels/plain/real_ops.h"

/* after real_ops.h, whose grad() it uses */
#include "kernels/plain/real_event.h"
#undef REAL
#undef FN

#define REAL double
#define FN(name) name##_f64
#include "kernels/plain/real_ops.h"

/* after real_ops.h, whose grad() it uses */
#include "kernels/plain/real_event.h"
#undef REAL
#undef FN

#define CHOOSE(name)                                       \
    void plain_##name(Ctx *c, const OpCall *o) {           \
        (c->dtype == DT_F64 ? name##_f64 : name##_f32)(o); \
    }
#define CHOOSE_BOTH(name) CHOOSE(name##_forward) CHOOSE(name##_backward)

CHOOSE_BOTH(linear)
CHOOSE_BOTH(conv2d)
CHOOSE_BOTH(silu)
CHOOSE_BOTH(add)
CHOOSE_BOTH(groupnorm)
CHOOSE_BOTH(patchify)
CHOOSE_BOTH(unpatchify)
CHOOSE_BOTH(append_registers)
CHOOSE_BOTH(drop_registers)
CHOOSE_BOTH(embedding)
CHOOSE_BOTH(rmsnorm_modulate)
CHOOSE_BOTH(qkv_rope)
CHOOSE_BOTH(gate_add)
CHOOSE_BOTH(geglu)
CHOOSE_BOTH(mse_loss)
CHOOSE_BOTH(layernorm)
CHOOSE_BOTH(gelu)
CHOOSE_BOTH(relu)
CHOOSE_BOTH(dropout)
CHOOSE_BOTH(dropout_add)
CHOOSE_BOTH(segment_mean)
CHOOSE_BOTH(segment_max)
CHOOSE_BOTH(segment_first)
CHOOSE_BOTH(segment_prepend)
CHOOSE_BOTH(concat)
CHOOSE_BOTH(unit_vector)
CHOOSE_BOTH(angle_loss)
CHOOSE_BOTH(rmsnorm)
CHOOSE_BOTH(relu_squared)
CHOOSE_BOTH(mix)
CHOOSE(timestep_embedding_forward)
CHOOSE(normal_forward)
CHOOSE(flow_noise_forward)
CHOOSE(pad_forward)

void plain_copy_forward(Ctx *c, const OpCall *o) {
    (void)c;
    memcpy(o->out[0]->data, o->in[0]->data, tensor_bytes(o->in[0]));
}
