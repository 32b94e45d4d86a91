// The kernels, written once over the vector unit of simd.h. Each kernels_*.cpp compiles this file for one instruction set.
#include <cmath>

#include "genmote.h"
#include "simd.h"

namespace {
using namespace genmote;

// ---- quantised matrices ----------------------------------------------------------------------------------------------

alignas(16) const uint8_t kCodebook[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};  // IQ4_NL values + 128

template <int TYPE> struct Traits;
//                                                  bits of a code; nibble, two-bit and one-bit plane; shift of the offset (-1: none)
#define GENMOTE_TRAITS(T, BITS, NIB, TWO, ONE, SHIFT, HALF, SUPER, MIN, BYTES)                                              \
    template <> struct Traits<T> {                                                                                          \
        static constexpr int bits = BITS, shift = SHIFT < 0 ? 0 : SHIFT, bytes = BYTES;                                     \
        static constexpr bool nib = NIB, two = TWO, one = ONE, offset = SHIFT >= 0, half = HALF, super = SUPER, min = MIN;  \
    };
GENMOTE_TRAITS(Q4_0, 4, 1, 0, 0, 3, 0, 0, 0, 256)
GENMOTE_TRAITS(Q4_1, 4, 1, 0, 0, -1, 0, 0, 1, 256)
GENMOTE_TRAITS(Q5_0, 5, 1, 0, 1, 4, 0, 0, 0, 320)
GENMOTE_TRAITS(Q5_1, 5, 1, 0, 1, -1, 0, 0, 1, 320)
GENMOTE_TRAITS(Q8_0, 8, 0, 0, 0, 7, 0, 0, 0, 512)
GENMOTE_TRAITS(IQ4_NL, 8, 1, 0, 0, 7, 0, 0, 0, 256)
GENMOTE_TRAITS(Q2_K, 2, 0, 1, 0, -1, 1, 1, 1, 128)
GENMOTE_TRAITS(Q3_K, 3, 0, 1, 1, 2, 1, 1, 0, 192)
GENMOTE_TRAITS(Q4_K, 4, 1, 0, 0, -1, 0, 1, 1, 256)
GENMOTE_TRAITS(Q5_K, 5, 1, 0, 1, -1, 0, 1, 1, 320)
GENMOTE_TRAITS(Q6_K, 6, 1, 1, 0, 5, 1, 1, 0, 384)
#undef GENMOTE_TRAITS

inline VB codebook() {
    VB t;
    for (int i = 0; i < UB; i += 16) std::memcpy(reinterpret_cast<uint8_t*>(&t) + i, kCodebook, 16);
    return t;
}

// The eight quads of a group, one unit (LANES rows) of them; p points at the unit's bytes in the group's first vector.
template <int TYPE> inline void unpack(const uint8_t* p, VB* q) {
    using T = Traits<TYPE>;
    if constexpr (TYPE == Q8_0) {
        for (int j = 0; j < 8; j++) q[j] = load(p + 64 * j);
        return;
    }
    if constexpr (T::nib) {
        for (int j = 0; j < 4; j++) {
            VB v = load(p + 64 * j);
            q[j] = v & 15;
            q[j + 4] = v >> 4;
        }
        if constexpr (TYPE == IQ4_NL) {
            VB table = codebook();
            for (int j = 0; j < 8; j++) q[j] = lookup(table, q[j]);
        }
        p += 256;
    }
    if constexpr (T::two) {
        VB a = load(p), b = load(p + 64);
        for (int j = 0; j < 4; j++) {
            VB u = (a >> (2 * j)) & 3, v = (b >> (2 * j)) & 3;
            if constexpr (T::nib) {
                q[2 * j] |= u << 4;
                q[2 * j + 1] |= v << 4;
            } else {
                q[2 * j] = u;
                q[2 * j + 1] = v;
            }
        }
        p += 128;
    }
    if constexpr (T::one) {
        VB a = load(p);
        constexpr int at = T::nib ? 4 : 2;
        for (int j = 0; j < 8; j++) q[j] |= ((a >> j) & 1) << at;
    }
}

// Where a panel's scales lie, and their value for group g: s[0] (and s[1] of the second half), m likewise.
template <int TYPE> struct Scales {
    using T = Traits<TYPE>;
    const uint8_t *d, *m, *s, *i;
    inline Scales(const uint8_t* panel, int64_t groups) {
        size_t blocks = static_cast<size_t>(T::super ? groups / 8 : groups);
        d = panel + static_cast<size_t>(groups) * T::bytes;
        m = d + blocks * 32;
        s = m + (T::min ? blocks * 32 : 0);
        i = s + blocks * (T::half ? 16 : 8) * kPanel;
    }
    inline void at(int64_t g, int unit, VF* sv, VF* mv) const {
        const int o = unit * LANES;
        if constexpr (!T::super) {
            sv[0] = load_half(reinterpret_cast<const uint16_t*>(d + g * 32) + o);
            if constexpr (T::min) mv[0] = load_half(reinterpret_cast<const uint16_t*>(m + g * 32) + o);
        } else {
            VF dv = load_half(reinterpret_cast<const uint16_t*>(d + g / 8 * 32) + o), dm{};
            if constexpr (T::min) dm = VF{} - load_half(reinterpret_cast<const uint16_t*>(m + g / 8 * 32) + o);
            if constexpr (TYPE == Q2_K) {
                for (int h = 0; h < 2; h++) {
                    const uint8_t* p = s + (2 * g + h) * kPanel + o;
                    uint8_t lo[LANES], hi[LANES];
                    for (int l = 0; l < LANES; l++) { lo[l] = p[l] & 15; hi[l] = p[l] >> 4; }
                    VF a, b;
                    for (int l = 0; l < LANES; l++) { a[l] = lo[l]; b[l] = hi[l]; }
                    sv[h] = dv * a;
                    mv[h] = dm * b;
                }
            } else if constexpr (T::half) {
                sv[0] = dv * load_s8(s + (2 * g) * kPanel + o);
                sv[1] = dv * load_s8(s + (2 * g + 1) * kPanel + o);
            } else {
                sv[0] = dv * load_u8(s + g * kPanel + o);
                mv[0] = dm * load_u8(i + g * kPanel + o);
            }
        }
    }
};

// acc += the group's contribution. The one place that says in which order a row's floats are added.
template <int TYPE> inline VF accumulate(VF acc, const VB* q, const Group& x, const VF* s, const VF* m) {
    using T = Traits<TYPE>;
    if constexpr (T::half) {
        VI a = dot<T::bits, 4>(q, x.q, x.nlo, T::shift, T::offset), b = dot<T::bits, 4>(q + 4, x.q + 16, x.nhi, T::shift, T::offset);
        acc = fma(to_float(a), s[0] * splat(x.d), acc);
        acc = fma(to_float(b), s[1] * splat(x.d), acc);
        if constexpr (T::min) {
            acc = fma(m[0], splat(x.dlo), acc);
            acc = fma(m[1], splat(x.dhi), acc);
        }
    } else {
        VI a = dot<T::bits, 8>(q, x.q, x.nsum, T::shift, T::offset);
        acc = fma(to_float(a), s[0] * splat(x.d), acc);
        if constexpr (T::min) acc = fma(m[0], splat(x.dsum), acc);
    }
    return acc;
}

constexpr size_t kAhead = 8192;  // bytes: how far before their use weights are fetched; hardware stops at each page of 4096

constexpr int64_t kCached = 512 * 1024;  // bytes of activations that are reused from the second-level cache

// A few rows of activations: weights go from memory into the sums, nothing is kept.
template <int TYPE, int TN> void stream(const Matrix& w, const Group* x, float* y, int64_t ldy, int64_t p0, int64_t p1) {
    using T = Traits<TYPE>;
    const int64_t groups = w.cols / kGroup;
    const size_t step = panel_bytes(TYPE, w.cols) / static_cast<size_t>(groups);
    for (int64_t p = p0; p < p1; p++) {
        const uint8_t* panel = w.panel(p);
        Scales<TYPE> scales(panel, groups);
        VF acc[UNITS][TN] = {};
        for (int64_t g = 0; g < groups; g++) {
            for (size_t i = 0; i < step; i += 64) __builtin_prefetch(panel + g * step + kAhead + i);
            for (int u = 0; u < UNITS; u++) {
                VB q[8];
                VF s[2], m[2];
                unpack<TYPE>(panel + g * T::bytes + u * UB, q);
                scales.at(g, u, s, m);
#pragma GCC unroll 8
                for (int t = 0; t < TN; t++) acc[u][t] = accumulate<TYPE>(acc[u][t], q, x[t * groups + g], s, m);
            }
        }
        for (int u = 0; u < UNITS; u++)
            for (int t = 0; t < TN; t++) store(y + t * ldy + p * kPanel + u * LANES, acc[u][t]);
    }
}

// A panel spelt out for several rows of activations: codes as bytes and scales as floats, unit after unit.
struct Spelt {
    uint8_t* codes;  // [UNITS][groups][8][UB]
    float* scales;   // [UNITS][groups][s0 s1 m0 m1 as the type has them][LANES]
};

template <int TYPE> constexpr int scale_vectors() { return (Traits<TYPE>::half ? 2 : 1) * (Traits<TYPE>::min ? 2 : 1); }

template <int TYPE> void spell(const Matrix& w, int64_t p, const Spelt& out) {
    using T = Traits<TYPE>;
    constexpr int NS = T::half ? 2 : 1, NV = scale_vectors<TYPE>();
    const int64_t groups = w.cols / kGroup;
    const uint8_t* panel = w.panel(p);
    Scales<TYPE> scales(panel, groups);
    const size_t step = panel_bytes(TYPE, w.cols) / static_cast<size_t>(groups);
    for (int64_t g = 0; g < groups; g++) {
        for (size_t i = 0; i < step; i += 64) __builtin_prefetch(panel + g * step + kAhead + i);
        for (int u = 0; u < UNITS; u++) {
            VB q[8];
            VF s[2], m[2];
            unpack<TYPE>(panel + g * T::bytes + u * UB, q);
            scales.at(g, u, s, m);
            for (int j = 0; j < 8; j++) store(out.codes + ((u * groups + g) * 8 + j) * UB, q[j]);
            float* f = out.scales + (u * groups + g) * NV * LANES;
            for (int i = 0; i < NS; i++) {
                store(f + i * LANES, s[i]);
                if constexpr (T::min) store(f + (NS + i) * LANES, m[i]);
            }
        }
    }
}

// NP panels x TN rows of activations: their sums stay in registers.
template <int TYPE, int NP, int TN> void tile(const Spelt* w, int64_t groups, const Group* x, float* y, int64_t ldy) {
    using T = Traits<TYPE>;
    constexpr int NS = T::half ? 2 : 1, NV = scale_vectors<TYPE>();
    for (int u = 0; u < UNITS; u++) {
        VF acc[NP][TN] = {};
        const int64_t base = u * groups;
        for (int64_t g = 0; g < groups; g++) {
            VB q[NP][8];
            VF s[NP][2], m[NP][2];
            for (int p = 0; p < NP; p++) {
                for (int j = 0; j < 8; j++) q[p][j] = load(w[p].codes + ((base + g) * 8 + j) * UB);
                const float* f = w[p].scales + (base + g) * NV * LANES;
                for (int i = 0; i < NS; i++) {
                    s[p][i] = load(f + i * LANES);
                    if constexpr (T::min) m[p][i] = load(f + (NS + i) * LANES);
                }
            }
#pragma GCC unroll 8
            for (int t = 0; t < TN; t++)
#pragma GCC unroll 2
                for (int p = 0; p < NP; p++) acc[p][t] = accumulate<TYPE>(acc[p][t], q[p], x[t * groups + g], s[p], m[p]);
        }
        for (int p = 0; p < NP; p++)
            for (int t = 0; t < TN; t++) store(y + t * ldy + p * kPanel + u * LANES, acc[p][t]);
    }
}

#if defined(__AVX512VNNI__)
constexpr int kPanels = 2;  // 32 registers: two panels share each broadcast of an activation
#else
constexpr int kPanels = 1;
#endif
constexpr int kTile = 4;

template <int TYPE, int NP> void tiles(const Spelt* s, int64_t groups, const Group* x, int64_t T, float* y, int64_t ldy) {
    int64_t t = 0;
    for (; t + kTile <= T; t += kTile) tile<TYPE, NP, kTile>(s, groups, x + t * groups, y + t * ldy, ldy);
    switch (T - t) {
        case 3: return tile<TYPE, NP, 3>(s, groups, x + t * groups, y + t * ldy, ldy);
        case 2: return tile<TYPE, NP, 2>(s, groups, x + t * groups, y + t * ldy, ldy);
        case 1: return tile<TYPE, NP, 1>(s, groups, x + t * groups, y + t * ldy, ldy);
    }
}

template <int TYPE> void matmul_type(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    const int64_t groups = w.cols / kGroup;
    switch (T) {
        case 1: return stream<TYPE, 1>(w, x, y, ldy, p0, p1);
        case 2: return stream<TYPE, 2>(w, x, y, ldy, p0, p1);
        case 3: return stream<TYPE, 3>(w, x, y, ldy, p0, p1);
        case 4: return stream<TYPE, 4>(w, x, y, ldy, p0, p1);
    }
    if constexpr (LANES == 16) switch (T) {  // 32 registers hold more sums
        case 5: return stream<TYPE, 5>(w, x, y, ldy, p0, p1);
        case 6: return stream<TYPE, 6>(w, x, y, ldy, p0, p1);
        case 7: return stream<TYPE, 7>(w, x, y, ldy, p0, p1);
        case 8: return stream<TYPE, 8>(w, x, y, ldy, p0, p1);
    }
    Spelt s[kPanels];
    uint8_t* at = static_cast<uint8_t*>(scratch);
    for (Spelt& one : s) {
        one.codes = at;
        one.scales = reinterpret_cast<float*>(at + groups * 512);
        at += scratch_bytes(w.cols) / 2;
    }
    // As many rows of activations as stay in the second-level cache while the panels pass by.
    const int64_t block = (kCached / (groups * static_cast<int64_t>(sizeof(Group))) + 1 + kTile - 1) / kTile * kTile;
    for (int64_t t0 = 0; t0 < T; t0 += block) {
        const int64_t n = t0 + block < T ? block : T - t0;
        int64_t p = p0;
        for (; p + kPanels <= p1; p += kPanels) {
            for (int i = 0; i < kPanels; i++) spell<TYPE>(w, p + i, s[i]);
            tiles<TYPE, kPanels>(s, groups, x + t0 * groups, n, y + t0 * ldy + p * kPanel, ldy);
        }
        for (; p < p1; p++) {
            spell<TYPE>(w, p, s[0]);
            tiles<TYPE, 1>(s, groups, x + t0 * groups, n, y + t0 * ldy + p * kPanel, ldy);
        }
    }
}

#define GENMOTE_EACH_TYPE(DO) DO(Q4_0) DO(Q4_1) DO(Q5_0) DO(Q5_1) DO(Q8_0) DO(IQ4_NL) DO(Q2_K) DO(Q3_K) DO(Q4_K) DO(Q5_K) DO(Q6_K)

void matmul(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    switch (w.type) {
#define GENMOTE_CASE(T_) case T_: return matmul_type<T_>(w, x, T, y, ldy, p0, p1, scratch);
        GENMOTE_EACH_TYPE(GENMOTE_CASE)
#undef GENMOTE_CASE
    }
}

template <int TYPE> void row_type(const Matrix& w, int64_t row, float* out) {
    using T = Traits<TYPE>;
    const int64_t groups = w.cols / kGroup, r = row % kPanel;
    const int unit = static_cast<int>(r / LANES), lane = static_cast<int>(r % LANES);
    const uint8_t* panel = w.panel(row / kPanel);
    Scales<TYPE> scales(panel, groups);
    for (int64_t g = 0; g < groups; g++) {
        VB q[8];
        VF s[2], m[2];
        unpack<TYPE>(panel + g * T::bytes + unit * UB, q);
        scales.at(g, unit, s, m);
        for (int k = 0; k < kGroup; k++) {
            const int h = T::half ? k / 16 : 0;
            float v = static_cast<float>(static_cast<int>(q[k / 4][4 * lane + k % 4]) - (T::offset ? 1 << T::shift : 0)) * s[h][lane];
            if constexpr (T::min) v += m[h][lane];
            out[g * kGroup + k] = v;
        }
    }
}

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
        VF v[N], top = {};
        for (int i = 0; i < N; i++) {
            v[i] = load(x + i * LANES);
            top = vmax(vmax(v[i], VF{} - v[i]), top);
        }
        const float most = largest(top);
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

void to_half(const float* x, int64_t n, uint16_t* y) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store_half(y + i, load(x + i));
    if (i < n) {
        alignas(64) float t[16] = {};
        uint16_t h[16];
        std::memcpy(t, x + i, static_cast<size_t>(n - i) * 4);
        store_half(h, load(t));
        std::memcpy(y + i, h, static_cast<size_t>(n - i) * 2);
    }
}

