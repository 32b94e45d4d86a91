#include "kernels.h"

GENMOTE_KERNELS(kernels_dotprod, "dotprod", matmul)
