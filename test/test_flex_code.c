/* Generated code against the interpreter, and the cache it is kept in: what it refuses to trust. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/flex/flex.h"
#include "kernels/flex/sha256.h"

enum { T = 90, PATH = 512 };

/* Stands for an attention kernel: the loops over k that one has. */
static const char kernel[] =
    "void run_score(float *s, int b, int h, int q, int n, const FlexEnv *env) {\n"
    "    for (int k = 0; k < n; k++) s[k] = flex_score(s[k], b, h, q, k, env);\n"
    "}\n"
    "void run_grad(float *s, int b, int h, int q, int n, const FlexEnv *env) {\n"
    "    for (int k = 0; k < n; k++) s[k] = flex_score_grad(s[k], b, h, q, k, env);\n"
    "}\n"
    "void run_mask(float *s, int b, int h, int q, int n, const FlexEnv *env) {\n"
    "    for (int k = 0; k < n; k++) s[k] = flex_mask(b, h, q, k, env);\n"
    "}\n"
    "int has(void) { return 2 * FLEX_HAS_SCORE + FLEX_HAS_MASK; }\n";

typedef void (*RowFn)(float *s, int b, int h, int q, int n, const FlexEnv *env);
typedef int (*IntFn)(void);

/* dlsym gives an object pointer, and ISO C converts it to no function pointer. */
#define FUNCTION(type, module, name)                \
    ((union {                                       \
         void *object;                              \
         type function;                             \
     }){.object = flex_module_symbol(module, name)} \
         .function)

static char folder[PATH]; /* of this run's files */
static int frame[T];
static const FlexArray array = {"frame", frame, T};

static int setup(void **state) {
    (void)state;
    strcpy(folder, "/tmp/test_flex_XXXXXX");
    for (int i = 0; i < T; i++) frame[i] = i / 13;
    return mkdtemp(folder) ? 0 : -1;
}

static void remove_all(const char *path) {
    struct stat s;
    if (lstat(path, &s) == 0 && S_ISDIR(s.st_mode)) {
        DIR *d = opendir(path);
        for (struct dirent *x; d && (x = readdir(d));) {
            char inner[2 * PATH];
            if (!strcmp(x->d_name, ".") || !strcmp(x->d_name, "..")) continue;
            snprintf(inner, sizeof inner, "%s/%s", path, x->d_name);
            remove_all(inner);
        }
        if (d) closedir(d);
    }
    remove(path);
}

static int teardown(void **state) {
    (void)state;
    remove_all(folder);
    return 0;
}

