/* A folder for a test's files, made fresh and removed at the end. As cmocka's group setup and
 * teardown: cmocka_run_group_tests(tests, scratch_setup, scratch_teardown); the folder's path is
 * *state. */
#ifndef TEST_SCRATCH_H
#define TEST_SCRATCH_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline int scratch_setup(void **state) {
    char *folder = strdup("/tmp/llmc_like_test_XXXXXX");
    *state = folder;
    return folder && mkdtemp(folder) ? 0 : -1;
}

static inline int scratch_remove_one(const char *path, const struct stat *s, int type,
                                     struct FTW *f) {
    (void)s;
    (void)type;
    (void)f;
    return remove(path);
}

static inline int scratch_teardown(void **state) {
    int status = nftw(*state, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(*state);
    return status;
}

/* FOLDER/name into buf, which is returned. */
enum { SCRATCH_PATH = 512 };
static inline const char *scratch_path(void **state, const char *name, char buf[SCRATCH_PATH]) {
    snprintf(buf, SCRATCH_PATH, "%s/%s", (const char *)*state, name);
    return buf;
}

/* Writes bytes to a path, whatever they are; 0 if all went well. */
static inline int scratch_write(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f) return -1;
    size_t k = fwrite(bytes, 1, n, f);
    return fclose(f) || k != n ? -1 : 0;
}

#endif