// ---- attention -------------------------------------------------------------------------------------------------------

// Scores of NQ queries against NB blocks of 16 rows: each score is a chain over the head's dimensions in order.
template <int NQ, int NB> inline void score_blocks(const AttendTile& a, int64_t block) {
    const int D = a.head_dim;
    for (int u = 0; u < UNITS; u++) {
        VF acc[NQ][NB] = {};
        const uint16_t* k = a.kv.k + block * D * 16 + u * LANES;
        for (int d = 0; d < D; d++) {
            VF kv[NB];
            for (int b = 0; b < NB; b++) kv[b] = load_half(k + (b * D + d) * 16);
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

template <int NQ> void attend_n(const AttendTile& a) {
    int64_t begin = a.begin[0], end = a.end[0];
    for (int i = 1; i < NQ; i++) {
        begin = a.begin[i] < begin ? a.begin[i] : begin;
        end = a.end[i] > end ? a.end[i] : end;
    }
    constexpr int NB = NQ <= 2 ? 4 : NQ <= 4 || LANES == 16 ? 2 : 1;  // sums in flight, as registers allow
    int64_t b0 = begin / 16, b1 = (end + 15) / 16, b = b0;
    for (; b + NB <= b1; b += NB) score_blocks<NQ, NB>(a, b);
    for (; b < b1; b++) score_blocks<NQ, 1>(a, b);
    const VF none = splat(-INFINITY);
    float inverse[NQ];
    for (int i = 0; i < NQ; i++) {  // softmax of each query over the rows it sees; the others get weight 0
        float* s = a.scores + i * a.stride;
        for (int64_t t = b0 * 16; t < a.begin[i]; t++) s[t] = -INFINITY;
        for (int64_t t = a.end[i]; t < b1 * 16; t++) s[t] = -INFINITY;
        VF top[UNITS], sum[UNITS] = {};
        for (int u = 0; u < UNITS; u++) top[u] = none;
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
        inverse[i] = 1.0f / tree16(parts);
    }
    // out = sum over rows in order of weight * v, then divided by the weights' sum.
    const int D = a.head_dim;
    constexpr int NV = NQ <= 4 ? 4 : 2;
    int d = 0;
    for (; d + NV * LANES <= D; d += NV * LANES) {
        VF acc[NQ][NV] = {};
        for (int64_t t = begin; t < end; t++) {
            VF v[NV];
            for (int j = 0; j < NV; j++) v[j] = load_half(a.kv.v + t * D + d + j * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < NQ; i++)
                for (int j = 0; j < NV; j++) acc[i][j] = fma(v[j], splat(a.scores[i * a.stride + t]), acc[i][j]);
        }
        for (int i = 0; i < NQ; i++)
            for (int j = 0; j < NV; j++) store(a.out[i] + d + j * LANES, acc[i][j] * splat(inverse[i]));
    }
    for (; d < D; d += LANES) {  // the rest of the head, in single units
        const int n = D - d < LANES ? D - d : LANES;
        for (int i = 0; i < NQ; i++) {
            VF acc{};
            for (int64_t t = begin; t < end; t++) {
                uint16_t h[LANES] = {};
                std::memcpy(h, a.kv.v + t * D + d, static_cast<size_t>(n) * 2);
                acc = fma(load_half(h), splat(a.scores[i * a.stride + t]), acc);
            }
            acc = acc * splat(inverse[i]);
            std::memcpy(a.out[i] + d, &acc, static_cast<size_t>(n) * 4);
        }
    }
}

void attend(const AttendTile& a) {
    switch (a.n) {
        case 1: return attend_n<1>(a);
        case 2: return attend_n<2>(a);
        case 3: return attend_n<3>(a);
        case 4: return attend_n<4>(a);
        case 5: return attend_n<5>(a);
        case 6: return attend_n<6>(a);
        case 7: return attend_n<7>(a);
        default: return attend_n<8>(a);
    }
}

}  // namespace

#define GENMOTE_KERNELS(VARIABLE, NAME)                                                                                    \
    namespace genmote {                                                                                                    \
    extern const Kernels VARIABLE;                                                                                         \
    const Kernels VARIABLE = {NAME, quantise_row, matmul, matmul_float, dequantise_row, rms_norm, layer_norm, glu,         \
                              activate, soft_cap, softmax, attend, to_half};                                                         \
    }
