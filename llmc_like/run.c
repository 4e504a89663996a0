#include "llmc_like/run.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/ops.h"

static const double MiB = 1024.0 * 1024.0;

/* ---- memory ---- */

size_t memory_total(const Memory *m, const MemoryRow *row, int n) {
    size_t sum = 0;
    for (int i = 0; i < n; i++)
        if (!m || row[i].memory == m) sum += row[i].bytes;
    return sum;
}

void memory_print(const MemoryRow *row, int n, FILE *out) {
    fprintf(out, "memory, MiB\n");
    for (int i = 0; i < n; i++)
        if (row[i].bytes)
            fprintf(out, "  %-24s %10.1f%s%s\n", row[i].name, (double)row[i].bytes / MiB,
                    row[i].memory->is_host ? "" : "  ",
                    row[i].memory->is_host ? "" : row[i].memory->name);
    fprintf(out, "  %-24s %10.1f\n", "together", (double)memory_total(NULL, row, n) / MiB);
}

int memory_check_or(const Memory *m, size_t bytes, const char *leaner, Err *e) {
    const double left = m->left();
    if (left < 0 || (double)bytes <= left) return 0;
    return err_set(e, "this run needs %.0f MiB and the %s has %.0f MiB left; %s",
                   (double)bytes / MiB, m->name, left / MiB, leaner);
}

int memory_check(const Memory *m, size_t bytes, Err *e) {
    return memory_check_or(m, bytes, RUN_LEANER, e);
}

void plan_add(StepPlan *plan, const Memory *m, const char *name, size_t bytes) {
    CHECK(plan->n < PLAN_ROWS, "more than %d rows of memory", PLAN_ROWS);
    plan->row[plan->n++] = (MemoryRow){m, name, bytes};
}

/* What a step reaches of the measured peak, by and large, on the machines this was written on. */
static const double PLAN_SHARE_OF_PEAK = 0.8;

void plan_print(const StepPlan *plan, int steps, double peak) {
    memory_print(plan->row, plan->n, stdout);
    const double step_s = 1e-9 * plan->step_flops / peak / PLAN_SHARE_OF_PEAK;
    printf(
        "a step: %.1f GFLOP in matrix products, about %.2f s at %.0f %% of this machine's %.0f "
        "GFLOP/s; %d steps: about %.0f min\n",
        1e-9 * plan->step_flops, step_s, 100 * PLAN_SHARE_OF_PEAK, peak, steps,
        steps * step_s / 60);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

/* ---- the machine ---- */

double peak_gflops(Ctx *c) {
    enum { N = 1024 };
    if (c->dev->peak) return c->dev->peak(c);
    float *a = ctx_workspace(c, 3 * sizeof(float) * N * N), *b = a + N * N, *product = b + N * N;
    for (int i = 0; i < 2 * N * N; i++) a[i] = (float)(i % 13) - 6.0f;
    double best = INFINITY;
    for (const double end = now_s() + 1; now_s() < end;) {
        const double t0 = now_s();
        c->dev->gemm(c, false, true, N, N, N, 1, a, N, b, N, 0, product, N);
        best = fmin(best, now_s() - t0);
    }
    return 2e-9 * N * N * N / best;
}

void threads_wait_asleep(char **argv) {
    setenv("GOMP_SPINCOUNT", "3000", 1);
    execv("/proc/self/exe", argv);
}

/* ---- Ctrl-C ---- */

static sigset_t held_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    return set;
}

