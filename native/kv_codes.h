// Keys and values as small codes: rows turned and rounded when they are stored, scores and sums straight from the codes.
// genmote/ops/kv_codes.py is the same in NumPy and says what the codes mean; docs/formats.md how they lie. Included by
// kernels.h, after its sums.
#pragma once
#include <initializer_list>

namespace {

constexpr float kValueLevels[8] = {6, 18, 31, 44, 58, 75, 96, 127};
constexpr float kKeyLevels[16] = {3, 8, 13, 18, 24, 29, 35, 41, 47, 54, 62, 70, 79, 90, 105, 127};
constexpr float kValueUnit = static_cast<float>(2.7331 / 127), kKeyUnit = static_cast<float>(3.2674 / 127);
constexpr int kMostDim = 1024;

// All levels in rising order: those with a minus, then the others.
template <int N> struct Rising {
    float level[2 * N], between[2 * N - 1];
    explicit Rising(const float* half) {
        for (int i = 0; i < N; i++) {
            level[i] = -half[N - 1 - i];
            level[N + i] = half[i];
        }
        for (int i = 0; i + 1 < 2 * N; i++) between[i] = (level[i + 1] + level[i]) / 2.0f;
    }
};

// Turn `count` runs of `dim` numbers by an orthogonal, symmetric matrix: Hadamard's on runs of the largest power of two, then
// a reflection over the runs.
void rotate(float* x, int64_t count, int dim) {
    const int n = dim & -dim, runs = dim / n;
    const float shrink = 1.0f / std::sqrt(static_cast<float>(n)), part = 2.0f / static_cast<float>(runs);
    for (; count; count--, x += dim) {
        for (int step = 1; step < n; step *= 2)
            for (int i = 0; i < dim; i += 2 * step) {
                float *a = x + i, *b = a + step;
                for (int j = 0; j < step; j++) {
                    const float p = a[j], q = b[j];
                    a[j] = p + q;
                    b[j] = p - q;
                }
            }
        for (int i = 0; i < dim; i++) x[i] *= shrink;
        if (runs == 1) continue;
        for (int i = 0; i < n; i++) {
            float total = x[i];
            for (int r = 1; r < runs; r++) total += x[r * n + i];
            total *= part;
            for (int r = 0; r < runs; r++) x[r * n + i] -= total;
        }
    }
}

inline float half_of(float x, uint16_t* bits) {  // rounded to float16: its bits, and its value
    alignas(64) float f[16] = {x};
    uint16_t h[16];
    store_half(h, load(f));
    *bits = h[0];
    store(f, load_half(h));
    return f[0];
}

// The number of the level nearest to each of y / scale: how many borders lie below.
template <int N> inline void place(const Rising<N>& r, const float* y, int dim, float scale, uint8_t* out) {
    const VF inverse = splat(scale > 0 ? 1.0f / scale : 0.0f);
    for (int i = 0; i < dim; i += LANES) {
        const VF t = load(y + i) * inverse;
        VI n = {};
        for (int b = 0; b + 1 < 2 * N; b++) n -= t > splat(r.between[b]);
        for (int l = 0; l < LANES; l++) out[i + l] = static_cast<uint8_t>(n[l]);
    }
}

template <int N> void encode_levels(const Rising<N>& r, const float* y, int dim, float unit, uint8_t* codes, uint16_t* scale) {
    const float deviation = std::sqrt(sum16(y, dim, [](VF v, VF a) { return fma(v, v, a); }) / static_cast<float>(dim));
    unit *= deviation > 1e-20f ? deviation : 0.0f;
    alignas(64) float apart[kMostDim + 16] = {};
    uint8_t tried[kMostDim + 16];
    float least = 0;
    bool first = true;
    for (float factor : {0.7f, 0.8f, 0.9f, 1.0f, 1.1f, 1.2f, 1.3f}) {
        uint16_t bits;
        const float s = half_of(unit * factor, &bits);
        place(r, y, dim, s, tried);
        for (int i = 0; i < dim; i++) apart[i] = y[i] - r.level[tried[i]] * s;
        const float error = sum16(apart, dim, [](VF v, VF a) { return fma(v, v, a); });
        if (!first && !(error < least)) continue;
        first = false;
        least = error;
        *scale = bits;
        std::memcpy(codes, tried, static_cast<size_t>(dim));
    }
}

// A row of one head as codes, one byte each, and its scale.
void encode_row(const float* x, int dim, Kind kind, bool key, uint8_t* codes, uint16_t* scale) {
    static const Rising<8> values(kValueLevels);
    static const Rising<16> keys(kKeyLevels);
    alignas(64) float y[kMostDim + 16] = {};
    alignas(64) uint8_t out[kMostDim + 16];
    for (int i = 0; i < dim; i++) y[i] = within_half(splat(x[i]))[0];
    rotate(y, 1, dim);
    if (kind == Kind::int8) {
        float most = 0;
        for (int i = 0; i < dim; i++) most = std::fabs(y[i]) > most ? std::fabs(y[i]) : most;
        const float s = half_of(most / 127.0f, scale);
        for (int i = 0; i < dim; i++) {
            const float q = s > 0 ? std::nearbyint(y[i] / s) : 0.0f;
            codes[i] = static_cast<uint8_t>(static_cast<int8_t>(q > 127 ? 127 : q < -127 ? -127 : q));
        }
        return;
    }
    if (!key) {
        encode_levels(values, y, dim, kValueUnit, out, scale);
        std::memcpy(codes, out, static_cast<size_t>(dim));
        return;
    }
    encode_levels(keys, y, dim, kKeyUnit, out, scale);
    for (int i = 0; i < dim; i++) codes[i] = static_cast<uint8_t>(out[i] < 16 ? 31 - out[i] : out[i] - 16);
}

// ---- attention over codes --------------------------------------------------------------------------------------------

inline VF with_sign(VF v, VI signs, int bit) {  // minus where the bit is set
    return reinterpret_cast<VF>(reinterpret_cast<VI>(v) ^ ((signs << (31 - bit)) & splat(INT32_MIN)));
}

// acc += level * query of one dimension, for a block of 16 rows.
template <int NQ> __attribute__((always_inline)) inline void add_dimension(const float* const* q, int d, const VF* level, VF (*acc)[UNITS]) {
#pragma GCC unroll 8
    for (int i = 0; i < NQ; i++)
#pragma GCC unroll 4
        for (int u = 0; u < UNITS; u++) acc[i][u] = fma(level[u], splat(q[i][d]), acc[i][u]);
}

template <int NQ, int NB, Kind KIND> inline void score_blocks(const AttendTile& a, int first, int64_t block) {
    const int D = (a.head_dim + 7) / 8 * 8;  // the queries go on with zeros
    const size_t step = a.kv.key_block;
    const uint8_t* k = a.kv.k + static_cast<size_t>(block) * step;
    const float* q[NQ];
    for (int i = 0; i < NQ; i++) q[i] = a.q[first + i];
    VF acc[NB][NQ][UNITS] = {};
    if constexpr (KIND == Kind::int8) {
        for (int d = 0; d < D; d += 4) {
#pragma GCC unroll 4
            for (int b = 0; b < NB; b++) {
                const uint8_t* codes = k + b * step + d * 16;
                if (NQ <= 4) __builtin_prefetch(codes + 2 * NB * step);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    VF level[UNITS];
                    for (int u = 0; u < UNITS; u++) level[u] = to_float(load_s8(codes + j * 16 + u * LANES));
                    add_dimension<NQ>(q, d + j, level, acc[b]);
                }
            }
        }
    } else {
        const Levels table = levels_of(kKeyLevels);
        for (int d = 0; d < D; d += 8) {
#pragma GCC unroll 4
            for (int b = 0; b < NB; b++) {
                const uint8_t *codes = k + b * step + d * 8, *bits = k + b * step + D * 8 + d * 2;
                if (NQ <= 4) __builtin_prefetch(codes + 2 * NB * step);
                VI signs[UNITS];
                for (int u = 0; u < UNITS; u++) signs[u] = load_u8(bits + u * LANES);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    VF low[UNITS], high[UNITS];
                    levels16(codes + j * 16, table, low, high);
                    for (int u = 0; u < UNITS; u++) {
                        low[u] = with_sign(low[u], signs[u], 2 * j);
                        high[u] = with_sign(high[u], signs[u], 2 * j + 1);
                    }
                    add_dimension<NQ>(q, d + 2 * j, low, acc[b]);
                    add_dimension<NQ>(q, d + 2 * j + 1, high, acc[b]);
                }
            }
        }
    }
    for (int b = 0; b < NB; b++) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(k + (b + 1) * step - 32);
        for (int u = 0; u < UNITS; u++) {
            const VF scale = load_half(scales + u * LANES);
            for (int i = 0; i < NQ; i++) {
                VF s = acc[b][i][u] * scale * splat(a.scale);
                if (a.cap > 0) s = splat(a.cap) * tanh(s / splat(a.cap));
                store(a.scores + (first + i) * a.stride + (block + b) * 16 + u * LANES, s);
            }
        }
    }
}

