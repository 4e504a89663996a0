/* Masks by name against their definitions, expressions, and what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/attention.h"
#include "kernels/flex/flex.h"

enum { T = 41, S = 6 };

static bool sees_full(int q, int k) { return q >= 0 && k >= 0; }
static bool sees_causal(int q, int k) { return k <= q; }
static bool sees_frame(int q, int k) { return k <= q || q / S == k / S; }
static bool sees_window(int q, int k) { return q - 5 < k && k <= q; }
static bool sees_document(int q, int k) { return q / 9 == k / 9; }
static bool sees_both(int q, int k) { return sees_frame(q, k) && sees_document(q, k); }
static bool sees_three(int q, int k) {
    return sees_causal(q, k) && sees_document(q, k) && sees_window(q, k);
}
static bool sees_odd(int q, int k) { return (q + k) % 3 == 0 || q == k; }

static const struct {
    const char *text;
    bool (*sees)(int q, int k);
    bool expression;
} cases[] = {
    {"full", sees_full, false},
    {"causal", sees_causal, false},
    {"frame-causal", sees_frame, false},
    {"window:5", sees_window, false},
    {"document:9", sees_document, false},
    {"frame-causal&document:9", sees_both, false},
    {" causal & document:9 &window:5 ", sees_three, false},
    {"causal & full", sees_causal, false},
    {"1", sees_full, true},
    {"q >= k", sees_causal, true},
    {"q >= k || frame[q] == frame[k]", sees_frame, true},
    {"frame[q] >= frame[k]", sees_frame, true},
    {"q - 5 < k && k <= q", sees_window, true},
    {"q / 9 == k / 9", sees_document, true},
    {"(q + k) % 3 == 0 || q == k", sees_odd, true},
};
enum { N_CASES = sizeof cases / sizeof *cases };

static void make(Mask *m, const char *text, const char *score, int B, int H) {
    Err e = {""};
    if (mask_init(m, text, score, "", T, S, B, H, &e)) fail_msg("%s", e.text);
}

static void test_every_mask(void **state) {
    (void)state;
    static const int shapes[][3] = {/* Tq Tk offset */
                                    {T, T, 0},
                                    {S, T, T - S},
                                    {S, 18, 12},
                                    {1, 1, 0},
                                    {7, 20, 3}};
    for (int i = 0; i < N_CASES; i++) {
        Mask m;
        make(&m, cases[i].text, "", 1, 1);
        assert_string_equal(m.text, cases[i].text);
        assert_int_equal(m.T, T);
        assert_int_equal(m.has_mask_expr, cases[i].expression);
        assert_false(m.has_score_expr);
        assert_int_equal(m.flex != NULL, cases[i].expression);
        assert_int_equal(m.lo == NULL, cases[i].expression);
        assert_int_equal(m.hi == NULL, cases[i].expression);
        for (int q = 0; q < T; q++) {
            for (int k = 0; k < T; k++) {
                const bool want = cases[i].sees(q, k);
                if (mask_sees(&m, 0, 0, q, k) != want) fail_msg("%s: %d %d", m.text, q, k);
                if (m.lo) assert_int_equal(m.lo[q] <= k && k < m.hi[q], want);
            }
        }
        for (size_t j = 0; j < sizeof shapes / sizeof *shapes; j++) {
            const int *s = shapes[j];
            int want = 0;
            for (int q = s[2]; q < s[2] + s[0]; q++)
                for (int k = 0; k < s[1]; k++) want += cases[i].sees(q, k);
            for (int again = 0; again < 2; again++)
                assert_true(mask_visible(&m, s[0], s[1], s[2]) == (double)want);
        }
        mask_free(&m);
        assert_null(m.flex);
        assert_null(m.lo);
    }
}

/* Numbers beyond T are masks too: a window or a document that holds everything. */
static void test_large_numbers(void **state) {
    (void)state;
    Mask m;
    make(&m, "window:2147483647 & document:2147483647", NULL, 1, 1);
    for (int q = 0; q < T; q++) {
        assert_int_equal(m.lo[q], 0);
        assert_int_equal(m.hi[q], q + 1);
    }
    mask_free(&m);
}

