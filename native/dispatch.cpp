// Which kernels run here: built in, and the processor has the instructions.
#include <cstring>

#include "genmote.h"
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace genmote {

size_t scratch_bytes(int64_t cols) { return static_cast<size_t>(cols / kGroup) * (512 + 4 * 16 * 4) * 2; }  // two panels spelt out

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
static const Kernels* const built[] = {&kernels_avx512, &kernels_avx2, &kernels_scalar, nullptr};
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_dotprod;
static const Kernels* const built[] = {&kernels_dotprod, &kernels_neon, &kernels_scalar, nullptr};
#else
static const Kernels* const built[] = {&kernels_scalar, nullptr};
#endif

bool cpu_has(const char* name) {
#if defined(__x86_64__)
    if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!std::strcmp(name, "avx512"))
        return cpu_has("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
    if (!std::strcmp(name, "neon")) return true;  // part of the base architecture
#if defined(__linux__)
    if (!std::strcmp(name, "dotprod")) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
#endif
    return !std::strcmp(name, "scalar");
}

const char* const* kernel_names() {
    static const char* names[8];
    for (int i = 0; built[i]; i++) names[i] = built[i]->name;
    return names;
}

const Kernels* kernels_named(const char* name) {
    for (int i = 0; built[i]; i++)
        if (!std::strcmp(built[i]->name, name) && cpu_has(name)) return built[i];
    return nullptr;
}

const Kernels& best_kernels() {
    for (int i = 0; built[i]; i++)
        if (cpu_has(built[i]->name)) return *built[i];
    return kernels_scalar;
}

}  // namespace genmote
