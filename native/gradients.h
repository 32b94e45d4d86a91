// The backward pass of each operation on rows of floats, written once over the vector unit of simd.h.
#pragma once
#include "products.h"

namespace {

// ---- attention -------------------------------------------------------------------------------------------------------

inline VF half_rounded(VF v) {  // as keys and values are stored
    uint16_t h[LANES];
    store_half(h, within_half(v));
    return load_half(h);
}

// Keys or values (rows, dim) rounded to float16 and turned over: (dim, rows) in strips, rows up to `whole` zero. `lines`, where it is
// wanted: the same as they are, in strips, with zeros up to whole vectors.
inline void turned(const float* x, int64_t ld, int64_t rows, int64_t whole, int64_t dim, float* out, float* lines) {
    std::memset(out, 0, static_cast<size_t>(dim * whole) * 4);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t d = 0; d < dim; d += LANES) {
            alignas(64) float line[LANES];
            const VF v = half_rounded(load_tail(x + t * ld, d, dim));
            store(line, v);
            if (lines) store(in_strips(lines, rows, t, d), v);
            for (int64_t i = 0; i < LANES && d + i < dim; i++) *in_strips(out, dim, d + i, t) = line[i];
        }
}

inline VF masked(VF v, int64_t at, int64_t begin, int64_t end, VF other) {  // v where a position is in [begin, end)
    VI place;
    for (int i = 0; i < LANES; i++) place[i] = static_cast<int32_t>(at) + i;
    const VI inside = (place >= splat(static_cast<int32_t>(begin))) & (place < splat(static_cast<int32_t>(end)));
    return inside ? v : other;
}

// A row's scores become its probabilities p, and dp (the gradients of p) those of the scores. Over positions [b0, b1), multiples
// of 16, of which the row sees [begin, end).
inline void softmax_back(float* p, float* dp, int64_t b0, int64_t b1, int64_t begin, int64_t end, float scale, float cap, float* slopes) {
    VF top = splat(-INFINITY);
    for (int64_t t = b0; t < b1; t += LANES) {
        VF s = load(p + t) * splat(scale);
        if (cap > 0) {
            const VF share = tanh(s / splat(cap));
            store(slopes + t, splat(1.0f) - share * share);
            s = splat(cap) * share;
        }
        s = masked(s, t, begin, end, splat(-INFINITY));
        top = vmax(top, s);
        store(p + t, s);
    }
    float most = top[0];
    for (int i = 1; i < LANES; i++) most = top[i] > most ? top[i] : most;
    alignas(64) float parts[16];
    VF sum[UNITS] = {};
    for (int64_t t = b0; t < b1; t += 16)
        for (int u = 0; u < UNITS; u++) {
            const VF e = exp(load(p + t + u * LANES) - splat(most));
            store(p + t + u * LANES, e);
            sum[u] += e;
        }
    for (int u = 0; u < UNITS; u++) store(parts + u * LANES, sum[u]);
    const VF inverse = splat(1.0f / tree16(parts));
    VF both[UNITS] = {};
    for (int64_t t = b0; t < b1; t += 16)
        for (int u = 0; u < UNITS; u++) {
            const VF share = load(p + t + u * LANES) * inverse;
            store(p + t + u * LANES, share);
            both[u] = fma(share, load(dp + t + u * LANES), both[u]);
        }
    for (int u = 0; u < UNITS; u++) store(parts + u * LANES, both[u]);
    const VF mean = splat(tree16(parts));
    for (int64_t t = b0; t < b1; t += LANES) {
        VF ds = load(p + t) * (load(dp + t) - mean);
        if (cap > 0) ds *= load(slopes + t);
        store(dp + t, ds * splat(scale));
    }
}

