// Products of float matrices, written once over the vector unit of simd.h: what gradients are made of. Every value is one chain of
// fused multiply-adds over the steps in order, whatever is held in registers meanwhile.
#pragma once
#include "matmul.h"
#include "simd.h"

namespace {

constexpr int kWide = 2;                        // vectors of columns that are held at a time
constexpr int kTall = LANES == 8 ? 6 : 12;      // rows that meet them: as many sums as there are registers
constexpr int64_t kStrip = kWide * LANES;       // columns of a strip
inline int64_t in_whole_strips(int64_t n) { return (n + 31) / 32 * 32; }  // on every instruction set

// Where a(t, o) lies: `row` floats from one t to the next, and a float from one o to the next (ALONG), or the other way round.
template <bool ALONG> inline float at(const float* a, int64_t row, int64_t t, int64_t o) { return ALONG ? a[t * row + o] : a[o * row + t]; }

// y[t][c] (+)= sum over o < steps of a(t, o) * w[o][c]: NT rows, NV vectors of columns.
template <bool ALONG, int NT, int NV> inline void product_tile(const float* a, int64_t row, const float* w, int64_t ldw, int64_t steps, float* y, int64_t ldy, bool fresh) {
    VF sum[NT][NV];
#pragma GCC unroll 12
    for (int t = 0; t < NT; t++)
        for (int v = 0; v < NV; v++) sum[t][v] = fresh ? VF{} : load(y + t * ldy + v * LANES);
    for (int64_t o = 0; o < steps; o++) {
        VF c[NV];
        for (int v = 0; v < NV; v++) c[v] = load(w + o * ldw + v * LANES);
#pragma GCC unroll 12
        for (int t = 0; t < NT; t++) {
            const VF each = splat(at<ALONG>(a, row, t, o));
            for (int v = 0; v < NV; v++) sum[t][v] = fma(each, c[v], sum[t][v]);
        }
    }
#pragma GCC unroll 12
    for (int t = 0; t < NT; t++)
        for (int v = 0; v < NV; v++) store(y + t * ldy + v * LANES, sum[t][v]);
}

template <bool ALONG, int NT> inline void product_rows(const float* a, int64_t row, const float* w, int64_t ldw, int64_t strip, int64_t steps, float* y, int64_t ldy, int64_t vectors, bool fresh) {
    for (int64_t v = 0; v < vectors; v += kWide, w += strip, y += kStrip) {
        if (v + kWide <= vectors) product_tile<ALONG, NT, kWide>(a, row, w, ldw, steps, y, ldy, fresh);
        else product_tile<ALONG, NT, 1>(a, row, w, ldw, steps, y, ldy, fresh);
    }
}

// The same for any number of rows and of vectors of columns; the strips of w lie `strip` floats apart.
template <bool ALONG> void product(const float* a, int64_t row, const float* w, int64_t ldw, int64_t strip, int64_t steps, float* y, int64_t ldy, int64_t rows, int64_t vectors, bool fresh) {
    // Rows that are a multiple of 32 KB apart (logits often are) drive each other out of the caches: they are gone through as copies.
    constexpr int64_t most = 256, apart = most + 16;
    alignas(64) float copy[kTall * apart];
    const bool copied = ALONG && row % 8192 == 0 && steps <= most && vectors > 2 * kWide;
    int64_t t = 0;
    auto next = [&](auto tall) {
        constexpr int NT = tall.value;
        const float* from = a + (ALONG ? t * row : t);
        for (int i = 0; copied && i < NT; i++) std::memcpy(copy + i * apart, from + i * row, static_cast<size_t>(steps) * 4);
        product_rows<ALONG, NT>(copied ? copy : from, copied ? apart : row, w, ldw, strip, steps, y + t * ldy, ldy, vectors, fresh);
        t += NT;
    };
    while (t + kTall <= rows) next(std::integral_constant<int, kTall>{});
    if constexpr (kTall > 8)
        while (t + 8 <= rows) next(std::integral_constant<int, 8>{});
    while (t + 4 <= rows) next(std::integral_constant<int, 4>{});
    while (t < rows) next(std::integral_constant<int, 1>{});
}

// ---- weights as floats -----------------------------------------------------------------------------------------------

// Strips of columns, each [rows][kStrip]: where column c of row r is.
inline float* in_strips(float* out, int64_t rows, int64_t r, int64_t c) { return out + (c / kStrip * rows + r) * kStrip + c % kStrip; }

// Group g of panel p as floats, its 16 rows from row r0 and its 32 columns from column c0 of the strips on.
template <int TYPE> void float_group(const Matrix& w, int64_t p, int64_t g, float* out, int64_t rows, int64_t r0, int64_t c0) {
    using T = Traits<TYPE>;
    const int64_t groups = w.cols / kGroup;
    const uint8_t* panel = w.panel(p);
    const Scales<TYPE> scales(panel, groups);
    for (int u = 0; u < UNITS; u++) {
        VB q[8];
        VF s[2], m[2];
        unpack<TYPE>(panel + g * T::bytes + u * UB, q);
        scales.at(g, u, s, m);
        alignas(64) uint8_t lines[LANES][kGroup];  // a row's codes side by side
        for (int j = 0; j < 8; j++) {
            alignas(64) uint8_t quads[UB];
            store(quads, q[j]);
            for (int r = 0; r < LANES; r++) std::memcpy(lines[r] + 4 * j, quads + 4 * r, 4);
        }
        for (int r = 0; r < LANES; r++)
            for (int c = 0; c < kGroup; c += LANES) {
                const int h = T::half ? c / 16 : 0;
                VI code = load_u8(lines[r] + c);
                if constexpr (T::offset) code -= splat(1 << T::shift);
                VF value = to_float(code) * splat(s[h][r]);
                if constexpr (T::min) value += splat(m[h][r]);
                store(in_strips(out, rows, r0 + u * LANES + r, c0 + c), value);
            }
    }
}

template <int TYPE> void float_columns(const Matrix& w, int64_t p, int64_t first, int64_t end, float* out, int64_t rows, int64_t r0, int64_t c0) {
    const uint8_t* panel = w.panel(p);
    for (int64_t k = first; k < end; k++)
        for (int u = 0; u < UNITS; u++) {
            alignas(64) float column[LANES];
            store(column, load_weight<TYPE>(panel, k * kPanel + u * LANES));
            for (int r = 0; r < LANES; r++) *in_strips(out, rows, r0 + u * LANES + r, c0 + k - first) = column[r];
        }
}

// Columns [first, end) of panels [p0, p1) as floats in strips; `first` is a multiple of 32. Columns that a strip has beyond are zero.
void spell_out(const Matrix& w, int64_t p0, int64_t p1, int64_t first, int64_t end, float* out) {
    const int64_t rows = (p1 - p0) * kPanel;
    if (!w.quantised() && (end - first) % kStrip) std::memset(out, 0, static_cast<size_t>(rows * ((end - first + kStrip - 1) / kStrip * kStrip)) * 4);
    for (int64_t p = p0; p < p1; p++) {
        const int64_t r0 = (p - p0) * kPanel;
        switch (w.type) {
#define GENMOTE_CASE(T_) case T_: for (int64_t c = first; c < end; c += kGroup) float_group<T_>(w, p, c / kGroup, out, rows, r0, c - first); break;
            GENMOTE_EACH_TYPE(GENMOTE_CASE)
#undef GENMOTE_CASE
            case F32: float_columns<F32>(w, p, first, end, out, rows, r0, 0); break;
            case F16: float_columns<F16>(w, p, first, end, out, rows, r0, 0); break;
            case BF16: float_columns<BF16>(w, p, first, end, out, rows, r0, 0); break;
        }
    }
}

void matmul_back(const Matrix& w, const float* dy, int64_t ldy, int64_t T, float* dx, int64_t ldx, int64_t p0, int64_t p1, int64_t first, int64_t end, float* scratch) {
    const int64_t columns = end - first < kBackColumns ? end - first : kBackColumns;
    const int64_t panels = kBackFloats / (in_whole_strips(columns) * kPanel);  // the fewer columns, the longer the runs of dy
    for (int64_t p = p0; p < p1; p += panels) {
        const int64_t next = p + panels < p1 ? p + panels : p1;
        const int64_t held = (next - p) * kPanel, left = w.rows - p * kPanel, steps = held < left ? held : left;
        for (int64_t c = first; c < end; c += columns) {
            const int64_t stop = c + columns < end ? c + columns : end;
            spell_out(w, p, next, c, stop, scratch);
            product<true>(dy + p * kPanel, ldy, scratch, kStrip, held * kStrip, steps, dx + c, ldx, T, (stop - c + 15) / 16 * UNITS, p == 0);
        }
    }
}

// The n columns of rows of b, in strips; what is missing of the last strip is zero.
inline void copy_strips(const float* b, int64_t ldb, int64_t rows, int64_t n, float* out) {
    for (int64_t r = 0; r < rows; r++, b += ldb) {
        int64_t c = 0;
        for (; c + kStrip <= n; c += kStrip)
            for (int64_t v = 0; v < kStrip; v += LANES) store(in_strips(out, rows, r, c) + v, load(b + c + v));
        if (c == n) continue;
        float* line = in_strips(out, rows, r, c);
        std::memcpy(line, b + c, static_cast<size_t>(n - c) * 4);
        std::memset(line + n - c, 0, static_cast<size_t>(c + kStrip - n) * 4);
    }
}

void outer(const float* a, int64_t lda, int64_t p, const float* b, int64_t ldb, int64_t q, int64_t N, float* y, int64_t ldy, bool fresh, float* scratch) {
    constexpr int64_t most = 2048;  // columns
    for (int64_t c = 0; c < q; c += most) {
        const int64_t n = q - c < most ? q - c : most, rows = kBackFloats / in_whole_strips(n);
        for (int64_t t = 0; t < N; t += rows) {
            const int64_t steps = N - t < rows ? N - t : rows;
            copy_strips(b + t * ldb + c, ldb, steps, n, scratch);
            product<false>(a + t * lda, lda, scratch, kStrip, steps * kStrip, steps, y + c, ldy, p, (n + 15) / 16 * UNITS, fresh && t == 0);
        }
    }
}

void spell_all(const Matrix& w, float* out) { spell_out(w, 0, w.panels(), 0, w.cols, out); }

void product_with(const float* a, int64_t lda, const Matrix& w, const float* spelt, float* y, int64_t ldy, int64_t T, bool fresh) {
    product<true>(a, lda, spelt, kStrip, w.panels() * kPanel * kStrip, w.rows, y, ldy, T, (w.cols + 15) / 16 * UNITS, fresh);
}

}  // namespace
