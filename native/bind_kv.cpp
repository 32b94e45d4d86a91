// The KV cache's Python face: counts, rows in and out. What they mean is in genmote/ops/cache.py.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bindings.h"
#include "kv.h"

using namespace genmote;

namespace {

using Rows = Exactly<const int64_t, nb::ndim<2>>;

// Do these arrays hold n of the rows that there is room for from `start` on? Keys and values (n, heads, bytes of a row),
// scales (n, heads).
template <typename Array, typename Scales>
int64_t rows_of(const KVCache& c, int layer, int64_t start, int64_t end, const Array& k, const Array& v, const Scales& k_scale, const Scales& v_scale, const char* what) {
    need(layer >= 0 && layer < c.layers, what);
    const size_t each = c.item() * static_cast<size_t>(c.dim), n = k.shape(0), heads = static_cast<size_t>(c.heads(layer));
    for (const Array* x : {&k, &v}) need(x->shape(0) == n && x->shape(1) == heads && x->shape(2) == each, what);
    for (const Scales* x : {&k_scale, &v_scale}) need(x->shape(0) == n && x->shape(1) == heads, what);
    need(start >= 0 && start <= end && n <= static_cast<size_t>(end - start), what);
    return static_cast<int64_t>(n);
}

using Codes = Exactly<const uint8_t, nb::ndim<3>>;
using CodesOut = Exactly<uint8_t, nb::ndim<3>>;
using Scales = Exactly<const uint16_t, nb::ndim<2>>;
using ScalesOut = Exactly<uint16_t, nb::ndim<2>>;
using HeadOut = Exactly<uint8_t, nb::ndim<2>>;
using HeadScalesOut = Exactly<uint16_t, nb::ndim<1>>;

}  // namespace

