/* Checkpoints of train_icecube: a run that was stopped, killed or interrupted and goes on is the
 * same to the bit as one that never stopped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test/cli_icecube.h"

#include "test/cli_checkpoint.h"

/* Six steps of several parts each, with dropout, in folder "whole", made once. */
#define SIX                                                                                    \
    CLI_SMALL, "--steps", "6", "--accumulate", "2", "--max-pulses", "300", "--dropout", "0.1", \
        "--save-every", "1", "--seed", "5"

static void whole_run(void **state) {
    if (!cli_exists(state, "whole")) free(cli_good(cli_run(state, SIX, "--out", "@whole")));
}

/* The options travel in the checkpoint: nothing but the folder is named again. */
static void stopped(void **state) {
    whole_run(state);
    /* evaluations every third step leave step_000003 and must not change what training draws */
    free(cli_good(cli_run(state, SIX, "--eval-every", "3", "--out", "@parts")));
    same_run(state, "whole", "parts");
    char *out = cli_good(
        cli_run(state, "--resume", "@parts/checkpoints/step_000003.safetensors", "--threads", "2"));
    assert_says(out, "after step 3");
    assert_null(strstr(out, "step     3/6"));
    assert_says(out, "step     4/6");
    free(out);
    same_run(state, "whole", "parts");
    cli_refused(cli_run(state, "--resume", "@parts"), "6 steps already|--steps");
}

static void flat(void **state) {
    free(cli_good(
        cli_run(state, CLI_FLAT, "--dropout", "0.1", "--save-every", "1", "--out", "@flat_whole")));
    free(cli_good(cli_run(state, CLI_FLAT, "--dropout", "0.1", "--eval-every", "2", "--save-every",
                          "4", "--out", "@flat_parts")));
    char *out = cli_good(cli_run(
        state, "--resume", "@flat_parts/checkpoints/step_000002.safetensors", "--threads", "2"));
    assert_says(out, "flat: 1 layers");
    free(out);
    same_run(state, "flat_whole", "flat_parts");
}

/* One start of the run in folder "killed", anew or with --resume. */
static pid_t go_on(void **state) {
    return has_checkpoint(state, "killed")
               ? cli_begin(state, "--resume", "--threads", "2", "--out", "@killed")
               : cli_begin(state, SIX, "--out", "@killed");
}

static void killed(void **state) {
    whole_run(state);
    kill_often(state, "killed", go_on);
    Cli r = cli_wait(state, go_on(state));
    if (r.status) assert_non_null(strstr(r.err, "made 6 steps already"));
    cli_free(&r);
    same_run(state, "whole", "killed");
}

/* Ctrl-C: the step is finished, the state saved, status 0; in the middle of an evaluation, too. */
static void interrupted_run(void **state) {
    pid_t pid = cli_begin(state, CLI_SMALL, "--steps", "1000000", "--out", "@stopped");
    wait_for_steps(state, "stopped");
    kill(pid, SIGINT);
    char *out = cli_good(cli_wait(state, pid));
    assert_says(out, "stopped after step ");
    assert_says(out, "--resume");
    free(out);
    assert_true(has_checkpoint(state, "stopped"));
    pid = cli_begin(state, CLI_SMALL, "--steps", "1000000", "--eval-every", "2", "--eval-events",
                    "1000000", "--out", "@evaluating");
    wait_for_steps(state, "evaluating");
    kill(pid, SIGTERM);
    out = cli_good(cli_wait(state, pid));
    assert_says(out, "stopped after step 2;");
    free(out);
    out = cli_good(cli_run(state, "--resume", "@evaluating", "--steps", "3", "--eval-every", "0",
                           "--threads", "2"));
    assert_says(out, "after step 2\n");
    free(out);
    /* a prediction keeps what was done */
    char name[64], path[SCRATCH_PATH];
    struct stat written = {0};
    pid = cli_begin(state, "--predict", "@stopped/checkpoints/last.safetensors", "--eval-events",
                    "100000000", "--out", "@partly", "--threads", "2");
    snprintf(name, sizeof name, "partly/predictions.csv.%ld.0.tmp", (long)pid);
    scratch_path(state, name, path);
    for (int wait = 0; wait < 60000 && (stat(path, &written) || written.st_size < 100); wait++)
        sleep_ms(1);
    kill(pid, SIGINT);
    cli_refused(cli_wait(state, pid), "predictions.csv holds|of 100000000 events|stopped as asked");
    char *text = cli_text(state, "partly/predictions.csv");
    assert_int_equal(strncmp(text, "event_id,azimuth,zenith\n0,", 26), 0);
    assert_true(text[strlen(text) - 1] == '\n');
    free(text);
    assert_int_equal(count(state, "partly", "predictions.csv"), 1);
}

/* The order of events and what was held out depend on the batch files that are there. */
static void other_data(void **state) {
#define SHARDED CLI_SMALL, "--steps", "2", "--save-every", "2"
    for (int number = 7; number <= 9; number++) cli_shard(state, "shards", number, NULL);
    free(cli_good(cli_run(state, SHARDED, "--data", "@shards", "--out", "@sharded")));
    cli_shard(state, "shards", 10, NULL);
    static const char *const words =
        "last.safetensors began with other data|48 events to train on (batches 7-8), 24 held out "
        "(batches 9)|72 events to train on (batches ";
    cli_refused(cli_run(state, "--resume", "@sharded", "--steps", "3"), words);
    cli_refused(cli_run(state, "--resume", "@sharded", "--steps", "3", "--held-out", "9"), words);
    cli_refused(cli_run(state, "--resume", "@sharded", "--steps", "3", "--data", "sim"),
                "simulator");
    for (int number = 7; number <= 9; number++) cli_shard(state, "moved", number, NULL);
    free(cli_good(cli_run(state, "--resume", "@sharded", "--steps", "3", "--data", "@moved")));
}

/* A checkpoint tells that there was an expression, and never which: the user gives it again. */
static void expression(void **state) {
    static const char mask[] = "doc[q] == doc[k] && k - q <= 1000";
    char path[SCRATCH_PATH], *bytes;
    size_t size;
    Err e = {""};
    free(cli_good(cli_run(state, CLI_SMALL, "--attn", "vanilla", "--mask", mask, "--steps", "2",
                          "--save-every", "2", "--out", "@expression")));
    scratch_path(state, "expression/checkpoints/last.safetensors", path);
    assert_int_equal(read_whole_file(path, &bytes, &size, &e), 0);
    assert_null(memmem(bytes, size, "doc[q]", 6));
    free(bytes);
    cli_refused(cli_run(state, "--resume", "@expression", "--steps", "3"),
                "last.safetensors|--mask|give --mask again|run.json");
    free(cli_good(cli_run(state, "--resume", "@expression", "--steps", "3", "--mask", mask)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped),    cmocka_unit_test(flat),
        cmocka_unit_test(killed),     cmocka_unit_test(interrupted_run),
        cmocka_unit_test(other_data), cmocka_unit_test(expression),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
