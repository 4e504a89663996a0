/* The ops of ops_event.c as plain loops over REAL, included once for each type by ops.c behind
 * real_ops.h, by the same rules: FN gives a function the type's suffix, and a backward only ever
 * adds, to what grad() has cleared. The formulas are in kernels/ops.h. */

static void FN(layernorm_forward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data, *weight = o->in[1]->data, *bias = o->in[2]->data;
    REAL *mean = o->saved[0]->data, *rstd = o->saved[1]->data, *y = o->out[0]->data;
    for (int64_t r = 0; r < rows; r++) {
        REAL sum = 0, squares = 0;
        for (int64_t j = 0; j < C; j++) sum += x[r * C + j];
        mean[r] = sum / (REAL)C;
        for (int64_t j = 0; j < C; j++)
            squares += (x[r * C + j] - mean[r]) * (x[r * C + j] - mean[r]);
        rstd[r] = 1 / (REAL)sqrt(squares / (REAL)C + (REAL)o->attr.eps);
        for (int64_t j = 0; j < C; j++)
            y[r * C + j] = (x[r * C + j] - mean[r]) * rstd[r] * weight[j] + bias[j];
    }
}

/* With n the normalised x and g = dy weight: dx = rstd (g - mean(g) - n mean(g n)). */
static void FN(layernorm_backward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data, *weight = o->in[1]->data, *dy = o->out[0]->grad;
    const REAL *mean = o->saved[0]->data, *rstd = o->saved[1]->data;
    REAL *dx = FN(grad)(o->in[0]), *dw = FN(grad)(o->in[1]), *db = FN(grad)(o->in[2]);
    for (int64_t r = 0; r < rows; r++) {
        REAL sum_g = 0, sum_gn = 0;
        for (int64_t j = 0; j < C; j++) {
            const REAL d = dy[r * C + j], n = (x[r * C + j] - mean[r]) * rstd[r];
            if (dw) dw[j] += d * n;
            if (db) db[j] += d;
            sum_g += d * weight[j];
            sum_gn += d * weight[j] * n;
        }
        for (int64_t j = 0; dx && j < C; j++) {
            const REAL g = dy[r * C + j] * weight[j], n = (x[r * C + j] - mean[r]) * rstd[r];
            dx[r * C + j] += rstd[r] * (g - sum_g / (REAL)C - n * sum_gn / (REAL)C);
        }
    }
}

static void FN(gelu_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) y[i] = FN(activate)(ACT_GELU, x[i]);
}

static void FN(gelu_backward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++)
        dx[i] += FN(scaled_by_slope)(ACT_GELU, x[i], dy[i]);
}

static void FN(relu_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) y[i] = FN(activate)(ACT_RELU, x[i]);
}

static void FN(relu_backward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++)
        dx[i] += FN(scaled_by_slope)(ACT_RELU, x[i], dy[i]);
}

/* What element i is multiplied with: 0 or 1 / (1 - p). */
static REAL FN(dropout_factor)(const OpCall *o, int64_t i) {
    const RngKey key = {o->attr.seed, o->attr.step, RNG_DROPOUT};
    const uint32_t bits = rng_bits(key, ((uint64_t)o->attr.layer << 40) + (uint64_t)i);
    return bits < (double)o->attr.p * 0x1p32 ? 0 : 1 / (1 - (REAL)o->attr.p);
}

static void FN(dropout_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) y[i] = x[i] * FN(dropout_factor)(o, i);
}

static void FN(dropout_backward)(const OpCall *o) {
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) dx[i] += dy[i] * FN(dropout_factor)(o, i);
}

static void FN(dropout_add_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *y = o->in[1]->data;
    REAL *out = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++)
        out[i] = x[i] + y[i] * FN(dropout_factor)(o, i);
}

static void FN(dropout_add_backward)(const OpCall *o) {
    const REAL *d = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]), *dy = FN(grad)(o->in[1]);
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) {
        if (dy) dy[i] += d[i] * FN(dropout_factor)(o, i);
        if (dx && dx != d) dx[i] += d[i];
    }
}

static void FN(concat_forward)(const OpCall *o) {
    const int64_t C = tensor_cols(o->in[0]), K = tensor_cols(o->in[1]);
    const REAL *a = o->in[0]->data, *b = o->in[1]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) {
        const int64_t r = i / (C + K), j = i % (C + K);
        y[i] = j < C ? a[r * C + j] : b[r * K + j - C];
    }
}

static void FN(concat_backward)(const OpCall *o) {
    const int64_t C = tensor_cols(o->in[0]), K = tensor_cols(o->in[1]);
    const REAL *dy = o->out[0]->grad;
    REAL *da = FN(grad)(o->in[0]), *db = FN(grad)(o->in[1]);
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) {
        const int64_t r = i / (C + K), j = i % (C + K);
        if (j < C && da) da[r * C + j] += dy[i];
        if (j >= C && db) db[r * K + j - C] += dy[i];
    }
}