void attend_back(const AttendBack& a) {
    const int64_t rows = a.rows, dim = a.dim, whole = in_whole_strips(rows), wide = in_whole_strips(dim);
    float* free = a.scratch;
    auto take = [&](int64_t n) { float* at = free; free += n; return at; };
    float *keys = take(dim * whole), *values = take(dim * whole);                 // turned: (dim, rows)
    float* lines = take(wide * whole);                                            // keys (rows, dim) in strips
    float *dk = take(wide * whole), *dv = take(wide * whole);                     // (rows, wide)
    float *q = take(kBackQueries * wide), *dout = take(kBackQueries * wide);      // (queries, dim) in strips
    float *dq = take(kBackQueries * wide);                                        // (queries, wide)
    float *p = take(kBackQueries * whole), *dp = take(kBackQueries * whole), *slopes = take(whole);
    std::memset(lines, 0, static_cast<size_t>(wide * whole) * 4);
    turned(a.k, a.ldk, rows, whole, dim, keys, lines);
    turned(a.v, a.ldk, rows, whole, dim, values, nullptr);
    const int64_t vectors = wide / LANES;
    for (int h = 0; h < a.heads; h++)
        for (int64_t i0 = 0; i0 < rows; i0 += kBackQueries) {
            const int64_t n = rows - i0 < kBackQueries ? rows - i0 : kBackQueries, i1 = i0 + n, at = i0 * a.ldq + h * dim;
            const int64_t b0 = a.window > 0 && i0 + 1 > a.window ? (i0 + 1 - a.window) / 32 * 32 : 0, b1 = (i1 + 15) / 16 * 16;
            const int64_t seen = (b1 - b0) / LANES;
            product<true>(a.q + at, a.ldq, in_strips(keys, dim, 0, b0), kStrip, dim * kStrip, dim, p + b0, whole, n, seen, true);
            product<true>(a.dout + at, a.ldq, in_strips(values, dim, 0, b0), kStrip, dim * kStrip, dim, dp + b0, whole, n, seen, true);
            for (int64_t i = 0; i < n; i++) {
                const int64_t end = i0 + i + 1, begin = a.window > 0 && end > a.window ? end - a.window : 0;
                softmax_back(p + i * whole, dp + i * whole, b0, b1, begin, end, a.scale, a.cap, slopes);
            }
            product<true>(dp + b0, whole, in_strips(lines, rows, b0, 0), kStrip, rows * kStrip, i1 - b0, dq, wide, n, vectors, true);
            for (int64_t i = 0; i < n; i++) std::memcpy(a.dq + at + i * a.ldq, dq + i * wide, static_cast<size_t>(dim) * 4);
            copy_strips(a.q + at, a.ldq, n, dim, q);
            copy_strips(a.dout + at, a.ldq, n, dim, dout);
            // Rows that no query before has seen begin their sums here.
            const int64_t old = h ? i1 : i0;
            auto add = [&](const float* of, const float* w, float* to) {
                if (b0 < old) product<false>(of + b0, whole, w, kStrip, n * kStrip, n, to + b0 * wide, wide, old - b0, vectors, false);
                if (old < i1) product<false>(of + old, whole, w, kStrip, n * kStrip, n, to + old * wide, wide, i1 - old, vectors, true);
            };
            add(dp, q, dk);
            add(p, dout, dv);
        }
    for (int64_t t = 0; t < rows; t++) {
        std::memcpy(a.dk + t * a.ldk, dk + t * wide, static_cast<size_t>(dim) * 4);
        std::memcpy(a.dv + t * a.ldk, dv + t * wide, static_cast<size_t>(dim) * 4);
    }
}

// ---- norms -----------------------------------------------------------------------------------------------------------

void norm_back(const float* dy, const float* x, const float* gain, int64_t n, float eps, bool centre, float* dx, float* mean, float* inverse) {
    const float width = static_cast<float>(n), middle = centre ? sum16(x, n, [](VF v, VF a) { return a + v; }) / width : 0.0f;
    const float squares = sum16(x, n, [&](VF v, VF a) { const VF c = v - splat(middle); return fma(c, c, a); });
    const float inv = 1.0f / std::sqrt(squares / width + eps);
    each(x, n, dx, [&](VF v, int64_t i) { return load_tail(dy, i, n) * load_tail(gain, i, n) * ((v - splat(middle)) * splat(inv)); });
    const VF along = splat(sum16(dx, n, [](VF v, VF a) { return a + v; }) / width);
    each(x, n, dx, [&](VF v, int64_t i) {
        return splat(inv) * (load_tail(dy, i, n) * load_tail(gain, i, n) - (v - splat(middle)) * splat(inv) * along);
    });
    if (centre) {
        const VF shift = splat(sum16(dx, n, [](VF v, VF a) { return a + v; }) / width);
        each(dx, n, dx, [&](VF v, int64_t) { return v - shift; });
    }
    *mean = middle;
    *inverse = inv;
}