template <int NQ, Kind KIND> void score_kind(const AttendTile& a, int first, int64_t b, int64_t b1) {
    constexpr int fit = (LANES == 8 ? 8 : 16) / (NQ * UNITS), NB = fit >= 4 ? 4 : fit >= 2 ? 2 : 1;  // sums in flight
    for (; b + NB <= b1; b += NB) score_blocks<NQ, NB, KIND>(a, first, b);
    for (; b < b1; b++) score_blocks<NQ, 1, KIND>(a, first, b);
}

template <int NQ> void score_codes(const AttendTile& a, int first, int64_t b0, int64_t b1) {
    if (a.kv.kind == Kind::int8) score_kind<NQ, Kind::int8>(a, first, b0, b1);
    else score_kind<NQ, Kind::int4>(a, first, b0, b1);
}

// Weights times the scales of their rows, from block b0 to b1.
inline void scale_weights(const AttendTile& a, float* s, int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; b++) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(a.kv.v + static_cast<size_t>(b + 1) * a.kv.value_block - 32);
        for (int u = 0; u < UNITS; u++) store(s + b * 16 + u * LANES, load(s + b * 16 + u * LANES) * load_half(scales + u * LANES));
    }
}

// 32 dimensions of a row of values.
template <Kind KIND> __attribute__((always_inline)) inline void values32(const uint8_t* p, const Levels& table, VF* v) {
    if constexpr (KIND == Kind::int4) levels16(p, table, v, v + UNITS);
    else
        for (int u = 0; u < 2 * UNITS; u++) v[u] = to_float(load_s8(p + u * LANES));
}

