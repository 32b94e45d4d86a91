// One vector unit of the instruction set that this file is compiled for: LANES floats, the same number of int32, four
// times as many bytes. Operators come from GCC's and Clang's vector extensions; what those lack is written out below.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && !defined(GENMOTE_PORTABLE)
#define GENMOTE_NEON
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512VNNI__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int UNITS = 16 / LANES;  // units of a panel
constexpr int UB = 4 * LANES;      // bytes of a unit

typedef float VF __attribute__((vector_size(4 * LANES)));
typedef int32_t VI __attribute__((vector_size(4 * LANES)));
typedef uint8_t VB __attribute__((vector_size(4 * LANES)));

inline VF load(const float* p) { VF v; std::memcpy(&v, p, sizeof v); return v; }
inline VB load(const uint8_t* p) { VB v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, VF v) { std::memcpy(p, &v, sizeof v); }
inline void store(uint8_t* p, VB v) { std::memcpy(p, &v, sizeof v); }
inline VF splat(float x) { return x - VF{}; }  // x - 0 is x, even for -0: the compiler drops it
inline VI splat(int32_t x) { return VI{} + x; }
inline VF to_float(VI v) { return __builtin_convertvector(v, VF); }

#if defined(__AVX512VNNI__)
inline VF fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
inline VF load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline VF load_small(const uint8_t* p) {  // scales of a byte: the sign and bits 7 to 13 of a float16
    const __m256i v = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(v, _mm256_set1_epi16(static_cast<int16_t>(0xbf80))));
}
inline void store_half(uint16_t* p, VF v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 0)); }
inline VF load_bf16(const uint16_t* p) {
    return reinterpret_cast<VF>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline int32_t largest(VI v) { return _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(v)); }
inline int32_t total(VI v) { return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(v)); }
inline VI load_u8(const uint8_t* p) { return reinterpret_cast<VI>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
inline VI load_s8(const uint8_t* p) { return reinterpret_cast<VI>(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
inline VB lookup(VB table, VB index) {
    return reinterpret_cast<VB>(_mm512_shuffle_epi8(reinterpret_cast<__m512i>(table), reinterpret_cast<__m512i>(index)));
}
#elif defined(__AVX2__)
inline VF fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
inline VF load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline VF load_small(const uint8_t* p) {
    const __m128i v = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 7);
    return _mm256_cvtph_ps(_mm_and_si128(v, _mm_set1_epi16(static_cast<int16_t>(0xbf80))));
}
inline void store_half(uint16_t* p, VF v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0)); }
inline VF load_bf16(const uint16_t* p) {
    return reinterpret_cast<VF>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline VI load_u8(const uint8_t* p) { return reinterpret_cast<VI>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))); }
