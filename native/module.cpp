// The Python face of the kernels: thin, no policy. Arrays are checked for shape here, for meaning in genmote/ops/native_ops.py.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "bindings.h"
#include "block.h"
#include "genmote.h"

using namespace genmote;

void bind_gradients(nb::class_<Machine>&);

namespace {

PyMatrix make_matrix(int type, int64_t rows, int64_t cols, Bytes data) {
    need(packable(type, rows, cols), "matrix: type, rows or columns unsupported");
    need(data.shape(0) >= packed_bytes(type, rows, cols), "matrix: too few packed bytes");
    return {{type, rows, cols, data.data()}, nb::cast(data)};
}

struct PySpans {
    std::vector<Span> spans;
    nb::list owners;
    int64_t rows = 0;
};

struct PyBlock {
    Block b;
    nb::list owners;
};

const float* floats(const std::optional<Floats>& a, size_t n, nb::list& keep) {
    if (!a) return nullptr;
    need(a->size() == n, "vector has the wrong length");
    keep.append(nb::cast(*a));
    return a->data();
}

Linear linear_of(const nb::object& o, nb::list& keep) {  // None, or (matrix, bias | None, the first of two matrices | None)
    if (o.is_none()) return {};
    auto t = nb::cast<nb::tuple>(o);
    need(t.size() == 3, "a linear layer is (matrix, bias, down)");
    const PyMatrix& m = nb::cast<const PyMatrix&>(t[0]);
    keep.append(t[0]);
    std::optional<Floats> bias;
    if (!t[1].is_none()) bias = nb::cast<Floats>(t[1]);
    Linear l{&m.m, floats(bias, static_cast<size_t>(m.m.rows), keep)};
    if (!t[2].is_none()) {
        l.down = &nb::cast<const PyMatrix&>(t[2]).m;
        keep.append(t[2]);
        need(l.down->rows == l.w->cols, "two matrices of low rank do not fit together");
    }
    return l;
}

Norm norm_of(const nb::object& o, nb::list& keep) {  // None, or (gain, bias | None, eps, centre)
    if (o.is_none()) return {};
    auto t = nb::cast<nb::tuple>(o);
    need(t.size() == 4, "a norm is (gain, bias, eps, centre)");
    auto gain = nb::cast<Floats>(t[0]);
    need(gain.size() > 0, "norm: no gain");
    keep.append(nb::cast(gain));
    std::optional<Floats> bias;
    if (!t[1].is_none()) bias = nb::cast<Floats>(t[1]);
    return {gain.data(), floats(bias, gain.size(), keep), static_cast<int64_t>(gain.size()), nb::cast<float>(t[2]), nb::cast<bool>(t[3])};
}

// The spans with the caches' lengths as they are now: Python may move them while the kernels run without its lock.
std::vector<Span> checked(const PySpans& s, int64_t rows, int layer, int heads, int kv_heads, int dim) {
    need(s.rows == rows, "spans do not cover the rows");
    std::vector<Span> spans = s.spans;
    for (Span& p : spans) {
        need(layer >= 0 && p.cache->layers > layer && p.cache->heads(layer) == kv_heads && p.cache->dim == dim && (!p.cache->queries || p.cache->query_heads(layer) == heads),
             "cache has another shape");
        p.length = p.cache->lengths[static_cast<size_t>(layer)];
        p.position = p.cache->position;
        need(p.length <= p.cache->capacity - p.count, "cache is full");
    }
    return spans;
}

}  // namespace

