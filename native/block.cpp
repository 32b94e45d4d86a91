#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "stream.h"

namespace genmote {
// ---- memory ----------------------------------------------------------------------------------------------------------

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

// Where streamed matrices lie while they are in use.
struct Machine::Lent {
    static constexpr int kMost = 3;
    const Linear* of;
    int count;
    int64_t begin = 0;
    Matrix matrices[kMost];
    Linear linears[kMost];  // views of `matrices`, or those that were given where nothing is streamed
    int held = 0;

    Lent(const Linear* of, int count) : of(of), count(count) { std::copy(of, of + count, linears); }
    ~Lent() {
        for (int i = 0; i < held; i++)
            if (linears[i].w != of[i].w) of[i].w->source->release(*of[i].w, begin);
    }
    void take(int i, const uint8_t* data) {
        matrices[i] = *of[i].w;
        matrices[i].data = data;
        linears[i].w = &matrices[i];
    }
    int64_t acquire(int64_t from) {  // panels from `from` on, up to the end that is returned
        begin = from;
        int64_t end = of[0].w->panels();
        for (int i = 0; i < count; i++) {
            if (of[i].w && of[i].w->source) {
                const uint8_t* data;
                end = std::min(end, of[i].w->source->acquire(*of[i].w, from, &data));
                take(i, data);
            }
            held = i + 1;
        }
        return end;
    }
    bool acquire_all() {  // every panel of all of them, or nothing
        const Matrix* w[kMost];
        const uint8_t* data[kMost];
        int streamed = 0;
        for (int i = 0; i < count; i++) {
            w[i] = of[i].w;
            streamed += w[i]->source != nullptr;
        }
        if (!streamed) return true;
        if (streamed < count || !w[0]->source->acquire_all(w, count, data)) return false;
        for (int i = 0; i < count; i++) take(i, data[i]);
        held = count;
        return true;
    }
};

// f(linears, p0, p1) over all panels of matrices that have as many and are cut alike.
template <typename F> void Machine::each_part(const Linear* linears, int count, F&& f) {
    for (int64_t p = 0; p < linears[0].w->panels();) {
        Lent lent(linears, count);
        const int64_t end = lent.acquire(p);
        f(lent.linears, p, end);
        p = end;
    }
}

void Machine::each_part_of(const Matrix& w, const std::function<void(const Matrix&, int64_t, int64_t)>& f) {
    const Linear l{&w};
    each_part(&l, 1, [&](const Linear* part, int64_t p0, int64_t p1) { f(*part->w, p0, p1); });
}

void Machine::linear(const Linear& l, const float* x, int64_t rows, float* y, int64_t ldy) {
    Input in = prepare(x, rows, l.w->cols, l.w->cols, l.w->quantised());
    each_part(&l, 1, [&](const Linear* part, int64_t p0, int64_t p1) { panels_of(*part, in, rows, y, ldy, p0, p1); });
}

void Machine::panels_of(const Linear& l, const Input& in, int64_t rows, float* y, int64_t ldy, int64_t p0, int64_t p1) {
    const int64_t per = chunk(p1 - p0, rows, l.w->cols);
    pool.run(static_cast<int>((p1 - p0 + per - 1) / per), [&](int task, int worker) {
        rows_of(l, in, rows, y, ldy, p0 + task * per, std::min(p1, p0 + (task + 1) * per), worker);
    });
}

void Machine::adapt(const Matrix& down, const Matrix& up, float scale, const float* x, int64_t rows, float* y) {
    const int64_t per = 32, low = up16(down.rows), wide = up16(up.rows);  // what few rows are on their way through stays in the caches
    pool.run(static_cast<int>((rows + per - 1) / per), [&](int task, int worker) {
        const int64_t t = task * per, n = std::min(per, rows - t);
        float *inner = scratch_[worker].floats.get<float>(static_cast<size_t>(per * (low + wide))), *update = inner + per * low;
        kernels.matmul_float(down, x + t * down.cols, down.cols, n, inner, low, 0, down.panels());
        kernels.matmul_float(up, inner, low, n, update, wide, 0, up.panels());
        for (int64_t i = 0; i < n; i++) kernels.add_scaled(update + i * wide, up.rows, scale, y + (t + i) * up.rows);
    });
}

void Machine::norm(const Norm& n, const float* x, int64_t rows, float* y) {
    each_row(rows, [&](int64_t i) {
        if (n.centre) kernels.layer_norm(x + i * n.size, n.gain, n.bias, n.size, n.eps, y + i * n.size);
        else kernels.rms_norm(x + i * n.size, n.gain, n.size, n.eps, y + i * n.size);
    });
}

void Machine::embed(const Matrix& w, const int32_t* tokens, int64_t rows, float* y) {
    if (w.source) w.source->each_row(w, tokens, rows, [&](int64_t i, const Matrix& here) { kernels.dequantise_row(here, tokens[i], y + i * w.cols); });
    else each_row(rows, [&](int64_t i) { kernels.dequantise_row(w, tokens[i], y + i * w.cols); });
}

// What l's own matrix takes: `in`, or what the first matrix of one of low rank makes of it.
Machine::Input Machine::lowered(const Linear& l, const Input& in, int64_t rows, Low& to) {
    if (!l.down) return in;
    const Linear first{l.down};
    const int64_t rank = l.down->rows, ld = up16(rank);
    float* y = to.x.get<float>(static_cast<size_t>(rows * ld));
    each_part(&first, 1, [&](const Linear* part, int64_t p0, int64_t p1) { panels_of(*part, in, rows, y, ld, p0, p1); });
    if (!l.w->quantised()) return {y, ld, nullptr};
    Group* g = to.q.get<Group>(static_cast<size_t>(rows * (rank / kGroup)));
    quantise(y, rows, ld, rank, g);
    return {y, ld, g};
}

// ---- the block -------------------------------------------------------------------------------------------------------

// x += post(w(in)).
void Machine::add_branch(const Linear& w, const Norm& post, const Input& from, float* x, int64_t rows, int64_t width) {
    const Input in = lowered(w, from, rows, low_[0]);
    const int64_t ld = up16(width);
    float* y = branch_.get<float>(static_cast<size_t>(rows * ld));
    each_part(&w, 1, [&](const Linear* part, int64_t begin, int64_t end) {
        const int64_t per = chunk(end - begin, rows, w.w->cols);
        pool.run(static_cast<int>((end - begin + per - 1) / per), [&](int task, int worker) {
            const int64_t p0 = begin + task * per, p1 = std::min(end, p0 + per);
            rows_of(*part, in, rows, y, ld, p0, p1, worker);
            if (post.gain) return;
            const int64_t r0 = p0 * kPanel, n = std::min(width, p1 * kPanel) - r0;
            for (int64_t t = 0; t < rows; t++) kernels.add(y + t * ld + r0, n, x + t * width + r0);
        });
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
    const bool quantised = b.down.first().quantised();
    const Input in[] = {lowered(b.up, x, rows, low_[0]), b.gate.w ? lowered(b.gate, x, rows, low_[1]) : x};
    const int64_t width = up.rows, ld = up16(width), groups = width / kGroup;
    float* hidden = quantised ? nullptr : hidden_.get<float>(static_cast<size_t>(rows * ld));
    Group* hidden_q = quantised ? hidden_q_.get<Group>(static_cast<size_t>(rows * groups)) : nullptr;
    const Linear pair[] = {b.up, b.gate};
    each_part(pair, b.gate.w ? 2 : 1, [&](const Linear* part, int64_t begin, int64_t end) {
        // Two panels make a group of 32; bound what a task keeps between the steps.
        int64_t per = (chunk(end - begin, rows, up.cols * 2) + 1) / 2 * 2;
        if (rows > 1) per = std::min<int64_t>(per, 4);
        pool.run(static_cast<int>((end - begin + per - 1) / per), [&](int task, int worker) {
            const int64_t p0 = begin + task * per, p1 = std::min(end, p0 + per), r0 = p0 * kPanel, n = (p1 - p0) * kPanel;
            float* u = scratch_[worker].up.get<float>(static_cast<size_t>(rows * n));
            rows_of(part[0], in[0], rows, u - r0, n, p0, p1, worker);
            if (b.gate.w) {
                float* g = scratch_[worker].gate.get<float>(static_cast<size_t>(rows * n));
                rows_of(part[1], in[1], rows, g - r0, n, p0, p1, worker);
                kernels.glu(g, u, rows * n, b.act, u);
            } else {
                kernels.activate(u, rows * n, b.act, u);
            }
            for (int64_t t = 0; t < rows; t++) {
                if (quantised) kernels.quantise_row(u + t * n, n, hidden_q + t * groups + r0 / kGroup);
                else std::memcpy(hidden + t * ld + r0, u + t * n, static_cast<size_t>(n) * 4);
            }
        });
    });
}

// q, k and v in one loop where all their panels are at hand and none is of low rank, else one after the other.
void Machine::project(const Block& b, const Input& in, int64_t rows, float* const* y, const int64_t* ld) {
    const Linear all[] = {b.q, b.k, b.v};
    Lent lent(all, 3);
    if (b.q.down || b.k.down || b.v.down || !lent.acquire_all()) {
        for (int i = 0; i < 3; i++) {
            const Input own = lowered(all[i], in, rows, low_[0]);
            each_part(&all[i], 1, [&](const Linear* part, int64_t p0, int64_t p1) { panels_of(*part, own, rows, y[i], ld[i], p0, p1); });
        }
        return;
    }
    int64_t from[4] = {};
    for (int i = 0; i < 3; i++) from[i + 1] = from[i] + all[i].w->panels();
    const int64_t per = chunk(from[3], rows, b.width);
    pool.run(static_cast<int>((from[3] + per - 1) / per), [&](int task, int worker) {
        const int64_t p0 = task * per, p1 = std::min(from[3], p0 + per);
        for (int i = 0; i < 3; i++) {
            const int64_t a = std::max(p0, from[i]) - from[i], z = std::min(p1, from[i + 1]) - from[i];
            if (a < z) rows_of(lent.linears[i], in, rows, y[i], ld[i], a, z, worker);
        }
    });
}

void Machine::block(const Block& b, float* x, int64_t rows, const float* cos, const float* sin, int64_t half, const std::vector<Span>& spans) {
    const int64_t width = b.width, ldq = up16(int64_t(b.heads) * b.dim), ldk = up16(int64_t(b.kv_heads) * b.dim);
    float* h = normed_.get<float>(static_cast<size_t>(rows * width));
    norm(b.attn_norm, x, rows, h);
    float *q = q_.get<float>(static_cast<size_t>(rows * ldq)), *k = k_.get<float>(static_cast<size_t>(rows * ldk)), *v = v_.get<float>(static_cast<size_t>(rows * ldk));
    const bool quantised = b.q.first().quantised() || b.k.first().quantised() || b.v.first().quantised();
    Input in = prepare(h, rows, width, width, quantised);
    float* const projected[] = {q, k, v};
    const int64_t strides[] = {ldq, ldk, ldk};
    project(b, in, rows, projected, strides);
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
    store(q, ldq, k, v, ldk, spans, b);
    const int64_t lda = int64_t(b.heads) * b.dim;
    float* attended = attended_.get<float>(static_cast<size_t>(rows * lda));
    attend(q, ldq, attended, lda, spans, b);
    in = prepare(attended, rows, lda, lda, b.o.first().quantised());
    add_branch(b.o, b.post_attn, in, x, rows, width);
    if (!b.up.w) return;

    norm(b.ffn_norm, x, rows, h);
    in = prepare(h, rows, width, width, b.up.first().quantised() || (b.gate.w && b.gate.first().quantised()));
    feed_forward(b, in, rows);
    const int64_t inner = b.down.first().cols;
    in = {hidden_.get<float>(0), up16(inner), hidden_q_.get<Group>(0)};
    add_branch(b.down, b.post_ffn, in, x, rows, width);
}

}  // namespace genmote
