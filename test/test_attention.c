/* Every attention backend, on every device that this processor can be, against the plain loops in
 * float64: masks by name and by expression, score expressions, odd shapes, strides with gaps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <unistd.h>

#include "test/attention_call.h"

enum { T_MAX = 200, FRAME = 13 };

/* On CUDA each call has a context of its own, which loads its code anew: from here. */
static void keep_code(Mask *m) {
    if (device_tested(&cuda_device)) mask_set_build(m, "build/test-code", NULL);
}

static void mask_for(Mask *m, const char *mask, const char *score) {
    Err e;
    if (mask_init(m, mask, score, "", T_MAX, FRAME, 2, 3, &e)) fail_msg("%s", e.text);
    keep_code(m);
}

static const Shape shapes[] = {{1, 1, 1, 1, 4},      {2, 3, 7, 7, 12},     {1, 3, 65, 65, 64},
                               {2, 1, 130, 130, 16}, {1, 3, 193, 193, 32}, {1, 1, 193, 193, 80},
                               {1, 3, 13, 65, 64},   {2, 3, 1, 130, 16},   {1, 1, 65, 193, 12},
                               {1, 2, 130, 193, 4},  {1, 1, 150, 200, 128}};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

static const struct {
    const char *mask, *score;
} cases[] = {{"full", ""},
             {"causal", ""},
             {"frame-causal", ""},
             {"window:9", ""},
             {"document:50", ""},
             {"causal & document:70", ""},
             {"frame-causal", "20*tanh(score/20)"},
             {"q >= k && q - k <= 20", ""},
             {"q >= k || q / 13 == k / 13", "score - 0.01*(q - k)"},
             {"(3*q + 5*k + h + b) % 4 != 1 || q == k", "score*(1 + 0.5*h) + 0.1*frame[k]"}};
enum { N_CASES = sizeof cases / sizeof cases[0] };

/* On CUDA flex compiles its kernels for each size of heads, seconds in the emulator: wide heads are
 * tried with both expressions alone. */
static bool flex_tried(const Device *d, const Mask *m, int D) {
    return d != &cuda_device || D <= 16 || (m->has_mask_expr && m->has_score_expr);
}

/* How many backends at least do a mask: loop and padded know documents alone, sdpa no expression,
 * nor does vanilla on CUDA. */
static int backends_for(const Device *d, const Mask *m, int D) {
    const int flex = flex_tried(d, m, D) ? 2 : 0;
    if (m->has_mask_expr || m->has_score_expr) return flex + (d != &cuda_device);
    return flex + (m->offsets && !m->within ? 4 : 2);
}

/* Every backend in the registry that supports the case, or the one of that name, on one device.
 * plain: of float32, NULL in bf16. */
static int try_backends(const Device *d, const char *name, DType dtype, const Mask *m, Shape s,
                        const Call *exact, const Error *plain) {
    int ran = 0;
    Ctx ctx;
    ctx_for(&ctx, d, 2);
    for (int i = 0; attn_backends[i]; i++) {
        const AttnBackend *b = attn_backends[i];
        if (name ? strcmp(name, b->name) != 0
                 : !flex_tried(d, m, s.D) && !strncmp(b->name, "flex", 4))
            continue;
        Call c = call_make(s, dtype, m, exact->a.scale);
        if (!b->supports(&ctx, &c.a)) {
            char what[512];
            Err e;
            snprintf(what, sizeof what, "%s on %s, %s, mask %s, B %d H %d Tq %d Tk %d D %d",
                     b->name, d->name, dtype_name(dtype), m->text, s.B, s.H, s.Tq, s.Tk, s.D);
            if (b->prepare(&ctx, &c.a, &e)) fail_msg("%s: %s", what, e.text);
            run_backend(&ctx, b, &c);
            check_sentinels(&c, what);
            const Error got = compare(&c, exact);
            const Error rounded = plain ? *plain : plain_error_rounded(&c, exact);
            check_errors(&got, &rounded, what);
            ran++;
        }
        call_free(&c);
    }
    ctx_free(&ctx);
    return ran;
}

