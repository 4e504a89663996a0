/* report.html: what data/icecube_report.h promises, from plots of data/plot.h. */
#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/icecube_report.h"
#include "data/plot.h"
#include "llmc_like/fsio.h"

static const double DEGREE = 3.14159265358979323846 / 180;

/* Colours of Okabe and Ito, which the colour-blind tell apart; line styles differ as well. */
static const char STYLE[] =
    ":root{color-scheme:light dark;--paper:#fff;--ink:#1c1c1c;--soft:#5c5c5c;--grid:#e4e4e4;"
    "--model:#0072b2;--linefit:#d55e00;--guess:#767676}\n"
    "@media screen and (prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e6e6e6;"
    "--soft:#a4abb2;--grid:#31373d;--model:#56b4e9;--linefit:#e69f00;--guess:#9a9a9a}}\n"
    "body{margin:0 auto;max-width:66rem;padding:1rem;background:var(--paper);color:var(--ink);"
    "font:1rem/1.45 system-ui,sans-serif}\n"
    "h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}h2{font-size:1.05rem;margin:0}\n"
    ".two{display:grid;gap:2rem;margin:2rem 0;"
    "grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}\n"
    "figure,section{margin:0;break-inside:avoid}section{overflow-x:auto}\n"
    "figure>svg{display:block;width:100%;height:auto}\n"
    "svg text{fill:var(--soft);font:13px system-ui,sans-serif}\n"
    ".grid{stroke:var(--grid);fill:none}.frame{stroke:var(--soft);fill:none}\n"
    ".model{--c:var(--model)}.linefit{--c:var(--linefit)}.guess{--c:var(--guess)}\n"
    ".line{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linecap:round;"
    "stroke-linejoin:round}\n"
    ".line.linefit{stroke-dasharray:8 5}.line.guess{stroke-dasharray:.1 5}\n"
    ".line.thin{stroke-width:1.2}.truth{--c:var(--ink)}.fill{fill:var(--c)}\n"
    ".keys{margin:.2rem 0;font-size:.85rem;color:var(--soft);display:flex;flex-wrap:wrap;"
    "gap:0 1rem}.keys span{white-space:nowrap}.keys svg{width:28px;height:12px}\n"
    "figcaption{font-size:.95rem}\n"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}\n"
    "caption{text-align:left;font-weight:600;padding:.3rem 0}\n"
    "th,td{padding:.15rem .6rem;text-align:right;vertical-align:bottom;"
    "border-top:1px solid var(--grid)}th{font-weight:400;color:var(--soft)}\n"
    "th:first-child{text-align:left;white-space:nowrap}table+table{margin-top:1rem}\n"
    "@media(max-width:30rem){table{font-size:.7rem}th,td{padding:.15rem .22rem}}\n"
    "@media print{:root{font-size:10.5px}body{max-width:none;padding:0}section{overflow:visible}"
    ".two{grid-template-columns:1fr 1fr;gap:1rem;margin:1rem 0}th,td{padding:.1rem .3rem}}\n";

static const PlotKey KEYS[] = {
    {"model", "model", 0}, {"linefit", "LineFit", 0}, {"guess", "a guess", 0}, {0}};

/* ---- Curves of the run ---- */

typedef struct Curve {
    double *step, *value;
    int n, room;
} Curve;

/* A curve with at most so many points as a plot has room for: mean, least and largest of the steps
 * in each of equal pieces. */
enum { PIECES = 200 };
typedef struct ThinCurve {
    double step[PIECES], mean[PIECES], least[PIECES], most[PIECES];
    int n;
} ThinCurve;

enum { LOSS, HELD_OUT, HELD_OUT_LINEFIT, CURVES };

static void curve_add(Curve *c, double step, double value) {
    if (!isfinite(step) || !isfinite(value) || step < (c->n ? c->step[c->n - 1] : 0)) return;
    if (c->n == c->room) {
        c->room = 2 * c->room + 256;
        c->step = realloc(c->step, (size_t)c->room * sizeof(double));
        c->value = realloc(c->value, (size_t)c->room * sizeof(double));
        CHECK(c->step && c->value, "no memory for a curve of %d points", c->room);
    }
    c->step[c->n] = step;
    c->value[c->n++] = value;
}

