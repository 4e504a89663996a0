/* The figures of a score against naive ones, the edges of its bins, what eval.json and report.html
 * hold, and what they do with odd input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cjson/cJSON.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "data/icecube_geometry.h"
#include "data/icecube_report.h"
#include "llmc_like/fsio.h"
#include "llmc_like/metrics.h"
#include "llmc_like/philox.h"
#include "test/scratch.h"

static const double DEGREE = 3.14159265358979323846 / 180;

/* ---- Outcomes ---- */

static void random_direction(RngStream *rng, float v[3]) {
    double z = 2 * rng_next_uniform(rng) - 1, a = 360 * DEGREE * rng_next_uniform(rng);
    v[0] = (float)(sqrt(1 - z * z) * cos(a));
    v[1] = (float)(sqrt(1 - z * z) * sin(a));
    v[2] = (float)z;
}

/* A direction near v, off by about `width` rad. */
static void smeared(RngStream *rng, const float v[3], float width, float out[3]) {
    double w[3], length = 0;
    for (int c = 0; c < 3; c++) {
        w[c] = v[c] + width * rng_next_normal(rng);
        length += w[c] * w[c];
    }
    for (int c = 0; c < 3; c++) out[c] = (float)(w[c] / sqrt(length));
}

static IceOutcome *random_outcomes(int n) {
    RngStream rng = {.key = {.seed = 7, .purpose = RNG_TEST}};
    IceOutcome *o = calloc((size_t)n, sizeof *o);
    assert_non_null(o);
    for (int i = 0; i < n; i++) {
        IceLabel *l = &o[i].label;
        random_direction(&rng, l->direction);
        smeared(&rng, l->direction, 0.3f, o[i].direction);
        smeared(&rng, l->direction, 0.9f, l->linefit);
        l->event_id = i;
        l->known = true;
        l->linefit_ok = rng_next_below(&rng, 50) > 0;
        l->track = (int8_t)((int)rng_next_below(&rng, 3) - 1);
        l->n_doms = 1 << rng_next_below(&rng, 12);
        l->n_doms += (int32_t)rng_next_below(&rng, 3) - 1 + (l->n_doms == 1);
        l->n_pulses = l->n_doms + (int32_t)rng_next_below(&rng, 2000);
    }
    return o;
}

/* n outcomes whose model is off by angle[i] degrees and LineFit by twice as much, at the horizon.
 */
static void known_outcomes(IceOutcome *o, int n, const double *angle) {
    for (int i = 0; i < n; i++) {
        double a = angle[i] * DEGREE;
        o[i] = (IceOutcome){.label = {.event_id = i,
                                      .direction = {1, 0, 0},
                                      .linefit = {(float)cos(2 * a), (float)sin(2 * a), 0},
                                      .known = true,
                                      .linefit_ok = true,
                                      .track = -1,
                                      .n_pulses = 10,
                                      .n_doms = 9},
                            .direction = {(float)cos(a), (float)sin(a), 0}};
    }
}

/* ---- Figures ---- */

/* Kahan's formula, another one than the score's. */
static double naive_angle(const float a[3], const float b[3]) {
    double minus = 0, plus = 0;
    for (int c = 0; c < 3; c++) {
        minus += ((double)a[c] - b[c]) * ((double)a[c] - b[c]);
        plus += ((double)a[c] + b[c]) * ((double)a[c] + b[c]);
    }
    return 2 * atan2(sqrt(minus), sqrt(plus)) / DEGREE;
}

/* The smallest value with half of the others at or below it; of an even number the next, too. */
static double naive_median(const double *x, int n) {
    double low = INFINITY, high = INFINITY;
    for (int i = 0; i < n; i++) {
        int below = 0;
        for (int k = 0; k < n; k++) below += x[k] < x[i] || (x[k] == x[i] && k <= i);
        if (below >= (n + 1) / 2) low = fmin(low, x[i]);
        if (below >= n / 2 + 1) high = fmin(high, x[i]);
    }
    return (low + high) / 2;
}

