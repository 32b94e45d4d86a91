// The kernels, written once over the vector unit of simd.h. Each kernels_*.cpp compiles this file for one instruction set.
#include <cmath>
#include <type_traits>

#include "genmote.h"
#include "matmul.h"
#include "simd.h"

namespace {
using namespace genmote;

// ---- float matrices --------------------------------------------------------------------------------------------------

template <int TYPE> inline VF load_weight(const uint8_t* p, int64_t i) {
    if constexpr (TYPE == F32) return load(reinterpret_cast<const float*>(p) + i);
    else if constexpr (TYPE == F16) return load_half(reinterpret_cast<const uint16_t*>(p) + i);
    else return load_bf16(reinterpret_cast<const uint16_t*>(p) + i);
}

// NP panels x NT rows at a time; each row's sum runs over the columns in order.
template <int TYPE, int NP, int NT> void float_tile(const Matrix& w, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t p) {
    for (int u = 0; u < UNITS; u++) {
        VF acc[NP][NT] = {};
        const uint8_t* base[NP];
        for (int i = 0; i < NP; i++) base[i] = w.panel(p + i);
        for (int64_t k = 0; k < w.cols; k++)
            for (int i = 0; i < NP; i++) {
                VF v = load_weight<TYPE>(base[i], k * kPanel + u * LANES);
                for (int t = 0; t < NT; t++) acc[i][t] = fma(v, splat(x[t * ldx + k]), acc[i][t]);
            }
        for (int i = 0; i < NP; i++)
            for (int t = 0; t < NT; t++) store(y + t * ldy + (p + i) * kPanel + u * LANES, acc[i][t]);
    }
}

template <int TYPE> void float_type(const Matrix& w, const float* x, int64_t ldx, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1) {
    int64_t t = 0;
    if (p1 - p0 == 1)
        for (; t + 8 <= T; t += 8) float_tile<TYPE, 1, 8>(w, x + t * ldx, ldx, y + t * ldy, ldy, p0);
    for (; t + 4 <= T; t += 4)
        for (int64_t p = p0; p < p1;) {
            if (p + 2 <= p1) { float_tile<TYPE, 2, 4>(w, x + t * ldx, ldx, y + t * ldy, ldy, p); p += 2; }
            else { float_tile<TYPE, 1, 4>(w, x + t * ldx, ldx, y + t * ldy, ldy, p); p += 1; }
        }
    for (; t < T; t++)
        for (int64_t p = p0; p < p1;) {
            if (p + 8 <= p1) { float_tile<TYPE, 8, 1>(w, x + t * ldx, ldx, y + t * ldy, ldy, p); p += 8; }
            else { float_tile<TYPE, 1, 1>(w, x + t * ldx, ldx, y + t * ldy, ldy, p); p += 1; }
        }
}

void matmul_float(const Matrix& w, const float* x, int64_t ldx, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1) {
    if (w.type == F32) float_type<F32>(w, x, ldx, T, y, ldy, p0, p1);
    else if (w.type == F16) float_type<F16>(w, x, ldx, T, y, ldy, p0, p1);
    else float_type<BF16>(w, x, ldx, T, y, ldy, p0, p1);
}

template <int TYPE> void float_row(const Matrix& w, int64_t row, float* out) {
    const uint8_t* panel = w.panel(row / kPanel);
    const int unit = static_cast<int>(row % kPanel / LANES), lane = static_cast<int>(row % LANES);
    for (int64_t k = 0; k < w.cols; k++) out[k] = load_weight<TYPE>(panel, k * kPanel + unit * LANES)[lane];
}

void dequantise_row(const Matrix& w, int64_t row, float* out) {
    switch (w.type) {
#define GENMOTE_CASE(T_) case T_: return row_type<T_>(w, row, out);
        GENMOTE_EACH_TYPE(GENMOTE_CASE)
#undef GENMOTE_CASE
        case F32: return float_row<F32>(w, row, out);
        case F16: return float_row<F16>(w, row, out);
        case BF16: return float_row<BF16>(w, row, out);
    }
}

// ---- rows of floats --------------------------------------------------------------------------------------------------

void quantise_row(const float* x, int64_t n, Group* out) {
    constexpr int N = kGroup / LANES;
    typedef int8_t V8 __attribute__((vector_size(LANES)));
    const VF magic = splat(12582912.0f);
    for (int64_t g = 0; g < n / kGroup; g++, x += kGroup) {
        VF v[N];
        VI top = {};  // sizes as integers: their order is that of the floats, and NaN comes last
        for (int i = 0; i < N; i++) {
            v[i] = load(x + i * LANES);
            const VI size = reinterpret_cast<VI>(v[i]) & splat(0x7fffffff);
            top = size > top ? size : top;
        }
        const int32_t bits = largest(top);
        float most;
        std::memcpy(&most, &bits, 4);
        if (bits >= 0x7f800000) {  // infinity or NaN: the scale says so
            most = NAN;
            for (VF& part : v) part = VF{};
        }
        const float inverse = most >= 1e-30f ? 127.0f / most : 0.0f;  // below, the inverse overflows: the group is zero
        Group& o = out[g];
        VI half[2] = {};
        for (int i = 0; i < N; i++) {
            VI q = reinterpret_cast<VI>(v[i] * splat(inverse) + magic) - splat(0x4b400000);
            V8 bytes = __builtin_convertvector(q, V8);
            std::memcpy(o.q + i * LANES, &bytes, LANES);
            half[2 * i / N] += q;
        }
        const int32_t lo = total(half[0]), hi = total(half[1]);
        o.d = most / 127.0f;
        o.nlo = -lo;
        o.nhi = -hi;
        o.nsum = -(lo + hi);
        o.dlo = o.d * static_cast<float>(lo);
        o.dhi = o.d * static_cast<float>(hi);
        o.dsum = o.d * static_cast<float>(lo + hi);
        o.pad = 0;
    }
}

// Sum of f(x_i) over 16 interleaved partial sums; the tail is padded with zeros.
template <typename F> inline float sum16(const float* x, int64_t n, F f) {
    VF acc[UNITS] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int u = 0; u < UNITS; u++) acc[u] = f(load(x + i + u * LANES), acc[u]);
    alignas(64) float s[16], tail[16] = {};
    if (i < n) {
        std::memcpy(tail, x + i, static_cast<size_t>(n - i) * 4);
        for (int u = 0; u < UNITS; u++) {
            VF v = f(load(tail + u * LANES), acc[u]);
            VF valid;
            for (int l = 0; l < LANES; l++) valid[l] = i + u * LANES + l < n ? 1.0f : 0.0f;
            acc[u] = valid > VF{} ? v : acc[u];
        }
    }
    for (int u = 0; u < UNITS; u++) store(s + u * LANES, acc[u]);
    return tree16(s);
}

