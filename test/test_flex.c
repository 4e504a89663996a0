/* The language of flex: what it means (against C itself), what it refuses and where, derivatives
 * against finite differences, faults, plans against brute force, and a fuzzer. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/flex/flex.h"
#include "llmc_like/philox.h"

enum { T = 24 };

static int frame[T], doc[T];
static const FlexArray arrays[] = {{"frame", frame, T}, {"doc", doc, T}};

static int setup(void **state) {
    (void)state;
    for (int i = 0; i < T; i++) frame[i] = i / 5, doc[i] = i / 7;
    return 0;
}

static FlexProgram *parse(const char *mask, const char *score) {
    FlexProgram *p = NULL;
    Err e = {""};
    if (flex_parse(&p, mask, score, arrays, 2, T, 2, 3, &e)) fail_msg("%s", e.text);
    return p;
}

/* ---- the same text, once for C and once for flex ---- */

#pragma GCC diagnostic ignored "-Wparentheses"
#pragma GCC diagnostic ignored "-Wlogical-not-parentheses"
#pragma GCC diagnostic ignored "-Wbool-compare"
#pragma GCC diagnostic ignored "-Wint-in-bool-context"

static float where(int c, float a, float b) { return c ? a : b; }
static float sigmoid(float x) { return 1 / (1 + expf(-x)); }
static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }

#define INT_CASES(X)                                \
    X(q - k - 1)                                    \
    X(q - (k - 1))                                  \
    X(2 + 3 * q - k)                                \
    X((2 + 3) * q - k)                              \
    X(-q + k * -3)                                  \
    X(- -q)                                         \
    X(q / 3 * 2 + q % 3)                            \
    X(-q / 4 + -q % 4)                              \
    X((q - k) / 5)                                  \
    X((q - k) % 5)                                  \
    X((q - k) / -1)                                 \
    X(q * 7 / (k + 1) % (h + 2))                    \
    X(q >= k && q - k <= 6)                         \
    X(q < 3 || k < 5 && b)                          \
    X((q < 3 || k < 5) && b)                        \
    X(!q < 3)                                       \
    X(!(q < 3))                                     \
    X(q == k < 5)                                   \
    X(q &k == 1)                                    \
    X((q & k) == 1)                                 \
    X(q | k ^ h & 3)                                \
    X(q + 1 & k - 1 | 8)                            \
    X(q ? k ? 1 : 2 : 3)                            \
    X(q > k ? q - k : k > 4 ? 7 : k - q)            \
    X(k ? q / k : -1)                               \
    X(k != 0 && q % k == 0 || q == k)               \
    X(frame[q] >= frame[k])                         \
    X(doc[q] == doc[k] && frame[q] != frame[k])     \
    X(frame[min(k + 1, 23)] - frame[max(0, q - 1)]) \
    X(k + 1 < 24 ? frame[k + 1] : 0)                \
    X(min(q, k) * max(q, -k) + abs(q - k))          \
    X(2147483647 - q)                               \
    X(b * 100 + h * 10)                             \
    X(0.5 * q > k)                                  \
    X(!(q * 0.5) + 2)                               \
    X(q * 0.25 && k - 2.0)

/* An expression's number is its place in the list. */
#define EVALUATE(expression) \
    if (which == n++) return (expression);
#define TEXT(expression) #expression,

static int int_value(int which, int b, int h, int q, int k) {
    int n = 0;
    INT_CASES(EVALUATE)
    return 0;
}

static const char *const int_text[] = {INT_CASES(TEXT)};

static void test_ints_as_in_c(void **state) {
    (void)state;
    for (int i = 0; i < (int)(sizeof int_text / sizeof *int_text); i++) {
        /* as a score the value itself can be seen; adding 0.0 keeps it exact */
        FlexProgram *p = parse(NULL, int_text[i]);
        for (int q = 0; q < T; q++) {
            for (int k = 0; k < T; k++) {
                const int want = int_value(i, q & 1, k % 3, q, k);
                const float got = flex_eval_score(p, 9.0f, q & 1, k % 3, q, k);
                if (got != (float)want)
                    fail_msg("%s at q %d k %d: %g, C says %d", int_text[i], q, k, (double)got,
                             want);
            }
        }
        flex_free(p);
    }
}

