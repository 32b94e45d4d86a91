// Which kernels run here: built in, and the processor has the instructions.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "genmote.h"
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace genmote {

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avxvnni, kernels_avx512, kernels_amx;
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_dotprod, kernels_i8mm;
#endif

size_t scratch_bytes(int64_t cols) { return static_cast<size_t>(cols / kGroup) * (512 + 4 * 16 * 4) * 2; }  // two panels spelt out

namespace {

#if defined(__x86_64__)
// Whether products by tiles have the bits that they have by vectors, on drawn numbers: so far no processor with tiles has run
// these kernels, and one that gets them wrong (or a virtual machine that does) must not be given them unnoticed.
bool tiles_agree(const Kernels& tiles, const Kernels& vectors) {
    constexpr int64_t rows = 2 * kPanel, cols = 1024, T = 35;  // two panels; tiles of rows, the last one begun anew
    struct Sort { int type, halves[2]; };  // where a block's float16 numbers are; the other bytes may be any
    const Sort sorts[] = {{Q4_0, {0, 0}}, {Q8_0, {0, 0}}, {Q5_1, {0, 2}}, {Q2_K, {80, 82}}, {Q4_K, {0, 2}}, {Q6_K, {208, 208}}};
    uint32_t state = 1;
    const auto draw = [&] { return state = state * 1664525u + 1013904223u, state >> 24; };
    std::vector<float> x(T * cols);
    for (float& one : x) one = static_cast<float>(draw()) - 127.5f;
    std::vector<Group> groups(T * cols / kGroup);
    for (int64_t t = 0; t < T; t++) vectors.quantise_row(&x[t * cols], cols, &groups[t * cols / kGroup]);
    std::vector<uint8_t> scratch(scratch_bytes(cols) + 64);
    void* aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    for (const Sort& sort : sorts) {
        Layout layout;
        if (!layout_of(sort.type, &layout)) return false;
        std::vector<uint8_t> raw(row_bytes(sort.type, cols) * rows), packed(packed_bytes(sort.type, rows, cols));
        for (uint8_t& one : raw) one = static_cast<uint8_t>(draw());
        for (size_t block = 0; block < raw.size(); block += static_cast<size_t>(layout.src_bytes))
            for (int at : sort.halves) raw[block + at + 1] = 0x30;  // float16 between 1/8 and 1/4
        for (int64_t p = 0; p < rows / kPanel; p++) pack_panel(sort.type, rows, cols, raw.data(), p, packed.data() + p * panel_bytes(sort.type, cols));
        const Matrix w{sort.type, rows, cols, packed.data()};
        std::vector<float> wanted(T * rows), found(T * rows);
        vectors.matmul(w, groups.data(), T, wanted.data(), rows, 0, rows / kPanel, aligned);
        tiles.matmul(w, groups.data(), T, found.data(), rows, 0, rows / kPanel, aligned);
        if (std::memcmp(wanted.data(), found.data(), wanted.size() * sizeof(float))) return false;
    }
    return true;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

#if defined(GENMOTE_AVXVNNI)
bool has_avxvnni() {
    const char* wanted = std::getenv("GENMOTE_AVXVNNI");  // 0: plain AVX2, to measure it on a processor that has both
    unsigned a = 0, b = 0, c = 0, d = 0;
    return !(wanted && *wanted == '0') && has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

#if defined(GENMOTE_AMX_EMULATED)
bool ask_for_amx() { return has_avx512(); }
#elif defined(__linux__)
// The processor has tiles, the kernel saves them, and lets this process use them (asked for once, for all threads).
bool ask_for_amx() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 3) != 3) return false;  // AMX-TILE, AMX-INT8
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;                               // XGETBV may be used
    asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    if ((a >> 17 & 3) != 3) return false;  // XTILECFG, XTILEDATA
    constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#else
bool ask_for_amx() { return false; }
#endif

bool has_amx() {
    static const bool here = ask_for_amx() && tiles_agree(kernels_amx, kernels_avx512);
    return here;
}
#elif defined(__aarch64__)
bool has_neon() { return true; }  // part of the base architecture

#if defined(__linux__)
bool has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }

bool has_i8mm() {
    constexpr unsigned long i8mm = 1 << 13;  // HWCAP2_I8MM, which older headers lack
    return has_dotprod() && (getauxval(AT_HWCAP2) & i8mm);
}
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif
#endif

bool anywhere() { return true; }

struct Built { const Kernels* kernels; bool (*runs)(); };

const Built built[] = {  // best first
#if defined(__x86_64__)
    {&kernels_amx, has_amx},
    {&kernels_avx512, has_avx512},
#if defined(GENMOTE_AVXVNNI)
    {&kernels_avxvnni, has_avxvnni},
#endif
    {&kernels_avx2, has_avx2},
#elif defined(__aarch64__)
    {&kernels_i8mm, has_i8mm},
    {&kernels_dotprod, has_dotprod},
    {&kernels_neon, has_neon},
#endif
    {&kernels_scalar, anywhere},
};
constexpr int kBuilt = sizeof built / sizeof *built;

}  // namespace

const char* const* kernel_names() {
    static const char* names[kBuilt + 1];
    static const bool filled = [] {
        int n = 0;
        for (const Built& b : built)
            if (!n || std::strcmp(names[n - 1], b.kernels->name)) names[n++] = b.kernels->name;
        return true;
    }();
    return filled ? names : nullptr;
}

const Kernels* runnable_kernels(int i) {
    for (const Built& b : built)
        if (b.runs() && !i--) return b.kernels;
    return nullptr;
}

const Kernels* kernels_named(const char* name) {
    for (int i = 0; const Kernels* k = runnable_kernels(i); i++)
        if (!std::strcmp(k->name, name)) return k;
    return nullptr;
}

const Kernels& best_kernels() { return *runnable_kernels(0); }

}  // namespace genmote
