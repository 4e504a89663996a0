#include "llmc_like/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* What the user may do about an errno; "" where the system's own words say it. */
static const char *advice(int number) {
    switch (number) {
        case ENOSPC:
        case EDQUOT:
            return ": free some space there or choose another folder";
        case EFBIG:
            return ": the file size limit (ulimit -f) is too small for it";
        case EROFS:
        case EACCES:
        case EPERM:
            return ": choose a folder that you may write, or change its permissions";
        case ENOENT:
            return ": make the folder first, or correct the path";
        case ENOTDIR:
            return ": a part of the path is a file where a folder was expected";
        default:
            return "";
    }
}

static char *copy_text(const char *text, size_t n) {
    char *copy = malloc(n + 1);
    CHECK(copy, "no memory for %zu bytes", n + 1);
    memcpy(copy, text, n);
    copy[n] = 0;
    return copy;
}

/* The folder that `path` lies in; the caller frees it. */
static char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return copy_text(".", 1);
    return copy_text(path, slash == path ? 1 : (size_t)(slash - path));
}

static void forget(AtomicFile *f) {
    free(f->path);
    free(f->temp);
    f->path = f->temp = NULL;
    f->fd = -1;
}

/* Fails with errno `number` while doing `what`: tidies up and says so. */
static int give_up(AtomicFile *f, const char *what, int number, Err *e) {
    err_set(e, "cannot %s '%s' after %llu bytes: %s%s (what was there before is untouched)", what,
            f->path, (unsigned long long)f->size, strerror(number), advice(number));
    atomic_abort(f);
    return -1;
}

int atomic_open(AtomicFile *f, const char *path, Err *e) {
    memset(f, 0, sizeof *f);
    f->fd = -1;
    struct stat s;
    if (!stat(path, &s) && S_ISDIR(s.st_mode))
        return err_set(e, "cannot write '%s': it is a folder; name a file in it", path);
    f->path = copy_text(path, strlen(path));
    size_t size = strlen(path) + 48;
    f->temp = malloc(size);
    CHECK(f->temp, "no memory for a path of %zu bytes", size);
    /* A leftover of a killed process may have the same number: then the next name is taken. */
    for (int k = 0; k < 1000 && f->fd < 0; k++) {
        snprintf(f->temp, size, "%s.%ld.%d.tmp", path, (long)getpid(), k);
        f->fd = open(f->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (f->fd < 0 && errno != EEXIST) break;
    }
    if (f->fd >= 0) return 0;
    int number = errno;
    err_set(e, "cannot write '%s': %s%s", path, strerror(number), advice(number));
    forget(f);
    return -1;
}

int atomic_write(AtomicFile *f, const void *data, size_t n, Err *e) {
    CHECK(f->fd >= 0, "atomic_write to a file that is closed");
    const char *at = data;
    while (n > 0) {
        ssize_t k = write(f->fd, at, n < SSIZE_MAX ? n : SSIZE_MAX);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return give_up(f, "write", errno, e);
        at += k;
        n -= (size_t)k;
        f->size += (uint64_t)k;
    }
    return 0;
}

/* Makes a rename in the folder of `path` durable. Some file systems have no fsync of folders
 * (EINVAL). */
static int sync_folder(const char *path) {
    char *folder = folder_of(path);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    if (fd < 0) return errno;
    int number = fsync(fd) && errno != EINVAL ? errno : 0;
    close(fd);
    return number;
}

int atomic_commit(AtomicFile *f, Err *e) {
    CHECK(f->fd >= 0, "atomic_commit of a file that is closed");
    if (fsync(f->fd)) return give_up(f, "write", errno, e);
    int closed = close(f->fd);
    f->fd = -1;
    if (closed) return give_up(f, "write", errno, e);
    if (rename(f->temp, f->path)) return give_up(f, "rename the new file to", errno, e);
    int number = sync_folder(f->path);
    if (number)
        err_set(e, "'%s' is written, but its folder cannot be made durable: %s%s", f->path,
                strerror(number), advice(number));
    forget(f);
    return number ? -1 : 0;
}

void atomic_abort(AtomicFile *f) {
    if (f->fd >= 0) close(f->fd);
    if (f->temp) unlink(f->temp);
    forget(f);
}

int atomic_save(const char *path, const void *data, size_t n, Err *e) {
    AtomicFile f;
    if (atomic_open(&f, path, e) || atomic_write(&f, data, n, e)) return -1;
    return atomic_commit(&f, e);
}

static bool is_folder(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

int make_dirs(const char *path, Err *e) {
    if (!*path) return err_set(e, "cannot make a folder with an empty name");
    char *part = copy_text(path, strlen(path));
    int status = 0;
    for (char *c = part + 1; !status; c++) {
        if (*c && *c != '/') continue;
        char was = *c;
        *c = 0;
        if (mkdir(part, 0777) && !is_folder(part)) {
            int number = errno;
            status = err_set(
                e, "cannot make the folder '%s': %s%s", part,
                number == EEXIST ? "a file is in its place" : strerror(number),
                number == EEXIST ? ": move it away or choose another folder" : advice(number));
        }
        if (!was) break;
        *c = was;
    }
    free(part);
    return status;
}

/* Opens a regular file to read it. */
static int open_to_read(const char *path, struct stat *s, Err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(e, "cannot read '%s': %s%s", path, strerror(errno),
                       errno == ENOENT ? ": correct the path" : "");
    if (!fstat(fd, s) && S_ISREG(s->st_mode)) return fd;
    err_set(e, "cannot read '%s': it is a %s, but a file was expected", path,
            S_ISDIR(s->st_mode) ? "folder" : "device or pipe");
    close(fd);
    return -1;
}

int read_whole_file(const char *path, char **text, size_t *size, Err *e) {
    struct stat s;
    int fd = open_to_read(path, &s, e);
    if (fd < 0) return -1;
    size_t n = (size_t)s.st_size, got = 0;
    char *buffer = malloc(n + 1);
    int status = buffer ? 0 : err_set(e, "cannot read '%s': no memory for %zu bytes", path, n);
    while (!status && got < n) {
        ssize_t k = read(fd, buffer + got, n - got);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) status = err_set(e, "cannot read '%s': %s", path, strerror(errno));
        if (k <= 0) break; /* 0: the file was shortened meanwhile */
        got += (size_t)k;
    }
    close(fd);
    if (status) {
        free(buffer);
        return -1;
    }
    buffer[got] = 0;
    *text = buffer;
    *size = got;
    return 0;
}

int map_file(const char *path, MappedFile *m, Err *e) {
    struct stat s;
    int fd = open_to_read(path, &s, e);
    if (fd < 0) return -1;
    m->size = (size_t)s.st_size;
    /* No mapping may be empty: an empty file gets a page of zeros that nobody reads. */
    void *p = m->size ? mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, fd, 0)
                      : mmap(NULL, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int number = errno;
    close(fd);
    if (p == MAP_FAILED)
        return err_set(e, "cannot map '%s' (%zu bytes): %s", path, m->size, strerror(number));
    m->data = p;
    return 0;
}

void unmap_file(MappedFile *m) {
    if (m->data) munmap((void *)(uintptr_t)m->data, m->size ? m->size : 1);
    m->data = NULL;
    m->size = 0;
}
