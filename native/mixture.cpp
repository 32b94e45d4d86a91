// The chosen experts of a mixture in two loops over all their panels, so that a token's eight small experts keep the threads as busy
// as one large feed-forward part does.
#include <algorithm>
#include <cstring>

#include "block.h"

namespace genmote {

void Machine::mixture(const std::vector<Expert>& experts, const int32_t* row, int64_t pairs, Act act, const float* x, int64_t rows, float* y) {
    const Matrix& up = *experts.front().up;
    const int64_t width = up.cols, inner = up.rows, ldy = (width + 15) / 16 * 16, ldh = (inner + 15) / 16 * 16;
    const int64_t groups = width / kGroup, inner_groups = inner / kGroup;
    bool quantised = false, plain = false, hidden_quantised = false, hidden_plain = false;
    for (const Expert& e : experts) {
        for (const Matrix* w : {e.gate, e.up}) (w->quantised() ? quantised : plain) = true;
        (e.down->quantised() ? hidden_quantised : hidden_plain) = true;
    }
    // One expert's rows stand one after the other; a lone row is everybody's.
    const bool lone = rows == 1;
    const Group* xq = nullptr;
    const float* xf = x;
    if (quantised) {
        Group* all = quantised_.get<Group>(static_cast<size_t>((rows + (lone ? 0 : pairs)) * groups));
        quantise(x, rows, width, width, all);
        for (int64_t p = 0; !lone && p < pairs; p++) std::memcpy(all + (rows + p) * groups, all + row[p] * groups, static_cast<size_t>(groups) * sizeof(Group));
        xq = lone ? all : all + rows * groups;
    }
    if (plain && !lone) {
        float* gathered = normed_.get<float>(static_cast<size_t>(pairs * width));
        for (int64_t p = 0; p < pairs; p++) std::memcpy(gathered + p * width, x + row[p] * width, static_cast<size_t>(width) * 4);
        xf = gathered;
    }
    float* hidden = hidden_plain ? hidden_.get<float>(static_cast<size_t>(pairs * ldh)) : nullptr;
    Group* hidden_q = hidden_quantised ? hidden_q_.get<Group>(static_cast<size_t>(pairs * inner_groups)) : nullptr;

    struct Task { const Expert* e; int64_t p0, p1; };
    std::vector<Task> tasks;
    auto share = [&](int64_t panels, int64_t cols, int64_t step, int64_t most) {
        tasks.clear();
        const int64_t per = std::min(most, (chunk(panels * static_cast<int64_t>(experts.size()), 1, cols) + step - 1) / step * step);
        for (const Expert& e : experts)
            for (int64_t p = 0; p < panels; p += per) tasks.push_back({&e, p, std::min(panels, p + per)});
    };

    share(up.panels(), width * 2, 2, lone ? 64 : 4);  // two panels make a group of 32
    pool.run(static_cast<int>(tasks.size()), [&](int task, int worker) {
        const auto [e, p0, p1] = tasks[task];
        const int64_t count = e->end - e->begin, first = lone ? 0 : e->begin, r0 = p0 * kPanel, n = (p1 - p0) * kPanel;
        const Input in{xf + first * width, width, xq ? xq + first * groups : nullptr};
        float* u = scratch_[worker].up.get<float>(static_cast<size_t>(count * n));
        float* g = scratch_[worker].gate.get<float>(static_cast<size_t>(count * n));
        rows_of({e->up, nullptr}, in, count, u - r0, n, p0, p1, worker);
        rows_of({e->gate, nullptr}, in, count, g - r0, n, p0, p1, worker);
        kernels.glu(g, u, count * n, act, u);
        for (int64_t t = 0; t < count; t++) {
            const int64_t p = e->begin + t;
            if (e->down->quantised()) kernels.quantise_row(u + t * n, n, hidden_q + p * inner_groups + r0 / kGroup);
            else std::memcpy(hidden + p * ldh + r0, u + t * n, static_cast<size_t>(n) * 4);
        }
    });
    share((width + kPanel - 1) / kPanel, inner, 1, 64);
    pool.run(static_cast<int>(tasks.size()), [&](int task, int worker) {
        const auto [e, p0, p1] = tasks[task];
        const Input in{hidden ? hidden + e->begin * ldh : nullptr, ldh, hidden_q ? hidden_q + e->begin * inner_groups : nullptr};
        rows_of({e->down, nullptr}, in, e->end - e->begin, y + e->begin * ldy, ldy, p0, p1, worker);
    });
}

}  // namespace genmote
