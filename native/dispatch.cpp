// Which kernels run here: built in, and the processor has the instructions.
#include <cstdlib>
#include <cstring>

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

size_t scratch_bytes(int64_t cols) { return static_cast<size_t>(cols / kGroup) * (512 + 4 * 16 * 4) * 2; }  // two panels spelt out

namespace {

#if defined(__x86_64__)
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
bool has_amx() { return has_avx512(); }
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

bool has_amx() {
    static const bool here = ask_for_amx();
    return here;
}
#else
bool has_amx() { return false; }
#endif
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

}  // namespace

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avxvnni, kernels_avx512, kernels_amx;
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_dotprod, kernels_i8mm;
#endif

namespace {

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
