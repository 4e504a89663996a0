/* Attention over documents, in the backends that go through them one by one: every way that the
 * kernel takes by a document's length, masks with a rest, score expressions, new documents on one
 * mask; against the plain loops in float64. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>

#include "kernels/flex/flex.h"
#include "test/attention_call.h"
#include "test/scratch.h"

enum { MAX_DOCS = 1024 };

typedef struct Batch {
    int n_docs;
    int32_t offsets[MAX_DOCS + 1];
} Batch;

static void batch_add(Batch *b, int rows, int times) {
    for (int i = 0; i < times; i++, b->n_docs++) {
        assert_true(b->n_docs < MAX_DOCS);
        b->offsets[b->n_docs + 1] = b->offsets[b->n_docs] + rows;
    }
}

static int batch_rows(const Batch *b) { return b->offsets[b->n_docs]; }

/* Lengths around every limit of the kernel, runs of one row between them. */
static Batch batch_mixed(void) {
    static const int rows[] = {2, 8, 9, 27, 3, 16, 17, 5, 64, 1, 130, 4, 7};
    Batch b = {0};
    batch_add(&b, 1, 5);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        batch_add(&b, rows[i], 1 + (i == 0));
        batch_add(&b, 1, i % 3 ? 0 : 2);
    }
    return b;
}

static Batch batch_random(uint64_t seed, int n_docs, int longest) {
    Batch b = {0};
    for (int d = 0; d < n_docs; d++) {
        float u;
        rng_uniform((RngKey){seed, 0, RNG_TEST}, (uint64_t)d, &u, 1);
        batch_add(&b, 1 + (int)(u * u * u * (float)longest), 1);
    }
    return b;
}

static Batch batch_long(void) {
    Batch b = {0};
    batch_add(&b, 1, 2);
    batch_add(&b, 300, 1);
    batch_add(&b, 12, 2);
    batch_add(&b, 257, 1);
    batch_add(&b, 256, 1);
    return b;
}

static const char *const backends[] = {"sdpa", "flex", "flex-dense", "vanilla"};
enum { N_BACKENDS = 4 };

static void set_mask(Mask *m, const char *mask, const char *score, void **state) {
    Err e;
    if (mask_init_documents(m, mask, score, "", 8, &e)) fail_msg("%s", e.text);
    mask_set_build(m, *state, NULL);
}

/* All of the backends that do the mask, on every device, against the plain loops. */
static void try_batch(Mask *m, const Batch *batch, int H, int D) {
    mask_set_documents(m, batch->offsets, batch->n_docs);
    const Shape s = {1, H, batch_rows(batch), batch_rows(batch), D};
    const float scale = 1 / sqrtf((float)D);
    Call exact = call_make(s, DT_F64, m, scale), single = call_make(s, DT_F32, m, scale);
    run_plain(&exact);
    run_plain(&single);
    const Error plain = compare(&single, &exact);
    int ran = 0;
    for (int d = 0; devices[d]; d++) {
        if (devices[d] == &plain_device || !device_tested(devices[d])) continue;
        Ctx ctx;
        ctx_for(&ctx, devices[d], 2);
        for (int i = 0; i < N_BACKENDS; i++) {
            const AttnBackend *b = attn_find(backends[i]);
            if (devices[d] == &cuda_device && m->T > 2000 && i > 0) continue; /* the emulator */
            Call c = call_make(s, DT_F32, m, scale);
            if (!b->supports(&ctx, &c.a)) {
                char what[512];
                Err e;
                snprintf(what, sizeof what, "%s on %s, mask %s, %d documents, T %d H %d D %d",
                         b->name, devices[d]->name, m->text, m->n_docs, m->T, H, D);
                if (b->prepare(&ctx, &c.a, &e)) fail_msg("%s: %s", what, e.text);
                run_backend(&ctx, b, &c);
                check_sentinels(&c, what);
                const Error got = compare(&c, &exact);
                check_errors(&got, &plain, what);
                ran++;
            }
            call_free(&c);
        }
        ctx_free(&ctx);
    }
    assert_true(only_device || ran >= (m->has_mask_expr || m->has_score_expr ? 3 : 4));
    call_free(&exact);
    call_free(&single);
}