static void curves_add_line(Curve curve[CURVES], const char *line) {
    /* the loss is in radians, the others say deg */
    static const char *const key[CURVES] = {"loss", "held_out_deg", "held_out_linefit_deg"};
    cJSON *json = cJSON_ParseWithOpts(line, NULL, 1); /* NULL where half of it is written */
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(json, "step");
    for (int i = 0; i < CURVES && cJSON_IsNumber(step); i++) {
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(json, key[i]);
        if (!cJSON_IsNumber(value)) continue; /* NaN is null there */
        curve_add(&curve[i], step->valuedouble, value->valuedouble / (i == LOSS ? DEGREE : 1));
    }
    cJSON_Delete(json);
}

/* Line by line, as a long run's file is large. No file, no curves. */
static int curves_read(Curve curve[CURVES], const char *run, Err *e) {
    char *path = NULL, *line = NULL;
    size_t room = 0;
    if (!run) return 0;
    CHECK(asprintf(&path, "%s/metrics.jsonl", run) > 0, "no memory for a path");
    FILE *f = fopen(path, "r");
    int status = 0;
    if (f) {
        while (getline(&line, &room, f) > 0) curves_add_line(curve, line);
        if (ferror(f)) status = -1;
        fclose(f);
    } else if (errno != ENOENT)
        status = -1;
    if (status)
        err_set(e, "cannot read '%s' for the report's curves: %s; move it away to do without", path,
                strerror(errno));
    free(line);
    free(path);
    return status;
}

static void curve_thin(const Curve *c, double last_step, ThinCurve *thin) {
    int piece_before = -1, in_piece = 0;
    thin->n = 0;
    for (int i = 0; i < c->n; i++) {
        double value = c->value[i];
        int piece = (int)fmin(PIECES - 1, c->step[i] / last_step * PIECES);
        if (piece != piece_before) {
            int k = thin->n++;
            thin->step[k] = c->step[i];
            thin->mean[k] = thin->least[k] = thin->most[k] = value;
            in_piece = 1;
        } else {
            int k = thin->n - 1;
            in_piece++;
            thin->step[k] += (c->step[i] - thin->step[k]) / in_piece;
            thin->mean[k] += (value - thin->mean[k]) / in_piece;
            thin->least[k] = fmin(thin->least[k], value);
            thin->most[k] = fmax(thin->most[k], value);
        }
        piece_before = piece;
    }
}

static void put_curves(FILE *f, const Curve curve[CURVES]) {
    ThinCurve thin[CURVES];
    double last_step = 1, top = ICE_GUESS_DEG;
    for (int i = 0; i < CURVES; i++)
        if (curve[i].n) last_step = fmax(last_step, curve[i].step[curve[i].n - 1]);
    if (!curve[LOSS].n && !curve[HELD_OUT].n && !curve[HELD_OUT_LINEFIT].n) return;
    for (int i = 0; i < CURVES; i++) {
        curve_thin(&curve[i], last_step, &thin[i]);
        for (int k = 0; k < thin[i].n; k++) top = fmax(top, thin[i].most[k]);
    }
    Plot p = plot_begin(f, "Learning", plot_axis("step", 0, last_step),
                        plot_axis_round("mean angle, degrees", 0, top), 240);
    const ThinCurve *loss = &thin[LOSS], *held_out = &thin[HELD_OUT],
                    *linefit = &thin[HELD_OUT_LINEFIT];
    plot_band(&p, "model", 0.2, loss->n, loss->step, loss->least, loss->most);
    plot_line(&p, "model thin", loss->n, loss->step, loss->mean);
    plot_line(&p, "guess", 2, (double[]){0, last_step}, (double[]){ICE_GUESS_DEG, ICE_GUESS_DEG});
    plot_line(&p, "linefit", linefit->n, linefit->step, linefit->mean);
    plot_line(&p, "model", held_out->n, held_out->step, held_out->mean);
    if (held_out->n <= 50) plot_dots(&p, "model", held_out->n, held_out->step, held_out->mean);
    plot_end(&p,
             (PlotKey[]){{"model thin", "training", 0},
                         {"model", "least to largest of neighbouring steps", 0.2},
                         {"model", "held out", 0},
                         {"linefit", "LineFit, held out", 0},
                         {"guess", "a guess", 0},
                         {0}},
             "The mean angle to the truth in each step of training, and on events held out of it.");
}

/* ---- How far off ---- */

enum { BINS = 90, BIN_DEGREES = 180 / BINS };

