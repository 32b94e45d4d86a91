// Attention over a cache: rotation, storing the batch's rows, scores and sums, on the thread pool.
#include <algorithm>
#include <cmath>

#include "block.h"

namespace genmote {
void rotary(const int32_t* positions, int64_t rows, const double* inv_freq, int64_t half, float scale, float* cos, float* sin) {
    // Range reduction by pi/2 in three parts and the Taylor-like minimax polynomials of the classic double-precision kernels:
    // additions and multiplications only, hence the same bits everywhere.
    constexpr double p1 = 0x1.921fb544p+0, p2 = 0x1.0b4611a6p-34, p3 = 0x1.3198a2e037073p-69;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < half; i++) {
            double a = positions[t] * inv_freq[i];
            double n = std::nearbyint(a * 0.63661977236758134308);
            double r = ((a - n * p1) - n * p2) - n * p3, z = r * r;
            double s = r + r * z * (-1.66666666666666324348e-01 + z * (8.33333333332248946124e-03 + z * (-1.98412698298579493134e-04 +
                       z * (2.75573137070700676789e-06 + z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
            double c = 1.0 - 0.5 * z + z * z * (4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * (2.48015872894767294178e-05 +
                       z * (-2.75573143513906633035e-07 + z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
            int64_t quadrant = static_cast<int64_t>(n) & 3;
            double cv = quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s;
            double sv = quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c;
            cos[t * half + i] = static_cast<float>(cv) * scale;
            sin[t * half + i] = static_cast<float>(sv) * scale;
        }
}

void Machine::rope(float* x, int64_t ld, int64_t rows, int heads, int dim, const float* cos, const float* sin, int64_t half, bool interleaved) {
    each_row(rows, [&](int64_t t) { kernels.rope(x + t * ld, heads, dim, cos + t * half, sin + t * half, half, interleaved); });
}

void Machine::store(const float* q, int64_t ldq, const float* k, const float* v, int64_t ld, const std::vector<Span>& spans, const Block& b) {
    for (const Span& s : spans) {
        s.cache->rewrite(b.index, s.length);  // a pass that was interrupted may have put rows of its own on disk
        each_row(s.count, [&](int64_t i) {
            uint16_t keys[1024], values[1024];  // head_dim is checked where the model is loaded
            for (int h = 0; h < b.kv_heads; h++) {
                const float *kr = k + (s.start + i) * ld + h * b.dim, *vr = v + (s.start + i) * ld + h * b.dim;
                KVCache::Row row{keys, values, 0, 0};
                if (s.cache->kind == Kind::f16) {
                    kernels.to_half(kr, b.dim, keys);
                    kernels.to_half(vr, b.dim, values);
                } else {
                    kernels.encode_row(kr, b.dim, s.cache->kind, true, reinterpret_cast<uint8_t*>(keys), &row.k_scale);
                    kernels.encode_row(vr, b.dim, s.cache->kind, false, reinterpret_cast<uint8_t*>(values), &row.v_scale);
                }
                s.cache->write(b.index, h, s.length + i, row);
            }
        });
        if (!s.cache->queries) continue;
        s.cache->stored_queries(s.position + s.count);
        for (int64_t i = std::max<int64_t>(0, s.count - s.cache->query_rows()); i < s.count; i++)
            kernels.to_half(q + (s.start + i) * ldq, int64_t(b.heads) * b.dim, s.cache->query(b.index, s.position + i));
    }
}

void Machine::attend(const float* q, int64_t ldq, float* out, int64_t ldo, const std::vector<Span>& spans, const Block& b) {
    for (const Span& s : spans) s.cache->open(b.index);
    const int64_t group = b.heads / b.kv_heads;
    struct Piece { const Span* span; int head; int64_t first; };
    static thread_local std::vector<Piece> pieces;
    pieces.clear();
    for (const Span& s : spans) {
        // A task: some tiles of eight (row, head) queries that share a key-value head.
        const int64_t per = s.count < kFewRows ? kMaxQueries : kMaxTiles * kMaxQueries;
        for (int h = 0; h < b.kv_heads; h++)
            for (int64_t j = 0; j < s.count * group; j += per) pieces.push_back({&s, h, j});
    }
    const std::vector<Piece>& list = pieces;
    auto work = [&](int task, int worker) {
        const Piece& p = list[task];
        const Span& s = *p.span;
        const int64_t per = s.count < kFewRows ? kMaxQueries : kMaxTiles * kMaxQueries, last = std::min(p.first + per, s.count * group);
        AttendTile tiles[kMaxTiles];
        const int count = static_cast<int>((last - p.first + kMaxQueries - 1) / kMaxQueries);
        const int64_t stride = up16(s.length + (last - 1) / group + 1) + 16;
        const bool codes = s.cache->kind != Kind::f16;
        const int64_t wide = (b.dim + 31) / 32 * 32, turned = codes ? count * kMaxQueries * wide : 0;
        float* scores = scratch_[worker].scores.get<float>(static_cast<size_t>(count * kMaxQueries * stride + 2 * turned));
        float *queries = scores + count * kMaxQueries * stride, *outs = queries + turned;
        for (int k = 0; k < count; k++, scores += kMaxQueries * stride) {
            AttendTile& t = tiles[k];
            const int64_t j = p.first + k * kMaxQueries;
            t.n = static_cast<int>(std::min<int64_t>(kMaxQueries, last - j));
            for (int i = 0; i < t.n; i++) {
                const int64_t row = (j + i) / group, head = p.head * group + (j + i) % group;
                t.q[i] = q + (s.start + row) * ldq + head * b.dim;
                t.out[i] = out + (s.start + row) * ldo + head * b.dim;
                if (codes) {
                    float* turned_q = queries + (k * kMaxQueries + i) * wide;
                    std::fill(std::copy_n(t.q[i], b.dim, turned_q), turned_q + wide, 0.0f);
                    kernels.rotate(turned_q, 1, b.dim);
                    t.q[i] = turned_q;
                    t.out[i] = outs + (k * kMaxQueries + i) * wide;
                }
                t.end[i] = s.length + row + 1;
                t.begin[i] = b.window > 0 ? std::max<int64_t>(0, t.end[i] - b.window) : 0;
            }
            t.kv = s.cache->view(b.index, p.head);
            t.head_dim = b.dim;
            t.scale = b.scale;
            t.cap = b.cap;
            t.scores = scores;
            t.stride = stride;
        }
        kernels.attend(tiles, count);
        if (!codes) return;
        for (int64_t j = p.first; j < last; j++) {
            const int64_t row = j / group, head = p.head * group + j % group, i = j - p.first;
            float* turned_out = outs + i * wide;
            kernels.rotate(turned_out, 1, b.dim);
            std::copy_n(turned_out, b.dim, out + (s.start + row) * ldo + head * b.dim);
        }
    };
    int64_t rows_seen = 0;
    for (const Span& s : spans) rows_seen += s.count * (s.length + s.count);
    const int n = static_cast<int>(list.size());
    if (rows_seen * b.heads * b.dim < 65536) {  // a few microseconds at most
        for (int i = 0; i < n; i++) work(i, 0);
    } else {
        pool.run(n, work);
    }
    for (const Span& s : spans) s.cache->close(b.index, s.length + s.count);
}

}  // namespace genmote
