/* Files are written whole or not at all, also on a full disk or in a folder that may not be
 * written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "llmc_like/fsio.h"
#include "test/scratch.h"

static int files_in(const char *folder) {
    int n = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *x; (x = readdir(d));) n += x->d_name[0] != '.';
    closedir(d);
    return n;
}

static void assert_holds(const char *path, const char *expected) {
    char *text;
    size_t n;
    Err e = {""};
    assert_int_equal(read_whole_file(path, &text, &n, &e), 0);
    assert_string_equal(text, expected);
    assert_int_equal(n, strlen(expected));
    free(text);
}

static void replaces(void **state) {
    char path[SCRATCH_PATH], folder[SCRATCH_PATH];
    Err e = {""};
    scratch_path(state, "replace", folder);
    assert_int_equal(make_dirs(folder, &e), 0);
    scratch_path(state, "replace/a.txt", path);
    assert_int_equal(atomic_save(path, "old", 3, &e), 0);
    AtomicFile f;
    assert_int_equal(atomic_open(&f, path, &e), 0);
    assert_int_equal(atomic_write(&f, "ne", 2, &e), 0);
    assert_holds(path, "old"); /* until the commit */
    assert_int_equal(atomic_write(&f, "w", 1, &e), 0);
    assert_int_equal(f.size, 3);
    assert_int_equal(atomic_commit(&f, &e), 0);
    assert_holds(path, "new");
    assert_int_equal(files_in(folder), 1);
    atomic_abort(&f); /* closed already: nothing happens */
    assert_holds(path, "new");

    assert_int_equal(atomic_open(&f, path, &e), 0);
    assert_int_equal(atomic_write(&f, "half", 4, &e), 0);
    atomic_abort(&f);
    assert_holds(path, "new");
    assert_int_equal(files_in(folder), 1);
}

/* Two writers of one path, and the leftover of a killed one, do not meet. */
static void writers_do_not_meet(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    scratch_path(state, "both.txt", path);
    AtomicFile a, b;
    assert_int_equal(atomic_open(&a, path, &e), 0);
    assert_int_equal(atomic_open(&b, path, &e), 0);
    assert_string_not_equal(a.temp, b.temp);
    assert_int_equal(atomic_write(&a, "a", 1, &e), 0);
    assert_int_equal(atomic_write(&b, "b", 1, &e), 0);
    assert_int_equal(atomic_commit(&b, &e), 0);
    assert_int_equal(atomic_commit(&a, &e), 0);
    assert_holds(path, "a");
}

static void full_disk(void **state) {
    char path[SCRATCH_PATH], folder[SCRATCH_PATH], big[5000] = {0};
    Err e = {""}, e2 = {""};
    scratch_path(state, "full", folder);
    assert_int_equal(make_dirs(folder, &e), 0);
    scratch_path(state, "full/a.bin", path);
    assert_int_equal(atomic_save(path, "old", 3, &e), 0);

    struct rlimit was, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small = was;
    small.rlim_cur = 1000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    AtomicFile f;
    int opened = atomic_open(&f, path, &e);
    int first = atomic_write(&f, big, 900, &e), second = atomic_write(&f, big, sizeof big, &e);
    int at_once = atomic_save(path, big, sizeof big, &e2);
    setrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_DFL);

    assert_int_equal(opened, 0);
    assert_int_equal(first, 0);
    assert_int_equal(second, -1);
    assert_int_equal(at_once, -1);
    assert_int_equal(f.fd, -1);
    assert_non_null(strstr(e.text, "a.bin"));
    assert_non_null(strstr(e.text, "after 1000 bytes"));
    assert_non_null(strstr(e2.text, "untouched"));
    assert_holds(path, "old");
    assert_int_equal(files_in(folder), 1);
}

/* A writer killed at any moment leaves one of the two contents, whole. */
static void killed(void **state) {
    enum { SIZE = 1 << 16, ROUNDS = 25 };
    char path[SCRATCH_PATH];
    Err e = {""};
    scratch_path(state, "killed.bin", path);
    char *content = malloc(SIZE), *text;
    assert_non_null(content);
    memset(content, 'a', SIZE);
    assert_int_equal(atomic_save(path, content, SIZE, &e), 0);
    for (int round = 0; round < ROUNDS; round++) {
        pid_t writer = fork();
        assert_true(writer >= 0);
        for (int k = 0; writer == 0; k++) {
            memset(content, 'a' + k % 26, SIZE);
            if (atomic_save(path, content, SIZE, &e)) _exit(1);
        }
        usleep(500 + 311 * (useconds_t)round);
        int status;
        assert_int_equal(kill(writer, SIGKILL), 0);
        assert_int_equal(waitpid(writer, &status, 0), writer);
        assert_true(WIFSIGNALED(status));
        size_t n;
        assert_int_equal(read_whole_file(path, &text, &n, &e), 0);
        assert_int_equal(n, SIZE);
        for (int i = 1; i < SIZE; i++) assert_true(text[i] == text[0]);
        free(text);
    }
    free(content);
}