// out += sum over rows [t0, t1) in order of weight * level, NG * 32 dimensions from d on.
template <int NQ, int NG, Kind KIND> inline void mix_groups(const AttendTile& a, int first, int64_t t0, int64_t t1, bool fresh, int d) {
    constexpr int NV = NG * 2 * UNITS, BYTES = KIND == Kind::int4 ? 16 : 32;  // of 32 dimensions
    const size_t row = (a.kv.value_block - 32) / 16;
    float rising[16];
    for (int i = 0; i < 8; i++) {
        rising[i] = -kValueLevels[7 - i];
        rising[8 + i] = kValueLevels[i];
    }
    const Levels table = levels_of(rising);
    const float* weights[NQ];
    for (int i = 0; i < NQ; i++) weights[i] = a.scores + (first + i) * a.stride;
    VF acc[NQ][NV];
    for (int i = 0; i < NQ; i++)
        for (int j = 0; j < NV; j++) acc[i][j] = fresh ? VF{} : load(a.out[first + i] + d + j * LANES);
    for (int64_t t = t0; t < t1;) {
        const int64_t end = t / 16 * 16 + 16 < t1 ? t / 16 * 16 + 16 : t1;
        const uint8_t* p = a.kv.v + static_cast<size_t>(t / 16) * a.kv.value_block + (t % 16) * row + d / 32 * BYTES;
        for (; t < end; t++, p += row) {
            if (NQ <= 4) __builtin_prefetch(p + 16 * row);
            VF v[NV];
#pragma GCC unroll 2
            for (int g = 0; g < NG; g++) values32<KIND>(p + g * BYTES, table, v + g * 2 * UNITS);
#pragma GCC unroll 8
            for (int i = 0; i < NQ; i++)
#pragma GCC unroll 8
                for (int j = 0; j < NV; j++) acc[i][j] = fma(v[j], splat(weights[i][t]), acc[i][j]);
        }
    }
    for (int i = 0; i < NQ; i++)
        for (int j = 0; j < NV; j++) store(a.out[first + i] + d + j * LANES, acc[i][j]);
}