#define FLOAT_CASES(X)                                                     \
    X(score)                                                               \
    X(score - 0.01f * (q - k))                                             \
    X(20 * tanhf(score / 20))                                              \
    X(1 / (2 + score * score))                                             \
    X(q / 2 + score / 2)                                                   \
    X(score > 0 ? score : 0.1f * score)                                    \
    X(where(q > k, score, -score))                                         \
    X(fminf(score, 1.5f) + fmaxf(score, k * 0.1f))                         \
    X(fabsf(score) * 3e-1f + .5f)                                          \
    X(floorf(score * 3) + ceilf(score * 0.7f))                             \
    X(expf(score) - exp2f(-score))                                         \
    X(logf(score *score + 1) * log2f(3 + k))                               \
    X(sqrtf(score *score + 0.5f))                                          \
    X(sigmoid(2 * score))                                                  \
    X(powf(score, 3) - powf(fabsf(score) + 1, 2.5f) + powf(score + 9, -2)) \
    X(score - exp2f(-8.0f * (h + 1) / 3) * (q - k))                        \
    X(score *(q >= k) - 5 * (b == 1))

static float float_value(int which, float score, int b, int h, int q, int k) {
    int n = 0;
    FLOAT_CASES(EVALUATE)
    return 0;
}

static const char *const float_text[] = {FLOAT_CASES(TEXT)};
enum { N_FLOAT = sizeof float_text / sizeof *float_text };

/* C's names of float functions and literals end in f. */
static void without_suffix(const char *text, char *out) {
    static const char *const names[] = {"tanh", "min", "max",  "abs", "floor", "ceil",
                                        "exp2", "exp", "log2", "log", "sqrt",  "pow"};
    while (*text) {
        const char *from = text;
        if (*text == 'f' &&
            (!strncmp(text, "fmin", 4) || !strncmp(text, "fmax", 4) || !strncmp(text, "fabs", 4)))
            from = ++text;
        for (int i = 0; i < 12 && text == from; i++) {
            const size_t n = strlen(names[i]);
            if (strncmp(text, names[i], n) || text[n] != 'f') continue;
            memcpy(out, names[i], n);
            out += n;
            text += n + 1;
        }
        if (text != from) continue;
        *out++ = *text++;
        if (text[-1] >= '0' && text[-1] <= '9' && *text == 'f') text++;
    }
    *out = '\0';
}

static float score_at(int i) { return -3.0f + 0.37f * (float)i; }

static void test_floats_as_in_c(void **state) {
    (void)state;
    for (int i = 0; i < N_FLOAT; i++) {
        char text[256];
        without_suffix(float_text[i], text);
        FlexProgram *p = parse(NULL, text);
        for (int j = 0; j < 17; j++) {
            const int q = j, k = 20 - j, h = j % 3;
            const float want = float_value(i, score_at(j), j & 1, h, q, k);
            const float got = flex_eval_score(p, score_at(j), j & 1, h, q, k);
            if (!(fabsf(got - want) <= 4e-6f * (1 + fabsf(want))))
                fail_msg("%s at %g: %.9g, C says %.9g", text, (double)score_at(j), (double)got,
                         (double)want);
        }
        flex_free(p);
    }
}

static void test_derivative_by_finite_differences(void **state) {
    (void)state;
    const float step = 0.0078125f; /* a power of 2: the difference of the arguments is exact */
    for (int i = 0; i < N_FLOAT; i++) {
        char text[256];
        without_suffix(float_text[i], text);
        if (strstr(text, "floor")) continue; /* jumps */
        FlexProgram *p = parse(NULL, text);
        for (int j = 0; j < 17; j++) {
            const int q = j, k = 20 - j, h = j % 3;
            const float x = score_at(j);
            const double high = flex_eval_score(p, x + step, 1, h, q, k);
            const double low = flex_eval_score(p, x - step, 1, h, q, k);
            const double want = (high - low) / ((double)(x + step) - (double)(x - step));
            const double got = flex_eval_score_grad(p, x, 1, h, q, k);
            if (!(fabs(got - want) <= 2e-3 * (1 + fabs(want))))
                fail_msg("d %s at %g: %g, differences say %g", text, (double)x, got, want);
        }
        flex_free(p);
    }
}

