#include "stream.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

namespace genmote {
namespace {

constexpr size_t kHuge = size_t(2) << 20, kPage = Reader::kBlock;
constexpr int kDemand = 0, kPrefetch = 1;
constexpr size_t kRowsAtOnce = 16;       // panels that are looked up together
constexpr size_t kLoadAtOnce = 64 << 20;  // bytes under way while weights are pinned

int64_t page_down(int64_t n) { return n / Reader::kBlock * Reader::kBlock; }

}  // namespace

// ---- memory ----------------------------------------------------------------------------------------------------------

void Stream::Memory::take(size_t bytes) {
    if (bytes <= size) return;
    if (raw) munmap(raw, taken);
    at = raw = nullptr;
    size = 0;
    taken = bytes + kHuge;
    void* p = mmap(nullptr, taken, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    raw = static_cast<uint8_t*>(p);
    at = raw + (kHuge - reinterpret_cast<uintptr_t>(raw) % kHuge) % kHuge;
    size = bytes;
}

void Stream::Memory::in_huge_pages() {
#if defined(MADV_HUGEPAGE)
    madvise(at, size / kHuge * kHuge, MADV_HUGEPAGE);
#endif
}

Stream::Memory::~Memory() {
    if (raw) munmap(raw, taken);
}

// ---- what there is ---------------------------------------------------------------------------------------------------

Matrix Stream::matrix(int type, int64_t rows, int64_t cols, int64_t offset) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (offset < 0 || offset + static_cast<int64_t>(packed_bytes(type, rows, cols)) > reader.size())
        throw ReadError(reader.path + ": is too short for its matrices; make the file again (genmote pack)");
    Matrix m{type, rows, cols, nullptr, this, static_cast<int>(sources_.size())};
    sources_.push_back({m, offset, {}});
    return m;
}

void Stream::arrange(const std::vector<Plan>& plans, const std::vector<int>& order, size_t ring_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Chunk> chunks;
    std::vector<std::vector<Piece>> pieces(sources_.size());
    size_t largest = 0;
    for (const Plan& plan : plans) {
        const int index = static_cast<int>(chunks.size());
        Chunk c{plan.use, false, 0, 0, {}};
        for (const Part& part : plan.parts) {
            const Source& s = sources_.at(static_cast<size_t>(part.matrix));
            std::vector<Piece>& own = pieces[static_cast<size_t>(part.matrix)];
            const int64_t each = static_cast<int64_t>(panel_bytes(s.shape.type, s.shape.cols));
            const int64_t from = s.offset + part.begin * each, bytes = (part.end - part.begin) * each;
            const int64_t before = own.empty() ? 0 : own.back().end;
            if (part.begin != before || part.end <= part.begin || part.end > s.shape.panels()) throw std::invalid_argument("a matrix's parts must cover it in order");
            Segment* last = c.segments.empty() ? nullptr : &c.segments.back();
            const int64_t end = last ? last->offset + static_cast<int64_t>(last->bytes) : -1;
            if (!last || from < end || from >= end + Reader::kBlock) {  // not right behind the one before
                c.segments.push_back({from, 0, c.room});
                last = &c.segments.back();
            }
            last->bytes = static_cast<size_t>(from + bytes - last->offset);
            c.room = last->at + Reader::room(last->offset, last->bytes);
            c.bytes += static_cast<size_t>(bytes);
            own.push_back({part.begin, part.end, index, last->at + static_cast<size_t>(from - page_down(last->offset)), &part == &plan.parts.back()});
        }
        if (plan.use != Use::rows) largest = std::max(largest, c.room);
        chunks.push_back(std::move(c));
    }
    std::vector<char> seen(chunks.size());
    for (int i : order) seen.at(static_cast<size_t>(i))++;
    if (order.size() != chunks.size() || std::count(seen.begin(), seen.end(), 1) != static_cast<int64_t>(seen.size()))
        throw std::invalid_argument("the order must name each chunk once");
    if (ring_bytes < 2 * largest) throw std::invalid_argument("the ring must hold two chunks");
    // Sound: what is arranged now goes. Where there is no memory for the new, nothing is arranged.
    reset();
    while (pinned_) unload(order_[--pinned_]);
    pinned_bytes_ = 0;
    for (Source& s : sources_) s.pieces.clear();
    chunks_.clear();
    order_.clear();
    ring_size_ = 0;
    ring_.take(ring_bytes);
    ring_.in_huge_pages();
    image_.take(static_cast<size_t>(reader.size()) + kPage);
    chunks_ = std::move(chunks);
    order_ = order;
    ring_size_ = ring_bytes;
    for (size_t i = 0; i < pieces.size(); i++) sources_[i].pieces = std::move(pieces[i]);
    users_.assign(static_cast<size_t>(reader.size()) / kPage + 1, 0);
    position_ = -1;
    ahead_ = true;  // the first pass may begin to be read
    fill();
}

Stream::Source& Stream::source(const Matrix& w) { return sources_[static_cast<size_t>(w.id)]; }

const Stream::Piece& Stream::piece(const Source& s, int64_t panel) const {
    auto at = std::upper_bound(s.pieces.begin(), s.pieces.end(), panel, [](int64_t p, const Piece& x) { return p < x.end; });
    if (at == s.pieces.end()) throw std::logic_error("a streamed matrix was not arranged");
    return *at;
}

size_t Stream::pinned_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return pinned_bytes_;
}

