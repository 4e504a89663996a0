/* train_icecube as a user runs it: what it prints, what it leaves, and that its options do what
 * they say. Bad input is test_train_icecube_bad's, checkpoints are test_train_icecube_resume's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "data/icecube_data.h"
#include "kernels/attention.h"
#include "llmc_like/safetensors.h"
#include "models/icecube_options.h"
#include "test/cli_icecube.h"

static cJSON *json_file(void **state, const char *name) {
    char *text = cli_text(state, name);
    cJSON *json = cJSON_Parse(text);
    if (!json) fail_msg("%s is no JSON", name);
    free(text);
    return json;
}

/* ---- what it prints ---- */

static void help(void **state) {
    static const char *const named[] = {"model", "data", "predict", "csv", "max-pulses", "schedule",
                                        "attn",  "mask", "plan",    "lr",  "skip-bad"};
    char *out = cli_good(cli_run(state, "--help")), flag[64];
    IceSettings s = {.dom = ice_config_default()};
    Option row[TRAIN_MAX_OPTIONS];
    const int n = ice_options(&s, row);
    for (int i = 0; i < n; i++) {
        snprintf(flag, sizeof flag, row[i].kind == OPT_FLAG ? "--[no-]%s" : "  --%s", row[i].name);
        assert_says(out, row[i].kind == OPT_HEADING ? row[i].name : flag);
    }
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        snprintf(flag, sizeof flag, "%s ", named[i]);
        assert_says(out, flag);
    }
    free(out);
}

static void plan(void **state) {
    static const char *const attn[] = {"sdpa", "auto", "all"};
    for (int i = 0; i < 3; i++) {
        char *out =
            cli_good(cli_run(state, CLI_SMALL, "--plan", "--out", "@plan", "--attn", attn[i]));
        assert_says(out, "activations");
        assert_says(out, "batches ahead");
        assert_says(out, "together");
        assert_says(out, "GFLOP");
        free(out);
        assert_false(cli_exists(state, "plan"));
    }
}

static void banner(void **state) {
    char *out = cli_good(cli_run(state, CLI_SMALL, "--out", "@banner", "--profile"));
    assert_says(out,
                "hierarchical: 1 + 1 layers, pooling mean; d 16, 2 heads of 8; at most 64 DOMs");
    assert_says(out, "simulator");
    assert_says(out, "mask document");
    assert_says(out, " deg)");
    assert_says(out, " events/s  ");
    assert_says(out, " pulses/s  ");
    assert_says(out, "% of peak");
    assert_says(out, "  attention ");
    free(out);
    out = cli_good(cli_run(state, CLI_FLAT, "--out", "@flat"));
    assert_says(out, "flat: 1 layers, input linear, 3 pulses a DOM; d 16, 2 heads of 8");
    free(out);
    assert_false(cli_exists(state, "banner/eval.json"));
    assert_false(cli_exists(state, "banner/checkpoints/last.safetensors"));
}

/* ---- what it leaves ---- */

/* The mean angle of a CSV's directions from the simulator's held-out truth. */
static double csv_error(void **state, const char *name, int events) {
    char *text = cli_text(state, name), *save;
    IceData d;
    const IceDataOptions o = {.source = "sim", .seed = 1, .held_out = "auto"};
    assert_int_equal(ice_data_open(&d, &o, NULL), 0);
    IceReader *r = ice_reader_new(&d);
    double sum = 0;
    char *line = strtok_r(text, "\n", &save);
    assert_string_equal(line, "event_id,azimuth,zenith");
    for (int i = 0; i < events; i++) {
        int64_t id;
        bool known;
        double az, ze;
        line = strtok_r(NULL, "\n", &save);
        assert_non_null(line);
        assert_int_equal(strtoll(line, NULL, 10), i);
        assert_int_equal(sscanf(strchr(line, ','), ",%lf,%lf", &az, &ze), 2);
        assert_true(az >= 0 && az < 2 * M_PI && ze >= 0 && ze <= M_PI + 1e-6);
        const IceEvent *e = ice_data_event(&d, r, true, (uint64_t)i, &id, &known, NULL);
        const float v[] = {(float)(cos(az) * sin(ze)), (float)(sin(az) * sin(ze)), (float)cos(ze)};
        sum += ice_angle_deg(v, e->direction);
    }
    assert_null(strtok_r(NULL, "\n", &save));
    free(text);
    ice_reader_free(r);
    ice_data_close(&d);
    return sum / events;
}

