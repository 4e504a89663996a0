/* Checkpoints: a run goes on to the bit, a mismatch is explained and changes nothing, damage and a
 * full disk lose nothing, the best few are kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "llmc_like/checkpoint.h"
#include "llmc_like/philox.h"
#include "test/on_device.h"
#include "test/scratch.h"

enum { ROWS = 4 };

typedef struct Rig {
    Ctx c;
    ParamTable p;
    Optim o;
    Tensor *t[ROWS];
} Rig;

/* A small model of width d; seed: of the initial values. */
static void rig_init_on(Rig *r, const char *device, const char *dtype, int64_t d, uint64_t seed) {
    Err e = {""};
    if (ctx_init(&r->c, device, 2, seed, false, &e)) fail_msg("%s", e.text);
    if (ctx_set_dtype(&r->c, dtype, &e)) fail_msg("%s", e.text);
    params_init(&r->p, &r->c);
    params_add(&r->p, &r->t[0], GROUP_MUON, INIT_NORMAL, 0.1f, 2, (int64_t[]){3 * d, d}, "block.w");
    params_add(&r->p, &r->t[1], GROUP_ADAM, INIT_NORMAL, 0.1f, 1, (int64_t[]){3 * d}, "block.b");
    params_add(&r->p, &r->t[2], GROUP_ADAMW, INIT_NORMAL, 0.1f, 2, (int64_t[]){5, d}, "head");
    params_add(&r->p, &r->t[3], GROUP_MUON, INIT_NORMAL, 0.1f, 2, (int64_t[]){4, 4}, "small");
    if (params_commit(&r->p, true, &e)) fail_msg("%s", e.text);
    r->o = optim_default();
}

static void rig_init(Rig *r, int64_t d, uint64_t seed) {
    rig_init_on(r, "cpu", "float32", d, seed);
}

static void rig_free(Rig *r) {
    params_free(&r->p);
    ctx_free(&r->c);
}

/* Steps from .. to - 1, each with gradients of its own. */
static void train(Rig *r, uint32_t from, uint32_t to) {
    for (uint32_t s = from; s < to; s++) {
        for (int i = 0; i < ROWS; i++) {
            const size_t n = (size_t)tensor_numel(r->t[i]);
            float *g = malloc(sizeof *g * n);
            assert_non_null(g);
            rng_normal((RngKey){5, s, RNG_TEST}, (uint64_t)i << 20, g, (int64_t)n);
            r->c.dev->memory->put(r->t[i]->grad, g, sizeof *g * n);
            r->t[i]->grad_set = true;
            free(g);
        }
        optim_step(&r->c, &r->o, &r->p, 1.0 / (s + 1), 10);
    }
}

static bool same_bytes(const Memory *m, const void *a, const void *b, size_t bytes) {
    if (!a) return true;
    char *x = malloc(bytes), *y = malloc(bytes);
    assert_true(x && y);
    m->get(x, a, bytes);
    m->get(y, b, bytes);
    const bool equal = !memcmp(x, y, bytes);
    free(x);
    free(y);
    return equal;
}

static bool same(const Rig *a, const Rig *b) {
    bool equal = a->o.t == b->o.t;
    const Memory *m = a->c.dev->memory;
    for (int i = 0; i < ROWS; i++) {
        const size_t bytes = sizeof(float) * (size_t)tensor_numel(a->t[i]);
        const Param *x = &a->p.row[i], *y = &b->p.row[i];
        equal = equal && same_bytes(m, x->master, y->master, bytes) &&
                same_bytes(m, x->tensor.data, y->tensor.data, tensor_bytes(a->t[i])) &&
                same_bytes(m, x->m, y->m, bytes) && same_bytes(m, x->v, y->v, bytes);
    }
    return equal;
}

static void save(const char *path, const Rig *r) {
    const MetaPair meta[] = {{"config", "{\"d\": 6}"}, {"step", "3"}};
    Err e = {""};
    if (checkpoint_save(path, &r->p, &r->o, meta, 2, &e)) fail_msg("%s", e.text);
}

static void goes_on_with(void **state, const char *device, const char *dtype) {
    char path[SCRATCH_PATH];
    scratch_path(state, "run.safetensors", path);
    Rig a, b;
    rig_init_on(&a, device, dtype, 6, 1);
    rig_init_on(&b, device, dtype, 6, 2);
    train(&a, 0, 3);
    save(path, &a);
    train(&a, 3, 5);
    assert_false(same(&a, &b));
    StFile f;
    Err e = {""};
    if (checkpoint_load(path, &b.p, &b.o, &f, &e)) fail_msg("%s", e.text);
    assert_string_equal(st_meta(&f, "config"), "{\"d\": 6}");
    assert_string_equal(st_meta(&f, "step"), "3");
    st_close(&f);
    assert_int_equal(b.o.t, 3);
    train(&b, 3, 5);
    assert_true(same(&a, &b));
    rig_free(&a);
    rig_free(&b);
}

