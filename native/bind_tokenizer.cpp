// The tokenizer's face in Python: genmote.ops._native.TokenTable and build_token_table.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include "tokenizer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::string_view view(const nb::bytes& bytes) { return {static_cast<const char*>(bytes.data()), bytes.size()}; }

// Keeps the memory (a mapped file or bytes) alive as long as the table that views it.
struct BoundTable {
    Bytes memory;
    genmote::TokenTable table;
    explicit BoundTable(Bytes bytes) : memory(std::move(bytes)), table(memory.data(), memory.size()) {}
};

constexpr size_t kLongText = 1024;  // below this, giving the interpreter away costs more than it gives

std::vector<int32_t> encode(const BoundTable& bound, const nb::bytes& text, bool special, bool space_prefix) {
    std::vector<int32_t> ids;
    if (text.size() >= UINT32_MAX / 4) throw nb::value_error("a text of 1 GB or more");
    if (text.size() < kLongText) {
        bound.table.encode(view(text), special, space_prefix, ids);
    } else {
        const std::string_view bytes = view(text);
        nb::gil_scoped_release release;
        bound.table.encode(bytes, special, space_prefix, ids);
    }
    return ids;
}

nb::bytes build(uint32_t kind, uint32_t flags, int32_t unknown, const nb::bytes& key, uint32_t tokens, const nb::bytes& token_strings,
                const nb::bytes& types, const nb::bytes& priority, uint32_t merges, const nb::bytes& merge_strings, const nb::bytes& pages,
                const nb::bytes& atoms, const nb::bytes& program) {
    genmote::TokenVocabulary vocabulary;
    vocabulary.kind = kind;
    vocabulary.flags = flags;
    vocabulary.unknown = unknown;
    vocabulary.key = view(key);
    vocabulary.tokens = tokens;
    vocabulary.token_strings = view(token_strings);
    vocabulary.types = view(types);
    vocabulary.priority = view(priority);
    vocabulary.merges = merges;
    vocabulary.merge_strings = view(merge_strings);
    vocabulary.pages = view(pages);
    vocabulary.atoms = view(atoms);
    vocabulary.program = view(program);
    std::string table;
    {
        nb::gil_scoped_release release;
        table = genmote::build_token_table(vocabulary);
    }
    return nb::bytes(table.data(), table.size());
}

}  // namespace

void bind_tokenizer(nb::module_& module) {
    nb::class_<BoundTable>(module, "TokenTable", "A token table in memory (1-d uint8); ValueError when it is not a whole one.")
        .def(nb::init<Bytes>(), "memory"_a)
        .def("encode", &encode, "text"_a, "special"_a, "space_prefix"_a, "Token ids of UTF-8 bytes.")
        .def(
            "find", [](const BoundTable& bound, const nb::bytes& text) { return bound.table.find(view(text)); }, "text"_a,
            "The token whose whole text this is, or -1.")
        .def(
            "split", [](const BoundTable& bound, const nb::bytes& text) { return bound.table.split(view(text)); }, "text"_a,
            "Byte offsets of the ends of the words that the pre-tokenizer cuts.");
    module.def("build_token_table", &build, "kind"_a, "flags"_a, "unknown"_a, "key"_a, "tokens"_a, "token_strings"_a, "types"_a,
               "priority"_a, "merges"_a, "merge_strings"_a, "pages"_a, "atoms"_a, "program"_a,
               "The bytes of a token table; ValueError when the strings do not hold what is said.");
}
