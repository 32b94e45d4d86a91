// What the bindings share: arrays as they are, and matrices that keep what they lie in alive.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "genmote.h"

namespace nb = nanobind;

void bind_tokenizer(nb::module_&);
void bind_stream(nb::module_&);
void bind_kv(nb::module_&);
void bind_series(nb::module_&);

// An array as it is, or TypeError: nanobind would hand over a converted copy of one of another type or order, and what
// is written to a copy is lost.
template <typename... T> struct Exactly : nb::ndarray<T..., nb::c_contig, nb::device::cpu> {};

template <typename... T> struct nb::detail::type_caster<Exactly<T...>> {
    using Array = nb::ndarray<T..., nb::c_contig, nb::device::cpu>;
    NB_TYPE_CASTER(Exactly<T...>, type_caster<Array>::Name)
    bool from_python(handle src, uint32_t flags, cleanup_list* cleanup) noexcept {
        type_caster<Array> array;
        if (!array.from_python(src, flags & ~static_cast<uint32_t>(cast_flags::convert), cleanup)) return false;
        static_cast<Array&>(value) = std::move(array.value);
        return true;
    }
    static handle from_cpp(const Array& array, rv_policy policy, cleanup_list* cleanup) noexcept {
        return type_caster<Array>::from_cpp(array, policy, cleanup);
    }
};

using Bytes = Exactly<const uint8_t, nb::ndim<1>>;
using BytesOut = Exactly<uint8_t, nb::ndim<1>>;
using Floats = Exactly<const float>;
using FloatsOut = Exactly<float>;
using Halves = Exactly<const uint16_t>;
using HalvesOut = Exactly<uint16_t>;
using Ints = Exactly<const int32_t, nb::ndim<1>>;
using Doubles = Exactly<const double, nb::ndim<1>>;

inline void need(bool ok, const char* what) {
    if (!ok) throw nb::value_error(what);
}

constexpr int64_t kMostRows = int64_t(1) << 32, kMostCols = int64_t(1) << 24;  // beyond, sizes might wrap around

// Is there a packed layout for such a matrix?
inline bool packable(int type, int64_t rows, int64_t cols) {
    genmote::Layout l;
    if (rows <= 0 || cols <= 0 || rows > kMostRows || cols > kMostCols) return false;
    return genmote::is_float_type(type) || (genmote::layout_of(type, &l) && cols % l.src_block == 0);
}

struct PyMatrix {
    genmote::Matrix m;
    nb::object owner;
};