/* m against the outcomes whose quantity[i] is in [from, below). */
static void assert_mean(const IceMean *m, const IceOutcome *o, int n, const double *quantity,
                        double from, double below) {
    double *angle = calloc((size_t)n, sizeof *angle), sum = 0;
    assert_non_null(angle);
    for (int k = 0; k < 2; k++) {
        int count = 0;
        sum = 0;
        for (int i = 0; i < n; i++) {
            if (!(quantity[i] >= from && quantity[i] < below)) continue;
            const float *answer = k ? o[i].label.linefit : o[i].direction;
            angle[count] = naive_angle(answer, o[i].label.direction);
            sum += angle[count++];
        }
        assert_int_equal(m->n, count);
        double mean = count ? sum / count : 0, median = count ? naive_median(angle, count) : 0;
        assert_true(fabs((k ? m->linefit_mean : m->mean) - mean) < 1e-4);
        assert_true(fabs((k ? m->linefit_median : m->median) - median) < 1e-4);
    }
    free(angle);
}

static void assert_table(const IceTable *t, const char *name, const IceOutcome *o, int n,
                         const double *quantity) {
    assert_string_equal(t->name, name);
    int64_t events = 0;
    for (int i = 0; i < t->n; i++) {
        assert_true(t->edge[i] < t->edge[i + 1]);
        assert_mean(&t->bin[i], o, n, quantity, t->edge[i], t->edge[i + 1]);
        events += t->bin[i].n;
    }
    assert_int_equal(events, n); /* each event is in one bin */
}

static void figures(void **state) {
    (void)state;
    for (int n = 800; n <= 801; n++) { /* even and odd */
        IceOutcome *o = random_outcomes(n);
        double *doms = calloc((size_t)n, sizeof *doms), *pulses = calloc((size_t)n, sizeof *doms),
               *zenith = calloc((size_t)n, sizeof *doms), *track = calloc((size_t)n, sizeof *doms);
        double bias[2][3] = {{0}};
        int64_t undefined = 0;
        for (int i = 0; i < n; i++) {
            const IceLabel *l = &o[i].label;
            doms[i] = l->n_doms;
            pulses[i] = l->n_pulses;
            zenith[i] = acos(l->direction[2]) / DEGREE;
            track[i] = l->track;
            undefined += !l->linefit_ok;
            for (int c = 0; c < 3; c++) {
                bias[0][c] += o[i].direction[c] - l->direction[c];
                bias[1][c] += l->linefit[c] - l->direction[c];
            }
        }
        IceScore s;
        ice_score(&s, o, n);
        assert_mean(&s.all, o, n, track, -1, 2);
        assert_mean(&s.track, o, n, track, 1, 2);
        assert_mean(&s.cascade, o, n, track, 0, 1);
        assert_true(s.track.n > 200 && s.cascade.n > 200);
        assert_table(&s.doms, "DOMs", o, n, doms);
        assert_table(&s.pulses, "pulses", o, n, pulses);
        assert_table(&s.zenith, "zenith", o, n, zenith);
        assert_int_equal(s.n_linefit_undefined, undefined);
        for (int c = 0; c < 3; c++) {
            assert_true(fabs(s.bias[c] - bias[0][c] / n) < 1e-6);
            assert_true(fabs(s.linefit_bias[c] - bias[1][c] / n) < 1e-6);
        }
        free(doms);
        free(pulses);
        free(zenith);
        free(track);
        free(o);
    }
}

static int bin_of(const IceTable *t) {
    int found = -1;
    for (int i = 0; i < t->n; i++)
        if (t->bin[i].n) {
            assert_int_equal(found, -1);
            found = i;
        }
    return found;
}

static void edges(void **state) {
    (void)state;
    static const struct {
        int count;
        const char *label;
    } counts[] = {{1, "0 to 8"},          {7, "0 to 8"},           {8, "8 to 16"},
                  {15, "8 to 16"},        {16, "16 to 32"},        {511, "256 to 512"},
                  {512, "512 to 1024"},   {1023, "512 to 1024"},   {1024, "1024 or more"},
                  {5160, "1024 or more"}, {178000, "1024 or more"}};
    static const struct {
        double degrees;
        const char *label;
    } zeniths[] = {{0, "0 to 15"},        {14.999, "0 to 15"}, {15.001, "15 to 30"},
                   {89.999, "75 to 90"},  {90, "90 to 105"},   {164.999, "150 to 165"},
                   {179.9, "165 to 180"}, {180, "165 to 180"}};
    IceOutcome o;
    IceScore s;
    char label[32];
    known_outcomes(&o, 1, (double[]){5});
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        o.label.n_doms = o.label.n_pulses = counts[i].count;
        ice_score(&s, &o, 1);
        ice_bin_label(&s.doms, bin_of(&s.doms), label);
        assert_string_equal(label, counts[i].label);
        ice_bin_label(&s.pulses, bin_of(&s.pulses), label);
        assert_string_equal(label, counts[i].label);
    }
    for (size_t i = 0; i < sizeof zeniths / sizeof *zeniths; i++) {
        double a = zeniths[i].degrees * DEGREE;
        o.label.direction[0] = zeniths[i].degrees < 180 ? (float)sin(a) : 0;
        o.label.direction[2] = zeniths[i].degrees == 90 ? 0 : (float)cos(a);
        ice_score(&s, &o, 1);
        ice_bin_label(&s.zenith, bin_of(&s.zenith), label);
        assert_string_equal(label, zeniths[i].label);
    }
}