inline VI load_s8(const uint8_t* p) { return reinterpret_cast<VI>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))); }
inline VB lookup(VB table, VB index) {
    return reinterpret_cast<VB>(_mm256_shuffle_epi8(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(index)));
}
#else
#if defined(GENMOTE_NEON)
inline VF fma(VF a, VF b, VF c) { return (VF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline VF load_half(const uint16_t* p) { return (VF)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline void store_half(uint16_t* p, VF v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v))); }
inline VB lookup(VB table, VB index) { return (VB)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index); }
#else
inline VF fma(VF a, VF b, VF c) {
    VF r;
    for (int i = 0; i < LANES; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
}
inline float half_value(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023, bits;
    if (e == 0) {  // zero or subnormal: m * 2^-24, exact in float32
        float f = static_cast<float>(m) * 0x1p-24f;
        std::memcpy(&bits, &f, 4);
        bits |= sign;
    } else {
        bits = sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | (m << 13);
    }
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline uint16_t half_bits(float f) {  // round to nearest even
    uint32_t b;
    std::memcpy(&b, &f, 4);
    uint16_t sign = (b >> 16) & 0x8000;
    b &= 0x7fffffff;
    if (b > 0x7f800000) return sign | 0x7e00;
    if (b >= 0x477ff000) return sign | 0x7c00;  // rounds past the largest half
    if (b < 0x38800000) {                       // subnormal half: let float addition round to a multiple of 2^-24
        float v;
        std::memcpy(&v, &b, 4);
        v += 0.5f;
        uint32_t r;
        std::memcpy(&r, &v, 4);
        return sign | static_cast<uint16_t>(r - 0x3f000000);
    }
    uint32_t r = b + 0xfff + ((b >> 13) & 1);
    return sign | static_cast<uint16_t>((r - 0x38000000) >> 13);
}
inline VF load_half(const uint16_t* p) { VF r; for (int i = 0; i < LANES; i++) r[i] = half_value(p[i]); return r; }
inline void store_half(uint16_t* p, VF v) { for (int i = 0; i < LANES; i++) p[i] = half_bits(v[i]); }
inline VB lookup(VB table, VB index) { VB r; for (int i = 0; i < UB; i++) r[i] = table[index[i] & 15]; return r; }
#endif
inline VF load_small(const uint8_t* p) {
    uint16_t half[LANES];
    for (int i = 0; i < LANES; i++) half[i] = static_cast<uint16_t>((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7);
    return load_half(half);
}
inline VF load_bf16(const uint16_t* p) {
    VI v;
    for (int i = 0; i < LANES; i++) v[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
    return reinterpret_cast<VF>(v);
}
inline VI load_u8(const uint8_t* p) { VI r; for (int i = 0; i < LANES; i++) r[i] = p[i]; return r; }
inline VI load_s8(const uint8_t* p) { VI r; for (int i = 0; i < LANES; i++) r[i] = static_cast<int8_t>(p[i]); return r; }
#endif

// Bits `mask` of each byte after moving it by `n` to the right (left where n < 0); mask must hold no bit that came from a
// neighbour, for the shift is one of 16 bits, which processors have.
inline VB bits(VB v, int n, uint8_t mask) {
    typedef uint16_t V16 __attribute__((vector_size(4 * LANES)));
    const V16 w = reinterpret_cast<V16>(v);
    return reinterpret_cast<VB>(n < 0 ? w << -n : w >> n) & mask;
}

// A table of 16 levels, whole numbers of -127 to 127, and what the low and the high halves of 16 bytes mean by it.
#if defined(__AVX512VNNI__)
typedef __m512 Levels;
inline Levels levels_of(const float* t) { return _mm512_loadu_ps(t); }
inline void levels16(const uint8_t* p, Levels t, VF* low, VF* high) {
    const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    low[0] = _mm512_permutexvar_ps(v, t);  // looks at the low four bits alone
    high[0] = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 4), t);
}
#elif defined(__AVX2__)
struct Levels { __m256 low, high; };
inline Levels levels_of(const float* t) { return {_mm256_loadu_ps(t), _mm256_loadu_ps(t + 8)}; }
inline VF level_of(__m256i v, const Levels& t) {  // by the low four bits
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, v), _mm256_permutevar8x32_ps(t.high, v), _mm256_castsi256_ps(_mm256_slli_epi32(v, 28)));
}
inline void levels16(const uint8_t* p, const Levels& t, VF* low, VF* high) {
    for (int u = 0; u < UNITS; u++) {
        const __m256i v = reinterpret_cast<__m256i>(load_u8(p + u * LANES));
        low[u] = level_of(v, t);
        high[u] = level_of(_mm256_srli_epi32(v, 4), t);
    }
}
#else
typedef VB Levels;
inline Levels levels_of(const float* t) {
    Levels v;
    for (int i = 0; i < UB; i++) v[i] = static_cast<uint8_t>(static_cast<int8_t>(t[i]));
    return v;
}
inline void signed_floats(VB v, VF* out) {
#if defined(GENMOTE_NEON)
    const int16x8_t a = vmovl_s8(vget_low_s8((int8x16_t)v)), b = vmovl_s8(vget_high_s8((int8x16_t)v));
    out[0] = (VF)vcvtq_f32_s32(vmovl_s16(vget_low_s16(a)));
    out[1] = (VF)vcvtq_f32_s32(vmovl_s16(vget_high_s16(a)));
    out[2] = (VF)vcvtq_f32_s32(vmovl_s16(vget_low_s16(b)));
    out[3] = (VF)vcvtq_f32_s32(vmovl_s16(vget_high_s16(b)));
#else
    for (int i = 0; i < UB; i++) out[i / LANES][i % LANES] = static_cast<int8_t>(v[i]);
#endif
}
inline void levels16(const uint8_t* p, Levels t, VF* low, VF* high) {
    const VB v = load(p);
    signed_floats(lookup(t, v & 15), low);
    signed_floats(lookup(t, v >> 4), high);
}
#endif

