/* Compiling, keeping and loading generated code. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/flex/cache.h"
#include "kernels/flex/tree.h"

extern char **environ;

enum { MAX_ARGS = 40, PATH_ROOM = PATH_MAX + 64 /* of a file in a folder */ };

/* Those of the Makefile, so that sdpa and flex are the same code but for the expression. */
static const char fixed_flags[] =
    "-std=gnu11 -O3 -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -fPIC -shared "
    "-s -w";

typedef struct FlexLoaded FlexLoaded;
struct FlexLoaded {
    const char *source; /* by address */
    char *isa_flags;
    FlexModule module; /* handle NULL: it failed, as `error` says */
    Err error;
    FlexLoaded *next;
};

/* Runs args[0], found by PATH, with stdout and stderr going to `output`. The exit status; -1 where
 * it could not be started (errno) or was killed. */
static int run(char *const args[], const char *output) {
    posix_spawn_file_actions_t files;
    if (posix_spawn_file_actions_init(&files)) return -1;
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    pid_t child;
    const int failed = posix_spawnp(&child, args[0], &files, NULL, args, environ);
    posix_spawn_file_actions_destroy(&files);
    if (failed) {
        errno = failed;
        return -1;
    }
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return -1;
    errno = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The start of a file, "" where there is none. */
static void read_start(const char *path, char *out, size_t size) {
    FILE *f = fopen(path, "re");
    const size_t n = f ? fread(out, 1, size - 1, f) : 0;
    out[n] = '\0';
    if (f) fclose(f);
}

static int no_compiler(const char *compiler, Err *e) {
    if (errno == ENOENT)
        return err_set(e,
                       "there is no C compiler '%s', and flex compiles its expressions when it "
                       "runs; install gcc (on Debian: apt install gcc), name another compiler, "
                       "or use vanilla, which needs none",
                       compiler);
    return err_set(e,
                   "the C compiler '%s' cannot be started: %s; flex compiles its expressions "
                   "when it runs: name another compiler, or use vanilla, which needs none",
                   compiler, errno ? strerror(errno) : "it was killed");
}

static int compiler_version(const char *compiler, const char *work, char *version, size_t size,
                            Err *e) {
    char output[PATH_ROOM], *name = strdup(compiler), *flag = strdup("--version");
    CHECK(name && flag, "no memory for the name of the compiler");
    char *const args[] = {name, flag, NULL};
    snprintf(output, sizeof output, "%s/version", work);
    const int status = run(args, output);
    free(name);
    free(flag);
    if (status < 0) return no_compiler(compiler, e);
    read_start(output, version, size);
    unlink(output);
    if (status == 0) return 0;
    return err_set(e,
                   "'%s --version' ended with status %d, so it seems to be no C compiler; name "
                   "another",
                   compiler, status);
}

static void processor(char *out, size_t size) {
    struct utsname machine;
    snprintf(out, size, "%s", uname(&machine) ? "unknown" : machine.machine);
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[512];
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "model name", 10)) continue;
        snprintf(out, size, "%s", line);
        break;
    }
    if (f) fclose(f);
}

/* Each part with its end, so that no two lists of parts run together to the same bytes. */
static void make_key(const char *text, const char *isa_flags, const char *compiler,
                     const char *version, char key[SHA256_HEX]) {
    char cpu[512];
    processor(cpu, sizeof cpu);
    const char *const parts[] = {text, fixed_flags, isa_flags, compiler, version, cpu};
    Sha256 s;
    sha256_init(&s);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        sha256_add(&s, parts[i], strlen(parts[i]) + 1);
    sha256_hex(&s, key);
}

static int write_text(const char *path, const char *text, Err *e) {
    FILE *f = fopen(path, "wxe");
    const bool wrote = f && fputs(text, f) >= 0;
    if (f && fclose(f) == 0 && wrote) return 0;
    return err_set(e,
                   "generated code cannot be written to %s: %s; free some space, or choose "
                   "another cache folder",
                   path, strerror(errno));
}

/* work/source.c to work/object.so */
static int compile(const char *compiler, const char *isa_flags, const char *work, Err *e) {
    char source[PATH_ROOM], object[PATH_ROOM], output[PATH_ROOM], flags[1024];
    snprintf(source, sizeof source, "%s/source.c", work);
    snprintf(object, sizeof object, "%s/object.so", work);
    snprintf(output, sizeof output, "%s/messages", work);
    char name[PATH_MAX], o_flag[] = "-o", lm_flag[] = "-lm";
    snprintf(name, sizeof name, "%s", compiler);
    const int length = snprintf(flags, sizeof flags, "%s %s", fixed_flags, isa_flags);
    CHECK(length < (int)sizeof flags, "flags too long: %s", isa_flags);

    char *args[MAX_ARGS], *rest;
    int n = 0;
    args[n++] = name;
    for (char *flag = strtok_r(flags, " ", &rest); flag; flag = strtok_r(NULL, " ", &rest)) {
        CHECK(n < MAX_ARGS - 5, "more than %d flags: %s", MAX_ARGS - 5, isa_flags);
        args[n++] = flag;
    }
    args[n++] = source;
    args[n++] = o_flag;
    args[n++] = object;
    args[n++] = lm_flag;
    args[n] = NULL;
    const int status = run(args, output);
    if (status == 0) {
        unlink(output);
        return 0;
    }
    if (status < 0) return no_compiler(compiler, e);
    char messages[1200];
    read_start(output, messages, sizeof messages);
    unlink(output);
    return err_set(e,
                   "the C compiler '%s' did not compile the generated code (flags %s); if it is "
                   "older than gcc 10, name a newer one. It said:\n%s",
                   compiler, isa_flags, messages);
}

