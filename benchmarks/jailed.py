"""Run a contestant as a fresh process inside a control group with a memory limit, its files cold."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import REPOSITORY, ContestantError, busy_s
from genmote.device import jail
from genmote.device.cgroup import Limits
from genmote.device.jail import Report
from genmote.errors import UserError


@dataclass(frozen=True)
class Held:
    """What a finished process said, and how it fared within its limit.

    `others_cores` is how many cores all other programs kept busy meanwhile, None where the system does not tell.
    """

    output: str
    report: Report
    others_cores: float | None

    def json(self) -> Any:
        """The output's last line, or the whole of it, as a value."""
        text = self.output.strip()
        try:
            return json.loads(text)
        except ValueError:
            return json.loads(text.splitlines()[-1])

    def figures(self) -> dict[str, Any]:
        """The jail's figures that belong into a record."""
        usage = self.report.usage
        return {
            "cgroup_peak_bytes": usage.peak_bytes,
            "largest_process_bytes": self.report.peak_rss_bytes,
            "read_bytes": usage.read_bytes,
            "written_bytes": usage.written_bytes,
            "limit_hits": usage.limit_hits,
            "wall_s": self.report.wall_s,
            "cpu_s": self.report.cpu_s,
            "energy_j": self.report.energy.joules,
            "energy": self.report.energy.how,
        }


def run(
    command: Sequence[str],
    memory_bytes: int | None,
    *,
    drop: Sequence[Path],
    env: Mapping[str, str] | None = None,
    timeout_s: float = 600,
    errors: bool = False,
) -> Held:
    """Run `command` to its end within `memory_bytes`, the page cache of the files `drop` emptied first.

    `errors` puts standard error into the output. Raises `ContestantError` where no group can be made, where the command
    is killed for memory, fails, or takes longer than `timeout_s`.
    """
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    merged = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)} | dict(env or {})
    program = Path(command[0]).name
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy = busy_s()
        try:
            with _alarm(timeout_s, f"{program} took longer than {timeout_s:.0f} s"):
                report = jail.run(
                    command,
                    Limits(memory_bytes=memory_bytes),
                    drop=drop,
                    stdout=out,
                    stderr=out if errors else err,
                    env=merged,
                )
        except UserError as why:
            raise ContestantError(str(why)) from why
        others = None
        if busy is not None and (now := busy_s()) is not None:
            others = max(0.0, now - busy - report.cpu_s) / report.wall_s
        out.seek(0)
        output = out.read().decode(errors="replace")
        if report.usage.oom_kills:
            raise ContestantError(f"{program} was killed: it wanted more than {(memory_bytes or 0) / 1e6:.0f} MB")
        if report.status:
            err.seek(0)
            said = (err.read().decode(errors="replace") or output).strip().splitlines() or ["nothing said"]
            raise ContestantError(f"{program} exited with {report.status}: {said[-1][:300]}")
        return Held(output, report, others)


@contextmanager
def _alarm(seconds: float, why: str) -> Iterator[None]:
    """Ends the body with `ContestantError` after so long; the jail then ends its processes. Main thread only."""

    def late(number: int, frame: object) -> None:
        raise ContestantError(why)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def python(module: str, *arguments: str, memory_bytes: int | None, **options: Any) -> Held:
    """Run one of our modules in a fresh interpreter within `memory_bytes`, with the options of `run`."""
    return run([sys.executable, "-m", module, *arguments], memory_bytes, **options)
