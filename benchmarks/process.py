"""Run a contestant as a fresh process and say what it took: output, wall time, peak memory, energy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genmote.device.meter import Meter

REPOSITORY = Path(__file__).resolve().parent.parent


class ContestantError(Exception):
    """A contestant failed or took too long; its row then says so, and the other rows go on."""


@dataclass(frozen=True)
class Ran:
    """What a finished process left behind.

    `peak_rss_bytes` is the kernel's high-water mark of resident pages; `others_cores` is how many cores all other
    programs kept busy meanwhile (0 on a quiet machine), None where the system does not tell.
    """

    output: str
    wall_ms: float
    peak_rss_bytes: int
    energy_mj: float | None
    others_cores: float | None

    def json(self) -> Any:
        """The output's last line that is a JSON object or the whole of it, as a value."""
        text = self.output.strip()
        try:
            return json.loads(text)
        except ValueError:
            return json.loads(text.splitlines()[-1])


def run(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 900, errors: bool = False
) -> Ran:
    """Run `command` to its end.

    `env` is added to this process's environment; `errors` puts standard error into the output. Raises
    `ContestantError` when it cannot start, exits with another status than 0, or takes longer than `timeout_s`.
    """
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    merged = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict(env or {})
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy, meter = busy_s(), Meter()
        meter.start()
        started = time.perf_counter()
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out if errors else err, env=merged
            )
        except OSError as why:
            meter.stop()
            raise ContestantError(f"{Path(command[0]).name} did not start: {why}") from why
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
            wall_ms, after = (time.perf_counter() - started) * 1e3, busy_s()  # a meter takes its time to stop
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            timer.cancel()
            joules = meter.stop().energy.joules
        child.returncode = os.waitstatus_to_exitcode(status)
        others = None
        if busy is not None and after is not None:
            own_s = usage.ru_utime + usage.ru_stime
            others = max(0.0, after - busy - own_s) / (wall_ms / 1e3)
        out.seek(0)
        output = out.read().decode(errors="replace")
        if late.is_set():
            raise ContestantError(f"{Path(command[0]).name} took longer than {timeout_s:.0f} s")
        if child.returncode:
            err.seek(0)
            said = (err.read().decode(errors="replace") or output).strip().splitlines() or ["nothing said"]
            raise ContestantError(f"{Path(command[0]).name} exited with {child.returncode}: {said[-1][:300]}")
        return Ran(output, wall_ms, usage.ru_maxrss * 1024, None if joules is None else joules * 1e3, others)


def busy_s() -> float | None:
    """Seconds of work that all cores have done since the machine started, None where the system does not tell."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks[:8]) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def python(module: str, *arguments: str, **options: Any) -> Ran:
    """Run one of our modules in a fresh interpreter, with the options of `run`."""
    return run([sys.executable, "-m", module, *arguments], **options)


@contextmanager
def spinning(core: int, *, limit_s: float = 600) -> Iterator[None]:
    """Another program that does nothing but keep one core busy, pinned there, while the body runs.

    It also ends by itself after `limit_s`, so that nothing is left behind if this process dies.
    """
    loop = f"import os,time\nos.sched_setaffinity(0,{{{core}}})\nend=time.monotonic()+{limit_s}\n"
    loop += "while time.monotonic()<end: pass\n"
    spinner = subprocess.Popen([sys.executable, "-c", loop])
    try:
        time.sleep(0.3)  # let it start, so that all of the body is disturbed
        yield
    finally:
        spinner.kill()
        spinner.wait()
