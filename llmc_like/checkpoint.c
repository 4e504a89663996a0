#include "llmc_like/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- What a row has in a file ---- */

typedef enum { KIND_PARAM, KIND_M, KIND_V, KIND_COUNT } Kind;

static const char *const PREFIX[KIND_COUNT] = {"param.", "optim.m.", "optim.v."};

enum { KEY_TEXT = 96 };

/* In the memory of the parameters' device. */
static float *row_data(const Param *r, Kind k) {
    return k == KIND_PARAM ? r->master : k == KIND_M ? r->m : r->v;
}

static const char *key_text(char buf[KEY_TEXT], const char *prefix, const Param *r) {
    snprintf(buf, KEY_TEXT, "%s%s", prefix, r->tensor.name);
    return buf;
}

/* ---- The checksum ---- */

/* 64-bit FNV-1a over words of 8 bytes (the rest padded with zeros): each step is a bijection, so no
 * single changed word goes unseen. */
static uint64_t hash_bytes(uint64_t h, const void *data, size_t n) {
    const unsigned char *at = data;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        memcpy(&word, at + i, n - i < 8 ? n - i : 8);
        h = (h ^ word) * 0x100000001b3u;
    }
    return h;
}

/* The sum over the tensors, so that a tool that writes them in another order does no harm. */
static void checksum_text(const StEntry *entry, int n, char text[17]) {
    uint64_t sum = 0;
    for (int i = 0; i < n; i++) {
        const uint64_t h = hash_bytes(0xcbf29ce484222325u, entry[i].name, strlen(entry[i].name));
        sum += hash_bytes(h, entry[i].data, entry[i].bytes);
    }
    snprintf(text, 17, "%016" PRIx64, sum);
}

/* ---- Saving ---- */

/* The numbers on the host: where they are, or copied to *room, which moves on. */
static const float *on_host(const ParamTable *p, const Param *r, Kind k, float **room) {
    const size_t n = (size_t)tensor_numel(&r->tensor);
    const Memory *memory = p->values.memory;
    if (memory->is_host) return row_data(r, k);
    float *copy = *room;
    *room += n;
    memory->get(copy, row_data(r, k), n * sizeof *copy);
    return copy;
}

int checkpoint_save(const char *path, const ParamTable *p, const Optim *o, const MetaPair *meta,
                    int n_meta, Err *e) {
    const size_t copies = p->values.memory->is_host ? 0 : (size_t)(KIND_COUNT * p->numel);
    float *copy = malloc((copies + 1) * sizeof *copy), *room = copy;
    if (!copy) return err_set(e, "%s: no memory to write %zu numbers", path, copies);
    StWriter w;
    st_writer_init(&w);
    for (Kind k = KIND_PARAM; k < (o ? KIND_COUNT : KIND_M); k++)
        for (int i = 0; i < p->n; i++) {
            const Param *r = &p->row[i];
            char key[KEY_TEXT];
            if (row_data(r, k))
                st_writer_add(&w, key_text(key, PREFIX[k], r), DT_F32, r->tensor.ndim,
                              r->tensor.shape, on_host(p, r, k, &room));
        }
    for (int i = 0; i < n_meta; i++) st_writer_meta(&w, meta[i].key, meta[i].value);
    char text[32];
    if (o) {
        snprintf(text, sizeof text, "%" PRId64, o->t);
        st_writer_meta(&w, "optim.t", text);
    }
    checksum_text(w.entry, w.n, text);
    st_writer_meta(&w, "checksum", text);
    const int status = st_writer_save(&w, path, e);
    st_writer_free(&w);
    free(copy);
    return status;
}

/* ---- Loading ---- */

enum { LIST_LINES = 16, LIST_TEXT = 1500 };

/* What does not fit, tensor by tensor, as far as the text reaches. */
typedef struct Misfits {
    int missing, superfluous, shape, dtype, listed;
    size_t used;
    char text[LIST_TEXT];
} Misfits;

static void list_line(Misfits *m, const char *line) {
    const size_t n = strlen(line);
    if (m->listed == LIST_LINES || m->used + n + 1 > sizeof m->text) return;
    memcpy(m->text + m->used, line, n + 1);
    m->used += n;
    m->listed++;
}

