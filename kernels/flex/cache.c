#include "kernels/flex/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIGEST_FILE_MAX = 4096 };

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

static int digest(int fd, char hex[SHA256_HEX]) {
    Sha256 s;
    char buffer[DIGEST_FILE_MAX];
    ssize_t n;
    sha256_init(&s);
    while ((n = read(fd, buffer, sizeof buffer)) > 0) sha256_add(&s, buffer, (size_t)n);
    sha256_hex(&s, hex);
    return n < 0 ? -1 : 0;
}

bool cache_has(int dir, const char *key) {
    char name[SHA256_HEX + 16], is[SHA256_HEX], was[SHA256_HEX] = "";
    snprintf(name, sizeof name, "%s.sha256", key);
    const int side = open_own(dir, name);
    if (side < 0) return false;
    const ssize_t n = read(side, was, sizeof was - 1);
    close(side);
    if (n != (ssize_t)sizeof was - 1) return false;
    snprintf(name, sizeof name, "%s.so", key);
    const int object = open_own(dir, name);
    if (object < 0) return false;
    const bool good = digest(object, is) == 0 && !strcmp(is, was);
    close(object);
    return good;
}

static int write_digest(const char *path, const char hex[SHA256_HEX]) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    const bool wrote = write(fd, hex, SHA256_HEX - 1) == SHA256_HEX - 1;
    return close(fd) == 0 && wrote ? 0 : -1;
}

int cache_put(int dir, const char *key, const char *object, const char *work_folder, Err *e) {
    char hex[SHA256_HEX], side[PATH_MAX + 64], name[SHA256_HEX + 16];
    snprintf(side, sizeof side, "%s/digest", work_folder);
    const int fd = open(object, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    bool good = fd >= 0 && fchmod(fd, 0600) == 0 && digest(fd, hex) == 0;
    if (fd >= 0) close(fd);
    good = good && write_digest(side, hex) == 0;
    snprintf(name, sizeof name, "%s.so", key);
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