void gain_back(const float* dy, const float* x, const float* means, const float* inverses, int64_t rows, int64_t n, int64_t c0, int64_t c1, float* dgain,
               float* dbias) {
    for (int64_t c = c0; c < c1; c += LANES) {
        VF gain{}, bias{};
        const int64_t stop = c + LANES < c1 ? c + LANES : c1;
        for (int64_t r = 0; r < rows; r++) {
            const VF d = load_tail(dy + r * n, c, stop), unit = (load_tail(x + r * n, c, stop) - splat(means[r])) * splat(inverses[r]);
            gain = fma(d, unit, gain);
            bias += d;
        }
        for (int64_t i = c; i < stop; i++) {
            dgain[i] = gain[i - c];
            if (dbias) dbias[i] = bias[i - c];
        }
    }
}

// ---- activations and the loss ----------------------------------------------------------------------------------------

struct Curve { VF value, slope; };

// Both are of the form v * share, share = 1 / (1 + exp(-u)), whose slope in u is share * (1 - share).
inline Curve curve(VF v, Act kind) {
    const VF one = splat(1.0f), two = splat(2.0f), most = splat(128.0f);
    if (kind == Act::relu) return {vmax(v, VF{}), v > VF{} ? one : VF{}};
    const VF c = splat(0.7978845608f);
    const VF u = kind == Act::silu ? v : two * c * (v + splat(0.044715f) * v * v * v);
    const VF power = exp(VF{} - u), share = one / (one + power), flat = share * (power * share);
    const VF w = VF{} - vmax(VF{} - vmax(v, VF{} - most), VF{} - most);  // beyond, shares are 0 or 1
    const VF steep = kind == Act::silu ? one : two * c * (one + splat(0.134145f) * w * w);
    return {v * share, share + w * flat * steep};
}

void glu_back(const float* d, const float* gate, const float* up, int64_t n, Act kind, float* dgate, float* dup) {
    alignas(64) float line[16];
    each(gate, n, dgate, [&](VF g, int64_t i) {
        const VF dv = load_tail(d, i, n);
        const Curve c = curve(g, kind);
        if (i + LANES <= n) {
            store(dup + i, dv * c.value);
        } else {
            store(line, dv * c.value);
            std::memcpy(dup + i, line, static_cast<size_t>(n - i) * 4);
        }
        return dv * load_tail(up, i, n) * c.slope;
    });
}

void activate_back(const float* d, const float* x, int64_t n, Act kind, float* dx) {
    each(x, n, dx, [&](VF v, int64_t i) { return load_tail(d, i, n) * curve(v, kind).slope; });
}

void soft_cap_back(const float* d, const float* y, int64_t n, float cap, float* dx) {
    each(y, n, dx, [&](VF v, int64_t i) {
        const VF share = v / splat(cap);
        return load_tail(d, i, n) * (splat(1.0f) - share * share);
    });
}

double cross_entropy(float* x, int64_t n, int64_t target, float weight) {
    if (weight == 0) {
        std::memset(x, 0, static_cast<size_t>(n) * 4);
        return 0;
    }
    VF tops = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) tops = vmax(tops, load(x + i));
    float top = -INFINITY;
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int l = 0; l < LANES; l++) top = tops[l] > top ? tops[l] : top;
    const double told = static_cast<double>(x[target] - top);
    each(x, n, x, [&](VF v, int64_t) { return exp(v - splat(top)); });
    const float total = sum16(x, n, [](VF v, VF a) { return a + v; });
    const float factor = weight / total;
    each(x, n, x, [&](VF v, int64_t) { return v * splat(factor); });
    x[target] -= weight;
    return static_cast<double>(weight) * (std::log(static_cast<double>(total)) - told);
}

}  // namespace