static void test_derivative_is_simple(void **state) {
    (void)state;
    static const struct {
        const char *score, *code;
    } cases[] = {
        {"score - 0.01*(q - k)", "return 1.0f;"},
        {"20*tanh(score/20)", "return (1.0f - (t1 * t1));"},
        {"floor(score)", "return 0.0f;"},
        {"q - k", "return 0.0f;"},
        {"-3*score", "return (-3.0f);"},
        {"pow(score, 2)", "return (2.0f * score);"},
        {"min(score, 5)", "return flex_select((score < 5.0f), 1.0f, 0.0f);"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        FlexProgram *p = parse(NULL, cases[i].score);
        char *text = flex_prelude(p);
        char *grad = strstr(text, "FLEX_INLINE float flex_score_grad(");
        char *end = grad ? strstr(grad, "\n}") : NULL;
        assert_non_null(end);
        *end = '\0';
        if (!strstr(grad, cases[i].code)) fail_msg("%s: %s", cases[i].score, grad);
        free(text);
        flex_free(p);
    }
}

static void test_nan_and_wrapping(void **state) {
    (void)state;
    static const char *const keep[] = {
        "score",      "min(score, 1)", "max(1, score)", "tanh(score)",    "exp(score)", "score*0",
        "abs(score)", "log(score)",    "floor(score)",  "sigmoid(score)", "sqrt(score)"};
    for (size_t i = 0; i < sizeof keep / sizeof *keep; i++) {
        FlexProgram *p = parse(NULL, keep[i]);
        if (!isnan(flex_eval_score(p, NAN, 0, 0, 1, 1))) fail_msg("%s loses NaN", keep[i]);
        flex_free(p);
    }
    FlexProgram *p = parse(NULL, "2147483647 + q");
    assert_true(flex_eval_score(p, 0, 0, 0, 1, 0) == -2147483648.0f);
    flex_free(p);
    p = parse(NULL, "(-2147483647 - 1) / (q > 3 ? -1 : 1)");
    assert_true(flex_eval_score(p, 0, 0, 0, 5, 0) == -2147483648.0f);
    flex_free(p);
}

/* Rows agree with single positions, over the edges of the interpreter's blocks. */
static void test_rows(void **state) {
    (void)state;
    enum { N = 200 };
    int half[N];
    for (int i = 0; i < N; i++) half[i] = i / 2;
    const FlexArray long_array = {"half", half, N};
    FlexProgram *p;
    Err e;
    assert_int_equal(
        flex_parse(&p, "half[q] >= half[k] || k % (h + 3) == b",
                   "score * half[k] - where(k > q, tanh(score), q)", &long_array, 1, N, 2, 2, &e),
        0);
    unsigned char sees[N];
    float score[N], out[N], grad[N];
    for (int i = 0; i < N; i++) score[i] = 0.01f * (float)(i - 90);
    for (int k0 = 0; k0 < 70; k0 += 23) {
        const int n = N - k0;
        flex_eval_mask_row(p, 1, 1, 77, k0, n, sees);
        flex_eval_score_row(p, score, 1, 1, 77, k0, n, out);
        flex_eval_score_grad_row(p, score, 1, 1, 77, k0, n, grad);
        for (int i = 0; i < n; i++) {
            assert_int_equal(sees[i], flex_eval_mask(p, 1, 1, 77, k0 + i));
            assert_int_equal(sees[i], 77 / 2 >= (k0 + i) / 2 || (k0 + i) % 4 == 1);
            assert_true(out[i] == flex_eval_score(p, score[i], 1, 1, 77, k0 + i));
            assert_true(grad[i] == flex_eval_score_grad(p, score[i], 1, 1, 77, k0 + i));
        }
    }
    flex_free(p);
}

/* ---- refusals ---- */

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *mask, *score;
        int column; /* of the caret, from 0 */
        const char *says;
    } cases[] = {
        {"q >= k && (q", NULL, 12, "expected ')' for the '(' at column 11"},
        {"q >= ", NULL, 5, "expected a value, but the expression ends"},
        {"q >= k k", NULL, 7, "expected an operator or the end"},
        {"q = k", NULL, 2, "write '=='"},
        {"q; k", NULL, 1, "';' is not part"},
        {"q # k", NULL, 2, "'#' is not part"},
        {"\"q\"", NULL, 0, "'\"' is not part"},
        {"q\\", NULL, 1, "'\\' is not part"},
        {"q >= \xc3\xa9", NULL, 5, "byte 0xc3"},
        {"q += k", NULL, 3, "'='"},
        {"x > 3", NULL, 0, "unknown name 'x'"},
        {"q > system(1)", NULL, 4, "unknown name 'system'"},
        {"causal && q > 3", NULL, 0, "'causal' is no name in an expression"},
        {"q > score", NULL, 4, "a mask cannot ask the score"},
        {"q + 0.5", NULL, 0, "a float; compare it"},
        {"0 <= q - k < 5", NULL, 11, "do not chain"},
        {"q == k == b", NULL, 7, "do not chain"},
        {"q % 2.0 == 1", NULL, 2, "'%' takes ints, and its right side is a float"},
        {"(0.5 | q) == 1", NULL, 5, "'|' takes ints, and its left side is a float"},
        {"q / 0", NULL, 2, "division by zero"},
        {"q % 0", NULL, 2, "division by zero"},
        {"q / (k - 5) > 1", NULL, 2, "division by zero at b 0, h 0, q 0, k 5"},
        {"q >= k || q % (h - 1) == 0", NULL, 12, "division by zero at b 0, h 1, q 0, k 1"},
        {"frame[q + 1] >= 0", NULL, 0, "frame[24] is outside the array"},
        {"frame[k - 1] >= 0", NULL, 0, "frame[-1] is outside the array"},
        {"frame[q", NULL, 7, "expected ']'"},
        {"frame >= 1", NULL, 6, "expected '[' after the array 'frame'"},
        {"frame[q * 0.5] > 0", NULL, 6, "an index must be an int"},
        {"min(q) > 1", NULL, 5, "'min' takes 2 arguments"},
        {"abs(q, k) > 1", NULL, 5, "expected ')' after the last of 1 argument"},
        {"min > 1", NULL, 4, "expected '('"},
        {"q ? k", NULL, 5, "expected ':' for the '?' at column 3"},
        {"12abc > 1", NULL, 0, "with nothing directly after it"},
        {"1.2.3 > 1", NULL, 0, "with nothing directly after it"},
        {"0x10 > q", NULL, 0, "with nothing directly after it"},
        {"2147483648 > q", NULL, 0, "larger than 2147483647"},
        {"1e99 > q", NULL, 0, "larger than a float"},
        {"k > q", NULL, 0, "the query at position q 23 no key to see"},
        {"k < h", NULL, 0, "the query at position q 0, h 0 no key to see"},
        {"k < b && q > 3", NULL, 0, "the query at position q 0, b 0 no key"},
        {"0", NULL, 0, "the query at position q 0 no key to see"},
        {NULL, "pow(score, k)", 11, "must be a constant"},
        {NULL, "pow(score, 65)", 11, "-64 to 64"},
        {NULL, "score +", 7, "expected a value"},
        {NULL, "score / (q / (k - 3))", 11, "division by zero at b 0, h 0, q 0, k 3"},
        {NULL, "sin(score)", 0, "unknown name 'sin'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        FlexProgram *p = NULL;
        Err e = {""};
        const char *text = cases[i].mask ? cases[i].mask : cases[i].score;
        if (!flex_parse(&p, cases[i].mask, cases[i].score, arrays, 2, T, 2, 3, &e))
            fail_msg("accepted: %s", text);
        assert_null(p);
        if (!strstr(e.text, cases[i].says)) fail_msg("%s: %s", text, e.text);
        if (strncmp(e.text, cases[i].mask ? "--mask: " : "--score: ", 8)) fail_msg("%s", e.text);
        /* the last line is two blanks, as many as the column, and the caret */
        const char *last = strrchr(e.text, '\n');
        assert_non_null(last);
        if ((int)strlen(last + 1) - 3 != cases[i].column || last[strlen(last) - 1] != '^')
            fail_msg("%s: the caret is wrong\n%s", text, e.text);
    }
}

