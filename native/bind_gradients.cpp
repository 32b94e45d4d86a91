// The backward pass in Python: methods of genmote.ops._native.Machine. Arrays are checked for shape here, for meaning in
// genmote/ops/native_gradients.py.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bindings.h"
#include "block.h"

using namespace genmote;

namespace {

int64_t size(const Floats& a, size_t axis) { return static_cast<int64_t>(a.shape(axis)); }

void matmul_back(Machine& s, const PyMatrix& w, Floats dy, FloatsOut dx) {
    need(dy.ndim() == 2 && dx.ndim() == 2 && size(dy, 1) == w.m.rows && dx.shape(0) == dy.shape(0) && int64_t(dx.shape(1)) == up16(w.m.cols), "matmul_back: wrong shapes");
    if (dy.shape(0) == 0) return;
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> lock(s.busy);
    s.matmul_back(w.m, dy.data(), size(dy, 0), dx.data());
}

void outer(Machine& s, Floats a, Floats b, FloatsOut y) {
    need(a.ndim() == 2 && b.ndim() == 2 && y.ndim() == 2 && a.shape(0) == b.shape(0) && a.size() > 0 && b.size() > 0 && y.shape(0) == a.shape(1) && int64_t(y.shape(1)) == up16(size(b, 1)),
         "outer: wrong shapes");
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> lock(s.busy);
    s.outer(a.data(), size(a, 1), b.data(), size(b, 1), size(a, 0), y.data());
}

void adapt_back(Machine& s, const PyMatrix& down, const PyMatrix& up, float scale, Floats dy, Floats x, FloatsOut dx, FloatsOut da, FloatsOut db) {
    need(!down.m.quantised() && !up.m.quantised() && down.m.data && up.m.data && up.m.cols == down.m.rows && down.m.cols % 16 == 0, "adapt_back: wrong matrices");
    need(dy.ndim() == 2 && x.ndim() == 2 && da.ndim() == 2 && db.ndim() == 2 && size(dy, 1) == up.m.rows && size(x, 1) == down.m.cols && dy.shape(0) == x.shape(0) && x.shape(0) > 0 && dx.size() == x.size()
             && int64_t(da.shape(0)) == down.m.rows && int64_t(da.shape(1)) == down.m.cols && db.shape(0) == da.shape(0) && int64_t(db.shape(1)) == up16(up.m.rows), "adapt_back: wrong shapes");
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> lock(s.busy);
    s.adapt_back(down.m, up.m, scale, dy.data(), x.data(), size(x, 0), dx.data(), da.data(), db.data());
}

void norm_back(Machine& s, Floats dy, Floats x, Floats gain, float eps, bool centre, FloatsOut dx, FloatsOut dgain, std::optional<FloatsOut> dbias) {
    need(gain.size() > 0 && x.ndim() > 0 && x.shape(x.ndim() - 1) == gain.size() && dy.size() == x.size() && dx.size() == x.size() && dgain.size() == gain.size() && (!dbias || dbias->size() == gain.size()),
         "norm_back: wrong shapes");
    const Norm n{gain.data(), nullptr, static_cast<int64_t>(gain.size()), eps, centre};
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> lock(s.busy);
    s.norm_back(n, dy.data(), x.data(), static_cast<int64_t>(x.size() / gain.size()), dx.data(), dgain.data(), dbias ? dbias->data() : nullptr);
}

void attend_back(Machine& s, Floats dout, Floats q, Floats k, Floats v, const std::vector<int64_t>& lengths, float scale, float cap, int64_t window, FloatsOut dq, FloatsOut dk, FloatsOut dv) {
    need(q.ndim() == 3 && k.ndim() == 3 && v.ndim() == 3 && dout.size() == q.size() && dq.size() == q.size() && q.size() > 0 && k.size() > 0 && v.size() == k.size() && dk.size() == k.size() && dv.size() == k.size()
             && k.shape(0) == q.shape(0) && k.shape(2) == q.shape(2) && v.shape(2) == k.shape(2) && q.shape(1) % k.shape(1) == 0 && q.shape(2) <= 1024, "attend_back: wrong shapes");
    int64_t rows = 0;
    for (int64_t n : lengths) {
        need(n >= 0 && n < 1 << 24, "attend_back: a session's length is impossible");
        rows += n;
    }
    need(rows == size(q, 0), "attend_back: the sessions do not cover the rows");
    AttendBack a{q.data(), dout.data(), k.data(), v.data(), dq.data(), dk.data(), dv.data(), size(q, 1) * size(q, 2), size(k, 1) * size(k, 2), rows, window,
                 static_cast<int>(q.shape(1)), static_cast<int>(q.shape(2)), scale, cap, nullptr};
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> lock(s.busy);
    s.attend_back(a, static_cast<int>(k.shape(1)), lengths);
}

double cross_entropy(Machine& s, FloatsOut logits, Ints targets, Floats weights) {
    need(logits.ndim() == 2 && targets.shape(0) == logits.shape(0) && weights.size() == logits.shape(0), "cross_entropy: wrong shapes");
    const int64_t rows = static_cast<int64_t>(logits.shape(0)), n = static_cast<int64_t>(logits.shape(1));
    for (int64_t i = 0; i < rows; i++) need(targets.data()[i] >= 0 && targets.data()[i] < n, "cross_entropy: a target is out of range");
    nb::gil_scoped_release free;
    std::lock_guard<std::mutex> lock(s.busy);
    return s.cross_entropy(logits.data(), rows, n, targets.data(), weights.data());
}

}  // namespace

void bind_gradients(nb::class_<Machine>& machine) {
    machine.def("matmul_back", &matmul_back)
        .def("outer", &outer)
        .def("adapt_back", &adapt_back)
        .def("norm_back", &norm_back, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
        .def("attend_back", &attend_back)
        .def("cross_entropy", &cross_entropy)
        .def("glu_back", [](Machine& s, Floats d, Floats gate, Floats up, int act, FloatsOut dgate, FloatsOut dup) {
            need(gate.size() == d.size() && up.size() == d.size() && dgate.size() == d.size() && dup.size() == d.size() && act >= 0 && act <= 2, "glu_back: wrong shapes");
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(s.busy);
            s.glu_back(d.data(), gate.data(), up.data(), static_cast<int64_t>(d.size()), static_cast<Act>(act), dgate.data(), dup.data());
        })
        .def("activate_back", [](Machine& s, Floats d, Floats x, int act, FloatsOut dx) {
            need(x.size() == d.size() && dx.size() == d.size() && act >= 0 && act <= 2, "activate_back: wrong shapes");
            s.kernels.activate_back(d.data(), x.data(), static_cast<int64_t>(d.size()), static_cast<Act>(act), dx.data());
        })
        .def("soft_cap_back", [](Machine& s, Floats d, Floats y, float cap, FloatsOut dx) {
            need(y.size() == d.size() && dx.size() == d.size() && cap > 0, "soft_cap_back: wrong shapes");
            s.kernels.soft_cap_back(d.data(), y.data(), static_cast<int64_t>(d.size()), cap, dx.data());
        });
}
