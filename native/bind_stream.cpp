// The reader's and the stream's faces in Python: genmote.ops._native.Reader and Stream.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <unordered_map>

#include "bindings.h"
#include "block.h"
#include "reader.h"
#include "stream.h"

using namespace genmote;
using namespace nb::literals;

namespace {

// Ctrl-C while a slow disk is waited for.
void see_signals() {
    nb::gil_scoped_acquire hold;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

// The memory of each read is kept until the read is waited for or cancelled, or the reader ends.
struct PyReader {
    std::unordered_map<uint64_t, nb::object> memory;
    Reader reader;
    PyReader(const std::string& path, int threads, bool direct) : reader(path, threads, direct) {}
};

uint64_t submit(PyReader& r, int64_t offset, size_t nbytes, BytesOut to, size_t at, int priority) {
    need(offset >= 0 && offset <= int64_t(1) << 60 && nbytes > 0 && nbytes < size_t(1) << 60, "read: offset or size is impossible");
    need(at <= to.size() && Reader::room(offset, nbytes) <= to.size() - at, "read: the memory is too small, see Reader.room");
    need(reinterpret_cast<uintptr_t>(to.data() + at) % Reader::kBlock == 0, "read: the memory must begin on a block of 4096 bytes");
    const uint64_t ticket = r.reader.submit(offset, nbytes, to.data() + at, priority);
    r.memory[ticket] = nb::cast(to);
    return ticket;
}

struct PyStream {
    nb::object reader;
    Stream stream;
    explicit PyStream(const nb::object& reader) : reader(reader), stream(nb::cast<PyReader&>(reader).reader) {}
};

using PyPart = std::tuple<int, int64_t, int64_t>;
using PyChunk = std::tuple<int, std::vector<PyPart>>;

void arrange(PyStream& s, const std::vector<PyChunk>& chunks, const std::vector<int>& order, size_t ring_bytes) {
    std::vector<Stream::Plan> plans;
    for (const auto& [use, parts] : chunks) {
        need(use >= 0 && use <= 2 && !parts.empty(), "arrange: a chunk is (0, 1 or 2, its parts)");
        plans.push_back({static_cast<Stream::Use>(use), {}});
        for (const auto& [matrix, begin, end] : parts) plans.back().parts.push_back({matrix, begin, end});
    }
    nb::gil_scoped_release free;
    s.stream.arrange(plans, order, ring_bytes);
}

}  // namespace

void bind_stream(nb::module_& m) {
    nb::register_exception_translator([](const std::exception_ptr& p, void*) {
        try {
            std::rethrow_exception(p);
        } catch (const ReadError& error) {
            nb::object type = nb::module_::import_("genmote.errors").attr("ModelFileError");
            PyErr_SetString(type.ptr(), error.what());
        }
    });
    nb::class_<PyReader>(m, "Reader", "Reads parts of a file into memory by threads of its own, several at once. ModelFileError where a read "
                                      "fails, falls short, or the file has changed since it was opened.")
        .def("__init__", [](PyReader* self, const std::string& path, int threads, bool direct) {
            need(threads >= 1 && threads <= 64, "reader: from 1 to 64 threads");
            new (self) PyReader(path, threads, direct);
        }, "path"_a, "threads"_a = 4, "direct"_a = true)
        .def_static("room", [](int64_t offset, size_t nbytes) { return Reader::room(offset, nbytes); }, "offset"_a, "nbytes"_a,
                    "Bytes of memory that a read takes: whole blocks of 4096.")
        .def("submit", &submit, "offset"_a, "nbytes"_a, "to"_a, "at"_a = 0, "priority"_a = 0,
             "Begin to read into `to` (uint8), whose address at `at` is a multiple of 4096: the bytes will lie from at + offset % 4096 on. "
             "Lower priority goes first. Gives a ticket.")
        .def("wait", [](PyReader& r, uint64_t ticket) {
            {
                nb::gil_scoped_release free;
                try {
                    r.reader.wait(ticket, see_signals);
                } catch (const ReadError&) {
                    nb::gil_scoped_acquire hold;
                    r.memory.erase(ticket);
                    throw;
                }
            }
            r.memory.erase(ticket);
        }, "ticket"_a, "Until the read is done. Ctrl-C is seen, and the read goes on.")
        .def("done", [](PyReader& r, uint64_t ticket) { return r.reader.done(ticket); }, "ticket"_a, "Whether the read has ended, well or not.")
        .def("cancel", [](PyReader& r, uint64_t ticket) {
            {
                nb::gil_scoped_release free;
                r.reader.cancel(ticket);
            }
            r.memory.erase(ticket);
        }, "ticket"_a, "Nothing is written to the read's memory after this returns.")
        .def("withdraw", [](PyReader& r, uint64_t ticket) {
            if (!r.reader.withdraw(ticket)) return false;
            r.memory.erase(ticket);
            return true;
        }, "ticket"_a, "Cancel a read unless some of it is being read, or is done; whether it was cancelled.")
        .def("hasten", [](PyReader& r, uint64_t ticket, int priority) { r.reader.hasten(ticket, priority); }, "ticket"_a, "priority"_a,
             "Give what is not begun of a read another priority.")
        .def("check", [](PyReader& r) { r.reader.check(); }, "ModelFileError where the file has changed since it was opened.")
        .def_prop_ro("direct", [](const PyReader& r) { return r.reader.direct(); }, "Whether reads go past the page cache.")
        .def_prop_ro("size", [](const PyReader& r) { return r.reader.size(); })
        .def_prop_ro("stamp", [](const PyReader& r) {
            const Reader::Stamp& s = r.reader.stamp();
            return std::make_tuple(s.device, s.inode, s.size, s.mtime_ns);
        }, "(device, inode, size, time in ns) of the file that was opened.")
        .def_prop_ro("bytes_read", [](const PyReader& r) { return r.reader.bytes_read(); })
        .def_prop_ro("waited_s", [](const PyReader& r) { return r.reader.waited_s(); }, "Seconds that were spent in `wait`.");

    nb::class_<PyStream>(m, "Stream", "Weights out of a file that do not all fit into memory: some are pinned, the rest is read in every pass.")
        .def(nb::init<nb::object>(), "reader"_a)
        .def("matrix", [](nb::handle self, int type, int64_t rows, int64_t cols, int64_t offset) {
            need(packable(type, rows, cols), "matrix: type, rows or columns unsupported");
            return PyMatrix{nb::cast<PyStream&>(self).stream.matrix(type, rows, cols, offset), nb::borrow(self)};
        }, "type"_a, "rows"_a, "cols"_a, "offset"_a, "A matrix whose packed panels lie at `offset` of the file.")
        .def("arrange", &arrange, "chunks"_a, "order"_a, "ring_bytes"_a,
             "Chunks in order of use: (0 for layers, 1 for the head, 2 where only rows are looked up, parts), a part being (matrix.id, first panel, "
             "end); the order in which to pin them. Nothing is pinned afterwards.")
        .def("pin", [](PyStream& s, Machine& machine, size_t bytes) {
            nb::gil_scoped_release free;
            std::lock_guard<std::mutex> lock(machine.busy);
            s.stream.pin(bytes, see_signals);
        }, "machine"_a, "bytes"_a, "Pin chunks in their order while all pinned ones fit `bytes`, or let go of the last until they do. Ctrl-C is seen: "
                                   "nothing more is pinned then.")
        .def("begin", [](PyStream& s, bool head) {
            nb::gil_scoped_release free;
            s.stream.begin(head);
        }, "head"_a, "A pass begins; whether it ends with the head. ModelFileError where the file has changed.")
        .def_prop_ro("pinned_bytes", [](PyStream& s) {
            nb::gil_scoped_release free;
            return s.stream.pinned_bytes();
        })
        .def_prop_ro("streamed_bytes", [](PyStream& s) {
            nb::gil_scoped_release free;
            return s.stream.streamed_bytes();
        }, "Bytes read in each pass that ends with the head.")
        .def_ro("reader", &PyStream::reader);
}
