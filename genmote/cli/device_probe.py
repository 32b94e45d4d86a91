"""Measure this machine: memory bandwidth, float32 and int8 products, disk, as a profile that --device takes.

    genmote device-probe
    genmote device-probe -o my-board.toml

It takes about 15 seconds, on a machine that does nothing else. The disk is measured by reading the largest model that
is here, or --file, past the page cache; where there is none, a test file of 192 MiB is written and removed. Power and
network are not measured: add a [power] and a [network] table to the file by hand, as `genmote devices NAME` shows
them. What was measured is remembered, but with --output: `genmote plan` expects this machine's speeds by it. It takes
no better one's place, measured longer or without other programs on the cores, but with --force.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Bar, Output, check_place, note, save
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.device.probe import Kernels

_LARGE = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    output: Path | None = setting("write the profile (.toml) here alone", default=None, short="-o")
    force: bool = setting("remember it though a better one is remembered", default=False)
    file: Path | None = setting("a large file that is read to measure the disk", default=None)
    folder: Path = setting("where a test file may be written", default=Path("."))
    isa: str | None = setting("instruction set of the native kernels (default: the best here)", default=None)
    seconds: float = setting("time for each measurement", default=2.0)

    def faults(self) -> Iterable[str]:
        if not 0.01 <= self.seconds <= 60:
            yield f"seconds={self.seconds:g}, wanted 0.01 to 60"
        if self.force and self.output is not None:
            yield "force: with --output nothing is remembered; leave one of them out"


def run(settings: Settings, out: Output) -> None:
    from genmote import records
    from genmote.cli._machine import remember
    from genmote.cli.devices import detail
    from genmote.device import profile
    from genmote.device.probe import probe
    from genmote.spec import to_toml

    if settings.output is not None:
        check_place(settings.output, "--output")
    load, cores = os.getloadavg()[0], records.usable_cores()
    if load > cores / 2:
        note(f"device-probe: other work runs here (load {load:.1f} on {cores} cores): the figures will be too low")
    with Bar(unit_bytes=False) as bar:
        found = probe(
            settings.folder,
            kernels=kernels(settings.isa, settings.seconds),
            file=settings.file or _model(),
            seconds=settings.seconds,
            progress=bar,
        )
    text = detail(found)
    if settings.output is None:
        note(f"device-probe: {remember(found, force=settings.force)}")
    else:
        save(settings.output, to_toml(found), "--output")
        profile.load(str(settings.output.absolute()))
        text += f"\n\nprofile: {settings.output}; use it with --device {settings.output}"
    out.result({**asdict(found), "profile": settings.output}, text)


def _model() -> Path | None:
    """The largest model that is here."""
    from genmote.models import store

    sizes = {entry.path: entry.path.stat().st_size for entry in store.list_models() if entry.path.is_file()}
    return max((path for path in sizes if sizes[path] >= _LARGE), key=lambda path: sizes[path], default=None)


def kernels(isa: str | None, seconds: float) -> Kernels | None:
    """The native kernels as the probe wants them; None where they were not built."""
    import importlib.util

    if isa is None and importlib.util.find_spec("genmote.ops._native") is None:
        return None
    return _Native(isa, seconds)


class _Native:
    """Rates of the native linear layer: in the cache for operations, beyond it for memory."""

    def __init__(self, isa: str | None, seconds: float) -> None:
        from genmote import ops

        self._isa, self._seconds = isa, seconds
        self.isa = str(getattr(ops.load("native", isa=isa, threads=1), "isa", isa))

    def int8_gops(self, threads: int) -> float:
        return 2 * self._macs_per_s(threads, rows=256 * threads, cols=1024, batch=32) / 1e9

    def read_gb_s(self, threads: int) -> float:
        from genmote.device.probe import test_bytes

        cols = 4096
        rows = max(64, min(32768, test_bytes() // cols // 16 * 16))
        return self._macs_per_s(threads, rows, cols, batch=1) * 34 / 32 / 1e9  # a Q8_0 block: 34 bytes of 32 weights

    def _macs_per_s(self, threads: int, rows: int, cols: int, batch: int) -> float:
        import time

        import numpy as np

        from genmote import ops
        from genmote.ops.layer import Linear

        engine: Any = ops.load("native", isa=self._isa, threads=threads)
        block = np.zeros(34, np.uint8)
        block[1], block[2:] = 0x2C, 1  # float16 1/16, then weights of 1
        layer = Linear(engine.matrix("Q8_0", (rows, cols), np.tile(block, rows * cols // 32)))
        x = np.ones((batch, cols), np.float32)
        best, end = 0.0, time.monotonic() + self._seconds
        while not best or time.monotonic() < end:
            began = time.perf_counter()
            engine.linear(x, layer)
            best = max(best, rows * cols * batch / (time.perf_counter() - began))
        return best
