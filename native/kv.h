// Keys and values of one session. docs/formats.md describes how the rows lie.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "genmote.h"

namespace genmote {

constexpr int kQuerySlack = 16;  // rows beyond the asked number whose queries are kept, so that taking some back loses none

// For each layer and head, keys [capacity / 16][D][16], then values [capacity][D], each from a page of its own on. The
// memory is reserved at once and taken page by page as rows arrive. Then a ring of the last rows' queries.
class KVCache {
  public:
    KVCache(int layers, int heads, int dim, int64_t capacity, int64_t queries, int query_heads);
    ~KVCache();
    KVCache(const KVCache&) = delete;
    KVCache& operator=(const KVCache&) = delete;

    KVView view(int layer, int head) const;
    void write(int layer, int head, int64_t row, const uint16_t* k, const uint16_t* v);  // (D,) each
    void read(int layer, int head, int64_t row, uint16_t* k, uint16_t* v) const;

    void move(int64_t count);                                  // all layers' lengths and the position, forward or back
    void keep(int layer, const int64_t* rows, int64_t count);  // (heads, count), ascending for each head
    void release(int layer);                                   // give back whole pages past the layer's rows

    // Queries of the row at a position of a layer: (query_heads, D); null if the ring has no room for them.
    uint16_t* query(int layer, int64_t position) const;
    int64_t query_rows() const { return query_rows_; }
    void stored_queries(int64_t end);  // rows up to this position were written

    int64_t bytes() const;

    const int layers, heads, dim;
    const int64_t capacity, queries;
    const int query_heads;
    std::vector<int64_t> lengths;
    int64_t position = 0, floor = 0;
    int64_t query_from = 0;  // position of the first row whose queries are in the ring

  private:
    uint8_t* region(int layer, int head, int part) const { return base_ + ((static_cast<size_t>(layer) * heads + head) * 2 + part) * region_; }

    const int64_t blocks_, query_rows_;  // blocks of 16 rows; rows of the ring
    size_t region_, size_;
    uint8_t* base_;
};

}  // namespace genmote
