#include "llmc_like/compare.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "llmc_like/fsio.h"
#include "llmc_like/metrics.h"
#include "llmc_like/run.h"

int compare_gradients(int gradients, const ParamTable *p, Err *e) {
    float *copy = malloc((size_t)p->numel * sizeof *copy);
    if (!copy) return err_set(e, "no memory to compare gradients");
    int status = 0;
    for (int i = 0; i < p->n && status == 0; i++) {
        const Tensor *t = &p->row[i].tensor;
        size_t left = sizeof *copy * (size_t)tensor_numel(t);
        p->grads.memory->get(copy, t->grad, left);
        for (const char *at = (const char *)copy; left && status == 0;) {
            const ssize_t n = write(gradients, at, left);
            if (n <= 0)
                status = err_set(e, "writing gradients to compare: %s", strerror(errno));
            else
                at += n, left -= (size_t)n;
        }
    }
    free(copy);
    return status;
}

/* What the parent and a child share, and what the parent adds. */
typedef struct Row {
    const char *name;
    bool done;
    Err why; /* a backend that declined, or a run that failed */
    CompareResult r;
    FILE *gradients;
    double peak_bytes, attn_forward_ms, attn_backward_ms, step_ms, loss_diff, grad_diff;
} Row;

static double median_ms(const double *s, int n) {
    double sorted[COMPARE_MAX_STEPS];
    const int skip = n > 1; /* the first step touches fresh memory */
    memcpy(sorted, s + skip, (size_t)(n - skip) * sizeof *sorted);
    return 1e3 * median(sorted, n - skip);
}

/* Waits for a child. Ctrl-C in a terminal reaches both, kill only this one: it tells the child. */
static bool wait_for(pid_t pid, int *status) {
    for (bool told = false;;) {
        const pid_t ended = waitpid(pid, status, WNOHANG);
        if (ended) return ended == pid;
        if (!told && interrupted()) told = kill(pid, SIGTERM) == 0;
        nanosleep(&(struct timespec){0, 10 * 1000 * 1000}, NULL);
    }
}

/* One child: train there, wait here. */
static int run_one(Row *row, int steps, CompareFn train, void *self, Err *e) {
    fflush(stdout);
    const pid_t pid = fork();
    if (pid < 0) return err_set(e, "no process for --attn %s: %s", row->name, strerror(errno));
    if (pid == 0) {
        row->done = train(self, row->name, steps, &row->r, fileno(row->gradients), &row->why) == 0;
        fflush(stdout);
        row->peak_bytes = row->r.device_bytes;
        struct rusage usage; /* its own: wait4 would count a compiler that flex started, too */
        if (row->peak_bytes == 0 && getrusage(RUSAGE_SELF, &usage) == 0)
            row->peak_bytes = 1024.0 * (double)usage.ru_maxrss;
        _exit(0);
    }
    int status;
    if (!wait_for(pid, &status) || !WIFEXITED(status) || WEXITSTATUS(status))
        return err_set(e, "the run with --attn %s ended badly (status %d)", row->name, status);
    if (!row->done || row->r.steps < 1) return 0;
    row->attn_forward_ms = median_ms(row->r.attn_forward_s, row->r.steps);
    row->attn_backward_ms = median_ms(row->r.attn_backward_s, row->r.steps);
    row->step_ms = median_ms(row->r.step_s, row->r.steps);
    return 0;
}

/* Largest difference of the gradients, as a share of the largest entry. */
static double gradient_difference(FILE *a, FILE *b) {
    enum { N = 4096 };
    float x[N], y[N];
    double diff = 0, largest = 0;
    rewind(a);
    rewind(b);
    size_t n;
    while ((n = fread(x, sizeof *x, N, a)) > 0 && fread(y, sizeof *y, n, b) == n)
        for (size_t i = 0; i < n; i++) {
            const double d = fabs((double)x[i] - (double)y[i]);
            if (isnan(d)) return NAN;
            diff = fmax(diff, d);
            largest = fmax(largest, fabs((double)x[i]));
        }
    return largest > 0 ? diff / largest : diff;
}

static void differences(Row *row, const Row *first) {
    row->loss_diff = row->grad_diff = 0;
    if (row == first) return;
    for (int i = 0; i < row->r.steps && i < first->r.steps; i++)
        row->loss_diff = fmax(row->loss_diff, fabs(row->r.loss[i] - first->r.loss[i]));
    row->grad_diff = gradient_difference(first->gradients, row->gradients);
}