size_t Stream::streamed_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t sum = 0;
    for (const Chunk& c : chunks_) sum += c.pinned || c.use == Use::rows ? 0 : c.bytes;
    return sum;
}

// ---- pinning ---------------------------------------------------------------------------------------------------------

void Stream::pin(size_t bytes, const std::function<void()>& waiting) {
    std::lock_guard<std::mutex> lock(mutex_);
    reset();
    position_ = -1;
    ahead_ = true;
    while (pinned_ && pinned_bytes_ > bytes) unload(order_[--pinned_]);
    std::vector<int> wanted;
    size_t sum = pinned_bytes_;
    for (size_t i = pinned_; i < order_.size() && sum + chunks_[order_[i]].room <= bytes; i++) {
        sum += chunks_[order_[i]].room;
        wanted.push_back(order_[i]);
    }
    load(wanted, waiting);
    pinned_ += wanted.size();
    const bool all = std::all_of(chunks_.begin(), chunks_.end(), [](const Chunk& c) { return c.pinned || c.use == Use::rows; });
    if (all) madvise(ring_.at, ring_size_, MADV_DONTNEED);
    fill();
}

// Reads chunks into the image, in the order of the file.
void Stream::load(const std::vector<int>& chunks, const std::function<void()>& waiting) {
    std::vector<Segment> parts;
    for (int c : chunks) parts.insert(parts.end(), chunks_[c].segments.begin(), chunks_[c].segments.end());
    std::sort(parts.begin(), parts.end(), [](const Segment& a, const Segment& b) { return a.offset < b.offset; });
#if defined(MADV_HUGEPAGE)
    for (size_t i = 0; i < parts.size();) {  // huge pages where a run of the file fills them
        const int64_t from = parts[i].offset;
        int64_t end = from + static_cast<int64_t>(parts[i].bytes);
        for (i++; i < parts.size() && parts[i].offset < end + Reader::kBlock; i++) end = parts[i].offset + static_cast<int64_t>(parts[i].bytes);
        const size_t a = (static_cast<size_t>(from) + kHuge - 1) / kHuge * kHuge, z = static_cast<size_t>(end) / kHuge * kHuge;
        if (a < z) madvise(image_.at + a, z - a, MADV_HUGEPAGE);
    }
#endif
    struct Flight { uint64_t ticket; size_t bytes; };
    std::deque<Flight> flying;
    size_t under_way = 0;
    try {
        auto land = [&] {
            reader.wait(flying.front().ticket, waiting);
            under_way -= flying.front().bytes;
            flying.pop_front();
        };
        for (const Segment& s : parts) {
            while (under_way > kLoadAtOnce) land();
            flying.push_back({reader.submit(s.offset, s.bytes, image_.at + page_down(s.offset), kPrefetch), s.bytes});
            under_way += s.bytes;
        }
        while (!flying.empty()) land();
    } catch (...) {
        for (const Flight& f : flying) reader.cancel(f.ticket);
        for (const Segment& s : parts) let_go(s);
        throw;
    }
    for (int c : chunks) {
        chunks_[c].pinned = true;
        pinned_bytes_ += chunks_[c].room;
        for (const Segment& s : chunks_[c].segments)
            for (size_t page = static_cast<size_t>(s.offset) / kPage; page * kPage < static_cast<size_t>(s.offset) + s.bytes; page++) users_[page]++;
    }
}

void Stream::unload(int chunk) {
    Chunk& c = chunks_[chunk];
    c.pinned = false;
    pinned_bytes_ -= c.room;
    for (const Segment& s : c.segments) {
        for (size_t page = static_cast<size_t>(s.offset) / kPage; page * kPage < static_cast<size_t>(s.offset) + s.bytes; page++) users_[page]--;
        let_go(s);
    }
}

void Stream::let_go(const Segment& s) {
    size_t first = static_cast<size_t>(s.offset) / kPage, end = (static_cast<size_t>(s.offset) + s.bytes + kPage - 1) / kPage;
    while (first < end && users_[first]) first++;  // its neighbours' pages stay
    while (first < end && users_[end - 1]) end--;
    if (first < end) release(first, end);
}

