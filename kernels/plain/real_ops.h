/* The ops as plain loops over REAL, included once for each type by ops.c; FN gives a function the
 * type's suffix. The formulas are in kernels/ops.h.
 *
 * A backward only ever adds: grad() clears what is to be overwritten. It gives NULL where no
 * gradient is wanted. One row of names in all of them: x input, y output, dx, dy their gradients.
 */

static REAL *FN(grad)(const Tensor *t) {
    if (!t || !t->grad) return NULL;
    if (!t->grad_set) memset(t->grad, 0, sizeof(REAL) * (size_t)tensor_numel(t));
    return t->grad;
}

static REAL FN(sigmoid)(REAL x) { return 1 / (1 + (REAL)exp(-x)); }

static REAL FN(normal_cdf)(REAL x) { return (1 + (REAL)erf(x / sqrt(2))) / 2; }

static REAL FN(gelu_slope)(REAL x) {
    return FN(normal_cdf)(x) + x * (REAL)(exp(-x * x / 2) / sqrt(2 * M_PI));
}

/* ReLU's are written so that NaN fails both comparisons and passes through. */
static REAL FN(activate)(int activation, REAL x) {
    if (activation == ACT_GELU) return x * FN(normal_cdf)(x);
    return activation == ACT_RELU && x < 0 ? 0 : x;
}

/* d times the slope at x; for ReLU x may be the output. */
static REAL FN(scaled_by_slope)(int activation, REAL x, REAL d) {
    if (activation == ACT_GELU) return d * FN(gelu_slope)(x);
    return activation == ACT_RELU && x <= 0 ? 0 : d;
}

/* ---- layers ---- */

static void FN(linear_forward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), K = tensor_cols(o->in[0]), N = o->in[1]->shape[0];
    const REAL *x = o->in[0]->data, *w = o->in[1]->data, *bias = o->in[2] ? o->in[2]->data : NULL;
    const REAL *residual = o->in[3] ? o->in[3]->data : NULL;
    REAL *y = o->out[0]->data;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < N; n++) {
            REAL sum = bias ? bias[n] : 0;
            for (int64_t k = 0; k < K; k++) sum += x[r * K + k] * w[n * K + k];
            if (o->saved[0]) ((REAL *)o->saved[0]->data)[r * N + n] = sum;
            y[r * N + n] = FN(activate)(o->attr.activation, sum);
            if (residual) y[r * N + n] += residual[r * N + n];
        }
}

static void FN(linear_backward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), K = tensor_cols(o->in[0]), N = o->in[1]->shape[0];
    const REAL *x = o->in[0]->data, *w = o->in[1]->data, *dy = o->out[0]->grad;
    const REAL *at = o->saved[0] ? o->saved[0]->data : o->out[0]->data;
    REAL *dx = FN(grad)(o->in[0]), *dw = FN(grad)(o->in[1]), *db = FN(grad)(o->in[2]);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < N; n++) {
            const REAL d = FN(scaled_by_slope)(o->attr.activation, at[r * N + n], dy[r * N + n]);
            if (db) db[n] += d;
            for (int64_t k = 0; k < K; k++) {
                if (dx) dx[r * K + k] += d * w[n * K + k];
                if (dw) dw[n * K + k] += d * x[r * K + k];
            }
        }
}

/* One walk serves both passes: y NULL in backward, the gradients NULL in forward. */
static void FN(conv2d)(const OpCall *o, REAL *y, const REAL *dy, REAL *dx, REAL *dw, REAL *db) {
    const Tensor *in = o->in[0];
    const int64_t h = in->shape[in->ndim - 3], w = in->shape[in->ndim - 2], I = tensor_cols(in);
    const int64_t images = tensor_rows(in) / (h * w);
    const int64_t O = o->in[1]->shape[0], k = o->in[1]->shape[2];
    const REAL *x = in->data, *weight = o->in[1]->data, *bias = o->in[2] ? o->in[2]->data : NULL;
    for (int64_t at = 0; at < images * h * w; at++) { /* pixel (i, j) of an image */
        const int64_t image = at / (h * w), i = at / w % h, j = at % w;
        for (int64_t n = 0; n < O; n++) {
            REAL sum = bias ? bias[n] : 0;
            const REAL d = dy ? dy[at * O + n] : 0;
            if (db) db[n] += d;
            for (int64_t a = 0; a < k; a++)
                for (int64_t b = 0; b < k; b++) {
                    const int64_t ii = i + a - k / 2, jj = j + b - k / 2;
                    if (ii < 0 || ii >= h || jj < 0 || jj >= w) continue;
                    for (int64_t m = 0; m < I; m++) {
                        const int64_t xi = ((image * h + ii) * w + jj) * I + m;
                        const int64_t wi = ((n * I + m) * k + a) * k + b;
                        if (y) sum += x[xi] * weight[wi];
                        if (dx) dx[xi] += d * weight[wi];
                        if (dw) dw[wi] += d * x[xi];
                    }
                }
            if (y) y[at * O + n] = sum;
        }
    }
}

