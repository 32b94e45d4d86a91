#include "kernels.h"
#include "matmul_x86.h"

GENMOTE_KERNELS(kernels_avx512, "avx512")
