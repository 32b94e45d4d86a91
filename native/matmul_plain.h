// Products of panels with many rows of activations where a dot product takes registers alone: NEON and the portable kernels.
#pragma once
#include "matmul.h"

namespace {

// A panel x TN rows of activations, a unit at a time: the sums stay in registers.
template <int TYPE, int TN> void tile(const Spelt& w, int64_t groups, const Group* x, float* y, int64_t ldy) {
    using T = Traits<TYPE>;
    constexpr int NS = T::half ? 2 : 1, NF = scale_vectors<TYPE>();
    for (int u = 0; u < UNITS; u++) {
        VF acc[TN] = {};
        for (int64_t g = 0; g < groups; g++) {
            VB q[8];
            VF s[2], m[2];
            for (int j = 0; j < 8; j++) q[j] = load(w.codes + ((u * groups + g) * 8 + j) * UB);
            const float* f = w.scales + (u * groups + g) * NF * LANES;
            for (int i = 0; i < NS; i++) {
                s[i] = load(f + i * LANES);
                if constexpr (T::min) m[i] = load(f + (NS + i) * LANES);
            }
#pragma GCC unroll 8
            for (int t = 0; t < TN; t++) acc[t] = accumulate<TYPE>(acc[t], q, x[t * groups + g], s, m);
        }
        for (int t = 0; t < TN; t++) store(y + t * ldy + u * LANES, acc[t]);
    }
}

template <int TYPE> void matmul_many(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    const int64_t groups = w.cols / kGroup;
    by_panels<TYPE, 1>(w, x, T, y, ldy, p0, p1, scratch, store_quads, [&](auto, const Spelt* s, const Group* xs, int64_t n, float* out) {
        int64_t t = 0;
        for (; t + 4 <= n; t += 4) tile<TYPE, 4>(*s, groups, xs + t * groups, out + t * ldy, ldy);
        for (; t < n; t++) tile<TYPE, 1>(*s, groups, xs + t * groups, out + t * ldy, ldy);
    });
}

}  // namespace