static const struct {
    const char *mask, *score;
} cases[] = {
    {"document", ""},
    {"doc[k] == doc[q] && (k <= q || (q + k + h) % 3 == 0)", ""},
    {"doc[q] == doc[k] && k - q < 9", "(1 + 0.2*h)*score - 0.05*abs(q - k) + 0.1*(doc[q] % 5)"}};
enum { N_CASES = sizeof cases / sizeof cases[0] };

static int count_objects(const char *folder) {
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    int n = 0;
    for (const struct dirent *x; (x = readdir(dir));) n += strstr(x->d_name, ".so") != NULL;
    closedir(dir);
    return n;
}

/* One mask sees all batches, and is compiled once a processor. (CUDA's: test_flex_cuda.) */
static void every_length(void **state) {
    static const int heads[][2] = {{8, 16}, {1, 128}, {2, 20}, {3, 48}, {1, 8}, {2, 64}};
    const Batch mixed = batch_mixed(), sparse = batch_random(1, 150, 9),
                longer = batch_random(2, 12, 100);
    int n_devices = 0;
    for (int d = 0; devices[d]; d++)
        n_devices +=
            devices[d] != &plain_device && devices[d] != &cuda_device && device_tested(devices[d]);
    for (int i = 0; i < N_CASES; i++) {
        Mask m;
        const int before = count_objects(*state);
        set_mask(&m, cases[i].mask, cases[i].score, state);
        for (size_t j = 0; j < sizeof heads / sizeof *heads; j++) {
            const Batch *const batch = j % 3 == 0 ? &mixed : j % 3 == 1 ? &sparse : &longer;
            try_batch(&m, batch, heads[j][0], heads[j][1]);
        }
        assert_int_equal(count_objects(*state) - before, n_devices);
        mask_free(&m);
    }
}

static void long_documents(void **state) {
    const Batch several = batch_long();
    Batch one = {0};
    batch_add(&one, 3000, 1);
    Mask m;
    set_mask(&m, "document", "", state);
    try_batch(&m, &several, 3, 20);
    try_batch(&m, &one, 1, 8);
    mask_free(&m);
    set_mask(&m, cases[2].mask, cases[2].score, state);
    try_batch(&m, &several, 2, 16);
    mask_free(&m);
}

/* A document of one row: its output is its value, and only the value has a gradient. On CUDA dout
 * v' and delta are the same sum in two orders, so that their difference is rounding instead of 0.
 */
static void one_row_each(void **state) {
    static const int counts[] = {1, 700};
    Mask m;
    set_mask(&m, "document", "", state);
    for (int n = 0; n < 4; n++)
        for (int d = 0; devices[d]; d++) {
            if (devices[d] == &plain_device || !device_tested(devices[d])) continue;
            const double noise = devices[d] == &cuda_device ? 1e-5 : 0;
            Batch b = {0};
            batch_add(&b, 1, counts[n % 2]);
            mask_set_documents(&m, b.offsets, b.n_docs);
            const Shape s = n < 2 ? (Shape){1, 3, m.T, m.T, 16} : (Shape){1, 1, m.T, m.T, 21};
            Call c = call_make(s, DT_F32, &m, 0.25f);
            Ctx ctx;
            ctx_for(&ctx, devices[d], 2);
            run_backend(&ctx, attn_find("sdpa"), &c);
            check_sentinels(&c, devices[d]->name);
            for (size_t i = 0; i < c.n[OUT]; i++) {
                const size_t row = i / c.step[OUT], at = i % c.step[OUT];
                if (at >= c.row[OUT]) continue;
                assert_true(get(&c, OUT, i) == get(&c, V, i));
                assert_true(get(&c, DV, i) == get(&c, DOUT, i));
                assert_true(fabs(get(&c, DQ, i)) <= noise && fabs(get(&c, DK, i)) <= noise);
                if (at % (size_t)s.D) continue;
                double score = 0;
                for (size_t j = i; j < i + (size_t)s.D; j++) score += get(&c, Q, j) * get(&c, K, j);
                const double lse = get(&c, LSE, at / (size_t)s.D * (size_t)s.Tq + row);
                assert_true(fabs(lse - 0.25 * score) < 1e-5);
            }
            ctx_free(&ctx);
            call_free(&c);
        }
    mask_free(&m);
}

