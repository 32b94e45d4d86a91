"""Profiles of devices: what a board has, each figure with its source. ``profiles/NAME.toml`` is the device NAME."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from genmote.errors import SpecError
from genmote.registry import near
from genmote.spec import dataclass, from_toml, setting

FOLDER = Path(__file__).parent / "profiles"
MIB = 1 << 20
Architecture = Literal["aarch64", "x86_64", "riscv64", "armv7l", "xtensa", "armv7em", "other"]


def _positive(part: object, *names: str) -> Iterator[str]:
    for name in names:
        value = getattr(part, name)
        if value is not None and not value > 0:
            yield f"{name}={value:g}, wanted a number above 0"


def _told(source: str) -> Iterator[str]:
    if not source.strip():
        yield "source is empty, wanted where the figures are from"


@dataclass(frozen=True, kw_only=True)
class Memory:
    total_mib: int = setting("memory on the board, MiB")
    usable_mib: int = setting("what the system leaves for one program, MiB")
    source: str = setting("where the figures are from")

    def faults(self) -> Iterable[str]:
        yield from _positive(self, "total_mib", "usable_mib")
        if self.usable_mib > self.total_mib:
            yield f"usable_mib={self.usable_mib}, wanted at most total_mib={self.total_mib}"
        yield from _told(self.source)


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    read_gb_s: float = setting("memory read rate of all cores together, GB/s: what bounds decoding")
    one_core_gb_s: float | None = setting("the same of one core", default=None)
    peak_gb_s: float | None = setting("what the memory's pins could carry", default=None)
    source: str = setting("where the figures are from")

    def faults(self) -> Iterable[str]:
        yield from _positive(self, "read_gb_s", "one_core_gb_s", "peak_gb_s")
        if self.peak_gb_s is not None and self.read_gb_s > self.peak_gb_s:
            yield f"read_gb_s={self.read_gb_s:g}, wanted at most peak_gb_s={self.peak_gb_s:g}"
        yield from _told(self.source)


@dataclass(frozen=True, kw_only=True)
class Compute:
    cores: int = setting("processor cores that a program may use")
    isa: str = setting("kernels that run there, as GENMOTE_ISA names them")
    f32_gflops: float = setting("peak float32 operations of all cores, 10^9/s; a multiply-add counts two")
    int8_gops: float = setting("peak int8 operations of all cores, 10^9/s; a multiply-add counts two")
    source: str = setting("where the figures are from")

    def faults(self) -> Iterable[str]:
        yield from _positive(self, "cores", "f32_gflops", "int8_gops")
        yield from _told(self.source)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    kind: str = setting("what it is programmed with: cuda, npu")
    memory_gb_s: float = setting("its memory's bandwidth, GB/s")
    f16_gflops: float | None = setting("peak float16 operations, 10^9/s", default=None)
    int8_gops: float | None = setting("peak int8 operations, dense, 10^9/s", default=None)
    source: str = setting("where the figures are from")

    def faults(self) -> Iterable[str]:
        yield from _positive(self, "memory_gb_s", "f16_gflops", "int8_gops")
        yield from _told(self.source)


@dataclass(frozen=True, kw_only=True)
class Storage:
    kind: str = setting("microSD, eMMC, UFS, NVMe, flash")
    read_mb_s: float = setting("sequential read rate, MB/s")
    source: str = setting("where the figures are from")

    def faults(self) -> Iterable[str]:
        yield from _positive(self, "read_mb_s")
        yield from _told(self.source)


@dataclass(frozen=True, kw_only=True)
class Network:
    kind: str = setting("the fastest link that the board has")
    mbit_s: float = setting("what it carries for a program, Mbit/s")
    source: str = setting("where the figures are from")

    def faults(self) -> Iterable[str]:
        yield from _positive(self, "mbit_s")
        yield from _told(self.source)


@dataclass(frozen=True, kw_only=True)
class Power:
    idle_w: float = setting("whole board, nothing running, W")
    load_w: float = setting("whole board, all cores busy, W")
    source: str = setting("where the figures are from")

    def faults(self) -> Iterable[str]:
        yield from _positive(self, "idle_w", "load_w")
        if self.idle_w > self.load_w:
            yield f"idle_w={self.idle_w:g}, wanted at most load_w={self.load_w:g}"
        yield from _told(self.source)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How device-probe came by a profile's figures."""

    seconds: float = setting("time of each measurement, s")
    load: float = setting("programs that ran or waited for a core in the minute before, on average")

    def faults(self) -> Iterable[str]:
        yield from _positive(self, "seconds")
        if not self.load >= 0:
            yield f"load={self.load:g}, wanted a number from 0"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A device. `refused` says why no model runs there, for classes that are too small."""

    title: str = setting("the device's full name")
    chip: str = setting("its processor")
    arch: Architecture = setting("its architecture")
    memory: Memory = setting("memory")
    bandwidth: Bandwidth = setting("memory bandwidth")
    compute: Compute = setting("processor cores")
    storage: Storage = setting("where models lie")
    network: Network | None = setting("its link", default=None)
    power: Power | None = setting("what it draws", default=None)
    accelerator: Accelerator | None = setting("a GPU or NPU", default=None)
    refused: str | None = setting("why genmote does not run there", default=None)
    measured: Measured | None = setting("how device-probe measured it", default=None)

    def faults(self) -> Iterable[str]:
        if not self.title.strip():
            yield "title is empty, wanted the device's full name"

    @property
    def under_load(self) -> bool:
        """Whether other programs had the cores when it was measured: its figures are too low."""
        return self.measured is not None and self.measured.load > self.compute.cores / 2

    @property
    def how_measured(self) -> str:
        """In words: ``measured for 2 s each, at a load of 0.31 on 2 cores``."""
        if self.measured is None:
            return "not told how it was measured"
        return (
            f"measured for {self.measured.seconds:g} s each, at a load of {self.measured.load:g} on "
            f"{self.compute.cores} core{'s' * (self.compute.cores != 1)}"
        )

    @property
    def memory_bytes(self) -> int:
        return self.memory.total_mib * MIB

    @property
    def usable_bytes(self) -> int:
        """The default memory budget on this device, bytes."""
        return self.memory.usable_mib * MIB


def names() -> list[str]:
    """The named devices."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str | os.PathLike[str]) -> Profile:
    """The profile of a named device, or of a TOML file (a path, as device-probe writes it).

    Raises SpecError for an unknown name and for a file with faults, all of them at once.
    """
    text = os.fspath(name)
    if text.endswith(".toml") or os.sep in text:
        return from_toml(Profile, text)
    wanted = text.lower().replace("_", "-")
    known = names()
    if wanted not in known:
        raise SpecError(
            f"no device is called {text!r}{near(wanted, known)}; see genmote devices, or give a profile's path (.toml)"
        )
    return from_toml(Profile, FOLDER / f"{wanted}.toml")


def runnable(name: str | os.PathLike[str]) -> Profile:
    """The profile of a device on which models run; a device that is too small raises SpecError with the reason."""
    profile = load(name)
    if profile.refused is not None:
        raise SpecError(f"{os.fspath(name)}: {profile.refused}")
    return profile
