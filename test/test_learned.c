/* What score expressions learn: captures and their derivatives, the gradients of every backend
 * against the plain loops in float64, those against finite differences, documents of all lengths,
 * threads, the op on the tape, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/flex/flex.h"
#include "kernels/ops.h"
#include "llmc_like/params.h"
#include "test/attention_call.h"
#include "test/scratch.h"

enum { T_MAX = 200, FRAME = 13 };

static void make(Mask *m, const char *mask, const char *score, const char *learned, void **state) {
    Err e;
    if (mask_init(m, mask, score, learned, T_MAX, FRAME, 2, 3, &e)) fail_msg("%s", e.text);
    mask_set_build(m, *state, NULL);
}

/* ---- the language ---- */

/* Indices of each kind, and what the prelude calls them. */
static void kinds(void **state) {
    static const struct {
        const char *index, *kind;
    } cases[] = {{"h + 3*b", "FLEX_ONE_PLACE"},
                 {"7", "FLEX_ONE_PLACE"},
                 {"q - k + 199", "FLEX_BY_DISTANCE"},
                 {"min(199 + q - (k - 1), 400)", "FLEX_BY_DISTANCE"},
                 {"abs(-q + k) / 3 + (q > k ? 1 : 2) - h + 3", "FLEX_BY_DISTANCE"},
                 {"frame[abs(k - q)]", "FLEX_BY_DISTANCE"},
                 {"q", "FLEX_ANY_PLACE"},
                 {"q + k", "FLEX_ANY_PLACE"},
                 {"frame[q] - frame[k] + 20", "FLEX_ANY_PLACE"},
                 {"2*q - k + 200", "FLEX_ANY_PLACE"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char score[128], want[128];
        Mask m;
        snprintf(score, sizeof score, "score + a[%s]", cases[i].index);
        snprintf(want, sizeof want, "#define FLEX_EACH_CAPTURE(X) X(0, %s)\n", cases[i].kind);
        make(&m, "full", score, "a:700", state);
        char *text = flex_prelude(m.code);
        if (!strstr(text, want)) fail_msg("%s is not %s", cases[i].index, cases[i].kind);
        assert_non_null(strstr(text, "#define FLEX_CAPTURES 1\n#define FLEX_LEARNED 700\n"));
        free(text);
        mask_free(&m);
    }
}

/* d score' / d each element, by the captures and by central differences. */
static void derivatives(void **state) {
    static const char *const scores[] = {
        "score*(1 + a[h]) + b2[q - k + 199]*a[h]",
        "where(a[2] > 0.1, score*a[1], exp(a[0]*0.1)) - a[1]/(2 + abs(b2[k]))",
        "min(max(score + a[h], -1.0), 0.5 + a[0]) + tanh(b2[q]*score) * pow(a[1] + 3, 2)"};
    enum { N = 3 + 399 };
    float value[N], grad[N];
    rng_normal((RngKey){3, 0, RNG_TEST}, 0, value, N);
    for (int i = 0; i < 3; i++) {
        Mask m;
        make(&m, "full", scores[i], "a:3,b2:399", state);
        assert_int_equal(m.n_learned, N);
        flex_set_learned(m.flex, value);
        for (int k = 0; k < 40; k++) {
            const int b = k % 2, h = k % 3, q = (7 * k + 5) % 40;
            const float score = 0.1f * (float)(k - 20);
            memset(grad, 0, sizeof grad);
            for (int j = 0; j < flex_captures(m.flex); j++) {
                int index;
                float g;
                flex_eval_capture_row(m.flex, j, &score, b, h, q, k, 1, &index, &g);
                assert_in_range(index, 0, N - 1);
                grad[index] += g;
            }
            for (int n = 0; n < N; n++) {
                const float x = value[n], step = 1e-2f;
                value[n] = x + step;
                const double up = (double)flex_eval_score(m.flex, score, b, h, q, k);
                value[n] = x - step;
                const double down = (double)flex_eval_score(m.flex, score, b, h, q, k);
                value[n] = x;
                const double want = (up - down) / (2 * (double)step);
                if (fabs((double)grad[n] - want) > 2e-3 * (1 + fabs(want)))
                    fail_msg("%s, element %d at q %d k %d: %g, by differences %g", scores[i], n, q,
                             k, (double)grad[n], want);
            }
        }
        mask_free(&m);
    }
}

static void refused(void **state) {
    (void)state;
    static const struct {
        const char *mask, *score, *learned, *says;
    } bad[] = {
        {"full", "", "a:3", "--learned a:3: these arrays are for --score, which is not given"},
        {"full", "score", "a:3", "--learned a: no gradient reaches this array"},
        {"full", "score + (a[0] > 0)", "a:3", "--learned a: no gradient reaches this array"},
        {"full", "score + a[h]", "a:3,c:2", "--learned c: no gradient reaches this array"},
        {"full", "score + a[h]", "a", "found 'a'; expected are up to 8 arrays NAME:N"},
        {"full", "score + a[h]", "a:0", "found 'a:0'"},
        {"full", "score + a[h]", "a:1048577", "(1 to 1048576)"},
        {"full", "score + a[h]", "a:3,", "found 'a:3,'"},
        {"full", "score + a[h]", "a:3;b:2", "found 'a:3;b:2'"},
        {"full", "score + a[h]", "a:3,2a:2", "found '2a:2'"},
        {"full", "score + a[h]", "a:-3", "found 'a:-3'"},
        {"full", "score", "a1:1,a2:1,a3:1,a4:1,a5:1,a6:1,a7:1,a8:1,a9:1", "found 'a9:1'"},
        {"full", "score", "a2345678901234567890123456789012:1", "at most 31"},
        {"full", "score + q", "q:3", "--learned q: the name is taken"},
        {"full", "score", "tanh:3", "--learned tanh: the name is taken"},
        {"full", "score", "frame:3", "--learned frame: the name is taken"},
        {"full", "score", "doc:3", "--learned doc: the name is taken"},
        {"full", "score + a[h]", "a:3,a:2", "--learned a: the name is taken"},
        {"full", "score + a[h]", "a:2", "a[2] is outside the array, whose elements are 0 to 1"},
        {"full", "score + a[q - k + 198]", "a:399", "a[-1] is outside the array"},
        {"full", "score + a[score > 0]", "a:3", "may ask neither the score nor a learned array"},
        {"full", "score + a[a[0] > 0]", "a:3", "may ask neither the score nor a learned array"},
        {"full", "score + a[0.5]", "a:3", "an index must be an int"},
        {"full", "score + a", "a:3", "expected '[' after the array 'a'"},
        {"full", "score + d[0] + a[0]", "a:3", "score, frame, a and the functions"},
        {"a[0] > q", "score + a[0]", "a:3", "a mask cannot ask a learned array"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Mask m;
        Err e = {""};
        if (!mask_init(&m, bad[i].mask, bad[i].score, bad[i].learned, T_MAX, FRAME, 1, 3, &e))
            fail_msg("accepted: %s %s", bad[i].score, bad[i].learned);
        if (!strstr(e.text, bad[i].says)) fail_msg("no '%s' in: %s", bad[i].says, e.text);
    }
    char many[900] = "score";
    for (int i = 0; i < 17; i++) sprintf(many + strlen(many), " + a[%d]", i);
    Mask m;
    Err e = {""};
    assert_int_equal(mask_init_documents(&m, "document", many, "a:17", 1, &e), -1);
    assert_non_null(strstr(e.text, "read at more than 16 places"));
}

/* ---- backends ---- */

/* All that do the mask, on every device, against the plain loops. */
static void try_everywhere(const Mask *m, Shape s) {
    const float scale = 1 / sqrtf((float)s.D);
    Call exact = call_make(s, DT_F64, m, scale), single = call_make(s, DT_F32, m, scale);
    run_plain(&exact);
    run_plain(&single);
    const Error plain = compare(&single, &exact);
    assert_true(plain.largest[DLEARNED] > 0);
    for (int d = 0; devices[d]; d++) {
        if (devices[d] == &plain_device || !device_tested(devices[d])) continue;
        int ran = 0;
        Ctx ctx;
        ctx_for(&ctx, devices[d], 2);
        for (int i = 0; attn_backends[i]; i++) {
            const AttnBackend *b = attn_backends[i];
            Call c = call_make(s, DT_F32, m, scale);
            if (!b->supports(&ctx, &c.a)) {
                char what[512];
                Err e;
                snprintf(what, sizeof what, "%s on %s, mask %s, B %d H %d Tq %d Tk %d D %d",
                         b->name, devices[d]->name, m->text, s.B, s.H, s.Tq, s.Tk, s.D);
                if (b->prepare(&ctx, &c.a, &e)) fail_msg("%s: %s", what, e.text);
                run_backend(&ctx, b, &c);
                check_sentinels(&c, what);
                const Error got = compare(&c, &exact);
                check_errors(&got, &plain, what);
                ran++;
            }
            call_free(&c);
        }
        assert_int_equal(ran, devices[d] == &cuda_device ? 0 : 3);
        ctx_free(&ctx);
    }
    call_free(&exact);
    call_free(&single);
}

static const struct {
    const char *mask, *score, *learned;
} cases[] = {
    {"causal", "score*(1 + 0.5*slope[h])", "slope:3"},
    {"frame-causal", "20*tanh((score + pair[3*frame[k] + h])/20) + far[min(abs(q - k), 15)]",
     "pair:48,far:16"},
    {"q >= k && q - k <= 70", "score*exp(-0.1*sharp[3*b + h]) - 0.05*slope[h]*(q - k)",
     "sharp:6,slope:3"},
    {"causal", "score + 0.3*slope[h]*sqrt(q - k)", "slope:3"}, /* hidden keys: NaN */
    {"document:50 & causal", "score + bias[min(max(q - k + 49, 0), 98)] + other[(q + 2*k) % 5]",
     "bias:99,other:5"},
};
enum { N_CASES = sizeof cases / sizeof *cases };

static void every_backend_is_right(void **state) {
    static const Shape shapes[] = {
        {2, 3, 7, 7, 12}, {2, 3, 130, 130, 16}, {1, 3, 13, 65, 64}, {1, 2, 150, 200, 20}};
    for (int i = 0; i < N_CASES; i++) {
        Mask m;
        make(&m, cases[i].mask, cases[i].score, cases[i].learned, state);
        for (size_t j = 0; j < sizeof shapes / sizeof *shapes; j++) try_everywhere(&m, shapes[j]);
        mask_free(&m);
    }
}

static const char *const document_score = "score + bias[q - k + 400] - 0.1*slope[h]*abs(q - k)";
static const int lengths[][12] = {
    {1, 1, 2, 1, 1}, {1, 113, 1, 1, 17, 1, 5, 12, 3}, {300, 12, 2, 257, 1}};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

static void set_documents(Mask *m, int i) {
    int32_t offsets[13] = {0};
    int n = 0;
    for (; n < 12 && lengths[i][n]; n++) offsets[n + 1] = offsets[n] + lengths[i][n];
    mask_set_documents(m, offsets, n);
}

static void make_documents(Mask *m, const char *mask, void **state) {
    Err e;
    if (mask_init_documents(m, mask, document_score, "bias:801,slope:3", 3, &e))
        fail_msg("%s", e.text);
    mask_set_build(m, *state, NULL);
}

static void documents(void **state) {
    static const char *const masks[] = {"document", "doc[q] == doc[k] && (k <= q || k % 3 == 0)"};
    for (int i = 0; i < 2; i++) {
        Mask m;
        make_documents(&m, masks[i], state);
        for (int j = 0; j < N_LENGTHS; j++) {
            set_documents(&m, j);
            try_everywhere(&m, (Shape){1, 3, m.T, m.T, 16});
        }
        mask_free(&m);
    }
}

static void same_bits(const Mask *m, Shape s) {
    static const char *const names[] = {"flex", "flex-dense"};
    for (int i = 0; i < 2; i++) {
        Call first = call_make(s, DT_F32, m, 0.25f);
        for (int threads = 1; threads <= 3; threads++) {
            Ctx ctx;
            ctx_for(&ctx, device_find("cpu", NULL), threads);
            Call c = call_make(s, DT_F32, m, 0.25f);
            run_backend(&ctx, attn_find(names[i]), threads == 1 ? &first : &c);
            for (int t = OUT; threads > 1 && t < N_TENSORS; t++)
                if (memcmp(first.block[t], c.block[t], block_bytes(&c, t)))
                    fail_msg("%s: %s differs with %d threads", names[i], tensor_names[t], threads);
            call_free(&c);
            ctx_free(&ctx);
        }
        call_free(&first);
    }
}

static void threads_change_no_bit(void **state) {
    Mask m;
    make(&m, cases[1].mask, cases[1].score, cases[1].learned, state);
    same_bits(&m, (Shape){2, 3, 193, 193, 16}); /* heads of several chunks */
    same_bits(&m, (Shape){1, 1, 193, 193, 16});
    mask_free(&m);
    make_documents(&m, "document", state);
    for (int j = 0; j < N_LENGTHS; j++) {
        set_documents(&m, j);
        same_bits(&m, (Shape){1, 3, m.T, m.T, 16});
    }
    mask_free(&m);
}

/* Without dlearned the others are what they are with it. */
static void unwanted(void **state) {
    Mask m;
    make(&m, cases[1].mask, cases[1].score, cases[1].learned, state);
    Ctx ctx;
    ctx_for(&ctx, device_find("cpu", NULL), 2);
    static const char *const names[] = {"vanilla", "flex", "flex-dense"};
    for (int i = 0; i < 3; i++) {
        const Shape s = {1, 2, 65, 65, 16};
        Call all = call_make(s, DT_F32, &m, 0.25f), none = call_make(s, DT_F32, &m, 0.25f);
        run_backend(&ctx, attn_find(names[i]), &all);
        none.a.dlearned = NULL;
        run_backend(&ctx, attn_find(names[i]), &none);
        for (int t = DQ; t <= DV; t++)
            assert_memory_equal(all.block[t], none.block[t], block_bytes(&all, t));
        call_free(&all);
        call_free(&none);
    }
    ctx_free(&ctx);
    mask_free(&m);
}

/* Scores are float32 in every dtype, so the steps are wide and the differences of fourth order. */
static void finite_differences(void **state) {
    for (int i = 0; i < N_CASES; i++) {
        Mask m;
        make(&m, cases[i].mask, cases[i].score, cases[i].learned, state);
        const Shape s = {2, 3, 9, 30, 8};
        Call c = call_make(s, DT_F64, &m, 0.5f), moved = call_make(s, DT_F64, &m, 0.5f);
        run_plain(&c);
        moved.a.workspace = malloc(sizeof(double) * (size_t)(s.Tk + m.n_learned));
        for (size_t n = 0; n < c.n[LEARNED]; n++) {
            static const double at[] = {-2, -1, 1, 2}, weight[] = {1, -8, 8, -1};
            const double step = 1.0 / 32, x = get(&c, LEARNED, n);
            double want = 0;
            for (int side = 0; side < 4; side++) {
                set(&moved, LEARNED, n, x + step * at[side]);
                plain_attn(&moved.a, false);
                for (size_t j = 0; j < c.n[OUT]; j++)
                    if (j % c.step[OUT] < c.row[OUT])
                        want += weight[side] * get(&moved, OUT, j) * get(&c, DOUT, j) / (12 * step);
            }
            set(&moved, LEARNED, n, x);
            const double got = get(&c, DLEARNED, n);
            if (!(fabs(got - want) < 2e-4 * (1 + fabs(want))))
                fail_msg("%s: element %zu: %g, by differences %g", cases[i].score, n, got, want);
        }
        free(moved.a.workspace);
        call_free(&c);
        call_free(&moved);
        mask_free(&m);
    }
}

/* ---- the op ---- */

enum { B = 2, H = 3, T = 21, D = 8, C = H * D };

static Tensor *loss_of(Ctx *c, const Mask *m, Tensor *learned, bool packed, const float *x) {
    Tensor *y;
    const int64_t target[] = {B, T, C}, qkv[] = {B, T, 3 * C}, heads[] = {B, T, H, D};
    if (packed) {
        Tensor *in = ctx_input(c, "qkv", DT_F32, 3, qkv, x);
        y = op_attention_packed(c, in, H, m, learned, 0.5f);
    } else {
        float part[3][B * T * C];
        for (int i = 0; i < B * T; i++)
            for (int n = 0; n < 3; n++) memcpy(part[n] + i * C, x + (3 * i + n) * C, C * sizeof *x);
        Tensor *q = ctx_input(c, "q", DT_F32, 4, heads, part[0]);
        Tensor *k = ctx_input(c, "k", DT_F32, 4, heads, part[1]);
        Tensor *v = ctx_input(c, "v", DT_F32, 4, heads, part[2]);
        y = op_attention(c, q, k, v, m, learned, 0.5f);
        return op_mse_loss(c, y, ctx_input(c, "target", DT_F32, 3, target, x));
    }
    return op_mse_loss(c, y, ctx_input(c, "target", DT_F32, 3, target, x));
}

/* A parameter's gradient is overwritten, then added to, by whichever form of the op. */
static void on_the_tape(void **state) {
    enum { N = 3 + 41 };
    static float x[B * T * 3 * C], grad[3][N];
    rng_normal((RngKey){5, 0, RNG_TEST}, 0, x, B * T * 3 * C);
    Mask m;
    Err e;
    if (mask_init(&m, "causal", "score*(1 + slope[h]) + bias[q - k + 20]", "slope:3,bias:41", T, 1,
                  B, H, &e))
        fail_msg("%s", e.text);
    mask_set_build(&m, *state, NULL);
    Ctx c;
    ctx_for(&c, device_find("cpu", NULL), 2);
    c.recording = true;
    const AttnArgs shape = attn_shape(B, H, T, D, &m);
    if (attn_choose(&c, "flex", &shape, &e)) fail_msg("%s", e.text);
    ParamTable p;
    Tensor *learned;
    params_init(&p, &c);
    params_add(&p, &learned, GROUP_ADAMW, INIT_NORMAL, 1, 1, (int64_t[]){N}, "learned");
    params_set_exact(&p);
    if (params_commit(&p, true, &e)) fail_msg("%s", e.text);
    params_zero_grad(&p);
    for (int i = 0; i < 3; i++) {
        ctx_step_begin(&c);
        tape_backward(&c, loss_of(&c, &m, learned, i == 1, x), 1);
        memcpy(grad[i], learned->grad, sizeof grad[i]);
    }
    for (int j = 0; j < N; j++)
        for (int i = 1; i < 3; i++)
            assert_true(fabsf(grad[i][j] - (float)(i + 1) * grad[0][j]) <=
                        1e-5f * (1e-3f + fabsf(grad[i][j])));
    assert_true(fabsf(grad[0][0]) > 1e-4f && fabsf(grad[0][3 + 22]) > 1e-4f);
    assert_true(grad[0][3] == 0); /* q - k + 20 = 0 is never visible */
    params_free(&p);
    ctx_free(&c);
    mask_free(&m);
}

int main(int argc, char **argv) {
    device_choose(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds),
        cmocka_unit_test(derivatives),
        cmocka_unit_test(refused),
        cmocka_unit_test(finite_differences),
        cmocka_unit_test(every_backend_is_right),
        cmocka_unit_test(documents),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(unwanted),
        cmocka_unit_test(on_the_tape),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