static void put_angles(FILE *f, const IceScore *s, const IceOutcome *o, int64_t n) {
    enum { MODEL, LINEFIT, RANDOM, KINDS };
    double share[KINDS][BINS] = {{0}}; /* per cent of the events */
    double within[KINDS][BINS + 1] = {{0}}, edge[BINS + 1], x[2 * BINS], y[KINDS][2 * BINS];
    for (int64_t i = 0; i < n; i++) {
        const float *answer[] = {o[i].direction, o[i].label.linefit};
        for (int k = MODEL; k <= LINEFIT; k++) {
            double angle = ice_angle_deg(answer[k], o[i].label.direction);
            if (angle >= 0) share[k][(int)fmin(BINS - 1, angle / BIN_DEGREES)] += 100.0 / (double)n;
        }
    }
    double top = 0;
    for (int i = 0; i <= BINS; i++) edge[i] = BIN_DEGREES * i;
    for (int i = 0; i < BINS; i++) {
        /* a random direction: the share of the sphere */
        share[RANDOM][i] = 50 * (cos(edge[i] * DEGREE) - cos(edge[i + 1] * DEGREE));
        for (int k = 0; k < KINDS; k++) {
            within[k][i + 1] = within[k][i] + share[k][i];
            y[k][2 * i] = y[k][2 * i + 1] = share[k][i];
            top = fmax(top, share[k][i]);
        }
        x[2 * i] = edge[i];
        x[2 * i + 1] = edge[i + 1];
    }
    const PlotAxis angle = {.label = "angle to the truth, degrees", .hi = 180, .step = 30};
    char caption[256];
    Plot p = plot_begin(f, "How far off", angle,
                        plot_axis_round("events in 2 degrees, per cent", 0, top), 240);
    plot_band(&p, "model", 0.2, 2 * BINS, x, (double[2 * BINS]){0}, y[MODEL]);
    for (int k = KINDS; k-- > 0;) plot_line(&p, KEYS[k].class, 2 * BINS, x, y[k]);
    snprintf(caption, sizeof caption,
             "How the angles to the truth are distributed; their mean is %.2f degrees, LineFit's "
             "%.2f.",
             s->all.mean, s->all.linefit_mean);
    plot_end(&p, KEYS, caption);

    p = plot_begin(f, "How many within", angle,
                   (PlotAxis){.label = "events, per cent", .hi = 100, .step = 20}, 240);
    for (int k = KINDS; k-- > 0;) plot_line(&p, KEYS[k].class, BINS + 1, edge, within[k]);
    snprintf(caption, sizeof caption,
             "The share of events that are off by less than an angle; half are by %.2f degrees "
             "(LineFit: %.2f).",
             s->all.median, s->all.linefit_median);
    plot_end(&p, KEYS, caption);
}

/* ---- By a quantity ---- */

static void put_bins(FILE *f, const IceTable *t, const char *title, const char *label,
                     const char *caption) {
    double x[ICE_MAX_BINS], model[ICE_MAX_BINS], linefit[ICE_MAX_BINS], top = ICE_GUESS_DEG;
    char text[ICE_MAX_BINS + 1][16];
    const char *name[ICE_MAX_BINS + 1];
    for (int i = 0; i <= t->n; i++) {
        snprintf(text[i], sizeof text[i], "%g", t->edge[i]);
        name[i] = isfinite(t->edge[i]) ? text[i] : NULL;
    }
    for (int i = 0; i < t->n; i++) {
        const IceMean *m = &t->bin[i];
        x[i] = i + 0.5;
        model[i] = m->n ? m->mean : NAN;
        linefit[i] = m->n ? m->linefit_mean : NAN;
        top = fmax(top, fmax(model[i], linefit[i])); /* fmax passes over NaN */
    }
    Plot p = plot_begin(f, title, (PlotAxis){label, 0, t->n, 1, name},
                        plot_axis_round("mean angle, degrees", 0, top), 240);
    plot_line(&p, "guess", 2, (double[]){0, t->n}, (double[]){ICE_GUESS_DEG, ICE_GUESS_DEG});
    plot_line(&p, "linefit", t->n, x, linefit);
    plot_dots(&p, "linefit", t->n, x, linefit);
    plot_line(&p, "model", t->n, x, model);
    plot_dots(&p, "model", t->n, x, model);
    plot_end(&p, KEYS, caption);
}