/* The same on all devices, in one dtype. */
static void try_dtype(DType dtype, const char *name, const Mask *m, Shape s, float scale) {
    const bool bf16 = dtype == DT_BF16;
    Call exact = call_make_from(s, DT_F64, bf16, m, scale);
    Call single = call_make_from(s, DT_F32, bf16, m, scale);
    run_plain(&exact);
    run_plain(&single);
    const Error plain = compare(&single, &exact);
    for (int d = 0; devices[d]; d++) {
        if (devices[d] == &plain_device || !device_tested(devices[d])) continue;
        if (bf16 && !devices[d]->has_bf16) continue;
        assert_in_range(try_backends(devices[d], name, dtype, m, s, &exact, bf16 ? NULL : &plain),
                        name ? 1 : backends_for(devices[d], m, s.D), 100);
    }
    call_free(&exact);
    call_free(&single);
}

static void try_everywhere(const Mask *m, Shape s, float scale) {
    try_dtype(DT_F32, NULL, m, s, scale);
    if (device_tested(&cuda_device)) try_dtype(DT_BF16, NULL, m, s, scale);
}

static void every_backend_is_right(void **state) {
    (void)state;
    for (int i = 0; i < N_CASES; i++) {
        Mask m;
        mask_for(&m, cases[i].mask, cases[i].score);
        for (int j = 0; j < N_SHAPES; j++)
            try_everywhere(&m, shapes[j], 1 / sqrtf((float)shapes[j].D));
        mask_free(&m);
    }
}

/* So many heads that a block of sdpa's backward on CUDA takes two tiles of keys, one after the
 * other; of an expression's plan the even heads visit one of them, the odd ones the other. */
static void many_heads(void **state) {
    (void)state;
    Mask m;
    static const char *const masks[] = {"full", "h % 2 ? k < 40 : k >= 160"};
    for (int i = 0; i < 2; i++) {
        mask_for(&m, masks[i], "");
        try_everywhere(&m, (Shape){2, 165, 5, 200, 4}, 0.5f);
        mask_free(&m);
    }
}

/* Heads of 96 and of 128 numbers: what sdpa on CUDA makes of them in bf16 depends on the shared
 * memory of a block, so this runs on more than one emulated device (dev/test). */
static void wide_heads(void **state) {
    (void)state;
    static const char *const masks[] = {"full", "frame-causal", "document:50"};
    static const Shape wide[] = {{1, 2, 70, 140, 96}, {1, 3, 140, 140, 90}, {1, 2, 140, 140, 128}};
    for (int i = 0; i < 3; i++) {
        Mask m;
        mask_for(&m, masks[i], "");
        for (int j = 0; j < 3; j++) try_everywhere(&m, wide[j], 0.1f);
        mask_free(&m);
    }
}

/* bf16 over several tiles of queries and of 128 keys, which some of the queries see whole, in part,
 * by half, in turns or not at all, and more of them than there are multiprocessors in the emulator:
 * what the kernels for Hopper distinguish. A maximum that jumps from tile to tile (scale 8). */
static void several_tiles(void **state) {
    (void)state;
    static const struct {
        const char *name, *mask, *score;
        Shape shape;
        float scale;
    } tiled[] = {{"sdpa", "frame-causal", "", {1, 2, 270, 390, 64}, 0.125f},
                 {"sdpa", "window:100", "", {1, 2, 200, 330, 128}, 0.088f},
                 {"sdpa", "document:50", "", {1, 2, 200, 200, 128}, 0.088f},
                 {"sdpa", "full", "", {1, 2, 1, 129, 64}, 0.125f},
                 {"sdpa", "full", "", {2, 2, 3, 65, 128}, 0.088f},
                 {"sdpa", "causal", "", {2, 6, 65, 196, 64}, 8},
                 {"flex",
                  "(q + 8) / 64 % 2 == k / 128 % 2",
                  "score - 0.01*(q - k)",
                  {1, 2, 270, 390, 64},
                  0.125f}};
    if (!device_tested(&cuda_device)) return;
    for (size_t i = 0; i < sizeof tiled / sizeof *tiled; i++) {
        Mask m;
        Err e;
        if (mask_init(&m, tiled[i].mask, tiled[i].score, "", 390, 65, 2, 6, &e))
            fail_msg("%s", e.text);
        keep_code(&m);
        try_dtype(DT_BF16, tiled[i].name, &m, tiled[i].shape, tiled[i].scale);
        mask_free(&m);
    }
}

