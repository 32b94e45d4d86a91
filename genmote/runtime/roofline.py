"""What speed to expect: the roofline of a machine's memory, arithmetic and storage (Williams et al. 2009).

A pass takes as long as the slowest of three, which overlap: reading weights and keys out of memory, multiplying, and
reading what is streamed from storage. The figures are the profile's, so the result is what to expect, not a measure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genmote.device.profile import Profile

# What the kernels reach of a profile's figures, measured against device-probe's on x86-64 (docs/fit.md).
MEMORY_SHARE, COMPUTE_SHARE, STORAGE_SHARE = 0.85, 0.6, 0.9


@dataclass(frozen=True)
class Machine:
    """The rates that bound a pass, in bytes and operations a second."""

    memory_bytes_s: float
    one_core_bytes_s: float
    int8_ops_s: float
    float_ops_s: float
    storage_bytes_s: float
    cores: int
    source: str

    @classmethod
    def of(cls, profile: Profile) -> Machine:
        wide = profile.bandwidth
        return cls(
            memory_bytes_s=wide.read_gb_s * 1e9,
            one_core_bytes_s=(wide.one_core_gb_s or wide.read_gb_s) * 1e9,
            int8_ops_s=profile.compute.int8_gops * 1e9,
            float_ops_s=profile.compute.f32_gflops * 1e9,
            storage_bytes_s=profile.storage.read_mb_s * 1e6,
            cores=profile.compute.cores,
            source=profile.title,
        )


# Where nothing is known of the machine, for choices that depend on ratios alone: no speed is told from it.
NOMINAL = Machine(10e9, 5e9, 100e9, 50e9, 0.5e9, 2, "no measured machine")


@dataclass(frozen=True)
class Load:
    """What one pass reads and computes, for one row of each session: bytes and multiply-adds."""

    weight_bytes: float
    kv_bytes: float  # keys and values that one row attends to
    macs: float  # with quantised weights, in 8 bits
    float_macs: float
    streamed_bytes: float


def pass_s(load: Load, machine: Machine, threads: int, rows: int = 1) -> float:
    """Seconds of one pass over `rows` rows: weights are read once for all, keys and products are each row's own."""
    threads = max(1, min(threads, machine.cores))
    rate = min(machine.memory_bytes_s, machine.one_core_bytes_s * threads) * MEMORY_SHARE
    # Rows of one text share keys and values in tiles of some sixteen.
    moved = load.weight_bytes + load.kv_bytes * max(1.0, rows / 16) + load.streamed_bytes
    multiply = 2 * rows * (load.macs / machine.int8_ops_s + load.float_macs / machine.float_ops_s)
    multiply /= threads / machine.cores * COMPUTE_SHARE
    stream = stored_s(load.streamed_bytes, machine)
    return max(moved / rate, multiply, stream)


def stored_s(count: float, machine: Machine) -> float:
    """Seconds in which so many bytes are read from storage; writing is taken to be as fast."""
    return count / (machine.storage_bytes_s * STORAGE_SHARE)


def bound(load: Load, machine: Machine, threads: int, rows: int = 1) -> str:
    """What a pass waits for most: "storage", "arithmetic" or "memory"."""
    each = {
        "storage": replace(load, weight_bytes=0, kv_bytes=0, macs=0, float_macs=0),
        "arithmetic": replace(load, weight_bytes=0, kv_bytes=0, streamed_bytes=0),
        "memory": replace(load, macs=0, float_macs=0, streamed_bytes=0),
    }
    return max(each, key=lambda name: pass_s(each[name], machine, threads, rows))
