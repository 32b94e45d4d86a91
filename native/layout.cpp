// Packed layouts and the code that re-lays GGUF blocks into them. Portable; nothing here is on the path of a token.
#include <vector>
#include <cstring>

#include "genmote.h"

namespace genmote {

bool layout_of(int type, Layout* l) {
    //                        bytes nib    two    one    byte   three  off  half   super  min    book   small  block bytes
    switch (type) {
        case Q4_0:   *l = {256, true,  false, false, false, false, 8,   false, false, false, false, false, 32,  18}; return true;
        case Q4_1:   *l = {256, true,  false, false, false, false, 0,   false, false, true,  false, false, 32,  20}; return true;
        case Q5_0:   *l = {320, true,  false, true,  false, false, 16,  false, false, false, false, false, 32,  22}; return true;
        case Q5_1:   *l = {320, true,  false, true,  false, false, 0,   false, false, true,  false, false, 32,  24}; return true;
        case Q8_0:   *l = {512, false, false, false, true,  false, 128, false, false, false, false, false, 32,  34}; return true;
        case IQ4_NL: *l = {256, true,  false, false, false, false, 128, false, false, false, true,  false, 32,  18}; return true;
        case Q2_K:   *l = {128, false, true,  false, false, false, 0,   true,  true,  true,  false, false, 256, 84}; return true;
        case Q3_K:   *l = {192, false, true,  true,  false, false, 4,   true,  true,  false, false, false, 256, 110}; return true;
        case Q4_K:   *l = {256, true,  false, false, false, false, 0,   false, true,  true,  false, false, 256, 144}; return true;
        case Q5_K:   *l = {320, true,  false, true,  false, false, 0,   false, true,  true,  false, false, 256, 176}; return true;
        case Q6_K:   *l = {384, true,  true,  false, false, false, 32,  true,  true,  false, false, false, 256, 210}; return true;
        case GM2_32: *l = {128, false, true,  false, false, false, 0,   false, false, false, true,  true,  32,  9}; return true;
        case GM3_32: *l = {192, false, false, false, false, true,  0,   false, false, false, true,  true,  32,  13}; return true;
        case GM4_32: *l = {256, true,  false, false, false, false, 0,   false, false, false, true,  true,  32,  17}; return true;
        default: return false;
    }
}

bool is_float_type(int type) { return type == F32 || type == F16 || type == BF16; }

size_t row_bytes(int type, int64_t cols) {
    if (type == F32) return static_cast<size_t>(cols) * 4;
    if (is_float_type(type)) return static_cast<size_t>(cols) * 2;
    Layout l;
    return layout_of(type, &l) ? static_cast<size_t>(cols / l.src_block) * l.src_bytes : 0;
}

size_t panel_bytes(int type, int64_t cols) {
    if (is_float_type(type)) return row_bytes(type, cols) * kPanel;
    Layout l;
    if (!layout_of(type, &l)) return 0;
    size_t groups = static_cast<size_t>(cols / kGroup), parts = l.half ? 2 * groups : groups;
    size_t scales = l.small ? groups * 16 : l.super ? (groups / 8) * (l.min ? 64 : 32) + parts * (l.min && !l.half ? 32 : 16) : groups * (l.min ? 64 : 32);
    return groups * l.code_bytes + scales;
}

size_t packed_bytes(int type, int64_t rows, int64_t cols) {
    return static_cast<size_t>((rows + kPanel - 1) / kPanel) * panel_bytes(type, cols);
}

namespace {

// One 6-bit scale and minimum out of the 12 bytes of a Q4_K or Q5_K block.
void scale_min_6(const uint8_t* s, int i, uint8_t* scale, uint8_t* min) {
    if (i < 4) {
        *scale = s[i] & 63;
        *min = s[i + 4] & 63;
    } else {
        *scale = (s[i + 4] & 15) | ((s[i - 4] >> 6) << 4);
        *min = (s[i + 4] >> 4) | ((s[i] >> 6) << 4);
    }
}

// What one row of one super-block or block says, spelt out.
struct Row {
    uint8_t code[256];
    uint16_t d, m;          // float16 bits, or d a byte
    uint8_t scale[16], min[16];
};

void read_block(int type, const uint8_t* b, Row* r) {
    auto half = [](const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); };
    switch (type) {
        case Q4_0: case IQ4_NL: case Q4_1: {
            r->d = half(b);
            if (type == Q4_1) r->m = half(b + 2);
            const uint8_t* q = b + (type == Q4_1 ? 4 : 2);
            for (int i = 0; i < 16; i++) { r->code[i] = q[i] & 15; r->code[i + 16] = q[i] >> 4; }
            break;
        }
        case Q5_0: case Q5_1: {
            r->d = half(b);
            if (type == Q5_1) r->m = half(b + 2);
            const uint8_t* h = b + (type == Q5_1 ? 4 : 2);
            uint32_t bits;
            std::memcpy(&bits, h, 4);
            for (int i = 0; i < 16; i++) {
                r->code[i] = (h[4 + i] & 15) | ((bits >> i & 1) << 4);
                r->code[i + 16] = (h[4 + i] >> 4) | ((bits >> (i + 16) & 1) << 4);
            }
            break;
        }
        case Q8_0:
            r->d = half(b);
            for (int i = 0; i < 32; i++) r->code[i] = b[2 + i] ^ 0x80;
            break;
        case Q2_K:
            for (int i = 0; i < 16; i++) r->scale[i] = b[i];  // scale and minimum stay together in a byte
            for (int i = 0; i < 256; i++) r->code[i] = b[16 + (i / 128) * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
            r->d = half(b + 80);
            r->m = half(b + 82);
            break;
        case Q3_K: {
            const uint8_t *h = b, *q = b + 32, *s = b + 96;
            for (int i = 0; i < 256; i++)
                r->code[i] = (q[(i / 128) * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3) | ((h[i % 32] >> (i / 32) & 1) << 2);
            for (int i = 0; i < 16; i++) {
                int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4, high = s[8 + i % 4] >> (2 * (i / 4)) & 3;
                r->scale[i] = static_cast<uint8_t>((low | high << 4) - 32);
            }
            r->d = half(b + 108);
            break;
        }
        case Q4_K: case Q5_K: {
            r->d = half(b);
            r->m = half(b + 2);
            for (int i = 0; i < 8; i++) scale_min_6(b + 4, i, &r->scale[i], &r->min[i]);
            const uint8_t *h = b + 16, *q = b + (type == Q5_K ? 48 : 16);
            for (int i = 0; i < 256; i++) {
                uint8_t byte = q[(i / 64) * 32 + i % 32];
                r->code[i] = i % 64 < 32 ? byte & 15 : byte >> 4;
                if (type == Q5_K) r->code[i] |= (h[i % 32] >> (i / 32) & 1) << 4;
            }
            break;
        }
        case GM2_32: case GM3_32:
            r->d = b[0];
            for (int i = 0; i < 32; i++) r->code[i] = b[1 + i % 8] >> (2 * (i / 8)) & 3;
            for (int i = 0; type == GM3_32 && i < 32; i++) r->code[i] |= (b[9 + i / 8] >> (i % 8) & 1) << 2;
            break;
        case GM4_32:
            r->d = b[0];
            for (int i = 0; i < 16; i++) { r->code[i] = b[1 + i] & 15; r->code[i + 16] = b[1 + i] >> 4; }
            break;
        case Q6_K: {
            const uint8_t *l = b, *h = b + 128;
            for (int i = 0; i < 256; i++) {
                int n = i / 128, k = i % 128;
                uint8_t low = l[n * 64 + k % 64], high = h[n * 32 + k % 32] >> (2 * (k / 32)) & 3;
                r->code[i] = (k < 64 ? low & 15 : low >> 4) | high << 4;
            }
            for (int i = 0; i < 16; i++) r->scale[i] = b[192 + i];
            r->d = half(b + 208);
            break;
        }
    }
}

// Write the codes of 16 rows x 32 columns into the group's planes.
void write_codes(const Layout& l, const uint8_t code[kPanel][kGroup], uint8_t* out) {
    std::memset(out, 0, l.code_bytes);
    for (int r = 0; r < kPanel; r++)
        for (int k = 0; k < kGroup; k++) {
            int quad = k / 4, at = 4 * r + k % 4;
            uint8_t c = code[r][k], *p = out;
            if (l.nibble) {
                p[(quad % 4) * 64 + at] |= (c & 15) << (quad / 4 * 4);
                p += 256;
                c >>= 4;
            }
            if (l.two) {
                p[(quad % 2) * 64 + at] |= (c & 3) << (quad / 2 * 2);
                p += 128;
                c >>= 2;
            }
            if (l.one) p[at] |= (c & 1) << quad;
            if (l.byte) p[quad * 64 + at] = c;
            if (l.three && quad < 6) p[(quad % 3) * 64 + at] |= c << (quad / 3 * 4);
            for (int bit = 0; l.three && quad >= 6 && bit < 3; bit++) p[bit * 64 + at] |= (c >> bit & 1) << (quad == 6 ? 3 : 7);
        }
}

}  // namespace

void pack_panel(int type, int64_t rows, int64_t cols, const uint8_t* src, int64_t p, uint8_t* dst) {
    size_t stride = row_bytes(type, cols);
    int64_t r0 = p * kPanel, n = rows - r0 < kPanel ? rows - r0 : kPanel;
    if (is_float_type(type)) {
        size_t size = type == F32 ? 4 : 2;
        std::memset(dst, 0, panel_bytes(type, cols));
        for (int64_t r = 0; r < n; r++)
            for (int64_t k = 0; k < cols; k++)
                std::memcpy(dst + (static_cast<size_t>(k) * kPanel + r) * size, src + (r0 + r) * stride + static_cast<size_t>(k) * size, size);
        return;
    }
    Layout l;
    layout_of(type, &l);
    int64_t groups = cols / kGroup;
    int per = l.src_block / kGroup;       // groups of a block
    int parts = l.super ? (l.half ? 16 : 8) : 0;
    uint8_t* scales = dst + static_cast<size_t>(groups) * l.code_bytes;
    // Scale planes: [float16 d][float16 min] of all (super-)groups, then the integer scales, then the integer minima.
    size_t blocks = static_cast<size_t>(cols / l.src_block);
    uint8_t *d_at = scales, *m_at = d_at + blocks * 32;
    uint8_t *s_at = m_at + (l.min ? blocks * 32 : 0), *i_at = s_at + blocks * parts * kPanel;
    static thread_local std::vector<Row> buffer(kPanel);
    Row* row = buffer.data();
    uint8_t code[kPanel][kGroup];
    for (size_t b = 0; b < blocks; b++) {
        for (int r = 0; r < kPanel; r++) {
            if (r < n) read_block(type, src + (r0 + r) * stride + b * l.src_bytes, &row[r]);
            else { std::memset(&row[r], 0, sizeof(Row)); std::memset(row[r].code, l.codebook ? 0 : l.offset, 256); }
        }
        for (int g = 0; g < per; g++) {
            for (int r = 0; r < kPanel; r++) std::memcpy(code[r], row[r].code + g * kGroup, kGroup);
            write_codes(l, code, dst + (b * per + g) * l.code_bytes);
        }
        for (int r = 0; r < kPanel; r++) {
            if (l.small) d_at[b * kPanel + r] = static_cast<uint8_t>(row[r].d);
            else std::memcpy(d_at + b * 32 + 2 * r, &row[r].d, 2);
            if (l.min) std::memcpy(m_at + b * 32 + 2 * r, &row[r].m, 2);
            for (int i = 0; i < parts; i++) {
                s_at[(b * parts + i) * kPanel + r] = row[r].scale[i];
                if (l.min && !l.half) i_at[(b * parts + i) * kPanel + r] = row[r].min[i];
            }
        }
    }
}

}  // namespace genmote