/* Rows that a rest hides from every key: of documents of one row, of a few, and of many. */
static void rows_that_see_nothing(void **state) {
    Batch b = {0};
    batch_add(&b, 40, 6);
    batch_add(&b, 6, 3);
    batch_add(&b, 1, 20);
    batch_add(&b, 30, 1);
    Mask m;
    set_mask(&m, "doc[q] == doc[k] && (k < 245 || k > 258 && k < 265)", "", state);
    try_batch(&m, &b, 2, 16);
    mask_free(&m);
}

/* Documents by name: the same for each b, with intervals inside them, and with keys alone. */
static void documents_by_name(void **state) {
    static const char *const masks[] = {"document:2", "document:3", "document:40 & causal",
                                        "document:7 & window:4", "document:300 & causal"};
    static const Shape shapes[] = {{2, 2, 400, 400, 16}, {1, 1, 390, 390, 20}, {1, 2, 9, 300, 16}};
    Ctx ctx;
    ctx_for(&ctx, device_find("cpu", NULL), 2);
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        Mask m;
        Err e;
        if (mask_init(&m, masks[i], "", "", 400, 1, 2, 2, &e)) fail_msg("%s", e.text);
        mask_set_build(&m, *state, NULL);
        for (size_t j = 0; j < sizeof shapes / sizeof *shapes; j++) {
            Call exact = call_make(shapes[j], DT_F64, &m, 0.25f),
                 single = call_make(shapes[j], DT_F32, &m, 0.25f);
            run_plain(&exact);
            run_plain(&single);
            const Error plain = compare(&single, &exact);
            for (int n = 0; n < N_BACKENDS; n++) {
                const AttnBackend *b = attn_find(backends[n]);
                Call c = call_make(shapes[j], DT_F32, &m, 0.25f);
                char what[512];
                snprintf(what, sizeof what, "%s, mask %s, shape %zu", b->name, m.text, j);
                if (b->prepare(&ctx, &c.a, &e)) fail_msg("%s: %s", what, e.text);
                run_backend(&ctx, b, &c);
                check_sentinels(&c, what);
                const Error got = compare(&c, &exact);
                check_errors(&got, &plain, what);
                call_free(&c);
            }
            call_free(&exact);
            call_free(&single);
        }
        mask_free(&m);
    }
    ctx_free(&ctx);
}

static Call run_sdpa(const Mask *m, Shape s, int threads, int bad_row) {
    Ctx ctx;
    ctx_for(&ctx, device_find("cpu", NULL), threads);
    Call c = call_make(s, DT_F32, m, 0.25f);
    if (bad_row >= 0) set(&c, K, (size_t)bad_row * c.step[K] + 3, NAN);
    run_backend(&ctx, attn_find("sdpa"), &c);
    ctx_free(&ctx);
    return c;
}

static void threads_change_no_bit(void **state) {
    const Batch batches[] = {batch_mixed(), batch_long(), batch_random(3, 900, 8)};
    Mask m;
    set_mask(&m, "document", "", state);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        mask_set_documents(&m, batches[i].offsets, batches[i].n_docs);
        const Shape s = {1, 3, m.T, m.T, 16};
        Call first = run_sdpa(&m, s, 1, -1);
        for (int threads = 2; threads <= 3; threads++) {
            Call c = run_sdpa(&m, s, threads, -1);
            for (int t = OUT; t < N_TENSORS; t++)
                if (memcmp(first.block[t], c.block[t], c.n[t] * sizeof(float)))
                    fail_msg("%s differs with %d threads", tensor_names[t], threads);
            call_free(&c);
        }
        call_free(&first);
    }
    mask_free(&m);
}

