// AMX's tile registers, as far as matmul_amx.h needs them: eight of at most 16 rows of 64 bytes. With GENMOTE_AMX_EMULATED the
// same functions follow the instructions' documented meaning (Intel 64 and IA-32 Architectures Software Developer's Manual,
// volumes 1, chapter 18, and 2, TDPBSSD) in plain C++: so far the kernels were run in this form only, for want of a processor.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "as LDTILECFG reads it");

#if defined(GENMOTE_AMX_EMULATED)

struct Tiles {
    TileConfig config;
    bool configured = false;
    uint8_t byte[8][16][64];
    void need(bool ok) const { if (!ok) std::abort(); }  // what would be an invalid-opcode fault
};
thread_local Tiles tiles;

inline void tiles_configure(const TileConfig& c) {
    tiles.config = c;
    tiles.configured = true;
    std::memset(tiles.byte, 0, sizeof tiles.byte);
    tiles.need(c.palette == 1 && c.start_row == 0);
    for (int t = 0; t < 16; t++) tiles.need(t < 8 ? c.rows[t] <= 16 && c.row_bytes[t] <= 64 : !c.rows[t] && !c.row_bytes[t]);
}

inline void tiles_release() { tiles.configured = false; }

template <int T> inline void tile_load(const void* p, int64_t stride) {
    tiles.need(tiles.configured && tiles.config.rows[T] && tiles.config.row_bytes[T]);
    std::memset(tiles.byte[T], 0, sizeof tiles.byte[T]);
    for (int r = 0; r < tiles.config.rows[T]; r++) std::memcpy(tiles.byte[T][r], static_cast<const uint8_t*>(p) + r * stride, tiles.config.row_bytes[T]);
}

template <int T> inline void tile_store(void* p, int64_t stride) {
    tiles.need(tiles.configured && tiles.config.rows[T] && tiles.config.row_bytes[T]);
    for (int r = 0; r < tiles.config.rows[T]; r++) std::memcpy(static_cast<uint8_t*>(p) + r * stride, tiles.byte[T][r], tiles.config.row_bytes[T]);
}

template <int T> inline void tile_zero() {
    tiles.need(tiles.configured);
    std::memset(tiles.byte[T], 0, sizeof tiles.byte[T]);
}

template <int C, int A, int B> inline void tile_dot() {
    static const int fault = std::getenv("GENMOTE_AMX_FAULT") != nullptr;  // a processor that is one off, to be found out
    const TileConfig& c = tiles.config;
    tiles.need(tiles.configured && c.rows[A] == c.rows[C] && c.row_bytes[B] == c.row_bytes[C] && c.row_bytes[A] == 4 * c.rows[B] && A != B && A != C && B != C);
    for (int m = 0; m < c.rows[C]; m++)
        for (int n = 0; n < c.row_bytes[C] / 4; n++) {
            int32_t sum;
            std::memcpy(&sum, tiles.byte[C][m] + 4 * n, 4);
            sum += fault && m == 15 && n == 3;
            for (int k = 0; k < c.rows[B]; k++)
                for (int i = 0; i < 4; i++) sum += static_cast<int8_t>(tiles.byte[A][m][4 * k + i]) * static_cast<int8_t>(tiles.byte[B][k][4 * n + i]);
            std::memcpy(tiles.byte[C][m] + 4 * n, &sum, 4);
        }
}

#else

// Instructions by hand, each told to touch memory: the intrinsics of GCC 12 name only the first bytes of the configuration and
// none of the tiles' rows, so that the stores that prepare them are optimised away.
inline void tiles_configure(const TileConfig& c) { asm volatile("ldtilecfg %0" : : "m"(c) : "memory"); }
inline void tiles_release() { asm volatile("tilerelease" : : : "memory"); }

template <int T> inline void tile_load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
}

template <int T> inline void tile_store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
}

template <int T> inline void tile_zero() { asm volatile("tilezero %%tmm%c0" : : "i"(T)); }

// C += A * B: rows of signed bytes, B's four to a column.
template <int C, int A, int B> inline void tile_dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