static void compare_entry(Misfits *m, const char *key, const Tensor *want, const StEntry *found) {
    char line[512], want_text[SHAPE_TEXT], found_text[ST_SHAPE_TEXT];
    tensor_shape_text(want, want_text);
    if (!found) {
        m->missing++;
        snprintf(line, sizeof line, "\n  missing      %s %s", key, want_text);
        list_line(m, line);
        return;
    }
    bool same = found->ndim == want->ndim;
    for (int i = 0; same && i < want->ndim; i++) same = found->shape[i] == want->shape[i];
    if (!same) {
        m->shape++;
        snprintf(line, sizeof line, "\n  other shape  %s: the file has %s, the model %s", key,
                 st_shape_text(found, found_text), want_text);
        list_line(m, line);
    } else if (found->dtype != DT_F32) {
        m->dtype++;
        snprintf(line, sizeof line, "\n  other dtype  %s: the file has %s, expected float32", key,
                 dtype_name(found->dtype));
        list_line(m, line);
    }
}

static bool starts_with(const char *text, const char *prefix) {
    return !strncmp(text, prefix, strlen(prefix));
}

/* Whether some row has this tensor of the file among the `kinds` first kinds. */
static bool is_expected(ParamTable *p, const char *name, const char *const *prefix, int kinds) {
    for (int k = 0; k < kinds; k++) {
        if (!starts_with(name, prefix[k])) continue;
        const Param *r = params_find(p, name + strlen(prefix[k]));
        if (r && row_data(r, (Kind)k)) return true;
    }
    return false;
}

static int report(const Misfits *m, const StFile *f, Err *e) {
    const int all = m->missing + m->superfluous + m->shape + m->dtype;
    char more[64] = "";
    if (all > m->listed) snprintf(more, sizeof more, "\n  ... and %d more", all - m->listed);
    return err_set(e,
                   "does not fit this model: of its %d tensors %d missing, %d superfluous, %d of "
                   "another shape, %d of another dtype%s%s\nNothing was changed. Give the sizes "
                   "that the file was made with (in its metadata%s), or another file.",
                   f->n, m->missing, m->superfluous, m->shape, m->dtype, m->text, more,
                   st_meta(f, "config") ? " under \"config\"" : "");
}

static int verify_tensors(const StFile *f, ParamTable *p, const char *const *prefix, int kinds,
                          Err *e) {
    Misfits m = {0};
    for (int k = 0; k < kinds; k++)
        for (int i = 0; i < p->n; i++) {
            const Param *r = &p->row[i];
            char key[KEY_TEXT];
            if (row_data(r, (Kind)k))
                compare_entry(&m, key, &r->tensor, st_find(f, key_text(key, prefix[k], r)));
        }
    for (int i = 0; i < f->n; i++) {
        const char *name = f->entry[i].name;
        if (kinds == 1 && !starts_with(name, prefix[0])) continue;
        if (is_expected(p, name, prefix, kinds)) continue;
        char line[256], shape[ST_SHAPE_TEXT];
        m.superfluous++;
        snprintf(line, sizeof line, "\n  superfluous  %.100s %s", name,
                 st_shape_text(&f->entry[i], shape));
        list_line(&m, line);
    }
    return m.missing + m.superfluous + m.shape + m.dtype ? report(&m, f, e) : 0;
}

static int verify_checksum(const StFile *f, Err *e) {
    const char *noted = st_meta(f, "checksum");
    if (!noted) return 0;
    char text[17];
    checksum_text(f->entry, f->n, text);
    if (!strcmp(noted, text)) return 0;
    return err_set(e,
                   "is damaged: its tensors' checksum is %s, noted is %.32s. Nothing was changed. "
                   "Take another checkpoint (if the tensors were changed on purpose, remove "
                   "\"checksum\" from the file's metadata)",
                   text, noted);
}

static int read_int64(const StFile *f, const char *key, int64_t *value, Err *e) {
    const char *text = st_meta(f, key);
    if (!text)
        return err_set(e,
                       "has no \"%s\" in its metadata, so it is not a checkpoint to go on from; "
                       "start from its weights with --init",
                       key);
    char *end;
    errno = 0;
    const long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end || v < 0)
        return err_set(e, "has \"%.40s\" as \"%s\", where a whole number from 0 was expected", text,
                       key);
    *value = v;
    return 0;
}

static int verify(const StFile *f, ParamTable *p, const Optim *o, const char *const *prefix,
                  int64_t *t, Err *e) {
    if (verify_tensors(f, p, prefix, o ? KIND_COUNT : 1, e)) return -1;
    if (o && read_int64(f, "optim.t", t, e)) return -1;
    return verify_checksum(f, e);
}