static void goes_on_to_the_bit(void **state) {
    for (int d = 0; devices[d]; d++) {
        if (!device_tested(devices[d])) continue;
        goes_on_with(state, devices[d]->name, "float32");
        if (devices[d]->has_bf16) goes_on_with(state, devices[d]->name, "bfloat16");
    }
}

/* What one device wrote another goes on from. */
static void goes_on_elsewhere(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "elsewhere.safetensors", path);
    for (int d = 0; devices[d]; d++) {
        if (!device_tested(devices[d])) continue;
        Rig a, b;
        rig_init_on(&a, devices[d]->name, "float32", 6, 1);
        rig_init(&b, 6, 2);
        train(&a, 0, 3);
        save(path, &a);
        Err e = {""};
        if (checkpoint_load(path, &b.p, &b.o, NULL, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < ROWS; i++) {
            float x[3 * 6 * 6];
            params_read(&a.p, &a.p.row[i], x);
            assert_memory_equal(x, b.t[i]->data, tensor_bytes(b.t[i]));
        }
        rig_free(&a);
        rig_free(&b);
    }
}

/* Loading must fail with each of the parts in its text, and change nothing. */
static void assert_refused(const char *path, Rig *r, bool resume, const char *const *part) {
    Rig before;
    rig_init(&before, r->t[0]->shape[1], 2);
    assert_true(same(r, &before));
    StFile f;
    Err e = {""};
    assert_int_equal(checkpoint_load(path, &r->p, resume ? &r->o : NULL, &f, &e), -1);
    for (; *part; part++)
        if (!strstr(e.text, *part)) fail_msg("\"%s\" should say \"%s\"", e.text, *part);
    assert_true(same(r, &before));
    rig_free(&before);
}

static void explains_another_model(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "other.safetensors", path);
    Rig a, b;
    rig_init(&a, 6, 1);
    rig_init(&b, 8, 2);
    save(path, &a);
    const char *wider[] = {path,
                           "0 missing, 0 superfluous, 8 of another shape, 0 of another dtype",
                           "param.block.w: the file has (18, 6), the model (24, 8)",
                           "optim.v.head",
                           "\"config\"",
                           NULL};
    assert_refused(path, &b, true, wider);
    rig_free(&b);

    rig_init(&b, 6, 2);
    StWriter w;
    Err e = {""};
    const int32_t whole[18] = {0};
    st_writer_init(&w);
    st_writer_add(&w, "param.block.w", DT_F32, 2, a.t[0]->shape, a.t[0]->data);
    st_writer_add(&w, "param.block.b", DT_I32, 1, a.t[1]->shape, whole);
    st_writer_add(&w, "param.small", DT_F32, 2, a.t[3]->shape, a.t[3]->data);
    st_writer_add(&w, "param.tail", DT_F32, 2, a.t[3]->shape, a.t[3]->data);
    st_writer_add(&w, "grad.small", DT_F32, 2, a.t[3]->shape, a.t[3]->data);
    assert_int_equal(st_writer_save(&w, path, &e), 0);
    st_writer_free(&w);
    const char *mixed[] = {
        "1 missing, 1 superfluous, 0 of another shape, 1 of another dtype",
        "missing      param.head (5, 6)",
        "superfluous  param.tail (4, 4)",
        "param.block.b: the file has int32, expected float32",
        NULL,
    };
    assert_refused(path, &b, false, mixed);
    rig_free(&a);
    rig_free(&b);
}

/* Many misfits: the text stays within its bounds and counts the rest. */
static void lists_only_some(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "many.safetensors", path);
    Rig b;
    rig_init(&b, 6, 2);
    StWriter w;
    Err e = {""};
    st_writer_init(&w);
    for (int i = 0; i < 100; i++) {
        char name[200] = "param.";
        memset(name + 6, 'a' + i % 26, 50 + (size_t)i);
        st_writer_add(&w, name, DT_F32, 2, b.t[3]->shape, b.t[3]->data);
    }
    assert_int_equal(st_writer_save(&w, path, &e), 0);
    st_writer_free(&w);
    const char *part[] = {"4 missing, 100 superfluous", "... and ", "Nothing was changed", NULL};
    assert_refused(path, &b, false, part);
    rig_free(&b);
}

