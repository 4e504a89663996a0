/* What fixtures do not show of the flat IceCube model: its sizes, its initial values, its config as
 * text, its dropout, and a dry run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "llmc_like/philox.h"
#include "models/icecube_flat.h"

/* Three events of 1, 4 and 2 DOMs. */
enum { B = 3, M = 7, K = 2, FEATURES = 4 + 3 * K };
static const int32_t event_offsets[] = {0, 1, 5, 7}, event_token[] = {0, 2, 7, 10};

static IceFlatConfig small(void) {
    IceFlatConfig g = ice_flat_config_default();
    g.d_model = 16;
    g.n_heads = g.n_layers = 2;
    g.d_ff = g.head_hidden = 12;
    g.K = K;
    return g;
}

typedef struct Setup {
    Ctx c;
    Mask mask;
    IceFlat m;
    float vector[M * FEATURES];
} Setup;

static void setup(Setup *s, const IceFlatConfig *g, bool dry) {
    Err e = {""};
    assert_int_equal(ctx_init(&s->c, "cpu", 1, 3, dry, &e), 0);
    assert_int_equal(mask_init_documents(&s->mask, "document", "", "", g->n_heads, &e), 0);
    mask_set_documents(&s->mask, event_token, B);
    assert_int_equal(ice_flat_init(&s->m, g, &s->mask, &s->c, true, &e), 0);
    s->c.attn = attn_find("sdpa");
    rng_normal((RngKey){1, 0, RNG_TEST}, 0, s->vector, M * FEATURES);
}

static void teardown(Setup *s) {
    ice_flat_free(&s->m);
    mask_free(&s->mask);
    ctx_free(&s->c);
}

static Tensor *directions(Setup *s, uint32_t step, uint32_t part) {
    ctx_step_begin(&s->c);
    Ctx *c = &s->c;
    const IceInput in = {
        .dom_vector = ctx_input(c, "x", DT_F32, 3, (int64_t[]){1, M, FEATURES}, s->vector),
        .event_offsets = ctx_input(c, "offsets", DT_I32, 1, (int64_t[]){B + 1}, event_offsets),
        .event_token = ctx_input(c, "token", DT_I32, 1, (int64_t[]){B + 1}, event_token),
        .step = step,
        .part = part};
    return ice_flat_forward(c, &s->m, &in);
}

/* The sizes that the specification names: 0.55, 5 and 10 million parameters. */
static void test_sizes(void **state) {
    (void)state;
    const struct {
        int d_model, d_ff, n_layers, head_hidden;
        double millions;
    } row[] = {{128, 256, 4, 128, 0.55}, {256, 1024, 6, 256, 5}, {384, 1280, 6, 1024, 10}};
    for (int i = 0; i < 3; i++) {
        IceFlatConfig g = ice_flat_config_default();
        g.d_model = row[i].d_model;
        g.d_ff = row[i].d_ff;
        g.n_layers = row[i].n_layers;
        g.head_hidden = row[i].head_hidden;
        IceFlat m;
        Ctx c;
        Err e = {""};
        assert_int_equal(ctx_init(&c, "cpu", 1, 1, true, &e), 0);
        assert_int_equal(ice_flat_init(&m, &g, NULL, &c, true, &e), 0);
        assert_true(fabs(1e-6 * (double)m.params.numel / row[i].millions - 1) < 0.05);
        ice_flat_free(&m);
        ctx_free(&c);
    }
}

static double deviation(const Tensor *t) {
    double sum = 0;
    for (int64_t i = 0; i < tensor_numel(t); i++) sum += pow((double)tensor_f32(t)[i], 2);
    return sqrt(sum / (double)tensor_numel(t));
}

/* Blocks begin as the identity, so that a fresh model has seen nothing but its class token. */
static void test_initial_values(void **state) {
    (void)state;
    Setup s;
    IceFlatConfig g = small();
    g.d_model = 128;
    setup(&s, &g, false);
    s.c.recording = false;
    for (int l = 0; l < g.n_layers; l++) {
        assert_true(tensor_f32(s.m.resid_lambdas)[l] == 1);
        assert_true(tensor_f32(s.m.x0_lambdas)[l] == 0.1f);
    }
    assert_true(fabs(deviation(s.m.block[1].k.weight) * sqrt(128) - 1) < 0.05);
    assert_true(fabs(deviation(s.m.block[1].up.weight) * sqrt(128) - 1) < 0.05);
    assert_true(fabs(deviation(s.m.input1.weight) / sqrt(2.0 / (128 + FEATURES)) - 1) < 0.1);
    assert_true(fabs(deviation(s.m.class_token) / 0.02 - 1) < 0.2);
    const float *d = tensor_f32(directions(&s, 0, 0));
    for (int e = 0; e < B; e++) {
        const float *v = d + 3 * e;
        assert_true(fabsf(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] - 1) < 1e-5f);
        assert_memory_equal(v, d, 3 * sizeof *v);
    }
    teardown(&s);
}