static const char *in_folder(const char *name) {
    static char path[2 * PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static FlexProgram *parse(const char *mask, const char *score) {
    FlexProgram *p = NULL;
    Err e = {""};
    if (flex_parse(&p, mask, score, &array, 1, T, 2, 3, &e)) fail_msg("%s", e.text);
    return p;
}

static bool close_to(float got, float want) {
    if (isnan(want)) return isnan(got);
    return got == want || fabsf(got - want) <= 3e-6f * (1 + fabsf(want));
}

/* Rows of n > T keys: the overhang must be harmless. */
static void compare(const FlexProgram *p, const FlexModule *m) {
    enum { N = T + FLEX_PAD };
    float in[N], score[N], grad[N], sees[N], want[N], want_grad[N];
    unsigned char want_sees[N];
    for (int i = 0; i < N; i++) in[i] = 0.11f * (float)(i % 97 - 40);
    in[20] = NAN;
    in[21] = INFINITY;
    in[22] = -INFINITY;
    for (int q = 0; q < T; q += 17) {
        const int b = q & 1, h = q % 3;
        memcpy(score, in, sizeof in);
        memcpy(grad, in, sizeof in);
        FUNCTION(RowFn, m, "run_score")(score, b, h, q, N, flex_env(p));
        FUNCTION(RowFn, m, "run_grad")(grad, b, h, q, N, flex_env(p));
        FUNCTION(RowFn, m, "run_mask")(sees, b, h, q, N, flex_env(p));
        flex_eval_score_row(p, in, b, h, q, 0, T, want);
        flex_eval_score_grad_row(p, in, b, h, q, 0, T, want_grad);
        flex_eval_mask_row(p, b, h, q, 0, T, want_sees);
        for (int k = 0; k < T; k++) {
            assert_true(sees[k] == (float)want_sees[k]);
            if (!close_to(score[k], want[k]) || !close_to(grad[k], want_grad[k]))
                fail_msg("q %d k %d score %g: %.9g and %.9g, interpreted %.9g and %.9g", q, k,
                         (double)in[k], (double)score[k], (double)grad[k], (double)want[k],
                         (double)want_grad[k]);
        }
    }
}

static const char *const pairs[][2] = {
    {"q >= k && q - k <= 25", "score - 0.01*(q - k)"},
    {"frame[q] >= frame[k]", "20*tanh(score/20)"},
    {"k <= q || q / 13 == k / 13",
     "where(q - k > 10 && score > 0, exp(-abs(score)), "
     "pow(score, 3) / log(score*score + 2))"},
    {"k <= q || q % (k + 1) == 0", "score - exp2(-8.0*(h + 1)/3)*(q - k)"},
    {"k == q || frame[min(k + 1, 89)] == 3 ^ b",
     "sigmoid(score) * min(score, max(1.0, log2(abs(score) + 1)))"},
    {"k == q || exp(-0.05*abs(q - k)) > 0.5",
     "score > 0 ? sqrt(score) : floor(score) - ceil(0.5*score) + pow(abs(score), 1.5)"},
    {NULL, "score / (q / 3 - k % 7 + 0.5) - -(-2147483647 - 1)"},
    {"!(k > q) && (b ? h : 1) * q >= k * (q | 1) / (q & 7 | 1) || q == k", NULL},
};
enum { N_PAIRS = sizeof pairs / sizeof *pairs };

static void test_code_as_interpreted(void **state) {
    (void)state;
    const FlexBuild build = {NULL, in_folder("code")};
    const char *const best = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
                                 ? "-march=x86-64-v4 -mprefer-vector-width=512"
                             : __builtin_cpu_supports("avx2") ? "-march=x86-64-v3"
                                                              : "-march=x86-64 -O2";
    for (int i = 0; i < N_PAIRS; i++) {
        FlexProgram *p = parse(pairs[i][0], pairs[i][1]);
        flex_set_build(p, &build);
        for (int j = 0; j < 2; j++) {
            Err e = {""};
            const FlexModule *m = flex_module(p, kernel, j ? best : "-march=x86-64", &e);
            if (!m) fail_msg("%s", e.text);
            assert_ptr_equal(m, flex_module(p, kernel, j ? best : "-march=x86-64", &e));
            assert_int_equal(FUNCTION(IntFn, m, "has")(), 2 * !!pairs[i][1] + !!pairs[i][0]);
            compare(p, m);
        }
        flex_free(p);
    }
}

/* What makes flex fast: the compiler reports each loop over k that it vectorised, by its line. */
static void test_loops_vectorise(void **state) {
    (void)state;
    for (int i = 0; i < N_PAIRS; i++) {
        FlexProgram *p = parse(pairs[i][0], pairs[i][1]);
        char flags[2 * PATH], report[PATH + 32];
        snprintf(report, sizeof report, "%s/report", folder);
        snprintf(flags, sizeof flags, "-march=x86-64-v3 -fopt-info-vec-optimized=%s", report);
        const FlexBuild build = {"gcc", NULL};
        FlexModule m;
        Err e = {""};
        if (flex_module_load(p, &build, kernel, flags, &m, &e)) fail_msg("%s", e.text);
        flex_module_close(&m);
        FILE *f = fopen(report, "r");
        assert_non_null(f);
        int lines[16], n = 0, line;
        for (char text[1024]; fgets(text, sizeof text, f);) {
            const char *place = strchr(text, ':');
            bool known = !place || sscanf(place, ":%d:", &line) != 1;
            for (int j = 0; j < n && !known; j++) known = lines[j] == line;
            if (!known && n < 16) lines[n++] = line;
        }
        fclose(f);
        remove(report);
        /* without an expression the scores stay, and no loop is left of theirs */
        const int want = pairs[i][1] ? 3 : 2;
        if (n != want) fail_msg("%d of %d loops for %s and %s", n, want, pairs[i][0], pairs[i][1]);
        flex_free(p);
    }
}

static void test_stand_ins(void **state) {
    (void)state;
    FlexModule m;
    Err e = {""};
    if (flex_module_load(NULL, NULL, kernel, "", &m, &e)) fail_msg("%s", e.text);
    assert_int_equal(FUNCTION(IntFn, &m, "has")(), 0);
    float s[3] = {1, NAN, -2};
    const FlexEnv env = {{NULL}, {0}, NULL};
    FUNCTION(RowFn, &m, "run_score")(s, 0, 0, 0, 3, &env);
    assert_true(s[0] == 1 && isnan(s[1]) && s[2] == -2);
    float sees[2];
    FUNCTION(RowFn, &m, "run_mask")(sees, 0, 0, 0, 2, &env);
    assert_true(sees[0] == 1 && sees[1] == 1);
    flex_module_close(&m);
}

/* ---- the cache ---- */

static const char small_kernel[] = "int answer(void) { return 42; }\n";

/* Loads small_kernel through the cache at `path`, asks it, and closes it. */
static int load_small(const char *path, Err *e) {
    const FlexBuild build = {NULL, path};
    FlexModule m;
    if (flex_module_load(NULL, &build, small_kernel, "-O1", &m, e)) return -1;
    const int answer = FUNCTION(IntFn, &m, "answer")();
    flex_module_close(&m);
    return answer == 42 ? 0 : err_set(e, "the code answers %d", answer);
}

static void must_load(const char *path) {
    Err e = {""};
    if (load_small(path, &e)) fail_msg("%s", e.text);
}

static void must_refuse(const char *path, const char *says) {
    Err e = {""};
    if (!load_small(path, &e)) fail_msg("loaded; expected: %s", says);
    if (!strstr(e.text, says)) fail_msg("%s", e.text);
}

/* The one file in the folder whose name ends so. */
static void only_file(const char *path, const char *end, char *out) {
    DIR *d = opendir(path);
    assert_non_null(d);
    int n = 0;
    for (struct dirent *x; (x = readdir(d));) {
        const char *dot = strrchr(x->d_name, '.');
        if (!dot || strcmp(dot, end)) continue;
        snprintf(out, 2 * PATH, "%s/%s", path, x->d_name);
        n++;
    }
    closedir(d);
    assert_int_equal(n, 1);
}

static int count_files(const char *path) {
    DIR *d = opendir(path);
    assert_non_null(d);
    int n = 0;
    for (struct dirent *x; (x = readdir(d));) n += x->d_name[0] != '.';
    closedir(d);
    return n;
}

static void file_digest(const char *path, char hex[SHA256_HEX]) {
    static char content[1 << 20];
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    Sha256 s;
    sha256_init(&s);
    sha256_add(&s, content, fread(content, 1, sizeof content, f));
    sha256_hex(&s, hex);
    fclose(f);
}

static void test_sha256(void **state) {
    (void)state;
    static const struct { /* FIPS 180-4's examples, and a million times 'a' */
        const char *text;
        int times;
        const char *hex;
    } cases[] = {
        {"", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"a", 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Sha256 s;
        char hex[SHA256_HEX];
        sha256_init(&s);
        for (int j = 0; j < cases[i].times; j++)
            sha256_add(&s, cases[i].text, strlen(cases[i].text));
        sha256_hex(&s, hex);
        assert_string_equal(hex, cases[i].hex);
    }
}

static void test_cache_keeps(void **state) {
    (void)state;
    char path[PATH + 64], so[2 * PATH];
    snprintf(path, sizeof path, "%s/new/inner/cache/", folder);
    must_load(path);
    struct stat dir, first, second;
    assert_int_equal(stat(path, &dir), 0);
    assert_int_equal(dir.st_mode & 0777, 0700);
    only_file(path, ".so", so);
    assert_int_equal(stat(so, &first), 0);
    assert_int_equal(first.st_mode & 0777, 0600);
    must_load(path);
    assert_int_equal(stat(so, &second), 0);
    assert_true(first.st_ino == second.st_ino && first.st_mtime == second.st_mtime);
    assert_int_equal(count_files(path), 2);
    /* other flags are another entry */
    const FlexBuild build = {NULL, path};
    FlexModule m;
    Err e = {""};
    assert_int_equal(flex_module_load(NULL, &build, small_kernel, "-O2", &m, &e), 0);
    flex_module_close(&m);
    assert_int_equal(count_files(path), 4);
}

/* Whatever happened to an entry, what runs is what was compiled. */
static void test_cache_entry_is_verified(void **state) {
    (void)state;
    char path[PATH + 64], so[2 * PATH], side[2 * PATH], good[SHA256_HEX], now[SHA256_HEX];
    snprintf(path, sizeof path, "%s/verified", folder);
    for (int damage = 0; damage < 6; damage++) {
        must_load(path);
        only_file(path, ".so", so);
        only_file(path, ".sha256", side);
        file_digest(so, good);
        FILE *f;
        if (damage == 0) { /* a byte changed */
            assert_non_null(f = fopen(so, "r+b"));
            fseek(f, 200, SEEK_SET);
            fputc(0xcc, f);
            fclose(f);
        } else if (damage == 1) { /* cut short */
            assert_int_equal(truncate(so, 100), 0);
        } else if (damage == 2) { /* others could have written it */
            assert_int_equal(chmod(so, 0666), 0);
        } else if (damage == 3) { /* a link to somewhere else */
            char elsewhere[PATH + 64];
            snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", folder);
            assert_int_equal(rename(so, elsewhere), 0);
            assert_int_equal(symlink(elsewhere, so), 0);
        } else if (damage == 4) { /* no digest */
            assert_int_equal(unlink(side), 0);
        } else { /* another digest */
            assert_non_null(f = fopen(side, "r+"));
            fputc('x', f);
            fclose(f);
        }
        must_load(path);
        struct stat s;
        assert_int_equal(lstat(so, &s), 0);
        assert_true(S_ISREG(s.st_mode));
        assert_int_equal(s.st_mode & 0777, 0600);
        file_digest(so, now);
        assert_string_equal(now, good);
        assert_int_equal(count_files(path), 2);
    }
}

static void test_cache_folder_is_verified(void **state) {
    (void)state;
    char path[PATH + 64], link_path[PATH + 64];
    snprintf(path, sizeof path, "%s/open", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(chmod(path, 0777), 0);
    must_refuse(path, "can be written by others");
    assert_int_equal(chmod(path, 0720), 0);
    must_refuse(path, "can be written by others");
    assert_int_equal(chmod(path, 0755), 0);
    must_load(path);

    snprintf(link_path, sizeof link_path, "%s/link", folder);
    assert_int_equal(symlink(path, link_path), 0);
    must_refuse(link_path, "symbolic link");
    strcat(link_path, "/");
    must_refuse(link_path, "symbolic link");

    FILE *f = fopen(in_folder("file"), "w");
    assert_non_null(f);
    fclose(f);
    must_refuse(in_folder("file"), "is a symbolic link or a file");
    must_refuse(in_folder("file/inner"), "cannot be made");
    must_refuse("/proc/nowhere", "cannot be made");

    /* a folder of somebody else: root makes one, others find one */
    if (geteuid() == 0) {
        snprintf(path, sizeof path, "%s/foreign", folder);
        assert_int_equal(mkdir(path, 0700), 0);
        assert_int_equal(chown(path, 65534, 65534), 0);
        must_refuse(path, "belongs to another user");
    } else {
        must_refuse("/usr", "belongs to another user");
    }
}

static void test_compiler_refusals(void **state) {
    (void)state;
    FlexModule m;
    Err e = {""};
    const FlexBuild missing = {"no-such-compiler", NULL}, wrong = {"false", NULL};
    assert_int_equal(flex_module_load(NULL, &missing, small_kernel, "", &m, &e), -1);
    assert_non_null(strstr(e.text, "no C compiler 'no-such-compiler'"));
    assert_non_null(strstr(e.text, "install gcc"));
    assert_int_equal(flex_module_load(NULL, &wrong, small_kernel, "", &m, &e), -1);
    assert_non_null(strstr(e.text, "seems to be no C compiler"));
    assert_int_equal(flex_module_load(NULL, NULL, "int broken(", "", &m, &e), -1);
    assert_non_null(strstr(e.text, "did not compile"));
    assert_non_null(strstr(e.text, "error:"));
    /* a program remembers that it failed, and why */
    FlexProgram *p = parse("q >= k", NULL);
    flex_set_build(p, &missing);
    for (int i = 0; i < 2; i++) {
        e.text[0] = '\0';
        assert_null(flex_module(p, small_kernel, "", &e));
        assert_non_null(strstr(e.text, "install gcc"));
    }
    flex_free(p);
}

static void test_concurrent_processes(void **state) {
    (void)state;
    char path[PATH + 64];
    snprintf(path, sizeof path, "%s/concurrent", folder);
    pid_t child[4];
    for (int i = 0; i < 4; i++) {
        child[i] = fork();
        if (child[i] == 0) {
            Err e = {""};
            _exit(load_small(path, &e) ? 1 : 0);
        }
    }
    for (int i = 0; i < 4; i++) {
        int status;
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    must_load(path);
    assert_int_equal(count_files(path), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256),
        cmocka_unit_test(test_code_as_interpreted),
        cmocka_unit_test(test_loops_vectorise),
        cmocka_unit_test(test_stand_ins),
        cmocka_unit_test(test_cache_keeps),
        cmocka_unit_test(test_cache_entry_is_verified),
        cmocka_unit_test(test_cache_folder_is_verified),
        cmocka_unit_test(test_compiler_refusals),
        cmocka_unit_test(test_concurrent_processes),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
