// Products of panels with many rows of activations on x86. Two vectors of rows meet some rows of activations quad by quad, so
// that each load serves several products: both units of a panel where vectors have 256 bits, two panels where they have 512.
#pragma once
#include "matmul.h"

namespace {

constexpr int kTogether = 2 / UNITS;  // panels
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define GENMOTE_VNNI
#endif

// Left alone, GCC puts off sums and keeps their summands, for which there are no registers.
template <typename V> inline void keep_here(V& v) { asm volatile("" : "+v"(v)); }

inline VI spread(const int8_t* x) {  // four numbers to each row
    int32_t v;
    std::memcpy(&v, x, 4);
    return splat(v);
}

#if defined(GENMOTE_VNNI)
template <int TYPE> inline void put_codes(const VB* q, uint8_t* at) { store_quads(q, at); }

inline VI add_quad(VI sum, VB codes, VI x) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<VI>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(codes), reinterpret_cast<__m512i>(x)));
#else
    return reinterpret_cast<VI>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(codes), reinterpret_cast<__m256i>(x)));
#endif
}

// sum[v][t] over NQ quads of vector v's codes times row t's activations, on top of what is in it.
template <int BITS, int NQ, int NV, int TN> inline void dots(const uint8_t* const* w, const int8_t* const* x, VI (*sum)[TN]) {
#pragma GCC unroll 8
    for (int j = 0; j < NQ; j++) {
        VB c[NV];
        for (int v = 0; v < NV; v++) c[v] = load(w[v] + j * UB);
#pragma GCC unroll 8
        for (int t = 0; t < TN; t++) {
            const VI xv = spread(x[t] + 4 * j);
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) sum[v][t] = add_quad(sum[v][t], c[v], xv);
        }
    }
}
#else
// Codes of 8 bits become signed numbers w, for |w| * (x with w's sign): unsigned ones would overflow 16 bits.
template <int TYPE> inline void put_codes(const VB* q, uint8_t* at) {
    for (int j = 0; j < 8; j++) store(at + j * UB, Traits<TYPE>::bits == 8 ? q[j] ^ 0x80 : q[j]);
}

template <int BITS, int NQ, int NV, int TN> inline void dots(const uint8_t* const* w, const int8_t* const* x, VI (*sum)[TN]) {
    const __m256i ones = _mm256_set1_epi16(1);
    // Pairs of products add up in 16 bits; how many pairs fit depends on the width of the codes.
    constexpr int fit = BITS == 8 ? 1 : 32767 / (((1 << BITS) - 1) * 254), run = fit > NQ ? NQ : fit;
#pragma GCC unroll 8
    for (int j0 = 0; j0 < NQ; j0 += run) {
        __m256i pairs[NV][TN];
#pragma GCC unroll 8
        for (int j = j0; j < j0 + run; j++) {
            __m256i c[NV];
            for (int v = 0; v < NV; v++) c[v] = reinterpret_cast<__m256i>(load(w[v] + j * UB));
#pragma GCC unroll 8
            for (int t = 0; t < TN; t++) {
                const __m256i xv = reinterpret_cast<__m256i>(spread(x[t] + 4 * j));
#pragma GCC unroll 2
                for (int v = 0; v < NV; v++) {
                    __m256i p = BITS == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(c[v]), _mm256_sign_epi8(xv, c[v])) : _mm256_maddubs_epi16(c[v], xv);
                    if (j > j0) p = _mm256_add_epi16(pairs[v][t], p);
                    if (j + 1 == j0 + run) {
                        sum[v][t] += reinterpret_cast<VI>(_mm256_madd_epi16(p, ones));
                        keep_here(sum[v][t]);
                    } else {
                        pairs[v][t] = p;
                        keep_here(pairs[v][t]);
                    }
                }
            }
        }
    }
}
#endif

template <int TYPE, int NP, int TN> void tile_of_panels(const Spelt* w, int64_t groups, const Group* x, float* y, int64_t ldy) {
    using T = Traits<TYPE>;
    constexpr int NS = T::half ? 2 : 1, NQ = 8 / NS, NF = scale_vectors<TYPE>(), NV = NP * UNITS;
#if defined(GENMOTE_VNNI)
    constexpr bool offset = T::offset;
#else
    constexpr bool offset = T::offset && T::bits < 8;
#endif
    const uint8_t* codes[NV];
    const float* scales[NV];
    for (int v = 0; v < NV; v++) {
        codes[v] = w[v / UNITS].codes + v % UNITS * groups * 8 * UB;
        scales[v] = w[v / UNITS].scales + v % UNITS * groups * NF * LANES;
    }
    VF acc[NV][TN] = {};
    for (int64_t g = 0; g < groups; g++) {
        for (int h = 0; h < NS; h++) {
            const int8_t* rows[TN];
            VI sum[NV][TN];
#pragma GCC unroll 8
            for (int t = 0; t < TN; t++) {
                const Group& row = x[t * groups + g];
                rows[t] = row.q + h * 4 * NQ;
                for (int v = 0; v < NV; v++)
                    sum[v][t] = offset ? splat(NS == 1 ? row.nsum : h ? row.nhi : row.nlo) << T::shift : VI{};
            }
            dots<T::bits, NQ, NV, TN>(codes, rows, sum);
#pragma GCC unroll 8
            for (int t = 0; t < TN; t++)
#pragma GCC unroll 2
                for (int v = 0; v < NV; v++) acc[v][t] = add_dots(acc[v][t], sum[v][t], x[t * groups + g], load(scales[v] + h * LANES));
            for (int v = 0; v < NV; v++) codes[v] += NQ * UB;
        }
        if constexpr (T::min)
            for (int t = 0; t < TN; t++)
                for (int v = 0; v < NV; v++) {
                    VF m[NS];
                    for (int h = 0; h < NS; h++) m[h] = load(scales[v] + (NS + h) * LANES);
                    acc[v][t] = add_mins<TYPE>(acc[v][t], x[t * groups + g], m);
                }
        for (int v = 0; v < NV; v++) scales[v] += NF * LANES;
    }
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < TN; t++) store(y + t * ldy + v * LANES, acc[v][t]);
}

template <int TYPE> void by_vectors(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    const int64_t groups = w.cols / kGroup;
    by_panels<TYPE, kTogether>(w, x, T, y, ldy, p0, p1, scratch, put_codes<TYPE>, [&](auto np, const Spelt* s, const Group* xs, int64_t n, float* out) {
        int64_t t = 0;
        for (; t + 4 <= n; t += 4) tile_of_panels<TYPE, np.value, 4>(s, groups, xs + t * groups, out + t * ldy, ldy);
        for (; t + 2 <= n; t += 2) tile_of_panels<TYPE, np.value, 2>(s, groups, xs + t * groups, out + t * ldy, ldy);
        if (t < n) tile_of_panels<TYPE, np.value, 1>(s, groups, xs + t * groups, out + t * ldy, ldy);
    });
}

#if !defined(GENMOTE_OWN_MANY)
template <int TYPE> void matmul_many(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    by_vectors<TYPE>(w, x, T, y, ldy, p0, p1, scratch);
}
#endif

}  // namespace
