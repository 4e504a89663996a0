/* Axes and their ticks, what lines and heat maps leave out, and text that must be escaped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/plot.h"

/* What is written to a stream, as text. */
typedef struct Sink {
    FILE *f;
    char *text;
    size_t size;
} Sink;

static void sink_open(Sink *s) { assert_non_null(s->f = open_memstream(&s->text, &s->size)); }

static void assert_has(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("no '%s' in: %s", part, text);
}

static void axes(void **state) {
    (void)state;
    static const struct {
        double lo, hi, step, round_lo, round_hi;
    } axis[] = {{0, 100, 20, 0, 100},     {0, 93, 20, 0, 100},         {0, 81, 20, 0, 100},
                {0, 80, 10, 0, 80},       {-0.3, 0.3, 0.1, -0.3, 0.3}, {3, 3, 0.5, 3, 6},
                {0, 0, 0.2, 0, 1},        {0, 1e6, 2e5, 0, 1e6},       {-7, -2, 1, -7, -2},
                {0, 1e-7, 2e-8, 0, 1e-7}, {17, 4321, 1000, 0, 5000}};
    for (size_t i = 0; i < sizeof axis / sizeof *axis; i++) {
        PlotAxis a = plot_axis("x", axis[i].lo, axis[i].hi);
        PlotAxis r = plot_axis_round("x", axis[i].lo, axis[i].hi);
        assert_true(fabs(a.step - axis[i].step) <= 1e-12 * axis[i].step);
        assert_true(a.lo == axis[i].lo && a.hi > a.lo);
        assert_true(fabs(r.lo - axis[i].round_lo) <= 1e-9 * axis[i].step);
        assert_true(fabs(r.hi - axis[i].round_hi) <= 1e-9 * axis[i].step);
    }
}

/* The texts of the ticks of an axis, with a space after each. */
static void assert_ticks(PlotAxis x, const char *expected) {
    Sink s = {0};
    char found[256] = "";
    sink_open(&s);
    Plot p = plot_begin(s.f, "t", x, plot_axis("y", 0, 1), 100);
    plot_end(&p, (PlotKey[]){{0}}, "c");
    fclose(s.f);
    for (char *at = s.text; (at = strstr(at, "y=\"145\" text-anchor=\"middle\">"));) {
        at = strchr(at, '>') + 1;
        strncat(found, at, strcspn(at, "<"));
        strcat(found, " ");
    }
    assert_string_equal(found, expected);
    free(s.text);
}

static void ticks(void **state) {
    (void)state;
    assert_ticks(plot_axis("x", 0, 1000), "0 200 400 600 800 1000 ");
    assert_ticks(plot_axis("x", 150, 930), "200 300 400 500 600 700 800 900 ");
    assert_ticks(plot_axis("x", -0.3, 0.3), "-0.3 -0.2 -0.1 0 0.1 0.2 0.3 ");
    assert_ticks(plot_axis("x", 0, 45000), "0 10k 20k 30k 40k ");
    assert_ticks(plot_axis("x", 0, 1250000), "0 0.2M 0.4M 0.6M 0.8M 1.0M 1.2M ");
    assert_ticks(plot_axis("x", 0, 0.04), "0 0.005 0.010 0.015 0.020 0.025 0.030 0.035 0.040 ");
    static const char *const name[] = {"a", NULL, "<c>"};
    assert_ticks((PlotAxis){"x", 0, 2, 1, name}, "a  &lt;c&gt; ");
}

