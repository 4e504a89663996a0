#include "llmc_like/philox.h"

#include <math.h>

void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static void block(RngKey k, uint64_t number, uint32_t out[4]) {
    const uint32_t counter[4] = {(uint32_t)number, (uint32_t)(number >> 32), k.step, k.purpose};
    const uint32_t key[2] = {(uint32_t)k.seed, (uint32_t)(k.seed >> 32)};
    philox4x32(counter, key, out);
}

static float to_uniform(uint32_t bits) {
    float u = ((float)bits + 0.5f) * 0x1p-32f;
    return u < 1.0f ? u : 1.0f - 0x1p-24f;
}

static void to_normals(const uint32_t bits[4], float out[4]) {
    for (int pair = 0; pair < 4; pair += 2) {
        float r = sqrtf(-2.0f * logf(to_uniform(bits[pair])));
        float angle = 6.28318530718f * to_uniform(bits[pair + 1]);
        out[pair] = r * cosf(angle);
        out[pair + 1] = r * sinf(angle);
    }
}

static void to_uniforms(const uint32_t bits[4], float out[4]) {
    for (int i = 0; i < 4; i++) out[i] = to_uniform(bits[i]);
}

static void fill(RngKey k, uint64_t index0, float *out, int64_t n,
                 void (*convert)(const uint32_t[4], float[4])) {
    uint32_t bits[4];
    float lane[4];
    for (int64_t i = 0; i < n;) {
        uint64_t at = index0 + (uint64_t)i;
        block(k, at / 4, bits);
        convert(bits, lane);
        for (unsigned j = at % 4; j < 4 && i < n; j++) out[i++] = lane[j];
    }
}

uint32_t rng_bits(RngKey k, uint64_t index) {
    uint32_t out[4];
    block(k, index / 4, out);
    return out[index % 4];
}

void rng_uniform(RngKey k, uint64_t index0, float *out, int64_t n) {
    fill(k, index0, out, n, to_uniforms);
}

void rng_normal(RngKey k, uint64_t index0, float *out, int64_t n) {
    fill(k, index0, out, n, to_normals);
}

float rng_next_uniform(RngStream *s) { return to_uniform(rng_bits(s->key, s->next++)); }

float rng_next_normal(RngStream *s) {
    float u = rng_next_uniform(s), v = rng_next_uniform(s);
    return sqrtf(-2.0f * logf(u)) * cosf(6.28318530718f * v);
}

uint32_t rng_next_below(RngStream *s, uint32_t n) {
    return (uint32_t)(((uint64_t)rng_bits(s->key, s->next++) * n) >> 32);
}