// Lets unused pages of the image go, [first, end) in units of kPage. A huge page of which a part goes would stay charged
// whole until the kernel finds time to split it, too late where memory is short: what is used of it moves to small pages.
void Stream::release(size_t first, size_t end) {
    const size_t unit = std::max<size_t>(1, static_cast<size_t>(sysconf(_SC_PAGESIZE)) / kPage), per = kHuge / kPage;
    while (first % unit && !users_[first - 1]) first--;  // the system's pages may be larger
    while (end % unit && end < users_.size() && !users_[end]) end++;
    first = (first + unit - 1) / unit * unit;
    if (end < users_.size()) end = end / unit * unit;
    for (size_t a = first; a < end;) {
        const size_t block = a / per * per, stop = std::min(block + per, users_.size()), z = std::min(end, stop);
        uint8_t* const at = image_.at + block * kPage;
        const bool used = std::any_of(users_.begin() + static_cast<int64_t>(block), users_.begin() + static_cast<int64_t>(stop), [](uint8_t n) { return n; });
#if defined(MADV_NOHUGEPAGE)
        madvise(at, (stop - block) * kPage, MADV_NOHUGEPAGE);  // or the kernel fills the hole again when it finds time
#endif
        if (!used) madvise(at, (stop - block) * kPage, MADV_DONTNEED);
        else if (ring_size_ < kHuge) madvise(image_.at + a * kPage, (z - a) * kPage, MADV_DONTNEED);
        else {  // the ring is at rest
            for (size_t p = block; p < stop; p++) if (users_[p]) std::memcpy(ring_.at + (p - block) * kPage, image_.at + p * kPage, kPage);
            madvise(at, (stop - block) * kPage, MADV_DONTNEED);
            for (size_t p = block; p < stop; p++) if (users_[p]) std::memcpy(image_.at + p * kPage, ring_.at + (p - block) * kPage, kPage);
        }
        a = z;
    }
}

// ---- the ring --------------------------------------------------------------------------------------------------------

void Stream::reset() {
    for (Entry& e : window_)
        for (uint64_t t : e.tickets) reader.cancel(t);
    window_.clear();
    held_ = 0;
    used_up_ = false;
}

void Stream::pop() {
    for (uint64_t t : window_.front().tickets) reader.cancel(t);
    window_.pop_front();
    held_ = 0;
    used_up_ = false;
}

// Where the next chunk goes: behind the last, or from the ring's beginning.
bool Stream::place(size_t bytes, size_t* at) const {
    *at = window_.empty() ? 0 : write_;
    if (window_.empty()) return true;
    const size_t first = window_.front().at;
    if (write_ <= first) return bytes <= first - write_;  // gone round
    if (bytes <= ring_size_ - write_) return true;
    *at = 0;
    return bytes <= first;
}

// The next chunk to read, -1 for none that is sure to be used.
int Stream::candidate() {
    for (;;) {
        for (int i = position_ + 1; i < static_cast<int>(chunks_.size()); i++) {
            const Chunk& c = chunks_[i];
            if (c.pinned || c.use == Use::rows) continue;
            if (c.use == Use::head && ahead_) return -1;  // whether the next pass has a head is told as it begins
            if (c.use == Use::head && !head_) continue;
            return i;
        }
        if (ahead_) return -1;
        ahead_ = true;
        position_ = -1;
    }
}

void Stream::fill() {
    for (;;) {
        const int next = candidate();
        size_t at;
        if (next < 0 || !place(chunks_[next].room, &at)) return;
        window_.push_back({next, at, {}});
        position_ = next;
        write_ = at + chunks_[next].room;
        try {
            for (const Segment& s : chunks_[next].segments)
                window_.back().tickets.push_back(reader.submit(s.offset, s.bytes, ring_.at + at + s.at, kPrefetch));
        } catch (...) {  // half a chunk must not pass for a whole one
            reset();
            ahead_ = false;
            throw;
        }
    }
}

void Stream::begin(bool head) {
    std::lock_guard<std::mutex> lock(mutex_);
    reader.check();
    if (!ahead_) {  // the last pass did not come to its end
        reset();
        position_ = -1;
    }
    held_ = 0;
    ahead_ = false;
    head_ = head;
    fill();
}

