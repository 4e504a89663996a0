/* What CUDA says when it cannot go on: one sentence with the call, the op and the shapes, and where
 * there is no GPU what to do instead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/device.h"
#include "kernels/ops.h"

/* A product without columns, which ops.c lets pass and the library refuses. */
static void product_without_columns(void) {
    Ctx c;
    Err e;
    const float nothing[1] = {0};
    if (ctx_init(&c, "cuda", 1, 1, false, &e)) _exit(2);
    Tensor *x = ctx_input(&c, "x", DT_F32, 2, (int64_t[]){5, 0}, nothing);
    Tensor *w = ctx_input(&c, "w", DT_F32, 2, (int64_t[]){7, 0}, nothing);
    op_linear(&c, x, &(Linear){w, NULL});
    ctx_wait(&c, ctx_mark(&c));
    _exit(3); /* must not come here */
}

/* Whether the child's stderr has every one of these words (separated by |) and its status is 1. */
static void expect_failure(void (*child)(void), const char *words) {
    int ends[2], status;
    char text[4096], word[128];
    size_t n = 0;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        child();
    }
    close(ends[1]);
    for (ssize_t got; (got = read(ends[0], text + n, sizeof text - 1 - n)) > 0;) n += (size_t)got;
    text[n] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 1)
        fail_msg("status %d where exit 1 was expected: %s", status, text);
    while (*words) {
        const size_t length = strcspn(words, "|");
        snprintf(word, sizeof word, "%.*s", (int)length, words);
        if (!strstr(text, word)) fail_msg("no '%s' in: %s", word, text);
        words += length + (words[length] == '|');
    }
}

static void an_error_names_op_and_shapes(void **state) {
    (void)state;
    if (!device_runs_here(&cuda_device)) skip();
    expect_failure(product_without_columns,
                   "CUDA: |; in op linear of x float32 (5, 0), w float32 (7, 0)\n");
}

static void no_gpu_is_one_sentence(void **state) {
    (void)state;
    Err e = {""};
    if (device_runs_here(&cuda_device)) skip();
    assert_null(device_find("cuda", &e));
    assert_non_null(strstr(e.text, "--device cuda: "));
    assert_non_null(strstr(e.text, "; use --device cpu"));
    assert_null(strchr(e.text, '\n'));
    assert_non_null(device_find("auto", &e));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_names_op_and_shapes),
        cmocka_unit_test(no_gpu_is_one_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