NB_MODULE(_native, m) {
    nb::register_exception_translator([](const std::exception_ptr& p, void*) {
        try {
            std::rethrow_exception(p);
        } catch (const std::bad_cast&) {
            PyErr_SetString(PyExc_TypeError, "a part of an argument has the wrong type");
        }
    });
    m.def("isa_names", [] {
        std::vector<std::string> v;
        for (auto n = kernel_names(); *n; n++) v.emplace_back(*n);
        return v;
    }, "Instruction sets whose kernels are built in, best first.");
    m.def("isa_runs", [](const std::string& n) { return kernels_named(n.c_str()) != nullptr; });
    m.def("best_isa", [] { return std::string(best_kernels().name); });
    m.def("packed_bytes", [](int type, int64_t rows, int64_t cols) { return packable(type, rows, cols) ? packed_bytes(type, rows, cols) : 0; },
          "Bytes of a matrix in the packed layout; 0: there is none for it.");

    nb::class_<PyMatrix>(m, "Matrix")
        .def("__init__", [](PyMatrix* self, int type, int64_t rows, int64_t cols, Bytes data) { new (self) PyMatrix(make_matrix(type, rows, cols, data)); })
        .def_prop_ro("shape", [](const PyMatrix& p) { return std::make_tuple(p.m.rows, p.m.cols); })
        .def_prop_ro("id", [](const PyMatrix& p) { return p.m.id; })
        .def_prop_ro("type", [](const PyMatrix& p) { return p.m.type; })
        .def_prop_ro("nbytes", [](const PyMatrix& p) { return packed_bytes(p.m.type, p.m.rows, p.m.cols); });

    bind_kv(m);

    nb::class_<PySpans>(m, "Spans")
        .def("__init__", [](PySpans* self, nb::list items) {
            PySpans made;
            for (nb::handle h : items) {
                auto t = nb::cast<nb::tuple>(h);
                need(t.size() == 3, "a span is (cache, start, count)");
                Span s{nb::cast<KVCache*>(t[0]), nb::cast<int64_t>(t[1]), nb::cast<int64_t>(t[2])};
                need(s.cache && s.count > 0 && s.count <= kMostRows && s.start == made.rows, "spans must be in order, without gaps");
                made.rows += s.count;
                made.spans.push_back(s);
                made.owners.append(t[0]);
            }
            new (self) PySpans(std::move(made));
        });

    nb::class_<PyBlock>(m, "Block")
        .def("__init__", [](PyBlock* self, int index, int heads, int kv_heads, int dim, float scale, float cap, int act, int64_t window, bool rope, bool interleaved,
                            int64_t width, nb::list norms, nb::list linears) {
            PyBlock made;
            Block& b = made.b;
            need(norms.size() == 6 && linears.size() == 7 && act >= 0 && act <= 2 && index >= 0 && width > 0, "block: wrong parts");
            need(heads > 0 && heads <= 1 << 16 && kv_heads > 0 && heads % kv_heads == 0 && dim > 0 && dim <= 1024, "block: wrong heads");
            b.index = index; b.heads = heads; b.kv_heads = kv_heads; b.dim = dim; b.scale = scale; b.cap = cap; b.act = static_cast<Act>(act);
            b.window = window; b.rope = rope; b.interleaved = interleaved; b.width = width;
            Norm* n[] = {&b.attn_norm, &b.ffn_norm, &b.q_norm, &b.k_norm, &b.post_attn, &b.post_ffn};
            for (size_t i = 0; i < 6; i++) *n[i] = norm_of(norms[i], made.owners);
            Linear* l[] = {&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down};
            for (size_t i = 0; i < 7; i++) *l[i] = linear_of(linears[i], made.owners);
            const int64_t dq = int64_t(heads) * dim, dk = int64_t(kv_heads) * dim;
            auto shape = [](const Linear& w, int64_t rows, int64_t cols) { return w.w && w.w->rows == rows && w.first().cols == cols; };
            const int64_t inner = b.up.w ? b.up.w->rows : 0;
            need(shape(b.q, dq, width) && shape(b.k, dk, width) && shape(b.v, dk, width) && shape(b.o, width, dq), "block: attention weights have wrong shapes");
            const bool attention_alone = !b.up.w && !b.gate.w && !b.down.w;
            need(attention_alone || (shape(b.up, inner, width) && (!b.gate.w || shape(b.gate, inner, width)) && shape(b.down, width, inner)),
                 "block: feed-forward weights have wrong shapes");
            need(b.attn_norm.size == width && b.ffn_norm.size == width && (!b.post_attn.gain || b.post_attn.size == width) && (!b.post_ffn.gain || b.post_ffn.size == width),
                 "block: norms have wrong lengths");
            need((!b.q_norm.gain || b.q_norm.size == dim || b.q_norm.size == dq) && (!b.k_norm.gain || b.k_norm.size == dim || b.k_norm.size == dk), "block: head norms");
            new (self) PyBlock(std::move(made));
        });

    nb::class_<Machine> machine(m, "Machine");
    machine
        .def("__init__", [](Machine* self, const std::string& isa, int threads) {
            const Kernels* k = kernels_named(isa.c_str());
            need(k != nullptr, "machine: instruction set is not available");
            need(threads >= 1 && threads <= 1024, "machine: from 1 to 1024 threads");
            new (self) Machine(*k, threads);
        })
        .def_prop_ro("isa", [](const Machine& s) { return std::string(s.kernels.name); })
        .def_prop_ro("threads", [](const Machine& s) { return s.pool.threads(); })
        .def_prop_rw("thread_limit", [](const Machine& s) { return s.pool.limit(); }, [](Machine& s, int limit) {
            need(limit >= 1 && limit <= s.pool.threads(), "machine: a limit of 1 to as many threads as it has");
            s.pool.limit(limit);
        })
        .def("pack", [](Machine& s, int type, int64_t rows, int64_t cols, Bytes src, BytesOut dst) {
            need(packable(type, rows, cols), "pack: type, rows or columns unsupported");
            need(src.shape(0) >= row_bytes(type, cols) * rows && dst.shape(0) >= packed_bytes(type, rows, cols), "pack: buffers are too small");
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(s.busy);
            const int64_t panels = (rows + kPanel - 1) / kPanel, per = 16;
            const size_t bytes = panel_bytes(type, cols);
            s.pool.run(static_cast<int>((panels + per - 1) / per), [&](int task, int) {
                for (int64_t p = task * per; p < std::min(panels, (task + 1) * per); p++) pack_panel(type, rows, cols, src.data(), p, dst.data() + p * bytes);
            });
        })
        .def("linear", [](Machine& s, const PyMatrix& w, std::optional<Floats> bias, Floats x, FloatsOut y) {
            need(x.ndim() == 2 && y.ndim() == 2 && int64_t(x.shape(1)) == w.m.cols && x.shape(0) == y.shape(0) && y.shape(1) % 16 == 0 && int64_t(y.shape(1)) >= w.m.rows,
                 "linear: wrong shapes");
            need(!bias || int64_t(bias->size()) == w.m.rows, "linear: wrong bias");
            if (x.shape(0) == 0) return;
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(s.busy);
            s.linear({&w.m, bias ? bias->data() : nullptr}, x.data(), static_cast<int64_t>(x.shape(0)), y.data(), static_cast<int64_t>(y.shape(1)));
        }, nb::arg(), nb::arg().none(), nb::arg(), nb::arg())
        .def("adapt", [](Machine& s, const PyMatrix& down, const PyMatrix& up, float scale, Floats x, FloatsOut y) {
            need(!down.m.quantised() && !up.m.quantised() && down.m.data && up.m.data && up.m.cols == down.m.rows, "adapt: wrong matrices");
            need(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == y.shape(0) && int64_t(x.shape(1)) == down.m.cols && int64_t(y.shape(1)) == up.m.rows, "adapt: wrong shapes");
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(s.busy);
            s.adapt(down.m, up.m, scale, x.data(), static_cast<int64_t>(x.shape(0)), y.data());
        })
        .def("embed", [](Machine& s, const PyMatrix& w, Ints tokens, FloatsOut y) {
            need(y.ndim() == 2 && y.shape(0) == tokens.shape(0) && int64_t(y.shape(1)) == w.m.cols, "embed: wrong shapes");
            for (size_t i = 0; i < tokens.shape(0); i++) need(tokens.data()[i] >= 0 && tokens.data()[i] < w.m.rows, "embed: token out of range");
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(s.busy);
            s.embed(w.m, tokens.data(), static_cast<int64_t>(tokens.shape(0)), y.data());
        })
        .def("norm", [](Machine& s, Floats x, Floats gain, std::optional<Floats> bias, float eps, bool centre, FloatsOut y) {
            need(gain.size() > 0 && x.ndim() > 0 && x.shape(x.ndim() - 1) == gain.size() && y.size() == x.size() && (!bias || bias->size() == gain.size()),
                 "norm: wrong shapes");
            std::lock_guard<std::mutex> lock(s.busy);
            Norm n{gain.data(), bias ? bias->data() : nullptr, static_cast<int64_t>(gain.size()), eps, centre};
            s.norm(n, x.data(), static_cast<int64_t>(x.size() / gain.size()), y.data());
        }, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg())
        .def("rope", [](Machine& s, FloatsOut x, Floats cos, Floats sin, bool interleaved) {
            need(x.ndim() == 3 && cos.ndim() == 2 && cos.shape(0) == x.shape(0) && sin.size() == cos.size() && 2 * cos.shape(1) <= x.shape(2), "rope: wrong shapes");
            std::lock_guard<std::mutex> lock(s.busy);
            s.rope(x.data(), static_cast<int64_t>(x.shape(1) * x.shape(2)), static_cast<int64_t>(x.shape(0)), static_cast<int>(x.shape(1)), static_cast<int>(x.shape(2)), cos.data(),
                   sin.data(), static_cast<int64_t>(cos.shape(1)), interleaved);
        })
        .def("attend", [](Machine& s, Floats q, Floats k, Floats v, const PySpans& spans, int layer, float scale, float cap, int64_t window, FloatsOut out) {
            need(q.ndim() == 3 && k.ndim() == 3 && q.size() > 0 && k.size() > 0 && v.size() == k.size() && k.shape(0) == q.shape(0) && k.shape(2) == q.shape(2) && out.size() == q.size(), "attend: wrong shapes");
            const int heads = static_cast<int>(q.shape(1)), kv = static_cast<int>(k.shape(1)), dim = static_cast<int>(q.shape(2));
            need(heads % kv == 0 && dim <= 1024, "attend: wrong heads");
            const std::vector<Span> now = checked(spans, static_cast<int64_t>(q.shape(0)), layer, heads, kv, dim);
            Block b{};
            b.index = layer; b.heads = heads; b.kv_heads = kv; b.dim = dim; b.scale = scale; b.cap = cap; b.window = window;
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(s.busy);
            s.store(q.data(), int64_t(heads) * dim, k.data(), v.data(), int64_t(kv) * dim, now, b);
            s.attend(q.data(), int64_t(heads) * dim, out.data(), int64_t(heads) * dim, now, b);
        })
        .def("glu", [](Machine& s, Floats gate, Floats up, int act, FloatsOut y) {
            need(gate.size() == up.size() && y.size() == up.size() && act >= 0 && act <= 2, "glu: wrong shapes");
            s.kernels.glu(gate.data(), up.data(), static_cast<int64_t>(up.size()), static_cast<Act>(act), y.data());
        })
        .def("activate", [](Machine& s, Floats x, int act, FloatsOut y) {
            need(y.size() == x.size() && act >= 0 && act <= 2, "activate: wrong shapes");
            s.kernels.activate(x.data(), static_cast<int64_t>(x.size()), static_cast<Act>(act), y.data());
        })
        .def("soft_cap", [](Machine& s, Floats x, float cap, FloatsOut y) {
            need(y.size() == x.size() && cap > 0, "soft_cap: wrong shapes");
            s.kernels.soft_cap(x.data(), static_cast<int64_t>(x.size()), cap, y.data());
        })
        .def("softmax", [](Machine& s, FloatsOut x) {
            need(x.ndim() == 2 && x.shape(1) > 0, "softmax: wrong shape");
            for (size_t i = 0; i < x.shape(0); i++) s.kernels.softmax(x.data() + i * x.shape(1), static_cast<int64_t>(x.shape(1)));
        })
        .def("mixture", [](Machine& s, nb::list experts, Exactly<const int64_t, nb::ndim<1>> counts, Ints row, int act, Floats x, FloatsOut y) {
            need(x.ndim() == 2 && y.ndim() == 2 && experts.size() > 0 && counts.shape(0) == experts.size() && act >= 0 && act <= 2, "mixture: wrong shapes");
            std::vector<Expert> parts;
            const int64_t width = static_cast<int64_t>(x.shape(1)), rows = static_cast<int64_t>(x.shape(0)), pairs = static_cast<int64_t>(row.shape(0));
            int64_t at = 0;
            for (size_t i = 0; i < experts.size(); i++) {
                auto t = nb::cast<nb::tuple>(experts[i]);
                need(t.size() == 3 && counts.data()[i] > 0 && counts.data()[i] <= pairs - at, "mixture: an expert is (gate, up, down), each with some of the rows");
                Expert e{&nb::cast<const PyMatrix&>(t[0]).m, &nb::cast<const PyMatrix&>(t[1]).m, &nb::cast<const PyMatrix&>(t[2]).m, at, at + counts.data()[i]};
                const int64_t inner = e.up->rows;
                need(e.gate->rows == inner && e.gate->cols == width && e.up->cols == width && e.down->rows == width && e.down->cols == inner
                         && inner == (parts.empty() ? inner : parts.front().up->rows), "mixture: an expert's matrices have wrong shapes");
                parts.push_back(e);
                at = e.end;
            }
            need(at == pairs && int64_t(y.shape(0)) == pairs && int64_t(y.shape(1)) == (width + 15) / 16 * 16, "mixture: the counts and the output must be of the pairs");
            for (int64_t p = 0; p < pairs; p++) need(row.data()[p] >= 0 && row.data()[p] < rows, "mixture: a row is out of range");
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(s.busy);
            s.mixture(parts, row.data(), pairs, static_cast<Act>(act), x.data(), rows, y.data());
        })
        .def("round_q8", [](Machine& s, Floats x, Exactly<int8_t> q, FloatsOut d) {  // for tests: what linear makes of its input
            need(x.size() % kGroup == 0 && q.size() == x.size() && d.size() == x.size() / kGroup, "round_q8: wrong shapes");
            std::vector<Group> g(x.size() / kGroup);
            s.kernels.quantise_row(x.data(), static_cast<int64_t>(x.size()), g.data());
            for (size_t i = 0; i < g.size(); i++) {
                std::memcpy(q.data() + i * kGroup, g[i].q, kGroup);
                d.data()[i] = g[i].d;
            }
        })
        .def("block", [](Machine& s, const PyBlock& b, FloatsOut x, std::optional<Floats> cos, std::optional<Floats> sin, const PySpans& spans) {
            need(x.ndim() == 2 && x.shape(0) > 0 && int64_t(x.shape(1)) == b.b.width, "block: wrong shape");
            const int64_t rows = static_cast<int64_t>(x.shape(0));
            int64_t half = 0;
            if (b.b.rope) {
                need(cos && sin && cos->ndim() == 2 && int64_t(cos->shape(0)) == rows && sin->size() == cos->size() && int64_t(2 * cos->shape(1)) <= b.b.dim, "block: wrong rotary table");
                half = static_cast<int64_t>(cos->shape(1));
            }
            const std::vector<Span> now = checked(spans, rows, b.b.index, b.b.heads, b.b.kv_heads, b.b.dim);
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(s.busy);
            s.block(b.b, x.data(), rows, half ? cos->data() : nullptr, half ? sin->data() : nullptr, half, now);
        }, nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg());

    bind_gradients(machine);
    m.def("rotary", [](Ints positions, Doubles inv_freq, float scale, FloatsOut cos, FloatsOut sin) {
        need(cos.size() == positions.shape(0) * inv_freq.shape(0) && sin.size() == cos.size(), "rotary: wrong shapes");
        rotary(positions.data(), static_cast<int64_t>(positions.shape(0)), inv_freq.data(), static_cast<int64_t>(inv_freq.shape(0)), scale, cos.data(), sin.data());
    });
    bind_tokenizer(m);
    bind_stream(m);
    bind_series(m);
}
