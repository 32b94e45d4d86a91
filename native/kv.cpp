#include "kv.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace genmote {
namespace {
constexpr size_t kPage = 4096;
size_t whole_pages(size_t n) { return (n + kPage - 1) / kPage * kPage; }
}  // namespace

KVCache::KVCache(int layers, int heads, int dim, int64_t capacity, int64_t queries, int query_heads)
    : layers(layers), heads(heads), dim(dim), capacity(capacity), queries(queries), query_heads(query_heads), lengths(static_cast<size_t>(layers)),
      blocks_((capacity + 15) / 16), query_rows_(queries ? queries + kQuerySlack : 0), region_(whole_pages(static_cast<size_t>(blocks_) * 16 * dim * 2)),
      size_(2 * region_ * static_cast<size_t>(layers) * heads + static_cast<size_t>(layers) * query_rows_ * query_heads * dim * 2) {
    void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<uint8_t*>(p);
}

KVCache::~KVCache() { munmap(base_, size_); }

KVView KVCache::view(int layer, int head) const {
    return {reinterpret_cast<uint16_t*>(region(layer, head, 0)), reinterpret_cast<uint16_t*>(region(layer, head, 1))};
}

void KVCache::write(int layer, int head, int64_t row, const uint16_t* k, const uint16_t* v) {
    KVView at = view(layer, head);
    uint16_t* kd = at.k + row / 16 * 16 * dim + row % 16;
    for (int d = 0; d < dim; d++) kd[d * 16] = k[d];
    std::memcpy(at.v + row * dim, v, static_cast<size_t>(dim) * 2);
}

void KVCache::read(int layer, int head, int64_t row, uint16_t* k, uint16_t* v) const {
    KVView at = view(layer, head);
    const uint16_t* kd = at.k + row / 16 * 16 * dim + row % 16;
    for (int d = 0; d < dim; d++) k[d] = kd[d * 16];
    std::memcpy(v, at.v + row * dim, static_cast<size_t>(dim) * 2);
}

void KVCache::move(int64_t count) {
    for (int64_t& n : lengths) n += count;
    position += count;
    query_from = std::min(query_from, position);
    if (count <= -256)
        for (int l = 0; l < layers; l++) release(l);
}

void KVCache::keep(int layer, const int64_t* rows, int64_t count) {
    std::vector<uint16_t> k(static_cast<size_t>(dim)), v(k.size());
    for (int h = 0; h < heads; h++)
        for (int64_t i = 0; i < count; i++)
            if (const int64_t row = rows[h * count + i]; row != i) {
                read(layer, h, row, k.data(), v.data());
                write(layer, h, i, k.data(), v.data());
            }
    lengths[static_cast<size_t>(layer)] = count;
    floor = position;
    release(layer);
}

void KVCache::release(int layer) {
    const size_t used = whole_pages(static_cast<size_t>((lengths[static_cast<size_t>(layer)] + 15) / 16 * 16) * dim * 2);
    if (used >= region_) return;
    for (int h = 0; h < heads; h++)
        for (int part = 0; part < 2; part++) madvise(region(layer, h, part) + used, region_ - used, MADV_DONTNEED);
}

uint16_t* KVCache::query(int layer, int64_t position) const {
    if (!query_rows_) return nullptr;
    uint16_t* ring = reinterpret_cast<uint16_t*>(base_ + 2 * region_ * static_cast<size_t>(layers) * heads);
    return ring + (static_cast<size_t>(layer) * query_rows_ + position % query_rows_) * query_heads * dim;
}

void KVCache::stored_queries(int64_t end) { query_from = std::max(query_from, end - query_rows_); }

int64_t KVCache::bytes() const {
    int64_t rows = 0;
    for (int64_t n : lengths) rows += n;
    return rows * heads * dim * 4 + layers * query_rows_ * query_heads * dim * 2;
}

}  // namespace genmote