static void remove_work(const char *work) {
    static const char *const names[] = {"source.c", "object.so", "messages", "version", "digest"};
    char path[PATH_ROOM];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", work, names[i]);
        unlink(path);
    }
    rmdir(work);
}

static int compile_into(int dir, const char *key, const char *text, const char *compiler,
                        const char *isa_flags, const char *work, Err *e) {
    char path[PATH_ROOM];
    snprintf(path, sizeof path, "%s/source.c", work);
    if (write_text(path, text, e)) return -1;
    if (compile(compiler, isa_flags, work, e)) return -1;
    snprintf(path, sizeof path, "%s/object.so", work);
    return cache_put(dir, key, ".so", path, work, e);
}

/* Makes sure that the entry is in the folder, and writes its key. */
static int provide(int dir, const char *folder, const char *text, const char *compiler,
                   const char *isa_flags, char key[SHA256_HEX], Err *e) {
    char work[PATH_MAX], version[512];
    if (cache_make_work(folder, work, e)) return -1;
    int status = compiler_version(compiler, work, version, sizeof version, e);
    if (status == 0) {
        make_key(text, isa_flags, compiler, version, key);
        if (!cache_has(dir, key, ".so"))
            status = compile_into(dir, key, text, compiler, isa_flags, work, e);
    }
    remove_work(work);
    return status;
}

static int load(const char *folder, const char *key, FlexModule *out, Err *e) {
    char path[PATH_MAX];
    /* a path without '/' would be searched for among the libraries */
    snprintf(path, sizeof path, "%s%s/%s.so", *folder == '/' ? "" : "./", folder, key);
    out->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (out->handle) return 0;
    return err_set(e,
                   "compiled code cannot be loaded: %s; if the cache folder's file system "
                   "forbids programs (noexec), choose another",
                   dlerror());
}

int flex_module_load(const FlexProgram *p, const FlexBuild *build, const char *kernel_source,
                     const char *isa_flags, FlexModule *out, Err *e) {
    const char *compiler = build && build->compiler ? build->compiler : "cc";
    const char *folder = build ? build->cache : NULL;
    char private_folder[32], key[SHA256_HEX] = "";
    out->handle = NULL;
    if (!folder && cache_make_private(private_folder, e)) return -1;
    const char *place = folder ? folder : private_folder;
    const int dir = cache_open(place, e);
    int status = -1;
    if (dir >= 0) {
        char *prelude = flex_prelude(p), *text = NULL;
        CHECK(asprintf(&text, "%s\n%s", prelude, kernel_source) >= 0, "no memory for code");
        status = provide(dir, place, text, compiler, isa_flags, key, e);
        if (status == 0) status = load(place, key, out, e);
        free(prelude);
        free(text);
        close(dir);
    }
    if (!folder) cache_remove_private(private_folder, key);
    return status;
}

void *flex_module_symbol(const FlexModule *m, const char *name) {
    void *symbol = dlsym(m->handle, name);
    CHECK(symbol, "the kernel source defines no '%s'", name);
    return symbol;
}

void flex_module_close(FlexModule *m) {
    if (m->handle) dlclose(m->handle);
    m->handle = NULL;
}

static char *copy_string(const char *s) {
    char *copy = s ? strdup(s) : NULL;
    CHECK(copy || !s, "no memory for '%s'", s);
    return copy;
}

void flex_set_build(const FlexProgram *p, const FlexBuild *build) {
    FlexMemory *m = p->memory;
    char *compiler = copy_string(build->compiler), *cache = copy_string(build->cache);
    free(m->compiler);
    free(m->cache);
    m->compiler = compiler;
    m->cache = cache;
}

const char *flex_cache(const FlexProgram *p) { return p->memory->cache; }

const FlexModule *flex_module(const FlexProgram *p, const char *kernel_source,
                              const char *isa_flags, Err *e) {
    FlexMemory *m = p->memory;
    FlexLoaded *x = m->modules;
    while (x && (x->source != kernel_source || strcmp(x->isa_flags, isa_flags))) x = x->next;
    if (!x) {
        x = calloc(1, sizeof *x);
        CHECK(x, "no memory for a module");
        x->source = kernel_source;
        x->isa_flags = copy_string(isa_flags);
        x->next = m->modules;
        m->modules = x;
        const FlexBuild build = {m->compiler, m->cache};
        flex_module_load(p, &build, kernel_source, isa_flags, &x->module, &x->error);
    }
    if (x->module.handle) return &x->module;
    err_set(e, "%s", x->error.text);
    return NULL;
}

void flex_forget_modules(FlexMemory *m) {
    for (FlexLoaded *x = m->modules, *next; x; x = next) {
        next = x->next;
        flex_module_close(&x->module);
        free(x->isa_flags);
        free(x);
    }
    m->modules = NULL;
    free(m->compiler);
    free(m->cache);
    free(m->prelude);
    m->compiler = m->cache = m->prelude = NULL;
}