/* So many heads that a block of the backward for Hopper takes two tiles of keys one after the
 * other: queries upwards, then downwards, and its sums of dq are added to. */
static void chunks_of_keys(void **state) {
    (void)state;
    if (!device_tested(&cuda_device)) return;
    Mask m;
    Err e;
    if (mask_init(&m, "window:300", "", "", 1300, 1, 1, 34, &e)) fail_msg("%s", e.text);
    try_dtype(DT_BF16, "sdpa", &m, (Shape){1, 34, 70, 1300, 64}, 0.125f);
    try_dtype(DT_BF16, "sdpa", &m, (Shape){1, 34, 70, 1300, 128}, 0.088f);
    mask_free(&m);
}

/* The same bits again on CUDA, from a second call in the same context. */
static void twice(void **state) {
    (void)state;
    if (!device_tested(&cuda_device)) return;
    Mask m;
    mask_for(&m, "causal", "");
    const Shape s = {2, 6, 65, 196, 64};
    Call first = call_make(s, DT_BF16, &m, 0.125f), again = call_make(s, DT_BF16, &m, 0.125f);
    Ctx ctx;
    ctx_for(&ctx, &cuda_device, 2);
    run_backend(&ctx, attn_find("sdpa"), &first);
    run_backend(&ctx, attn_find("sdpa"), &again);
    for (int t = OUT; t < N_TENSORS; t++)
        assert_memory_equal(first.block[t], again.block[t], block_bytes(&first, t));
    ctx_free(&ctx);
    call_free(&first);
    call_free(&again);
    mask_free(&m);
}

/* Documents that come with the batch: one mask, other documents each time. */
static void documents_of_a_batch(void **state) {
    (void)state;
    static const int lengths[][12] = {
        {1, 2},      {1, 1, 2, 1, 1},       {27},         {1, 2, 1, 3, 1, 1, 27, 5, 1, 1, 10, 1},
        {4, 64, 16}, {1, 113, 1, 1, 17, 1}, {49, 48, 97}, {193}};
    static const Shape heads[] = {
        {.B = 1, .H = 8, .D = 16}, {.B = 1, .H = 1, .D = 128}, {.B = 1, .H = 3, .D = 12}};
    Mask m;
    Err e;
    if (mask_init_documents(&m, "document", "", "", 8, &e)) fail_msg("%s", e.text);
    keep_code(&m);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        int32_t offsets[13] = {0};
        int n = 0;
        for (; n < 12 && lengths[i][n]; n++) offsets[n + 1] = offsets[n] + lengths[i][n];
        mask_set_documents(&m, offsets, n);
        assert_int_equal(backends_for(&plain_device, &m, 16), 6);
        for (size_t j = 0; j < sizeof heads / sizeof *heads; j++) {
            Shape s = heads[j];
            s.Tq = s.Tk = offsets[n];
            try_everywhere(&m, s, 1 / sqrtf((float)s.D));
        }
    }
    mask_free(&m);
}

/* Scores of hundreds: one key takes nearly all, the others' shares vanish, the running maximum
 * jumps. Heads of 56 numbers: rows are moved 16 bytes at a time, by kernels for any GPU. */
static void peaked_rows(void **state) {
    (void)state;
    static const struct {
        const char *mask;
        float scale;
    } peaked[] = {{"frame-causal", 10}, {"document:90", 3}};
    for (int i = 0; i < 2; i++) {
        Mask m;
        mask_for(&m, peaked[i].mask, "");
        try_everywhere(&m, (Shape){1, 2, 193, 193, 56}, peaked[i].scale);
        mask_free(&m);
    }
}

