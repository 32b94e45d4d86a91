// What the kernels add up to: linear layers, attention over a cache, and a whole transformer block, on a thread pool.
// Every step is exported on its own too; the fused block calls the same code in the same order, so its bits are the same.
#pragma once
#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "genmote.h"
#include "kv.h"
#include "threads.h"

namespace genmote {

constexpr int64_t kFewRows = 16;  // below this, loops over rows are not worth waking a worker
inline int64_t up16(int64_t n) { return (n + 15) / 16 * 16; }

struct Span {
    KVCache* cache;
    int64_t start, count;
    int64_t length = 0;    // rows that the layer holds before these
    int64_t position = 0;  // of the first of these
};

struct Linear {
    const Matrix* w = nullptr;
    const float* bias = nullptr;
    const Matrix* down = nullptr;  // of low rank: what comes in goes through this matrix first
    const Matrix& first() const { return down ? *down : *w; }
};

struct Norm {
    const float *gain = nullptr, *bias = nullptr;
    int64_t size = 0;
    float eps = 0;
    bool centre = false;
};

// One expert of a mixture, and which rows of the gathered input are its own: [begin, end).
struct Expert {
    const Matrix *gate, *up, *down;
    int64_t begin, end;
};

// Without `up` it is the first half alone, the attention.
struct Block {
    int index, heads, kv_heads, dim;
    float scale, cap;
    Act act;
    int64_t window;
    bool rope, interleaved;
    int64_t width;  // of x
    Norm attn_norm, ffn_norm, q_norm, k_norm, post_attn, post_ffn;
    Linear q, k, v, o, gate, up, down;
};

class Buffer {  // grows, never shrinks; 64-byte aligned
  public:
    template <typename T> T* get(size_t n) { return static_cast<T*>(raw(n * sizeof(T))); }
    ~Buffer();

  private:
    void* raw(size_t bytes);
    void* data_ = nullptr;
    size_t size_ = 0;
};

// Kernels, threads and scratch memory. One call at a time; others wait.
class Machine {
  public:
    Machine(const Kernels& kernels, int threads) : kernels(kernels), pool(threads), scratch_(pool.threads()) {}
    const Kernels& kernels;
    Pool pool;
    std::mutex& busy = pool.busy;

    void quantise(const float* x, int64_t rows, int64_t ld, int64_t n, Group* out);
    void linear(const Linear& w, const float* x, int64_t rows, float* y, int64_t ldy);
    // y += scale * up(down(x)), of two matrices of floats: y (rows, up.rows).
    void adapt(const Matrix& down, const Matrix& up, float scale, const float* x, int64_t rows, float* y);
    void norm(const Norm& n, const float* x, int64_t rows, float* y);
    void embed(const Matrix& w, const int32_t* tokens, int64_t rows, float* y);
    void rope(float* x, int64_t ld, int64_t rows, int heads, int dim, const float* cos, const float* sin, int64_t half, bool interleaved);
    // Rows of keys and values, and their queries where a cache keeps them.
    void store(const float* q, int64_t ldq, const float* k, const float* v, int64_t ld, const std::vector<Span>& spans, const Block& b);
    // Attention over the rows that each span's cache holds with those of `store`.
    void attend(const float* q, int64_t ldq, float* out, int64_t ldo, const std::vector<Span>& spans, const Block& b);
    // down(activation(gate(x)) * up(x)) of (row, expert) pairs, each expert's one after the other: x (rows, D), row (pairs) tells
    // whose each is, y (pairs, D rounded up to 16).
    void mixture(const std::vector<Expert>& experts, const int32_t* row, int64_t pairs, Act act, const float* x, int64_t rows, float* y);
    void block(const Block& b, float* x, int64_t rows, const float* cos, const float* sin, int64_t half, const std::vector<Span>& spans);

    // The backward pass (gradients.cpp). All of dy W, (rows, out) to (rows, in rounded up to 16).
    void matmul_back(const Matrix& w, const float* dy, int64_t rows, float* dx);
    // a^T b of (rows, p) and (rows, q): (p, q rounded up to 16).
    void outer(const float* a, int64_t p, const float* b, int64_t q, int64_t rows, float* y);
    // The way back through `adapt`: dx (rows, in) += scale * dy up down, and the gradients of both matrices: da (rank, in rounded up
    // to 16), db (rank, out likewise), turned over. `in` is a multiple of 16.
    void adapt_back(const Matrix& down, const Matrix& up, float scale, const float* dy, const float* x, int64_t rows, float* dx, float* da, float* db);
    void norm_back(const Norm& n, const float* dy, const float* x, int64_t rows, float* dx, float* dgain, float* dbias);
    // Sessions of `lengths` rows, one after another; as AttendBack, with heads and kv_heads heads.
    void attend_back(const AttendBack& a, int kv_heads, const std::vector<int64_t>& lengths);
    double cross_entropy(float* logits, int64_t rows, int64_t n, const int32_t* targets, const float* weights);
    void glu_back(const float* d, const float* gate, const float* up, int64_t n, Act act, float* dgate, float* dup);

  private:
    struct Input {
        const float* x;
        int64_t ld;
        const Group* q;  // null if no consumer is quantised
    };
    struct Low { Buffer x, q; };
    Input prepare(const float* x, int64_t rows, int64_t ld, int64_t n, bool quantised);
    Input lowered(const Linear& l, const Input& in, int64_t rows, Low& to);
    void rows_of(const Linear& w, const Input& x, int64_t rows, float* y, int64_t ldy, int64_t p0, int64_t p1, int worker);
    void feed_forward(const Block& b, const Input& x, int64_t rows);
    struct Lent;
    template <typename F> void each_part(const Linear* linears, int count, F&& f);
    void each_part_of(const Matrix& w, const std::function<void(const Matrix&, int64_t, int64_t)>& f);
    void panels_of(const Linear& w, const Input& x, int64_t rows, float* y, int64_t ldy, int64_t p0, int64_t p1);
    void project(const Block& b, const Input& in, int64_t rows, float* const* y, const int64_t* ld);
    template <typename F> void each_row(int64_t rows, F&& f) {
        if (rows < kFewRows) {
            for (int64_t i = 0; i < rows; i++) f(i);
            return;
        }
        const int64_t per = 8;
        pool.run(static_cast<int>((rows + per - 1) / per), [&](int task, int) {
            for (int64_t i = task * per; i < std::min(rows, (task + 1) * per); i++) f(i);
        });
    }
    int64_t chunk(int64_t panels, int64_t rows, int64_t cols) const;
    void add_branch(const Linear& w, const Norm& post, const Input& in, float* x, int64_t rows, int64_t width);

    struct Worker { Buffer spelt, gate, up, scores, floats; };
    std::vector<Worker> scratch_;
    Buffer normed_, quantised_, q_, k_, v_, attended_, hidden_, hidden_q_, branch_, spelt_;
    Low low_[2];
};

void rotary(const int32_t* positions, int64_t rows, const double* inv_freq, int64_t half, float scale, float* cos, float* sin);

}  // namespace genmote
