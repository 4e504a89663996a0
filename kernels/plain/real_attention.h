/* Attention as plain loops over REAL, included once for each type by attention.c; FN gives a
 * function the type's suffix, and ROUND is what P and dS go through before they are multiplied. One
 * query at a time; s, p and ds are rows of Tk in the workspace, where backward sums dlearned. */

/* The score, and d score / d (scale q k') in *slope. Expressions are evaluated in float32: their
 * language has no other type. */
static REAL FN(score)(const AttnArgs *a, REAL s, int b, int h, int q, int k, REAL *slope) {
    *slope = 1;
    if (!a->mask->has_score_expr) return s;
    *slope = flex_eval_score_grad(a->mask->flex, (float)s, b, h, q, k);
    return flex_eval_score(a->mask->flex, (float)s, b, h, q, k);
}

static REAL FN(dot)(const REAL *x, const REAL *y, int n) {
    REAL sum = 0;
    for (int d = 0; d < n; d++) sum += x[d] * y[d];
    return sum;
}

static void FN(attn_forward)(const AttnArgs *a) {
    REAL *s = a->workspace, slope;
    for (int64_t row = 0; row < (int64_t)a->B * a->H * a->Tq; row++) {
        const int i = (int)(row % a->Tq), h = (int)(row / a->Tq % a->H),
                  b = (int)(row / a->Tq / a->H), at = a->offset + i;
        const REAL *q = (const REAL *)a->q + b * a->qs.b + i * a->qs.t + h * a->qs.h;
        const REAL *k = (const REAL *)a->k + b * a->ks.b + h * a->ks.h;
        const REAL *v = (const REAL *)a->v + b * a->vs.b + h * a->vs.h;
        REAL *out = (REAL *)a->out + b * a->os.b + i * a->os.t + h * a->os.h;
        REAL max = -(REAL)INFINITY, sum = 0;
        for (int j = 0; j < a->Tk; j++) {
            if (!mask_sees(a->mask, b, h, at, j)) continue;
            s[j] = FN(score)(a, a->scale * FN(dot)(q, k + j * a->ks.t, a->D), b, h, at, j, &slope);
            if (!(s[j] <= max)) max = s[j]; /* NaN too */
        }
        for (int j = 0; j < a->Tk; j++)
            if (mask_sees(a->mask, b, h, at, j)) sum += s[j] = (REAL)exp(s[j] - max);
        for (int d = 0; d < a->D; d++) out[d] = 0;
        for (int j = 0; j < a->Tk; j++) {
            if (!mask_sees(a->mask, b, h, at, j)) continue;
            const REAL p = ROUND(s[j] / sum);
            for (int d = 0; d < a->D; d++) out[d] += p * v[j * a->vs.t + d];
        }
        ((REAL *)a->lse)[row] = max + (REAL)log(sum);
    }
}

static void FN(zero)(void *x, AttnStride s, int b, int h, int T, int D) {
    for (int t = 0; x && t < T; t++)
        memset((REAL *)x + b * s.b + t * s.t + h * s.h, 0, sizeof(REAL) * (size_t)D);
}

/* y = d loss / d score' into the gradients of the numbers that the score was made with. */
static void FN(learned)(const AttnArgs *a, REAL *sums, REAL y, REAL s, int b, int h, int q, int k) {
    const float score = (float)s;
    for (int j = 0; j < flex_captures(a->mask->flex); j++) {
        int index;
        float grad;
        flex_eval_capture_row(a->mask->flex, j, &score, b, h, q, k, 1, &index, &grad);
        sums[index] += y * grad;
    }
}

static void FN(attn_backward)(const AttnArgs *a) {
    REAL *sums = a->workspace;
    const int n_learned = a->dlearned ? a->mask->n_learned : 0;
    for (int i = 0; i < n_learned; i++) sums[i] = 0;
    for (int b = 0; b < a->B; b++)
        for (int h = 0; h < a->H; h++) {
            FN(zero)(a->dq, a->qs, b, h, a->Tq, a->D);
            FN(zero)(a->dk, a->ks, b, h, a->Tk, a->D);
            FN(zero)(a->dv, a->vs, b, h, a->Tk, a->D);
        }
    for (int64_t row = 0; row < (int64_t)a->B * a->H * a->Tq; row++) {
        const int i = (int)(row % a->Tq), h = (int)(row / a->Tq % a->H),
                  b = (int)(row / a->Tq / a->H), at = a->offset + i;
        const int64_t at_q = b * a->qs.b + i * a->qs.t + h * a->qs.h,
                      at_o = b * a->os.b + i * a->os.t + h * a->os.h;
        const REAL *q = (const REAL *)a->q + at_q, *dout = (const REAL *)a->dout + at_o;
        const REAL delta = FN(dot)((const REAL *)a->out + at_o, dout, a->D);
        for (int j = 0; j < a->Tk; j++) {
            if (!mask_sees(a->mask, b, h, at, j)) continue;
            const int64_t at_k = b * a->ks.b + j * a->ks.t + h * a->ks.h,
                          at_v = b * a->vs.b + j * a->vs.t + h * a->vs.h;
            const REAL *k = (const REAL *)a->k + at_k, *v = (const REAL *)a->v + at_v;
            REAL slope;
            const REAL s0 = a->scale * FN(dot)(q, k, a->D);
            const REAL s = FN(score)(a, s0, b, h, at, j, &slope);
            const REAL p = (REAL)exp(s - ((const REAL *)a->lse)[row]);
            const REAL dp = FN(dot)(dout, v, a->D);
            const REAL ds = a->scale * ROUND(slope * p * (dp - delta));
            if (n_learned) FN(learned)(a, sums, p * (dp - delta), s0, b, h, at, j);
            for (int d = 0; d < a->D; d++) {
                if (a->dv) ((REAL *)a->dv)[at_v + d] += ROUND(p) * dout[d];
                if (a->dk) ((REAL *)a->dk)[at_k + d] += ds * q[d];
                if (a->dq) ((REAL *)a->dq)[at_q + d] += ds * k[d];
            }
        }
    }
    for (int i = 0; i < n_learned; i++) a->dlearned[i] = (float)sums[i];
}