// y_i = f(x_i, i) in whole units, the tail through a buffer.
template <typename F> inline void each(const float* x, int64_t n, float* y, F f) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, f(load(x + i), i));
    if (i < n) {
        alignas(64) float t[16] = {};
        std::memcpy(t, x + i, static_cast<size_t>(n - i) * 4);
        store(t, f(load(t), i));
        std::memcpy(y + i, t, static_cast<size_t>(n - i) * 4);
    }
}

inline VF load_tail(const float* p, int64_t i, int64_t n) {
    if (i + LANES <= n) return load(p + i);
    alignas(64) float t[16] = {};
    std::memcpy(t, p + i, static_cast<size_t>(n - i) * 4);
    return load(t);
}

void rms_norm(const float* x, const float* gain, int64_t n, float eps, float* y) {
    float ss = sum16(x, n, [](VF v, VF a) { return fma(v, v, a); });
    float inverse = 1.0f / std::sqrt(ss / static_cast<float>(n) + eps);
    each(x, n, y, [&](VF v, int64_t i) { return v * splat(inverse) * load_tail(gain, i, n); });
}

void layer_norm(const float* x, const float* gain, const float* bias, int64_t n, float eps, float* y) {
    float mean = sum16(x, n, [](VF v, VF a) { return a + v; }) / static_cast<float>(n);
    float ss = sum16(x, n, [&](VF v, VF a) { VF c = v - splat(mean); return fma(c, c, a); });
    float inverse = 1.0f / std::sqrt(ss / static_cast<float>(n) + eps);
    each(x, n, y, [&](VF v, int64_t i) {
        VF g = (v - splat(mean)) * splat(inverse) * load_tail(gain, i, n);
        return bias ? g + load_tail(bias, i, n) : g;
    });
}