static void FN(conv2d_forward)(const OpCall *o) {
    FN(conv2d)(o, o->out[0]->data, NULL, NULL, NULL, NULL);
}

static void FN(conv2d_backward)(const OpCall *o) {
    REAL *dx = FN(grad)(o->in[0]), *dw = FN(grad)(o->in[1]), *db = FN(grad)(o->in[2]);
    FN(conv2d)(o, NULL, o->out[0]->grad, dx, dw, db);
}

static void FN(silu_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) y[i] = x[i] * FN(sigmoid)(x[i]);
}

static void FN(silu_backward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) {
        const REAL s = FN(sigmoid)(x[i]);
        dx[i] += dy[i] * s * (1 + x[i] * (1 - s));
    }
}

static void FN(add_forward)(const OpCall *o) {
    const REAL *a = o->in[0]->data, *b = o->in[1]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) y[i] = a[i] + b[i];
}

static void FN(add_backward)(const OpCall *o) {
    const REAL *dy = o->out[0]->grad;
    const bool handed_on = o->in[0]->grad == o->out[0]->grad;
    REAL *da = handed_on ? NULL : FN(grad)(o->in[0]), *db = FN(grad)(o->in[1]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) {
        if (da) da[i] += dy[i];
        if (db) db[i] += dy[i];
    }
}

static void FN(groupnorm_forward)(const OpCall *o) {
    const Tensor *in = o->in[0];
    const int64_t C = tensor_cols(in), pixels = in->shape[in->ndim - 2] * in->shape[in->ndim - 3];
    const int64_t images = tensor_rows(in) / pixels, G = o->attr.groups, per = C / G;
    const REAL *x = in->data, *weight = o->in[1]->data, *bias = o->in[2]->data;
    REAL *mean = o->saved[0]->data, *rstd = o->saved[1]->data, *y = o->out[0]->data;
    for (int64_t ig = 0; ig < images * G; ig++) {
        const int64_t first = ig / G * pixels * C + ig % G * per; /* of this image and group */
        REAL sum = 0, squares = 0;
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t j = 0; j < per; j++) sum += x[first + p * C + j];
        mean[ig] = sum / (REAL)(pixels * per);
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t j = 0; j < per; j++) {
                const REAL centred = x[first + p * C + j] - mean[ig];
                squares += centred * centred;
            }
        rstd[ig] = 1 / (REAL)sqrt(squares / (REAL)(pixels * per) + (REAL)o->attr.eps);
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t j = 0; j < per; j++) {
                const int64_t at = first + p * C + j, ch = ig % G * per + j;
                y[at] = (x[at] - mean[ig]) * rstd[ig] * weight[ch] + bias[ch];
            }
    }
}

