// Products with quantised matrices, written once over the vector unit of simd.h.
#pragma once
#include <type_traits>

#include "genmote.h"
#include "simd.h"

namespace {
using namespace genmote;

// ---- quantised matrices ----------------------------------------------------------------------------------------------

// Levels of the types whose codes are indices, plus the offset. Half a byte of GM2_32 has two codes: one table looks at the low
// one, one at the high. GM3_32's tables look at three bits.
typedef uint8_t Table[16];
alignas(16) const Table kIq4 = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) const Table kGm2Low = {1, 11, 18, 26, 1, 11, 18, 26, 1, 11, 18, 26, 1, 11, 18, 26};
alignas(16) const Table kGm2High = {1, 1, 1, 1, 11, 11, 11, 11, 18, 18, 18, 18, 26, 26, 26, 26};
alignas(16) const Table kGm3 = {0, 6, 10, 13, 16, 19, 23, 28, 0, 6, 10, 13, 16, 19, 23, 28};
alignas(16) const Table kGm4 = {0, 7, 12, 16, 20, 23, 27, 30, 32, 35, 38, 41, 45, 49, 53, 58};

template <int TYPE> struct Traits;
//                                                  bits of a code; nibble, two-bit and one-bit plane; shift of the offset (-1: none)
#define GENMOTE_TRAITS(T, BITS, NIB, TWO, ONE, SHIFT, HALF, SUPER, MIN, BYTES)                                              \
    template <> struct Traits<T> {                                                                                          \
        static constexpr int bits = BITS, shift = SHIFT < 0 ? 0 : SHIFT, bytes = BYTES;                                     \
        static constexpr bool nib = NIB, two = TWO, one = ONE, offset = SHIFT >= 0, half = HALF, super = SUPER, min = MIN;  \
        static constexpr bool small = T >= GM2_32;                                                                          \
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
GENMOTE_TRAITS(GM2_32, 5, 0, 0, 0, 4, 0, 0, 0, 128)  // the tables' bits
GENMOTE_TRAITS(GM3_32, 5, 0, 0, 0, 4, 0, 0, 0, 192)
GENMOTE_TRAITS(GM4_32, 6, 1, 0, 0, 5, 0, 0, 0, 256)
#undef GENMOTE_TRAITS

inline VB levels(const Table& table) {
    VB t;
    for (int i = 0; i < UB; i += 16) std::memcpy(reinterpret_cast<uint8_t*>(&t) + i, table, 16);
    return t;
}

inline VB high(VB v) { return bits(v, 4, 15); }

// The eight quads of a group, one unit (LANES rows) of them; p points at the unit's bytes in the group's first vector.
template <int TYPE> inline void unpack(const uint8_t* p, VB* q) {
    using T = Traits<TYPE>;
    if constexpr (TYPE == Q8_0) {
        for (int j = 0; j < 8; j++) q[j] = load(p + 64 * j);
        return;
    }
    if constexpr (TYPE == GM2_32) {
        const VB at_low = levels(kGm2Low), at_high = levels(kGm2High);
        for (int j = 0; j < 2; j++) {
            const VB v = load(p + 64 * j), a = v & 15, b = high(v);
            q[j] = lookup(at_low, a);
            q[j + 2] = lookup(at_high, a);
            q[j + 4] = lookup(at_low, b);
            q[j + 6] = lookup(at_high, b);
        }
    }
    if constexpr (TYPE == GM3_32) {
        const VB at = levels(kGm3), a = load(p), b = load(p + 64), c = load(p + 128);
        const VB rest = bits(a, 3, 0x11) | bits(b, 2, 0x22) | bits(c, 1, 0x44);
        q[0] = lookup(at, a & 15);
        q[1] = lookup(at, b & 15);
        q[2] = lookup(at, c & 15);
        q[3] = lookup(at, high(a));
        q[4] = lookup(at, high(b));
        q[5] = lookup(at, high(c));
        q[6] = lookup(at, rest & 15);
        q[7] = lookup(at, high(rest));
    }
    if constexpr (T::nib) {
        for (int j = 0; j < 4; j++) {
            VB v = load(p + 64 * j);
            q[j] = v & 15;
            q[j + 4] = v >> 4;
        }
        if constexpr (TYPE == IQ4_NL || TYPE == GM4_32) {
            const VB at = levels(TYPE == GM4_32 ? kGm4 : kIq4);
            for (int j = 0; j < 8; j++) q[j] = lookup(at, q[j]);
        }
        p += 256;
    }
    if constexpr (T::two) {
        constexpr int at = T::nib ? 4 : 0;
        const VB none{}, a = load(p), b = load(p + 64);
        for (int j = 0; j < 4; j++) {
            q[2 * j] = (T::nib ? q[2 * j] : none) | bits(a, 2 * j - at, 3 << at);
            q[2 * j + 1] = (T::nib ? q[2 * j + 1] : none) | bits(b, 2 * j - at, 3 << at);
        }
        p += 128;
    }
    if constexpr (T::one) {
        constexpr int at = T::nib ? 4 : 2;
        const VB a = load(p);
        for (int j = 0; j < 8; j++) q[j] |= bits(a, j - at, 1 << at);
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
        if constexpr (T::small) {
            sv[0] = load_small(d + g * kPanel + o);
        } else if constexpr (!T::super) {
            sv[0] = load_half(reinterpret_cast<const uint16_t*>(d + g * 32) + o);
            if constexpr (T::min) mv[0] = load_half(reinterpret_cast<const uint16_t*>(m + g * 32) + o);
        } else {
            VF dv = load_half(reinterpret_cast<const uint16_t*>(d + g / 8 * 32) + o), dm{};
            if constexpr (T::min) dm = VF{} - load_half(reinterpret_cast<const uint16_t*>(m + g / 8 * 32) + o);
            if constexpr (TYPE == Q2_K) {
                for (int h = 0; h < 2; h++) {
                    const uint8_t* p = s + (2 * g + h) * kPanel + o;
                    const VI both = load_u8(p);
                    sv[h] = dv * to_float(both & 15);
                    mv[h] = dm * to_float(both >> 4);
                }
            } else if constexpr (T::half) {
                sv[0] = dv * to_float(load_s8(s + (2 * g) * kPanel + o));
                sv[1] = dv * to_float(load_s8(s + (2 * g + 1) * kPanel + o));
            } else {
                sv[0] = dv * to_float(load_u8(s + g * kPanel + o));
                mv[0] = dm * to_float(load_u8(i + g * kPanel + o));
            }
        }
    }
};

// The order in which a row's floats are added, everywhere: group after group, in each the integer sums (first half, second
// half, where the type has half groups), then the minima.
inline VF add_dots(VF acc, VI dots, const Group& x, VF s) { return fma(to_float(dots), s * splat(x.d), acc); }

template <int TYPE> inline VF add_mins(VF acc, const Group& x, const VF* m) {
    acc = fma(m[0], splat(Traits<TYPE>::half ? x.dlo : x.dsum), acc);
    if constexpr (Traits<TYPE>::half) acc = fma(m[1], splat(x.dhi), acc);
    return acc;
}

template <int TYPE> inline VF accumulate(VF acc, const VB* q, const Group& x, const VF* s, const VF* m) {
    using T = Traits<TYPE>;
    if constexpr (T::half) {
        acc = add_dots(acc, dot<T::bits, 4>(q, x.q, x.nlo, T::shift, T::offset), x, s[0]);
        acc = add_dots(acc, dot<T::bits, 4>(q + 4, x.q + 16, x.nhi, T::shift, T::offset), x, s[1]);
    } else {
        acc = add_dots(acc, dot<T::bits, 8>(q, x.q, x.nsum, T::shift, T::offset), x, s[0]);
    }
    if constexpr (T::min) acc = add_mins<TYPE>(acc, x, m);
    return acc;
}

// Bytes: how far before their use weights are fetched (hardware stops at each page of 4096). Measured on x86; small cores have
// first-level caches of 32 KB.
constexpr size_t kAhead = LANES == 4 ? 4096 : 16384;

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

inline void store_quads(const VB* q, uint8_t* at) {
    for (int j = 0; j < 8; j++) store(at + j * UB, q[j]);
}

// `put` writes the codes of a unit's group the way the instruction set wants them.
template <int TYPE, typename Put> void spell(const Matrix& w, int64_t p, const Spelt& out, Put put) {
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
            put(q, out.codes + (u * groups + g) * 8 * UB);
            float* f = out.scales + (u * groups + g) * NV * LANES;
            for (int i = 0; i < NS; i++) {
                store(f + i * LANES, s[i]);
                if constexpr (T::min) store(f + (NS + i) * LANES, m[i]);
            }
        }
    }
}