static void medians(void **state) {
    (void)state;
    static const double angle[] = {40, 1, 3, 10, 2, 2};
    static const double median[] = {40, 20.5, 3, 6.5, 3, 2.5};
    IceOutcome o[6];
    IceScore s;
    known_outcomes(o, 6, angle);
    for (int n = 1; n <= 6; n++) {
        ice_score(&s, o, n);
        assert_true(fabs(s.all.median - median[n - 1]) < 1e-5);
        assert_true(fabs(s.all.linefit_median - 2 * median[n - 1]) < 1e-5);
        assert_true(fabs(ice_mean_ratio(&s.all) - 0.5) < 1e-6);
        assert_int_equal(s.track.n + s.cascade.n, 0); /* unknown */
    }
}

static void two_angles(void **state) {
    (void)state;
    const float axis[][3] = {{0, 0, 2}, {0, 0, -2}, {1, 0, 0}, {0, 3, 0}, {-1, 0, 0}, {0, -1, 0}};
    const double zenith[] = {0, 180, 90, 90, 90, 90}, azimuth[] = {0, 0, 0, 90, 180, 270};
    for (int i = 0; i < 6; i++) {
        assert_true(fabs(ice_zenith_deg(axis[i]) - zenith[i]) < 1e-9);
        assert_true(fabs(ice_azimuth_deg(axis[i]) - azimuth[i]) < 1e-9);
    }
    assert_true(ice_azimuth_deg((float[]){1, -1e-30f, 0}) == 0);
}

/* ---- eval.json ---- */

static cJSON *parsed(const char *path) {
    char *text;
    size_t n;
    Err e = {""};
    if (read_whole_file(path, &text, &n, &e)) fail_msg("%s", e.text);
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    free(text);
    return json;
}

static void assert_number(const cJSON *json, const char *prefix, const char *key, double value) {
    char name[64];
    snprintf(name, sizeof name, "%s%s", prefix, key);
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
    if (!item) fail_msg("no %s in eval.json", name);
    if (isfinite(value))
        assert_true(cJSON_IsNumber(item) && /* cJSON writes 15 digits */
                    fabs(item->valuedouble - value) <= 1e-14 * fabs(value));
    else
        assert_true(cJSON_IsNull(item));
}

static void assert_json_mean(const cJSON *json, const char *prefix, const IceMean *m) {
    assert_number(json, prefix, "n_events", (double)m->n);
    assert_number(json, prefix, "mean_angle_deg", m->n ? m->mean : NAN);
    assert_number(json, prefix, "median_angle_deg", m->n ? m->median : NAN);
    assert_number(json, prefix, "linefit_mean_angle_deg", m->n ? m->linefit_mean : NAN);
    assert_number(json, prefix, "linefit_median_angle_deg", m->n ? m->linefit_median : NAN);
}

static void assert_json(const cJSON *json, const IceScore *s) {
    assert_json_mean(json, "", &s->all);
    assert_json_mean(json, "track_", &s->track);
    assert_json_mean(json, "cascade_", &s->cascade);
    assert_number(json, "", "guess_angle_deg", 90);
    assert_number(json, "", "n_linefit_undefined", (double)s->n_linefit_undefined);
    static const char *const bias[] = {"bias_x", "bias_y", "bias_z"};
    for (int c = 0; c < 3; c++) {
        assert_number(json, "", bias[c], s->bias[c]);
        assert_number(json, "linefit_", bias[c], s->linefit_bias[c]);
    }
    static const char *const name[] = {"by_doms", "by_pulses", "by_zenith"};
    const IceTable *table[] = {&s->doms, &s->pulses, &s->zenith};
    for (int k = 0; k < 3; k++) {
        const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, name[k]);
        assert_int_equal(cJSON_GetArraySize(list), table[k]->n);
        for (int i = 0; i < table[k]->n; i++) {
            const cJSON *bin = cJSON_GetArrayItem(list, i);
            assert_number(bin, "", "from", table[k]->edge[i]);
            assert_number(bin, "", "below", table[k]->edge[i + 1]);
            assert_json_mean(bin, "", &table[k]->bin[i]);
        }
    }
}