static void test_scores_and_arrays(void **state) {
    (void)state;
    Mask m;
    make(&m, "document:9", "score - 2*abs(doc[q] - doc[k]) + frame[k]", 1, 1);
    assert_true(m.has_score_expr && !m.has_mask_expr && m.lo && m.flex);
    assert_true(flex_has_score(m.flex) && !flex_has_mask(m.flex));
    assert_true(flex_eval_score(m.flex, 0.5f, 0, 0, 20, 3) == 0.5f - 2 * 2 + 0);
    assert_true(flex_eval_score(m.flex, 0.5f, 0, 0, 20, 25) == 0.5f + 4);
    mask_free(&m);
    make(&m, "q >= k", "score*(h + 1)", 1, 4);
    assert_true(m.has_score_expr && m.has_mask_expr && !m.lo);
    mask_set_build(&m, "/nowhere", "no-such-compiler");
    Err e;
    assert_null(flex_module(m.flex, "", "", &e));
    mask_free(&m);
    make(&m, "causal", NULL, 1, 1);
    mask_set_build(&m, "/nowhere", NULL);
    mask_free(&m);
}

static void test_batch_and_head(void **state) {
    (void)state;
    Mask m;
    make(&m, "q >= k && (q - k) <= 3*(h + 1) && (b < 1 || k + b > q)", "", 2, 3);
    double visible = 0;
    for (int b = 0; b < 2; b++) {
        for (int h = 0; h < 3; h++) {
            for (int q = 0; q < T; q++) {
                for (int k = 0; k < T; k++) {
                    const bool want = q >= k && q - k <= 3 * (h + 1) && (b < 1 || k + b > q);
                    assert_int_equal(mask_sees(&m, b, h, q, k), want);
                    visible += want;
                }
            }
        }
    }
    assert_true(fabs(mask_visible(&m, T, T, 0) - visible / 6) < 1e-9);
    mask_free(&m);
}

static void test_refusals(void **state) {
    (void)state;
    static const char long_text[] =
        "q >= k || q == 1 || q == 2 || q == 3 || q == 4 || q == 5 || q == 6 || q == 7 || q == 8 || "
        "q == 1 || q == 2 || q == 3 || q == 4 || q == 5 || q == 6 || q == 7 || q == 8 || "
        "q == 1 || q == 2 || q == 3 || q == 4 || q == 5 || q == 6 || q == 7 || q == 8 || q == 9";
    static const struct {
        const char *mask, *score, *says;
    } refused[] = {
        {"", "", "--mask is empty"},
        {"  ", "", "--mask is empty"},
        {long_text, "", "at most 255 are kept"},
        {"casual", "", "unknown name 'casual'"},
        {"window", "", "found '' for the number"},
        {"window:", "", "found '' for the number"},
        {"window:0", "", "found '0' for the number"},
        {"window:-3", "", "found '-3' for the number"},
        {"window:5x", "", "found '5x' for the number"},
        {"window:99999999999", "", "found '99999999999'"},
        {"document:none", "", "document:128"},
        {"causal:4", "", "only window and document take a number"},
        {"document:4&document:5", "", "document occurs twice"},
        {"causal & q > 3", "", "join with '&' to each other alone"},
        {"causal &", "", "--mask: "},
        {"& causal", "", "--mask: "},
        {"q >= (k", "", "expected ')'"},
        {"k > q", "", "the query at position q 40 no key to see"},
        {"q - k > 0 || h == 0 && q == k", "", "q 0, h 1 no key to see"},
        {"doc[q] == doc[k]", "", "unknown name 'doc'"},
        {"causal", "score - doc[q]", "unknown name 'doc'"},
        {"causal", "score +", "--score: expected a value"},
        {"causal", "frame[q + 1] + score", "frame[41] is outside"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        Mask m;
        Err e = {""};
        if (!mask_init(&m, refused[i].mask, refused[i].score, "", T, S, 1, 2, &e))
            fail_msg("accepted: %s %s", refused[i].mask, refused[i].score);
        if (!strstr(e.text, refused[i].says)) fail_msg("'%s': %s", refused[i].mask, e.text);
        assert_null(m.lo);
        assert_null(m.hi);
        assert_null(m.flex);
    }
}

static void test_documents_by_name(void **state) {
    (void)state;
    Mask m;
    make(&m, "document:9", "", 2, 1);
    assert_int_equal(m.n_docs, 5);
    assert_int_equal(m.longest, 9);
    assert_false(m.within);
    for (int d = 0; d <= 5; d++) assert_int_equal(m.offsets[d], d < 5 ? 9 * d : T);
    mask_free(&m);
    make(&m, "document:100 & causal", "", 1, 1);
    assert_int_equal(m.n_docs, 1);
    assert_int_equal(m.longest, T);
    assert_int_equal(m.offsets[1], T);
    assert_true(m.within);
    mask_free(&m);
    make(&m, "causal", "", 1, 1);
    assert_null(m.offsets);
    mask_free(&m);
}

/* Documents of each batch, by name, as an expression, and with a rest. */
static void test_documents_of_batches(void **state) {
    (void)state;
    static const struct {
        const char *text, *score;
        bool rest, causal;
    } made[] = {{"document", "", false, false},
                {" document ", "score - 0.1*abs(q - k)", false, false},
                {"doc[q] == doc[k]", "", false, false},
                {"((doc[k]) == doc[q]) && doc[q] == doc[k] && 1", "", false, false},
                {"doc[k] == doc[q] && k <= q", "", true, true},
                {"q >= k && (doc[q] == doc[k] && 3 > 2)", "score*(h + 1)", true, true}};
    static const int32_t batches[][6] = {
        {0, 1, 2, 20, 21, 40}, {0, 300, 301, 302, 303, 310}, {0, 1, 2, 3, 4, 5}};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        Mask m;
        Err e = {""};
        if (mask_init_documents(&m, made[i].text, made[i].score, "", 2, &e)) fail_msg("%s", e.text);
        assert_int_equal(m.T, 0);
        assert_int_equal(m.n_docs, 0);
        assert_non_null(m.offsets);
        for (size_t j = 0; j < sizeof batches / sizeof *batches; j++) {
            mask_set_documents(&m, batches[j], 5);
            assert_int_equal(m.T, batches[j][5]);
            assert_int_equal(m.n_docs, 5);
            assert_int_equal(m.within, made[i].rest);
            assert_int_equal(m.has_mask_expr, made[i].rest);
            assert_int_equal(m.lo == NULL, made[i].rest);
            assert_int_equal(m.has_score_expr, *made[i].score != 0);
            assert_int_equal(m.flex != NULL, made[i].rest || *made[i].score);
            int visible = 0, longest = 0;
            for (int d = 0; d < 5; d++) {
                const int n = batches[j][d + 1] - batches[j][d];
                assert_int_equal(m.offsets[d + 1], batches[j][d + 1]);
                visible += made[i].causal ? n * (n + 1) / 2 : n * n;
                if (longest < n) longest = n;
            }
            assert_int_equal(m.longest, longest);
            for (int again = 0; again < 2; again++)
                assert_true(mask_visible(&m, m.T, m.T, 0) == (double)visible);
            for (int q = 0; q < m.T; q++) {
                for (int k = 0; k < m.T; k++) {
                    int dq = 0, dk = 0;
                    while (batches[j][dq + 1] <= q) dq++;
                    while (batches[j][dk + 1] <= k) dk++;
                    const bool want = dq == dk && (!made[i].causal || k <= q);
                    assert_int_equal(mask_sees(&m, 0, 1, q, k), want);
                }
            }
        }
        mask_free(&m);
        assert_null(m.offsets);
    }
}

