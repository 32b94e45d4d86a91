#include "kernels.h"
#include "matmul_avx2.h"

GENMOTE_KERNELS(kernels_avx2, "avx2", matmul_avx2)
