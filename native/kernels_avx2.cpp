#include "kernels.h"
#include "matmul_x86.h"

GENMOTE_KERNELS(kernels_avx2, "avx2")
