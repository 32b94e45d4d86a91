#include "kernels.h"
#include "matmul_amx.h"

GENMOTE_KERNELS(kernels_amx, "amx")
