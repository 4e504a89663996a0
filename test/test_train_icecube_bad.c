/* train_icecube given what it cannot use: status 1, one sentence that says what was found, what was
 * expected and what to do, and nothing lost. What is wrong with a table of Kaggle's is
 * test_icecube_convert's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test/cli_icecube.h"

#include "test/cli_checkpoint.h"

/* ---- options ---- */

static void options(void **state) {
    static const struct {
        const char *option, *value, *words;
    } bad[] = {
        {"--stpes", "4", "--stpes|'--steps'|--help"},
        {"--preset", "papre", "papre|did you mean 'paper'"},
        {"--model", "flta", "flta|hierarchical|flat"},
        {"--attn", "paded", "paded|did you mean 'padded'"},
        {"--pooling", "mena", "mena|did you mean 'mean'"},
        {"--schedule", "cosine", "cosine|one-cycle|warmup-cosine"},
        {"--n-heads", "5", "16|5|multiple"},
        {"--dropout", "1", "--dropout|1|0.99"},
        {"--time-scale", "nan", "--time-scale|nan|number"},
        {"--max-doms", "0", "--max-doms|0|from 1"},
        {"--n-layers", "2", "--n-layers|--model flat|leave it out"},
        {"--mask", "causal", "--mask|causal|doc[q] == doc[k]"},
        {"--mask", "k <= q", "--mask|doc[q] == doc[k]"},
        {"--mask", "doc[q] == doc[k", "--mask|']'|^"},
        {"--score", "score -", "--score|expression ends|^"},
        {"--held-out", "3", "3|simulator"},
        {"--data", "@nowhere", "nowhere|sim"},
        {"--init", "@none.safetensors", "none.safetensors|No such file"},
        {"--predict", "@none.safetensors", "none.safetensors|No such file"},
        {"--resume", "@none", "none/checkpoints/last.safetensors|No such file"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cli_refused(cli_run(state, CLI_SMALL, "--out", "@bad", bad[i].option, bad[i].value),
                    bad[i].words);
    cli_refused(cli_run(state, CLI_FLAT, "--out", "@bad", "--pooling", "max"),
                "--pooling|--model hierarchical|leave it out");
    cli_refused(cli_run(state, CLI_SMALL, "--predict", "@a", "--init", "@b", "--out", "@bad"),
                "--predict|--init|exclude");
    cli_refused(cli_run(state, CLI_SMALL, "--attn", "sdpa", "--score", "score", "--out", "@bad"),
                "--attn sdpa|score|vanilla|flex");
    cli_refused(cli_run(state, "--predict", "@a", "--attn", "all", "--out", "@bad"),
                "--attn all|--predict|name one");
    cli_refused(
        cli_run(state, "--preset", "flat-5m", "--model", "hierarchical", "--out", "@bad", "--plan"),
        "--preset flat-5m|the flat model|--model is hierarchical|leave one");
    cli_refused(cli_run(state, "--model", "flat", "--preset", "paper", "--out", "@bad", "--plan"),
                "--preset paper|the hierarchical model|--model is flat|leave one");
    free(cli_good(cli_run(state, "--model", "flat", "--preset", "flat-demo", "--plan")));
    assert_false(cli_exists(state, "bad"));
}

/* ---- data ---- */

static void data_refused(void **state, const char *words) {
    cli_refused(cli_run(state, CLI_SMALL, "--data", "@data", "--out", "@bad"), words);
    assert_false(cli_exists(state, "bad/checkpoints/last.safetensors"));
}

/* Files of the shards' folder: missing, truncated, of another type, unfinished. */
static void files(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    cli_shard(state, "data", 3, NULL);
    cli_shard(state, "data", 4, NULL);
    scratch_path(state, "data/batch_3/charge.npy", path);
    assert_int_equal(truncate(path, 1000), 0);
    data_refused(state, "batch_3/charge.npy|truncated");
    assert_int_equal(unlink(path), 0);
    data_refused(state, "batch_3/charge.npy|No such file");
    cli_shard(state, "data", 3, NULL);
    assert_int_equal(npy_write(scratch_path(state, "data/batch_4/time.npy", path), NPY_F4, 1,
                               (int64_t[]){5}, (float[5]){0}, &e),
                     0);
    data_refused(state, "batch_4/time.npy|float32|int32");
    cli_shard(state, "data", 4, NULL);
    assert_int_equal(unlink(scratch_path(state, "data/batch_4/done", path)), 0);
    data_refused(state, "batch_4|unfinished|converter");
    cli_shard(state, "data", 4, NULL);
    assert_int_equal(unlink(scratch_path(state, "data/geometry.npy", path)), 0);
    data_refused(state, "geometry.npy|No such file");
}

static void no_such_sensor(ShardArrays *a) { a->sensor[a->offsets[5] + 1] = 5160; }
static void nan_charge(ShardArrays *a) { a->charge[a->offsets[5] + 1] = NAN; }
static void infinite_charge(ShardArrays *a) { a->charge[a->offsets[5] + 1] = INFINITY; }
static void negative_charge(ShardArrays *a) { a->charge[a->offsets[5] + 1] = -0.5f; }
static void negative_time(ShardArrays *a) { a->time[a->offsets[5] + 1] = -3; }
static void no_pulses(ShardArrays *a) { a->offsets[6] = a->offsets[5]; }
static void falling_offsets(ShardArrays *a) { a->offsets[6] = a->offsets[5] - 1; }
static void no_direction(ShardArrays *a) { a->direction[10] = a->direction[11] = NAN; }
static void two_bad(ShardArrays *a) {
    no_such_sensor(a);
    a->charge[a->offsets[8]] = -1;
}

/* How often a text says these words. */
static int times(const char *text, const char *words) {
    int n = 0;
    while ((text = strstr(text, words))) text += strlen(words), n++;
    return n;
}

/* Event 2005 is damaged in each way: named when it is read, and left out with --skip-bad. */
static void events(void **state) {
    static const struct {
        SpoilFn *spoil;
        const char *words;
        bool at_open; /* nothing of such a batch can be trusted */
    } bad[] = {
        {no_such_sensor, "event 2005|batch 2|5160|--skip-bad", false},
        {nan_charge, "event 2005|batch 2|charge|nan|--skip-bad", false},
        {infinite_charge, "event 2005|charge|inf", false},
        {negative_charge, "event 2005|charge|-0.5", false},
        {negative_time, "event 2005|time|-3", false},
        {no_pulses, "event 2005|0 pulses", false},
        {no_direction, "event 2005|direction", false},
        {falling_offsets, "batch_2/offsets.npy", true},
    };
    char *out;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cli_shard(state, "data", 2, bad[i].spoil);
        cli_shard(state, "data", 3, NULL);
        cli_shard(state, "data", 4, NULL);
        cli_refused(cli_run(state, CLI_SMALL, "--batch", "24", "--data", "@data", "--held-out",
                            "3-4", "--out", "@bad"),
                    bad[i].words);
        if (bad[i].at_open) continue;
        out = cli_good(cli_run(state, CLI_SMALL, "--batch", "24", "--data", "@data", "--held-out",
                               "3-4", "--skip-bad", "--out", "@skipped"));
        assert_int_equal(times(out, "left out   event 2005 of batch 2 is damaged"), 1);
        assert_says(out, "1 event was left out"); /* in each of four passes */
        free(out);
    }
    assert_false(cli_exists(state, "bad/checkpoints/last.safetensors"));
    cli_shard(state, "data", 2, nan_charge);
    /* held out: before the first step. Later than that: what was trained is kept */
    cli_refused(cli_run(state, CLI_SMALL, "--data", "@data", "--held-out", "2", "--eval-every", "4",
                        "--eval-events", "24", "--out", "@bad"),
                "batch 2|event 2005");
    assert_false(cli_exists(state, "bad/run.json"));
    cli_shard(state, "data", 2, no_such_sensor);
    Cli r = cli_run(state, CLI_SMALL, "--data", "@data", "--steps", "30", "--save-every", "30",
                    "--seed", "1", "--out", "@later");
    assert_says(r.out, "stopped after step ");
    assert_says(r.out, "--resume");
    cli_refused(r, "event 2005");
    out = cli_good(cli_run(state, "--resume", "@later", "--skip-bad", "--threads", "2"));
    assert_says(out, "resumed ");
    assert_says(out, "step    30/30");
    free(out);
    /* prediction */
    free(cli_good(
        cli_run(state, CLI_SMALL, "--steps", "1", "--save-every", "1", "--out", "@model")));
    cli_shard(state, "damaged", 2, two_bad);
    static const char *const last = "@model/checkpoints/last.safetensors";
    cli_refused(cli_run(state, "--predict", last, "--data", "@damaged", "--csv", "@bad.csv"),
                "event 2005|--skip-bad");
    assert_false(cli_exists(state, "bad.csv"));
    out = cli_good(cli_run(state, "--predict", last, "--data", "@damaged", "--csv", "@good.csv",
                           "--skip-bad", "--threads", "2"));
    assert_says(out, "22 events");
    assert_says(out, "left out   event 2005");
    assert_says(out, "left out   event 2008");
    assert_says(out, "2 events were left out");
    free(out);
    /* the CSV's place is looked at first: so many events take hours */
    cli_refused(cli_run(state, "--predict", last, "--eval-events", "1000000000", "--csv", "@model"),
                "model|it is a folder|name a file");
}

/* What a run left out does not follow its checkpoint into a prediction. */
static void skipped_once(void **state) {
    cli_shard(state, "holes", 2, two_bad);
    free(cli_good(cli_run(state, CLI_SMALL, "--data", "@holes", "--held-out", "none", "--skip-bad",
                          "--steps", "1", "--save-every", "1", "--out", "@skipping")));
    cli_refused(cli_run(state, "--predict", "@skipping/checkpoints/last.safetensors", "--data",
                        "@holes", "--csv", "@holes.csv"),
                "event 2005|--skip-bad");
    assert_false(cli_exists(state, "holes.csv"));
}

static void spoil_all(ShardArrays *a) {
    for (int i = 0; i < a->E; i++) a->charge[a->offsets[i]] = NAN;
}

/* A step of which nothing is left makes no update, and the run goes on. */
static void nothing_left(void **state) {
    cli_shard(state, "sparse", 2, two_bad);
    char *out =
        cli_good(cli_run(state, CLI_SMALL, "--data", "@sparse", "--held-out", "none", "--batch",
                         "1", "--steps", "24", "--skip-bad", "--out", "@sparse_run"));
    assert_int_equal(times(out, "nothing is left of its events: no update"), 2);
    free(out);
    Lines l = metrics(state, "sparse_run", "loss");
    assert_int_equal(l.n, 22);
    free_lines(&l);
    cli_shard(state, "spoilt", 2, spoil_all);
    cli_refused(cli_run(state, CLI_SMALL, "--data", "@spoilt", "--held-out", "none", "--skip-bad",
                        "--out", "@bad"),
                "spoilt|no event that can be read|is damaged");
}

/* ---- an event of 178,000 pulses ---- */

enum { MANY = 178000 };

/* Event 0 takes all the pulses that there is room for, on all sensors in turn. */
static void enormous(ShardArrays *a) {
    const int64_t more = MANY - a->offsets[1], rest = a->offsets[4] - a->offsets[1];
    a->E = 4;
    memmove(a->sensor + MANY, a->sensor + a->offsets[1], (size_t)rest * sizeof *a->sensor);
    memmove(a->time + MANY, a->time + a->offsets[1], (size_t)rest * sizeof *a->time);
    memmove(a->charge + MANY, a->charge + a->offsets[1], (size_t)rest * sizeof *a->charge);
    memmove(a->auxiliary + MANY, a->auxiliary + a->offsets[1], (size_t)rest);
    for (int64_t p = 0; p < MANY; p++) {
        a->sensor[p] = (int16_t)(p % 2000);
        a->time[p] = (int32_t)(10000 + p / 20);
        a->charge[p] = 1;
        a->auxiliary[p] = 0;
    }
    for (int i = 1; i <= 4; i++) a->offsets[i] += more;
    a->P = a->offsets[4];
}

/* The same, and to be left out before its size matters. */
static void enormous_and_damaged(ShardArrays *a) {
    enormous(a);
    a->charge[0] = NAN;
}

/* Vanilla attention of so many heads takes 4 TB for it: more than a machine has. */
#define LARGE                                                                                  \
    CLI_SMALL, "--data", "@large", "--held-out", "none", "--steps", "2", "--max-doms", "2000", \
        "--max-pulses", "4096", "--d-model", "64", "--n-heads", "32", "--dropout", "0"

/* It goes through where the backend needs no more than a row a pulse; where a backend needs more
 * than the machine has, it is named, or left out. */
static void large(void **state) {
    cli_shard(state, "large", 1, enormous);
    free(cli_good(cli_run(state, LARGE, "--out", "@through")));
    cli_refused(cli_run(state, LARGE, "--attn", "vanilla", "--out", "@none"),
                "step 1: event 1000 with 178000 pulses on 2000 DOMs needs|MiB more|MiB "
                "left|--max-pulses|--skip-bad");
    cli_refused(cli_run(state, LARGE, "--attn", "vanilla", "--max-pulses", "0", "--out", "@none"),
                "a forward of 4 events|the largest of them event 1000 with 178000 pulses|MiB");
    char *out =
        cli_good(cli_run(state, LARGE, "--attn", "vanilla", "--skip-bad", "--out", "@left_out"));
    assert_says(out, "left out   event 1000 with 178000 pulses");
    assert_says(out, "2 parts were left out");
    free(out);
    out = cli_good(cli_run(state, LARGE, "--attn", "vanilla", "--skip-bad", "--batch", "1",
                           "--steps", "4", "--out", "@alone"));
    assert_int_equal(times(out, "nothing is left of its events: no update"), 1);
    free(out);
    cli_refused(cli_run(state, CLI_SMALL, "--d-model", "16384", "--d-ff", "1048576", "--t1-layers",
                        "256", "--out", "@none"),
                "MiB|left|smaller --max-pulses");
}

/* A prediction keeps what was done before the event that it ends at, an evaluation the run. */
static void large_later(void **state) {
    cli_shard(state, "later", 0, NULL);
    cli_shard(state, "later", 1, enormous);
#define LATER                                                                                   \
    LARGE, "--data", "@later", "--held-out", "1", "--attn", "vanilla", "--steps", "4", "--out", \
        "@evaluated"
    Cli r = cli_run(state, LATER, "--eval-every", "2", "--save-every", "100");
    assert_says(r.out, "stopped after step 2");
    cli_refused(r, "event 1000 with 178000 pulses|MiB");
    static const char *const last = "@evaluated/checkpoints/last.safetensors";
    cli_refused(cli_run(state, "--predict", last, "--data", "@later", "--held-out", "all", "--csv",
                        "@later.csv"),
                "later.csv holds 24 of 28 events|event 1000 with 178000 pulses|MiB");
    char *text = cli_text(state, "later.csv");
    assert_int_equal(times(text, "\n"), 25);
    assert_says(text, "\n23,");
    free(text);
    cli_refused(cli_run(state, "--predict", last, "--data", "@large", "--csv", "@large.csv"),
                "event 1000 with 178000 pulses|MiB");
    assert_false(cli_exists(state, "large.csv"));
}

/* Left out for its size, it is as if it had never been there: loss, gradient and rates. */
static void share_of_left_out(void **state) {
    cli_shard(state, "large", 1, enormous);
    free(cli_good(cli_run(state, LARGE, "--attn", "vanilla", "--skip-bad", "--out", "@too_large")));
    cli_shard(state, "large", 1, enormous_and_damaged);
    free(cli_good(
        cli_run(state, LARGE, "--attn", "vanilla", "--skip-bad", "--out", "@damaged_run")));
    assert_true(loss_difference(state, "too_large", "damaged_run") <= 1e-5);
    Lines a = metrics(state, "too_large", "loss"), b = metrics(state, "damaged_run", "loss");
    assert_int_equal(a.n, 2);
    for (int i = 0; i < 2; i++) {
        const double x = number(a.line[i], "grad_norm"), y = number(b.line[i], "grad_norm");
        assert_true(x > 0 && fabs(x - y) <= 1e-4 * y);
        const double events =
            number(a.line[i], "events_per_s") * number(a.line[i], "step_ms") / 1000;
        assert_true(fabs(events - 3) < 1e-6);
    }
    free_lines(&a);
    free_lines(&b);
}

/* ---- checkpoints ---- */

static void good_runs(void **state) {
    if (cli_exists(state, "good")) return;
    free(
        cli_good(cli_run(state, CLI_SMALL, "--steps", "2", "--save-every", "2", "--out", "@good")));
    free(cli_good(
        cli_run(state, CLI_FLAT, "--steps", "2", "--save-every", "2", "--out", "@good_flat")));
}

static void misname(StEntry *t, float *data) {
    (void)data;
    if (!strcmp(t->name, "param.t1.input_projection.bias")) t->name = NULL;
}

static void spoil(StEntry *t, float *data) {
    if (strstr(t->name, "param.t1.")) data[0] = NAN;
}

static void other_checkpoints(void **state) {
    good_runs(state);
    write_model_of(state, "wm.safetensors", "{\"d_model\": 32, \"n_heads\": 2, \"n_blocks\": 1}");
    static const char *const option[] = {"--resume", "--init", "--predict"};
    for (int i = 0; i < 3; i++) {
        cli_refused(cli_run(state, option[i], "@wm.safetensors", "--out", "@bad"),
                    "wm.safetensors|another program's model|train_icecube");
        cli_refused(cli_run(state, option[i], "@good_flat/checkpoints/last.safetensors", "--model",
                            "hierarchical", "--out", "@bad"),
                    "last.safetensors|holds the flat model|hierarchical|leave --model out");
        cli_refused(cli_run(state, option[i], "@good/checkpoints/last.safetensors", "--model",
                            "flat", "--out", "@bad"),
                    "last.safetensors|holds the hierarchical model|flat");
    }
    cli_refused(
        cli_run(state, "--resume", "@good", "--steps", "3", "--d-model", "32", "--out", "@bad"),
        "does not fit|other shape");
    rewrite(state, "good/checkpoints/last.safetensors", "less.safetensors", misname);
    cli_refused(cli_run(state, "--init", "@less.safetensors", "--out", "@bad"),
                "less.safetensors|missing|t1.input_projection.bias");
    cli_refused(cli_run(state, "--resume", "@good"), "made 2 steps already|--steps");
    cli_refused(cli_run(state, CLI_SMALL, "--out", "@good"), "already holds checkpoints|--resume");
    assert_false(cli_exists(state, "bad"));
}

static void not_a_number(void **state) {
    good_runs(state);
    rewrite(state, "good/checkpoints/last.safetensors", "nan.safetensors", spoil);
    copy_file(state, "good/checkpoints/last.safetensors", "before.safetensors");
    cli_refused(cli_run(state, "--resume", "@nan.safetensors", "--steps", "5", "--out", "@good",
                        "--save-every", "1"),
                "step 3:|loss is|nan|last good checkpoint in|--lr");
    assert_true(same_file(state, "good/checkpoints/last.safetensors", "before.safetensors"));
    cli_refused(cli_run(state, "--predict", "@nan.safetensors", "--csv", "@nan.csv"),
                "event 0:|(nan, nan, nan)|expected numbers|nan.safetensors|another checkpoint");
    assert_false(cli_exists(state, "nan.csv"));
}

static void full_disk(void **state) {
    good_runs(state);
    copy_file(state, "good/checkpoints/last.safetensors", "before.safetensors");
    const char *const args[] = {"--resume", "@good", "--steps", "4", "--save-every", "1", NULL};
    cli_refused(cli_wait(state, cli_start(state, 16384, args)), "last.safetensors|large");
    assert_true(same_file(state, "good/checkpoints/last.safetensors", "before.safetensors"));
    const char *const predict[] = {"--predict",
                                   "@good/checkpoints/last.safetensors",
                                   "--eval-events",
                                   "2000",
                                   "--csv",
                                   "@full.csv",
                                   NULL};
    cli_refused(cli_wait(state, cli_start(state, 16384, predict)), "full.csv|large");
    assert_false(cli_exists(state, "full.csv"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options),
        cmocka_unit_test(files),
        cmocka_unit_test(events),
        cmocka_unit_test(skipped_once),
        cmocka_unit_test(nothing_left),
        cmocka_unit_test(large),
        cmocka_unit_test(large_later),
        cmocka_unit_test(share_of_left_out),
        cmocka_unit_test(other_checkpoints),
        cmocka_unit_test(not_a_number),
        cmocka_unit_test(full_disk),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
