"""The machine that a plan is for: a named board's profile, or this one's, measured."""

from __future__ import annotations

import contextlib
from dataclasses import replace
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
    """This machine's profile: as device-probe recorded it, or measured quickly now, the disk by reading `file`.

    Where other programs had the cores meanwhile its title says so, and with it all that is told by its figures.
    """
    found = remembered()
    if found is None:
        from genmote.cli.device_probe import kernels
        from genmote.device import probe

        with Bar(unit_bytes=False) as bar:
            found = probe.probe(file.parent, kernels=kernels(None, QUICK_S), file=file, seconds=QUICK_S, progress=bar)
        note("plan: this machine was measured in a second; genmote device-probe does it better and is remembered")
    return replace(found, title=f"{found.title} (figures taken under load: too low)") if found.under_load else found


def remembered() -> Profile | None:
    """What device-probe recorded of this machine, where it did."""
    from genmote import records
    from genmote.device import profile
    from genmote.errors import GenmoteError

    with contextlib.suppress(GenmoteError, OSError):
        found = profile.load(str(recorded()))
        if (found.chip, found.compute.cores) == (records.cpu_model(), records.usable_cores()):
            return found
    return None


def remember(made: Profile, *, force: bool = False) -> str:
    """Keep this machine's profile for later plans, but in place of a better one only by `force`.

    Better is what was measured with the cores free, then what was measured longer. Gives what was done, in words.
    """
    from genmote import home
    from genmote.spec import to_toml

    before, path = remembered(), recorded()
    if before is not None and _worth(made) < _worth(before) and not force:
        return (
            f"not remembered: plans keep to the better one of before ({before.how_measured}; this one was "
            f"{made.how_measured}); --force takes this one"
        )
    with contextlib.suppress(OSError):
        if home.usable(path.parent):
            with home.atomic_write(path, "w") as out:
                out.write(to_toml(made))
            return f"remembered for plans, {made.how_measured}"
    return f"not remembered: {path.parent} cannot be written"


def _worth(made: Profile) -> tuple[bool, float]:
    return not made.under_load, 0.0 if made.measured is None else made.measured.seconds
