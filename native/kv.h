// Keys and values of one session. docs/formats.md describes how the rows lie.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "genmote.h"
#include "spill.h"

namespace genmote {

constexpr int kQuerySlack = 16;  // rows beyond the asked number whose queries are kept, so that taking some back loses none

// For each layer and head, blocks of 16 rows' keys, then blocks of 16 rows' values, each from a page of its own on. The
// memory is reserved at once and taken page by page as rows arrive. Then a ring of the last rows' queries.
class KVCache {
  public:
    // `folder`: where rows older than the last `resident` ones of a layer lie while it is not computed; empty: in memory.
    // `page`: what memory is taken and given back by; 0: the system's.
    // `heads`, `query_heads`: of each layer; no query heads: none are kept.
    KVCache(Kind kind, const std::vector<int>& heads, int dim, int64_t capacity, int64_t queries, const std::vector<int>& query_heads, const std::string& folder = "", int64_t resident = 0, size_t page = 0);
    ~KVCache();
    KVCache(const KVCache&) = delete;
    KVCache& operator=(const KVCache&) = delete;

    KVView view(int layer, int head) const;
    // A row's keys and values: D float16, or D codes of a byte and a scale (Kernels::encode_row).
    struct Row { const void *k, *v; uint16_t k_scale, v_scale; };
    void write(int layer, int head, int64_t row, const Row& r);
    void read(int layer, int head, int64_t row, void* k, void* v, uint16_t* k_scale, uint16_t* v_scale) const;  // k, v: null where not wanted
    // One head's keys (part 0) or values (1), all rows; scales are left alone in f16.
    void read_head(int layer, int head, int part, uint8_t* codes, uint16_t* scales);
    size_t item() const { return kind == Kind::f16 ? 2 : 1; }  // bytes of a number in such a row

    void move(int64_t count);                                  // all layers' lengths and the position, forward or back
    void keep(int layer, const int64_t* rows, int64_t count);  // (heads, count), ascending for each head
    void release(int layer);                                   // give back whole pages past the layer's rows

    // A layer's rows are all in memory from `open` to `close`, and the next layer's are read meanwhile. Without a folder
    // these do nothing. SpillError where the disk fails: the rows that are in memory stay there.
    void open(int layer);
    void close(int layer, int64_t rows);  // of which there are so many by now
    void drain();                         // until nothing is read ahead
    void copy(KVCache& from, int layer, int64_t rows);  // a layer's first rows of a cache with equal kind and shape
    void rewrite(int layer, int64_t start);  // rows from `start` on will be written anew
    const Spill* spill() const { return spill_.get(); }

    // Queries of the row at a position of a layer: (its query heads, D); null if the ring has no room for them.
    uint16_t* query(int layer, int64_t position) const;
    int64_t query_rows() const { return query_rows_; }
    void stored_queries(int64_t end);  // rows up to this position were written

    int64_t bytes() const;  // of memory, without what lies on disk alone

    int heads(int layer) const { return heads_[static_cast<size_t>(layer)]; }
    int query_heads(int layer) const { return queries ? query_heads_[static_cast<size_t>(layer)] : 0; }
    bool like(const KVCache& o) const { return kind == o.kind && dim == o.dim && heads_ == o.heads_ && query_heads_ == o.query_heads_; }

    const Kind kind;
    const int layers, dim;
    const int64_t capacity, queries;
    std::vector<int64_t> lengths;
    int64_t position = 0, floor = 0;
    int64_t query_from = 0;  // position of the first row whose queries are in the ring

  private:
    size_t whole_pages(size_t n) const { return (n + page_ - 1) / page_ * page_; }
    uint8_t* region(int layer, int head, int part) const {
        return base_ + (first_[static_cast<size_t>(layer)] + static_cast<size_t>(head)) * (region_[0] + region_[1]) + (part ? region_[0] : 0);
    }

    struct Cold { size_t bytes[2] = {0, 0}; bool loaded = false; };  // on disk of each head's keys, and values; also in memory
    std::vector<Spill::Range> cold_ranges(int layer) const;
    size_t cold_bytes(int part, int64_t rows) const;  // whole pages that hold nothing but the first `rows` rows
    void drop(int layer);                             // give back what is on disk
    void warm(int layer, int64_t rows);               // make what lies past `rows` rows a matter of memory again

    const std::vector<int> heads_, query_heads_;
    const std::vector<size_t> first_, first_query_;  // heads, and query heads, of all layers before each; last: of all
    const size_t page_;
    const int64_t query_rows_;     // of the ring
    const size_t block_[2];        // bytes of 16 rows' keys, and values
    size_t region_[2], queries_, size_;  // bytes of a head's keys, and values; where the queries begin; of all
    uint8_t *mapped_, *base_;  // what the system gave, and its first page
    const int64_t resident_;
    std::vector<Cold> cold_;
    std::unique_ptr<Spill> spill_;
    int ahead_ = -1;  // the layer that is being read
};

}  // namespace genmote