inline VF act(VF v, Act kind) {
    switch (kind) {
        case Act::silu: return v / (splat(1.0f) + exp(VF{} - v));
        case Act::gelu: {
            VF inner = splat(0.7978845608f) * (v + splat(0.044715f) * v * v * v);
            return splat(0.5f) * v * (splat(1.0f) + tanh(inner));
        }
        default: return vmax(v, VF{});
    }
}

void glu(const float* gate, const float* up, int64_t n, Act kind, float* y) {
    each(gate, n, y, [&](VF v, int64_t i) { return act(v, kind) * load_tail(up, i, n); });
}

void add(const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i++) y[i] += x[i];
}

void add_scaled(const float* x, int64_t n, float factor, float* y) {
    for (int64_t i = 0; i < n; i++) y[i] += factor * x[i];
}

template <bool INTERLEAVED> inline void rope_heads(float* __restrict x, int heads, int dim, const float* __restrict cos, const float* __restrict sin, int64_t half) {
    for (int h = 0; h < heads; h++, x += dim)
        for (int64_t i = 0; i < half; i++) {
            float &a = x[INTERLEAVED ? 2 * i : i], &b = x[INTERLEAVED ? 2 * i + 1 : i + half];
            const float a0 = a, b0 = b;
            a = a0 * cos[i] - b0 * sin[i];
            b = b0 * cos[i] + a0 * sin[i];
        }
}

void rope(float* x, int heads, int dim, const float* cos, const float* sin, int64_t half, bool interleaved) {
    if (interleaved) rope_heads<true>(x, heads, dim, cos, sin, half);
    else rope_heads<false>(x, heads, dim, cos, sin, half);
}

void soft_cap(const float* x, int64_t n, float cap, float* y) {
    each(x, n, y, [&](VF v, int64_t) { return splat(cap) * tanh(v / splat(cap)); });
}

void activate(const float* x, int64_t n, Act kind, float* y) {
    each(x, n, y, [&](VF v, int64_t) { return act(v, kind); });
}