/* With n the normalised x and g = dy weight: dx = rstd (g - mean(g) - n mean(g n)). */
static void FN(groupnorm_backward)(const OpCall *o) {
    const Tensor *in = o->in[0];
    const int64_t C = tensor_cols(in), pixels = in->shape[in->ndim - 2] * in->shape[in->ndim - 3];
    const int64_t images = tensor_rows(in) / pixels, G = o->attr.groups, per = C / G;
    const REAL *x = in->data, *weight = o->in[1]->data, *dy = o->out[0]->grad;
    const REAL *mean = o->saved[0]->data, *rstd = o->saved[1]->data;
    REAL *dx = FN(grad)(in), *dw = FN(grad)(o->in[1]), *db = FN(grad)(o->in[2]);
    for (int64_t ig = 0; ig < images * G; ig++) {
        const int64_t first = ig / G * pixels * C + ig % G * per;
        REAL sum_g = 0, sum_gn = 0;
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t j = 0; j < per; j++) {
                const int64_t at = first + p * C + j, ch = ig % G * per + j;
                const REAL n = (x[at] - mean[ig]) * rstd[ig];
                if (dw) dw[ch] += dy[at] * n;
                if (db) db[ch] += dy[at];
                sum_g += dy[at] * weight[ch];
                sum_gn += dy[at] * weight[ch] * n;
            }
        if (!dx) continue;
        const REAL count = (REAL)(pixels * per);
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t j = 0; j < per; j++) {
                const int64_t at = first + p * C + j, ch = ig % G * per + j;
                const REAL n = (x[at] - mean[ig]) * rstd[ig];
                dx[at] += rstd[ig] * (dy[at] * weight[ch] - sum_g / count - n * sum_gn / count);
            }
    }
}

/* ---- layout: each is a permutation or a choice of elements, and its transpose ---- */

/* Where element `at` of patchify's output (B, F, N, c P P) comes from. */
static int64_t FN(patchify_source)(const OpCall *o, int64_t at) {
    const int64_t *s = o->in[0]->shape, P = o->attr.patch, c = s[4], wide = s[3] / P;
    const int64_t px = at % P, py = at / P % P, channel = at / (P * P) % c;
    const int64_t n = at / (P * P * c) % (wide * (s[2] / P)), frame = at / (s[2] * s[3] * c);
    const int64_t row = n / wide * P + py, col = n % wide * P + px;
    return ((frame * s[2] + row) * s[3] + col) * c + channel;
}

static void FN(patchify_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) y[i] = x[FN(patchify_source)(o, i)];
}

static void FN(patchify_backward)(const OpCall *o) {
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) dx[FN(patchify_source)(o, i)] += dy[i];
}

/* Where element `at` of unpatchify's output (B, F, height, width, 3) comes from. */
static int64_t FN(unpatchify_source)(const OpCall *o, int64_t at) {
    const int64_t *s = o->out[0]->shape, P = o->attr.patch, wide = s[3] / P;
    const int64_t channel = at % 3, col = at / 3 % s[3], row = at / (3 * s[3]) % s[2];
    const int64_t frame = at / (3 * s[3] * s[2]), n = row / P * wide + col / P;
    return ((frame * wide * (s[2] / P) + n) * P * P + row % P * P + col % P) * 3 + channel;
}

static void FN(unpatchify_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) y[i] = x[FN(unpatchify_source)(o, i)];
}

static void FN(unpatchify_backward)(const OpCall *o) {
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) dx[FN(unpatchify_source)(o, i)] += dy[i];
}

/* Token `s` of frame `frame` (of all in the batch) is a patch for s < N, else register s - N. */
static void FN(append_registers_forward)(const OpCall *o) {
    const int64_t N = o->in[0]->shape[2], C = o->in[0]->shape[3], R = o->attr.registers, S = N + R;
    const REAL *x = o->in[0]->data, *reg = o->in[1]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) {
        const int64_t frame = i / (S * C), s = i / C % S, j = i % C;
        y[i] = s < N ? x[(frame * N + s) * C + j] : reg[(s - N) * C + j];
    }
}

static void FN(append_registers_backward)(const OpCall *o) {
    const int64_t N = o->in[0]->shape[2], C = o->in[0]->shape[3], R = o->attr.registers, S = N + R;
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]), *dreg = FN(grad)(o->in[1]);
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) {
        const int64_t frame = i / (S * C), s = i / C % S, j = i % C;
        if (s < N && dx) dx[(frame * N + s) * C + j] += dy[i];
        if (s >= N && dreg) dreg[(s - N) * C + j] += dy[i];
    }
}

static void FN(drop_registers_forward)(const OpCall *o) {
    const int64_t N = o->out[0]->shape[2], C = o->out[0]->shape[3], S = N + o->attr.registers;
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++)
        y[i] = x[i / (N * C) * S * C + i % (N * C)];
}

static void FN(drop_registers_backward)(const OpCall *o) {
    const int64_t N = o->out[0]->shape[2], C = o->out[0]->shape[3], S = N + o->attr.registers;
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++)
        dx[i / (N * C) * S * C + i % (N * C)] += dy[i];
}

