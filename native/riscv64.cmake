# Cross-compiles the kernels for 64-bit RISC-V Linux with Debian's g++-riscv64-linux-gnu.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR riscv64)
set(CMAKE_CXX_COMPILER riscv64-linux-gnu-g++)
set(CMAKE_STRIP riscv64-linux-gnu-strip)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-riscv64 -L /usr/riscv64-linux-gnu)
# Programs (CMake's own) are this machine's; libraries and headers are looked up where asked for.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
