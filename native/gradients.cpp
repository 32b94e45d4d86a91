// The backward pass on the thread pool. Threads share columns, rows or heads, never a sum: the bits do not depend on their number.
#include <algorithm>

#include "block.h"

namespace genmote {

size_t attend_back_floats(int64_t rows, int64_t dim) {
    const int64_t whole = (rows + 31) / 32 * 32, wide = (dim + 31) / 32 * 32;
    return static_cast<size_t>(2 * dim * whole + 3 * wide * whole + kBackQueries * (3 * wide + 2 * whole) + whole);
}

size_t spelt_floats(const Matrix& w) { return static_cast<size_t>(w.panels() * kPanel * ((w.cols + 31) / 32 * 32)); }

namespace {

// Columns that a task takes of so many: all where there is one thread, else whole strips, a few tasks a thread.
int64_t share(int64_t columns, int threads) { return threads == 1 ? columns : std::max<int64_t>(32, columns / (threads * 3) / 32 * 32); }

}  // namespace

void Machine::matmul_back(const Matrix& w, const float* dy, int64_t rows, float* dx) {
    const int64_t ldx = up16(w.cols), per = share(w.cols, pool.threads());
    each_part_of(w, [&](const Matrix& part, int64_t p0, int64_t p1) {
        pool.run(static_cast<int>((w.cols + per - 1) / per), [&](int task, int worker) {
            const int64_t first = task * per, end = std::min(w.cols, first + per);
            kernels.matmul_back(part, dy, w.rows, rows, dx, ldx, p0, p1, first, end, scratch_[worker].floats.get<float>(kBackFloats));
        });
    });
}

void Machine::outer(const float* a, int64_t p, const float* b, int64_t q, int64_t rows, float* y) {
    const int64_t per = share(q, pool.threads()), ldy = up16(q);
    pool.run(static_cast<int>((q + per - 1) / per), [&](int task, int worker) {
        const int64_t c = task * per;
        kernels.outer(a, p, p, b + c, q, std::min(per, q - c), rows, y + c, ldy, true, scratch_[worker].floats.get<float>(kBackFloats));
    });
}

void Machine::adapt_back(const Matrix& down, const Matrix& up, float scale, const float* dy, const float* x, int64_t rows, float* dx, float* da, float* db) {
    const int64_t in = down.cols, out = up.rows, rank = down.rows, ld = up16(rank);
    constexpr int64_t block = 128, per = 32;  // rows that are gone through while they are in a cache, and those of a task
    float *ups = spelt_.get<float>(spelt_floats(up) + spelt_floats(down) + static_cast<size_t>(2 * block * ld));
    float *downs = ups + spelt_floats(up), *low = downs + spelt_floats(down), *dlow = low + block * ld;
    kernels.spell_out(up, ups);
    kernels.spell_out(down, downs);
    const int64_t some = share(in, pool.threads()), others = share(out, pool.threads());
    const int64_t first = (in + some - 1) / some, second = (out + others - 1) / others;
    for (int64_t t0 = 0; t0 < rows; t0 += block) {
        const int64_t n = std::min(block, rows - t0);
        pool.run(static_cast<int>((n + per - 1) / per), [&](int task, int) {
            const int64_t i = task * per, t = t0 + i, m = std::min(per, n - i);
            kernels.matmul_float(down, x + t * in, in, m, low + i * ld, ld, 0, down.panels());
            kernels.product(dy + t * out, out, up, ups, dlow + i * ld, ld, m, true);
            for (int64_t at = i * ld; at < (i + m) * ld; at++) {
                low[at] *= scale;
                dlow[at] *= scale;
            }
            kernels.product(dlow + i * ld, ld, down, downs, dx + t * in, in, m, false);
        });
        pool.run(static_cast<int>(first + second), [&](int task, int worker) {
            float* free = scratch_[worker].floats.get<float>(kBackFloats);
            const int64_t c = task < first ? task * some : (task - first) * others;
            if (task < first) kernels.outer(dlow, ld, rank, x + t0 * in + c, in, std::min(some, in - c), n, da + c, up16(in), t0 == 0, free);
            else kernels.outer(low, ld, rank, dy + t0 * out + c, out, std::min(others, out - c), n, db + c, up16(out), t0 == 0, free);
        });
    }
}

void Machine::norm_back(const Norm& n, const float* dy, const float* x, int64_t rows, float* dx, float* dgain, float* dbias) {
    float *means = branch_.get<float>(static_cast<size_t>(2 * rows)), *inverses = means + rows;
    each_row(rows, [&](int64_t i) { kernels.norm_back(dy + i * n.size, x + i * n.size, n.gain, n.size, n.eps, n.centre, dx + i * n.size, means + i, inverses + i); });
    pool.run(static_cast<int>((n.size + 15) / 16), [&](int task, int) {
        kernels.gain_back(dy, x, means, inverses, rows, n.size, task * 16, std::min(n.size, task * 16 + int64_t(16)), dgain, dbias);
    });
}

void Machine::attend_back(const AttendBack& all, int kv_heads, const std::vector<int64_t>& lengths) {
    struct Piece { int64_t start, rows; int head; };
    std::vector<Piece> pieces;
    int64_t start = 0;
    for (int64_t n : lengths) {
        for (int h = 0; h < kv_heads && n > 0; h++) pieces.push_back({start, n, h});
        start += n;
    }
    const int group = all.heads / kv_heads;
    pool.run(static_cast<int>(pieces.size()), [&](int task, int worker) {
        const Piece& p = pieces[task];
        AttendBack a = all;
        const int64_t q = p.start * a.ldq + p.head * group * a.dim, k = p.start * a.ldk + p.head * a.dim;
        a.q += q; a.dout += q; a.dq += q;
        a.k += k; a.v += k; a.dk += k; a.dv += k;
        a.rows = p.rows;
        a.heads = group;
        a.scratch = scratch_[worker].floats.get<float>(attend_back_floats(p.rows, a.dim));
        kernels.attend_back(a);
    });
}

double Machine::cross_entropy(float* logits, int64_t rows, int64_t n, const int32_t* targets, const float* weights) {
    std::vector<double> losses(static_cast<size_t>(rows));
    pool.run(static_cast<int>(rows), [&](int i, int) { losses[i] = kernels.cross_entropy(logits + i * n, n, targets[i], weights[i]); });
    double total = 0;
    for (double one : losses) total += one;
    return total;
}

void Machine::glu_back(const float* d, const float* gate, const float* up, int64_t n, Act act, float* dgate, float* dup) {
    const int64_t per = 1 << 14;
    pool.run(static_cast<int>((n + per - 1) / per), [&](int task, int) {
        const int64_t i = task * per;
        kernels.glu_back(d + i, gate + i, up + i, std::min(per, n - i), act, dgate + i, dup + i);
    });
}

}  // namespace genmote
