// Encoding text over a token table: special tokens are split out, words cut, bytes or characters merged.
#include "tokenizer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace genmote {
using namespace token_table;

namespace {

constexpr std::array<uint32_t, 256> crc_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        table[i] = crc;
    }
    return table;
}
constexpr auto kCrc = crc_table();

enum ItemKind : uint32_t { kRun, kNotNext, kContraction };

template <class T>
T load(const uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// The code point at `at` and its length. A byte that starts no valid sequence counts as U+FFFD, one byte long.
uint32_t decode(const char* at, const char* end, size_t& length) {
    const auto* s = reinterpret_cast<const uint8_t*>(at);
    length = 1;
    if (s[0] < 0x80) return s[0];
    const size_t wanted = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || size_t(end - at) < wanted) return 0xFFFD;
    uint32_t point = s[0] & (0x7F >> wanted);
    for (size_t i = 1; i < wanted; ++i) {
        if ((s[i] & 0xC0) != 0x80) return 0xFFFD;
        point = point << 6 | (s[i] & 0x3F);
    }
    if (point > 0x10FFFF) return 0xFFFD;
    length = wanted;
    return point;
}

// The end of an English contraction that ignores case ('s 't 're 've 'm 'll 'd), or null. U+017F folds to s.
const char* contraction(const char* at, const char* end) {
    if (end - at < 2 || *at != '\'') return nullptr;
    const auto lower = [&](size_t i) { return at + i < end ? char(at[i] | 0x20) : '\0'; };
    const char first = lower(1), second = lower(2);
    if (std::memchr("stmd", first, 4)) return at + 2;
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l')) return at + 3;
    return end - at >= 3 && std::memcmp(at + 1, "\xC5\xBF", 2) == 0 ? at + 3 : nullptr;
}

[[noreturn]] void refuse(const char* what) { throw std::invalid_argument(what); }

}  // namespace

uint32_t crc32(const void* data, size_t size, uint32_t crc) {
    const auto* at = static_cast<const uint8_t*>(data);
    crc = ~crc;
    for (size_t i = 0; i < size; ++i) crc = kCrc[(crc ^ at[i]) & 0xFF] ^ crc >> 8;
    return ~crc;
}

TokenTable::TokenTable(const uint8_t* data, size_t size) {
    if (size < kHeaderBytes) refuse("it is shorter than a header");
    uint8_t head[kHeaderBytes];
    std::memcpy(head, data, kHeaderBytes);
    std::memset(head + 36, 0, 4);
    if (std::memcmp(head, kMagic, 8) != 0 || load<uint32_t>(head + 8) != kVersion) refuse("it is not a table of this version");
    if (crc32(head, kHeaderBytes) != load<uint32_t>(data + 36)) refuse("its header is damaged");
    kind_ = load<uint32_t>(head + 12);
    tokens_ = load<uint32_t>(head + 24);
    flags_ = load<uint32_t>(head + 28);
    unknown_ = load<int32_t>(head + 32);
    if (load<uint64_t>(head + 16) != size || kind_ > kTokensSpm || tokens_ == 0 || tokens_ > kMaxTokens || unknown_ < -1 ||
        (unknown_ >= 0 && uint32_t(unknown_) >= tokens_))
        refuse("its sizes are wrong");
    const auto section = [&](Section number, auto& view, size_t wanted, size_t least, size_t group = 1) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(view.data)>>;
        const auto start = load<uint64_t>(head + kSpans + 16 * number), length = load<uint64_t>(head + kSpans + 16 * number + 8);
        if (start % kAlign || start > size || length > size - start || length % (sizeof(T) * group)) refuse("a section is wrong");
        view.data = reinterpret_cast<const T*>(data + start);
        view.count = length / sizeof(T);
        if ((wanted && view.count != wanted) || view.count < least) refuse("a section has a wrong size");
    };
    const bool bpe = kind_ == kTokensBpe;
    View<uint32_t> program;
    section(kOffsets, offsets_, size_t(tokens_) + 1, 0);
    section(kText, text_, 0, 0);
    section(kTypes, types_, tokens_, 0);
    section(kWords, words_, 0, 1);
    section(kPriority, priority_, bpe ? 0 : tokens_, 0);
    section(kPairs, pairs_, 0, bpe ? 4 : 0, 4);
    section(kBytes, bytes_, 256, 0);
    section(kSpecials, specials_, 0, 257);
    section(kGlue, glue_, 32, 0);
    section(kPages, pages_, bpe ? kPages16 : 0, 0);
    section(kAtoms, atoms_, 0, bpe ? 256 : 0);
    section(kProgram, program, 0, bpe ? 4 : 0);
    if (!bpe) return;
    if (crc32(program.data, 4 * program.count) != load<uint32_t>(head + kProgramCrc)) refuse("its program is damaged");
    for (size_t i = 0; i < pages_.count; ++i)
        if ((size_t(pages_[i]) + 1) * 256 > atoms_.count) refuse("a page lies outside the atoms");
    read_program(program);
}

