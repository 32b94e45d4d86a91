#include "kernels.h"

GENMOTE_KERNELS(kernels_avx2, "avx2")