static void test_limits(void **state) {
    (void)state;
    static const struct {
        const char *open, *middle, *close;
        int times;
        bool good;
    } cases[] = {
        {"(", "q", ")", 90, true},      {"(", "q", ")", 300, false},
        {"(", "", "", 900, false},      {"-", "q", "", 90, true},
        {"-", "q", "", 500, false},     {"!", "q", "", 500, false},
        {"q?", "1", ":1", 90, true},    {"q?", "1", ":1", 200, false},
        {"q?1:", "1", "", 200, false},  {"q+", "q", "", 90, true},
        {"q+", "q", "", 300, false},    {"frame[", "0", "]", 140, false},
        {"max(1,", "q", ")", 90, true}, {"max(1,", "q", ")", 110, false},
        {"q ", "", "", 500, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[2048] = "";
        for (int j = 0; j < cases[i].times; j++) strcat(text, cases[i].open);
        strcat(text, cases[i].middle);
        for (int j = 0; j < cases[i].times; j++) strcat(text, cases[i].close);
        strcat(text, cases[i].good ? " || 1" : "");
        FlexProgram *p = NULL;
        Err e = {""};
        const int status = flex_parse(&p, text, NULL, arrays, 2, T, 1, 1, &e);
        if ((status == 0) != cases[i].good) fail_msg("case %zu: %s", i, e.text);
        assert_int_equal(status == 0, e.text[0] == '\0');
        flex_free(p);
    }
    /* a derivative that grows faster than the text, and one that must not */
    char nested[FLEX_MAX_TEXT + 2] = "score";
    for (int i = 0; i < 25; i++) {
        char outer[FLEX_MAX_TEXT + 2];
        snprintf(outer, sizeof outer, "tanh(%.900s)*q", nested);
        strcpy(nested, outer);
    }
    FlexProgram *p = parse(NULL, nested);
    assert_true(isfinite(flex_eval_score_grad(p, 1, 0, 0, 1, 1)));
    char *code = flex_prelude(p);
    assert_true(strlen(code) < 100000);
    free(code);
    flex_free(p);
    memset(nested, ' ', sizeof nested);
    nested[sizeof nested - 1] = '\0';
    Err e;
    assert_int_equal(flex_parse(&p, nested, NULL, arrays, 2, T, 1, 1, &e), -1);
    assert_non_null(strstr(e.text, "1001 characters"));
}

/* ---- plans ---- */

static void check_plan(FlexProgram *p, int B, int H, int Tq, int Tk, int offset, int BM, int BN) {
    const FlexPlan *plan = flex_plan(p, B, H, Tq, Tk, offset, BM, BN);
    assert_ptr_equal(plan, flex_plan(p, B, H, Tq, Tk, offset, BM, BN));
    int64_t visible = 0;
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < H; h++) {
            for (int qt = 0; qt < plan->q_tiles; qt++) {
                int next = flex_plan_next(plan, b, h, qt, 0);
                for (int kt = 0; kt < plan->k_tiles; kt++) {
                    int seen = 0, pairs = 0;
                    for (int q = qt * BM; q < Tq && q < (qt + 1) * BM; q++) {
                        for (int k = kt * BN; k < Tk && k < (kt + 1) * BN; k++) {
                            seen += flex_eval_mask(p, b, h, offset + q, k);
                            pairs++;
                        }
                    }
                    visible += seen;
                    const FlexTile want = !seen           ? FLEX_SKIP
                                          : seen == pairs ? FLEX_FULL
                                                          : FLEX_PARTIAL;
                    assert_int_equal(flex_plan_tile(plan, b, h, qt, kt), want);
                    assert_int_equal(next == kt, want != FLEX_SKIP);
                    if (next == kt) next = flex_plan_next(plan, b, h, qt, kt + 1);
                }
                assert_int_equal(next, plan->k_tiles);
            }
        }
    }
    if (B == 2 && H == 3)
        assert_true(fabs(flex_visible(p, Tq, Tk, offset) - (double)visible / 6) < 1e-9);
}