inline VF vmax(VF a, VF b) { return a > b ? a : b; }

#if !defined(__AVX512VNNI__)  // over the lanes; order does not matter for either
inline int32_t largest(VI v) {
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) v[i] = v[i] > v[i + n] ? v[i] : v[i + n];
    return v[0];
}
inline int32_t total(VI v) {
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) v[i] += v[i + n];
    return v[0];
}
#endif

// exp by range reduction and a polynomial; relative error below 2e-7 for |x| < 87. exp(-inf) is 0. The same bits on every ISA: only
// IEEE additions, multiplications and fused multiply-adds.
inline VF exp(VF x) {
    const VF lo = splat(-87.0f), hi = splat(88.0f);
    VF c = x < lo ? lo : x;
    c = c > hi ? hi : c;
    const VF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    VF t = fma(c, splat(1.44269504f), magic);
    VF n = t - magic;
    VF r = fma(n, splat(-0.693359375f), c);
    r = fma(n, splat(2.12194440e-4f), r);
    VF p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + splat(1.0f);
    VI e = (reinterpret_cast<VI>(t) - splat(0x4b400000) + splat(127)) << 23;
    VF y = p * reinterpret_cast<VF>(e);
    return x < lo ? VF{} : y;
}

inline VF tanh(VF x) {  // 1 - 2 / (exp(2x) + 1)
    VF e = exp(x + x);
    return splat(1.0f) - splat(2.0f) / (e + splat(1.0f));
}

