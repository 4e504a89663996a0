/* One step of training: its parts' forwards and backwards, and the update. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "kernels/ops.h"
#include "llmc_like/schedule.h"
#include "llmc_like/trainer.h"

/* ---- memory of parts that differ ---- */

static size_t more_than(const Arena *wanted, const Arena *had) {
    return wanted->peak > had->peak ? wanted->peak - had->peak : 0;
}

int trainer_make_room(Trainer *t, TrainForward forward, const TrainPart *part, Err *e) {
    Ctx *c = &t->c, *d = &t->dry;
    if (!d->dev && trainer_context(t, d, true, e)) return -1;
    d->attn = c->attn;
    d->recording = c->recording;
    d->activations.peak = d->gradients.peak = d->workspace.peak = 0;
    ctx_step_begin(d);
    Tensor *out = forward(t->self, d, part);
    if (d->recording) tape_backward(d, out, 1);
    const double need = (double)more_than(&d->activations, &c->activations) +
                        (double)more_than(&d->gradients, &c->gradients) +
                        (double)more_than(&d->workspace, &c->workspace);
    const Memory *memory = c->dev->memory;
    const double left = need > 0 ? memory->left() : -1, MiB = 1024.0 * 1024.0;
    if (left >= 0 && need > left) {
        char name[PART_TEXT];
        t->program->part_name(t->self, part->batch, part->i, name);
        return err_set(e, "%s needs %.0f MiB more and the %s has %.0f MiB left; %s", name,
                       need / MiB, memory->name, left / MiB, t->program->leaner);
    }
    if (arena_reserve(&c->activations, d->activations.peak, e)) return -1;
    if (arena_reserve(&c->gradients, d->gradients.peak, e)) return -1;
    return arena_reserve(&c->workspace, d->workspace.peak, e);
}

/* ---- one step ---- */

int trainer_diverged(Trainer *t, int64_t step, const char *what, double value, Err *e) {
    t->diverged = true;
    return err_set(e,
                   "step %" PRId64
                   ": the %s is %f; training stops, and the last good checkpoint in %s stays. Try "
                   "%s",
                   step, what, value, t->s->out, t->program->calmer);
}

static double rate_factor(const TrainSettings *s, int64_t step) {
    if (!strcmp(s->schedule, "one-cycle"))
        return schedule_one_cycle(step, (OneCycle){s->steps, 0.3, 25, 1e4});
    return schedule_warmup_cosine(step, s->warmup, s->steps);
}

/* Whether the part's forward can be run: 1, or 0 where it is left out for lack of room. */
static int admit(Trainer *t, const TrainPart *part, Err *e) {
    if (!t->program->parts_differ || !trainer_make_room(t, t->program->loss, part, e)) return 1;
    if (!t->skip_large) return err_prefix(e, "step %" PRIu32 ": ", part->step + 1);
    printf("left out   %s\n", e->text);
    t->n_left_out++;
    return 0;
}

/* Adds the losses that have arrived. */
static void sum_losses(StepRun *r) {
    for (int i = 0; i < r->n; i++) r->f.loss += r->share[i] * *r->loss[i];
    r->n = 0;
}

/* Where the loss of the next part will be, and its share. */
static void note_loss(Ctx *c, StepRun *r, const double *loss, double share) {
    if (r->n == STEP_LOSSES) { /* two steps' must find room among the numbers on their way */
        ctx_wait(c, ctx_mark(c));
        sum_losses(r);
    }
    r->loss[r->n] = loss;
    r->share[r->n++] = share;
}

/* Forward and backward of each part of one batch. *part: its step and number. */
static int run_batch(Trainer *t, TrainPart *part, StepRun *r, Err *e) {
    const TrainProgram *g = t->program;
    Ctx *c = &t->c;
    const int n = g->parts(t->self, part->batch);
    for (part->i = 0; part->i < n; part->i++, part->number++) {
        const int admitted = admit(t, part, e);
        if (admitted < 0) return -1;
        if (!admitted) continue;
        const double share = g->share(t->self, part->batch, part->i, r->f.units) / t->s->accumulate;
        ctx_lap(c, CLOCK_PHASE, NULL);
        ctx_step_begin(c);
        Tensor *loss = g->loss(t->self, c, part);
        note_loss(c, r, ctx_fetch(c, loss->data), share);
        ctx_lap(c, CLOCK_PHASE, &r->f.forward_s);
        tape_backward(c, loss, share);
        ctx_lap(c, CLOCK_PHASE, &r->f.backward_s);
        r->f.kept += share;
    }
    return 0;
}

/* What share of the step ran: exactly 1 where nothing was left out. */
static double share_kept(const StepFigures *f) {
    const double rounding = 1e-9; /* of the sum of shares */
    return f->kept > 1 - rounding ? 1 : f->kept;
}

int trainer_start(Trainer *t, int64_t step, StepRun *r, Err *e) {
    const TrainSettings *s = t->s;
    const double flops0 = trainer_flops(&t->c);
    TrainPart part = {.step = (uint32_t)step};
    r->step = step;
    r->f = (StepFigures){0};
    r->n = 0;
    if (t->in_flight++ == 0) ctx_lap(&t->c, CLOCK_STEP, NULL); /* else the step before began it */
    params_zero_grad(t->params);
    for (int i = 0; i < s->accumulate; i++) {
        double waited;
        part.batch = loader_next(&t->loader, NULL, &waited, e);
        if (!part.batch || run_batch(t, &part, r, e)) return -1;
        r->f.wait_s += waited;
    }
    if (r->f.kept >
        0) { /* where parts were left out, the gradient is the mean over those that ran */
        const double factor = rate_factor(s, step);
        t->optim.share = share_kept(&r->f);
        ctx_lap(&t->c, CLOCK_PHASE, NULL);
        r->norm = optim_step(&t->c, &t->optim, t->params, factor, s->clip);
        ctx_lap(&t->c, CLOCK_PHASE, &r->f.update_s);
        r->f.lr = factor * t->lr;
        r->f.flops = trainer_flops(&t->c) - flops0 + optim_flops(&t->optim, t->params);
    }
    ctx_lap(&t->c, CLOCK_STEP, &r->f.step_s);
    r->mark = ctx_mark(&t->c);
    return 0;
}

int trainer_finish(Trainer *t, StepRun *r, Err *e) {
    const OpProfile *attention = &t->c.profile[OP_ATTENTION];
    StepFigures *f = &r->f;
    const double forward0 = t->attn_forward_s, backward0 = t->attn_backward_s;
    ctx_wait(&t->c, r->mark);
    t->in_flight--;
    t->attn_forward_s = attention->forward_s;
    t->attn_backward_s = attention->backward_s;
    if (f->kept == 0) return 0;
    sum_losses(r);
    f->loss /= share_kept(f);
    f->grad_norm = *r->norm;
    if (!isfinite(f->loss)) return trainer_diverged(t, r->step + 1, "loss", f->loss, e);
    if (!isfinite(f->grad_norm))
        return trainer_diverged(t, r->step + 1, "gradient norm", f->grad_norm, e);
    f->attn_forward_s = t->attn_forward_s - forward0;
    f->attn_backward_s = t->attn_backward_s - backward0;
    return 0;
}
