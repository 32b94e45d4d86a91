#include "kv.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace genmote {
namespace {
size_t padded(int n, int to) { return static_cast<size_t>((n + to - 1) / to * to); }

size_t key_block(Kind kind, int dim) {
    if (kind == Kind::f16) return 32 * static_cast<size_t>(dim);
    return (kind == Kind::int8 ? 16 : 10) * padded(dim, 8) + 32;
}

size_t value_block(Kind kind, int dim) {
    if (kind == Kind::f16) return 32 * static_cast<size_t>(dim);
    return (kind == Kind::int8 ? 16 : 8) * padded(dim, 32) + 32;
}

std::vector<size_t> sums(const std::vector<int>& counts) {  // of those before each, then of all
    std::vector<size_t> total{0};
    for (int n : counts) total.push_back(total.back() + static_cast<size_t>(n));
    return total;
}
}  // namespace

KVCache::KVCache(Kind kind, const std::vector<int>& heads, int dim, int64_t capacity, int64_t queries, const std::vector<int>& query_heads, const std::string& folder, int64_t resident, size_t page)
    : kind(kind), layers(static_cast<int>(heads.size())), dim(dim), capacity(capacity), queries(queries), lengths(heads.size()),
      heads_(heads), query_heads_(query_heads), first_(sums(heads)), first_query_(sums(query_heads)), page_(page ? page : static_cast<size_t>(sysconf(_SC_PAGESIZE))), query_rows_(queries ? queries + kQuerySlack : 0), block_{key_block(kind, dim), value_block(kind, dim)}, resident_(resident),
      cold_(static_cast<size_t>(layers)) {
    for (int part = 0; part < 2; part++) region_[part] = whole_pages(static_cast<size_t>((capacity + 15) / 16) * block_[part]);
    queries_ = (region_[0] + region_[1]) * first_.back();
    size_ = queries_ + first_query_.back() * query_rows_ * dim * 2;
    void* p = mmap(nullptr, size_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    mapped_ = static_cast<uint8_t*>(p);
    base_ = mapped_ + (page_ - reinterpret_cast<uintptr_t>(mapped_) % page_) % page_;
    madvise(p, size_ + page_, MADV_NOHUGEPAGE);  // a huge page would be taken whole for a few rows
    if (folder.empty()) return;
    try {
        spill_ = std::make_unique<Spill>(folder, base_);
    } catch (...) {
        munmap(mapped_, size_ + page_);
        throw;
    }
}

KVCache::~KVCache() {
    if (spill_ && spill_->inherited()) spill_.release()->leave();  // its lock and thread are another process's
    spill_.reset();  // its thread may still read into the memory
    munmap(mapped_, size_ + page_);
}

KVView KVCache::view(int layer, int head) const { return {region(layer, head, 0), region(layer, head, 1), kind, block_[0], block_[1]}; }

// Where a row's numbers lie: keys have the row as the fast index of their block, values as the slow one. int4 keys are
// nibbles of two dimensions, then the signs of eight a byte; values nibbles of dimensions i and i + 16 of 32.
void KVCache::write(int layer, int head, int64_t row, const Row& r) {
    uint8_t* k = region(layer, head, 0) + static_cast<size_t>(row / 16) * block_[0];
    uint8_t* v = region(layer, head, 1) + static_cast<size_t>(row / 16) * block_[1];
    const int at = static_cast<int>(row % 16), wide = static_cast<int>(padded(dim, 8));
    if (kind == Kind::f16) {
        for (int d = 0; d < dim; d++) reinterpret_cast<uint16_t*>(k)[d * 16 + at] = static_cast<const uint16_t*>(r.k)[d];
        std::memcpy(v + at * dim * 2, r.v, static_cast<size_t>(dim) * 2);
        return;
    }
    const uint8_t *kc = static_cast<const uint8_t*>(r.k), *vc = static_cast<const uint8_t*>(r.v);
    uint8_t* values = v + at * ((block_[1] - 32) / 16);
    if (kind == Kind::int8) {
        for (int d = 0; d < dim; d++) k[d * 16 + at] = kc[d];
        std::memcpy(values, vc, static_cast<size_t>(dim));
    } else {
        auto code = [&](const uint8_t* c, int d) { return d < dim ? c[d] : 0; };
        for (int d = 0; d < wide; d += 8) {
            int signs = 0;
            for (int j = 0; j < 8; j++) signs |= (code(kc, d + j) >> 4) << j;
            for (int j = 0; j < 4; j++) k[(d / 2 + j) * 16 + at] = static_cast<uint8_t>((code(kc, d + 2 * j) & 15) | (code(kc, d + 2 * j + 1) & 15) << 4);
            k[wide * 8 + d * 2 + at] = static_cast<uint8_t>(signs);
        }
        for (int d = 0; d < dim; d += 32)
            for (int i = 0; i < 16; i++) values[d / 2 + i] = static_cast<uint8_t>(code(vc, d + i) | code(vc, d + 16 + i) << 4);
    }
    reinterpret_cast<uint16_t*>(k + block_[0] - 32)[at] = r.k_scale;
    reinterpret_cast<uint16_t*>(v + block_[1] - 32)[at] = r.v_scale;
}

void KVCache::read(int layer, int head, int64_t row, void* k_out, void* v_out, uint16_t* k_scale, uint16_t* v_scale) const {
    const uint8_t* k = region(layer, head, 0) + static_cast<size_t>(row / 16) * block_[0];
    const uint8_t* v = region(layer, head, 1) + static_cast<size_t>(row / 16) * block_[1];
    const int at = static_cast<int>(row % 16), wide = static_cast<int>(padded(dim, 8));
    if (kind == Kind::f16) {
        for (int d = 0; k_out && d < dim; d++) static_cast<uint16_t*>(k_out)[d] = reinterpret_cast<const uint16_t*>(k)[d * 16 + at];
        if (v_out) std::memcpy(v_out, v + at * dim * 2, static_cast<size_t>(dim) * 2);
        return;
    }
    if (uint8_t* kc = static_cast<uint8_t*>(k_out)) {
        for (int d = 0; d < dim; d++)
            kc[d] = kind == Kind::int8 ? k[d * 16 + at] : static_cast<uint8_t>((k[d / 2 * 16 + at] >> d % 2 * 4 & 15) | (k[wide * 8 + d / 8 * 16 + at] >> d % 8 & 1) << 4);
        *k_scale = reinterpret_cast<const uint16_t*>(k + block_[0] - 32)[at];
    }
    if (uint8_t* vc = static_cast<uint8_t*>(v_out)) {
        const uint8_t* values = v + at * ((block_[1] - 32) / 16);
        for (int d = 0; d < dim; d++) vc[d] = kind == Kind::int8 ? values[d] : values[d / 32 * 16 + d % 16] >> d % 32 / 16 * 4 & 15;
        *v_scale = reinterpret_cast<const uint16_t*>(v + block_[1] - 32)[at];
    }
}

void KVCache::read_head(int layer, int head, int part, uint8_t* codes, uint16_t* scales) {
    if (ahead_ == layer) drain();
    const Cold& cold = cold_[static_cast<size_t>(layer)];
    const Spill::Range rows{region(layer, head, part), cold.loaded ? 0 : cold.bytes[part]};
    if (rows.bytes) spill_->read(rows);
    for (int64_t i = 0; i < lengths[static_cast<size_t>(layer)]; i++) {
        uint8_t* const to = codes + static_cast<size_t>(i) * dim * item();
        if (part) read(layer, head, i, nullptr, to, nullptr, scales + i);
        else read(layer, head, i, to, nullptr, scales + i, nullptr);
    }
    if (rows.bytes) madvise(rows.at, rows.bytes, MADV_DONTNEED);
}

void KVCache::move(int64_t count) {
    if (spill_ && count < 0) {
        drain();
        for (int l = 0; l < layers; l++) warm(l, lengths[static_cast<size_t>(l)] + count);
    }
    for (int64_t& n : lengths) n += count;
    position += count;
    query_from = std::min(query_from, position);
    if (count <= -256)
        for (int l = 0; l < layers; l++) release(l);
}

void KVCache::keep(int layer, const int64_t* rows, int64_t count) {
    open(layer);
    if (spill_) spill_->forget();
    cold_[static_cast<size_t>(layer)] = {};  // all of it is in memory, and will be other rows
    std::vector<uint8_t> k(static_cast<size_t>(dim) * item()), v(k.size());
    uint16_t k_scale = 0, v_scale = 0;
    for (int h = 0; h < heads(layer); h++)
        for (int64_t i = 0; i < count; i++)
            if (const int64_t row = rows[h * count + i]; row != i) {
                read(layer, h, row, k.data(), v.data(), &k_scale, &v_scale);
                write(layer, h, i, {k.data(), v.data(), k_scale, v_scale});
            }
    lengths[static_cast<size_t>(layer)] = count;
    floor = position;
    release(layer);
    try {
        close(layer, count);
    } catch (const SpillError&) {  // the rows stay in memory; the next pass meets the fault again, and can be told
    }
}

void KVCache::release(int layer) {
    const size_t blocks = static_cast<size_t>((lengths[static_cast<size_t>(layer)] + 15) / 16);
    for (int part = 0; part < 2; part++) {
        const size_t used = whole_pages(blocks * block_[part]);
        if (used >= region_[part]) continue;
        for (int h = 0; h < heads(layer); h++) madvise(region(layer, h, part) + used, region_[part] - used, MADV_DONTNEED);
    }
}

// ---- cold rows -------------------------------------------------------------------------------------------------------

size_t KVCache::cold_bytes(int part, int64_t rows) const { return rows <= 0 ? 0 : static_cast<size_t>(rows / 16) * block_[part] / page_ * page_; }

std::vector<Spill::Range> KVCache::cold_ranges(int layer) const {
    std::vector<Spill::Range> ranges;
    for (int h = 0; h < heads(layer); h++)
        for (int part = 0; part < 2; part++)
            if (const size_t n = cold_[static_cast<size_t>(layer)].bytes[part]) ranges.push_back({region(layer, h, part), n});
    return ranges;
}

void KVCache::drain() {
    if (!spill_ || ahead_ < 0) return;
    const int layer = ahead_;
    ahead_ = -1;
    if (spill_->inherited())  // there is no thread that could have read them
        for (const Spill::Range& r : cold_ranges(layer)) spill_->read(r);
    else spill_->finish();
    cold_[static_cast<size_t>(layer)].loaded = true;
}

void KVCache::open(int layer) {
    if (!spill_) return;
    const int before = ahead_;
    drain();
    if (before >= 0 && before != layer) drop(before);  // a guess that did not come true
    Cold& cold = cold_[static_cast<size_t>(layer)];
    if (!cold.loaded)
        for (const Spill::Range& r : cold_ranges(layer)) spill_->read(r);
    cold.loaded = true;
    for (int i = 1; i < layers && ahead_ < 0 && !spill_->inherited(); i++) {
        const int next = (layer + i) % layers;
        if (cold_[static_cast<size_t>(next)].loaded) break;
        if (std::vector<Spill::Range> ranges = cold_ranges(next); !ranges.empty()) {
            ahead_ = next;
            spill_->read_ahead(std::move(ranges));
        }
    }
}

void KVCache::close(int layer, int64_t rows) {
    if (!spill_) return;
    Cold& cold = cold_[static_cast<size_t>(layer)];
    for (int part = 0; part < 2; part++) {
        const size_t before = cold.bytes[part], now = std::max(before, cold_bytes(part, rows - resident_));
        if (now > before)
            for (int h = 0; h < heads(layer); h++) spill_->write({region(layer, h, part) + before, now - before});
        cold.bytes[part] = now;
    }
    drop(layer);
}

void KVCache::drop(int layer) {
    cold_[static_cast<size_t>(layer)].loaded = false;
    for (const Spill::Range& r : cold_ranges(layer)) madvise(r.at, r.bytes, MADV_DONTNEED);
}

void KVCache::rewrite(int layer, int64_t start) {
    if (!spill_) return;
    const Cold& cold = cold_[static_cast<size_t>(layer)];
    if (cold.bytes[0] <= cold_bytes(0, start) && cold.bytes[1] <= cold_bytes(1, start)) return;
    drain();
    warm(layer, start);
}

void KVCache::warm(int layer, int64_t rows) {
    Cold& cold = cold_[static_cast<size_t>(layer)];
    for (int part = 0; part < 2; part++) {
        const size_t left = std::min(cold.bytes[part], cold_bytes(part, rows));
        const size_t end = std::min(cold.bytes[part], whole_pages(static_cast<size_t>((rows + 15) / 16) * block_[part]));
        if (left < cold.bytes[part]) spill_->forget();
        if (left < end && !cold.loaded)  // pages that hold the last rows left, and others after them
            for (int h = 0; h < heads(layer); h++) spill_->read({region(layer, h, part) + left, end - left});
        cold.bytes[part] = left;
    }
}

void KVCache::copy(KVCache& from, int layer, int64_t rows) {
    from.open(layer);
    rewrite(layer, 0);
    for (int h = 0; h < heads(layer); h++)
        for (int part = 0; part < 2; part++)
            std::memcpy(region(layer, h, part), from.region(layer, h, part), static_cast<size_t>((rows + 15) / 16) * block_[part]);
    close(layer, rows);
    from.drain();
    from.close(layer, from.lengths[static_cast<size_t>(layer)]);
}

uint16_t* KVCache::query(int layer, int64_t position) const {
    if (!query_rows_) return nullptr;
    uint16_t* ring = reinterpret_cast<uint16_t*>(base_ + queries_);
    const size_t l = static_cast<size_t>(layer);
    return ring + (first_query_[l] * query_rows_ + position % query_rows_ * query_heads_[l]) * dim;
}

void KVCache::stored_queries(int64_t end) { query_from = std::max(query_from, end - query_rows_); }

int64_t KVCache::bytes() const {
    int64_t total = static_cast<int64_t>(first_query_.back()) * query_rows_ * dim * 2;
    for (size_t l = 0; l < lengths.size(); l++)
        for (int part = 0; part < 2; part++) {
            const int64_t held = lengths[l] * static_cast<int64_t>(block_[part]) / 16;
            total += heads_[l] * (cold_[l].loaded ? held : std::max<int64_t>(0, held - static_cast<int64_t>(cold_[l].bytes[part])));
        }
    return total;
}

}  // namespace genmote
