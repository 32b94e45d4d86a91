#include "kernels.h"

GENMOTE_KERNELS(kernels_avx512, "avx512", matmul)