static void put_bias(FILE *f, const IceScore *s) {
    static const char *const name[] = {NULL, "x", NULL, "y", NULL, "z", NULL};
    double most = 0;
    for (int c = 0; c < 3; c++) most = fmax(most, fmax(fabs(s->bias[c]), fabs(s->linefit_bias[c])));
    Plot p =
        plot_begin(f, "Bias", (PlotAxis){"component of the unit vector, z upwards", 0, 6, 1, name},
                   plot_axis_round("mean of predicted - true", -most, most), 240);
    for (int c = 0; c < 3; c++) {
        plot_bar(&p, "model", 2 * c + 0.5, 2 * c + 0.95, s->bias[c]);
        plot_bar(&p, "linefit", 2 * c + 1.05, 2 * c + 1.5, s->linefit_bias[c]);
    }
    plot_end(&p, (PlotKey[]){{"model", "model", 1}, {"linefit", "LineFit", 1}, {0}},
             "The mean error of each component: without a bias it is 0 but for chance.");
}

/* ---- True against predicted ---- */

enum { CELLS = 36 }; /* 5 degrees of zenith, 10 of azimuth */

static void put_heat_map(FILE *f, const IceOutcome *o, int64_t n, const char *title, double range,
                         double (*angle)(const float *), const char *const label[2],
                         const char *caption) {
    int64_t *count = calloc(CELLS * CELLS, sizeof *count);
    CHECK(count, "no memory for %d cells", CELLS * CELLS);
    for (int64_t i = 0; i < n; i++) {
        double x = angle(o[i].label.direction), y = angle(o[i].direction);
        if (isnan(y)) continue;
        int column = (int)fmin(CELLS - 1, x / range * CELLS);
        int row = (int)fmin(CELLS - 1, y / range * CELLS);
        count[row * CELLS + column]++;
    }
    const double ends[] = {0, range};
    PlotKey keys[PLOT_KEYS];
    Plot p = plot_begin(f, title, (PlotAxis){.label = label[0], .hi = range, .step = range / 6},
                        (PlotAxis){.label = label[1], .hi = range, .step = range / 6}, 414);
    plot_cells(&p, "model", CELLS, CELLS, count, keys);
    plot_line(&p, "truth thin", 2, ends, ends);
    plot_end(&p, keys, caption);
    free(count);
}

/* ---- Tables ---- */

static void put_table_begin(FILE *f, const char *caption, const char *const *head, int n) {
    fputs("<table><caption>", f);
    plot_text(f, caption);
    fputs("</caption>\n<thead><tr>", f);
    for (int i = 0; i < n; i++) fprintf(f, "<th scope=\"col\">%s</th>", head[i]);
    fputs("</tr></thead>\n<tbody>\n", f);
}

static void put_table_end(FILE *f) { fputs("</tbody></table>\n", f); }

static void put_row(FILE *f, const char *name, const IceMean *m) {
    if (m->n == 0) return;
    fprintf(f, "<tr><th scope=\"row\">%s</th><td>%lld</td>", name, (long long)m->n);
    const double value[] = {m->mean, m->median, m->linefit_mean, m->linefit_median,
                            ice_mean_ratio(m)};
    for (int i = 0; i < 5; i++) fprintf(f, "<td>%.2f</td>", value[i]);
    fputs("</tr>\n", f);
}

static void put_means_begin(FILE *f, const char *caption) {
    static const char *const head[] = {
        "", "events", "mean", "median", "LineFit mean", "LineFit median", "ratio of means"};
    put_table_begin(f, caption, head, 7);
}

static void put_bin_table(FILE *f, const IceTable *t, const char *caption) {
    fputs("<section>\n", f);
    put_means_begin(f, caption);
    for (int i = 0; i < t->n; i++) {
        char label[32];
        ice_bin_label(t, i, label);
        put_row(f, label, &t->bin[i]);
    }
    put_table_end(f);
    fputs("</section>\n", f);
}

