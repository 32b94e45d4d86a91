// Runs every instruction set that this processor has on the cases of a file and compares each result bit by bit.
//   kernel_check FILE: prints "isa ..." lines and "same N"; exit status 1 and a line each where bits differ.
// A case is: char name[16]; int64 p[8]; float f[4]; int64 arrays; then for each array int64 bytes and the bytes. The last
// array is what has to come out. tests/native/cases.py writes the file. No Python here: it runs on bare emulators.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "block.h"
#include "series_coder.h"

using namespace genmote;

namespace {

struct Case {
    char name[16];
    int64_t p[8];
    float f[4];
    std::vector<std::vector<char>> arrays;
    template <typename T> const T* in(size_t i) const { return arrays[i].empty() ? nullptr : reinterpret_cast<const T*>(arrays[i].data()); }
    template <typename T> size_t size(size_t i) const { return arrays[i].size() / sizeof(T); }
};

template <typename T> void read(std::ifstream& f, T* at, size_t bytes) {
    if (!f.read(reinterpret_cast<char*>(at), static_cast<std::streamsize>(bytes))) {
        std::fprintf(stderr, "kernel_check: the file of cases is cut short\n");
        std::exit(2);
    }
}

std::vector<Case> read_cases(const char* path) {
    std::ifstream f(path, std::ios::binary);
    std::vector<Case> all;
    while (f.peek() != EOF) {
        Case c;
        int64_t n, bytes;
        read(f, c.name, sizeof c.name);
        read(f, c.p, sizeof c.p);
        read(f, c.f, sizeof c.f);
        read(f, &n, sizeof n);
        for (int64_t i = 0; i < n; i++) {
            read(f, &bytes, sizeof bytes);
            c.arrays.emplace_back(static_cast<size_t>(bytes));
            read(f, c.arrays.back().data(), static_cast<size_t>(bytes));
        }
        all.push_back(std::move(c));
    }
    return all;
}

using Bytes = std::vector<char>;

std::vector<uint8_t> packed(int type, int64_t rows, int64_t cols, const uint8_t* raw) {
    std::vector<uint8_t> out(packed_bytes(type, rows, cols));
    const size_t panel = panel_bytes(type, cols);
    for (int64_t p = 0; p * kPanel < rows; p++) pack_panel(type, rows, cols, raw, p, out.data() + static_cast<size_t>(p) * panel);
    return out;
}

// The result of a case on one machine, as many bytes as are expected.
Bytes result(Machine& m, const Case& c) {
    Bytes bytes(c.arrays.back().size());
    float* out = reinterpret_cast<float*>(bytes.data());
    const int64_t* p = c.p;
    const std::string name = c.name;
    if (name == "pack") {
        auto all = packed(static_cast<int>(p[0]), p[1], p[2], c.in<uint8_t>(0));
        return Bytes(all.begin(), all.end());
    } else if (name == "linear" || name == "embed" || name == "matmul_back") {
        const int type = static_cast<int>(p[0]);
        auto data = packed(type, p[1], p[2], c.in<uint8_t>(0));
        const Matrix w{type, p[1], p[2], data.data()};
        if (name == "matmul_back") m.matmul_back(w, c.in<float>(1), p[3], out);
        else if (name == "linear") m.linear({&w, nullptr}, c.in<float>(1), p[3], out, w.panels() * kPanel);
        else m.embed(w, c.in<int32_t>(1), p[3], out);
    } else if (name == "round") {
        m.kernels.quantise_row(c.in<float>(0), static_cast<int64_t>(c.size<float>(0)), reinterpret_cast<Group*>(out));
    } else if (name == "norm") {
        const Norm n{c.in<float>(1), c.in<float>(2), p[0], c.f[0], p[1] != 0};
        m.norm(n, c.in<float>(0), static_cast<int64_t>(c.size<float>(0)) / p[0], out);
    } else if (name == "glu") {
        m.kernels.glu(c.in<float>(0), c.in<float>(1), p[0], static_cast<Act>(p[1]), out);
    } else if (name == "activate") {
        m.kernels.activate(c.in<float>(0), p[0], static_cast<Act>(p[1]), out);
    } else if (name == "soft_cap") {
        m.kernels.soft_cap(c.in<float>(0), p[0], c.f[0], out);
    } else if (name == "softmax") {
        std::memcpy(out, c.in<float>(0), bytes.size());
        m.kernels.softmax(out, p[0]);
    } else if (name == "to_half") {
        m.kernels.to_half(c.in<float>(0), p[0], reinterpret_cast<uint16_t*>(out));
    } else if (name == "code") {  // p: rows, channels; on no instruction set of its own, but on every processor
        const std::vector<uint8_t> coded = encode_samples(c.in<int64_t>(0), p[0], static_cast<int>(p[1]));
        return Bytes(coded.begin(), coded.end());
    } else if (name == "decode") {
        decode_samples(c.in<uint8_t>(0), static_cast<int64_t>(c.size<uint8_t>(0)), reinterpret_cast<int64_t*>(out), p[0], static_cast<int>(p[1]));
    } else if (name == "code_told" || name == "decode_told") {  // p: rows, channels, bins; a model tells, and something was learnt before
        const auto channels = static_cast<int>(p[1]);
        const int32_t* lists = c.in<int32_t>(1);
        const Help help{{lists, lists + channels}, {lists + channels, lists + 2 * channels}, c.in<double>(2), static_cast<int>(p[2]),
                        c.in<double>(3), c.in<double>(4), c.in<double>(5)};
        const float* logits = c.in<float>(6);
        const auto count = static_cast<int64_t>(c.size<float>(6)) / p[2];
        if (name == "code_told") {
            SeriesCoder coder(const_cast<int64_t*>(c.in<int64_t>(0)), p[0], channels, help);
            coder.go(logits, count);
            const std::vector<uint8_t> coded = coder.finish();
            return Bytes(coded.begin(), coded.end());
        }
        SeriesCoder coder(reinterpret_cast<int64_t*>(out), p[0], channels, help, c.in<uint8_t>(0), static_cast<int64_t>(c.size<uint8_t>(0)));
        for (int64_t i = 0; i < count; i++) coder.go(logits + i * p[2], 1);  // one by one, as a decoder is told
    } else if (name == "attend") {  // p: heads, key-value heads, dimensions, window, rows of the first and of the second call, kind
        const int heads = static_cast<int>(p[0]), kv = static_cast<int>(p[1]), dim = static_cast<int>(p[2]);
        KVCache cache(static_cast<Kind>(p[6]), {kv}, dim, p[4] + p[5], 0, {});
        Block b{};
        b.heads = heads; b.kv_heads = kv; b.dim = dim; b.scale = c.f[0]; b.cap = c.f[1]; b.window = p[3];
        for (int part = 0; part < 2; part++) {
            const int64_t first = part ? p[4] : 0, n = p[4 + part];
            std::vector<Span> spans{{&cache, 0, n, cache.lengths[0], cache.position}};
            m.store(c.in<float>(0) + first * heads * dim, heads * dim, c.in<float>(1) + first * kv * dim, c.in<float>(2) + first * kv * dim, kv * dim, spans, b);
            m.attend(c.in<float>(0) + first * heads * dim, heads * dim, out + first * heads * dim, heads * dim, spans, b);
            cache.move(n);
        }
    } else if (name == "outer") {  // p: rows, and the columns of both
        m.outer(c.in<float>(0), p[1], c.in<float>(1), p[2], p[0], out);
    } else if (name == "norm_back") {  // out: dx, dgain, dbias
        const auto n = static_cast<int64_t>(c.size<float>(1));
        m.norm_back({c.in<float>(2), nullptr, p[0], c.f[0], p[1] != 0}, c.in<float>(0), c.in<float>(1), n / p[0], out, out + n, out + n + p[0]);
    } else if (name == "glu_back") {
        m.glu_back(c.in<float>(0), c.in<float>(1), c.in<float>(2), p[0], static_cast<Act>(p[1]), out, out + p[0]);
    } else if (name == "cross_entropy") {
        std::memcpy(out, c.in<float>(0), bytes.size());
        m.cross_entropy(out, static_cast<int64_t>(c.size<float>(2)), p[0], c.in<int32_t>(1), c.in<float>(2));
    } else if (name == "attend_back") {  // p: heads, key-value heads, dimensions, window, rows of both sessions; out: dq, dk, dv
        const int64_t q = p[0] * p[2], k = p[1] * p[2], rows = p[4] + p[5];
        const AttendBack a{c.in<float>(1), c.in<float>(0), c.in<float>(2), c.in<float>(3), out, out + rows * q, out + rows * (q + k), q, k, rows, p[3],
                           static_cast<int>(p[0]), static_cast<int>(p[2]), c.f[0], c.f[1], nullptr};
        m.attend_back(a, static_cast<int>(p[1]), {p[4], p[5]});
    } else if (name == "rope") {  // p: rows, frequencies, heads, dimensions, interleaved; out: cos, sin, rotated
        float *cos = out, *sin = cos + p[0] * p[1], *x = sin + p[0] * p[1];
        rotary(c.in<int32_t>(0), p[0], c.in<double>(1), p[1], c.f[0], cos, sin);
        std::memcpy(x, c.in<float>(2), c.arrays[2].size());
        m.rope(x, p[2] * p[3], p[0], static_cast<int>(p[2]), static_cast<int>(p[3]), cos, sin, p[1], p[4] != 0);
    } else {
        std::fprintf(stderr, "kernel_check: no case is called %s\n", c.name);
        std::exit(2);
    }
    return bytes;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return std::fprintf(stderr, "usage: kernel_check FILE\n"), 2;
    const std::vector<Case> cases = read_cases(argv[1]);
    size_t same = 0, other = 0;
    for (int i = 0; const Kernels* kernels = runnable_kernels(i); i++) {
        std::printf("isa %s\n", kernels->name);
        Machine machine(*kernels, 1);
        for (const Case& c : cases) {
            const Bytes got = result(machine, c), &want = c.arrays.back();
            if (got == want) { same++; continue; }
            size_t at = 0;
            while (at < got.size() && at < want.size() && got[at] == want[at]) at++;
            float g = 0, w = 0;
            std::memcpy(&g, got.data() + at / 4 * 4, 4);
            std::memcpy(&w, want.data() + at / 4 * 4, 4);
            std::printf("differs %s %s(%lld %lld %lld %lld %lld) at byte %zu: %.9g, not %.9g\n", kernels->name, c.name, static_cast<long long>(c.p[0]),
                        static_cast<long long>(c.p[1]), static_cast<long long>(c.p[2]), static_cast<long long>(c.p[3]), static_cast<long long>(c.p[4]), at, g, w);
            other++;
        }
    }
    std::printf("same %zu\n", same);
    return other || !same;
}