/* Training, evaluation and prediction agree on what the model says of the same events. */
static void outputs(void **state) {
    static const char *const step[] = {"loss",       "grad_norm",       "lr",
                                       "step_ms",    "events_per_s",    "pulses_per_s",
                                       "forward_ms", "attn_forward_ms", "attn_backward_ms"};
    char *out = cli_good(cli_run(state, CLI_SMALL, "--eval-every", "2", "--save-every", "2",
                                 "--max-pulses", "300", "--dropout", "0.1", "--out", "@run"));
    assert_says(out, "LineFit");
    assert_says(out, "zenith");
    free(out);
    Lines steps = metrics(state, "run", "loss"), evals = metrics(state, "run", "held_out_deg");
    assert_int_equal(steps.n, 4);
    assert_int_equal(evals.n, 2);
    for (int i = 0; i < steps.n; i++)
        for (size_t k = 0; k < sizeof step / sizeof *step; k++)
            assert_true(number(steps.line[i], step[k]) >= 0);
    cJSON *eval = json_file(state, "run/eval.json"), *run = json_file(state, "run/run.json");
    const double mean = number(eval, "mean_angle_deg");
    assert_true(mean > 0 && mean < 180 && number(eval, "n_events") == 6);
    const double linefit = number(eval, "linefit_mean_angle_deg");
    assert_true(fabs(number(evals.line[1], "held_out_linefit_deg") - linefit) < 1e-9);
    assert_true(fabs(number(evals.line[1], "held_out_deg") - mean) < 1e-9);
    assert_true(number(evals.line[1], "held_out_median_deg") > 0);
    assert_true(number(run, "parameters") > 1000 && number(run, "memory_bytes") > 1e5);
    cJSON_Delete(eval);
    cJSON_Delete(run);
    free_lines(&steps);
    free_lines(&evals);
    char *page = cli_text(state, "run/report.html");
    assert_says(page, "<svg");
    free(page);

    static const char *const last = "@run/checkpoints/last.safetensors";
    out = cli_good(cli_run(state, "--predict", last, "--csv", "@sim.csv", "--threads", "2"));
    assert_says(out, "sim.csv: 6 events");
    assert_says(out, "where the direction is known");
    free(out);
    assert_true(fabs(csv_error(state, "sim.csv", 6) - mean) < 1e-3);
    free(cli_good(cli_run(state, "--predict", last, "--out", "@dir", "--eval-events", "9", "--attn",
                          "vanilla")));
    csv_error(state, "dir/predictions.csv", 9);
    assert_false(cli_exists(state, "dir/metrics.jsonl"));
}

static void unknown_direction(ShardArrays *a) {
    a->direction[2 * 3] = a->direction[2 * 3 + 1] = NAN;
}

/* A folder of shards: trained on, held out, predicted; known directions and others. */
static void shards(void **state) {
    cli_shard(state, "shards", 7, NULL);
    cli_shard(state, "shards", 9, NULL);
    char *out = cli_good(cli_run(state, CLI_SMALL, "--data", "@shards", "--eval-every", "4",
                                 "--eval-events", "100", "--save-every", "4", "--out", "@sharded"));
    assert_says(out, "; a guess 90; 24 events");
    free(out);
    cli_shard(state, "unknown", 655, unknown_direction);
    out = cli_good(cli_run(state, "--predict", "@sharded/checkpoints/last.safetensors", "--data",
                           "@unknown", "--csv", "@unknown.csv", "--threads", "2"));
    assert_says(out, "unknown.csv: 24 events");
    assert_says(out, "all                            23 ");
    free(out);
    char *text = cli_text(state, "unknown.csv");
    assert_says(text, "\n655003,");
    assert_says(text, "\n655023,");
    free(text);
}

/* ---- attention ---- */

static void every_backend(void **state) {
    static const char *const fields[] = {"attn_forward_ms", "attn_backward_ms", "step_ms",
                                         "events_per_s",    "peak_mib",         "loss_diff",
                                         "grad_diff"};
    char *out =
        cli_good(cli_run(state, CLI_SMALL, "--attn", "all", "--steps", "2", "--out", "@all"));
    cJSON *all = json_file(state, "all/attn_all.json");
    int n = 0;
    for (; attn_backends[n]; n++) {
        char line[64];
        snprintf(line, sizeof line, "\n%s ", attn_backends[n]->name);
        assert_says(out, line);
        const cJSON *row = cJSON_GetArrayItem(all, n);
        for (size_t k = 0; k < sizeof fields / sizeof *fields; k++)
            assert_true(number(row, fields[k]) >= 0);
        assert_true(number(row, "loss_diff") <= 1e-5 && number(row, "grad_diff") <= 1e-3);
    }
    assert_int_equal(cJSON_GetArraySize(all), n);
    cJSON_Delete(all);
    free(out);
    out = cli_good(cli_run(state, CLI_SMALL, "--attn", "auto", "--out", "@auto"));
    assert_says(out, "the fastest here");
    free(out);
}