void TokenTable::read_program(View<uint32_t> program) {
    const size_t stages = program[0], sequences = program[1], items = program[2], classes = program[3];
    if (stages > program.count || sequences > program.count || items > program.count || classes > program.count ||
        program.count != 4 + 2 * stages + 2 * sequences + 4 * items + 8 * classes || stages > 32)
        refuse("its program's size is wrong");
    const uint32_t* at = program.data + 4;
    const auto spans = [&](std::vector<Span>& into, size_t count, size_t limit) {
        for (size_t i = 0; i < count; ++i, at += 2) {
            if (uint64_t(at[0]) + at[1] > limit || at[1] == 0 || at[1] > 32) refuse("its program is damaged");
            into.push_back({at[0], at[1]});
        }
    };
    spans(stages_, stages, sequences);
    spans(sequences_, sequences, items);
    for (size_t i = 0; i < items; ++i, at += 4) {
        if (at[0] > kContraction || at[1] >= classes) refuse("its program is damaged");
        items_.push_back({at[0], at[1], at[2], at[3]});
    }
    classes_.assign(at, at + 8 * classes);
    for (const Span& stage : stages_) {
        std::array<uint32_t, 256> starts{};
        for (uint32_t bit = 0; bit < stage.count; ++bit) {
            const Span& sequence = sequences_[stage.first + bit];
            bool open = true;  // everything before this item may match nothing
            for (uint32_t i = 0; open && i < sequence.count; ++i) {
                const Item& item = items_[sequence.first + i];
                for (uint32_t a = 0; a < 256; ++a)
                    if (item.kind == kContraction ? a == '\'' : item.kind == kNotNext || in_class(item.cls, a)) starts[a] |= 1u << bit;
                open = item.kind == kRun ? item.least == 0 : item.kind == kContraction && item.most == 0;
            }
        }
        starts_.push_back(starts);
    }
}

std::string_view TokenTable::text_of(uint32_t id) const {
    if (id >= tokens_) return {};
    const uint32_t start = offsets_[id], end = offsets_[id + 1];
    if (start > end || end > text_.count) return {};
    return {reinterpret_cast<const char*>(text_.data) + start, end - start};
}

int32_t TokenTable::find_word(std::string_view text) const {
    const uint32_t hash = crc32(text.data(), text.size());
    size_t slot = slot_of(hash, words_.count);
    for (size_t tried = 0; tried < words_.count; ++tried) {
        const uint32_t entry = words_[slot];
        if (entry == 0) return -1;
        if (entry >> 24 == (hash & 0xFF)) {
            const uint32_t id = (entry & 0xFFFFFF) - 1;
            if (id < tokens_ && text_of(id) == text) return int32_t(id);
        }
        if (++slot == words_.count) slot = 0;
    }
    return -1;
}

TokenTable::Merge TokenTable::find_pair(uint32_t left, uint32_t right) const {
    const size_t slots = pairs_.count / 4;
    size_t slot = slot_of(pair_hash(left, right), slots);
    for (size_t tried = 0; tried < slots; ++tried) {
        const uint32_t* entry = pairs_.data + 4 * slot;
        if (entry[0] == kEmpty) break;
        if (entry[0] == left && entry[1] == right) return entry[3] < tokens_ ? Merge{entry[2], int32_t(entry[3])} : Merge{kEmpty, -1};
        if (++slot == slots) slot = 0;
    }
    return {kEmpty, -1};
}