/* A NaN in one document's key comes out of the rows of that document, and of no other's. */
static void nan_stays_in_its_document(void **state) {
    const Batch b = batch_mixed();
    Mask m;
    set_mask(&m, "document", "", state);
    mask_set_documents(&m, b.offsets, b.n_docs);
    const Shape s = {1, 2, m.T, m.T, 16};
    Call clean = run_sdpa(&m, s, 2, -1);
    for (int doc = 0; doc < b.n_docs; doc++) {
        Call c = run_sdpa(&m, s, 2, b.offsets[doc + 1] - 1);
        for (int row = 0; row < m.T; row++) {
            const bool inside = row >= b.offsets[doc] && row < b.offsets[doc + 1];
            for (int t = OUT; t <= DV; t++)
                for (size_t d = 0; d < c.row[t]; d++) {
                    const size_t i = (size_t)row * c.step[t] + d;
                    if (inside && t == OUT && d < (size_t)s.D)
                        assert_true(isnan(get(&c, t, i)));
                    else if (!inside)
                        assert_true(get(&c, t, i) == get(&clean, t, i));
                }
        }
        call_free(&c);
    }
    call_free(&clean);
    mask_free(&m);
}

static void unwanted_gradients(void **state) {
    const Batch b = batch_mixed();
    Mask m;
    set_mask(&m, "document", "", state);
    mask_set_documents(&m, b.offsets, b.n_docs);
    const Shape s = {1, 2, m.T, m.T, 20};
    Call all = run_sdpa(&m, s, 2, -1);
    Ctx ctx;
    ctx_for(&ctx, device_find("cpu", NULL), 2);
    for (int wanted = DQ; wanted <= DV; wanted++) {
        Call c = call_make(s, DT_F32, &m, 0.25f);
        if (wanted != DQ) c.a.dq = NULL;
        if (wanted != DK) c.a.dk = NULL;
        if (wanted != DV) c.a.dv = NULL;
        run_backend(&ctx, attn_find("sdpa"), &c);
        for (int t = DQ; t <= DV; t++)
            if (t == wanted)
                assert_memory_equal(all.block[t], c.block[t], c.n[t] * sizeof(float));
            else
                assert_true(get(&c, t, 0) == (double)SENTINEL);
        call_free(&c);
    }
    ctx_free(&ctx);
    call_free(&all);
    mask_free(&m);
}

/* The factor is gone from what is compiled; the rest stays. */
static void factor_is_not_compiled(void **state) {
    static const struct {
        const char *mask, *has;
    } made[] = {{"document", "#define FLEX_HAS_REST 0\n"},
                {"doc[q] == doc[k] && 1 > 0", "#define FLEX_HAS_REST 0\n"},
                {"k <= q && (doc[k]) == doc[q]", "#define FLEX_HAS_REST 1\n"}};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        Mask m;
        set_mask(&m, made[i].mask, "", state);
        char *text = flex_prelude(m.code);
        assert_non_null(strstr(text, "#define FLEX_BY_DOCUMENT 1\n"));
        assert_non_null(strstr(text, made[i].has));
        assert_null(strstr(strstr(text, "int flex_rest("), "array"));
        free(text);
        mask_free(&m);
    }
}

int main(int argc, char **argv) {
    device_choose(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_length),
        cmocka_unit_test(long_documents),
        cmocka_unit_test(one_row_each),
        cmocka_unit_test(rows_that_see_nothing),
    };
    const struct CMUnitTest of_the_cpu[] = {
        cmocka_unit_test(documents_by_name),         cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(nan_stays_in_its_document), cmocka_unit_test(unwanted_gradients),
        cmocka_unit_test(factor_is_not_compiled),
    };
    const int failed = cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
    return failed +
           (only_device ? 0 : cmocka_run_group_tests(of_the_cpu, scratch_setup, scratch_teardown));
}