/* Drawn where it belongs: the area is 414 x 100 with its upper left corner at (48, 28). */
static void lines(void **state) {
    (void)state;
    const double x[] = {0, 1, NAN, 2, 3, 4}, y[] = {10, 0, 5, 5, INFINITY, 10};
    Sink s = {0};
    sink_open(&s);
    Plot p = plot_begin(s.f, "a & b", plot_axis("x", 0, 4), plot_axis("y", 0, 10), 100);
    plot_line(&p, "red", 6, x, y);
    plot_dots(&p, "red", 6, x, y);
    plot_bar(&p, "blue", 1, 2, 5);
    plot_bar(&p, "blue", 1, 2, NAN);
    plot_band(&p, "green", 0.5, 2, x, (double[]){0, 0}, y);
    plot_end(&p, (PlotKey[]){{"red", "a < b", 0}, {"blue", "bar", 1}, {0}}, "x > y");
    fclose(s.f);
    assert_has(s.text, "<h2>a &amp; b</h2>");
    assert_has(s.text,
               "class=\"line red\" d=\"M48.0 28.0h0L151.5 128.0M255.0 78.0h0M462.0 28.0h0\"");
    assert_has(s.text, "d=\"M151.5 128.0H255.0V78.0H151.5z\"");
    assert_has(s.text, "d=\"M48.0 28.0L151.5 128.0L151.5 128.0L48.0 128.0\"");
    assert_has(s.text, "</svg> a &lt; b</span>");
    assert_has(s.text, "<figcaption>x &gt; y</figcaption>");
    int dots = 0, bars = 0;
    for (const char *c = s.text; (c = strstr(c, "<circle")); c++) dots++;
    for (const char *c = s.text; (c = strstr(c, "class=\"fill blue\"")); c++) bars++;
    assert_int_equal(dots, 4);
    assert_int_equal(bars, 2); /* one is the key */
    assert_null(strstr(s.text, "nan"));
    assert_null(strstr(s.text, "inf"));
    free(s.text);
}

/* Each count in the level of the power that it reaches; empty cells are not drawn. */
static void cells(void **state) {
    (void)state;
    static const struct {
        int64_t most;
        int base, levels;
    } maps[] = {{0, 2, 1},   {1, 2, 1},     {2, 2, 2},      {127, 2, 7},
                {128, 4, 4}, {16383, 4, 7}, {16384, 10, 5}, {INT64_C(1) << 40, 10, 13}};
    for (size_t k = 0; k < sizeof maps / sizeof *maps; k++) {
        const int64_t most = maps[k].most, count[6] = {0, 1, most, most / 2, maps[k].base - 1, 0};
        PlotKey keys[PLOT_KEYS];
        Sink s = {0};
        sink_open(&s);
        Plot p = plot_begin(s.f, "t", plot_axis("x", 0, 3), plot_axis("y", 0, 2), 100);
        plot_cells(&p, "red", 3, 2, count, keys);
        fclose(s.f);
        int levels = 0, drawn = 0, expected = 0;
        for (int64_t least = 1; *keys[levels].name; levels++, least *= maps[k].base) {
            assert_int_equal(strtoll(keys[levels].name, NULL, 10), least);
            assert_true(keys[levels].opacity > (levels ? keys[levels - 1].opacity : 0));
        }
        assert_int_equal(levels, maps[k].levels);
        assert_true(fabs(keys[levels - 1].opacity - 1) < 1e-12);
        for (const char *c = strstr(s.text, "class=\"fill red\""); (c = strchr(c, 'z')); c++)
            drawn++;
        for (int i = 0; i < 6; i++) expected += count[i] > 0;
        assert_int_equal(drawn, expected);
        free(s.text);
    }
}

static void text(void **state) {
    (void)state;
    static const struct {
        const char *raw, *safe;
    } texts[] = {
        {"plain, 100 %", "plain, 100 %"},
        {"<a href=\"x\">&amp;", "&lt;a href=&quot;x&quot;&gt;&amp;amp;"},
        {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8c\x8c \xf4\x8f\xbf\xbd",
         "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8c\x8c \xf4\x8f\xbf\xbd"},
        {"a\tb\nc\x01", "a?b?c?"},
        {"\x80 \xc3 \xc3(", "? ? ?("},                     /* not in a sequence, cut short */
        {"\xc0\xaf \xe0\x80\xaf", "?? ???"},               /* longer than need be */
        {"\xed\xa0\x80", "???"},                           /* a surrogate */
        {"\xf4\x90\x80\x80 \xff", "???? ?"},               /* beyond Unicode */
        {"\xef\xbf\xbe \xef\xbf\xbd", "??? \xef\xbf\xbd"}, /* no character, and one */
        {"\xe2\x82", "??"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        Sink s = {0};
        sink_open(&s);
        plot_text(s.f, texts[i].raw);
        fclose(s.f);
        assert_string_equal(s.text, texts[i].safe);
        free(s.text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(axes),  cmocka_unit_test(ticks), cmocka_unit_test(lines),
        cmocka_unit_test(cells), cmocka_unit_test(text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
