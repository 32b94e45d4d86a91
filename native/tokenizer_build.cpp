// Making a token table from a GGUF vocabulary: byte for byte what genmote/models/tokenizer/build.py makes.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include "tokenizer.h"

namespace genmote {
using namespace token_table;

namespace {

constexpr char kSpace[] = "\xE2\x96\x81";  // U+2581

// GGUF strings one after the other, as views into the file's bytes.
std::vector<std::string_view> strings(std::string_view raw, uint32_t count, const char* what) {
    std::vector<std::string_view> found;
    found.reserve(std::min<size_t>(count, raw.size() / 8));
    for (uint32_t i = 0; i < count; ++i) {
        uint64_t size = 0;
        if (raw.size() >= 8) std::memcpy(&size, raw.data(), 8);
        if (raw.size() < 8 || size > raw.size() - 8)
            throw std::invalid_argument(std::string(what) + " ends inside entry " + std::to_string(i));
        found.push_back(raw.substr(8, size_t(size)));
        raw.remove_prefix(8 + size_t(size));
    }
    return found;
}

// GPT-2 writes bytes as printable characters: code point -> byte, or -1.
std::array<int16_t, 512> byte_alphabet() {
    std::array<int16_t, 512> bytes;
    bytes.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
        const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        bytes[size_t(printable ? byte : next++)] = int16_t(byte);
    }
    return bytes;
}

// The bytes that a token of byte-level BPE stands for; false when it has a character outside the alphabet.
bool from_alphabet(std::string_view token, std::string& bytes) {
    static const auto alphabet = byte_alphabet();
    bytes.clear();
    for (size_t i = 0; i < token.size(); ++i) {
        uint32_t point = uint8_t(token[i]);
        if (point >= 0x80) {  // the alphabet ends at U+0143: two bytes at most
            if (point < 0xC2 || point > 0xDF || i + 1 >= token.size() || (uint8_t(token[i + 1]) & 0xC0) != 0x80) return false;
            point = (point & 0x1F) << 6 | (uint8_t(token[++i]) & 0x3F);
        }
        if (point >= alphabet.size() || alphabet[point] < 0) return false;
        bytes += char(alphabet[point]);
    }
    return true;
}

int hex(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

// "<0x0A>" -> 10, or -1.
int byte_token(std::string_view token) {
    if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>' || hex(token[3]) < 0 || hex(token[4]) < 0) return -1;
    return hex(token[3]) * 16 + hex(token[4]);
}

std::string with_spaces(std::string_view token) {
    std::string text;
    for (size_t at = 0; at < token.size();) {
        const bool space = token.compare(at, 3, kSpace) == 0;
        text += space ? ' ' : token[at];
        at += space ? 3 : 1;
    }
    return text;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string assemble(const TokenVocabulary& vocabulary, const std::array<std::string, kSections>& sections) {
    std::string table(kHeaderBytes, '\0');
    const auto put = [&](size_t at, auto value) { std::memcpy(&table[at], &value, sizeof value); };
    for (size_t number = 0; number < kSections; ++number) {
        table.resize((table.size() + kAlign - 1) / kAlign * kAlign);
        put(kSpans + 16 * number, uint64_t(table.size()));
        put(kSpans + 16 * number + 8, uint64_t(sections[number].size()));
        table += sections[number];
    }
    std::memcpy(&table[0], kMagic, 8);
    put(8, kVersion);
    put(12, vocabulary.kind);
    put(16, uint64_t(table.size()));
    put(24, vocabulary.tokens);
    put(28, vocabulary.flags);
    put(32, vocabulary.unknown);
    std::memcpy(&table[40], vocabulary.key.data(), 32);
    put(kProgramCrc, crc32(sections[kProgram].data(), sections[kProgram].size()));
    put(36, crc32(table.data(), kHeaderBytes));
    return table;
}

struct Builder {
    explicit Builder(const TokenVocabulary& from)
        : vocabulary(from), tokens(strings(from.token_strings, from.tokens, "tokenizer.ggml.tokens")) {}

    const TokenVocabulary& vocabulary;
    std::vector<std::string_view> tokens;
    std::vector<uint32_t> offsets{0}, words, pairs, specials;
    std::vector<int32_t> bytes = std::vector<int32_t>(256, -1);
    std::array<uint8_t, 32> glue{};
    std::string text;

    uint8_t type(uint32_t id) const { return uint8_t(vocabulary.types[id]); }
    std::string_view text_of(uint32_t id) const { return std::string_view(text).substr(offsets[id], offsets[id + 1] - offsets[id]); }

    void lay_out_text() {
        const bool bpe = vocabulary.kind == kTokensBpe;
        std::vector<uint32_t> plain;
        std::string decoded;
        for (uint32_t id = 0; id < vocabulary.tokens; ++id) {
            const std::string_view token = tokens[id];
            bool word = type(id) == kNormal || type(id) == kUnused;
            const int byte = type(id) == kByte ? byte_token(token) : -1;
            if (byte >= 0) {
                decoded.assign(1, char(byte));
                if (bytes[size_t(byte)] < 0) bytes[size_t(byte)] = int32_t(id);
            } else if (bpe && word && (word = from_alphabet(token, decoded))) {
                if (decoded.size() == 1 && bytes[uint8_t(decoded[0])] < 0) bytes[uint8_t(decoded[0])] = int32_t(id);
            } else if (!bpe && (word || type(id) == kUserDefined)) {
                decoded = with_spaces(token);
            } else {
                decoded = token;
            }
            text += decoded;
            if (text.size() > UINT32_MAX) throw std::invalid_argument("the vocabulary's texts exceed 4 GB");
            offsets.push_back(uint32_t(text.size()));
            if (word && !decoded.empty()) plain.push_back(id);
        }
        words.assign(slots_for(plain.size()), 0);
        for (const uint32_t id : plain) add_word(id);
        if (!bpe)
            for (const uint32_t id : plain) find_glue(text_of(id));
    }

    void add_word(uint32_t id) {
        const auto word = text_of(id);
        const uint32_t hash = crc32(word.data(), word.size());
        size_t slot = slot_of(hash, words.size());
        for (; words[slot] != 0; slot = slot + 1 == words.size() ? 0 : slot + 1)
            if (words[slot] >> 24 == (hash & 0xFF) && text_of((words[slot] & 0xFFFFFF) - 1) == word) return;  // the first stays
        words[slot] = (id + 1) | hash << 24;
    }

    void find_glue(std::string_view word) {
        for (size_t at = 1; at < word.size(); ++at)
            if (word[at] == ' ') glue[uint8_t(word[at - 1]) >> 3] |= uint8_t(1 << (word[at - 1] & 7));
    }

    void lay_out_pairs() {
        const auto merges = strings(vocabulary.merge_strings, vocabulary.merges, "tokenizer.ggml.merges");
        std::unordered_map<std::string_view, uint32_t> id_of;
        id_of.reserve(vocabulary.tokens);
        for (uint32_t id = 0; id < vocabulary.tokens; ++id) id_of.emplace(tokens[id], id);
        const size_t slots = slots_for(merges.size());
        pairs.assign(4 * slots, kEmpty);
        std::string joined;
        for (uint32_t rank = 0; rank < merges.size(); ++rank) {
            const size_t gap = merges[rank].find(' ', 1);
            if (gap == std::string_view::npos) throw std::invalid_argument("tokenizer.ggml.merges: entry " + std::to_string(rank) + " is not two parts");
            const auto left_text = merges[rank].substr(0, gap), right_text = merges[rank].substr(gap + 1);
            joined.assign(left_text).append(right_text);
            const auto left = id_of.find(left_text), right = id_of.find(right_text), whole = id_of.find(joined);
            // A vocabulary that was cut down keeps merges that lead nowhere.
            if (left == id_of.end() || right == id_of.end() || whole == id_of.end()) continue;
            size_t slot = slot_of(pair_hash(left->second, right->second), slots);
            while (pairs[4 * slot] != kEmpty && !(pairs[4 * slot] == left->second && pairs[4 * slot + 1] == right->second))
                slot = slot + 1 == slots ? 0 : slot + 1;
            if (pairs[4 * slot] != kEmpty) continue;  // the first of two equal merges counts
            const std::array<uint32_t, 4> entry{left->second, right->second, rank, whole->second};
            std::copy(entry.begin(), entry.end(), pairs.begin() + ptrdiff_t(4 * slot));
        }
    }

    void lay_out_specials() {
        std::vector<uint32_t> ids;
        for (uint32_t id = 0; id < vocabulary.tokens; ++id)
            if (type(id) >= kUnknown && type(id) <= kUserDefined && !text_of(id).empty()) ids.push_back(id);
        std::stable_sort(ids.begin(), ids.end(), [&](uint32_t a, uint32_t b) { return text_of(a) < text_of(b); });
        ids.erase(std::unique(ids.begin(), ids.end(), [&](uint32_t a, uint32_t b) { return text_of(a) == text_of(b); }), ids.end());
        specials.assign(257, 0);
        for (const uint32_t id : ids) ++specials[uint8_t(text_of(id)[0]) + 1u];
        for (size_t byte = 1; byte < 257; ++byte) specials[byte] += specials[byte - 1];
        specials.insert(specials.end(), ids.begin(), ids.end());
    }
};

}  // namespace

std::string build_token_table(const TokenVocabulary& vocabulary) {
    const bool bpe = vocabulary.kind == kTokensBpe;
    if (vocabulary.tokens == 0 || vocabulary.tokens > kMaxTokens || vocabulary.types.size() != vocabulary.tokens ||
        vocabulary.key.size() != 32 || (!bpe && vocabulary.priority.size() != 4 * size_t(vocabulary.tokens)))
        throw std::invalid_argument("the vocabulary's arrays differ in length");
    Builder builder(vocabulary);
    builder.lay_out_text();
    if (bpe) builder.lay_out_pairs();
    builder.lay_out_specials();
    return assemble(vocabulary, {bytes_of(builder.offsets), builder.text, std::string(vocabulary.types), bytes_of(builder.words),
                                 std::string(bpe ? "" : vocabulary.priority), bytes_of(builder.pairs), bytes_of(builder.bytes),
                                 bytes_of(builder.specials), std::string(reinterpret_cast<const char*>(builder.glue.data()), 32),
                                 std::string(vocabulary.pages), std::string(vocabulary.atoms), std::string(vocabulary.program)});
}

}  // namespace genmote