static void json_file(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    IceScore s;
    scratch_path(state, "eval.json", path);
    IceOutcome *o = random_outcomes(300);
    for (int n = 1; n <= 300; n += 299) {
        ice_score(&s, o, n);
        assert_int_equal(ice_score_save(&s, path, &e), 0);
        cJSON *json = parsed(path);
        assert_json(json, &s);
        cJSON_Delete(json);
    }
    o[3].direction[1] = NAN; /* of a model that has diverged */
    ice_score(&s, o, 300);
    assert_true(isnan(s.all.mean) && isfinite(s.all.median) && isfinite(s.all.linefit_mean));
    assert_int_equal(ice_score_save(&s, path, &e), 0);
    cJSON *json = parsed(path);
    assert_json(json, &s);
    cJSON_Delete(json);
    free(o);
}

/* ---- The terminal ---- */

static void terminal(void **state) {
    char path[SCRATCH_PATH], *text;
    size_t size;
    Err e = {""};
    IceScore s;
    IceOutcome *o = random_outcomes(500);
    ice_score(&s, o, 500);
    free(o);
    assert_non_null(scratch_path(state, "tables", path));
    fflush(stdout);
    int terminal_fd = dup(1);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(dup2(fileno(f), 1) == 1);
    ice_score_print(&s);
    fflush(stdout);
    assert_true(dup2(terminal_fd, 1) == 1);
    close(terminal_fd);
    fclose(f);
    if (read_whole_file(path, &text, &size, &e)) fail_msg("%s", e.text);
    char all[128];
    snprintf(all, sizeof all, "%10d %10.2f %10.2f", 500, s.all.mean, s.all.median);
    assert_non_null(strstr(text, all));
    assert_non_null(strstr(text, "\n8 to 16 "));
    assert_non_null(strstr(text, "\n165 to 180 "));
    assert_non_null(strstr(text, "cascades"));
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1)
        assert_true(strcspn(line, "\n") <= 100);
    free(text);
}

/* ---- report.html ---- */

/* The page of n outcomes, which the caller frees; well-formed to an XML parser, self-contained. */
static char *page_of(void **state, const IceOutcome *o, int n, const char *run, const char *title) {
    char path[SCRATCH_PATH], command[2 * SCRATCH_PATH], *text;
    size_t size;
    Err e = {""};
    IceScore s;
    ice_score(&s, o, n);
    scratch_path(state, "report.html", path);
    if (ice_report_html(&s, o, n, run, title, path, &e)) fail_msg("%s", e.text);
    snprintf(command, sizeof command,
             "python3 -c 'import xml.dom.minidom as m, sys; m.parse(sys.argv[1])' %s", path);
    assert_int_equal(system(command), 0);
    if (read_whole_file(path, &text, &size, &e)) fail_msg("%s", e.text);
    assert_int_equal(strlen(text), size);
    static const char *const outside[] = {"http", "<script", "src=", "href", "url(", "@import"};
    for (int i = 0; i < 6; i++) assert_null(strstr(text, outside[i]));
    return text;
}

static void assert_has(const char *page, const char *part) {
    if (!strstr(page, part)) fail_msg("no '%s' in the page", part);
}

/* As a cell of a table. */
static void assert_cell(const char *page, double value) {
    char cell[64];
    snprintf(cell, sizeof cell, "<td>%.2f</td>", value);
    assert_has(page, cell);
}

