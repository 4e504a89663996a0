#include "data/icecube_report.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/metrics.h"

static const double DEGREE = 3.14159265358979323846 / 180;

/* ---- The figures ---- */

/* Each event's angles, and room to sort some of them. */
typedef struct Angles {
    int64_t n;
    double *model, *linefit, *sorted;
    int8_t *group;
} Angles;

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    if (isnan(x) || isnan(y)) return !!isnan(x) - !!isnan(y);
    return (x > y) - (x < y);
}

/* Mean and median of the n angles in a->sorted, n >= 1. */
static void average(Angles *a, int64_t n, double *mean, double *median) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a->sorted[i];
    *mean = sum / (double)n;
    qsort(a->sorted, (size_t)n, sizeof *a->sorted, by_size);
    *median = (a->sorted[(n - 1) / 2] + a->sorted[n / 2]) / 2;
}

static IceMean mean_of_group(Angles *a, int group) {
    IceMean m = {0};
    for (int64_t i = 0; i < a->n; i++)
        if (a->group[i] == group) a->sorted[m.n++] = a->model[i];
    if (m.n == 0) return m;
    average(a, m.n, &m.mean, &m.median);
    for (int64_t i = 0, k = 0; i < a->n; i++)
        if (a->group[i] == group) a->sorted[k++] = a->linefit[i];
    average(a, m.n, &m.linefit_mean, &m.linefit_median);
    return m;
}

static double doms_of(const IceLabel *l) { return l->n_doms; }
static double pulses_of(const IceLabel *l) { return l->n_pulses; }
static double zenith_of(const IceLabel *l) { return ice_zenith_deg(l->direction); }

static void fill_table(IceTable *t, Angles *a, const IceOutcome *o,
                       double (*quantity)(const IceLabel *)) {
    for (int64_t i = 0; i < a->n; i++) {
        double x = quantity(&o[i].label);
        int bin = 0;
        while (bin < t->n - 1 && x >= t->edge[bin + 1]) bin++;
        a->group[i] = (int8_t)bin;
    }
    for (int bin = 0; bin < t->n; bin++) t->bin[bin] = mean_of_group(a, bin);
}

/* 0, 8, 16, ..., 1024 and more */
static IceTable table_of_counts(const char *name) {
    IceTable t = {.n = 9};
    snprintf(t.name, sizeof t.name, "%s", name);
    for (int i = 1; i < t.n; i++) t.edge[i] = 4 << i;
    t.edge[t.n] = INFINITY;
    return t;
}

static IceTable table_of_zenith(void) {
    IceTable t = {.name = "zenith", .n = 12};
    for (int i = 0; i <= t.n; i++) t.edge[i] = 15 * i;
    return t;
}

void ice_score(IceScore *s, const IceOutcome *o, int64_t n) {
    CHECK(n >= 1, "%lld events to score", (long long)n);
    Angles a = {.n = n,
                .model = malloc((size_t)n * sizeof(double)),
                .linefit = malloc((size_t)n * sizeof(double)),
                .sorted = malloc((size_t)n * sizeof(double)),
                .group = calloc((size_t)n, 1)};
    CHECK(a.model && a.linefit && a.sorted && a.group, "no memory for %lld angles", (long long)n);
    *s = (IceScore){.doms = table_of_counts("DOMs"),
                    .pulses = table_of_counts("pulses"),
                    .zenith = table_of_zenith()};
    for (int64_t i = 0; i < n; i++) {
        const IceLabel *l = &o[i].label;
        CHECK(l->known, "the direction of event %lld is not known", (long long)l->event_id);
        a.model[i] = ice_angle_deg(o[i].direction, l->direction);
        a.linefit[i] = ice_angle_deg(l->linefit, l->direction);
        s->n_linefit_undefined += !l->linefit_ok;
        for (int c = 0; c < 3; c++) {
            s->bias[c] += ((double)o[i].direction[c] - l->direction[c]) / (double)n;
            s->linefit_bias[c] += ((double)l->linefit[c] - l->direction[c]) / (double)n;
        }
    }
    s->all = mean_of_group(&a, 0);
    for (int64_t i = 0; i < n; i++) a.group[i] = o[i].label.track;
    s->track = mean_of_group(&a, 1);
    s->cascade = mean_of_group(&a, 0);
    fill_table(&s->doms, &a, o, doms_of);
    fill_table(&s->pulses, &a, o, pulses_of);
    fill_table(&s->zenith, &a, o, zenith_of);
    free(a.model);
    free(a.linefit);
    free(a.sorted);
    free(a.group);
}

double ice_zenith_deg(const float v[3]) { return atan2(hypot(v[0], v[1]), v[2]) / DEGREE; }