static void print_table(const Row *row, int n, const Row *first, int steps, const char *unit) {
    printf("\n%d steps with each backend, from the same start; medians without the first step\n",
           steps);
    printf("%-11s %12s %12s %10s %10s/s %9s %9s %10s %10s\n", "attention", "forward ms",
           "backward ms", "step ms", unit, "peak MiB", "speed-up", "loss diff", "grad diff");
    for (int i = 0; i < n; i++) {
        if (!row[i].done) {
            printf("%-11s %s\n", row[i].name, row[i].why.text);
            continue;
        }
        printf("%-11s %12.2f %12.2f %10.1f %12.0f %9.0f %8.2fx %10.1e %10.1e\n", row[i].name,
               row[i].attn_forward_ms, row[i].attn_backward_ms, row[i].step_ms,
               1e3 * row[i].r.units_per_step / row[i].step_ms, row[i].peak_bytes / 1048576,
               first->step_ms / row[i].step_ms, row[i].loss_diff, row[i].grad_diff);
    }
    printf(
        "forward and backward: attention alone, all layers of a step. grad diff: of the first step,"
        "\nshare of the largest entry. Differences are from %s.\n",
        first->name);
}

static int save_json(const Row *row, int n, const Row *first, const char *unit, const char *path,
                     Err *e) {
    cJSON *all = cJSON_CreateArray();
    char rate[32];
    snprintf(rate, sizeof rate, "%s_per_s", unit);
    for (int i = 0; i < n; i++) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddItemToArray(all, o);
        cJSON_AddStringToObject(o, "backend", row[i].name);
        if (!row[i].done) {
            cJSON_AddStringToObject(o, "declined", row[i].why.text);
            continue;
        }
        cJSON_AddNumberToObject(o, "attn_forward_ms", row[i].attn_forward_ms);
        cJSON_AddNumberToObject(o, "attn_backward_ms", row[i].attn_backward_ms);
        cJSON_AddNumberToObject(o, "step_ms", row[i].step_ms);
        cJSON_AddNumberToObject(o, rate, 1e3 * row[i].r.units_per_step / row[i].step_ms);
        cJSON_AddNumberToObject(o, "peak_mib", row[i].peak_bytes / 1048576);
        cJSON_AddNumberToObject(o, "speed_up", first->step_ms / row[i].step_ms);
        cJSON_AddNumberToObject(o, "loss_diff", row[i].loss_diff);
        cJSON_AddNumberToObject(o, "grad_diff", row[i].grad_diff);
        cJSON_AddItemToObject(o, "losses", cJSON_CreateDoubleArray(row[i].r.loss, row[i].r.steps));
    }
    const int status = json_save(path, all, e);
    cJSON_Delete(all);
    return status;
}

int compare_run(const char *const *names, int steps, const char *unit, const char *json_path,
                CompareFn train, void *self, Err *e) {
    CHECK(steps >= 1 && steps <= COMPARE_MAX_STEPS, "%d steps to compare", steps);
    int n = 0, status = 0;
    while (names[n]) n++;
    const size_t bytes = (size_t)n * sizeof(Row);
    Row *row = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (row == MAP_FAILED) return err_set(e, "no memory for a table of %d backends", n);
    const Row *first = NULL; /* that ran */
    for (int i = 0; i < n && status == 0; i++) {
        row[i].name = names[i];
        row[i].gradients = tmpfile();
        if (!row[i].gradients)
            status = err_set(e, "no scratch file for gradients: %s", strerror(errno));
        else
            status = run_one(&row[i], steps, train, self, e);
        if (status == 0 && interrupted())
            status = err_set(e, "stopped while --attn %s ran; no table is written", names[i]);
        if (status || !row[i].done) continue;
        if (!first) first = &row[i];
        differences(&row[i], first);
    }
    if (status == 0 && !first) status = err_set(e, "%s", row[n - 1].why.text);
    if (status == 0) {
        print_table(row, n, first, steps, unit);
        status = save_json(row, n, first, unit, json_path, e);
    }
    for (int i = 0; i < n; i++)
        if (row[i].gradients) fclose(row[i].gradients);
    munmap(row, bytes);
    return status;
}
