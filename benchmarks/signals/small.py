"""How quick a generator of two million weights is, and how much memory it takes, in a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench, missing
from benchmarks.process import ContestantError, run
from benchmarks.record import AT_MOST, Row
from genmote.errors import GenmoteError
from genmote.generator import train
from genmote.generator.file import Form
from genmote.generator.layout import Layout
from genmote.models import requantise
from genmote.signals import coding
from genmote.signals.kinds import Series

FORM = Form(192, 5, 512)  # 2.0 million weights with the tables of 256 bins
STEPS, PATHS, HISTORY = 64, 16, 256
RATE = 100.0
TIMED = """
import json, sys, time
import numpy as np
from genmote.generator.model import Generator
from genmote.signals.kinds import Series
path, steps, paths, rows, rate = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
model = Generator.load(path, threads=1)
values = np.sin(np.arange(rows) / 7).astype(np.float32)[:, None]
history = Series("wave", values, rate, ("wave",), ("mV",))
wall, used = [], []
for _ in range(7):
    began, busy = time.perf_counter(), time.process_time()
    model.forecast(history, steps, paths=paths)
    wall.append(time.perf_counter() - began)
    used.append(time.process_time() - busy)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"wall_s": wall, "used_s": used, "peak_kb": peak}))
"""


def measure(bench: Bench) -> Iterator[Row]:
    """The time of a forecast on one thread, and the process's most resident memory."""
    name = f"a generator of {{:.1f}} million weights forecasts {STEPS} steps, {PATHS} ways, of {HISTORY} samples"
    try:
        with tempfile.TemporaryDirectory() as folder:
            path, weights = made(Path(folder))
            name = name.format(weights / 1e6)
            bench.say("forecasting with a small generator")
            words = [str(path), *map(str, (STEPS, PATHS, HISTORY, RATE))]
            ran = run([sys.executable, "-c", TIMED, *words])
            told = json.loads(ran.output)
    except (ContestantError, GenmoteError, OSError, ValueError) as why:
        yield missing(name.format(2.0), "signals_small", why, asked=100.0, unit="ms")
        return
    wall, used = (sorted(1e3 * s for s in told[key]) for key in ("wall_s", "used_s"))
    common = {"measure": "signals_small", "sense": AT_MOST, "threads": 1, "others_cores": ran.others_cores}
    note = f"processor time {used[len(used) // 2]:.0f} ms; weights drawn, not learnt"
    yield Row(name, value=wall[len(wall) // 2], value_unit="ms", asked=100.0, ours_samples=wall, note=note, **common)
    yield Row(
        "its process's most resident memory", value=told["peak_kb"] * 1024 / 1e6, value_unit="MB", asked=45.0, **common
    )


def made(folder: Path) -> tuple[Path, int]:
    """A model file in Q8_0 whose weights have learnt nothing, and how many these are."""
    values = np.sin(np.arange(1000) / 7).astype(np.float32)[:, None]
    series = Series("wave", values, RATE, ("wave",), ("mV",))
    layout = Layout(coding.fit("bins", [series]), False, 512)
    plain, small = folder / "plain.gguf", folder / "small.gguf"
    train.first_model(plain, FORM, layout, "drawn", 0)
    requantise.convert_type(plain, small, "Q8_0")
    from genmote.models.gguf import ModelFile

    return small, sum(int(np.prod(info.shape)) for info in ModelFile.open(small).tensors.values())