int checkpoint_load(const char *path, ParamTable *p, Optim *o, StFile *file, Err *e) {
    StFile f;
    if (st_open(path, &f, e)) return -1;
    const char *prefix[KIND_COUNT];
    memcpy(prefix, PREFIX, sizeof prefix);
    bool bare = !o;
    for (int i = 0; i < f.n && bare; i++) bare = !starts_with(f.entry[i].name, PREFIX[0]);
    if (bare) prefix[0] = "";
    int64_t t = 0;
    if (verify(&f, p, o, prefix, &t, e)) {
        st_close(&f);
        return err_prefix(e, "%s ", path);
    }
    for (int k = 0; k < (o ? KIND_COUNT : 1); k++)
        for (int i = 0; i < p->n; i++) {
            Param *r = &p->row[i];
            char key[KEY_TEXT];
            if (!row_data(r, (Kind)k)) continue;
            const StEntry *found = st_find(&f, key_text(key, prefix[k], r));
            if (k == KIND_PARAM)
                params_write(p, r, found->data);
            else
                p->state.memory->put(row_data(r, (Kind)k), found->data, found->bytes);
        }
    if (o) o->t = t;
    if (file)
        *file = f;
    else
        st_close(&f);
    return 0;
}

/* ---- The best few, and the last ---- */

enum { NAME_PATH = KEEP_PATH + 64 };

static const char *step_path(const CheckpointKeeper *k, int64_t step, char buf[NAME_PATH]) {
    snprintf(buf, NAME_PATH, "%s/step_%06" PRId64 ".safetensors", k->dir, step);
    return buf;
}

const char *keeper_last_path(const CheckpointKeeper *k, char buf[NAME_PATH]) {
    snprintf(buf, NAME_PATH, "%s/last.safetensors", k->dir);
    return buf;
}

/* Step and loss of a checkpoint; false where it cannot be read or has none. */
static bool read_rank(const char *path, int64_t *step, double *loss) {
    StFile f;
    if (st_open(path, &f, NULL)) return false;
    const char *text = st_meta(&f, "heldout_loss");
    char *end = NULL;
    bool good = text && !read_int64(&f, "step", step, NULL);
    if (good) *loss = strtod(text, &end);
    good = good && end != text && !*end && !isnan(*loss);
    st_close(&f);
    return good;
}

/* Puts (step, loss) into the sorted list, replacing an entry of the same step. */
static void rank(CheckpointKeeper *k, int64_t step, double loss) {
    int n = 0;
    for (int i = 0; i < k->n; i++)
        if (k->best[i].step != step) k->best[n++] = k->best[i];
    int at = n;
    for (; at > 0 && (loss < k->best[at - 1].loss ||
                      (loss == k->best[at - 1].loss && step < k->best[at - 1].step));
         at--)
        k->best[at] = k->best[at - 1];
    k->best[at].step = step;
    k->best[at].loss = loss;
    k->n = n + 1;
}