/* Gradients that nobody wants are left out, and the others do not change. */
static void unwanted_gradients(void **state) {
    (void)state;
    Mask m;
    mask_for(&m, "document:21", "");
    Ctx ctx;
    ctx_for(&ctx, device_find(only_device ? only_device : "cpu", NULL), 2);
    for (int i = 0; attn_backends[i]; i++) {
        const Shape s = {1, 2, 65, 65, 16};
        Call all = call_make(s, DT_F32, &m, 0.25f), none = call_make(s, DT_F32, &m, 0.25f);
        assert_null(attn_backends[i]->supports(&ctx, &all.a));
        run_backend(&ctx, attn_backends[i], &all);
        none.a.dk = none.a.dq = NULL;
        run_backend(&ctx, attn_backends[i], &none);
        assert_memory_equal(all.block[DV], none.block[DV], all.n[DV] * sizeof(float));
        call_free(&all);
        call_free(&none);
    }
    ctx_free(&ctx);
    mask_free(&m);
}

/* Our own kernels: the same bits for any number of threads. The library's products promise that
 * for one number of threads alone. */
static void threads_change_no_bit(void **state) {
    Mask m;
    mask_for(&m, *state, "");
    const Ctx cpu = {.dev = device_find("cpu", NULL)};
    for (int i = 0; attn_backends[i]; i++) {
        const bool library =
            !strcmp(attn_backends[i]->name, "vanilla") || !strcmp(attn_backends[i]->name, "loop");
        const Shape s = {2, 3, 193, 193, 32};
        if (attn_backends[i]->supports(&cpu, &(AttnArgs){.dtype = DT_F32, .mask = &m})) continue;
        Call first = call_make(s, DT_F32, &m, 1);
        for (int threads = 1; threads <= 3; threads++) {
            Ctx ctx;
            ctx_for(&ctx, device_find("cpu", NULL), library ? 2 : threads);
            Call c = call_make(s, DT_F32, &m, 1);
            run_backend(&ctx, attn_backends[i], threads == 1 ? &first : &c);
            for (int t = OUT; threads > 1 && t < N_TENSORS; t++)
                if (memcmp(first.block[t], c.block[t], c.n[t] * sizeof(float)))
                    fail_msg("%s: %s differs with %d threads", attn_backends[i]->name,
                             tensor_names[t], threads);
            call_free(&c);
            ctx_free(&ctx);
        }
        call_free(&first);
    }
    mask_free(&m);
}

/* Where the plain loops give NaN, so does every backend. */
static void nan_comes_out(void **state) {
    Mask m;
    mask_for(&m, *state, "");
    for (int bad = Q; bad <= DOUT; bad++)
        for (int d = 0; devices[d]; d++) {
            if (devices[d] == &plain_device || !device_tested(devices[d])) continue;
            Ctx ctx;
            ctx_for(&ctx, devices[d], 2);
            const Shape s = {1, 2, 150, 150, 20};
            Call plain = call_make(s, DT_F32, &m, 0.25f);
            set(&plain, bad, 70 * plain.step[bad] + 3, NAN);
            run_plain(&plain);
            for (int i = 0; attn_backends[i]; i++) {
                if (attn_backends[i]->supports(&ctx, &plain.a)) continue;
                Call c = call_make(s, DT_F32, &m, 0.25f);
                set(&c, bad, 70 * c.step[bad] + 3, NAN);
                run_backend(&ctx, attn_backends[i], &c);
                int64_t found = 0;
                for (int t = OUT; t < N_TENSORS; t++)
                    for (size_t j = 0; j < c.n[t]; j++)
                        if (isnan(get(&plain, t, j))) {
                            found++;
                            if (!isnan(get(&c, t, j)))
                                fail_msg("%s on %s: NaN in %s, but %s[%zu] is %g",
                                         attn_backends[i]->name, devices[d]->name,
                                         tensor_names[bad], tensor_names[t], j, get(&c, t, j));
                        }
                assert_true(found > 0);
                call_free(&c);
            }
            call_free(&plain);
            ctx_free(&ctx);
        }
    mask_free(&m);
}