// Calls multiply(number of panels (a constant), panels spelt out, x, rows of it, y) until all panels met all rows.
template <int TYPE, int PANELS, typename Put, typename Multiply>
void by_panels(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch, Put put, Multiply multiply) {
    const int64_t groups = w.cols / kGroup;
    Spelt s[PANELS];
    uint8_t* at = static_cast<uint8_t*>(scratch);
    for (Spelt& one : s) {
        one.codes = at;
        one.scales = reinterpret_cast<float*>(at + groups * 512);
        at += scratch_bytes(w.cols) / 2;
    }
    // As many rows of activations as stay in the second-level cache while the panels pass by, in tiles of 16.
    const int64_t block = (kCached / (groups * static_cast<int64_t>(sizeof(Group))) + 16) / 16 * 16;
    for (int64_t t0 = 0; t0 < T;) {
        const int64_t n = T - t0 < block + 16 ? T - t0 : block;  // no short block at the end
        int64_t p = p0;
        for (; p + PANELS <= p1; p += PANELS) {
            for (int i = 0; i < PANELS; i++) spell<TYPE>(w, p + i, s[i], put);
            multiply(std::integral_constant<int, PANELS>{}, s, x + t0 * groups, n, y + t0 * ldy + p * kPanel);
        }
        for (; p < p1; p++) {
            spell<TYPE>(w, p, s[0], put);
            multiply(std::integral_constant<int, 1>{}, s, x + t0 * groups, n, y + t0 * ldy + p * kPanel);
        }
        t0 += n;
    }
}