static void test_plans(void **state) {
    (void)state;
    enum { LONG = 151 };
    int five[LONG];
    for (int i = 0; i < LONG; i++) five[i] = i / 5;
    const FlexArray array = {"five", five, LONG};
    static const char *const masks[] = {"q >= k",
                                        "five[q] >= five[k]",
                                        "q >= k && q - k <= 6",
                                        "1",
                                        "(q + k) % 7 == 0 || q == k",
                                        "q - k < (h + 1) * 10 && k <= q",
                                        "b ? k <= q : k >= q",
                                        "(k / 16 + b + h) % 3 == 0 || k == q"};
    static const int shapes[][5] = {/* Tq Tk offset BM BN */
                                    {LONG, LONG, 0, 16, 32}, {LONG, LONG, 0, 64, 64},
                                    {1, 1, 0, 64, 128},      {7, 100, 93, 4, 1},
                                    {20, LONG, 131, 64, 2},  {33, 70, 5, 7, 13}};
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        FlexProgram *p;
        Err e = {""};
        if (flex_parse(&p, masks[i], NULL, &array, 1, LONG, 2, 3, &e)) fail_msg("%s", e.text);
        for (size_t j = 0; j < sizeof shapes / sizeof *shapes; j++) {
            const int *s = shapes[j];
            check_plan(p, 2, 3, s[0], s[1], s[2], s[3], s[4]);
            check_plan(p, 1, 1, s[0], s[1], s[2], s[3], s[4]);
        }
        flex_free(p);
    }
    FlexProgram *p = parse(NULL, "score");
    const FlexPlan *plan = flex_plan(p, 2, 3, 20, 20, 0, 8, 8);
    assert_int_equal(plan->n_full, 9);
    assert_int_equal(flex_plan_tile(plan, 1, 2, 2, 2), FLEX_FULL);
    flex_free(p);
}

