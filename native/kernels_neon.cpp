#include "kernels.h"

GENMOTE_KERNELS(kernels_neon, "neon", matmul)
