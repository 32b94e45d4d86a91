// Products of panels with many rows of activations by ARMv8.6's 8-bit matrix instruction: each takes two rows of eight codes
// and two rows of eight activations to 2 x 2 sums, twice the work of a dot-product instruction.
#pragma once
#include "matmul.h"

namespace {

// A unit's group: for each eight columns, [row 0][row 1] and [row 2][row 3], as signed numbers with the offset taken off.
template <int TYPE> inline void put_codes(const VB* q, uint8_t* at) {
    constexpr uint8_t offset = Traits<TYPE>::offset ? 1 << Traits<TYPE>::shift : 0;
    for (int k = 0; k < 4; k++) {
        const uint32x4_t a = (uint32x4_t)(q[2 * k] - offset), b = (uint32x4_t)(q[2 * k + 1] - offset);
        store(at + k * 32, (VB)vzip1q_u32(a, b));
        store(at + k * 32 + 16, (VB)vzip2q_u32(a, b));
    }
}

// Two units x four rows of activations.
template <int TYPE> void tile(const Spelt& w, int64_t groups, int unit, const Group* x, float* y, int64_t ldy) {
    using T = Traits<TYPE>;
    constexpr int NS = T::half ? 2 : 1, NF = scale_vectors<TYPE>(), NK = 4 / NS;
    VF acc[2][4] = {};
    for (int64_t g = 0; g < groups; g++) {
        const Group* row[4];
        for (int t = 0; t < 4; t++) row[t] = x + t * groups + g;
        const uint8_t* codes[2];
        const float* scales[2];
        for (int u = 0; u < 2; u++) {
            codes[u] = w.codes + ((unit + u) * groups + g) * 8 * UB;
            scales[u] = w.scales + ((unit + u) * groups + g) * NF * LANES;
        }
        for (int h = 0; h < NS; h++) {
            int32x4_t sum[2][2][2] = {};  // [unit][pair of activations][pair of rows]
#pragma GCC unroll 2
            for (int k = 0; k < NK; k += 2) {
                int64x2_t v[4];
                for (int t = 0; t < 4; t++) v[t] = vreinterpretq_s64_s8(vld1q_s8(row[t]->q + 8 * (h * NK + k)));
                for (int i = 0; i < 2; i++)  // eight columns each
                    for (int p = 0; p < 2; p++) {
                        const int64x2_t both = i ? vtrn2q_s64(v[2 * p], v[2 * p + 1]) : vtrn1q_s64(v[2 * p], v[2 * p + 1]);
                        for (int u = 0; u < 2; u++)
                            for (int r = 0; r < 2; r++) {
                                const int8x16_t c = vld1q_s8(reinterpret_cast<const int8_t*>(codes[u]) + (h * NK + k + i) * 32 + r * 16);
                                sum[u][p][r] = vmmlaq_s32(sum[u][p][r], vreinterpretq_s8_s64(both), c);
                            }
                    }
            }
            for (int u = 0; u < 2; u++)
                for (int t = 0; t < 4; t++) {
                    const int64x2_t a = vreinterpretq_s64_s32(sum[u][t / 2][0]), b = vreinterpretq_s64_s32(sum[u][t / 2][1]);
                    const VI dots = (VI)(t % 2 ? vtrn2q_s64(a, b) : vtrn1q_s64(a, b));
                    acc[u][t] = add_dots(acc[u][t], dots, *row[t], load(scales[u] + h * LANES));
                }
        }
        if constexpr (T::min)
            for (int u = 0; u < 2; u++)
                for (int t = 0; t < 4; t++) {
                    VF m[NS];
                    for (int h = 0; h < NS; h++) m[h] = load(scales[u] + (NS + h) * LANES);
                    acc[u][t] = add_mins<TYPE>(acc[u][t], *row[t], m);
                }
    }
    for (int u = 0; u < 2; u++)
        for (int t = 0; t < 4; t++) store(y + t * ldy + (unit + u) * LANES, acc[u][t]);
}

template <int TYPE> void matmul_many(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    static_assert(kFew >= 3, "a tile takes four rows");
    const int64_t groups = w.cols / kGroup;
    by_panels<TYPE, 1>(w, x, T, y, ldy, p0, p1, scratch, put_codes<TYPE>, [&](auto, const Spelt* s, const Group* xs, int64_t n, float* out) {
        for (int64_t t = 0; t < n; t += 4) {
            const int64_t from = t + 4 <= n ? t : n - 4;  // the last tile may do some rows again, to the same bits
            for (int unit = 0; unit < UNITS; unit += 2) tile<TYPE>(*s, groups, unit, xs + from * groups, out + from * ldy, ldy);
        }
    });
}

}  // namespace