static void page(void **state) {
    enum { N = 700 };
    IceOutcome *o = random_outcomes(N);
    IceScore s;
    ice_score(&s, o, N);
    char *first = page_of(state, o, N, NULL, "events"),
         *second = page_of(state, o, N, NULL, "events");
    assert_string_equal(first, second);
    static const char *const titles[] = {"How far off", "How many within", "By DOMs",
                                         "By pulses",   "By zenith",       "Bias",
                                         "Zenith",      "Azimuth"};
    for (int i = 0; i < 8; i++) {
        char heading[64];
        snprintf(heading, sizeof heading, "<h2>%s</h2>", titles[i]);
        assert_has(first, heading);
    }
    assert_null(strstr(first, "<h2>Learning</h2>")); /* there is no run */
    const IceMean *mean[] = {&s.all,         &s.track,         &s.cascade,
                             &s.doms.bin[2], &s.pulses.bin[7], &s.zenith.bin[5]};
    for (int i = 0; i < 6; i++) {
        assert_cell(first, mean[i]->mean);
        assert_cell(first, mean[i]->median);
        assert_cell(first, mean[i]->linefit_mean);
        assert_cell(first, mean[i]->linefit_median);
        assert_cell(first, ice_mean_ratio(mean[i]));
    }
    char bias[64];
    for (int c = 0; c < 3; c++) {
        snprintf(bias, sizeof bias, "<td>%+.4f</td>", s.bias[c]);
        assert_has(first, bias);
    }
    free(first);
    free(second);
    free(o);
}

static void few_events(void **state) {
    IceOutcome o[5];
    char *text;
    known_outcomes(o, 1, (double[]){50}); /* one; its LineFit is off by 100 */
    text = page_of(state, o, 1, NULL, "one");
    assert_cell(text, 50);
    assert_cell(text, 100);
    assert_null(strstr(text, ">tracks<"));
    assert_null(strstr(text, ">cascades<"));
    free(text);
    known_outcomes(o, 5, (double[]){0, 0, 0, 0, 0}); /* all equal and right: no ratio of means */
    text = page_of(state, o, 5, NULL, "equal");
    assert_cell(text, 0);
    assert_has(text, "<td>nan</td>");
    free(text);
    known_outcomes(o, 5, (double[]){180, 180, 180, 180, 180}); /* wrong: beyond the last bin */
    text = page_of(state, o, 5, NULL, "wrong");
    assert_cell(text, 180);
    free(text);
    o[2].direction[0] = NAN;
    text = page_of(state, o, 5, NULL, "diverged");
    assert_null(strstr(text, "Mnan"));
    assert_null(strstr(text, "Lnan"));
    assert_null(strstr(text, "M48.0 39.5H59.5V28.0H48.0z")); /* and is at no azimuth */
    free(text);
}

/* Titles of users may hold what they like. */
static void escaping(void **state) {
    IceOutcome o;
    known_outcomes(&o, 1, (double[]){1});
    char *text = page_of(state, &o, 1, NULL,
                         "<b>\"a\" & </title>\x01\n\xc3\xa9 \xff \xc0\x80 \xed\xa0\x80 \xe2\x82");
    assert_has(text,
               "<h1>&lt;b&gt;&quot;a&quot; &amp; &lt;/title&gt;??\xc3\xa9 ? ?? ??? ?"
               "?</h1>");
    free(text);
}

/* ---- Curves ---- */

static const char *run_with(void **state, const char *name, const char *metrics,
                            char run[SCRATCH_PATH]) {
    char path[SCRATCH_PATH + 32];
    Err e = {""};
    assert_int_equal(make_dirs(scratch_path(state, name, run), &e), 0);
    snprintf(path, sizeof path, "%s/metrics.jsonl", run);
    assert_int_equal(scratch_write(path, metrics, strlen(metrics)), 0);
    return run;
}

