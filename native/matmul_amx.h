// Products of panels with many rows of activations by AMX: a tile instruction multiplies 16 rows of activations with 16 rows
// of codes over a group (or half a group, where scales are per half). Its integers go through a buffer in the first-level
// cache to the vector units, which add them up as floats, group after group as everywhere: this takes longer than the tiles,
// so that tile instructions for a later chunk of groups are strewn between the additions for this one.
#pragma once
#include "amx_tiles.h"
#define GENMOTE_OWN_MANY
#include "matmul_x86.h"

namespace {

constexpr int kTileRows = 16;  // of activations
constexpr int kChunk = 4;      // groups whose integers wait in the buffer

// Signed codes, the offset taken off: a quad of the panel's rows is a row of the tile as it is.
template <int TYPE> inline void put_signed(const VB* q, uint8_t* at) {
    constexpr uint8_t offset = Traits<TYPE>::offset ? 1 << Traits<TYPE>::shift : 0;
    for (int j = 0; j < 8; j++) store(at + j * UB, q[j] - offset);
}

// NP panels x 16 rows of activations.
template <int TYPE, int NP> struct AmxTile {
    static constexpr int NS = Traits<TYPE>::half ? 2 : 1, NF = scale_vectors<TYPE>(), kSteps = kChunk * NS * NP;
    const Spelt* w;
    int64_t groups;
    const Group* x;
    alignas(64) int32_t ints[2][kSteps][kTileRows * kPanel];

    static void configure() {
        TileConfig c;
        for (int t = 0; t < 8; t++) {  // 0 and 1: activations; 2 and 3: codes; 4 to 7: sums
            c.rows[t] = t == 2 || t == 3 ? 8 / NS : 16;
            c.row_bytes[t] = t < 2 ? 32 / NS : 64;
        }
        tiles_configure(c);
    }

    // The s-th product of the chunk that begins at group g0: panel s % NP of the (half) group s / NP. S is s % 4; registers
    // take turns, so that no product waits for the one before.
    template <int S> void product(int64_t g0, int s, int32_t* out) const {
        constexpr int A = NP == 2 ? S / 2 : S % 2, B = 2 + S % 2, C = 4 + S;
        const int64_t part = s / NP, g = g0 + part / NS, half = part % NS;
        if (NP == 1 || S % 2 == 0) tile_load<A>(x[g].q + 16 * half, groups * static_cast<int64_t>(sizeof(Group)));
        tile_load<B>(w[s % NP].codes + (g * 8 + half * 4) * UB, UB);
        tile_zero<C>();
        tile_dot<C, A, B>();
        tile_store<C>(out, 4 * kPanel);
    }

    void step(int64_t g0, int s, int buffer) {
        int32_t* out = ints[buffer][s];
        switch (s % 4) {
            case 0: return product<0>(g0, s, out);
            case 1: return product<1>(g0, s, out);
            case 2: return product<2>(g0, s, out);
            case 3: return product<3>(g0, s, out);
        }
    }

    void run(float* y, int64_t ldy) {
        alignas(64) float sums[NP][kTileRows][LANES] = {};
        int64_t n = groups < kChunk ? groups : kChunk;
        for (int s = 0; s < n * NS * NP; s++) step(0, s, 0);
        int buffer = 0;
        for (int64_t g0 = 0; g0 < groups; g0 += n) {
            n = groups - g0 < kChunk ? groups - g0 : kChunk;
            const int64_t left = groups - g0 - n, ahead = (left < kChunk ? left : kChunk) * NS * NP;
            int s = 0;
            for (int p = 0; p < NP; p++) {
                VF acc[kTileRows];
                for (int t = 0; t < kTileRows; t++) acc[t] = load(sums[p][t]);
                for (int64_t i = 0; i < n; i++) {
                    for (int h = 0; h < NS && s < ahead; h++) step(g0 + n, s++, buffer ^ 1);
                    add(acc, g0 + i, p, ints[buffer] + i * NS * NP + p);
                }
                for (int t = 0; t < kTileRows; t++) store(sums[p][t], acc[t]);
            }
            buffer ^= 1;
        }
        for (int p = 0; p < NP; p++)
            for (int t = 0; t < kTileRows; t++) store(y + t * ldy + p * kPanel, load(sums[p][t]));
    }

    void add(VF* acc, int64_t g, int p, const int32_t (*dots)[kTileRows * kPanel]) const {
        const float* f = w[p].scales + g * NF * LANES;
        VF s[NS], m[NS];
        for (int h = 0; h < NS; h++) {
            s[h] = load(f + h * LANES);
            if constexpr (Traits<TYPE>::min) m[h] = load(f + (NS + h) * LANES);
        }
#pragma GCC unroll 16
        for (int t = 0; t < kTileRows; t++) {
            const Group& row = x[t * groups + g];
            for (int h = 0; h < NS; h++) {
                VI d;
                std::memcpy(&d, dots[h * NP] + t * kPanel, sizeof d);
                acc[t] = add_dots(acc[t], d, row, s[h]);
            }
            if constexpr (Traits<TYPE>::min) acc[t] = add_mins<TYPE>(acc[t], row, m);
        }
    }
};

template <int TYPE> void matmul_many(const Matrix& w, const Group* x, int64_t T, float* y, int64_t ldy, int64_t p0, int64_t p1, void* scratch) {
    if (T < kTileRows) return by_vectors<TYPE>(w, x, T, y, ldy, p0, p1, scratch);
    const int64_t groups = w.cols / kGroup;
    // Configured at each call: other libraries in the process use tiles of their own.
    AmxTile<TYPE, 2>::configure();
    by_panels<TYPE, 2>(w, x, T, y, ldy, p0, p1, scratch, put_signed<TYPE>, [&](auto np, const Spelt* s, const Group* xs, int64_t n, float* out) {
        for (int64_t t = 0; t < n; t += kTileRows) {
            const int64_t from = t + kTileRows <= n ? t : n - kTileRows;  // the last tile may do some rows again, to the same bits
            AmxTile<TYPE, np.value> tile;
            tile.w = s, tile.groups = groups, tile.x = xs + from * groups;
            tile.run(out + from * ldy, ldy);
        }
    });
    tiles_release();
}

}  // namespace
