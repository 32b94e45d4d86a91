// The AVX2 kernels where the processor also has AVX-VNNI, as small ones of recent years do: the same set under the same name.
#include "kernels.h"
#include "matmul_x86.h"

GENMOTE_KERNELS(kernels_avxvnni, "avx2")