/* ---- anything may be given ---- */

static void fuzz_one(const char *text, bool as_score) {
    FlexProgram *p = NULL;
    Err e = {""};
    const int status =
        flex_parse(&p, as_score ? NULL : text, as_score ? text : NULL, arrays, 2, T, 1, 2, &e);
    assert_true(status == 0 ? p && !e.text[0] : !p && e.text[0]);
    if (status) return;
    float score[T] = {0.5f, -2.0f, INFINITY, NAN}, out[T];
    unsigned char sees[T];
    flex_eval_mask_row(p, 0, 1, 3, 0, T, sees);
    flex_eval_score_row(p, score, 0, 1, 3, 0, T, out);
    flex_eval_score_grad_row(p, score, 0, 1, 3, 0, T, out);
    char *code = flex_prelude(p);
    assert_non_null(strstr(code, "flex_score_grad("));
    free(code);
    flex_free(p);
}

static void test_fuzz(void **state) {
    (void)state;
    static const char *const tokens[] = {
        "q",    "k",     "h",    "b",    "score", "frame[", "doc[", "]",    "(",
        ")",    "(",     ")",    "+",    "-",     "*",      "/",    "%",    "&&",
        "||",   "!",     "?",    ":",    "<",     ">=",     "==",   "!=",   "&",
        "|",    "^",     "1",    "0",    "2.5",   "1e3",    ",",    "min(", "where(",
        "pow(", "tanh(", "exp(", "abs(", "log(",  "65",     " ",    "=",    "x"};
    const int n_tokens = sizeof tokens / sizeof *tokens;
    RngStream r = {{42, 0, RNG_TEST}, 0};
    for (int i = 0; i < 4000; i++) {
        char text[256] = "";
        const int length = 1 + (int)rng_next_below(&r, 14);
        for (int j = 0; j < length; j++)
            strcat(text, tokens[rng_next_below(&r, (uint32_t)n_tokens)]);
        fuzz_one(text, i & 1);
        for (int j = 0; j < length; j++) text[j] = (char)(1 + rng_next_below(&r, 255));
        text[length] = '\0';
        fuzz_one(text, i & 1);
    }
    /* well-formed ones, built up and then bent in one place */
    for (int i = 0; i < 1500; i++) {
        char text[512] = "score", next[512];
        const int length = 1 + (int)rng_next_below(&r, 8);
        for (int j = 0; j < length; j++) {
            static const char *const shapes[] = {
                "(%.400s*k-%.20s)",   "tanh(%.400s/2.0)+q*%.10s", "where(q>k,%.400s,%.20s)",
                "-%.400s/(%.9s+q+9)", "min(abs(%.400s),%.20s)",   "pow(%.400s,3)-exp(q*0.1)"};
            snprintf(next, sizeof next, shapes[rng_next_below(&r, 6)], text, j & 1 ? "k" : "score");
            strcpy(text, next);
        }
        fuzz_one(text, true);
        text[rng_next_below(&r, (uint32_t)strlen(text))] = (char)(32 + rng_next_below(&r, 96));
        fuzz_one(text, true);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ints_as_in_c),
        cmocka_unit_test(test_floats_as_in_c),
        cmocka_unit_test(test_derivative_by_finite_differences),
        cmocka_unit_test(test_derivative_is_simple),
        cmocka_unit_test(test_nan_and_wrapping),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