void bind_kv(nb::module_& m) {
    nb::register_exception_translator([](const std::exception_ptr& p, void*) {
        try {
            std::rethrow_exception(p);
        } catch (const SpillError& error) {
            nb::object type = nb::module_::import_("genmote.errors").attr("SpecError");
            PyErr_SetString(type.ptr(), error.what());
        }
    });
    nb::class_<KVCache>(m, "KVCache", nb::dynamic_attr())
        .def("__init__", [](KVCache* self, int kind, const std::vector<int>& heads, int dim, int64_t capacity, int64_t queries, const std::vector<int>& query_heads, const std::string& folder, int64_t resident, int64_t page) {
            need(kind >= 0 && kind <= 2, "cache: no such kind");
            need(!heads.empty() && dim > 0 && capacity > 0, "cache: layers, heads, dimensions and rows must be positive");
            need(heads.size() <= 1 << 16 && dim <= 1024 && capacity <= int64_t(1) << 32, "cache: too large");
            need(queries >= 0 && queries <= int64_t(1) << 32 && query_heads.size() == (queries ? heads.size() : 0), "cache: queries must not be negative, or too many");
            double all = 0, asked = 0;
            for (int n : heads) {
                need(n > 0, "cache: layers, heads, dimensions and rows must be positive");
                need(n <= 1 << 12, "cache: too large");
                all += n;
            }
            for (int n : query_heads) {
                need(n >= 0 && n <= 1 << 16, "cache: queries must not be negative, or too many");
                asked += n;
            }
            need(all * dim * capacity < 0x1p58 && asked * dim * (queries + kQuerySlack) < 0x1p58, "cache: too large");
            need(page >= 0 && page <= 1 << 20 && page % 4096 == 0, "cache: no page of memory");
            new (self) KVCache(static_cast<Kind>(kind), heads, dim, capacity, queries, query_heads, folder, std::max<int64_t>(0, resident), static_cast<size_t>(page));
        }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg("queries") = 0, nb::arg("query_heads") = std::vector<int>(), nb::arg("folder") = "", nb::arg("resident") = 0, nb::arg("page") = 0)
        .def_ro("lengths", &KVCache::lengths)
        .def_ro("position", &KVCache::position)
        .def_ro("floor", &KVCache::floor)
        .def_ro("capacity", &KVCache::capacity)
        .def_ro("query_begin", &KVCache::query_from)
        .def_prop_ro("nbytes", &KVCache::bytes)
        .def_prop_ro("spilled", [](const KVCache& c) {
            return c.spill() ? std::make_tuple(c.spill()->bytes_written(), c.spill()->bytes_read()) : std::make_tuple(uint64_t(0), uint64_t(0));
        }, "Bytes of cold rows written to disk, and read again.")
        .def("move", [](KVCache& c, int64_t count) {
            need(count >= -c.capacity && count <= c.capacity && c.position + count >= c.floor, "move: past the rows that are here");
            for (int64_t n : c.lengths) need(n + count >= 0 && n + count <= c.capacity, "move: past the rows that are here");
            c.move(count);
        })
        .def("place", [](KVCache& c, const std::vector<int64_t>& lengths, int64_t position, int64_t floor) {
            need(int64_t(lengths.size()) == c.layers && floor >= 0 && floor <= position && position < int64_t(1) << 40, "place: wrong counts");
            for (int64_t n : lengths) need(n >= 0 && n <= c.capacity && position - floor <= n, "place: wrong counts");
            c.lengths = lengths;
            c.position = c.query_from = position;
            c.floor = floor;
            for (int l = 0; l < c.layers; l++) c.release(l);
        })
        .def("keep_rows", [](KVCache& c, int layer, Rows rows) {
            need(layer >= 0 && layer < c.layers && int64_t(rows.shape(0)) == c.heads(layer), "keep: wrong shape");
            const int64_t n = static_cast<int64_t>(rows.shape(1)), length = c.lengths[static_cast<size_t>(layer)];
            for (int h = 0; h < c.heads(layer); h++)
                for (int64_t i = 0; i < n; i++) {
                    const int64_t *at = rows.data() + h * n + i;
                    need(*at >= 0 && *at < length && (i == 0 || at[-1] < *at), "keep: rows must ascend, and be there");
                }
            c.keep(layer, rows.data(), n);
        })
        .def("read", [](KVCache& c, int layer, int64_t start, CodesOut k, CodesOut v, ScalesOut k_scale, ScalesOut v_scale) {
            const int64_t end = layer >= 0 && layer < c.layers ? c.lengths[static_cast<size_t>(layer)] : 0;
            const int64_t n = rows_of(c, layer, start, end, k, v, k_scale, v_scale, "read: wrong shape");
            c.open(layer);
            const int heads = c.heads(layer);
            for (int64_t i = 0; i < n * heads; i++) {
                const size_t at = static_cast<size_t>(i) * c.dim * c.item();
                c.read(layer, static_cast<int>(i % heads), start + i / heads, k.data() + at, v.data() + at, k_scale.data() + i, v_scale.data() + i);
            }
            c.drain();
            c.close(layer, end);
        })
        .def("read_head", [](KVCache& c, int layer, int head, bool value, HeadOut codes, HeadScalesOut scales) {
            need(layer >= 0 && layer < c.layers && head >= 0 && head < c.heads(layer), "read_head: no such head");
            const size_t n = static_cast<size_t>(c.lengths[static_cast<size_t>(layer)]);
            need(codes.shape(0) == n && codes.shape(1) == c.item() * static_cast<size_t>(c.dim) && scales.shape(0) == n, "read_head: wrong shape");
            c.read_head(layer, head, value, codes.data(), scales.data());
        })
        .def("write", [](KVCache& c, int layer, int64_t start, Codes k, Codes v, Scales k_scale, Scales v_scale) {
            const int64_t n = rows_of(c, layer, start, c.capacity, k, v, k_scale, v_scale, "write: wrong shape");
            c.rewrite(layer, start);
            const int heads = c.heads(layer);
            for (int64_t i = 0; i < n * heads; i++) {
                const size_t at = static_cast<size_t>(i) * c.dim * c.item();
                c.write(layer, static_cast<int>(i % heads), start + i / heads, {k.data() + at, v.data() + at, k_scale.data()[i], v_scale.data()[i]});
            }
            c.close(layer, start + n);
        })
        .def("copy", [](KVCache& c, KVCache& from, int64_t position) {  // its rows before a position, layer by layer
            const int64_t back = from.position - position;
            need(&c != &from && c.like(from), "copy: another shape");
            need(back >= 0 && position >= from.floor, "copy: past the rows that are here");
            for (int64_t n : from.lengths) need(n - back >= 0 && n - back <= c.capacity, "copy: past the rows that there is room for");
            for (int l = 0; l < c.layers; l++) {
                c.copy(from, l, from.lengths[static_cast<size_t>(l)] - back);
                c.lengths[static_cast<size_t>(l)] = from.lengths[static_cast<size_t>(l)] - back;
                c.release(l);
            }
            c.position = position;
            c.floor = from.floor;
            c.query_from = std::max(std::min(from.query_from, position), position - c.queries);
            for (int l = 0; l < c.layers && c.queries; l++)
                for (int64_t p = c.query_from; p < position; p++) std::copy_n(from.query(l, p), int64_t(c.query_heads(l)) * c.dim, c.query(l, p));
        })
        .def("read_queries", [](const KVCache& c, int layer, int64_t first, HalvesOut q) {  // (n, H, D), of positions first, first + 1, ...
            need(q.ndim() == 3 && layer >= 0 && layer < c.layers, "queries: wrong shape");
            const int64_t n = static_cast<int64_t>(q.shape(0)), each = int64_t(c.query_heads(layer)) * c.dim;
            need(int64_t(q.size()) == n * each && first >= c.query_from && n <= c.position - first, "queries: wrong shape");
            for (int64_t i = 0; i < n; i++) std::copy_n(c.query(layer, first + i), each, q.data() + i * each);
        })
        .def("write_queries", [](KVCache& c, int layer, Halves q) {  // of the last n rows
            need(q.ndim() == 3 && layer >= 0 && layer < c.layers, "queries: wrong shape");
            const int64_t n = static_cast<int64_t>(q.shape(0)), each = int64_t(c.query_heads(layer)) * c.dim;
            need(int64_t(q.size()) == n * each && n <= c.queries && n <= c.position, "queries: wrong shape");
            for (int64_t i = 0; i < n; i++) std::copy_n(q.data() + i * each, each, c.query(layer, c.position - n + i));
            c.query_from = c.position - n;
        });
}
