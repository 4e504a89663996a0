/* The folder of compiled code. Code from it is run, so it is trusted only as far as the user's own
 * account: the folder belongs to the user and nobody else can write it, an entry (KEY.so,
 * KEY.cubin: the key and an end) is a regular file of the user's without rights for others, and
 * KEY.sha256 beside it holds its SHA-256. A key is of one kind of entry. */
#ifndef KERNELS_FLEX_CACHE_H
#define KERNELS_FLEX_CACHE_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "kernels/flex/sha256.h"
#include "llmc_like/error.h"

/* Opens the folder, making it and its parents (mode 0700) where they are missing, and returns its
 * descriptor. -1 and a sentence where it is a symbolic link or no folder, belongs to another user,
 * can be written by others, or cannot be made. */
int cache_open(const char *folder, Err *e);

/* Whether the entry is there and whole. */
bool cache_has(int dir, const char *key, const char *end);

/* Moves the file at `object` (in the same file system) in as the entry: rights first, then the
 * object, then its digest, each by renaming, so that a reader sees a whole entry or none. -1 and a
 * sentence where the disk is full or the folder cannot be written. */
int cache_put(int dir, const char *key, const char *end, const char *object,
              const char *work_folder, Err *e);

/* The whole of an entry that is there and whole, to be freed by free(); else NULL. */
void *cache_get(int dir, const char *key, const char *end, size_t *size);

/* A folder in `folder`, the cache, in which an entry is made before it is put. -1 and a sentence
 * where the path is too long or cannot be written. */
int cache_make_work(const char *folder, char work[PATH_MAX], Err *e);

/* cache_put of bytes, by way of a folder made for it in `folder`, the cache. */
int cache_put_bytes(int dir, const char *folder, const char *key, const char *end, const void *data,
                    size_t size, Err *e);

/* A folder of its own under /tmp (mode 0700), path at least 32 bytes. */
int cache_make_private(char *path, Err *e);
void cache_remove_private(const char *path, const char *key);

#endif