/* Another step and another part of a step draw other numbers; evaluation draws none. */
static void test_dropout(void **state) {
    (void)state;
    Setup s;
    IceFlatConfig g = small();
    g.dropout = 0.5; /* so that no draw of few numbers leaves all of them */
    setup(&s, &g, false);
    enum { N = 3 * B };
    const struct { uint32_t step, part; } of[] = {{7, 0}, {7, 0}, {8, 0}, {7, 1}};
    float got[4][N], calm[2][N];
    for (int i = 0; i < 4; i++)
        memcpy(got[i], directions(&s, of[i].step, of[i].part)->data, sizeof got[i]);
    assert_memory_equal(got[0], got[1], sizeof got[0]);
    assert_memory_not_equal(got[0], got[2], sizeof got[0]);
    assert_memory_not_equal(got[0], got[3], sizeof got[0]);
    s.c.recording = false;
    for (int i = 0; i < 2; i++)
        memcpy(calm[i], directions(&s, of[i + 1].step, 0)->data, sizeof *calm);
    assert_memory_equal(calm[0], calm[1], sizeof *calm);
    teardown(&s);
}

static void test_config_as_text(void **state) {
    (void)state;
    const IceFlatConfig g = {.d_model = 40,
                             .n_heads = 5,
                             .n_layers = 3,
                             .d_ff = 70,
                             .head_hidden = 11,
                             .K = 12,
                             .input = "none",
                             .dropout = 0.25,
                             .time_scale = 3000,
                             .position_scale = 100,
                             .max_doms = 77};
    IceFlatConfig back;
    char text[512], again[512];
    Err e = {""};
    ice_flat_config_json(&g, text, sizeof text);
    assert_int_equal(ice_flat_config_parse(&back, text, &e), 0);
    ice_flat_config_json(&back, again, sizeof again);
    assert_string_equal(text, again);
    assert_string_equal(back.input, "none");
    const struct {
        const char *json, *word;
    } bad[] = {{"{\"model\": \"hierarchical\"}", "hierarchical"},
               {"[]", "no model"},
               {"{\"model\": \"flat\", \"d_model\": \"wide\"}", "d_model"},
               {"{\"model\": \"flat\", \"time_scale\": \"3e3\"}", "time_scale is \"3e3\""},
               {"{\"model\": \"flat\", \"input_mode\": 1}", "input_mode is 1"},
               {"{\"model\": \"flat\", \"num_layers\": 0}", "layers 0"},
               {"{\"model\": \"flat\", \"num_layers\": 1000}", "1000 layers"},
               {"{\"model\": \"flat\", \"max_pulses_per_dom\": 0}", "K is 0"},
               {"{\"model\": \"flat\", \"dropout\": 1}", "dropout"},
               {"{\"model\": \"flat\", \"time_scale\": 0}", "time scale"},
               {"{\"model\": \"flat\", \"position_scale\": -1}", "position scale"},
               {"{\"model\": \"flat\", \"max_doms\": 0}", "DOMs"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(ice_flat_config_parse(&back, bad[i].json, &e), -1);
        assert_non_null(strstr(e.text, bad[i].word));
    }
}

/* A dry step counts what a real one takes, and computes nothing. */
static void test_dry_run(void **state) {
    (void)state;
    size_t used[2];
    for (int dry = 0; dry < 2; dry++) {
        Setup s;
        IceFlatConfig g = small();
        setup(&s, &g, dry);
        static const float truth[3 * B] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
        Tensor *d = directions(&s, 0, 0);
        Tensor *to = ctx_input(&s.c, "truth", DT_F32, 3, (int64_t[]){1, B, 3}, truth);
        tape_backward(&s.c, op_angle_loss(&s.c, d, to), 1);
        used[dry] = s.c.activations.used;
        teardown(&s);
    }
    assert_int_equal(used[0], used[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),   cmocka_unit_test(test_initial_values),
        cmocka_unit_test(test_dropout), cmocka_unit_test(test_config_as_text),
        cmocka_unit_test(test_dry_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