double ice_azimuth_deg(const float v[3]) {
    double a = atan2(v[1], v[0]) / DEGREE;
    if (a < 0) a += 360;
    return a < 360 ? a : 0; /* a tiny angle below 0 rounds to 360 */
}

double ice_mean_ratio(const IceMean *m) {
    return m->linefit_mean > 0 ? m->mean / m->linefit_mean : NAN;
}

void ice_bin_label(const IceTable *t, int i, char label[32]) {
    if (isinf(t->edge[i + 1]))
        snprintf(label, 32, "%g or more", t->edge[i]);
    else
        snprintf(label, 32, "%g to %g", t->edge[i], t->edge[i + 1]);
}

/* ---- For the terminal ---- */

static void print_row(const char *name, const IceMean *m) {
    if (m->n == 0) return;
    printf("%-22s %10lld %10.2f %10.2f %13.2f %14.2f %14.2f\n", name, (long long)m->n, m->mean,
           m->median, m->linefit_mean, m->linefit_median, ice_mean_ratio(m));
}

static void print_table(const IceTable *t) {
    printf("\n%s, from, to below\n", t->name);
    for (int i = 0; i < t->n; i++) {
        char label[32];
        ice_bin_label(t, i, label);
        print_row(label, &t->bin[i]);
    }
}

static void print_bias(const char *name, const double bias[3]) {
    printf("%-22s %+10.4f %+10.4f %+10.4f\n", name, bias[0], bias[1], bias[2]);
}

void ice_score_print(const IceScore *s) {
    printf("%-22s %10s %10s %10s %13s %14s %14s\n", "angle off, degrees", "events", "mean",
           "median", "LineFit mean", "LineFit median", "ratio of means");
    print_row("all", &s->all);
    print_row("tracks", &s->track);
    print_row("cascades", &s->cascade);
    printf("%-22s %10s %10.2f %10.2f\n", "a guess", "", ICE_GUESS_DEG, ICE_GUESS_DEG);
    print_table(&s->doms);
    print_table(&s->pulses);
    print_table(&s->zenith);
    printf("\n%-22s %10s %10s %10s\n", "predicted - true", "x", "y", "z");
    print_bias("model", s->bias);
    print_bias("LineFit", s->linefit_bias);
    if (s->n_linefit_undefined)
        printf("LineFit is undefined for %lld events; it counts as straight from above.\n",
               (long long)s->n_linefit_undefined);
}

/* ---- eval.json ---- */

static void add_mean(cJSON *json, const char *prefix, const IceMean *m) {
    const double value[] = {(double)m->n, m->mean, m->median, m->linefit_mean, m->linefit_median};
    static const char *const key[] = {"n_events", "mean_angle_deg", "median_angle_deg",
                                      "linefit_mean_angle_deg", "linefit_median_angle_deg"};
    for (int i = 0; i < 5; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", prefix, key[i]);
        /* no events, no angle: null, as cJSON writes what is not finite */
        cJSON_AddNumberToObject(json, name, i && m->n == 0 ? NAN : value[i]);
    }
}

static void add_bias(cJSON *json, const char *prefix, const double bias[3]) {
    for (int c = 0; c < 3; c++) {
        char name[64];
        snprintf(name, sizeof name, "%sbias_%c", prefix, "xyz"[c]);
        cJSON_AddNumberToObject(json, name, bias[c]);
    }
}

static void add_table(cJSON *json, const char *name, const IceTable *t) {
    cJSON *list = cJSON_AddArrayToObject(json, name);
    for (int i = 0; i < t->n; i++) {
        cJSON *bin = cJSON_CreateObject();
        cJSON_AddNumberToObject(bin, "from", t->edge[i]);
        cJSON_AddNumberToObject(bin, "below", t->edge[i + 1]);
        add_mean(bin, "", &t->bin[i]);
        cJSON_AddItemToArray(list, bin);
    }
}

int ice_score_save(const IceScore *s, const char *path, Err *e) {
    cJSON *json = cJSON_CreateObject();
    add_mean(json, "", &s->all);
    cJSON_AddNumberToObject(json, "guess_angle_deg", ICE_GUESS_DEG);
    add_mean(json, "track_", &s->track);
    add_mean(json, "cascade_", &s->cascade);
    add_bias(json, "", s->bias);
    add_bias(json, "linefit_", s->linefit_bias);
    cJSON_AddNumberToObject(json, "n_linefit_undefined", (double)s->n_linefit_undefined);
    add_table(json, "by_doms", &s->doms);
    add_table(json, "by_pulses", &s->pulses);
    add_table(json, "by_zenith", &s->zenith);
    int status = json_save(path, json, e);
    cJSON_Delete(json);
    return status;
}