static void test_documents_refused(void **state) {
    (void)state;
    static const struct {
        const char *mask, *score, *says;
    } refused[] = {
        {"", "", "--mask is empty"},
        {"causal", "", "the one mask by name is document"},
        {"document:9", "", "the one mask by name is document"},
        {"document & causal", "", "the one mask by name is document"},
        {"q >= k", "", "join 'doc[q] == doc[k]' to the rest by &&"},
        {"doc[q] == doc[k] || q == k", "", "in a way that is recognised"},
        {"doc[q] != doc[k] || q == k", "", "in a way that is recognised"},
        {"doc[q] == doc[q] && q == k", "", "in a way that is recognised"},
        {"doc[q] - doc[k] == 0", "", "in a way that is recognised"},
        {"doc[q] == doc[k + 0] && !(doc[q] == doc[k])", "", "no key to see"},
        {"doc[q] == doc[k] && k < q", "", "the query at position q 0 no key to see"},
        {"doc[q] == frame[k]", "", "'frame' is no name in an expression"},
        {"doc[q] == doc[k", "", "expected ']'"},
        {"document", "score +", "--score: expected a value"},
        {"document", "score + doc[q + 1]", "doc[232] is outside"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        Mask m;
        Err e = {""};
        if (!mask_init_documents(&m, refused[i].mask, refused[i].score, "", 2, &e))
            fail_msg("accepted: %s %s", refused[i].mask, refused[i].score);
        if (!strstr(e.text, refused[i].says)) fail_msg("'%s': %s", refused[i].mask, e.text);
        assert_null(m.offsets);
        assert_null(m.code);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mask),
        cmocka_unit_test(test_large_numbers),
        cmocka_unit_test(test_scores_and_arrays),
        cmocka_unit_test(test_batch_and_head),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_documents_by_name),
        cmocka_unit_test(test_documents_of_batches),
        cmocka_unit_test(test_documents_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