/* /dev/full says "no space left" to every write. */
static void no_space_sentence(void **state) {
    (void)state;
    int fd = open("/dev/full", O_WRONLY);
    if (fd < 0) skip();
    Err e = {""};
    AtomicFile f = {.fd = fd, .path = strdup("x.bin"), .temp = strdup("/nowhere/x.tmp"), .size = 0};
    assert_int_equal(atomic_write(&f, "abc", 3, &e), -1);
    assert_non_null(strstr(e.text, "No space left"));
    assert_non_null(strstr(e.text, "free some space"));
}

static void read_only_folder(void **state) {
    char path[SCRATCH_PATH], folder[SCRATCH_PATH];
    Err e = {""};
    scratch_path(state, "locked", folder);
    assert_int_equal(make_dirs(folder, &e), 0);
    scratch_path(state, "locked/a.txt", path);
    assert_int_equal(atomic_save(path, "old", 3, &e), 0);
    assert_int_equal(chmod(folder, 0555), 0);
    assert_int_equal(chmod(*state, 0755), 0);
    /* The superuser may write anywhere, so he becomes somebody else for a moment. */
    if (!geteuid() && seteuid(65534)) {
        chmod(folder, 0755);
        skip();
    }
    int status = atomic_save(path, "new", 3, &e);
    if (!getuid()) assert_int_equal(seteuid(0), 0);
    chmod(folder, 0755);
    assert_int_equal(status, -1);
    assert_non_null(strstr(e.text, "Permission denied"));
    assert_non_null(strstr(e.text, "choose a folder"));
    assert_holds(path, "old");
    assert_int_equal(files_in(folder), 1);
}

static void bad_paths(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    char *text;
    size_t n;
    AtomicFile f;
    MappedFile m;
    assert_int_equal(atomic_open(&f, *state, &e), -1);
    assert_non_null(strstr(e.text, "it is a folder"));
    atomic_abort(&f);
    assert_int_equal(atomic_open(&f, scratch_path(state, "no/such/a", path), &e), -1);
    assert_non_null(strstr(e.text, "make the folder first"));
    assert_int_equal(read_whole_file(path, &text, &n, &e), -1);
    assert_non_null(strstr(e.text, "No such file"));
    assert_int_equal(map_file(*state, &m, &e), -1);
    assert_non_null(strstr(e.text, "it is a folder"));
    assert_int_equal(map_file("/dev/null", &m, &e), -1);
    assert_non_null(strstr(e.text, "device"));
}

static void folders(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    struct stat s;
    assert_int_equal(make_dirs(scratch_path(state, "x/y//z/", path), &e), 0);
    assert_int_equal(stat(path, &s), 0);
    assert_true(S_ISDIR(s.st_mode));
    assert_int_equal(make_dirs(path, &e), 0); /* there already */
    assert_int_equal(make_dirs("/", &e), 0);
    assert_int_equal(make_dirs("", &e), -1);
    scratch_path(state, "x/file", path);
    assert_int_equal(scratch_write(path, "1", 1), 0);
    assert_int_equal(make_dirs(path, &e), -1);
    assert_non_null(strstr(e.text, "a file is in its place"));
    assert_int_equal(make_dirs(scratch_path(state, "x/file/deeper", path), &e), -1);
}

static void reads_and_maps(void **state) {
    char path[SCRATCH_PATH];
    Err e = {""};
    MappedFile m;
    scratch_path(state, "data", path);
    assert_int_equal(atomic_save(path, "ab\0c", 4, &e), 0);
    assert_int_equal(map_file(path, &m, &e), 0);
    assert_int_equal(m.size, 4);
    assert_memory_equal(m.data, "ab\0c", 4);
    unmap_file(&m);
    unmap_file(&m);
    char *text;
    size_t n;
    assert_int_equal(read_whole_file(path, &text, &n, &e), 0);
    assert_int_equal(n, 4);
    assert_memory_equal(text, "ab\0c", 5);
    free(text);
    assert_int_equal(atomic_save(path, "", 0, &e), 0);
    assert_int_equal(map_file(path, &m, &e), 0);
    assert_int_equal(m.size, 0);
    assert_non_null(m.data);
    unmap_file(&m);
    assert_holds(path, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replaces),          cmocka_unit_test(writers_do_not_meet),
        cmocka_unit_test(full_disk),         cmocka_unit_test(killed),
        cmocka_unit_test(no_space_sentence), cmocka_unit_test(read_only_folder),
        cmocka_unit_test(bad_paths),         cmocka_unit_test(folders),
        cmocka_unit_test(reads_and_maps),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