// Many rows of activations: every instruction set has its way, in one of matmul_*.h.
template <int TYPE> void matmul_many(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch);

constexpr int kFew = LANES == 16 ? 8 : LANES == 8 ? 2 : 4;  // rows whose sums stay in registers beside the codes

template <int TYPE> void matmul_type(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    switch (T) {
#define GENMOTE_CASE(N) case N: if constexpr (N <= kFew) return stream<TYPE, N>(w, x, y, ldy, p0, p1); break;
        GENMOTE_CASE(1) GENMOTE_CASE(2) GENMOTE_CASE(3) GENMOTE_CASE(4) GENMOTE_CASE(5) GENMOTE_CASE(6) GENMOTE_CASE(7) GENMOTE_CASE(8)
#undef GENMOTE_CASE
    }
    matmul_many<TYPE>(w, x, T, y, ldy, p0, p1, scratch);
}

#define GENMOTE_EACH_TYPE(DO) DO(Q4_0) DO(Q4_1) DO(Q5_0) DO(Q5_1) DO(Q8_0) DO(IQ4_NL) DO(Q2_K) DO(Q3_K) DO(Q4_K) DO(Q5_K) DO(Q6_K) DO(GM2_32) DO(GM3_32) DO(GM4_32)

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

}  // namespace