static int sync_dir(const CheckpointKeeper *k, Err *e) {
    const int fd = open(k->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool bad = fd < 0 || (fsync(fd) && errno != EINVAL);
    if (bad) err_set(e, "cannot make '%s' durable: %s", k->dir, strerror(errno));
    if (fd >= 0) close(fd);
    return bad ? -1 : 0;
}

/* Deletes the worst where the list is beyond the limit. */
static int drop_worst(CheckpointKeeper *k, Err *e) {
    while (k->n > k->limit) {
        char path[NAME_PATH];
        step_path(k, k->best[k->n - 1].step, path);
        if (unlink(path) && errno != ENOENT)
            return err_set(e, "cannot delete '%s', which fell out of the best %d: %s", path,
                           k->limit, strerror(errno));
        k->n--;
    }
    return 0;
}

/* Gives last.safetensors the name of its step too. 1: this file system has no second names. */
static int link_last(const CheckpointKeeper *k, int64_t step) {
    char last[NAME_PATH], path[NAME_PATH], temp[NAME_PATH + 16];
    keeper_last_path(k, last);
    step_path(k, step, path);
    snprintf(temp, sizeof temp, "%s.0.0.tmp", path);
    unlink(temp);
    if (link(last, temp)) return 1;
    const int status = rename(temp, path) ? 1 : 0;
    unlink(temp); /* rename leaves it where both were the same file already */
    return status;
}

/* Would this loss be among the best? */
static bool belongs(const CheckpointKeeper *k, double loss) {
    return !isnan(loss) && (k->n < k->limit || loss < k->best[k->limit - 1].loss);
}

/* One file of the folder: a leftover is removed, a step_ file of the best is ranked. */
static int take_stock(CheckpointKeeper *k, const char *name, bool resume, bool *any, Err *e) {
    static const char suffix[] = ".safetensors";
    char path[KEEP_PATH + 512], named[NAME_PATH];
    snprintf(path, sizeof path, "%s/%s", k->dir, name);
    const size_t n = strlen(name);
    if (strstr(name, ".safetensors.") && n > 4 && !strcmp(name + n - 4, ".tmp")) {
        if (unlink(path) && errno != ENOENT)
            return err_set(e, "cannot delete the leftover '%s': %s", path, strerror(errno));
        return 0;
    }
    if (n <= sizeof suffix || strcmp(name + n - (sizeof suffix - 1), suffix)) return 0;
    if (!strcmp(name, "last.safetensors")) *any = true;
    if (!starts_with(name, "step_")) return 0;
    *any = true;
    if (!resume) return 0;
    int64_t step;
    double loss;
    if (!read_rank(path, &step, &loss) || strcmp(step_path(k, step, named), path)) return 0;
    rank(k, step, loss);
    return drop_worst(k, e);
}

int keeper_open(CheckpointKeeper *k, const char *dir, int limit, bool resume, Err *e) {
    CHECK(limit >= 1 && limit <= KEEP_MAX, "limit %d", limit);
    memset(k, 0, sizeof *k);
    k->limit = limit;
    if (strlen(dir) >= sizeof k->dir)
        return err_set(e, "the folder's name '%.80s...' is longer than %d characters", dir,
                       KEEP_PATH - 1);
    snprintf(k->dir, sizeof k->dir, "%s", dir);
    if (make_dirs(dir, e)) return -1;
    DIR *folder = opendir(dir);
    if (!folder) return err_set(e, "cannot read the folder '%s': %s", dir, strerror(errno));
    int status = 0;
    bool any = false;
    for (struct dirent *d; !status && (d = readdir(folder));)
        status = take_stock(k, d->d_name, resume, &any, e);
    closedir(folder);
    if (status) return -1;
    if (any && !resume)
        return err_set(e,
                       "'%s' already holds checkpoints: go on with them (--resume), choose another "
                       "--out, or delete them",
                       dir);
    char last[NAME_PATH];
    int64_t step;
    double loss;
    if (!read_rank(keeper_last_path(k, last), &step, &loss) || !belongs(k, loss)) return 0;
    for (int i = 0; i < k->n; i++)
        if (k->best[i].step == step) return 0;
    if (link_last(k, step)) return 0;
    rank(k, step, loss);
    return drop_worst(k, e);
}

/* last.safetensors with the caller's metadata and ours. */
static int save_with(const char *path, const ParamTable *p, const Optim *o, const MetaPair *meta,
                     int n_meta, int64_t step, const double *heldout_loss, Err *e) {
    char step_text[32], loss_text[32];
    MetaPair *all = malloc(((size_t)n_meta + 2) * sizeof *all);
    CHECK(all, "no memory for %d pairs", n_meta);
    if (n_meta) memcpy(all, meta, (size_t)n_meta * sizeof *all);
    snprintf(step_text, sizeof step_text, "%" PRId64, step);
    all[n_meta++] = (MetaPair){"step", step_text};
    if (heldout_loss) {
        snprintf(loss_text, sizeof loss_text, "%.17g", *heldout_loss);
        all[n_meta++] = (MetaPair){"heldout_loss", loss_text};
    }
    const int status = checkpoint_save(path, p, o, all, n_meta, e);
    free(all);
    return status;
}

int keeper_save_last(CheckpointKeeper *k, const ParamTable *p, const Optim *o, const MetaPair *meta,
                     int n_meta, int64_t step, Err *e) {
    char last[NAME_PATH];
    return save_with(keeper_last_path(k, last), p, o, meta, n_meta, step, NULL, e);
}

int keeper_save(CheckpointKeeper *k, const ParamTable *p, const Optim *o, const MetaPair *meta,
                int n_meta, int64_t step, double heldout_loss, Err *e) {
    char last[NAME_PATH], path[NAME_PATH];
    if (save_with(keeper_last_path(k, last), p, o, meta, n_meta, step, &heldout_loss, e)) return -1;
    if (!belongs(k, heldout_loss)) return 0;
    if (link_last(k, step) &&
        save_with(step_path(k, step, path), p, o, meta, n_meta, step, &heldout_loss, e))
        return -1;
    rank(k, step, heldout_loss);
    return sync_dir(k, e) || drop_worst(k, e) ? -1 : 0;
}