template <int NQ, Kind KIND> void mix_kind(const AttendTile& a, int first, int64_t t0, int64_t t1, bool fresh) {
    constexpr int NG = LANES == 16 && NQ <= 4 ? 2 : 1;
    int d = 0;
    for (; d + NG * 32 <= a.head_dim; d += NG * 32) mix_groups<NQ, NG, KIND>(a, first, t0, t1, fresh, d);
    for (; d < a.head_dim; d += 32) mix_groups<NQ, 1, KIND>(a, first, t0, t1, fresh, d);
}

template <int NQ> void mix_codes(const AttendTile& a, int first, int64_t t0, int64_t t1, bool fresh) {
    if (a.kv.kind == Kind::int8) mix_kind<NQ, Kind::int8>(a, first, t0, t1, fresh);
    else mix_kind<NQ, Kind::int4>(a, first, t0, t1, fresh);
}

constexpr int kScoreQueries = LANES == 16 ? 8 : 4, kMixQueries = LANES == 16 ? 8 : LANES == 8 ? 2 : 3;  // as registers allow

template <int MOST, typename F> inline void by_queries(int n, F f) {  // f(first, constant number of queries)
    for (int first = 0; first < n; first += MOST) {
        const int now = n - first < MOST ? n - first : MOST;
        switch (now) {
            case 1: f(first, std::integral_constant<int, 1>()); break;
            case 2: f(first, std::integral_constant<int, 2>()); break;
            case 3: if constexpr (MOST >= 3) f(first, std::integral_constant<int, 3>()); break;
            case 4: if constexpr (MOST >= 4) f(first, std::integral_constant<int, 4>()); break;
            case 5: if constexpr (MOST >= 5) f(first, std::integral_constant<int, 5>()); break;
            case 6: if constexpr (MOST >= 6) f(first, std::integral_constant<int, 6>()); break;
            case 7: if constexpr (MOST >= 7) f(first, std::integral_constant<int, 7>()); break;
            default: if constexpr (MOST >= 8) f(first, std::integral_constant<int, 8>()); break;
        }
    }
}

inline void score_codes_of(const AttendTile& a, int64_t b0, int64_t b1) {
    by_queries<kScoreQueries>(a.n, [&](int first, auto n) { score_codes<decltype(n)::value>(a, first, b0, b1); });
}

inline void mix_codes_of(const AttendTile& a, int64_t t0, int64_t t1, bool fresh) {
    by_queries<kMixQueries>(a.n, [&](int first, auto n) { mix_codes<decltype(n)::value>(a, first, t0, t1, fresh); });
}

}  // namespace