/* ---- conditioning ---- */

static void FN(embedding_forward)(const OpCall *o) {
    const int64_t C = tensor_cols(o->in[1]);
    const int32_t *ids = o->in[0]->data;
    const REAL *table = o->in[1]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) y[i] = table[ids[i / C] * C + i % C];
}

static void FN(embedding_backward)(const OpCall *o) {
    const int64_t C = tensor_cols(o->in[1]);
    const int32_t *ids = o->in[0]->data;
    const REAL *dy = o->out[0]->grad;
    REAL *dtable = FN(grad)(o->in[1]);
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) dtable[ids[i / C] * C + i % C] += dy[i];
}

static void FN(timestep_embedding_forward)(const OpCall *o) {
    const int64_t C = tensor_cols(o->out[0]);
    const float *t = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) {
        const int64_t j = i % C;
        const float n = floorf(t[i / C] * (float)(o->attr.steps - 1));
        const double angle = (double)n * pow(1e4, -(double)(j / 2 * 2) / (double)C);
        y[i] = (REAL)(j % 2 ? cos(angle) : sin(angle));
    }
}

/* x (B, T, C) and mod (B, F, n C): token `row` of all in the batch belongs to frame row / (T / F).
 * This gives the place of part `part` of that frame's modulation. */
static int64_t FN(modulation)(const Tensor *x, const Tensor *mod, int64_t row, int part) {
    return row / (x->shape[1] / mod->shape[1]) * mod->shape[2] + part * x->shape[2];
}

static void FN(rmsnorm_modulate_forward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data, *weight = o->in[1]->data, *mod = o->in[2]->data;
    REAL *y = o->out[0]->data, *rstd = o->saved[0]->data;
    for (int64_t r = 0; r < rows; r++) {
        const REAL *shift = mod + FN(modulation)(o->in[0], o->in[2], r, o->attr.part);
        const REAL *scale = shift + C;
        REAL squares = 0;
        for (int64_t j = 0; j < C; j++) squares += x[r * C + j] * x[r * C + j];
        rstd[r] = 1 / (REAL)sqrt(squares / (REAL)C + (REAL)o->attr.eps);
        for (int64_t j = 0; j < C; j++)
            y[r * C + j] = x[r * C + j] * rstd[r] * weight[j] * (1 + scale[j]) + shift[j];
    }
}

/* With n = x rstd and g = dy weight (1 + scale): dx = rstd (g - n mean(g n)). */
static void FN(rmsnorm_modulate_backward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data, *weight = o->in[1]->data, *mod = o->in[2]->data;
    const REAL *rstd = o->saved[0]->data, *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]), *dweight = FN(grad)(o->in[1]), *dmod = FN(grad)(o->in[2]);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t shift = FN(modulation)(o->in[0], o->in[2], r, o->attr.part);
        const int64_t scale = shift + C;
        REAL sum = 0;
        for (int64_t j = 0; j < C; j++) {
            const REAL d = dy[r * C + j], n = x[r * C + j] * rstd[r];
            sum += d * weight[j] * (1 + mod[scale + j]) * n;
            if (dweight) dweight[j] += d * (1 + mod[scale + j]) * n;
            if (dmod) dmod[shift + j] += d;
            if (dmod) dmod[scale + j] += d * weight[j] * n;
        }
        for (int64_t j = 0; dx && j < C; j++) {
            const REAL g = dy[r * C + j] * weight[j] * (1 + mod[scale + j]);
            dx[r * C + j] += rstd[r] * (g - x[r * C + j] * rstd[r] * sum / (REAL)C);
        }
    }
}

static void FN(gate_add_forward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data, *y = o->in[1]->data, *mod = o->in[2]->data;
    REAL *out = o->out[0]->data;
    for (int64_t r = 0; r < rows; r++) {
        const REAL *gate = mod + FN(modulation)(o->in[0], o->in[2], r, o->attr.part);
        for (int64_t j = 0; j < C; j++) out[r * C + j] = x[r * C + j] + gate[j] * y[r * C + j];
    }
}

