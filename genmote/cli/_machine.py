"""The machine that a plan is for: a named board's profile, or this one's, measured."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from genmote.cli._output import Bar, note

if TYPE_CHECKING:
    from genmote.device.profile import Profile

QUICK_S = 0.1  # of each measurement, where device-probe has not been run


def recorded() -> Path:
    """Where device-probe leaves this machine's profile."""
    from genmote import home

    return home.cache_dir() / "this-machine.toml"


def this_machine(file: Path) -> Profile:
    """This machine's profile: as device-probe recorded it, or measured quickly now, the disk by reading `file`."""
    from genmote import records
    from genmote.device import probe, profile
    from genmote.errors import GenmoteError

    with contextlib.suppress(GenmoteError, OSError):
        found = profile.load(str(recorded()))
        if (found.chip, found.compute.cores) == (records.cpu_model(), records.usable_cores()):
            return found
    from genmote.cli.device_probe import kernels

    with Bar(unit_bytes=False) as bar:
        found = probe.probe(file.parent, kernels=kernels(None, QUICK_S), file=file, seconds=QUICK_S, progress=bar)
    load = os.getloadavg()[0]
    busy = f" (other work runs here, load {load:.1f}: too low)" if load > found.compute.cores / 2 else ""
    note(f"plan: this machine was measured in a second{busy}; genmote device-probe does it better and is remembered")
    return found


def remember(text: str) -> None:
    """Keep this machine's profile for later plans, where the cache folder can be written."""
    from genmote import home

    path = recorded()
    with contextlib.suppress(OSError):
        if home.usable(path.parent):
            with home.atomic_write(path, "w") as out:
                out.write(text)
