// Text tokenizers over a memory-mapped table (layout: genmote/models/tokenizer/table.py, the Python twin of this file).
//
// Nothing here trusts the table: every id, slot and offset that is read from it is bounded, so a damaged one may give
// wrong tokens but never an access outside it. A TokenTable is immutable, so threads may share it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace genmote {

enum TokenKind : uint32_t { kTokensBpe = 0, kTokensSpm = 1 };
enum TokenType : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

uint32_t crc32(const void* data, size_t size, uint32_t crc = 0);

class TokenTable {
 public:
    // Views `data`, which must outlive the table. Throws std::invalid_argument for what is not a whole table.
    TokenTable(const uint8_t* data, size_t size);

    // Appends the tokens of UTF-8 `text`. `special`: control tokens' texts in it become those tokens.
    // `space_prefix` (SPM): a space goes before the text, and before what follows a special token.
    void encode(std::string_view text, bool special, bool space_prefix, std::vector<int32_t>& out) const;

    // The token whose whole text this is, or -1.
    int32_t find(std::string_view text) const;

    // BPE: the byte offset of the end of each word that the pre-tokenizer cuts.
    std::vector<uint32_t> split(std::string_view text) const;

 private:
    friend class TokenEncoder;
    struct Item {
        uint32_t kind, cls, least, most;
    };
    struct Span {
        uint32_t first, count;
    };
    struct Merge {
        uint32_t rank;
        int32_t id;
    };
    template <class T>
    struct View {
        const T* data = nullptr;
        size_t count = 0;
        T operator[](size_t i) const { return data[i]; }
    };

    std::string_view text_of(uint32_t id) const;
    int32_t find_word(std::string_view text) const;
    Merge find_pair(uint32_t left, uint32_t right) const;
    Merge find_joined(std::string_view text) const;
    int32_t find_special(std::string_view text, bool control) const;
    uint32_t atom(const char* at, const char* end, size_t& length) const;
    bool in_class(uint32_t cls, uint32_t atom) const { return classes_[8 * size_t(cls) + (atom >> 5)] >> (atom & 31) & 1; }
    const char* match(const Span& items, uint32_t item, const char* at, const char* end) const;
    const char* match_stage(size_t stage, const char* at, const char* end) const;
    template <class Sink>
    void cut(size_t stage, const char* at, const char* end, const Sink& sink) const;
    void read_program(View<uint32_t> program);

    uint32_t kind_ = 0, flags_ = 0, tokens_ = 0;
    int32_t unknown_ = -1;
    View<uint32_t> offsets_, words_, priority_, pairs_, specials_;
    View<uint8_t> text_, types_, glue_, atoms_;
    View<int32_t> bytes_;
    View<uint16_t> pages_;
    std::vector<Span> stages_, sequences_;
    std::vector<Item> items_;
    std::vector<uint32_t> classes_;
    std::vector<std::array<uint32_t, 256>> starts_;  // of each stage: which alternatives may start with an atom
};

// What a table is made from. Strings lie as GGUF stores them: a u64 length and the bytes, one after the other.
struct TokenVocabulary {
    uint32_t kind = 0, flags = 0, tokens = 0, merges = 0;
    int32_t unknown = -1;
    std::string_view key;                     // 32 bytes
    std::string_view token_strings, merge_strings;
    std::string_view types;                   // u8 of each token
    std::string_view priority;                // u32 of each token (SPM)
    std::string_view pages, atoms, program;   // of the pre-tokenizer (BPE), made by the caller
};

// The bytes of the table. Throws std::invalid_argument where the strings do not hold what is said.
std::string build_token_table(const TokenVocabulary& vocabulary);

namespace token_table {  // the layout, shared by reader and builder
enum Section { kOffsets, kText, kTypes, kWords, kPriority, kPairs, kBytes, kSpecials, kGlue, kPages, kAtoms, kProgram };
constexpr size_t kSections = 12, kHeaderBytes = 320, kSpans = 72, kProgramCrc = 264, kAlign = 64;
constexpr char kMagic[] = "GMTOKTAB";
constexpr uint32_t kVersion = 1, kEmpty = 0xFFFFFFFFu, kMaxTokens = 0xFFFFFEu, kPages16 = 0x1100;
constexpr uint32_t kIgnoreMerges = 1;
inline size_t slots_for(size_t entries) { return entries + entries / 2 + 1; }
inline size_t slot_of(uint32_t hash, size_t slots) { return size_t(uint64_t(hash) * slots >> 32); }
inline uint32_t pair_hash(uint32_t left, uint32_t right) {
    return uint32_t((uint64_t(left) << 32 | right) * 0x9E3779B97F4A7C15u >> 32);
}
}  // namespace token_table

}  // namespace genmote
