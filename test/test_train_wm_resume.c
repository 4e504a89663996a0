/* Checkpoints of train_wm: a run that was stopped, killed or interrupted and goes on is the same to
 * the bit as one that never stopped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test/cli_wm.h"

#include "test/cli_checkpoint.h"

/* Six steps in one go, in folder "whole", made once. */
#define SIX CLI_SMALL, "--steps", "6", "--accumulate", "2", "--save-every", "1", "--seed", "5"

static void whole_run(void **state) {
    if (!cli_exists(state, "whole")) free(cli_good(cli_run(state, SIX, "--out", "@whole")));
}

/* The options travel in the checkpoint: nothing but the folder is named again. */
static void stopped(void **state) {
    char path[SCRATCH_PATH], other[SCRATCH_PATH];
    whole_run(state);
    /* evaluations every third step leave step_000003 and must not change what training draws */
    free(cli_good(cli_run(state, SIX, "--eval-every", "3", "--out", "@parts")));
    same_run(state, "whole", "parts");
    char *out = cli_good(
        cli_run(state, "--resume", "@parts/checkpoints/step_000003.safetensors", "--threads", "2"));
    assert_non_null(strstr(out, "after step 3"));
    assert_null(strstr(out, "step     3/6"));
    assert_non_null(strstr(out, "step     4/6"));
    free(out);
    same_run(state, "whole", "parts");
    /* and in a folder of its own, from a copy of the file */
    scratch_path(state, "parts/checkpoints/step_000003.safetensors", path);
    scratch_path(state, "third.safetensors", other);
    assert_int_equal(rename(path, other), 0);
    free(cli_good(
        cli_run(state, "--resume", "@third.safetensors", "--threads", "2", "--out", "@elsewhere")));
    same_tensors(state, "whole", "elsewhere");
    char *a = losses(state, "whole"), *b = losses(state, "elsewhere");
    assert_string_equal(strstr(a, "{\"step\":3,"), b);
    free(a);
    free(b);
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

/* Ctrl-C: the step is finished, the state saved, status 0. */
static void interrupted_run(void **state) {
    whole_run(state);
    const pid_t pid = cli_begin(state, CLI_SMALL, "--steps", "1000000", "--out", "@stopped");
    wait_for_steps(state, "stopped");
    kill(pid, SIGINT);
    char *out = cli_good(cli_wait(state, pid));
    const char *told = strstr(out, "stopped after step ");
    assert_non_null(told);
    assert_non_null(strstr(told, "--resume"));
    const long step = strtol(told + strlen("stopped after step "), NULL, 10);
    assert_true(step >= 2);
    free(out);
    char last[32];
    snprintf(last, sizeof last, "%ld", step + 2);
    out = cli_good(cli_run(state, "--resume", "@stopped", "--steps", last, "--threads", "2"));
    snprintf(last, sizeof last, "after step %ld\n", step);
    assert_non_null(strstr(out, last));
    free(out);
    /* SIGTERM is the same, also before the first step */
    const pid_t early = cli_begin(state, CLI_SMALL, "--steps", "1000000", "--out", "@early");
    for (int wait = 0; wait < 60000 && !cli_exists(state, "early/metrics.jsonl"); wait++)
        sleep_ms(1);
    kill(early, SIGTERM);
    free(cli_good(cli_wait(state, early)));
    assert_true(has_checkpoint(state, "early"));
    /* a comparison has nothing to save: it says so and leaves */
    const pid_t all = cli_begin(state, CLI_SMALL, "--attn", "all", "--steps", "1000", "--batch",
                                "64", "--out", "@compared");
    for (int wait = 0; wait < 60000 && !cli_exists(state, "compared"); wait++) sleep_ms(1);
    kill(all, SIGINT);
    cli_refused(cli_wait(state, all), "stopped while --attn | ran");
}

static const char *origin(const cJSON *run, const char *option) {
    const cJSON *all = cJSON_GetObjectItemCaseSensitive(run, "options");
    const cJSON *one = cJSON_GetObjectItemCaseSensitive(all, option);
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(one, "from"));
}

/* --steps asks a finished run for more. */
static void extended(void **state) {
    free(cli_good(cli_run(state, CLI_SMALL, "--preset", "tiny", "--steps", "2", "--save-every", "2",
                          "--out", "@more")));
    char *out = cli_good(cli_run(state, "--resume", "--out", "@more", "--steps", "5"));
    assert_non_null(strstr(out, "step     3/5"));
    assert_non_null(strstr(out, "step     5/5"));
    free(out);
    char *list = losses(state, "more");
    int lines = 0;
    for (const char *c = list; *c; c++) lines += *c == '\n';
    assert_int_equal(lines, 5);
    free(list);
    cli_refused(cli_run(state, "--resume", "@more"), "5 steps already|--steps");
    /* run.json says where each value came from, and another preset's none would be taken */
    char *text = cli_text(state, "more/run.json");
    cJSON *json = cJSON_Parse(text);
    assert_string_equal(origin(json, "batch"), "checkpoint");
    assert_string_equal(origin(json, "steps"), "user");
    cJSON_Delete(json);
    free(text);
    free(cli_good(cli_run(state, "--resume", "@more", "--steps", "6", "--preset", "tiny")));
    cli_refused(cli_run(state, "--resume", "@more", "--steps", "7", "--preset", "paper"),
                "last.safetensors: |with --preset tiny|leave out --preset paper|--init");
}