void softmax(float* x, int64_t n) {
    float top = x[0];
    for (int64_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    each(x, n, x, [&](VF v, int64_t) { return exp(v - splat(top)); });
    float inverse = 1.0f / sum16(x, n, [](VF v, VF a) { return a + v; });
    each(x, n, x, [&](VF v, int64_t) { return v * splat(inverse); });
}

// Values beyond float16's range become its largest: an infinity would reach rows that give it no weight (0 * inf).
inline VF within_half(VF v) {
    const VF top = splat(65504.0f);
    v = v < top ? v : top;
    return v > VF{} - top ? v : VF{} - top;
}

void to_half(const float* x, int64_t n, uint16_t* y) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store_half(y + i, within_half(load(x + i)));
    if (i < n) {
        alignas(64) float t[16] = {};
        uint16_t h[16];
        std::memcpy(t, x + i, static_cast<size_t>(n - i) * 4);
        store_half(h, within_half(load(t)));
        std::memcpy(y + i, h, static_cast<size_t>(n - i) * 2);
    }
}

}  // namespace
#include "kv_codes.h"
namespace {

// ---- attention -------------------------------------------------------------------------------------------------------

// Scores of NQ queries against NB blocks of 16 rows: each score is a chain over the head's dimensions in order.
template <int NQ, int NB> inline void score_blocks(const AttendTile& a, int64_t block) {
    const int D = a.head_dim;
    for (int u = 0; u < UNITS; u++) {
        VF acc[NQ][NB] = {};
        const uint16_t* k = a.kv.key_halves() + block * D * 16 + u * LANES;
        for (int d = 0; d < D; d++) {
            VF kv[NB];
            for (int b = 0; b < NB; b++) {
                if (NQ <= 4) __builtin_prefetch(k + ((b + 2 * NB) * D + d) * 16);
                kv[b] = load_half(k + (b * D + d) * 16);
            }
#pragma GCC unroll 8
            for (int i = 0; i < NQ; i++)
                for (int b = 0; b < NB; b++) acc[i][b] = fma(kv[b], splat(a.q[i][d]), acc[i][b]);
        }
        for (int i = 0; i < NQ; i++)
            for (int b = 0; b < NB; b++) {
                VF s = acc[i][b] * splat(a.scale);
                if (a.cap > 0) s = splat(a.cap) * tanh(s / splat(a.cap));
                store(a.scores + i * a.stride + (block + b) * 16 + u * LANES, s);
            }
    }
}

struct Reach {  // the rows that any of a tile's queries sees
    int64_t begin, end;
};

inline Reach reach(const AttendTile& a) {
    Reach r{a.begin[0], a.end[0]};
    for (int i = 1; i < a.n; i++) {
        r.begin = a.begin[i] < r.begin ? a.begin[i] : r.begin;
        r.end = a.end[i] > r.end ? a.end[i] : r.end;
    }
    return r;
}

template <int NQ> void score(const AttendTile& a, int64_t b, int64_t b1) {
    constexpr int NB = NQ <= 2 ? 4 : NQ <= 4 || LANES == 16 ? 2 : 1;  // sums in flight, as registers allow
    for (; b + NB <= b1; b += NB) score_blocks<NQ, NB>(a, b);
    for (; b < b1; b++) score_blocks<NQ, 1>(a, b);
}

// Scores to weights over the rows that the query sees; the others in [b0, b1) blocks get weight 0. One over the sum.
inline float weigh(float* s, int64_t begin, int64_t end, int64_t b0, int64_t b1) {
    for (int64_t t = b0 * 16; t < begin; t++) s[t] = -INFINITY;
    for (int64_t t = end; t < b1 * 16; t++) s[t] = -INFINITY;
    VF top[UNITS], sum[UNITS] = {};
    for (int u = 0; u < UNITS; u++) top[u] = splat(-INFINITY);
    for (int64_t t = b0 * 16; t < b1 * 16; t += 16)
        for (int u = 0; u < UNITS; u++) top[u] = vmax(top[u], load(s + t + u * LANES));
    float most = -INFINITY;
    for (int u = 0; u < UNITS; u++)
        for (int l = 0; l < LANES; l++) most = top[u][l] > most ? top[u][l] : most;
    for (int64_t t = b0 * 16; t < b1 * 16; t += 16)
        for (int u = 0; u < UNITS; u++) {
            VF e = exp(load(s + t + u * LANES) - splat(most));
            store(s + t + u * LANES, e);
            sum[u] += e;
        }
    alignas(64) float parts[16];
    for (int u = 0; u < UNITS; u++) store(parts + u * LANES, sum[u]);
    return 1.0f / tree16(parts);
}

// out += sum over rows [t0, t1) in order of weight * v; `fresh`: out = 0 first.
template <int NQ> void mix(const AttendTile& a, int64_t t0, int64_t t1, bool fresh) {
    const int D = a.head_dim;
    const uint16_t* values = a.kv.value_halves();
    constexpr int NV = NQ <= 4 ? 4 : 2;
    int d = 0;
    for (; d + NV * LANES <= D; d += NV * LANES) {
        VF acc[NQ][NV];
        for (int i = 0; i < NQ; i++)
            for (int j = 0; j < NV; j++) acc[i][j] = fresh ? VF{} : load(a.out[i] + d + j * LANES);
        for (int64_t t = t0; t < t1; t++) {
            VF v[NV];
            if (NQ <= 4)
                for (int j = 0; j < NV * LANES; j += 32) __builtin_prefetch(values + (t + 16) * D + d + j);
            for (int j = 0; j < NV; j++) v[j] = load_half(values + t * D + d + j * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < NQ; i++)
                for (int j = 0; j < NV; j++) acc[i][j] = fma(v[j], splat(a.scores[i * a.stride + t]), acc[i][j]);
        }
        for (int i = 0; i < NQ; i++)
            for (int j = 0; j < NV; j++) store(a.out[i] + d + j * LANES, acc[i][j]);
    }
    for (; d < D; d += LANES) {  // the rest of the head, in single units
        const size_t n = static_cast<size_t>(D - d < LANES ? D - d : LANES);
        for (int i = 0; i < NQ; i++) {
            VF acc{};
            if (!fresh) std::memcpy(&acc, a.out[i] + d, n * 4);
            for (int64_t t = t0; t < t1; t++) {
                uint16_t h[LANES] = {};
                std::memcpy(h, values + t * D + d, n * 2);
                acc = fma(load_half(h), splat(a.scores[i * a.stride + t]), acc);
            }
            std::memcpy(a.out[i] + d, &acc, n * 4);
        }
    }
}

#define GENMOTE_BY_QUERIES(n, CALL)                                                                                        \
    switch (n) {                                                                                                           \
        case 1: CALL(1); break;                                                                                            \
        case 2: CALL(2); break;                                                                                            \
        case 3: CALL(3); break;                                                                                            \
        case 4: CALL(4); break;                                                                                            \
        case 5: CALL(5); break;                                                                                            \
        case 6: CALL(6); break;                                                                                            \
        case 7: CALL(7); break;                                                                                            \
        default: CALL(8); break;                                                                                           \
    }

constexpr int64_t kRows = 256;  // rows of keys or values that all tiles use while they are in the first-level caches

// Tiles that share keys and values. However the rows are cut, each query's sums run over them in order.
void attend(const AttendTile* tiles, int count) {
    Reach all = reach(tiles[0]);
    for (int k = 1; k < count; k++) {
        const Reach r = reach(tiles[k]);
        all.begin = r.begin < all.begin ? r.begin : all.begin;
        all.end = r.end > all.end ? r.end : all.end;
    }
    const bool codes = tiles[0].kv.kind != Kind::f16;
    auto first_block = [](const Reach& r) { return r.begin / 16; };
    auto last_block = [](const Reach& r) { return (r.end + 15) / 16; };
    auto most = [](int64_t a, int64_t b) { return a > b ? a : b; };
    auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
    for (int64_t t = all.begin / kRows * kRows; t < all.end; t += kRows)
        for (int k = 0; k < count; k++) {
            const Reach r = reach(tiles[k]);
            const int64_t b0 = most(first_block(r), t / 16), b1 = least(last_block(r), (t + kRows) / 16);
#define GENMOTE_SCORE(N) score<N>(tiles[k], b0, b1)
            if (b0 >= b1) continue;
            if (codes) score_codes_of(tiles[k], b0, b1);
            else GENMOTE_BY_QUERIES(tiles[k].n, GENMOTE_SCORE)
#undef GENMOTE_SCORE
        }
    float inverse[kMaxTiles][kMaxQueries];
    for (int k = 0; k < count; k++) {
        const AttendTile& a = tiles[k];
        const Reach r = reach(a);
        for (int i = 0; i < a.n; i++) {
            inverse[k][i] = weigh(a.scores + i * a.stride, a.begin[i], a.end[i], first_block(r), last_block(r));
            if (codes) scale_weights(a, a.scores + i * a.stride, first_block(r), last_block(r));
        }
    }
    for (int64_t t = all.begin / kRows * kRows; t < all.end; t += kRows)
        for (int k = 0; k < count; k++) {
            const Reach r = reach(tiles[k]);
            const int64_t t0 = most(r.begin, t), t1 = least(r.end, t + kRows);
#define GENMOTE_MIX(N) mix<N>(tiles[k], t0, t1, t0 == r.begin)
            if (t0 >= t1) continue;
            if (codes) mix_codes_of(tiles[k], t0, t1, t0 == r.begin);
            else GENMOTE_BY_QUERIES(tiles[k].n, GENMOTE_MIX)
#undef GENMOTE_MIX
        }
    for (int k = 0; k < count; k++)
        for (int i = 0; i < tiles[k].n; i++)
            for (int d = 0; d < tiles[k].head_dim; d++) tiles[k].out[i][d] *= inverse[k][i];
}

}  // namespace
#include "gradients.h"

#define GENMOTE_KERNELS(VARIABLE, NAME)                                                                                    \
    namespace genmote {                                                                                                    \
    extern const Kernels VARIABLE;                                                                                         \
    const Kernels VARIABLE = {NAME, quantise_row, matmul, matmul_float, dequantise_row, rms_norm, layer_norm, glu,         \
                              activate, add, add_scaled, rope, soft_cap, softmax, attend, to_half, rotate, encode_row,       \
                              matmul_back, outer, spell_all, product_with, attend_back, norm_back, gain_back, glu_back,     \
                              activate_back, soft_cap_back, cross_entropy};                                                 \
    }