/* ---- segments: m a segment, r a row, j a column ---- */

static void FN(segment_mean_forward)(const OpCall *o) {
    const int64_t M = o->in[1]->shape[0] - 1, C = tensor_cols(o->in[0]);
    const int32_t *at = o->in[1]->data;
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t m = 0; m < M; m++)
        for (int64_t j = 0; j < C; j++) {
            REAL sum = 0;
            for (int64_t r = at[m]; r < at[m + 1]; r++) sum += x[r * C + j];
            y[m * C + j] = sum / (REAL)(at[m + 1] - at[m]);
        }
}

static void FN(segment_mean_backward)(const OpCall *o) {
    const int64_t M = o->in[1]->shape[0] - 1, C = tensor_cols(o->in[0]);
    const int32_t *at = o->in[1]->data;
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t m = 0; m < M; m++)
        for (int64_t r = at[m]; r < at[m + 1]; r++)
            for (int64_t j = 0; j < C; j++)
                dx[r * C + j] += dy[m * C + j] / (REAL)(at[m + 1] - at[m]);
}

/* A NaN is the largest of all. */
static void FN(segment_max_forward)(const OpCall *o) {
    const int64_t M = o->in[1]->shape[0] - 1, C = tensor_cols(o->in[0]);
    const int32_t *at = o->in[1]->data;
    int32_t *from = o->saved[0]->data;
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t m = 0; m < M; m++)
        for (int64_t j = 0; j < C; j++) {
            int32_t best = at[m];
            for (int32_t r = at[m]; r < at[m + 1]; r++)
                if (x[r * C + j] > x[best * C + j] || isnan(x[r * C + j])) best = r;
            from[m * C + j] = best;
            y[m * C + j] = x[best * C + j];
        }
}

static void FN(segment_max_backward)(const OpCall *o) {
    const int64_t C = tensor_cols(o->in[0]);
    const int32_t *from = o->saved[0]->data;
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) dx[from[i] * C + i % C] += dy[i];
}

static void FN(segment_first_forward)(const OpCall *o) {
    const int64_t C = tensor_cols(o->in[0]);
    const int32_t *at = o->in[1]->data;
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) y[i] = x[at[i / C] * C + i % C];
}

static void FN(segment_first_backward)(const OpCall *o) {
    const int64_t C = tensor_cols(o->in[0]);
    const int32_t *at = o->in[1]->data;
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++) dx[at[i / C] * C + i % C] += dy[i];
}

static void FN(segment_prepend_forward)(const OpCall *o) {
    const int64_t M = o->in[1]->shape[0] - 1, C = tensor_cols(o->in[0]);
    const int32_t *at = o->in[1]->data;
    const REAL *x = o->in[0]->data, *token = o->in[2]->data;
    REAL *y = o->out[0]->data;
    for (int64_t m = 0; m < M; m++)
        for (int64_t j = 0; j < C; j++) {
            y[(at[m] + m) * C + j] = token[j];
            for (int64_t r = at[m]; r < at[m + 1]; r++) y[(r + m + 1) * C + j] = x[r * C + j];
        }
}

static void FN(segment_prepend_backward)(const OpCall *o) {
    const int64_t M = o->in[1]->shape[0] - 1, C = tensor_cols(o->in[0]);
    const int32_t *at = o->in[1]->data;
    const REAL *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]), *dtoken = FN(grad)(o->in[2]);
    for (int64_t m = 0; m < M; m++)
        for (int64_t j = 0; j < C; j++) {
            if (dtoken) dtoken[j] += dy[(at[m] + m) * C + j];
            for (int64_t r = at[m]; dx && r < at[m + 1]; r++)
                dx[r * C + j] += dy[(r + m + 1) * C + j];
        }
}

/* ---- directions ---- */

static REAL FN(length)(const REAL *x, int64_t C) {
    REAL squares = 0;
    for (int64_t j = 0; j < C; j++) squares += x[j] * x[j];
    return (REAL)sqrt(squares);
}

static void FN(unit_vector_forward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t r = 0; r < rows; r++) {
        const REAL size = FN(length)(x + r * C, C) + (REAL)o->attr.eps;
        for (int64_t j = 0; j < C; j++) y[r * C + j] = x[r * C + j] / size;
    }
}

/* With s = |x| + eps: dx = dy / s - x (dy . x) / (|x| s^2). */
static void FN(unit_vector_backward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data, *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t r = 0; r < rows; r++) {
        const REAL n = FN(length)(x + r * C, C), s = n + (REAL)o->attr.eps;
        REAL dot = 0;
        for (int64_t j = 0; j < C; j++) dot += dy[r * C + j] * x[r * C + j];
        const REAL along = n == 0 ? 0 : dot / (n * s * s);
        for (int64_t j = 0; j < C; j++) dx[r * C + j] += dy[r * C + j] / s - x[r * C + j] * along;
    }
}

