/* Checkpoints that programs leave, for tests of test/cli.h's kind: are two runs the same, what do
 * damaged files do, and is all well after kill -9? */
#ifndef TEST_CLI_CHECKPOINT_H
#define TEST_CLI_CHECKPOINT_H

#include <dirent.h>
#include <time.h>

#include "llmc_like/safetensors.h"
#include "test/cli.h"

/* Losses and gradient norms of metrics.jsonl as they are written, one "step loss norm" a line. */
static inline char *losses(void **state, const char *run) {
    char name[64];
    snprintf(name, sizeof name, "%s/metrics.jsonl", run);
    char *text = cli_text(state, name), *list = calloc(1, strlen(text) + 1), *save;
    assert_non_null(list);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *lr = strstr(line, ",\"lr\"");
        if (!lr) continue; /* an evaluation's */
        *lr = 0;
        strcat(strcat(list, line), "\n");
    }
    free(text);
    return list;
}

/* All tensors of the two runs' last checkpoints, and what tells where they are. */
static inline void same_tensors(void **state, const char *run, const char *other) {
    char name[64], path[SCRATCH_PATH];
    StFile a, b;
    Err e = {""};
    snprintf(name, sizeof name, "%s/checkpoints/last.safetensors", run);
    if (st_open(scratch_path(state, name, path), &a, &e)) fail_msg("%s", e.text);
    snprintf(name, sizeof name, "%s/checkpoints/last.safetensors", other);
    if (st_open(scratch_path(state, name, path), &b, &e)) fail_msg("%s", e.text);
    assert_int_equal(a.n, b.n);
    assert_true(a.n > 30); /* parameters and moments */
    for (int i = 0; i < a.n; i++) {
        const StEntry *t = st_find(&b, a.entry[i].name);
        assert_non_null(t);
        assert_int_equal(t->bytes, a.entry[i].bytes);
        if (memcmp(t->data, a.entry[i].data, t->bytes))
            fail_msg("%s and %s differ in %s", run, other, t->name);
    }
    assert_string_equal(st_meta(&a, "step"), st_meta(&b, "step"));
    assert_string_equal(st_meta(&a, "optim.t"), st_meta(&b, "optim.t"));
    assert_string_equal(st_meta(&a, "checksum"), st_meta(&b, "checksum"));
    st_close(&a);
    st_close(&b);
}

static inline void same_run(void **state, const char *run, const char *other) {
    char *a = losses(state, run), *b = losses(state, other);
    assert_string_equal(a, b);
    free(a);
    free(b);
    same_tensors(state, run, other);
}

static inline void sleep_ms(long ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static inline bool has_checkpoint(void **state, const char *run) {
    char name[64];
    snprintf(name, sizeof name, "%s/checkpoints/last.safetensors", run);
    return cli_exists(state, name);
}

static inline int count(void **state, const char *folder, const char *prefix) {
    char path[SCRATCH_PATH];
    int n = 0;
    DIR *d = opendir(scratch_path(state, folder, path));
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) n += !strncmp(f->d_name, prefix, strlen(prefix));
    closedir(d);
    return n;
}

/* A checkpoint file of one parameter whose config says whose model it is: another program's, say.
 */
static inline void write_model_of(void **state, const char *name, const char *config) {
    char path[SCRATCH_PATH];
    const float x = 1;
    Err e = {""};
    StWriter w;
    st_writer_init(&w);
    st_writer_add(&w, "param.registers", DT_F32, 1, (int64_t[]){1}, &x);
    st_writer_meta(&w, "config", config);
    if (st_writer_save(&w, scratch_path(state, name, path), &e)) fail_msg("%s", e.text);
    st_writer_free(&w);
}

/* Starts the run with go_on again and again and kills it: soon after its start, and right behind
 * each checkpoint, however long that takes here. A run that is through already ends with status 1.
 */