/* Evaluated every step: the five with the lowest held-out loss stay, and the last. */
static void best_five(void **state) {
    enum { STEPS = 7 };
    char path[SCRATCH_PATH], name[64];
    free(cli_good(cli_run(state, CLI_MODEL, "--batch", "2", "--steps", "7", "--eval-clips", "1",
                          "--threads", "2", "--eval-every", "1", "--save-every", "7",
                          "--sample-steps", "1", "--actions", "up", "--warmup", "1", "--data",
                          "pong", "--out", "@best")));
    assert_int_equal(count(state, "best/checkpoints", "step_"), 5);
    assert_int_equal(count(state, "best/checkpoints", "last"), 1);
    assert_int_equal(count(state, "best/checkpoints", ""), 8); /* with . and .. */
    char *text = cli_text(state, "best/metrics.jsonl"), *save;
    double loss[STEPS], worst_kept = 0, best_dropped = 1e9;
    int n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        const char *key = "\"held_out_loss\":", *at = strstr(line, key);
        if (at) loss[n++] = strtod(at + strlen(key), NULL);
        assert_true(n <= STEPS);
    }
    free(text);
    assert_int_equal(n, STEPS);
    for (int i = 0; i < STEPS; i++) {
        snprintf(name, sizeof name, "best/checkpoints/step_%06d.safetensors", i + 1);
        StFile f;
        if (!cli_exists(state, name)) {
            if (loss[i] < best_dropped) best_dropped = loss[i];
            continue;
        }
        assert_int_equal(st_open(scratch_path(state, name, path), &f, NULL), 0);
        assert_true(strtod(st_meta(&f, "heldout_loss"), NULL) == loss[i]);
        st_close(&f);
        if (loss[i] > worst_kept) worst_kept = loss[i];
    }
    assert_true(worst_kept <= best_dropped);
}

/* A checkpoint tells that there was an expression, and never which: the user gives it again. */
static void expression(void **state) {
    static const char mask[] = "q >= k || frame[q] == frame[k]", score[] = "score - 0.125*(q - k)";
    char path[SCRATCH_PATH], *bytes;
    size_t size;
    Err e = {""};
    free(cli_good(cli_run(state, CLI_SMALL, "--attn", "vanilla", "--mask", mask, "--score", score,
                          "--steps", "2", "--save-every", "2", "--out", "@expression")));
    scratch_path(state, "expression/checkpoints/last.safetensors", path);
    assert_int_equal(read_whole_file(path, &bytes, &size, &e), 0);
    assert_null(memmem(bytes, size, "frame[q]", 8));
    assert_null(memmem(bytes, size, "0.125", 5));
    free(bytes);
    cli_refused(cli_run(state, "--resume", "@expression", "--steps", "3", "--score", score),
                "last.safetensors|--mask|give --mask again|run.json");
    cli_refused(cli_run(state, "--sample", "@expression/checkpoints/last.safetensors", "--mask",
                        mask, "--out", "@bad"),
                "give --score again");
    free(cli_good(cli_run(state, "--resume", "@expression", "--steps", "3", "--mask", mask,
                          "--score", score)));
}

/* A file of the originals holds `param` names alone; the run begins with them at step 1. */
static void init(void **state) {
    char path[SCRATCH_PATH];
    StFile f;
    StWriter w;
    Err e = {""};
    whole_run(state);
    scratch_path(state, "whole/checkpoints/last.safetensors", path);
    if (st_open(path, &f, &e)) fail_msg("%s", e.text);
    for (int bare = 0; bare < 2; bare++) {
        st_writer_init(&w);
        for (int i = 0; i < f.n; i++)
            if (!strncmp(f.entry[i].name, "param.", 6))
                st_writer_add(&w, f.entry[i].name + (bare ? 6 : 0), DT_F32, f.entry[i].ndim,
                              f.entry[i].shape, f.entry[i].data);
        assert_int_equal(
            st_writer_save(
                &w, scratch_path(state, bare ? "bare.safetensors" : "param.safetensors", path), &e),
            0);
        st_writer_free(&w);
    }
    st_close(&f);
    free(cli_good(cli_run(state, CLI_SMALL, "--init", "@param.safetensors", "--out", "@init")));
    free(cli_good(cli_run(state, CLI_SMALL, "--init", "@bare.safetensors", "--out", "@bare")));
    free(cli_good(cli_run(state, CLI_SMALL, "--out", "@fresh")));
    char *a = losses(state, "init"), *b = losses(state, "bare"), *fresh = losses(state, "fresh");
    assert_string_equal(a, b);
    assert_string_not_equal(a, fresh);
    assert_int_equal(strncmp(a, "{\"step\":0,", 10), 0);
    free(a);
    free(b);
    free(fresh);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped),         cmocka_unit_test(killed),
        cmocka_unit_test(interrupted_run), cmocka_unit_test(extended),
        cmocka_unit_test(best_five),       cmocka_unit_test(init),
        cmocka_unit_test(expression),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