/* Weights under the originals' names, with or without "param.", start a run; moments stay. */
static void starts_from_weights(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "weights.safetensors", path);
    Rig a, b;
    Err e = {""};
    rig_init(&a, 6, 1);
    for (int kind = 0; kind < 3; kind++) {
        if (kind < 2) {
            const int status = checkpoint_save(path, &a.p, kind ? &a.o : NULL, NULL, 0, &e);
            assert_int_equal(status, 0);
        } else {
            StWriter w;
            st_writer_init(&w);
            for (int i = 0; i < ROWS; i++)
                st_writer_add(&w, a.t[i]->name, DT_F32, a.t[i]->ndim, a.t[i]->shape, a.t[i]->data);
            assert_int_equal(st_writer_save(&w, path, &e), 0);
            st_writer_free(&w);
        }
        rig_init(&b, 6, 2);
        if (checkpoint_load(path, &b.p, NULL, NULL, &e)) fail_msg("%s", e.text);
        assert_true(same(&a, &b));
        rig_free(&b);
    }
    rig_init(&b, 6, 2);
    checkpoint_save(path, &a.p, NULL, NULL, 0, &e);
    assert_refused(path, &b, true, (const char *[]){"6 missing", "optim.m.block.w", NULL});
    rig_free(&a);
    rig_free(&b);
}

static void notices_damage(void **state) {
    char path[SCRATCH_PATH];
    scratch_path(state, "damaged.safetensors", path);
    Rig a, b;
    rig_init(&a, 6, 1);
    rig_init(&b, 6, 2);
    train(&a, 0, 2);
    save(path, &a);
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, s.st_size - 30, SEEK_SET);
    const int byte = fgetc(f);
    fseek(f, s.st_size - 30, SEEK_SET);
    fputc(byte ^ 1, f);
    fclose(f);
    assert_refused(path, &b, true, (const char *[]){path, "damaged", "checksum", NULL});
    assert_int_equal(truncate(path, s.st_size - 1), 0);
    assert_refused(path, &b, true, (const char *[]){path, NULL});
    assert_int_equal(truncate(path, 4), 0);
    assert_refused(path, &b, true, (const char *[]){path, NULL});
    unlink(path);
    assert_refused(path, &b, true, (const char *[]){path, NULL});
    rig_free(&a);
    rig_free(&b);
}

static void assert_steps(void **state, const char *folder, const int *step, int n) {
    for (int s = 0; s < 20; s++) {
        char name[64], path[SCRATCH_PATH];
        snprintf(name, sizeof name, "%s/step_%06d.safetensors", folder, s);
        bool want = false;
        for (int i = 0; i < n; i++) want = want || step[i] == s;
        if (!access(scratch_path(state, name, path), F_OK) != want)
            fail_msg("%s %s be there", path, want ? "should" : "should not");
    }
}

/* RLIMIT_FSIZE plays the full disk: both end a write in the middle. */
static void full_disk_keeps_the_old(void **state) {
    char folder[SCRATCH_PATH], last[KEEP_PATH + 64];
    scratch_path(state, "full", folder);
    Rig a, b;
    rig_init(&a, 6, 1);
    rig_init(&b, 6, 2);
    CheckpointKeeper k;
    Err e = {""};
    if (keeper_open(&k, folder, 5, false, &e)) fail_msg("%s", e.text);
    if (keeper_save(&k, &a.p, &a.o, NULL, 0, 1, 0.5, &e)) fail_msg("%s", e.text);
    Rig old;
    rig_init(&old, 6, 1);
    train(&a, 0, 1);
    struct rlimit limit, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    small = limit;
    small.rlim_cur = 2000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const int status = keeper_save(&k, &a.p, &a.o, NULL, 0, 2, 0.4, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, -1);
    assert_non_null(strstr(e.text, "last.safetensors"));
    assert_steps(state, "full", (const int[]){1}, 1);
    assert_int_equal(checkpoint_load(keeper_last_path(&k, last), &b.p, &b.o, NULL, &e), 0);
    assert_true(same(&b, &old));
    assert_int_equal(keeper_save(&k, &a.p, &a.o, NULL, 0, 2, 0.4, &e), 0);
    assert_steps(state, "full", (const int[]){1, 2}, 2);
    rig_free(&old);
    rig_free(&a);
    rig_free(&b);
}

