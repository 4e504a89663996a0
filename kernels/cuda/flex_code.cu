/* Kernels with a user's expressions: the text of flash_*.cuh behind flex_prelude's, compiled by
 * NVRTC when it is first asked for, to machine code of the context's GPU.
 *
 * A context keeps what it has loaded, by the text alone: other lengths, documents or contents of
 * arrays compile nothing. On disk the code is kept as the CPU's is (kernels/flex/cache.h), in
 * KEY.cubin, the key made of everything that it depends on. NVRTC is looked for when it is needed,
 * as cuBLAS is. */
#include <dlfcn.h>
#include <nvrtc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/attention.cuh"

extern "C" {
#include "kernels/flash_cuda_text.h"
#include "kernels/flex/cache.h"
}

enum { MAX_KERNELS = 4, MAX_FILES = 32 };

typedef struct FlexCode FlexCode;
struct FlexCode {
    char *prelude; /* own copy; with source what it is known by */
    FlexSource source;
    cudaLibrary_t library;
    struct {
        const char *name; /* NULL: free */
        cudaKernel_t kernel;
    } kernel[MAX_KERNELS];
    FlexCode *next;
};

#define NVRTC_FUNCTIONS(X) \
    X(Version)             \
    X(CreateProgram)       \
    X(CompileProgram)      \
    X(DestroyProgram)      \
    X(GetCUBINSize) X(GetCUBIN) X(GetProgramLogSize) X(GetProgramLog) X(GetErrorString)

typedef struct FlexCodes {
#define FUNCTION(name) decltype(&nvrtc##name) name;
    NVRTC_FUNCTIONS(FUNCTION)
#undef FUNCTION
    FlexCode *list;
} FlexCodes;

static const char standard_header[] = "kernels/cuda/nvrtc_std.h";
static const char *const standard_names[] = {"cuda_bf16.h", "limits.h", "stdint.h", "string.h"};

/* ---- NVRTC ---- */

#ifdef LLMC_EMU
static int find_nvrtc(FlexCodes *n, Err *) { /* the emulator's stand-ins are linked */
#define LINKED(name) n->name = nvrtc##name;
    NVRTC_FUNCTIONS(LINKED)
#undef LINKED
    return 0;
}
#else
#ifndef CUDA_LIB /* where the toolkit that the program was built with has its libraries */
#define CUDA_LIB "/usr/local/cuda/lib64"
#endif