TokenTable::Merge TokenTable::find_joined(std::string_view text) const {
    const int32_t id = find_word(text);
    return {id < 0 ? kEmpty : priority_[size_t(id)], id};
}

// The longest special token that starts `text`, or -1. The tokens lie sorted: each byte narrows the range.
int32_t TokenTable::find_special(std::string_view text, bool control) const {
    const uint32_t* ids = specials_.data + 257;
    const size_t count = specials_.count - 257;
    const auto byte = uint8_t(text[0]);
    size_t low = specials_[byte], high = specials_[byte + 1];
    if (low >= high || high > count) return -1;
    int32_t found = -1;
    for (size_t depth = 1;; ++depth) {
        const auto first = text_of(ids[low]);
        if (first.size() == depth && (control || types_[ids[low]] == kUserDefined)) found = int32_t(ids[low]);
        if (depth >= text.size()) return found;
        const auto wanted = uint8_t(text[depth]);
        const auto below = [&](uint32_t id, int limit) {
            const auto token = text_of(id);
            return token.size() <= depth || int(uint8_t(token[depth])) < limit;
        };
        low = size_t(std::lower_bound(ids + low, ids + high, int(wanted), below) - ids);
        high = size_t(std::lower_bound(ids + low, ids + high, int(wanted) + 1, below) - ids);
        if (low >= high) return found;
    }
}

int32_t TokenTable::find(std::string_view text) const {
    const int32_t special = text.empty() ? -1 : find_special(text, true);
    return special >= 0 && text_of(uint32_t(special)) == text ? special : find_word(text);
}

uint32_t TokenTable::atom(const char* at, const char* end, size_t& length) const {
    const uint32_t point = decode(at, end, length);
    return point < 0x80 ? point : atoms_[pages_[point >> 8] * size_t(256) + (point & 0xFF)];
}

// Where a match of items[item..] that starts at `at` ends, or null.
const char* TokenTable::match(const Span& items, uint32_t index, const char* at, const char* end) const {
    if (index == items.count) return at;
    const Item& item = items_[items.first + index];
    size_t length = 0;
    if (item.kind == kNotNext) {
        if (at < end && in_class(item.cls, atom(at, end, length))) return nullptr;
        return match(items, index + 1, at, end);
    }
    if (item.kind == kContraction) {
        const char* after = contraction(at, end);
        if (after && (after = match(items, index + 1, after, end))) return after;
        return item.most == 0 ? match(items, index + 1, at, end) : nullptr;
    }
    const char* stop = at;
    uint32_t count = 0;
    while (count < item.most && stop < end && in_class(item.cls, atom(stop, end, length))) {
        stop += length;
        ++count;
    }
    for (;; --count) {
        if (count < item.least) return nullptr;
        if (const char* after = match(items, index + 1, stop, end)) return after;
        if (count == 0 || stop == at) return nullptr;
        do --stop;
        while (stop > at && (uint8_t(*stop) & 0xC0) == 0x80);
    }
}

const char* TokenTable::match_stage(size_t stage, const char* at, const char* end) const {
    size_t length;
    const uint32_t may = starts_[stage][atom(at, end, length)];
    for (uint32_t bit = 0; bit < stages_[stage].count; ++bit)
        if (may >> bit & 1)
            if (const char* after = match(sequences_[stages_[stage].first + bit], 0, at, end)) return after;
    return nullptr;
}

template <class Sink>
void TokenTable::cut(size_t stage, const char* at, const char* end, const Sink& sink) const {
    if (stage == stages_.size()) return sink(at, end);
    const char* gap = at;
    while (at < end) {
        const char* after = match_stage(stage, at, end);
        if (after && after > at) {
            if (gap < at) cut(stage + 1, gap, at, sink);
            cut(stage + 1, at, after, sink);
            at = gap = after;
        } else {
            size_t length;
            decode(at, end, length);
            at += length;
        }
    }
    if (gap < end) cut(stage + 1, gap, end, sink);
}

std::vector<uint32_t> TokenTable::split(std::string_view text) const {
    std::vector<uint32_t> ends;
    if (kind_ == kTokensBpe)
        cut(0, text.data(), text.data() + text.size(), [&](const char*, const char* end) { ends.push_back(uint32_t(end - text.data())); });
    return ends;
}