static void FN(gate_add_backward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *y = o->in[1]->data, *mod = o->in[2]->data, *dout = o->out[0]->grad;
    const bool handed_on = o->in[0]->grad == o->out[0]->grad;
    REAL *dx = handed_on ? NULL : FN(grad)(o->in[0]);
    REAL *dy = FN(grad)(o->in[1]), *dmod = FN(grad)(o->in[2]);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t gate = FN(modulation)(o->in[0], o->in[2], r, o->attr.part);
        for (int64_t j = 0; j < C; j++) {
            const REAL d = dout[r * C + j];
            if (dx) dx[r * C + j] += d;
            if (dy) dy[r * C + j] += d * mod[gate + j];
            if (dmod) dmod[gate + j] += d * y[r * C + j];
        }
    }
}

static void FN(geglu_forward)(const OpCall *o) {
    const REAL *up = o->in[0]->data, *gate = o->in[1]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++)
        y[i] = up[i] * gate[i] * FN(sigmoid)(gate[i]);
}

static void FN(geglu_backward)(const OpCall *o) {
    const REAL *up = o->in[0]->data, *gate = o->in[1]->data, *dy = o->out[0]->grad;
    REAL *dup = FN(grad)(o->in[0]), *dgate = FN(grad)(o->in[1]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) {
        const REAL s = FN(sigmoid)(gate[i]);
        if (dup) dup[i] += dy[i] * gate[i] * s;
        if (dgate) dgate[i] += dy[i] * up[i] * s * (1 + gate[i] * (1 - s));
    }
}

/* ---- queries and keys ---- */

/* One head's x (D), normalised by its RMS, weighted, rotated by the table's row. */
static void FN(norm_rotate)(REAL *y, const REAL *x, const REAL *weight, const REAL *sine,
                            const REAL *cosine, int64_t D, float eps) {
    REAL squares = 0;
    for (int64_t d = 0; d < D; d++) squares += x[d] * x[d];
    const REAL rstd = 1 / (REAL)sqrt(squares / (REAL)D + (REAL)eps);
    for (int64_t d = 0; d < D; d += 2) {
        const REAL a = x[d] * rstd * weight[d], b = x[d + 1] * rstd * weight[d + 1];
        y[d] = a * cosine[d] - b * sine[d];
        y[d + 1] = b * cosine[d + 1] + a * sine[d + 1];
    }
}

static void FN(norm_rotate_backward)(const REAL *dy, const REAL *x, const REAL *weight,
                                     const REAL *sine, const REAL *cosine, int64_t D, float eps,
                                     REAL *dx, REAL *dweight, REAL *dsine, REAL *dcosine) {
    REAL squares = 0, sum = 0;
    for (int64_t d = 0; d < D; d++) squares += x[d] * x[d];
    const REAL rstd = 1 / (REAL)sqrt(squares / (REAL)D + (REAL)eps);
    for (int pass = 0; pass < 2; pass++) /* the first one makes `sum`, which the second needs */
        for (int64_t d = 0; d < D; d++) {
            const int64_t pair = d ^ 1;
            const REAL n = x[d] * rstd, other = x[pair] * rstd * weight[pair];
            const REAL back = d % 2 ? -dy[pair] * sine[pair] : dy[pair] * sine[pair];
            const REAL da = dy[d] * cosine[d] + back; /* by the weighted, unrotated element */
            if (pass && dx) dx[d] += rstd * (da * weight[d] - n * sum / (REAL)D);
            if (pass) continue;
            sum += da * weight[d] * n;
            if (dweight) dweight[d] += da * n;
            if (dcosine) dcosine[d] += dy[d] * n * weight[d];
            if (dsine) dsine[d] += d % 2 ? dy[d] * other : -dy[d] * other;
        }
}

