/* The sources of the flash kernels of CUDA as strings, for compiling them at run time behind a
 * user's expressions (kernels/cuda/flex_code.cu). */
#ifndef KERNELS_FLASH_CUDA_TEXT_H
#define KERNELS_FLASH_CUDA_TEXT_H

/* A file as a compiler finds it: by the name in an #include, from the project's root. */
typedef struct FlashFile {
    const char *name, *text;
} FlashFile;

extern const FlashFile flash_cuda_files[]; /* name NULL at the end */

#endif
