"""What GPTQ takes on SmolLM2: minutes, the text that it learns from included, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks import process
from benchmarks.bench import Bench, about, missing
from benchmarks.compress import sides
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row

SOURCE = "smollm2-q4_1"
MINUTES, GIGABYTES = 5.0, 3.0


def measure(bench: Bench) -> Iterator[Row]:
    """One run with a seed that no run had before, so that its text is written anew."""
    name = "quantising SmolLM2-135M with GPTQ, its text included"
    out = sides.FOLDER / "cost.gguf"
    try:
        sides.FOLDER.mkdir(parents=True, exist_ok=True)
        bench.say(name)
        seed = str(int(time.time()))
        words = ["compress", str(bench.file(SOURCE)), "-o", str(out), "--method", "gptq", "--type", "Q4_0", "--json"]
        ran = process.python("genmote.cli", *words, "--seed", seed, timeout_s=sides.LONG_S)
    except ContestantError as why:
        yield missing(f"{name}: time", "compress_cost", why, asked=MINUTES, sense=AT_MOST, unit="minutes")
        yield missing(f"{name}: peak memory", "compress_cost", why, asked=GIGABYTES, sense=AT_MOST, unit="GB")
        return
    out.unlink(missing_ok=True)
    common = about(SOURCE) | {"threads": bench.cores, "others_cores": ran.others_cores, "measure": "compress_cost"}
    minutes, peak = ran.wall_ms / 60e3, ran.peak_rss_bytes / 1e9
    yield Row(f"{name}: time", value=minutes, value_unit="minutes", asked=MINUTES, sense=AT_MOST, **common)
    yield Row(f"{name}: peak memory", value=peak, value_unit="GB", asked=GIGABYTES, sense=AT_MOST, **common)