static void FN(qkv_rope_forward)(const OpCall *o) {
    const int64_t B = o->in[0]->shape[0], T = o->in[0]->shape[1], H = o->attr.heads;
    const int64_t C = o->in[0]->shape[2] / 3, D = C / H, first = o->attr.offset;
    const REAL *qkv = o->in[0]->data, *ln_q = o->in[1]->data, *ln_k = o->in[2]->data;
    const REAL *sine = o->in[3]->data, *cosine = o->in[4]->data;
    REAL *q = o->out[0]->data, *k = o->out[1]->data, *v = o->out[2]->data;
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++)
            for (int64_t h = 0; h < H; h++) {
                const REAL *x = qkv + (b * T + t) * 3 * C + h * D, *s = sine + t * D;
                const int64_t at = (b * T + t) * C + h * D;
                const int64_t q_at = (b * (T - first) + t - first) * C + h * D;
                if (t >= first)
                    FN(norm_rotate)(q + q_at, x, ln_q, s, cosine + t * D, D, o->attr.eps);
                FN(norm_rotate)(k + at, x + C, ln_k, s, cosine + t * D, D, o->attr.eps);
                memcpy(v + at, x + 2 * C, sizeof(REAL) * (size_t)D);
            }
}

static void FN(qkv_rope_backward)(const OpCall *o) {
    const int64_t B = o->in[0]->shape[0], T = o->in[0]->shape[1], H = o->attr.heads;
    const int64_t C = o->in[0]->shape[2] / 3, D = C / H, first = o->attr.offset;
    const REAL *qkv = o->in[0]->data, *ln_q = o->in[1]->data, *ln_k = o->in[2]->data;
    const REAL *sine = o->in[3]->data, *cosine = o->in[4]->data;
    const REAL *dq = o->out[0]->grad, *dk = o->out[1]->grad, *dv = o->out[2]->grad;
    REAL *dqkv = FN(grad)(o->in[0]), *dln_q = FN(grad)(o->in[1]), *dln_k = FN(grad)(o->in[2]);
    REAL *dsin = FN(grad)(o->in[3]), *dcos = FN(grad)(o->in[4]);
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++)
            for (int64_t h = 0; h < H; h++) {
                const int64_t at = (b * T + t) * 3 * C + h * D;
                const REAL *x = qkv + at, *s = sine + t * D, *co = cosine + t * D;
                REAL *dx = dqkv ? dqkv + at : NULL;
                REAL *ds = dsin ? dsin + t * D : NULL, *dc = dcos ? dcos + t * D : NULL;
                const int64_t k_at = (b * T + t) * C + h * D;
                const int64_t q_at = (b * (T - first) + t - first) * C + h * D;
                REAL *dxk = dx ? dx + C : NULL;
                if (t >= first) {
                    FN(norm_rotate_backward)
                    (dq + q_at, x, ln_q, s, co, D, o->attr.eps, dx, dln_q, ds, dc);
                }
                FN(norm_rotate_backward)
                (dk + k_at, x + C, ln_k, s, co, D, o->attr.eps, dxk, dln_k, ds, dc);
                for (int64_t d = 0; dx && d < D; d++) dx[2 * C + d] += dv[k_at + d];
            }
}

/* ---- the task ---- */

static void FN(normal_forward)(const OpCall *o) {
    const RngKey key = {o->attr.seed, o->attr.step, o->attr.layer};
    REAL *x = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) {
        float number;
        rng_normal(key, o->attr.first + (uint64_t)i, &number, 1);
        x[i] = number;
    }
}

static void FN(flow_noise_forward)(const OpCall *o) {
    const REAL *x0 = o->in[0]->data, *z = o->in[1]->data;
    const float *t = o->in[2]->data;
    REAL *x_t = o->out[0]->data, *v = o->out[1]->data;
    const int64_t n = tensor_numel(o->in[0]), frame = n / tensor_numel(o->in[2]);
    for (int64_t i = 0; i < n; i++) {
        v[i] = x0[i] - z[i];
        x_t[i] = x0[i] - t[i / frame] * v[i];
    }
}

static void FN(mse_loss_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *target = o->in[1]->data;
    const int64_t n = tensor_numel(o->in[0]);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)(x[i] - target[i]) * (double)(x[i] - target[i]);
    *(double *)o->out[0]->data = sum / (double)n;
}

static void FN(mse_loss_backward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *target = o->in[1]->data;
    REAL *dx = FN(grad)(o->in[0]), *dtarget = FN(grad)(o->in[1]);
    const int64_t n = tensor_numel(o->in[0]);
    const REAL factor = (REAL)(2 * *(const double *)o->out[0]->grad / (double)n);
    for (int64_t i = 0; i < n; i++) {
        const REAL d = factor * (x[i] - target[i]);
        if (dx) dx[i] += d;
        if (dtarget) dtarget[i] -= d;
    }
}