/* The plain backward in float64 is the derivative of the plain forward: central differences of the
 * loss sum(out dout). */
static void finite_differences(void **state) {
    (void)state;
    Mask m;
    mask_for(&m, "q >= k && q - k <= 3 || k == 0", "");
    const Shape s = {2, 2, 5, 9, 6};
    Call c = call_make(s, DT_F64, &m, 0.5f), moved = call_make(s, DT_F64, &m, 0.5f);
    run_plain(&c);
    moved.a.workspace = malloc(sizeof(double) * (size_t)s.Tk);
    for (int t = Q; t <= V; t++)
        for (size_t i = 0; i < c.n[t]; i++) {
            if (i % c.step[t] >= c.row[t]) continue;
            const double h = 1e-5, x = get(&c, t, i);
            double loss[2] = {0};
            for (int side = 0; side < 2; side++) {
                set(&moved, t, i, side ? x + h : x - h);
                plain_attn(&moved.a, false);
                for (size_t j = 0; j < c.n[OUT]; j++)
                    if (j % c.step[OUT] < c.row[OUT])
                        loss[side] += get(&moved, OUT, j) * get(&c, DOUT, j);
            }
            set(&moved, t, i, x);
            const double expected = (loss[1] - loss[0]) / (2 * h), got = get(&c, t + DQ - Q, i);
            if (!(fabs(got - expected) < 1e-8 * (1 + fabs(expected))))
                fail_msg("%s[%zu]: %.12g, by differences %.12g", tensor_names[t + DQ - Q], i, got,
                         expected);
        }
    free(moved.a.workspace);
    call_free(&c);
    call_free(&moved);
    mask_free(&m);
}

static void choices(void **state) {
    (void)state;
    Mask plain, expression;
    mask_for(&plain, "causal", "");
    mask_for(&expression, "q >= k", "score*0.5");
    Ctx ctx;
    ctx_for(&ctx, device_find("cpu", NULL), 2);
    AttnArgs a = {.B = 1, .H = 2, .Tq = 64, .Tk = 64, .D = 16, .dtype = DT_F32, .mask = &plain};
    Err e = {""};
    assert_int_equal(attn_choose(&ctx, "sdpa", &a, &e), 0);
    assert_ptr_equal(ctx.attn, attn_find("sdpa"));
    assert_int_equal(attn_choose(&ctx, "flash", &a, &e), -1);
    assert_non_null(strstr(e.text, "no such backend"));
    assert_non_null(strstr(e.text, "flex-dense"));
    assert_int_equal(attn_choose(&ctx, "loop", &a, &e), -1);
    assert_string_equal(e.text,
                        "--attn loop: it needs a mask of documents; these would work here: "
                        "auto, vanilla, sdpa, flex, flex-dense");
    a.mask = &expression;
    assert_int_equal(attn_choose(&ctx, "sdpa", &a, &e), -1);
    assert_non_null(strstr(e.text, "it has no score expressions"));
    assert_non_null(strstr(e.text, "vanilla, flex, flex-dense"));
    assert_ptr_equal(ctx.attn, attn_find("sdpa")); /* a refusal changes nothing */
    assert_int_equal(attn_choose(&ctx, "auto", &a, &e), 0);
    assert_ptr_not_equal(ctx.attn, attn_find("sdpa"));
    assert_null(attn_find("flash"));
    ctx_free(&ctx);
    mask_free(&plain);
    mask_free(&expression);
}