// One call of encode: the scratch space, and the words of the text that were seen before.
class TokenEncoder {
 public:
    TokenEncoder(const TokenTable& table, std::vector<int32_t>& out) : table_(table), out_(out) {}

    void fragment(std::string_view text, bool prefix) {
        if (text.empty()) return;
        remember_ = text.size() >= kWorthRemembering;
        if (remember_) seen_.assign(kSeen, {});
        if (table_.kind_ == kTokensBpe) {
            text_ = text.data();
            table_.cut(0, text_, text_ + text.size(), [&](const char* at, const char* end) { word({at, size_t(end - at)}); });
            return;
        }
        buffer_.assign(prefix ? " " : "");
        for (size_t at = 0; at < text.size();) {  // U+2581 is how SentencePiece writes a space
            const size_t next = std::min(text.find("\xE2\x96\x81", at), text.size());
            buffer_.append(text, at, next - at);
            if (next < text.size()) buffer_ += ' ';
            at = next + (next < text.size() ? 3 : 0);
        }
        text_ = buffer_.data();
        size_t start = 0;
        for (size_t at = 1; at < buffer_.size(); ++at) {
            const auto before = uint8_t(buffer_[at - 1]);
            if (buffer_[at] == ' ' && !(table_.glue_[before >> 3] >> (before & 7) & 1)) {
                word({text_ + start, at - start});
                start = at;
            }
        }
        word({text_ + start, buffer_.size() - start});
    }

 private:
    using Merge = TokenTable::Merge;
    struct Symbol {
        uint32_t start, end;
        int32_t id;  // kNotLooked: a character of SPM that has not been merged
        int32_t previous, next;
    };
    struct Candidate {
        uint32_t rank;
        int32_t at;
        uint32_t middle, end;
        int32_t id;
        bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
    };
    struct Seen {
        uint32_t start = 0, length = 0, out = 0, count = 0;
    };
    static constexpr size_t kShort = 40, kSeen = 4096, kWorthRemembering = 512, kLongWord = 64;
    static constexpr int32_t kNotLooked = -2;

    void word(std::string_view text) {
        if (!remember_ || text.size() > kLongWord) return merge_word(text);
        Seen& seen = seen_[crc32(text.data(), text.size()) % kSeen];
        if (seen.length == text.size() && std::memcmp(text_ + seen.start, text.data(), text.size()) == 0) {
            for (uint32_t i = 0; i < seen.count; ++i) out_.push_back(out_[seen.out + i]);
            return;
        }
        const auto start = uint32_t(out_.size());
        merge_word(text);
        seen = {uint32_t(text.data() - text_), uint32_t(text.size()), start, uint32_t(out_.size()) - start};
    }

    void merge_word(std::string_view text) {
        word_ = text;
        symbols_.clear();
        const bool bpe = table_.kind_ == kTokensBpe;
        if (bpe && (table_.flags_ & kIgnoreMerges)) {
            const int32_t whole = table_.find_word(text);
            if (whole >= 0) return out_.push_back(whole);
        }
        const char* const end = text.data() + text.size();
        for (uint32_t at = 0; at < text.size();) {
            size_t length = 1;
            if (!bpe) decode(text.data() + at, end, length);
            const int32_t id = bpe ? table_.bytes_[uint8_t(text[at])] : kNotLooked;
            // A vocabulary that lacks a byte's token has no way to write it: the byte is left out, as everywhere else.
            if (!bpe || uint32_t(id) < table_.tokens_) symbols_.push_back({at, at + uint32_t(length), id, 0, 0});
            at += uint32_t(length);
        }
        if (symbols_.size() <= kShort) merge_short();
        else merge_long();
    }

    Merge join(const Symbol& left, const Symbol& right) const {
        if (table_.kind_ == kTokensBpe) return table_.find_pair(uint32_t(left.id), uint32_t(right.id));
        return table_.find_joined(word_.substr(left.start, right.end - left.start));
    }

