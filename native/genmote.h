// genmote's native kernels: one header.
//
// Everything is laid out for *panels* of 16 rows: lane r of a vector is row r of the panel, so that a dot product never
// needs a sum across lanes. Each row's float sum runs over the groups of its columns in order, one fused multiply-add
// after the other, on every instruction set and for every number of rows and threads: the bits are the same everywhere.
// The layouts are described in docs/formats.md (packed weights) and have a NumPy twin in genmote/ops/packed.py.
#pragma once
#include <cstddef>
#include <cstdint>

namespace genmote {

constexpr int kPanel = 16;  // rows of a panel
constexpr int kGroup = 32;  // columns of a group

// Tensor types by their GGUF number; from 0x4700 on our own.
enum Type : int {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
    Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20, BF16 = 30,
    GM2_32 = 0x4702, GM3_32 = 0x4703, GM4_32 = 0x4704,
};

// How a quantised panel lies in memory: code planes of all groups, then the scale planes.
struct Layout {
    int code_bytes;   // bytes of code planes per group of 32 columns x 16 rows
    bool nibble, two, one, byte, three;  // which planes a group has, in this order
    int offset;       // value = code - offset (0: none)
    bool half;        // scales per 16 columns instead of 32
    bool super;       // two-level scales: float16 per 256 columns times an integer per (half) group
    bool min;         // a subtracted or added minimum besides the scale
    bool codebook;    // codes are indices into a table of levels
    bool small;       // a scale is a byte (levels32.py), not a float16
    int src_block;    // columns of a GGUF block
    int src_bytes;    // bytes of a GGUF block
};

bool layout_of(int type, Layout* out);  // false: not a quantised type that the kernels know
bool is_float_type(int type);
size_t row_bytes(int type, int64_t cols);                   // GGUF bytes of a row
size_t panel_bytes(int type, int64_t cols);                 // packed bytes of a panel
size_t packed_bytes(int type, int64_t rows, int64_t cols);  // packed bytes of a matrix
// Re-lay rows [16 p, 16 p + 16) of a GGUF matrix; rows past the end become zero.
void pack_panel(int type, int64_t rows, int64_t cols, const uint8_t* src, int64_t p, uint8_t* dst);

class Stream;

struct Matrix {
    int type;
    int64_t rows, cols;
    const uint8_t* data;  // packed panels; null where they are streamed
    Stream* source = nullptr;  // who has the panels when they are wanted, and its number for this matrix
    int id = 0;
    int64_t panels() const { return (rows + kPanel - 1) / kPanel; }
    const uint8_t* panel(int64_t p) const { return data + static_cast<size_t>(p) * panel_bytes(type, cols); }
    bool quantised() const { return !is_float_type(type); }
};

// A row of activations rounded to 8 bits, a group of 32 columns each. One cache line.
struct alignas(64) Group {
    int8_t q[32];
    float d;                   // x ~ d * q
    int32_t nsum, nlo, nhi;    // minus the sum of q: of all 32, of the first and of the last 16
    float dsum, dlo, dhi;      // d * sum, likewise
    int32_t pad;
};

// How a KV cache stores its rows.
enum class Kind : int { f16 = 0, int8 = 1, int4 = 2 };

// Keys and values of one layer and key-value head as attention reads them, in blocks of 16 rows (docs/formats.md).
struct KVView {
    uint8_t *k, *v;
    Kind kind;
    size_t key_block, value_block;  // bytes of a block
    const uint16_t* key_halves() const { return reinterpret_cast<const uint16_t*>(k); }    // f16: [capacity / 16][D][16]
    const uint16_t* value_halves() const { return reinterpret_cast<const uint16_t*>(v); }  // f16: [capacity][D]
};

constexpr int kMaxQueries = 8, kMaxTiles = 8;

// One tile of queries that share a key-value head. Where keys and values are codes, queries are turned and go on with zeros
// to a multiple of 8, and `out` has room for a multiple of 32 and stays turned.
struct AttendTile {
    int n;                          // queries
    const float* q[kMaxQueries];    // (D,)
    float* out[kMaxQueries];        // (D,)
    int64_t begin[kMaxQueries];     // first row that the query sees
    int64_t end[kMaxQueries];       // one past the last
    KVView kv;
    int head_dim;
    float scale, cap;
    float* scores;                  // scratch: n * stride floats
    int64_t stride;                 // >= largest end rounded up to 16
};

enum class Act : int { silu = 0, gelu = 1, relu = 2 };

// The backward pass of attention for one session and one key-value head, whose queries' heads lie side by side.
struct AttendBack {
    const float *q, *dout, *k, *v;  // (rows, heads * dim) with a stride of ldq, (rows, dim) with one of ldk; keys and values not rounded yet
    float *dq, *dk, *dv;            // likewise
    int64_t ldq, ldk, rows, window;
    int heads, dim;
    float scale, cap;
    float* scratch;                 // attend_back_floats() floats
};

constexpr int64_t kBackColumns = 128, kBackFloats = 256 * kBackColumns;  // of a matrix, that are spelt out at a time
constexpr int64_t kBackQueries = 32;  // rows of queries whose probabilities are held at a time
size_t attend_back_floats(int64_t rows, int64_t dim);
size_t spelt_floats(const Matrix& w);

// One instruction set's kernels.
struct Kernels {
    const char* name;
    void (*quantise_row)(const float* x, int64_t n, Group* out);
    // y[t * ldy + row] for rows of panels [p0, p1) and T rows of activations; scratch of scratch_bytes() a thread.
    void (*matmul)(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch);
    void (*matmul_float)(const Matrix& w, const float* x, int64_t ldx, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1);
    void (*dequantise_row)(const Matrix& w, int64_t row, float* out);
    void (*rms_norm)(const float* x, const float* gain, int64_t n, float eps, float* y);
    void (*layer_norm)(const float* x, const float* gain, const float* bias, int64_t n, float eps, float* y);
    void (*glu)(const float* gate, const float* up, int64_t n, Act act, float* y);
    void (*activate)(const float* x, int64_t n, Act act, float* y);
    void (*add)(const float* x, int64_t n, float* y);  // y += x
    void (*add_scaled)(const float* x, int64_t n, float factor, float* y);  // y += factor * x, rounded twice
    // Rotate pairs of each of the heads, (i, i + half) or, interleaved, (2i, 2i + 1), by half cosines and sines.
    void (*rope)(float* x, int heads, int dim, const float* cos, const float* sin, int64_t half, bool interleaved);
    void (*soft_cap)(const float* x, int64_t n, float cap, float* y);
    void (*softmax)(float* x, int64_t n);
    void (*attend)(const AttendTile* tiles, int count);  // at most kMaxTiles, of the same keys and values
    void (*to_half)(const float* x, int64_t n, uint16_t* y);
    void (*rotate)(float* x, int64_t count, int dim);  // what keys, values and queries of a cache of codes are turned by
    void (*encode_row)(const float* x, int dim, Kind kind, bool key, uint8_t* codes, uint16_t* scale);
    // Gradients (gradients.h, products.h).
    // dx[t][c] (+)= sum over rows o of panels [p0, p1) of dy[t][o] * w[o][c], for columns [first, end), t < T; panel 0 begins dx anew.
    // dx has room for a multiple of 16 columns. Scratch of kBackFloats.
    void (*matmul_back)(const Matrix& w, const float* dy, int64_t ldy, int64_t T, float* dx, int64_t ldx, int64_t p0, int64_t p1, int64_t first, int64_t end,
                        float* scratch);
    // y[i][j] (+)= sum over n < N of a[n][i] * b[n][j], for i < p and j < q; y has room for a multiple of 16 columns. Scratch likewise.
    void (*outer)(const float* a, int64_t lda, int64_t p, const float* b, int64_t ldb, int64_t q, int64_t N, float* y, int64_t ldy, bool fresh, float* scratch);
    // All of a matrix as floats, in strips as `product` takes it: spelt_floats() of them.
    void (*spell_out)(const Matrix& w, float* out);
    // y[t][c] (+)= sum over o < w.rows of a[t][o] * w[o][c], t < T; w is spelt out, y has room for a multiple of 16 columns.
    void (*product)(const float* a, int64_t lda, const Matrix& w, const float* spelt, float* y, int64_t ldy, int64_t T, bool fresh);
    void (*attend_back)(const AttendBack& a);
    // dx, and what the row was centred by and multiplied with: mean and inverse of its deviation.
    void (*norm_back)(const float* dy, const float* x, const float* gain, int64_t n, float eps, bool centre, float* dx, float* mean, float* inverse);
    // dgain, dbias (may be null) of columns [c0, c1), 16 at most, over the rows in order.
    void (*gain_back)(const float* dy, const float* x, const float* means, const float* inverses, int64_t rows, int64_t n, int64_t c0, int64_t c1, float* dgain,
                      float* dbias);
    void (*glu_back)(const float* d, const float* gate, const float* up, int64_t n, Act act, float* dgate, float* dup);
    void (*activate_back)(const float* d, const float* x, int64_t n, Act act, float* dx);
    void (*soft_cap_back)(const float* d, const float* y, int64_t n, float cap, float* dx);
    // Logits become weight * (softmax - one at the target); weight * -log softmax(target).
    double (*cross_entropy)(float* logits, int64_t n, int64_t target, float weight);
};

size_t scratch_bytes(int64_t cols);  // of matmul, per thread

const Kernels* kernels_named(const char* name);  // nullptr: not built in, or not runnable here
const char* const* kernel_names();               // built in, best first, then nullptr
const Kernels* runnable_kernels(int i);           // the i-th that run here, best first, every variant of a name; nullptr past the last
const Kernels& best_kernels();

}  // namespace genmote
