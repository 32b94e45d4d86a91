// The backward pass on the thread pool. Threads share columns, rows or heads, never a sum: the bits do not depend on their number.
#include <algorithm>

#include "block.h"

namespace genmote {

size_t attend_back_floats(int64_t rows, int64_t dim) {
    const int64_t whole = (rows + 31) / 32 * 32, wide = (dim + 31) / 32 * 32;
    return static_cast<size_t>(2 * dim * whole + 3 * wide * whole + kBackQueries * (3 * wide + 2 * whole) + whole);
}

void Machine::matmul_back(const Matrix& w, const float* dy, int64_t rows, float* dx) {
    const int64_t ldx = up16(w.cols), blocks = (w.cols + kGroup - 1) / kGroup;
    // Columns that a task takes: as many as are spelt out at once, or fewer where there are too few tasks for the threads.
    const int64_t most = kBackColumns / kGroup, even = std::max<int64_t>(1, blocks / (pool.threads() * 3));
    const int64_t per = (pool.threads() == 1 ? most : std::min(most, even)) * kGroup;
    each_part_of(w, [&](const Matrix& part, int64_t p0, int64_t p1) {
        pool.run(static_cast<int>((w.cols + per - 1) / per), [&](int task, int worker) {
            const int64_t first = task * per, end = std::min(w.cols, first + per);
            kernels.matmul_back(part, dy, w.rows, rows, dx, ldx, p0, p1, first, end, scratch_[worker].floats.get<float>(kBackFloats));
        });
    });
}

void Machine::outer(const float* a, int64_t p, const float* b, int64_t q, int64_t rows, float* y) {
    const int64_t per = std::min(kBackColumns, std::max<int64_t>(32, q / (pool.threads() * 3) / 32 * 32)), ldy = up16(q);
    pool.run(static_cast<int>((q + per - 1) / per), [&](int task, int worker) {
        const int64_t c = task * per;
        kernels.outer(a, p, p, b + c, q, std::min(per, q - c), rows, y + c, ldy, scratch_[worker].floats.get<float>(kBackFloats));
    });
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