static inline void kill_often(void **state, const char *run, pid_t (*go_on)(void **)) {
    const long first_ms[] = {1, 20, 60, 120};
    char name[64], path[SCRATCH_PATH];
    int kills = 0;
    for (int i = 0; i < 7; i++) {
        struct stat before = {0}, now;
        snprintf(name, sizeof name, "%s/checkpoints/last.safetensors", run);
        const bool had = stat(scratch_path(state, name, path), &before) == 0;
        const pid_t pid = go_on(state);
        if (i < 4) sleep_ms(first_ms[i]);
        for (int wait = 0; i >= 4 && wait < 30000 && waitpid(pid, NULL, WNOHANG | WNOWAIT) == 0;
             wait++) {
            if (stat(path, &now) == 0 && (!had || now.st_ino != before.st_ino)) break;
            sleep_ms(1);
        }
        kill(pid, SIGKILL);
        Cli r = cli_wait(state, pid);
        kills += r.signal == SIGKILL;
        if (!r.signal && r.status) assert_non_null(strstr(r.err, "steps already"));
        cli_free(&r);
    }
    assert_true(kills >= 3);
}

/* Waits until the run has made its first two steps. */
static inline void wait_for_steps(void **state, const char *run) {
    char name[64];
    snprintf(name, sizeof name, "%s/metrics.jsonl", run);
    for (int wait = 0; wait < 60000; wait++, sleep_ms(1)) {
        if (!cli_exists(state, name)) continue;
        char *list = losses(state, run);
        const bool going = strstr(list, "\"step\":1,") != NULL;
        free(list);
        if (going) return;
    }
    fail_msg("%s makes no step", run);
}

/* Copies a checkpoint tensor by tensor through `change`, which may alter it (no name: leave it
 * out), and drops the checksum. */
typedef void ChangeFn(StEntry *t, float *data);

static inline void rewrite(void **state, const char *from, const char *to, ChangeFn change) {
    char path[SCRATCH_PATH];
    Err e = {""};
    StFile f;
    StWriter w;
    if (st_open(scratch_path(state, from, path), &f, &e)) fail_msg("%s", e.text);
    st_writer_init(&w);
    float **copy = calloc((size_t)f.n, sizeof *copy);
    assert_non_null(copy);
    for (int i = 0; i < f.n; i++) {
        StEntry t = f.entry[i];
        assert_non_null(copy[i] = malloc(t.bytes));
        memcpy(copy[i], t.data, t.bytes);
        change(&t, copy[i]);
        if (t.name) st_writer_add(&w, t.name, t.dtype, t.ndim, t.shape, copy[i]);
    }
    const char *key, *value;
    for (int i = 0; (key = st_meta_at(&f, i, &value)); i++)
        if (strcmp(key, "checksum")) st_writer_meta(&w, key, value);
    if (st_writer_save(&w, scratch_path(state, to, path), &e)) fail_msg("%s", e.text);
    st_writer_free(&w);
    for (int i = 0; i < f.n; i++) free(copy[i]);
    free(copy);
    st_close(&f);
}

static inline bool same_file(void **state, const char *a, const char *b) {
    char path[SCRATCH_PATH], *x, *y;
    size_t n, m;
    Err e = {""};
    assert_int_equal(read_whole_file(scratch_path(state, a, path), &x, &n, &e), 0);
    assert_int_equal(read_whole_file(scratch_path(state, b, path), &y, &m, &e), 0);
    const bool same = n == m && !memcmp(x, y, n);
    free(x);
    free(y);
    return same;
}

static inline void copy_file(void **state, const char *from, const char *to) {
    char path[SCRATCH_PATH], *bytes;
    size_t size;
    Err e = {""};
    assert_int_equal(read_whole_file(scratch_path(state, from, path), &bytes, &size, &e), 0);
    assert_int_equal(scratch_write(scratch_path(state, to, path), bytes, size), 0);
    free(bytes);
}

#endif
