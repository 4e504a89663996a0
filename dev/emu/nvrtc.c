/* NVRTC for the emulator: the host's C++ compiler makes a shared object of the very same text, with
 * the flags that the kernels of the program are compiled with (EMU_COMPILE, from the Makefile).
 * Headers are found where the project keeps them, so that programs run in its root; those that
 * NVRTC is given must be the same. */
#include <nvrtc.h>

#include <dlfcn.h>
#include <elf.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "dev/emu/parts.h"

struct EmuProgram {
    char *text, *code, *log;
    size_t code_size, log_size;
};

const char *nvrtcGetErrorString(nvrtcResult result) {
    return result == NVRTC_SUCCESS                ? "NVRTC_SUCCESS"
           : result == NVRTC_ERROR_INVALID_INPUT  ? "NVRTC_ERROR_INVALID_INPUT"
           : result == NVRTC_ERROR_INVALID_OPTION ? "NVRTC_ERROR_INVALID_OPTION"
                                                  : "NVRTC_ERROR_COMPILATION";
}

/* The flags are a part of it: with others, the code is another. */
nvrtcResult nvrtcVersion(int *major, int *minor) {
    unsigned sum = 0;
    for (const char *c = EMU_COMPILE " " __VERSION__; *c; c++) sum = sum * 31 + (unsigned char)*c;
    *major = 13;
    *minor = (int)(sum & INT_MAX);
    return NVRTC_SUCCESS;
}

/* The whole file, with a zero behind it. */
static char *read_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rbe");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    char *data = calloc(1, *size + 1);
    if (data && fread(data, 1, *size, f) != *size) *size = 0;
    fclose(f);
    return data;
}

nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *text, const char *name,
                               int n_headers, const char *const *headers,
                               const char *const *names) {
    (void)name;
    for (int i = 0; i < n_headers; i++) {
        size_t size;
        char *file = strchr(names[i], '/') ? read_file(names[i], &size) : NULL;
        if (file && strcmp(file, headers[i]))
            emu_fail(
                "nvrtcCreateProgram: %s is not the file that this program was built with; "
                "build it again",
                names[i]);
        free(file);
    }
    *program = calloc(1, sizeof **program);
    (*program)->text = strdup(text);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int n_options, const char *const *options) {
    if (n_options < 1 || strncmp(options[0], "--gpu-architecture=sm_", 22))
        return NVRTC_ERROR_INVALID_OPTION;
    char folder[] = "/tmp/emu-nvrtc-XXXXXX", path[64], object[64], messages[64], command[4096];
    if (!mkdtemp(folder)) emu_fail("nvrtcCompileProgram: no folder can be made in /tmp");
    snprintf(path, sizeof path, "%s/flex.cu", folder);
    snprintf(object, sizeof object, "%s/flex.so", folder);
    snprintf(messages, sizeof messages, "%s/messages", folder);
    FILE *f = fopen(path, "we");
    if (!f || fputs(program->text, f) < 0 || fclose(f)) emu_fail("%s cannot be written", path);
    snprintf(command, sizeof command, "%s -w -fPIC -shared -nodefaultlibs %s -o %s >%s 2>&1",
             EMU_COMPILE, path, object, messages);
    const int status = system(command);
    program->log = read_file(messages, &program->log_size);
    if (status == 0) program->code = read_file(object, &program->code_size);
    unlink(path);
    unlink(object);
    unlink(messages);
    rmdir(folder);
    return status == 0 ? NVRTC_SUCCESS : NVRTC_ERROR_COMPILATION;
}

nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    free((*program)->text);
    free((*program)->code);
    free((*program)->log);
    free(*program);
    *program = NULL;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t *size) {
    *size = program->code_size;
    return program->code ? NVRTC_SUCCESS : NVRTC_ERROR_INVALID_INPUT;
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char *code) {
    memcpy(code, program->code, program->code_size);
    return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t *size) {
    *size = program->log_size + 1;
    return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char *log) {
    memcpy(log, program->log ? program->log : "", program->log_size + 1);
    return NVRTC_SUCCESS;
}

/* ---- loading ---- */

/* Of a shared object the section headers are the end. */
cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, void *jit_options,
                                void **jit_values, unsigned n_jit_options, void *options,
                                void **values, unsigned n_options) {
    (void)jit_options, (void)jit_values, (void)n_jit_options;
    (void)options, (void)values, (void)n_options;
    Elf64_Ehdr head;
    memcpy(&head, code, sizeof head);
    if (memcmp(head.e_ident, ELFMAG, SELFMAG)) return cudaErrorInvalidValue;
    const size_t size = head.e_shoff + (size_t)head.e_shentsize * head.e_shnum;
    char path[] = "/tmp/emu-library-XXXXXX";
    const int fd = mkstemp(path);
    if (fd < 0 || write(fd, code, size) != (ssize_t)size) emu_fail("%s cannot be written", path);
    close(fd);
    *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    unlink(path);
    if (!*library) emu_fail("cudaLibraryLoadData: %s", dlerror());
    return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
    *kernel = dlsym(library, name);
    return *kernel ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaLibraryUnload(cudaLibrary_t library) {
    return dlclose(library) ? cudaErrorInvalidValue : cudaSuccess;
}