    // Few symbols: look for the lowest rank, leftmost first, again after every merge.
    void merge_short() {
        std::array<Merge, kShort> merges;
        size_t count = symbols_.size();
        for (size_t i = 0; i + 1 < count; ++i) merges[i] = join(symbols_[i], symbols_[i + 1]);
        while (count > 1) {
            size_t best = 0;
            for (size_t i = 1; i + 1 < count; ++i)
                if (merges[i].rank < merges[best].rank) best = i;
            if (merges[best].rank == kEmpty) break;
            symbols_[best].end = symbols_[best + 1].end;
            symbols_[best].id = merges[best].id;
            for (size_t i = best + 1; i + 1 < count; ++i) symbols_[i] = symbols_[i + 1];
            for (size_t i = best; i + 2 < count; ++i) merges[i] = merges[i + 1];
            --count;
            if (best + 1 < count) merges[best] = join(symbols_[best], symbols_[best + 1]);
            if (best > 0) merges[best - 1] = join(symbols_[best - 1], symbols_[best]);
        }
        for (size_t i = 0; i < count; ++i) emit(symbols_[i]);
    }

    // Many symbols: a linked list and a heap of candidates, n log n; a candidate whose spans have changed is stale.
    void merge_long() {
        const auto count = int32_t(symbols_.size());
        heap_.clear();
        for (int32_t i = 0; i < count; ++i) {
            symbols_[size_t(i)].previous = i - 1;
            symbols_[size_t(i)].next = i + 1 < count ? i + 1 : -1;
            if (i > 0) consider(i - 1, false);
        }
        std::make_heap(heap_.begin(), heap_.end());
        while (!heap_.empty()) {
            std::pop_heap(heap_.begin(), heap_.end());
            const Candidate top = heap_.back();
            heap_.pop_back();
            Symbol& left = symbols_[size_t(top.at)];
            if (left.start == left.end || left.next < 0 || left.end != top.middle) continue;
            Symbol& right = symbols_[size_t(left.next)];
            if (right.end != top.end) continue;
            left.end = right.end;
            left.id = top.id;
            left.next = right.next;
            right.end = right.start;  // gone
            if (left.next >= 0) symbols_[size_t(left.next)].previous = top.at;
            if (left.previous >= 0) consider(left.previous, true);
            if (left.next >= 0) consider(top.at, true);
        }
        for (int32_t i = 0; i >= 0 && i < count; i = symbols_[size_t(i)].next) emit(symbols_[size_t(i)]);
    }

    void consider(int32_t at, bool sift) {
        const Symbol& left = symbols_[size_t(at)];
        const Symbol& right = symbols_[size_t(left.next)];
        const Merge merge = join(left, right);
        if (merge.rank == kEmpty) return;
        heap_.push_back({merge.rank, at, left.end, right.end, merge.id});
        if (sift) std::push_heap(heap_.begin(), heap_.end());
    }

    void emit(const Symbol& symbol) {
        int32_t id = symbol.id;
        const auto text = word_.substr(symbol.start, symbol.end - symbol.start);
        if (id == kNotLooked) id = table_.find_word(text);
        if (id >= 0) return out_.push_back(id);
        const auto absent = [&](char byte) { return uint32_t(table_.bytes_[uint8_t(byte)]) >= table_.tokens_; };
        if (std::none_of(text.begin(), text.end(), absent))
            for (const char byte : text) out_.push_back(table_.bytes_[uint8_t(byte)]);
        else if (table_.unknown_ >= 0)
            out_.push_back(table_.unknown_);
    }

    const TokenTable& table_;
    std::vector<int32_t>& out_;
    const char* text_ = nullptr;  // the fragment's start
    std::string_view word_;
    std::string buffer_;
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
    std::vector<Seen> seen_;
    bool remember_ = false;
};

void TokenTable::encode(std::string_view text, bool special, bool space_prefix, std::vector<int32_t>& out) const {
    TokenEncoder encoder(*this, out);
    size_t start = 0, at = 0;
    while (at < text.size()) {
        const auto byte = uint8_t(text[at]);
        const int32_t id = specials_[byte] < specials_[byte + 1] ? find_special(text.substr(at), special) : -1;
        if (id < 0) {
            ++at;
            continue;
        }
        encoder.fragment(text.substr(start, at - start), space_prefix);
        out.push_back(id);
        at += text_of(uint32_t(id)).size();
        start = at;
    }
    encoder.fragment(text.substr(start), space_prefix);
}

}  // namespace genmote
