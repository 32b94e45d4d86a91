#include "kernels.h"

GENMOTE_KERNELS(kernels_scalar, "scalar")
