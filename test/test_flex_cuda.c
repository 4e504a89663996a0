/* flex on CUDA beside its numbers (test_attention): what compiles code anew and what does not, what
 * the cache refuses, plans that follow their arrays. Skipped where there is no CUDA. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <sys/stat.h>

#include "test/attention_call.h"
#include "test/scratch.h"

enum { T = 150 };

static void need_cuda(void) {
    if (!device_runs_here(&cuda_device)) skip();
}

static int count_entries(const char *folder, char *last) {
    DIR *dir = opendir(folder);
    int n = 0;
    for (const struct dirent *x; dir && (x = readdir(dir));)
        if (strstr(x->d_name, ".cubin")) {
            if (last) snprintf(last, 2 * SCRATCH_PATH, "%s/%s", folder, x->d_name);
            n++;
        }
    if (dir) closedir(dir);
    return n;
}

static void mask_for(Mask *m, const char *mask, int S, const char *folder) {
    Err e;
    if (mask_init(m, mask, "", "", T, S, 1, 2, &e)) fail_msg("%s", e.text);
    mask_set_build(m, folder, NULL);
}

/* flex in float32 on CUDA against the plain loops. */
static void try_flex(Ctx *ctx, const Mask *m, int Tq, int Tk) {
    const Shape s = {1, 2, Tq, Tk, 8};
    const AttnBackend *flex = attn_find("flex");
    Call exact = call_make(s, DT_F64, m, 0.3f), single = call_make(s, DT_F32, m, 0.3f),
         c = call_make(s, DT_F32, m, 0.3f);
    Err e;
    run_plain(&exact);
    run_plain(&single);
    assert_null(flex->supports(ctx, &c.a));
    if (flex->prepare(ctx, &c.a, &e)) fail_msg("%s", e.text);
    run_backend(ctx, flex, &c);
    check_sentinels(&c, m->text);
    const Error plain = compare(&single, &exact), got = compare(&c, &exact);
    check_errors(&got, &plain, m->text);
    call_free(&exact);
    call_free(&single);
    call_free(&c);
}

/* Other lengths, offsets, contents of arrays and contexts compile nothing; the plan follows. */
static void code_is_kept(void **state) {
    need_cuda();
    char folder[SCRATCH_PATH];
    scratch_path(state, "kept", folder);
    for (int i = 0; i < 2; i++) {
        Ctx ctx;
        ctx_for(&ctx, &cuda_device, 2);
        for (int S = 7; S < 40; S += 20) {
            Mask m;
            mask_for(&m, "frame[k] <= frame[q] && frame[k] % 3 != 1 || q == k", S, folder);
            try_flex(&ctx, &m, T, T);
            try_flex(&ctx, &m, 3, T - S);
            mask_free(&m);
        }
        ctx_free(&ctx);
    }
    assert_int_equal(count_entries(folder, NULL), 2); /* the plan's kernel, and attention's */
}

static void documents_compile_nothing(void **state) {
    need_cuda();
    char folder[SCRATCH_PATH];
    scratch_path(state, "documents", folder);
    static const int32_t offsets[][4] = {{0, 1, 70, 73}, {0, 40, 41, 120}, {0, 2, 4, 73}};
    Ctx ctx;
    ctx_for(&ctx, &cuda_device, 2);
    Mask m;
    Err e;
    if (mask_init_documents(&m, "doc[q] == doc[k] && k <= q", "score + 0.1*(doc[q] % 2)*q", "", 2,
                            &e))
        fail_msg("%s", e.text);
    mask_set_build(&m, folder, NULL);
    for (int i = 0; i < 3; i++) {
        mask_set_documents(&m, offsets[i], 3);
        try_flex(&ctx, &m, m.T, m.T);
    }
    assert_int_equal(count_entries(folder, NULL), 1); /* offsets are the plan */
    mask_free(&m);
    ctx_free(&ctx);
}

/* Machine code that is not what was put there is made again. */
static void entry_is_verified(void **state) {
    need_cuda();
    char folder[SCRATCH_PATH], entry[2 * SCRATCH_PATH];
    scratch_path(state, "verified", folder);
    for (int i = 0; i < 2; i++) {
        Ctx ctx;
        Mask m;
        ctx_for(&ctx, &cuda_device, 2);
        mask_for(&m, "causal", 1, folder);
        try_flex(&ctx, &m, 9, 9);
        assert_int_equal(count_entries(folder, entry), 1);
        struct stat is;
        assert_int_equal(stat(entry, &is), 0);
        assert_true(is.st_size > 1000);
        if (i == 0) assert_int_equal(scratch_write(entry, "nonsense", 8), 0);
        mask_free(&m);
        ctx_free(&ctx);
    }
}

static void folder_is_verified(void **state) {
    need_cuda();
    char folder[SCRATCH_PATH];
    scratch_path(state, "open", folder);
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(chmod(folder, 0777), 0);
    Ctx ctx;
    Mask m;
    ctx_for(&ctx, &cuda_device, 2);
    mask_for(&m, "causal", 1, folder);
    AttnArgs a = attn_shape(1, 2, T, 8, &m);
    Err e = {""};
    for (int i = 0; i < 2; i++) {
        a.dtype = i ? DT_BF16 : DT_F32;
        assert_int_equal(attn_find("flex")->prepare(&ctx, &a, &e), -1);
        assert_non_null(strstr(e.text, "can be written by others"));
    }
    assert_int_equal(count_entries(folder, NULL), 0);
    mask_free(&m);
    ctx_free(&ctx);
}

int main(int argc, char **argv) {
    device_choose(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(code_is_kept),
        cmocka_unit_test(documents_compile_nothing),
        cmocka_unit_test(entry_is_verified),
        cmocka_unit_test(folder_is_verified),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
