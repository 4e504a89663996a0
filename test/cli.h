/* Starts a program as a user does, as a child process, and takes what it leaves: exit status,
 * stdout, stderr. Its name is CLI_PROGRAM, which the test defines (test/cli_wm.h, cli_icecube.h),
 * and it is the one of the test's own flavour: ./NAME beside build/release, or
 * build/FLAVOUR/bin/NAME. An argument that begins with @ is a path in the test's scratch folder:
 *
 *   Cli r = cli_run(state, CLI_SMALL, "--steps", "6", "--out", "@run");
 *   assert_int_equal(r.status, 0);
 *   cli_free(&r);
 */
#ifndef TEST_CLI_H
#define TEST_CLI_H

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cjson/cJSON.h>

#include "llmc_like/fsio.h"
#include "test/scratch.h"

enum { CLI_ARGS = 80, CLI_SECONDS = 300 };

typedef struct Cli {
    int status; /* of exit; -1 where a signal ended it */
    int signal; /* which; 0: none */
    char *out, *err;
} Cli;

static inline void cli_program(char path[SCRATCH_PATH]) {
    char self[SCRATCH_PATH];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = 0;
    for (int i = 0; i < 2; i++) *strrchr(self, '/') = 0; /* build/FLAVOUR */
    const bool release = !strcmp(strrchr(self, '/'), "/release");
    assert_true(snprintf(path, SCRATCH_PATH, "%s/%s" CLI_PROGRAM, self,
                         release ? "../../" : "bin/") < SCRATCH_PATH);
    if (access(path, X_OK)) fail_msg("%s is not built: make " CLI_PROGRAM " first", path);
}

/* In the child: no more than file_limit bytes a file (0: as many as the disk takes). */
static inline void cli_become(const char *program, char **argv, const char *folder,
                              rlim_t file_limit) {
    char out[SCRATCH_PATH], err[SCRATCH_PATH], cache[SCRATCH_PATH];
    snprintf(out, sizeof out, "%s/stdout", folder);
    snprintf(err, sizeof err, "%s/stderr", folder);
    snprintf(cache, sizeof cache, "%s/cache", folder);
    setenv("XDG_CACHE_HOME", cache, 1);
    setenv("OMP_WAIT_POLICY", "passive", 1); /* the machine may be busy */
    const int o = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const int e = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (o < 0 || e < 0 || dup2(o, 1) < 0 || dup2(e, 2) < 0) _exit(126);
    if (file_limit) {
        const struct rlimit limit = {file_limit, file_limit};
        signal(SIGXFSZ, SIG_IGN); /* stays so across exec; write then says EFBIG */
        if (setrlimit(RLIMIT_FSIZE, &limit)) _exit(126);
    }
    alarm(CLI_SECONDS); /* one that hangs is a failure, too */
    execv(program, argv);
    _exit(127);
}

static inline pid_t cli_start(void **state, rlim_t file_limit, const char *const *args) {
    char program[SCRATCH_PATH], *argv[CLI_ARGS + 2];
    int n = 1;
    cli_program(program);
    argv[0] = program;
    for (; *args; args++, n++) {
        assert_true(n < CLI_ARGS);
        const size_t size = strlen(*args) + strlen(*state) + 2;
        assert_non_null(argv[n] = malloc(size));
        if (**args == '@')
            snprintf(argv[n], size, "%s/%s", (const char *)*state, *args + 1);
        else
            snprintf(argv[n], size, "%s", *args);
    }
    argv[n] = NULL;
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) cli_become(program, argv, *state, file_limit);
    assert_true(pid > 0);
    while (n > 1) free(argv[--n]);
    return pid;
}

/* The whole text of a file of the scratch folder, which the caller frees. */
static inline char *cli_text(void **state, const char *name) {
    char path[SCRATCH_PATH], *text;
    size_t size;
    Err e = {""};
    if (read_whole_file(scratch_path(state, name, path), &text, &size, &e)) fail_msg("%s", e.text);
    return text;
}

static inline Cli cli_wait(void **state, pid_t pid) {
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return (Cli){.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1,
                 .signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0,
                 .out = cli_text(state, "stdout"),
                 .err = cli_text(state, "stderr")};
}

#define cli_begin(state, ...) cli_start(state, 0, (const char *const[]){__VA_ARGS__, NULL})
#define cli_run(state, ...) cli_wait(state, cli_begin(state, __VA_ARGS__))

static inline void cli_free(Cli *r) {
    free(r->out);
    free(r->err);
}

/* A run that must go well; what it printed, which the caller frees. */
static inline char *cli_good(Cli r) {
    if (r.status || r.signal || *r.err)
        fail_msg("status %d, signal %d, stderr: %s", r.status, r.signal, r.err);
    free(r.err);
    return r.out;
}

/* A run that must be refused: status 1 and, on stderr, one sentence of the program's with all these
 * words (separated by |). */
static inline void cli_refused(Cli r, const char *words) {
    char word[256];
    if (r.status != 1 || r.signal || strncmp(r.err, CLI_PROGRAM ": ", sizeof CLI_PROGRAM + 1) ||
        strstr(r.err + 1, CLI_PROGRAM ": "))
        fail_msg("status %d, signal %d where 1 and a sentence with %s were expected; stderr: %s",
                 r.status, r.signal, words, r.err);
    while (*words) {
        const size_t n = strcspn(words, "|");
        snprintf(word, sizeof word, "%.*s", (int)n, words);
        if (!strstr(r.err, word)) fail_msg("no '%s' in: %s", word, r.err);
        words += n + (words[n] == '|');
    }
    cli_free(&r);
}

static inline bool cli_exists(void **state, const char *name) {
    char path[SCRATCH_PATH];
    return access(scratch_path(state, name, path), F_OK) == 0;
}

static inline void assert_says(const char *text, const char *words) {
    if (!strstr(text, words)) fail_msg("no '%s' in:\n%s", words, text);
}

/* ---- metrics.jsonl ---- */

enum { MOST_LINES = 128 };

typedef struct Lines {
    int n;
    cJSON *line[MOST_LINES];
} Lines;

/* The lines that have this key. */
static inline Lines metrics(void **state, const char *run, const char *key) {
    char name[64], *save;
    snprintf(name, sizeof name, "%s/metrics.jsonl", run);
    char *text = cli_text(state, name);
    Lines l = {0};
    for (char *at = strtok_r(text, "\n", &save); at; at = strtok_r(NULL, "\n", &save)) {
        cJSON *json = cJSON_Parse(at);
        if (!json) fail_msg("no JSON: %s", at);
        if (cJSON_HasObjectItem(json, key)) {
            assert_true(l.n < MOST_LINES);
            l.line[l.n++] = json;
        } else {
            cJSON_Delete(json);
        }
    }
    free(text);
    return l;
}

static inline void free_lines(Lines *l) {
    for (int i = 0; i < l->n; i++) cJSON_Delete(l->line[i]);
}

static inline double number(const cJSON *o, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!cJSON_IsNumber(v)) fail_msg("no number '%s'", key);
    return v->valuedouble;
}

/* Largest difference of the two runs' losses; NaN where they have not the same steps. */
static inline double loss_difference(void **state, const char *run, const char *other) {
    Lines a = metrics(state, run, "loss"), b = metrics(state, other, "loss");
    double diff = a.n && a.n == b.n ? 0 : NAN;
    for (int i = 0; i < a.n && i < b.n; i++)
        diff = fmax(diff, fabs(number(a.line[i], "loss") - number(b.line[i], "loss")));
    free_lines(&a);
    free_lines(&b);
    return diff;
}

#endif