/* The cosine of the angle between row r of x and of target. */
static double FN(cosine)(const OpCall *o, int64_t r) {
    const int64_t C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data, *target = o->in[1]->data;
    double dot = 0;
    for (int64_t j = 0; j < C; j++) dot += (double)x[r * C + j] * (double)target[r * C + j];
    return dot;
}

static void FN(angle_loss_forward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]);
    const double limit = 1 - 1e-4;
    double sum = 0;
    for (int64_t r = 0; r < rows; r++) {
        const double dot = FN(cosine)(o, r);
        sum += acos(dot > limit ? limit : dot < -limit ? -limit : dot);
    }
    *(double *)o->out[0]->data = sum / (double)rows;
}

static void FN(angle_loss_backward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data, *target = o->in[1]->data;
    REAL *dx = FN(grad)(o->in[0]), *dtarget = FN(grad)(o->in[1]);
    for (int64_t r = 0; r < rows; r++) {
        const double dot = FN(cosine)(o, r), d = *(const double *)o->out[0]->grad / (double)rows;
        const REAL slope = (REAL)(fabs(dot) > 1 - 1e-4 ? 0 : -d / sqrt(1 - dot * dot));
        for (int64_t j = r * C; j < (r + 1) * C; j++) {
            if (dx) dx[j] += slope * target[j];
            if (dtarget) dtarget[j] += slope * x[j];
        }
    }
}

/* ---- the flat model's ---- */

static void FN(rmsnorm_forward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *x = o->in[0]->data;
    REAL *rstd = o->saved[0]->data, *y = o->out[0]->data;
    for (int64_t r = 0; r < rows; r++) {
        REAL squares = 0;
        for (int64_t j = r * C; j < (r + 1) * C; j++) squares += x[j] * x[j];
        rstd[r] = 1 / (REAL)sqrt(squares / (REAL)C + (REAL)o->attr.eps);
        for (int64_t j = r * C; j < (r + 1) * C; j++) y[j] = x[j] * rstd[r];
    }
}

/* dx = rstd (dy - y mean(dy y)) */
static void FN(rmsnorm_backward)(const OpCall *o) {
    const int64_t rows = tensor_rows(o->in[0]), C = tensor_cols(o->in[0]);
    const REAL *y = o->out[0]->data, *dy = o->out[0]->grad, *rstd = o->saved[0]->data;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t r = 0; r < rows; r++) {
        REAL along = 0;
        for (int64_t j = r * C; j < (r + 1) * C; j++) along += dy[j] * y[j];
        for (int64_t j = r * C; j < (r + 1) * C; j++)
            dx[j] += rstd[r] * (dy[j] - y[j] * along / (REAL)C);
    }
}

static void FN(relu_squared_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) y[i] = x[i] < 0 ? 0 : x[i] * x[i];
}

static void FN(relu_squared_backward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *dy = o->out[0]->grad;
    REAL *dx = FN(grad)(o->in[0]);
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) dx[i] += x[i] <= 0 ? 0 : 2 * x[i] * dy[i];
}

static void FN(mix_forward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *y = o->in[1] ? o->in[1]->data : x;
    const REAL r = ((const REAL *)o->in[2]->data)[o->attr.part];
    const REAL s = ((const REAL *)o->in[3]->data)[o->attr.part];
    REAL *out = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) out[i] = r * x[i] + s * y[i];
}

static void FN(mix_backward)(const OpCall *o) {
    const REAL *x = o->in[0]->data, *y = o->in[1] ? o->in[1]->data : x, *d = o->out[0]->grad;
    const REAL r = ((const REAL *)o->in[2]->data)[o->attr.part];
    const REAL s = ((const REAL *)o->in[3]->data)[o->attr.part];
    REAL *dx = FN(grad)(o->in[0]), *dy = o->in[1] ? FN(grad)(o->in[1]) : dx;
    REAL *dr = FN(grad)(o->in[2]), *ds = FN(grad)(o->in[3]);
    double sum_r = 0, sum_s = 0;
    for (int64_t i = 0; i < tensor_numel(o->in[0]); i++) {
        if (dx) dx[i] += r * d[i];
        if (dy) dy[i] += s * d[i];
        sum_r += (double)d[i] * (double)x[i];
        sum_s += (double)d[i] * (double)y[i];
    }
    if (dr) dr[o->attr.part] += (REAL)sum_r;
    if (ds) ds[o->attr.part] += (REAL)sum_s;
}

static void FN(pad_forward)(const OpCall *o) {
    const int64_t K = tensor_cols(o->in[0]), C = tensor_cols(o->out[0]);
    const REAL *x = o->in[0]->data;
    REAL *y = o->out[0]->data;
    for (int64_t i = 0; i < tensor_numel(o->out[0]); i++)
        y[i] = i % C < K ? x[i / C * K + i % C] : 0;
}
