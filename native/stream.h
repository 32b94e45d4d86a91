// Weights that do not all fit into memory. Some are pinned: read once into anonymous memory. The rest is read again in every
// pass, in the order of use, into a small ring, so that reading and computing overlap.
//
// Matrices are cut into runs of panels, and runs that are used one after the other make a chunk: what is pinned or read at
// once. The chunks of a pass come round in a cycle; the first of the next pass are read while this one ends. What is asked
// for in another order is found too, at the cost of reading more.
#pragma once
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "genmote.h"
#include "reader.h"

namespace genmote {

class Stream {
  public:
    enum class Use : int { layer = 0, head = 1, rows = 2 };  // rows: no linear layer, single rows are looked up (embedding)
    struct Part { int matrix; int64_t begin, end; };         // panels [begin, end) of a matrix
    struct Plan { Use use; std::vector<Part> parts; };

    explicit Stream(Reader& reader) : reader(reader) {}
    ~Stream() { reset(); }
    Stream(const Stream&) = delete;

    // A matrix whose packed panels lie at `offset` of the file.
    Matrix matrix(int type, int64_t rows, int64_t cols, int64_t offset);
    // All chunks in the order of use, the order in which to pin them, and the ring's size. Nothing is pinned afterwards.
    void arrange(const std::vector<Plan>& chunks, const std::vector<int>& order, size_t ring_bytes);
    // Pin chunks in their order while all pinned ones fit `bytes`, or let go of the last pinned until they do. Nobody may
    // compute meanwhile. `waiting`: as for Reader::wait; where it throws, as where a read fails, nothing more is pinned.
    void pin(size_t bytes, const std::function<void()>& waiting = nullptr);

    void begin(bool head);  // a pass begins, which ends with the head or does without
    // Panel p of [p0, returned end) is at data + p * panel_bytes until the same panels are released.
    int64_t acquire(const Matrix& w, int64_t p0, const uint8_t** data);
    void release(const Matrix& w, int64_t p0) noexcept;
    // All panels of several matrices at once, where they are pinned or lie in one chunk; else false. Release each at 0.
    bool acquire_all(const Matrix* const* w, int count, const uint8_t** data);
    // f(i, a matrix that holds rows[i]) for each i < n, whether pinned or not.
    void each_row(const Matrix& w, const int32_t* rows, int64_t n, const std::function<void(int64_t, const Matrix&)>& f);

    size_t pinned_bytes();
    size_t streamed_bytes();  // of a pass with the head
    Reader& reader;

  private:
    struct Memory {  // anonymous, begins on a huge page
        uint8_t *at = nullptr, *raw = nullptr;
        size_t size = 0, taken = 0;
        void take(size_t bytes);
        void in_huge_pages();  // what fills them, where the system has any: a disk reads into one in one request, not in hundreds of parts
        ~Memory();
    };
    struct Piece { int64_t begin, end; int chunk; size_t at; bool last; };  // at: in the chunk's memory
    struct Segment { int64_t offset; size_t bytes, at; };
    struct Chunk { Use use; bool pinned; size_t bytes, room; std::vector<Segment> segments; };
    struct Entry { int chunk; size_t at; std::vector<uint64_t> tickets; };
    struct Source { Matrix shape; int64_t offset; std::vector<Piece> pieces; };

    Source& source(const Matrix& w);
    const Piece& piece(const Source& s, int64_t panel) const;
    Entry& reach(int chunk);
    const uint8_t* address(const Source& s, const Piece& p, const Entry& e) const;
    void fill();
    int candidate();
    bool place(size_t bytes, size_t* at) const;
    void pop();
    void reset();
    void load(const std::vector<int>& chunks, const std::function<void()>& waiting);
    void unload(int chunk);
    void let_go(const Segment& s);
    void release(size_t first, size_t end);

    std::mutex mutex_;
    std::vector<Source> sources_;
    std::vector<Chunk> chunks_;
    std::vector<int> order_;  // in which to pin
    size_t pinned_ = 0, pinned_bytes_ = 0;  // how many of order_ are pinned, and their bytes
    Memory image_;  // of the file: what is pinned lies at its offset
    std::vector<uint8_t> users_;  // of each page of the image: pinned segments that lie in it
    Memory ring_, rows_;
    size_t ring_size_ = 0, write_ = 0;
    std::deque<Entry> window_;  // chunks in the ring, in order of use; only the first is in use
    int position_ = -1;  // the chunk that was read last
    int held_ = 0;       // acquired and not released, in the window's first chunk
    bool used_up_ = false;  // the first chunk goes when nothing of it is held
    bool head_ = true, ahead_ = false;  // ahead: what is being read belongs to the next pass
};

}  // namespace genmote
