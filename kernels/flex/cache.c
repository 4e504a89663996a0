#include "kernels/flex/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Parents too, as mkdir -p does. */
static int make_folders(const char *folder) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s", folder) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (char *c = path + 1; *c; c++) {
        if (*c != '/') continue;
        *c = '\0';
        if (mkdir(path, 0700) && errno != EEXIST) return -1;
        *c = '/';
    }
    return mkdir(path, 0700) && errno != EEXIST ? -1 : 0;
}

static int refuse(int dir, Err *e, const char *folder, const char *what) {
    close(dir);
    return err_set(e,
                   "the cache for compiled code, %s, %s; since code from it is run it must be a "
                   "folder of your own that nobody else can write: repair it (chown, chmod "
                   "700), remove it, or choose another",
                   folder, what);
}

int cache_open(const char *folder, Err *e) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s", folder) >= (int)sizeof path)
        return err_set(e, "the path of the cache for compiled code is longer than %d characters",
                       PATH_MAX - 1);
    /* open follows a symbolic link that a '/' ends */
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) path[n - 1] = '\0';
    if (make_folders(path))
        return err_set(e,
                       "the cache for compiled code, %s, cannot be made: %s; choose a folder "
                       "that you can write",
                       folder, strerror(errno));
    const int dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0 && (errno == ELOOP || errno == ENOTDIR))
        return err_set(e,
                       "the cache for compiled code, %s, is a symbolic link or a file; it must "
                       "be a folder itself: remove it or choose another",
                       folder);
    if (dir < 0)
        return err_set(e,
                       "the cache for compiled code, %s, cannot be opened: %s; choose a folder "
                       "that you can read",
                       folder, strerror(errno));
    struct stat s;
    if (fstat(dir, &s)) return refuse(dir, e, folder, strerror(errno));
    if (s.st_uid != geteuid()) return refuse(dir, e, folder, "belongs to another user");
    if (s.st_mode & (S_IWGRP | S_IWOTH)) return refuse(dir, e, folder, "can be written by others");
    return dir;
}

/* A regular file of the user's own that others have no rights to, opened for reading, or -1. */
static int open_own(int dir, const char *name) {
    const int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -1;
    struct stat s;
    if (fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && s.st_uid == geteuid() &&
        !(s.st_mode & (S_IRWXG | S_IRWXO)))
        return fd;
    close(fd);
    return -1;
}

/* The whole file, with a zero behind it, to be freed by free(); NULL where it cannot be read. */
static char *read_all(int fd, size_t *size) {
    struct stat s;
    if (fstat(fd, &s)) return NULL;
    char *data = malloc((size_t)s.st_size + 1);
    ssize_t n = 1;
    *size = 0;
    while (data && *size < (size_t)s.st_size && n > 0) {
        n = read(fd, data + *size, (size_t)s.st_size - *size);
        if (n > 0) *size += (size_t)n;
    }
    if (data) data[*size] = '\0';
    return data;
}

static void digest(const void *data, size_t size, char hex[SHA256_HEX]) {
    Sha256 s;
    sha256_init(&s);
    sha256_add(&s, data, size);
    sha256_hex(&s, hex);
}

static char *read_own(int dir, const char *key, const char *end, size_t *size) {
    char name[SHA256_HEX + 16];
    snprintf(name, sizeof name, "%s%s", key, end);
    const int fd = open_own(dir, name);
    char *data = fd >= 0 ? read_all(fd, size) : NULL;
    if (fd >= 0) close(fd);
    return data;
}

void *cache_get(int dir, const char *key, const char *end, size_t *size) {
    size_t n;
    char is[SHA256_HEX], *was = read_own(dir, key, ".sha256", &n),
                         *data = was ? read_own(dir, key, end, size) : NULL;
    if (data) digest(data, *size, is);
    if (data && strcmp(is, was)) {
        free(data);
        data = NULL;
    }
    free(was);
    return data;
}

bool cache_has(int dir, const char *key, const char *end) {
    size_t size;
    void *data = cache_get(dir, key, end, &size);
    free(data);
    return data;
}

static int write_file(const char *path, const void *data, size_t size) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    const bool wrote = write(fd, data, size) == (ssize_t)size;
    return close(fd) == 0 && wrote ? 0 : -1;
}

int cache_put(int dir, const char *key, const char *end, const char *object,
              const char *work_folder, Err *e) {
    char hex[SHA256_HEX], side[PATH_MAX + 64], name[SHA256_HEX + 16];
    snprintf(side, sizeof side, "%s/digest", work_folder);
    const int fd = open(object, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    size_t size;
    char *data = fd >= 0 && fchmod(fd, 0600) == 0 ? read_all(fd, &size) : NULL;
    if (fd >= 0) close(fd);
    if (data) digest(data, size, hex);
    bool good = data && write_file(side, hex, SHA256_HEX - 1) == 0;
    free(data);
    snprintf(name, sizeof name, "%s%s", key, end);
    good = good && renameat(AT_FDCWD, object, dir, name) == 0;
    snprintf(name, sizeof name, "%s.sha256", key);
    good = good && renameat(AT_FDCWD, side, dir, name) == 0;
    if (good) return 0;
    const int why = errno;
    unlink(side);
    return err_set(e,
                   "compiled code cannot be kept in the cache: %s; free some space, or choose "
                   "another folder for it",
                   strerror(why));
}

int cache_make_work(const char *folder, char work[PATH_MAX], Err *e) {
    const int length = snprintf(work, PATH_MAX, "%s/build-XXXXXX", folder);
    if (length >= PATH_MAX - 16)
        return err_set(e,
                       "the path of the cache folder has %d characters, too many; choose a "
                       "shorter one",
                       length);
    if (mkdtemp(work)) return 0;
    return err_set(e, "the cache folder %s cannot be written: %s; choose another", folder,
                   strerror(errno));
}

int cache_put_bytes(int dir, const char *folder, const char *key, const char *end, const void *data,
                    size_t size, Err *e) {
    char work[PATH_MAX], path[PATH_MAX + 64];
    if (cache_make_work(folder, work, e)) return -1;
    snprintf(path, sizeof path, "%s/object", work);
    int status = 0;
    if (write_file(path, data, size))
        status = err_set(e,
                         "compiled code cannot be written to %s: %s; free some space, or choose "
                         "another cache folder",
                         path, strerror(errno));
    if (status == 0) status = cache_put(dir, key, end, path, work, e);
    unlink(path);
    rmdir(work);
    return status;
}

int cache_make_private(char *path, Err *e) {
    strcpy(path, "/tmp/compiled-XXXXXX");
    if (mkdtemp(path)) return 0;
    return err_set(e, "no folder for compiled code can be made in /tmp: %s; give a cache folder",
                   strerror(errno));
}

void cache_remove_private(const char *path, const char *key) {
    static const char *const ends[] = {".so", ".sha256"};
    char name[PATH_MAX];
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s/%s%s", path, key, ends[i]);
        unlink(name);
    }
    rmdir(path);
}