/* By the loader's rules first, then in the toolkit. */
static int find_nvrtc(FlexCodes *n, Err *e) {
    static const char *const names[] = {"libnvrtc.so.13", CUDA_LIB "/libnvrtc.so.13",
                                        "libnvrtc.so.12", CUDA_LIB "/libnvrtc.so.12",
                                        "libnvrtc.so"};
    void *library = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return err_set(e,
                       "there is no libnvrtc, and on CUDA flex compiles its expressions with it "
                       "when it runs; install CUDA's NVRTC 12 or 13, name its folder in "
                       "LD_LIBRARY_PATH, or use sdpa, which needs none and takes masks by name");
#define FIND(name)                                                      \
    n->name = (decltype(n->name))dlsym(library, "nvrtc" #name);         \
    if (!n->name)                                                       \
        return err_set(e, "libnvrtc has no function nvrtc" #name        \
                          ", so it is no NVRTC 12 or 13; install one, " \
                          "or name its folder in LD_LIBRARY_PATH");
    NVRTC_FUNCTIONS(FIND)
#undef FIND
    return 0;
}
#endif

static FlexCodes *codes_of(Ctx *c, Err *e) {
    Cuda *cuda = cuda_of(c);
    if (cuda->codes) return cuda->codes;
    FlexCodes *n = (FlexCodes *)calloc(1, sizeof *n);
    CHECK(n, "no memory for the list of compiled expressions");
    if (find_nvrtc(n, e)) {
        free(n);
        return NULL;
    }
    return cuda->codes = n;
}

/* The end of what NVRTC said, as a sentence. */
static int compile_failed(const FlexCodes *n, nvrtcProgram program, nvrtcResult status,
                          const char *file, Err *e) {
    size_t size = 0;
    char *log = NULL;
    if (n->GetProgramLogSize(program, &size) == NVRTC_SUCCESS) log = (char *)calloc(1, size + 1);
    if (log) n->GetProgramLog(program, log);
    err_set(e,
            "NVRTC did not compile %s with the expressions (%s); if it is older than 12.0, or "
            "older than the GPU, install a newer one. It said:\n%.1000s",
            file, n->GetErrorString(status), log ? log : "");
    free(log);
    return -1;
}

/* The machine code, to be freed by free(). */
static char *compile(const FlexCodes *n, const char *text, const char *file, const char *arch,
                     size_t *size, Err *e) {
    const char *texts[MAX_FILES], *names[MAX_FILES];
    const char *const options[] = {arch, "--std=c++17", "-w"};
    int n_files = 0;
    for (const FlashFile *f = flash_cuda_files; f->name; f++) {
        CHECK(n_files + 5 < MAX_FILES, "more than %d files", MAX_FILES);
        const bool standard = !strcmp(f->name, standard_header);
        for (int i = 0; i < (standard ? 4 : 1); i++) {
            names[n_files] = standard ? standard_names[i] : f->name;
            texts[n_files++] = f->text;
        }
    }
    nvrtcProgram program = NULL;
    char *code = NULL;
    nvrtcResult status = n->CreateProgram(&program, text, "flex.cu", n_files, texts, names);
    if (status == NVRTC_SUCCESS) status = n->CompileProgram(program, 3, options);
    if (status == NVRTC_SUCCESS) status = n->GetCUBINSize(program, size);
    if (status == NVRTC_SUCCESS) {
        code = (char *)malloc(*size);
        CHECK(code, "no memory for %zu bytes of machine code", *size);
        status = n->GetCUBIN(program, code);
    }
    if (status != NVRTC_SUCCESS) {
        compile_failed(n, program, status, file, e);
        free(code);
        code = NULL;
    }
    if (program) n->DestroyProgram(&program);
    return code;
}

/* ---- code on disk and in the context ---- */

static char *text_of(const FlexProgram *p, FlexSource source) {
    char *text;
    CHECK(asprintf(&text,
                   "%s\n#define FLEX_RUNTIME 1\n#define FLEX_D %d\n#define FLEX_ROWS %d\n"
                   "#include \"%s\"\n",
                   flex_prelude_kept(p), source.D, source.rows, source.file) >= 0,
          "no memory for code");
    return text;
}

/* Each part with its end, so that no two lists of parts run together to the same bytes. */
static void make_key(const FlexCodes *n, const char *text, const char *arch, char key[SHA256_HEX]) {
    int major = 0, minor = 0;
    char version[64];
    n->Version(&major, &minor);
    snprintf(version, sizeof version, "NVRTC %d.%d", major, minor);
    Sha256 s;
    sha256_init(&s);
    for (const FlashFile *f = flash_cuda_files; f->name; f++)
        sha256_add(&s, f->text, strlen(f->text) + 1);
    sha256_add(&s, text, strlen(text) + 1);
    sha256_add(&s, arch, strlen(arch) + 1);
    sha256_add(&s, version, strlen(version) + 1);
    sha256_hex(&s, key);
}

/* The machine code from the cache, or compiled and put there. */
static char *provide(Ctx *c, const FlexCodes *n, const FlexProgram *p, FlexSource source, Err *e) {
    char arch[64], key[SHA256_HEX], *code = NULL;
    const char *folder = flex_cache(p);
    size_t size;
    /* Hopper's own instructions are of no other GPU, later ones included */
    snprintf(arch, sizeof arch, "--gpu-architecture=sm_%d%s", cuda_of(c)->arch,
             cuda_of(c)->arch == 90 ? "a" : "");
    const int dir = folder ? cache_open(folder, e) : -1;
    if (folder && dir < 0) return NULL;
    char *text = text_of(p, source);
    if (folder) {
        make_key(n, text, arch, key);
        code = (char *)cache_get(dir, key, ".cubin", &size);
    }
    if (!code) {
        code = compile(n, text, source.file, arch, &size, e);
        if (code && folder && cache_put_bytes(dir, folder, key, ".cubin", code, size, e)) {
            free(code);
            code = NULL;
        }
    }
    if (folder) close(dir);
    free(text);
    return code;
}

static FlexCode *find(const FlexCodes *n, const FlexProgram *p, FlexSource source) {
    const char *prelude = flex_prelude_kept(p);
    FlexCode *x = n->list;
    while (x && (x->source.D != source.D || x->source.rows != source.rows ||
                 strcmp(x->source.file, source.file) || strcmp(x->prelude, prelude)))
        x = x->next;
    return x;
}

/* What one thread provides. */
typedef struct Job {
    Ctx *c;
    const FlexCodes *codes;
    const FlexProgram *p;
    FlexSource source;
    char *code;
    Err error;
} Job;

static void *work(void *of) {
    Job *j = (Job *)of;
    j->code = provide(j->c, j->codes, j->p, j->source, &j->error);
    return NULL;
}

static int load(FlexCodes *n, const Job *j, Err *e) {
    cudaLibrary_t library;
    const cudaError_t status = cudaLibraryLoadData(&library, j->code, NULL, NULL, 0, NULL, NULL, 0);
    if (status != cudaSuccess)
        return err_set(e,
                       "the driver does not load what NVRTC made of the expressions (%s); install "
                       "an NVRTC that is not newer than the driver, or name its folder in "
                       "LD_LIBRARY_PATH",
                       cudaGetErrorString(status));
    FlexCode *x = (FlexCode *)calloc(1, sizeof *x);
    CHECK(x && (x->prelude = strdup(flex_prelude_kept(j->p))),
          "no memory for compiled expressions");
    x->library = library;
    x->source = j->source;
    x->next = n->list;
    n->list = x;
    return 0;
}

int flex_compile(Ctx *c, const FlexProgram *p, const FlexSource *sources, int n_sources, Err *e) {
    FlexCodes *codes = codes_of(c, e);
    if (!codes) return -1;
    Job *job = (Job *)calloc((size_t)n_sources, sizeof *job);
    pthread_t *thread = (pthread_t *)calloc((size_t)n_sources, sizeof *thread);
    CHECK(job && thread, "no memory for %d sources", n_sources);
    int n = 0, status = 0;
    for (int i = 0; i < n_sources; i++) {
        if (find(codes, p, sources[i])) continue;
        job[n].c = c, job[n].codes = codes, job[n].p = p, job[n].source = sources[i];
        n++;
    }
    for (int i = 1; i < n; i++)
        CHECK(!pthread_create(&thread[i], NULL, work, &job[i]), "no thread to compile in");
    if (n) work(&job[0]);
    for (int i = 0; i < n; i++) {
        if (i) pthread_join(thread[i], NULL);
        if (!status)
            status = job[i].code ? load(codes, &job[i], e) : err_set(e, "%s", job[i].error.text);
        free(job[i].code);
    }
    free(job);
    free(thread);
    return status;
}

static cudaKernel_t kernel_of(Ctx *c, FlexCode *x, const char *name) {
    for (int i = 0; i < MAX_KERNELS; i++) {
        if (!x->kernel[i].name) {
            CUDA(c, cudaLibraryGetKernel(&x->kernel[i].kernel, x->library, name));
            x->kernel[i].name = name;
        }
        if (!strcmp(x->kernel[i].name, name)) return x->kernel[i].kernel;
    }
    CHECK(false, "%s has more than %d kernels", x->source.file, MAX_KERNELS);
    return NULL;
}

const void *flex_kernel(Ctx *c, const FlexProgram *p, FlexSource source, const char *name) {
    FlexCode *x = cuda_of(c)->codes ? find(cuda_of(c)->codes, p, source) : NULL;
    if (!x) {
        Err e;
        if (flex_compile(c, p, &source, 1, &e)) cuda_fail(c, "compiling the expressions", e.text);
        x = find(cuda_of(c)->codes, p, source);
    }
    return (const void *)kernel_of(c, x, name);
}

void flex_codes_free(FlexCodes *codes) {
    for (FlexCode *x = codes ? codes->list : NULL, *next; x; x = next) {
        next = x->next;
        CUDA(NULL, cudaLibraryUnload(x->library));
        free(x->prelude);
        free(x);
    }
    free(codes);
}