static void curves(void **state) {
    char run[SCRATCH_PATH], *text;
    IceOutcome o;
    known_outcomes(&o, 1, (double[]){1});
    /* The axes are from step 0 to 100 and from 0 to 100 degrees, 414 x 240 with the corner at
     * (48, 28); pi/2 rad is where a guess is. */
    run_with(state, "run",
             "{\"step\":50,\"loss\":1.5707963}\n"
             "{\"step\":50,\"held_out_deg\":25,\"held_out_linefit_deg\":40}\n"
             "{\"step\":75,\"loss\":null,\"rate\":3}\n"
             "{\"step\":75,\"loss\":\"low\"}\n"
             "not JSON\n[]\n\n{\"loss\":0.1}\n{\"step\":-3,\"loss\":0.1}\n"
             "{\"step\":1e999,\"loss\":0.1}\n{\"step\":80,\"loss\":1e999}\n"
             "{\"step\":20,\"loss\":0.1}\n"
             "{\"step\":100,\"held_out_deg\":50,\"held_out_linefit_deg\":40}\n"
             "{\"step\":200,\"held_out_deg\":5",
             run);
    text = page_of(state, &o, 1, run, "curves");
    assert_has(text, "<h2>Learning</h2>");
    assert_has(text, "<path class=\"line model thin\" d=\"M255.0 52.0h0\"/>");
    assert_has(text, "<path class=\"line guess\" d=\"M48.0 52.0h0L462.0 52.0\"/>");
    assert_has(text, "<path class=\"line model\" d=\"M255.0 208.0h0L462.0 148.0\"/>");
    assert_has(text, "<path class=\"line linefit\" d=\"M255.0 172.0h0L462.0 172.0\"/>");
    free(text);
    text =
        page_of(state, &o, 1, run_with(state, "other", "{\"step\":1,\"time\":2}\n", run), "none");
    assert_null(strstr(text, "<h2>Learning</h2>"));
    free(text);
    text = page_of(state, &o, 1, run_with(state, "start", "{\"step\":0,\"loss\":1}\n", run), "0");
    assert_has(text, "<h2>Learning</h2>");
    free(text);
    text = page_of(state, &o, 1, scratch_path(state, "nowhere", run), "no folder");
    assert_null(strstr(text, "<h2>Learning</h2>"));
    free(text);
}

/* A long run makes no larger page: 200 means, and its worst step is still seen. */
static void long_run(void **state) {
    enum { STEPS = 60000, ROOM = 40 * STEPS };
    char run[SCRATCH_PATH], *metrics = malloc(ROOM);
    assert_non_null(metrics);
    size_t used = 0;
    for (int i = 1; i <= STEPS; i++)
        used += (size_t)snprintf(metrics + used, ROOM - used, "{\"step\":%d,\"loss\":%g}\n", i,
                                 (i == 30007 ? 159
                                  : i % 2    ? 20
                                             : 40) *
                                     DEGREE);
    IceOutcome o;
    known_outcomes(&o, 1, (double[]){1});
    char *empty = page_of(state, &o, 1, NULL, "long");
    char *text = page_of(state, &o, 1, run_with(state, "long", metrics, run), "long");
    assert_true(strlen(text) - strlen(empty) < 20000);
    assert_has(text, ">160</text>"); /* the axis goes up to there, */
    assert_has(text, " 29.5L");      /* and the band nearly */
    const char *mean = strstr(text, "line model thin");
    int at_30 = 0;
    for (; (mean = strstr(mean, " 223.0L")); mean++) at_30++;
    assert_true(at_30 > 180); /* of 200: rounding moves some steps to the next piece */
    free(metrics);
    free(empty);
    free(text);
}

/* ---- What cannot be written or read ---- */

static void refused(void **state) {
    char path[SCRATCH_PATH], run[SCRATCH_PATH], metrics[SCRATCH_PATH];
    Err json = {""}, html = {""}, e = {""};
    IceOutcome o;
    IceScore s;
    known_outcomes(&o, 1, (double[]){1});
    ice_score(&s, &o, 1);
    assert_int_equal(make_dirs(scratch_path(state, "bad/metrics.jsonl", metrics), &e), 0);
    scratch_path(state, "bad", run);
    scratch_path(state, "full.html", path);
    assert_int_equal(ice_report_html(&s, &o, 1, run, "t", path, &e), -1);
    assert_non_null(strstr(e.text, "metrics.jsonl"));
    assert_int_not_equal(access(path, F_OK), 0);

    struct rlimit was, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small = was;
    small.rlim_cur = 1000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    int html_status = ice_report_html(&s, &o, 1, NULL, "t", path, &html);
    int json_status = ice_score_save(&s, path, &json);
    setrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(html_status, -1);
    assert_int_equal(json_status, -1);
    assert_non_null(strstr(html.text, "full.html"));
    assert_non_null(strstr(json.text, "full.html"));
    assert_int_not_equal(access(path, F_OK), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures),    cmocka_unit_test(edges),      cmocka_unit_test(medians),
        cmocka_unit_test(two_angles), cmocka_unit_test(json_file),  cmocka_unit_test(terminal),
        cmocka_unit_test(page),       cmocka_unit_test(few_events), cmocka_unit_test(escaping),
        cmocka_unit_test(curves),     cmocka_unit_test(long_run),   cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
