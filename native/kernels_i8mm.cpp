#include "kernels.h"
#include "matmul_i8mm.h"

GENMOTE_KERNELS(kernels_i8mm, "i8mm")
