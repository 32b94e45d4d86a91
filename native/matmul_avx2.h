// Products of panels with many rows of activations where there are sixteen 256-bit registers: both units of a panel meet
// four rows quad by quad, so that each load serves two or four products. Also AVX-VNNI, its dot products in one instruction.
#pragma once
#include "matmul.h"

namespace {

#if defined(__AVXVNNI__)
constexpr bool kSigned = false;
#else
constexpr bool kSigned = true;  // codes of 8 bits as signed numbers w, for |w| * (x with w's sign)
#endif

template <int TYPE> inline void put_codes(const VB* q, uint8_t* at) {
    constexpr bool flip = kSigned && Traits<TYPE>::bits == 8;
    for (int j = 0; j < 8; j++) store(at + j * UB, flip ? q[j] ^ 0x80 : q[j]);
}

// Left alone, GCC puts off sums and keeps their summands, for which there are no registers.
inline void keep_here(__m256i& v) { asm volatile("" : "+x"(v)); }

// sum[u][t] over NQ quads of unit u's codes times row t's activations; codes of 8 bits count as signed without AVX-VNNI.
template <int BITS, int NQ, int TN> inline void dots(const uint8_t* const* w, const int8_t* const* x, __m256i (*sum)[TN]) {
    auto quad = [&](int t, int j) {
        int32_t v;
        std::memcpy(&v, x[t] + 4 * j, 4);
        return _mm256_set1_epi32(v);
    };
    auto codes = [&](int u, int j) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w[u] + j * UB)); };
#if defined(__AVXVNNI__)
#pragma GCC unroll 8
    for (int j = 0; j < NQ; j++) {
        const __m256i c[UNITS] = {codes(0, j), codes(1, j)};
#pragma GCC unroll 4
        for (int t = 0; t < TN; t++) {
            const __m256i v = quad(t, j);
#pragma GCC unroll 2
            for (int u = 0; u < UNITS; u++) sum[u][t] = _mm256_dpbusd_avx_epi32(j ? sum[u][t] : _mm256_setzero_si256(), c[u], v);
        }
    }
#else
    const __m256i ones = _mm256_set1_epi16(1);
    // Pairs of products add up in 16 bits; how many pairs fit depends on the width of the codes.
    constexpr int fit = BITS == 8 ? 1 : 32767 / (((1 << BITS) - 1) * 254), run = fit > NQ ? NQ : fit;
#pragma GCC unroll 8
    for (int j0 = 0; j0 < NQ; j0 += run) {
        __m256i pairs[UNITS][TN];
#pragma GCC unroll 8
        for (int j = j0; j < j0 + run; j++) {
            const __m256i c[UNITS] = {codes(0, j), codes(1, j)};
#pragma GCC unroll 4
            for (int t = 0; t < TN; t++) {
                const __m256i v = quad(t, j);
#pragma GCC unroll 2
                for (int u = 0; u < UNITS; u++) {
                    __m256i p = BITS == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(c[u]), _mm256_sign_epi8(v, c[u])) : _mm256_maddubs_epi16(c[u], v);
                    if (j > j0) p = _mm256_add_epi16(pairs[u][t], p);
                    if (j + 1 == j0 + run) {
                        p = _mm256_madd_epi16(p, ones);
                        sum[u][t] = j0 ? _mm256_add_epi32(sum[u][t], p) : p;
                        keep_here(sum[u][t]);
                    } else {
                        pairs[u][t] = p;
                        keep_here(pairs[u][t]);
                    }
                }
            }
        }
    }
#endif
}

template <int TYPE, int TN> void tile_of_panel(const Spelt& w, int64_t groups, const Group* x, float* y, int64_t ldy) {
    using T = Traits<TYPE>;
    constexpr int NS = T::half ? 2 : 1, NV = scale_vectors<TYPE>(), NQ = 8 / NS;
    constexpr bool offset = T::offset && !(kSigned && T::bits == 8);
    VF acc[UNITS][TN] = {};
    for (int64_t g = 0; g < groups; g++) {
        const float* scales[UNITS];
        for (int u = 0; u < UNITS; u++) scales[u] = w.scales + (u * groups + g) * NV * LANES;
        for (int h = 0; h < NS; h++) {
            const uint8_t* codes[UNITS];
            const int8_t* rows[TN];
            __m256i sum[UNITS][TN];
            for (int u = 0; u < UNITS; u++) codes[u] = w.codes + ((u * groups + g) * 8 + h * NQ) * UB;
            for (int t = 0; t < TN; t++) rows[t] = x[t * groups + g].q + h * 4 * NQ;
            dots<T::bits, NQ, TN>(codes, rows, sum);
#pragma GCC unroll 4
            for (int t = 0; t < TN; t++) {
                const Group& row = x[t * groups + g];
#pragma GCC unroll 2
                for (int u = 0; u < UNITS; u++) {
                    VI d = reinterpret_cast<VI>(sum[u][t]);
                    if constexpr (offset) d += splat(NS == 1 ? row.nsum : h ? row.nhi : row.nlo) << T::shift;
                    acc[u][t] = add_dots(acc[u][t], d, row, load(scales[u] + h * LANES));
                }
            }
        }
        if constexpr (T::min)
            for (int t = 0; t < TN; t++)
                for (int u = 0; u < UNITS; u++) {
                    VF m[NS];
                    for (int h = 0; h < NS; h++) m[h] = load(scales[u] + (NS + h) * LANES);
                    acc[u][t] = add_mins<TYPE>(acc[u][t], x[t * groups + g], m);
                }
    }
    for (int u = 0; u < UNITS; u++)
        for (int t = 0; t < TN; t++) store(y + t * ldy + u * LANES, acc[u][t]);
}

template <int TYPE> void matmul_many(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    const int64_t groups = w.cols / kGroup;
    by_panels<TYPE, 1>(w, x, T, y, ldy, p0, p1, scratch, put_codes<TYPE>, [&](auto, const Spelt* s, const Group* xs, int64_t n, float* out) {
        int64_t t = 0;
        for (; t + 4 <= n; t += 4) tile_of_panel<TYPE, 4>(*s, groups, xs + t * groups, out + t * ldy, ldy);
        switch (n - t) {
            case 3: return tile_of_panel<TYPE, 3>(*s, groups, xs + t * groups, out + t * ldy, ldy);
            case 2: return tile_of_panel<TYPE, 2>(*s, groups, xs + t * groups, out + t * ldy, ldy);
            case 1: return tile_of_panel<TYPE, 1>(*s, groups, xs + t * groups, out + t * ldy, ldy);
        }
    });
}

void matmul_avx2(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    if (T < 3) return matmul(w, x, T, y, ldy, p0, p1, scratch);
    switch (w.type) {
#define GENMOTE_CASE(T_) case T_: return matmul_many<T_>(w, x, T, y, ldy, p0, p1, scratch);
        GENMOTE_EACH_TYPE(GENMOTE_CASE)
#undef GENMOTE_CASE
    }
}

}  // namespace
