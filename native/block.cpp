#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

namespace genmote {
namespace {
constexpr int64_t kFewRows = 16;  // below this, loops over rows are not worth waking a worker
int64_t up16(int64_t n) { return (n + 15) / 16 * 16; }
}  // namespace

// ---- memory ----------------------------------------------------------------------------------------------------------

KVCache::KVCache(int layers, int heads, int dim, int64_t capacity) : layers(layers), heads(heads), dim(dim), capacity(up16(capacity)) {
    size_ = static_cast<size_t>(layers) * heads * dim * this->capacity * 2 * sizeof(uint16_t);
    void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<uint16_t*>(p);
}

KVCache::~KVCache() { munmap(base_, size_); }

KVView KVCache::view(int layer, int head) const {
    size_t each = static_cast<size_t>(capacity) * dim;
    uint16_t* k = base_ + (static_cast<size_t>(layer) * heads + head) * 2 * each;
    return {k, k + each};
}

void KVCache::put(int layer, int head, int64_t row, const uint16_t* k, const uint16_t* v) {
    KVView at = view(layer, head);
    uint16_t* kd = at.k + row / 16 * 16 * dim + row % 16;
    for (int d = 0; d < dim; d++) kd[d * 16] = k[d];
    std::memcpy(at.v + row * dim, v, static_cast<size_t>(dim) * 2);
}

Buffer::~Buffer() { std::free(data_); }

void* Buffer::raw(size_t bytes) {
    if (bytes > size_) {
        std::free(data_);
        size_ = (bytes + 4095) / 4096 * 4096;
        data_ = std::aligned_alloc(64, size_);
        if (!data_) { size_ = 0; throw std::bad_alloc(); }
    }
    return data_;
}

// ---- linear layers ---------------------------------------------------------------------------------------------------

struct Machine::Input {
    const float* x;
    int64_t ld;
    const Group* q;  // null if no consumer is quantised
};

template <typename F> void Machine::each_row(int64_t rows, F&& f) {
    if (rows < kFewRows) {
        for (int64_t i = 0; i < rows; i++) f(i);
        return;
    }
    const int64_t per = 8;
    pool.run(static_cast<int>((rows + per - 1) / per), [&](int task, int) {
        for (int64_t i = task * per; i < std::min(rows, (task + 1) * per); i++) f(i);
    });
}

// Panels that one task takes: enough tasks to share the work evenly, each long enough to be worth claiming.
int64_t Machine::chunk(int64_t panels, int64_t rows, int64_t cols) const {
    if (pool.threads() == 1) return panels;
    int64_t even = std::max<int64_t>(1, panels / (pool.threads() * 6));
    int64_t worth = std::max<int64_t>(1, 16384 / (cols * rows));
    return std::max(even, worth);
}

void Machine::quantise(const float* x, int64_t rows, int64_t ld, int64_t n, Group* out) {
    each_row(rows, [&](int64_t i) { kernels.quantise_row(x + i * ld, n, out + i * (n / kGroup)); });
}

Machine::Input Machine::prepare(const float* x, int64_t rows, int64_t ld, int64_t n, bool quantised) {
    if (!quantised) return {x, ld, nullptr};
    Group* g = quantised_.get<Group>(static_cast<size_t>(rows * (n / kGroup)));
    quantise(x, rows, ld, n, g);
    return {x, ld, g};
}

void Machine::rows_of(const Linear& l, const Input& x, int64_t rows, float* y, int64_t ldy, int64_t p0, int64_t p1, int worker) {
    const Matrix& w = *l.w;
    if (w.quantised()) kernels.matmul(w, x.q, rows, y, ldy, p0, p1, scratch_[worker].spelt.get<uint8_t>(scratch_bytes(w.cols)));
    else kernels.matmul_float(w, x.x, x.ld, rows, y, ldy, p0, p1);
    if (!l.bias) return;
    const int64_t r0 = p0 * kPanel, n = std::min(w.rows, p1 * kPanel) - r0;
    for (int64_t t = 0; t < rows; t++) kernels.add(l.bias + r0, n, y + t * ldy + r0);
}

void Machine::linear(const Linear& l, const float* x, int64_t rows, float* y, int64_t ldy) {
    const Matrix& w = *l.w;
    Input in = prepare(x, rows, w.cols, w.cols, w.quantised());
    const int64_t panels = w.panels(), per = chunk(panels, rows, w.cols);
    pool.run(static_cast<int>((panels + per - 1) / per), [&](int task, int worker) {
        rows_of(l, in, rows, y, ldy, task * per, std::min(panels, (task + 1) * per), worker);
    });
}

void Machine::norm(const Norm& n, const float* x, int64_t rows, float* y) {
    each_row(rows, [&](int64_t i) {
        if (n.centre) kernels.layer_norm(x + i * n.size, n.gain, n.bias, n.size, n.eps, y + i * n.size);
        else kernels.rms_norm(x + i * n.size, n.gain, n.size, n.eps, y + i * n.size);
    });
}

void Machine::embed(const Matrix& w, const int32_t* tokens, int64_t rows, float* y) {
    each_row(rows, [&](int64_t i) { kernels.dequantise_row(w, tokens[i], y + i * w.cols); });
}

// ---- attention -------------------------------------------------------------------------------------------------------

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

void Machine::store(const float* k, const float* v, int64_t ld, const std::vector<Span>& spans, int layer, int heads, int dim) {
    for (const Span& s : spans)
        each_row(s.count, [&](int64_t i) {
            uint16_t kh[1024], vh[1024];  // head_dim is checked where the model is loaded
            for (int h = 0; h < heads; h++) {
                kernels.to_half(k + (s.start + i) * ld + h * dim, dim, kh);
                kernels.to_half(v + (s.start + i) * ld + h * dim, dim, vh);
                s.cache->put(layer, h, s.length + i, kh, vh);
            }
        });
}

void Machine::attend(const float* q, int64_t ldq, float* out, int64_t ldo, const std::vector<Span>& spans, const Block& b) {
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
        float* scores = scratch_[worker].scores.get<float>(static_cast<size_t>(count * kMaxQueries * stride));
        for (int k = 0; k < count; k++, scores += kMaxQueries * stride) {
            AttendTile& t = tiles[k];
            const int64_t j = p.first + k * kMaxQueries;
            t.n = static_cast<int>(std::min<int64_t>(kMaxQueries, last - j));
            for (int i = 0; i < t.n; i++) {
                const int64_t row = (j + i) / group, head = p.head * group + (j + i) % group;
                t.q[i] = q + (s.start + row) * ldq + head * b.dim;
                t.out[i] = out + (s.start + row) * ldo + head * b.dim;
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
    };
    int64_t rows_seen = 0;
    for (const Span& s : spans) rows_seen += s.count * (s.length + s.count);
    const int n = static_cast<int>(list.size());
    if (rows_seen * b.heads * b.dim < 65536) {  // a few microseconds at most
        for (int i = 0; i < n; i++) work(i, 0);
    } else {
        pool.run(n, work);
    }
}

// ---- the block -------------------------------------------------------------------------------------------------------

// x += post(w(in)).
void Machine::add_branch(const Linear& w, const Norm& post, const Input& in, float* x, int64_t rows, int64_t width) {
    const int64_t ld = up16(width), panels = w.w->panels(), per = chunk(panels, rows, w.w->cols);
    float* y = branch_.get<float>(static_cast<size_t>(rows * ld));
    pool.run(static_cast<int>((panels + per - 1) / per), [&](int task, int worker) {
        const int64_t p0 = task * per, p1 = std::min(panels, p0 + per);
        rows_of(w, in, rows, y, ld, p0, p1, worker);
        if (post.gain) return;
        const int64_t r0 = p0 * kPanel, n = std::min(width, p1 * kPanel) - r0;
        for (int64_t t = 0; t < rows; t++) kernels.add(y + t * ld + r0, n, x + t * width + r0);
    });
    if (!post.gain) return;
    each_row(rows, [&](int64_t t) {
        float* v = y + t * ld;
        if (post.centre) kernels.layer_norm(v, post.gain, post.bias, width, post.eps, v);
        else kernels.rms_norm(v, post.gain, width, post.eps, v);
        kernels.add(v, width, x + t * width);
    });
}

// hidden = activation(gate) * up, or activation(up), rounded to 8 bits at once where `down` is quantised.
void Machine::feed_forward(const Block& b, const Input& x, int64_t rows) {
    const Matrix& up = *b.up.w;
    const bool quantised = b.down.w->quantised();
    const int64_t width = up.rows, ld = up16(width), groups = width / kGroup, panels = up.panels();
    float* hidden = quantised ? nullptr : hidden_.get<float>(static_cast<size_t>(rows * ld));
    Group* hidden_q = quantised ? hidden_q_.get<Group>(static_cast<size_t>(rows * groups)) : nullptr;
    // Two panels make a group of 32; bound what a task keeps between the steps.
    int64_t per = (chunk(panels, rows, up.cols * 2) + 1) / 2 * 2;
    if (rows > 1) per = std::min<int64_t>(per, 4);
    pool.run(static_cast<int>((panels + per - 1) / per), [&](int task, int worker) {
        const int64_t p0 = task * per, p1 = std::min(panels, p0 + per), r0 = p0 * kPanel, n = (p1 - p0) * kPanel;
        float* u = scratch_[worker].up.get<float>(static_cast<size_t>(rows * n));
        rows_of(b.up, x, rows, u - r0, n, p0, p1, worker);
        if (b.gate.w) {
            float* g = scratch_[worker].gate.get<float>(static_cast<size_t>(rows * n));
            rows_of(b.gate, x, rows, g - r0, n, p0, p1, worker);
            kernels.glu(g, u, rows * n, b.act, u);
        } else {
            kernels.activate(u, rows * n, b.act, u);
        }
        for (int64_t t = 0; t < rows; t++) {
            if (quantised) kernels.quantise_row(u + t * n, n, hidden_q + t * groups + r0 / kGroup);
            else std::memcpy(hidden + t * ld + r0, u + t * n, static_cast<size_t>(n) * 4);
        }
    });
}

void Machine::block(const Block& b, float* x, int64_t rows, const float* cos, const float* sin, int64_t half, const std::vector<Span>& spans) {
    const int64_t width = b.width, ldq = up16(int64_t(b.heads) * b.dim), ldk = up16(int64_t(b.kv_heads) * b.dim);
    float* h = normed_.get<float>(static_cast<size_t>(rows * width));
    norm(b.attn_norm, x, rows, h);
    float *q = q_.get<float>(static_cast<size_t>(rows * ldq)), *k = k_.get<float>(static_cast<size_t>(rows * ldk)), *v = v_.get<float>(static_cast<size_t>(rows * ldk));
    const bool quantised = b.q.w->quantised() || b.k.w->quantised() || b.v.w->quantised();
    Input in = prepare(h, rows, width, width, quantised);
    {
        const int64_t pq = b.q.w->panels(), pk = b.k.w->panels(), pv = b.v.w->panels(), all = pq + pk + pv, per = chunk(all, rows, width);
        pool.run(static_cast<int>((all + per - 1) / per), [&](int task, int worker) {
            int64_t p0 = task * per, p1 = std::min(all, p0 + per);
            auto part = [&](const Linear& w, float* y, int64_t ld, int64_t from, int64_t n) {
                int64_t a = std::max(p0, from) - from, z = std::min(p1, from + n) - from;
                if (a < z) rows_of(w, in, rows, y, ld, a, z, worker);
            };
            part(b.q, q, ldq, 0, pq);
            part(b.k, k, ldk, pq, pk);
            part(b.v, v, ldk, pq + pk, pv);
        });
    }
    auto head_norm = [&](const Norm& n, float* y, int64_t ld, int heads) {
        if (!n.gain) return;
        const int64_t times = heads * b.dim / n.size;
        each_row(rows, [&](int64_t t) {
            for (int64_t i = 0; i < times; i++) {
                float* p = y + t * ld + i * n.size;
                if (n.centre) kernels.layer_norm(p, n.gain, n.bias, n.size, n.eps, p);
                else kernels.rms_norm(p, n.gain, n.size, n.eps, p);
            }
        });
    };
    head_norm(b.q_norm, q, ldq, b.heads);
    head_norm(b.k_norm, k, ldk, b.kv_heads);
    if (b.rope) {
        rope(q, ldq, rows, b.heads, b.dim, cos, sin, half, b.interleaved);
        rope(k, ldk, rows, b.kv_heads, b.dim, cos, sin, half, b.interleaved);
    }
    store(k, v, ldk, spans, b.index, b.kv_heads, b.dim);
    const int64_t lda = int64_t(b.heads) * b.dim;
    float* attended = attended_.get<float>(static_cast<size_t>(rows * lda));
    attend(q, ldq, attended, lda, spans, b);
    in = prepare(attended, rows, lda, lda, b.o.w->quantised());
    add_branch(b.o, b.post_attn, in, x, rows, width);

    norm(b.ffn_norm, x, rows, h);
    in = prepare(h, rows, width, width, b.up.w->quantised() || (b.gate.w && b.gate.w->quantised()));
    feed_forward(b, in, rows);
    const int64_t inner = b.down.w->cols;
    in = {hidden_.get<float>(0), up16(inner), hidden_q_.get<Group>(0)};
    add_branch(b.down, b.post_ffn, in, x, rows, width);
}

}  // namespace genmote
