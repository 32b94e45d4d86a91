// Nothing but C++ and the compiler's generic vectors: runs anywhere, and on ARM shows what its own instructions must give.
#define GENMOTE_PORTABLE
#include "kernels.h"
#include "matmul_plain.h"

GENMOTE_KERNELS(kernels_scalar, "scalar")