static void expressions(void **state) {
    free(cli_good(cli_run(state, CLI_SMALL, "--out", "@named")));
    free(cli_good(cli_run(state, CLI_SMALL, "--attn", "flex", "--mask", "doc[q] == doc[k]", "--out",
                          "@expression")));
    assert_true(loss_difference(state, "named", "expression") <= 1e-5);
    static const char mask[] = "doc[k] == doc[q] && q - k <= 2", score[] = "score - 0.1*(q - k)";
    free(cli_good(cli_run(state, CLI_SMALL, "--attn", "flex", "--mask", mask, "--score", score,
                          "--out", "@flex")));
    free(cli_good(cli_run(state, CLI_SMALL, "--attn", "vanilla", "--mask", mask, "--score", score,
                          "--out", "@plain")));
    assert_true(loss_difference(state, "flex", "plain") <= 1e-5);
    assert_true(loss_difference(state, "flex", "named") > 1e-5);
}

/* What the expression learns, one set of arrays a layer, is the same whoever computes it. */
static void learned(void **state) {
    static const char score[] = "score - slope[h]*abs(q - k) + bias[(q + k) % 4]";
    for (int flat = 0; flat < 2; flat++) {
        free(flat ? cli_good(cli_run(state, CLI_FLAT, "--attn", "all", "--steps", "2", "--score",
                                     score, "--learned", "slope:2,bias:4", "--out", "@learned"))
                  : cli_good(cli_run(state, CLI_SMALL, "--attn", "all", "--steps", "2", "--score",
                                     score, "--learned", "slope:2,bias:4", "--out", "@learned")));
        cJSON *all = json_file(state, "learned/attn_all.json");
        int ran = 0;
        for (int i = 0; i < cJSON_GetArraySize(all); i++) {
            const cJSON *row = cJSON_GetArrayItem(all, i);
            if (cJSON_GetObjectItem(row, "declined")) continue;
            assert_true(number(row, "loss_diff") <= 1e-5 && number(row, "grad_diff") <= 1e-3);
            ran++;
        }
        assert_int_equal(ran, 3); /* vanilla, flex, flex-dense */
        cJSON_Delete(all);
    }
}

/* ---- models and batches ---- */

static void models(void **state) {
    static const char *const pooling[] = {"max", "mean+max", "class", "embedding"},
                             *const input[] = {"linear", "mlp", "none"};
    for (int i = 0; i < 4; i++)
        free(cli_good(cli_run(state, CLI_SMALL, "--pooling", pooling[i], "--steps", "2",
                              "--eval-every", "2", "--out", "@pooled")));
    for (int i = 0; i < 3; i++)
        free(cli_good(cli_run(state, CLI_FLAT, "--input", input[i], "--steps", "2", "--eval-every",
                              "2", "--out", "@input")));
}

/* However a step's events are cut into forwards, it is the same step; with dropout, which draws by
 * part, it is not. */
static void parts(void **state) {
    free(cli_good(cli_run(state, CLI_SMALL, "--batch", "8", "--max-pulses", "0", "--dropout", "0",
                          "--out", "@whole")));
    static const char *const most[] = {"1", "400"};
    for (int i = 0; i < 2; i++) {
        free(cli_good(cli_run(state, CLI_SMALL, "--batch", "8", "--max-pulses", most[i],
                              "--dropout", "0", "--out", "@cut")));
        assert_true(loss_difference(state, "whole", "cut") <= 1e-5);
    }
    free(cli_good(
        cli_run(state, CLI_SMALL, "--accumulate", "2", "--dropout", "0", "--out", "@accumulated")));
    assert_true(loss_difference(state, "whole", "accumulated") <= 1e-5);
    free(cli_good(cli_run(state, CLI_SMALL, "--dropout", "0", "--out", "@half")));
    assert_true(loss_difference(state, "whole", "half") > 1e-3);
    free(cli_good(
        cli_run(state, CLI_SMALL, "--batch", "8", "--dropout", "0.2", "--out", "@dropout")));
    assert_true(loss_difference(state, "whole", "dropout") > 1e-4);
}

static double mean_loss(const Lines *l, int from, int n) {
    double sum = 0;
    for (int i = from; i < from + n; i++) sum += number(l->line[i], "loss");
    return sum / n;
}

/* It learns: on few events, seen again and again, the loss is well below where it began. */
static void learning(void **state) {
    cli_shard(state, "few", 7, NULL);
    free(cli_good(cli_run(state, CLI_SMALL, "--data", "@few", "--held-out", "none", "--steps",
                          "100", "--batch", "24", "--lr", "1e-2", "--dropout", "0", "--time-scale",
                          "3e3", "--out", "@learning")));
    Lines l = metrics(state, "learning", "loss");
    assert_int_equal(l.n, 100);
    const double first = mean_loss(&l, 0, 4), last = mean_loss(&l, 96, 4);
    if (!(last < 0.7 * first)) fail_msg("loss %g at first, %g at last", first, last);
    free_lines(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help),        cmocka_unit_test(plan),    cmocka_unit_test(banner),
        cmocka_unit_test(outputs),     cmocka_unit_test(shards),  cmocka_unit_test(every_backend),
        cmocka_unit_test(expressions), cmocka_unit_test(models),  cmocka_unit_test(parts),
        cmocka_unit_test(learning),    cmocka_unit_test(learned),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