/* What loop and padded decline, and why; documents by an expression are documents. */
static void documents_alone(void **state) {
    (void)state;
    static const struct {
        const char *mask, *score, *why;
    } bad[] = {{"causal", "", "it needs a mask of documents"},
               {"q / 7 == k / 7", "", "it needs a mask of documents"},
               {"causal & document:70", "",
                "a query sees its whole document there, and this mask hides some"},
               {"document:70", "score*0.5", "it has no score expressions"}};
    static const char *const names[] = {"loop", "padded"};
    const Ctx cpu = {.dev = device_find("cpu", NULL)};
    Mask documents;
    Err e;
    if (mask_init_documents(&documents, "doc[k] == doc[q]", "", "", 1, &e)) fail_msg("%s", e.text);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Mask m;
        mask_for(&m, bad[i].mask, bad[i].score);
        for (int j = 0; j < 2; j++)
            assert_string_equal(
                attn_find(names[j])->supports(&cpu, &(AttnArgs){.dtype = DT_F32, .mask = &m}),
                bad[i].why);
        mask_free(&m);
    }
    for (int j = 0; j < 2; j++) {
        AttnArgs a = {.dtype = DT_F32, .mask = &documents};
        assert_null(attn_find(names[j])->supports(&cpu, &a));
        a.dtype = DT_F64;
        assert_string_equal(attn_find(names[j])->supports(&cpu, &a),
                            "it computes in float32 alone");
    }
    mask_free(&documents);
}

/* What attn_choose "auto" prints, in text. */
static void auto_prints(Ctx *c, const AttnArgs *a, char *text, size_t size) {
    FILE *f = tmpfile();
    assert_non_null(f);
    fflush(stdout);
    const int out = dup(STDOUT_FILENO);
    dup2(fileno(f), STDOUT_FILENO);
    Err e = {""};
    const int status = attn_choose(c, "auto", a, &e);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    close(out);
    rewind(f);
    text[fread(text, 1, size - 1, f)] = 0;
    fclose(f);
    if (status) fail_msg("%s", e.text);
}

/* A line for each backend, with its time or with its reason, and the one that was taken. */
static void automatic(void **state) {
    (void)state;
    static const char *const masks[] = {"causal", "document:9"};
    Ctx ctx;
    ctx_for(&ctx, device_find("cpu", NULL), 2);
    for (int i = 0; i < 2; i++) {
        Mask m;
        mask_for(&m, masks[i], "");
        AttnArgs a = {.B = 2, .H = 3, .Tq = 70, .Tk = 70, .D = 16, .dtype = DT_F32, .mask = &m};
        char text[4096], line[128];
        auto_prints(&ctx, &a, text, sizeof text);
        for (int j = 0; attn_backends[j]; j++) {
            const AttnBackend *b = attn_backends[j];
            const char *why = b->supports(&ctx, &a);
            snprintf(line, sizeof line, "\n%-12s  %s%s", b->name, why ? "left out: " : "",
                     why ? why : "");
            if (!strstr(text, line)) fail_msg("no line '%s' in\n%s", line + 1, text);
        }
        assert_int_equal(strstr(text, "left out") != NULL, i == 0);
        snprintf(line, sizeof line, "\nattention: %s\n", ctx.attn->name);
        assert_non_null(strstr(text, line));
        mask_free(&m);
    }
    ctx_free(&ctx);
}

int main(int argc, char **argv) {
    device_choose(argc, argv);
    static char causal[] = "causal", frames[] = "frame-causal", documents[] = "document:55";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_backend_is_right),
        cmocka_unit_test(many_heads),
        cmocka_unit_test(several_tiles),
        cmocka_unit_test(chunks_of_keys),
        cmocka_unit_test(twice),
        cmocka_unit_test(wide_heads),
        cmocka_unit_test(documents_of_a_batch),
        cmocka_unit_test(peaked_rows),
        cmocka_unit_test(unwanted_gradients),
        cmocka_unit_test_prestate(nan_comes_out, causal),
        cmocka_unit_test_prestate(nan_comes_out, documents),
    };
    const struct CMUnitTest of_the_cpu[] = {
        cmocka_unit_test_prestate(threads_change_no_bit, frames),
        cmocka_unit_test_prestate(threads_change_no_bit, documents),
        cmocka_unit_test(finite_differences),
        cmocka_unit_test(choices),
        cmocka_unit_test(documents_alone),
        cmocka_unit_test(automatic),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + (only_device ? 0 : cmocka_run_group_tests(of_the_cpu, NULL, NULL));
}
