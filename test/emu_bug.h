/* Kernels and host code that are wrong: each runs in a process of its own and ends with a sentence.
 * Included once in a test of the emulator. */
#ifndef TEST_EMU_BUG_H
#define TEST_EMU_BUG_H

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
/* after those */
#include <cmocka.h>
}

#include "kernels/cuda/cuda.cuh"

void cuda_fail(const Ctx *c, const char *call, const char *error) {
    (void)c;
    fprintf(stderr, "%s: %s\n", call, error);
    abort();
}

/* n zeros on the device. */
template <typename T>
static T *zeros(size_t n) {
    T *p;
    CUDA(NULL, cudaMalloc(&p, n * sizeof *p));
    CUDA(NULL, cudaMemset(p, 0, n * sizeof *p));
    return p;
}

typedef struct Bug {
    const char *name;
    void (*run)();
    const char *word;      /* in the sentence; NULL: it is no bug */
    const char *asan_word; /* the same under ASan; NULL: nothing is found there */
} Bug;

/* What the bug says on stderr, and its exit status, from a process of its own. */
static int run_apart(const Bug *bug, char *said, size_t size) {
    int ends[2], status = 0;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        bug->run();
        _exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t n; (n = read(ends[0], said + used, size - 1 - used)) > 0;) used += (size_t)n;
    said[used] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void test_bug(void **state) {
    const Bug *bug = (const Bug *)*state;
    static char said[1 << 16];
#ifdef __SANITIZE_ADDRESS__
    const char *word = bug->asan_word && !*bug->asan_word ? bug->word : bug->asan_word;
    if (bug->word && !word) skip();
#else
    const char *word = bug->word;
#endif
    const int status = run_apart(bug, said, sizeof said);
    const bool right = word ? status != 0 && strstr(said, word) : status == 0;
    if (!right)
        print_error("%s: status %d, expected '%s' in: %s\n", bug->name, status,
                    word ? word : "nothing", said);
    assert_true(right);
}

template <int N>
static int run_bugs(const Bug (&bugs)[N]) {
    static struct CMUnitTest tests[N];
    for (int i = 0; i < N; i++)
        tests[i] = (struct CMUnitTest){bugs[i].name, test_bug, NULL, NULL, (void *)&bugs[i]};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
