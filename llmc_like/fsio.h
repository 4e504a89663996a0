/* Files: written whole or not at all, mapped, read.
 *
 * Every file that a run leaves behind is written through AtomicFile: into PATH.PID.K.tmp in the
 * same folder, then fsync, rename over PATH, fsync of the folder. So at any moment, also after kill
 * -9 or a full disk, PATH is the whole old file or the whole new one; at worst a *.tmp is left
 * over, which nobody reads and anybody may delete. */
#ifndef LLMC_LIKE_FSIO_H
#define LLMC_LIKE_FSIO_H

#include <stddef.h>
#include <stdint.h>

#include "llmc_like/error.h"

typedef struct AtomicFile {
    int fd; /* -1: not open */
    char *path, *temp;
    uint64_t size; /* bytes written so far */
} AtomicFile;

/* Begins a new PATH. -1 and a sentence where the folder is missing or may not be written, or PATH
 * is a folder. A symbolic link at PATH is replaced, not followed. */
int atomic_open(AtomicFile *f, const char *path, Err *e);

/* Appends n bytes, unbuffered: hand over large pieces. On any failure (disk full, size limit) -1
 * and a sentence; the temporary file is already removed, the old PATH untouched, and f closed. */
int atomic_write(AtomicFile *f, const void *data, size_t n, Err *e);

/* Makes what was written the new PATH, durably. Fails like atomic_write. */
int atomic_commit(AtomicFile *f, Err *e);

/* Gives up: removes the temporary file. Does nothing to an f that is closed already, so every error
 * path may call it. */
void atomic_abort(AtomicFile *f);

/* The three in one, for what is in memory already. */
int atomic_save(const char *path, const void *data, size_t n, Err *e);

/* Makes the folder and all folders above it, mode 0777 less umask. A folder that is there already
 * is fine. */
int make_dirs(const char *path, Err *e);

/* The whole file into *text, which the caller frees: *size bytes and then a 0 that *size does not
 * count. */
int read_whole_file(const char *path, char **text, size_t *size, Err *e);

/* A file's bytes, read-only, loaded by the system page by page as they are touched. The file must
 * not be shortened in place while it is mapped (replacing it by rename is fine: the mapping keeps
 * the old one). */
typedef struct MappedFile {
    const void *data; /* page-aligned; not NULL, also for an empty file */
    size_t size;
} MappedFile;

int map_file(const char *path, MappedFile *m, Err *e);
void unmap_file(MappedFile *m);

#endif