// The window's entry of a chunk, first in the window, with its bytes there.
Stream::Entry& Stream::reach(int chunk) {
    if (chunks_[chunk].use == Use::rows) throw std::logic_error("a matrix of which only rows are used");
    if (window_.empty() || window_.front().chunk != chunk) {
        if (held_) throw std::logic_error("matrices that are used together must be cut alike");
        auto found = std::find_if(window_.begin(), window_.end(), [&](const Entry& e) { return e.chunk == chunk; });
        if (found == window_.end()) {  // out of order: the ring begins anew from here
            reset();
            position_ = chunk - 1;
            ahead_ = false;
            if (chunks_[chunk].use == Use::head) head_ = true;
        } else {
            for (auto n = found - window_.begin(); n > 0; n--) pop();
        }
        fill();
    }
    Entry& e = window_.front();
    try {
        for (uint64_t t : e.tickets) reader.wait(t);
    } catch (...) {
        reset();
        ahead_ = false;
        throw;
    }
    e.tickets.clear();
    return e;
}

const uint8_t* Stream::address(const Source& s, const Piece& p, const Entry& e) const {
    return ring_.at + e.at + p.at - static_cast<size_t>(p.begin) * panel_bytes(s.shape.type, s.shape.cols);
}

int64_t Stream::acquire(const Matrix& w, int64_t p0, const uint8_t** data) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Source& s = source(w);
    const Piece* p = &piece(s, p0);
    if (chunks_[p->chunk].pinned) {
        const Piece* end = s.pieces.data() + s.pieces.size();
        while (p + 1 < end && chunks_[p[1].chunk].pinned) p++;
        *data = image_.at + s.offset;
        return p->end;
    }
    *data = address(s, *p, reach(p->chunk));
    held_++;
    return p->end;
}

bool Stream::acquire_all(const Matrix* const* w, int count, const uint8_t** data) {
    std::lock_guard<std::mutex> lock(mutex_);
    int chunk = -1;
    bool pinned = true;
    for (int i = 0; i < count; i++) {
        const Source& s = source(*w[i]);
        for (const Piece& p : s.pieces) pinned = pinned && chunks_[p.chunk].pinned;
        if (i == 0) chunk = piece(s, 0).chunk;
        if (piece(s, 0).chunk != chunk || s.pieces.size() > 1) chunk = -1;
        data[i] = image_.at + s.offset;
    }
    if (pinned || chunk < 0) return pinned;
    const Entry& e = reach(chunk);
    for (int i = 0; i < count; i++) data[i] = address(source(*w[i]), source(*w[i]).pieces[0], e);
    held_ += count;
    return true;
}

void Stream::release(const Matrix& w, int64_t p0) noexcept try {
    std::lock_guard<std::mutex> lock(mutex_);
    const Piece& p = piece(source(w), p0);
    if (chunks_[p.chunk].pinned || window_.empty() || window_.front().chunk != p.chunk || !held_) return;
    held_--;
    used_up_ = used_up_ || p.last;
    if (held_ || !used_up_) return;
    pop();
    fill();
} catch (...) {  // whoever acquires next meets the fault again, and can be told
}

void Stream::each_row(const Matrix& w, const int32_t* rows, int64_t n, const std::function<void(int64_t, const Matrix&)>& f) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Source& s = source(w);
    const size_t each = panel_bytes(w.type, w.cols), slot = (each + 2 * kPage - 1) / kPage * kPage;
    rows_.take(kRowsAtOnce * slot);
    Matrix here = s.shape;
    here.source = nullptr;
    struct Found { int64_t panel; const uint8_t* at; };
    std::vector<Found> found;
    std::vector<uint64_t> tickets;
    for (int64_t i = 0; i < n;) {
        found.clear();
        tickets.clear();
        int64_t end = i;
        try {
            for (; end < n; end++) {
                const int64_t panel = rows[end] / kPanel, offset = s.offset + panel * static_cast<int64_t>(each);
                if (std::any_of(found.begin(), found.end(), [&](const Found& x) { return x.panel == panel; })) continue;
                if (!s.pieces.empty() && chunks_[piece(s, panel).chunk].pinned) {
                    found.push_back({panel, image_.at + offset});
                    continue;
                }
                if (tickets.size() == kRowsAtOnce) break;
                uint8_t* to = rows_.at + tickets.size() * slot;
                tickets.push_back(reader.submit(offset, each, to, kDemand));
                found.push_back({panel, to + offset % Reader::kBlock});
            }
            while (!tickets.empty()) {
                const uint64_t t = tickets.back();
                tickets.pop_back();
                reader.wait(t);
            }
        } catch (...) {
            for (uint64_t t : tickets) reader.cancel(t);
            throw;
        }
        for (; i < end; i++) {
            const Found& x = *std::find_if(found.begin(), found.end(), [&](const Found& y) { return y.panel == rows[i] / kPanel; });
            here.data = x.at - static_cast<size_t>(x.panel) * each;
            f(i, here);
        }
    }
}

}  // namespace genmote