static void keeps_the_best(void **state) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_path(state, "best/of", folder);
    const double loss[] = {9, 5, 7, NAN, 3, 8, 5, 4, 1, 6};
    Rig a;
    rig_init(&a, 6, 1);
    CheckpointKeeper k, again;
    Err e = {""};
    if (keeper_open(&k, folder, 3, false, &e)) fail_msg("%s", e.text);
    for (int s = 0; s < 10; s++)
        if (keeper_save(&k, &a.p, &a.o, NULL, 0, s, loss[s], &e)) fail_msg("%s", e.text);
    assert_steps(state, "best/of", (const int[]){8, 4, 7}, 3);
    if (keeper_save_last(&k, &a.p, &a.o, NULL, 0, 11, &e)) fail_msg("%s", e.text);
    assert_int_equal(k.n, 3);

    assert_int_equal(keeper_open(&again, folder, 3, false, &e), -1);
    assert_non_null(strstr(e.text, "--resume"));
    scratch_path(state, "best/of/step_000012.safetensors.77.0.tmp", path);
    assert_int_equal(scratch_write(path, "x", 1), 0);
    scratch_path(state, "best/of/step_000013.safetensors", path);
    assert_int_equal(scratch_write(path, "damaged", 7), 0);
    if (keeper_open(&again, folder, 3, true, &e)) fail_msg("%s", e.text);
    assert_memory_equal(again.best, k.best, 3 * sizeof *k.best);
    assert_int_equal(again.n, 3);
    assert_steps(state, "best/of", (const int[]){8, 4, 7, 13}, 4); /* what is not ours stays */
    scratch_path(state, "best/of/step_000012.safetensors.77.0.tmp", path);
    assert_int_not_equal(access(path, F_OK), 0);

    if (keeper_open(&again, folder, 1, true, &e)) fail_msg("%s", e.text);
    assert_steps(state, "best/of", (const int[]){8, 13}, 2);
    rig_free(&a);
}

/* Killed after last.safetensors was written and before it got its second name, or before what fell
 * out was deleted: the next start finishes it. */
static void finishes_after_a_kill(void **state) {
    char folder[SCRATCH_PATH], path[SCRATCH_PATH];
    scratch_path(state, "killed", folder);
    Rig a;
    rig_init(&a, 6, 1);
    CheckpointKeeper k;
    Err e = {""};
    if (keeper_open(&k, folder, 5, false, &e)) fail_msg("%s", e.text);
    for (int s = 0; s < 4; s++) assert_int_equal(keeper_save(&k, &a.p, &a.o, NULL, 0, s, s, &e), 0);
    unlink(scratch_path(state, "killed/step_000003.safetensors", path));
    if (keeper_open(&k, folder, 5, true, &e)) fail_msg("%s", e.text);
    assert_steps(state, "killed", (const int[]){0, 1, 2, 3}, 4);
    assert_int_equal(k.n, 4);
    if (keeper_open(&k, folder, 2, true, &e)) fail_msg("%s", e.text);
    assert_steps(state, "killed", (const int[]){0, 1}, 2);
    assert_int_equal(k.n, 2);
    rig_free(&a);
}

/* kill -9 at whatever moment: what was saved before loads, and the list agrees with the folder. */
static void survives_kill(void **state) {
    char folder[SCRATCH_PATH], last[KEEP_PATH + 64];
    scratch_path(state, "kill", folder);
    Rig a, b;
    rig_init(&a, 6, 1);
    rig_init(&b, 6, 2);
    CheckpointKeeper k;
    Err e = {""};
    if (keeper_open(&k, folder, 3, false, &e)) fail_msg("%s", e.text);
    if (keeper_save(&k, &a.p, &a.o, NULL, 0, 0, 1, &e)) fail_msg("%s", e.text);
    for (int round = 0; round < 15; round++) {
        const pid_t child = fork();
        assert_true(child >= 0);
        for (int s = 1; child == 0; s++)
            if (keeper_save(&k, &a.p, &a.o, NULL, 0, s, 1.0 / s, &e)) _exit(1);
        usleep((useconds_t)(700 * round));
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        if (keeper_open(&k, folder, 3, true, &e)) fail_msg("%s", e.text);
        if (checkpoint_load(keeper_last_path(&k, last), &b.p, &b.o, NULL, &e))
            fail_msg("%s", e.text);
        assert_true(same(&a, &b));
        assert_true(k.n >= 1 && k.n <= 3);
        DIR *d = opendir(folder);
        int files = 0;
        for (struct dirent *f; (f = readdir(d));) files += f->d_name[0] != '.';
        closedir(d);
        assert_int_equal(files, k.n + 1);
    }
    rig_free(&a);
    rig_free(&b);
}

int main(int argc, char **argv) {
    device_choose(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_on_to_the_bit),
        cmocka_unit_test(goes_on_elsewhere),
    };
    const struct CMUnitTest of_the_cpu[] = {
        cmocka_unit_test(explains_another_model),  cmocka_unit_test(lists_only_some),
        cmocka_unit_test(starts_from_weights),     cmocka_unit_test(notices_damage),
        cmocka_unit_test(full_disk_keeps_the_old), cmocka_unit_test(keeps_the_best),
        cmocka_unit_test(finishes_after_a_kill),   cmocka_unit_test(survives_kill),
    };
    const int failed = cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
    return failed +
           (only_device ? 0 : cmocka_run_group_tests(of_the_cpu, scratch_setup, scratch_teardown));
}
