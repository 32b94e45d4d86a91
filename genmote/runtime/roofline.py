"""What speed to expect: the roofline of a machine's memory, arithmetic and storage (Williams et al. 2009).

A pass takes as long as the slowest of three, which overlap: reading weights and keys out of memory, multiplying, and
reading what is streamed from storage. To the first two comes what starting each operation takes, which bounds small
models. The figures are the profile's, so the result is what to expect, not a measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genmote.device.profile import Profile

# What the kernels reach of a profile's figures, measured against device-probe's on x86-64 (docs/fit.md).
MEMORY_SHARE, COMPUTE_SHARE, STORAGE_SHARE = 0.85, 0.6, 0.9

# Seconds in which an operation is called from Python and its kernel starts, on a core that reaches so many float32
# operations a second (a Xeon's thread at 2.8 GHz), and how many such operations there are: measured on tiny models of 1
# to 32 layers in one thread, whose weights are next to nothing.
OPERATION_S, CORE_FLOAT_OPS_S = 6e-6, 61e9
OF_A_PASS = 10  # embedding, head, sampling
OF_A_LAYER = 2  # the fused block
OF_EXPERTS = 18  # of a layer: router, sort, gathering, sums
OF_AN_EXPERT = 1  # that runs
OF_A_READ = 125  # an expert that is not in memory: asked of a thread, read, waited for
OF_A_CUT = 15  # rows of one head that go, or stay: a policy is asked
# Numbers of one head's keys that are scored, and that are moved, while one operation starts: by what they are kept as.
SCORED = {"f16": 240, "int8": 130, "int4": 110}
MOVED = {"f16": 3000, "int8": 1200, "int4": 600}


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

    @property
    def operation_s(self) -> float:
        """Seconds until an operation computes, by what one core reaches."""
        return OPERATION_S * CORE_FLOAT_OPS_S * self.cores / self.float_ops_s

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
    operations: float = 0.0  # that are started one after the other


def pass_s(load: Load, machine: Machine, threads: int, rows: int = 1) -> float:
    """Seconds of one pass over `rows` rows: weights are read once for all, keys and products are each row's own."""
    each = _each_s(load, machine, threads, rows)
    return max(max(each["memory"], each["arithmetic"]) + each["operations"], each["storage"])


def bound(load: Load, machine: Machine, threads: int, rows: int = 1) -> str:
    """What a pass waits for most: "storage", "arithmetic", "memory" or "operations", which is their start."""
    each = _each_s(load, machine, threads, rows)
    storage = each.pop("storage")
    if storage >= max(each["memory"], each["arithmetic"]) + each["operations"]:
        return "storage"
    return max(each, key=lambda name: each[name])


def _each_s(load: Load, machine: Machine, threads: int, rows: int) -> dict[str, float]:
    """Seconds of a pass were it for one thing alone."""
    threads = max(1, min(threads, machine.cores))
    rate = min(machine.memory_bytes_s, machine.one_core_bytes_s * threads) * MEMORY_SHARE
    # Rows of one text share keys and values in tiles of some sixteen.
    moved = load.weight_bytes + load.kv_bytes * max(1.0, rows / 16) + load.streamed_bytes
    multiply = 2 * rows * (load.macs / machine.int8_ops_s + load.float_macs / machine.float_ops_s)
    multiply /= threads / machine.cores * COMPUTE_SHARE
    return {
        "storage": stored_s(load.streamed_bytes, machine),
        "arithmetic": multiply,
        "memory": moved / rate,
        "operations": load.operations * machine.operation_s,
    }


def stored_s(count: float, machine: Machine) -> float:
    """Seconds in which so many bytes are read from storage; writing is taken to be as fast."""
    return count / (machine.storage_bytes_s * STORAGE_SHARE)