static void put_summary(FILE *f, const IceScore *s) {
    static const char *const head[] = {"", "x", "y", "z"}, *const name[] = {"model", "LineFit"};
    fputs("<section>\n", f);
    put_means_begin(f, "Angle to the truth, degrees");
    put_row(f, "all", &s->all);
    put_row(f, "tracks", &s->track);
    put_row(f, "cascades", &s->cascade);
    fprintf(f, "<tr><th scope=\"row\">a guess</th><td></td><td>%.2f</td><td>%.2f</td>",
            ICE_GUESS_DEG, ICE_GUESS_DEG);
    fputs("<td></td><td></td><td></td></tr>\n", f);
    put_table_end(f);
    put_table_begin(f, "Bias: mean of predicted - true", head, 4);
    for (int k = 0; k < 2; k++) {
        const double *bias = k ? s->linefit_bias : s->bias;
        fprintf(f, "<tr><th scope=\"row\">%s</th>", name[k]);
        for (int c = 0; c < 3; c++) fprintf(f, "<td>%+.4f</td>", bias[c]);
        fputs("</tr>\n", f);
    }
    put_table_end(f);
    fputs("</section>\n", f);
}

/* ---- The page ---- */

static void put_head(FILE *f, const IceScore *s, const char *title) {
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n", f);
    fputs("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/>\n<title>", f);
    plot_text(f, title);
    fprintf(f, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>", STYLE);
    plot_text(f, title);
    fprintf(f, "</h1>\n<p>Events: %lld. The predicted direction is %.2f degrees off in the mean, ",
            (long long)s->all.n, s->all.mean);
    fprintf(f, "%.2f in the median; LineFit's, the field's first guess, %.2f and %.2f on the same ",
            s->all.median, s->all.linefit_mean, s->all.linefit_median);
    fprintf(f, "events; a guess without looking, %.0f.</p>\n", ICE_GUESS_DEG);
    if (s->n_linefit_undefined)
        fprintf(f,
                "<p>LineFit is undefined for %lld events; it counts as straight from above.</p>\n",
                (long long)s->n_linefit_undefined);
}

static void put_page(FILE *f, const IceScore *s, const IceOutcome *o, int64_t n,
                     const Curve curve[CURVES], const char *title) {
    put_head(f, s, title);
    fputs("<div class=\"two\">\n", f);
    put_summary(f, s);
    put_curves(f, curve);
    put_angles(f, s, o, n);
    put_bins(f, &s->doms, "By DOMs", "DOMs that saw light",
             "The mean angle by how many sensors saw light.");
    put_bins(f, &s->pulses, "By pulses", "pulses", "The mean angle by how many pulses there are.");
    put_bins(f, &s->zenith, "By zenith", "true zenith, degrees",
             "The mean angle by where the neutrino comes from: 0 straight from above, 90 along the "
             "horizon, 180 through the Earth.");
    put_bias(f, s);
    fputs("</div>\n<div class=\"two\">\n", f);
    static const char *const zenith[] = {"true zenith, degrees", "predicted zenith, degrees"};
    static const char *const azimuth[] = {"true azimuth, degrees", "predicted azimuth, degrees"};
    put_heat_map(
        f, o, n, "Zenith", 180, ice_zenith_deg, zenith,
        "Events by true and predicted zenith, at least so many in a cell of 5 degrees; on the "
        "line they are equal.");
    put_heat_map(f, o, n, "Azimuth", 360, ice_azimuth_deg, azimuth,
                 "Events by true and predicted azimuth, at least so many in a cell of 10 degrees; "
                 "0 and 360 are the same, and near the zenith azimuth says little.");
    fputs("</div>\n<div class=\"two\">\n", f);
    put_bin_table(f, &s->doms, "By DOMs that saw light, from, to below");
    put_bin_table(f, &s->pulses, "By pulses, from, to below");
    put_bin_table(f, &s->zenith, "By true zenith in degrees, from, to below");
    fputs("</div>\n</body>\n</html>\n", f);
}

int ice_report_html(const IceScore *s, const IceOutcome *o, int64_t n, const char *run,
                    const char *title, const char *path, Err *e) {
    Curve curve[CURVES] = {0};
    char *page = NULL;
    size_t size = 0;
    int status = curves_read(curve, run, e);
    if (!status) {
        FILE *f = open_memstream(&page, &size);
        CHECK(f, "no memory for a page");
        put_page(f, s, o, n, curve, title);
        CHECK(!ferror(f) && !fclose(f), "no memory for a page of %zu bytes", size);
        status = atomic_save(path, page, size, e);
    }
    for (int i = 0; i < CURVES; i++) {
        free(curve[i].step);
        free(curve[i].value);
    }
    free(page);
    return status;
}