// The sum of 16 partial sums in one fixed tree.
inline float tree16(const float* s) {
    float a[8], b[4];
    for (int i = 0; i < 8; i++) a[i] = s[i] + s[i + 8];
    for (int i = 0; i < 4; i++) b[i] = a[i] + a[i + 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}

// ---- integer dot products --------------------------------------------------------------------------------------------
// dot<BITS, NQ>(q, x, n, shift): for each row (lane) the sum over NQ quads of code * x, plus n << shift, where n is minus
// the sum of those x and 1 << shift the type's offset. BITS is the width of the codes; 8 means bias 128 (shift 7).

#if defined(__AVX512VNNI__)
template <int BITS, int NQ>
inline VI dot(const VB* q, const int8_t* x, int32_t n, int shift, bool offset) {
    __m512i sum = offset ? _mm512_slli_epi32(_mm512_set1_epi32(n), shift) : _mm512_setzero_si512();
    for (int j = 0; j < NQ; j++) {
        int32_t xj;
        std::memcpy(&xj, x + 4 * j, 4);
        sum = _mm512_dpbusd_epi32(sum, reinterpret_cast<__m512i>(q[j]), _mm512_set1_epi32(xj));
    }
    return reinterpret_cast<VI>(sum);
}
#elif defined(__AVXVNNI__)
template <int BITS, int NQ>
inline VI dot(const VB* q, const int8_t* x, int32_t n, int shift, bool offset) {
    __m256i sum = offset ? _mm256_slli_epi32(_mm256_set1_epi32(n), shift) : _mm256_setzero_si256();
    for (int j = 0; j < NQ; j++) {
        int32_t xj;
        std::memcpy(&xj, x + 4 * j, 4);
        sum = _mm256_dpbusd_avx_epi32(sum, reinterpret_cast<__m256i>(q[j]), _mm256_set1_epi32(xj));
    }
    return reinterpret_cast<VI>(sum);
}
#elif defined(__AVX2__)
template <int BITS, int NQ>
inline VI dot(const VB* q, const int8_t* x, int32_t n, int shift, bool offset) {
    // Pairs of products add up in 16 bits; how many pairs fit depends on the width of the codes.
    constexpr int fit = BITS >= 8 ? 1 : 32767 / (((1 << BITS) - 1) * 254);
    constexpr int run = fit > NQ ? NQ : fit;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    if (offset && BITS < 8) sum = _mm256_slli_epi32(_mm256_set1_epi32(n), shift);
    for (int j = 0; j < NQ; j += run) {
        __m256i s16 = _mm256_setzero_si256();
        for (int i = j; i < j + run && i < NQ; i++) {
            int32_t xi;
            std::memcpy(&xi, x + 4 * i, 4);
            __m256i xv = _mm256_set1_epi32(xi), w = reinterpret_cast<__m256i>(q[i]);
            __m256i p;
            if (BITS >= 8) {  // unsigned codes would overflow 16 bits: |w| * (x with w's sign)
                __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
                p = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(xv, s));
            } else {
                p = _mm256_maddubs_epi16(w, xv);
            }
            s16 = i == j ? p : _mm256_add_epi16(s16, p);
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(s16, ones));
    }
    return reinterpret_cast<VI>(sum);
}
#elif defined(GENMOTE_NEON) && defined(__ARM_FEATURE_DOTPROD)
template <int BITS, int NQ>
inline VI dot(const VB* q, const int8_t* x, int32_t n, int shift, bool offset) {
    int32x4_t a = vdupq_n_s32(0), b = a;
    if (offset && BITS < 8) a = vdupq_n_s32(static_cast<int32_t>(static_cast<uint32_t>(n) << shift));
    const uint8x16_t flip = vdupq_n_u8(BITS >= 8 ? 0x80 : 0);
    for (int j = 0; j < NQ; j += 4) {
        int8x16_t xv = vld1q_s8(x + 4 * j);
        int8x16_t w0 = vreinterpretq_s8_u8(veorq_u8((uint8x16_t)q[j], flip)), w1 = vreinterpretq_s8_u8(veorq_u8((uint8x16_t)q[j + 1], flip));
        int8x16_t w2 = vreinterpretq_s8_u8(veorq_u8((uint8x16_t)q[j + 2], flip)), w3 = vreinterpretq_s8_u8(veorq_u8((uint8x16_t)q[j + 3], flip));
        a = vdotq_laneq_s32(a, w0, xv, 0);
        b = vdotq_laneq_s32(b, w1, xv, 1);
        a = vdotq_laneq_s32(a, w2, xv, 2);
        b = vdotq_laneq_s32(b, w3, xv, 3);
    }
    return (VI)vaddq_s32(a, b);
}
#elif defined(GENMOTE_NEON)
template <int BITS, int NQ>
inline VI dot(const VB* q, const int8_t* x, int32_t n, int shift, bool offset) {
    // ARMv8.0: products in 16 bits, added up as far as they fit (by pairs of lanes only at the end of a run).
    constexpr int fit = BITS >= 8 ? 2 : 32767 / (((1 << BITS) - 1) * 127);  // 127 * 128 twice still fits
    constexpr int run = fit > NQ ? NQ : fit;
    int32x4_t lo = vdupq_n_s32(0), hi = lo;  // rows 0 and 1, rows 2 and 3; two partial sums a row
    const uint8x16_t flip = vdupq_n_u8(BITS >= 8 ? 0x80 : 0);
    for (int j = 0; j < NQ; j += run) {
        int16x8_t sl = vdupq_n_s16(0), sh = sl;
        for (int i = j; i < j + run && i < NQ; i++) {
            int32_t xi;
            std::memcpy(&xi, x + 4 * i, 4);
            int8x16_t xv = vreinterpretq_s8_s32(vdupq_n_s32(xi));
            int8x16_t w = vreinterpretq_s8_u8(veorq_u8((uint8x16_t)q[i], flip));
            sl = vmlal_s8(sl, vget_low_s8(w), vget_low_s8(xv));
            sh = vmlal_high_s8(sh, w, xv);
        }
        lo = vpadalq_s16(lo, sl);
        hi = vpadalq_s16(hi, sh);
    }
    int32x4_t s = vpaddq_s32(lo, hi);
    if (offset && BITS < 8) s = vaddq_s32(s, vdupq_n_s32(static_cast<int32_t>(static_cast<uint32_t>(n) << shift)));
    return (VI)s;
}
#else
template <int BITS, int NQ>
inline VI dot(const VB* q, const int8_t* x, int32_t n, int shift, bool offset) {
    VI s = splat(offset ? static_cast<int32_t>(static_cast<uint32_t>(n) << shift) : 0);
    for (int j = 0; j < NQ; j++)
        for (int r = 0; r < LANES; r++)
            for (int i = 0; i < 4; i++) s[r] += static_cast<int32_t>(q[j][4 * r + i]) * x[4 * j + i];
    return s;
}
#endif

}  // namespace
