#include "kernels.h"
#include "matmul_plain.h"

GENMOTE_KERNELS(kernels_neon, "neon")
