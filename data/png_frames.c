#include "data/png_frames.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* PNG alone: less code that reads foreign bytes. */
#define STBI_ONLY_PNG
#define STBI_FAILURE_USERMSG
#define STB_IMAGE_IMPLEMENTATION
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

typedef struct Entry {
    long long number;
    char name[256];
} Entry;

typedef struct Entries {
    Entry *entry;
    int64_t n, capacity;
} Entries;

/* NAME<digits>.png: the digits right before the ending. */
static bool numbered(const char *name, long long *number) {
    size_t n = strlen(name);
    if (n < 5 || n > 255 || strcmp(name + n - 4, ".png") != 0) return false;
    size_t start = n - 4;
    while (start > 0 && isdigit((unsigned char)name[start - 1])) start--;
    if (start == n - 4 || n - 4 - start > 18) return false;
    *number = strtoll(name + start, NULL, 10);
    return true;
}

static int by_number(const void *a, const void *b) {
    long long x = ((const Entry *)a)->number, y = ((const Entry *)b)->number;
    return (x > y) - (x < y);
}

static int add_entry(Entries *list, const char *folder, const char *name, long long number,
                     Err *e) {
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 256;
        Entry *larger = realloc(list->entry, sizeof *larger * (size_t)capacity);
        if (!larger)
            return err_set(e, "%s: no memory for the names of %lld pictures; use fewer", folder,
                           (long long)capacity);
        list->entry = larger;
        list->capacity = capacity;
    }
    Entry *added = &list->entry[list->n++];
    added->number = number;
    snprintf(added->name, sizeof added->name, "%s", name);
    return 0;
}

static int list_pictures(const char *folder, Entries *list, Err *e) {
    DIR *dir = opendir(folder);
    if (!dir)
        return err_set(e, "%s: %s; expected a folder with frames.npy or numbered .png pictures",
                       folder, strerror(errno));
    int status = 0;
    long long number;
    for (struct dirent *d; status == 0 && (d = readdir(dir));)
        if (numbered(d->d_name, &number)) status = add_entry(list, folder, d->d_name, number, e);
    closedir(dir);
    if (status) return -1;
    if (list->n == 0)
        return err_set(
            e,
            "%s: neither frames.npy nor numbered pictures (such as 00000.png) are there; "
            "name a folder that holds one of them, or \"pong\" for the built-in game",
            folder);
    qsort(list->entry, (size_t)list->n, sizeof *list->entry, by_number);
    for (int64_t i = 1; i < list->n; i++) {
        const Entry *a = &list->entry[i - 1], *b = &list->entry[i];
        if (b->number == a->number)
            return err_set(e, "%s: %s and %s have the same number; one of them must go", folder,
                           a->name, b->name);
        if (b->number != a->number + 1)
            return err_set(e,
                           "%s: the numbering has a gap: after %s comes %s, expected number %lld; "
                           "number the pictures without gaps",
                           folder, a->name, b->name, a->number + 1);
    }
    return 0;
}

static int wrong_size(const char *path, int h, int w, const char *first, int h0, int w0, Err *e) {
    return err_set(e,
                   "%s: %d wide and %d high, expected %d and %d as %s has; all pictures must be of "
                   "one size",
                   path, w, h, w0, h0, first);
}

/* Decodes picture i into its place; the first one, whose size all others must have, makes the
 * array. */
static int decode(const char *folder, const Entries *list, int64_t i, uint8_t **frames, int *h,
                  int *w, Err *e) {
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", folder, list->entry[i].name);
    if (length >= (int)sizeof path)
        return err_set(e, "%s: the path is too long; use a shorter one", folder);
    int width, height, channels;
    uint8_t *rgb = stbi_load(path, &width, &height, &channels, 3);
    if (!rgb)
        return err_set(e, "%s: not a whole PNG (%s); write it again or leave it out", path,
                       stbi_failure_reason());
    int status = 0;
    if (i == 0) {
        *h = height;
        *w = width;
        *frames = malloc((size_t)list->n * (size_t)height * (size_t)width * 3);
        if (!*frames)
            status = err_set(e,
                             "%s: no memory for %lld pictures of %d x %d; scale them down, or "
                             "convert them to frames.npy, which is mapped and not loaded",
                             folder, (long long)list->n, height, width);
    } else if (height != *h || width != *w) {
        status = wrong_size(path, height, width, list->entry[0].name, *h, *w, e);
    }
    size_t size = (size_t)height * (size_t)width * 3;
    if (status == 0) memcpy(*frames + (size_t)i * size, rgb, size);
    stbi_image_free(rgb);
    return status;
}

int png_frames_read(const char *folder, uint8_t **frames, int64_t *n, int *h, int *w, Err *e) {
    Entries list = {0};
    *frames = NULL;
    int status = list_pictures(folder, &list, e);
    for (int64_t i = 0; status == 0 && i < list.n; i++)
        status = decode(folder, &list, i, frames, h, w, e);
    *n = list.n;
    free(list.entry);
    if (status) free(*frames);
    return status;
}