void interrupts_hold(void) {
    const sigset_t set = held_signals();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

bool interrupted(void) {
    sigset_t pending;
    sigpending(&pending);
    return sigismember(&pending, SIGINT) || sigismember(&pending, SIGTERM);
}

/* ---- one step ---- */

static void time_left(double s, char text[32]) {
    if (s < 100)
        snprintf(text, 32, "%.0f s", s);
    else if (s < 6000)
        snprintf(text, 32, "%.0f min", s / 60);
    else
        snprintf(text, 32, "%.1f h", s / 3600);
}

/* "5859 tokens/s", of each unit. */
static void rates(const RunLog *r, const StepFigures *f, char text[64]) {
    int n = 0;
    for (int i = 0; i < RUN_UNITS && r->unit[i]; i++)
        n += snprintf(text + n, 64 - (size_t)n, "%s%.0f %s/s", i ? "  " : "",
                      f->units[i] / f->step_s, r->unit[i]);
}

int run_log_step(RunLog *r, int64_t step, const StepFigures *f, Err *e) {
    const double now = now_s(), took = r->last_s > 0 ? now - r->last_s : f->step_s;
    const double weight = r->lines < 2 ? 1 : fmax(0.05, 1.0 / (double)r->lines);
    r->mean_step_s += weight * (took - r->mean_step_s);
    r->lines++;
    r->last_s = now;
    char eta[32], rate[64], degrees[32] = "", share[32] = "";
    time_left(r->mean_step_s * (double)(r->total_steps - step - 1), eta);
    rates(r, f, rate);
    if (r->radians) snprintf(degrees, sizeof degrees, " (%.2f deg)", f->loss * 180 / M_PI);
    if (r->peak > 0)
        snprintf(share, sizeof share, "  %3.0f %% of peak", 1e-7 * f->flops / f->step_s / r->peak);
    printf("step %5" PRId64 "/%" PRId64
           "  loss %.5f%s  norm %7.4f  lr %.2e  %7.1f ms  %s%s  %s left\n",
           step + 1, r->total_steps, f->loss, degrees, f->grad_norm, f->lr, 1e3 * f->step_s, rate,
           share, eta);
    fflush(stdout);
    Metrics *m = &r->metrics;
    metrics_begin(m, step);
    metrics_number(m, "loss", f->loss);
    metrics_number(m, "grad_norm", f->grad_norm);
    metrics_number(m, "lr", f->lr);
    metrics_number(m, "step_ms", 1e3 * f->step_s);
    metrics_number(m, "forward_ms", 1e3 * f->forward_s);
    metrics_number(m, "backward_ms", 1e3 * f->backward_s);
    metrics_number(m, "update_ms", 1e3 * f->update_s);
    metrics_number(m, "wait_ms", 1e3 * f->wait_s);
    for (int i = 0; i < RUN_UNITS && r->unit[i]; i++) {
        snprintf(rate, sizeof rate, "%s_per_s", r->unit[i]);
        metrics_number(m, rate, f->units[i] / f->step_s);
    }
    if (f->attn_forward_s > 0) { /* ops were timed */
        metrics_number(m, "attn_forward_ms", 1e3 * f->attn_forward_s);
        metrics_number(m, "attn_backward_ms", 1e3 * f->attn_backward_s);
    }
    return metrics_end(m, e);
}

/* ---- the profile ---- */

static void profile_side(const char *name, const char *pass, double calls, double s, double flops,
                         double bytes, double all_s, double peak, FILE *out) {
    if (s <= 0) return;
    fprintf(out, "  %-20s %-9s %6.0f %9.2f %6.1f", name, pass, calls, 1e3 * s, 100 * s / all_s);
    if (flops > 0)
        fprintf(out, " %8.1f %5.0f\n", 1e-9 * flops / s, peak > 0 ? 1e-7 * flops / s / peak : 0);
    else
        fprintf(out, " %8s %5s %7.1f\n", "", "", 1e-9 * bytes / s);
}

void profile_print(const Ctx *c, int64_t steps, double peak, FILE *out) {
    const double n = (double)(steps > 0 ? steps : 1);
    double all = 0;
    int order[OP_COUNT];
    for (int i = 0; i < OP_COUNT; i++) {
        all += (c->profile[i].forward_s + c->profile[i].backward_s) / n;
        int at = i;
        const double s = c->profile[i].forward_s + c->profile[i].backward_s;
        for (; at > 0; at--) { /* insertion sort by time */
            const OpProfile *p = &c->profile[order[at - 1]];
            if (p->forward_s + p->backward_s >= s) break;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    fprintf(out, "a step by op (mean of %" PRId64 "; peak %.0f GFLOP/s)\n", steps, peak);
    fprintf(out, "  %-20s %-9s %6s %9s %6s %8s %5s %7s\n", "op", "pass", "calls", "ms", "%",
            "GFLOP/s", "peak%", "GB/s");
    for (int j = 0; j < OP_COUNT; j++) {
        const OpProfile *p = &c->profile[order[j]];
        const double calls = (double)p->calls / n;
        profile_side(op_name(order[j]), "forward", calls, p->forward_s / n, p->forward_flops / n,
                     p->forward_bytes / n, all, peak, out);
        profile_side("", "backward", calls, p->backward_s / n, p->backward_flops / n,
                     p->backward_bytes / n, all, peak, out);
    }
    fprintf(out, "  %-20s %-9s %6s %9.2f\n", "together", "", "", 1e3 * all);
}
