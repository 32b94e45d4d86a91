"""What describing costs on a device: memory and the time to the first token, of 10 s of an ECG of 12 leads."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import process
from benchmarks.bench import Bench
from benchmarks.record import AT_MOST, Row
from genmote.describe import file
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.runtime import footprint

SPARE_BYTES = 60 << 20  # beside the files and the KV cache
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def measure(bench: Bench) -> Iterator[Row]:
    found = file.find("ecg")
    files = [ModelFile.open(found.language), found.encoder]
    stored = sum(one.path.stat().st_size for one in files) + (found.adapter.stat().st_size if found.adapter else 0)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "ecg.csv"
        _recording(path)
        told: list[dict[str, Any]] = []
        for _ in range(bench.pick(5, 2)):
            words = ["describe", str(path), "-m", "ecg", "--threads", "1", "--json", "--sample-rate", "500"]
            told.append(process.python("genmote.cli", *words).json())
    busy = {"prompt_tokens": told[0]["prompt_tokens"], "decode_tokens": told[0]["decode_tokens"]}
    first = [one["first_token_ms"] / 1e3 for one in told]
    name = "first token of a report, from the signal on: 12 leads, 10 s at 500 Hz"
    yield Row(
        name=name, measure="describe_device", value=statistics.median(first), value_unit="s", asked=1.0, sense=AT_MOST,
        ours_samples=first, threads=1, details=busy,
    )  # fmt: skip
    rows = told[0]["prompt_tokens"] + told[0]["decode_tokens"]
    kv = footprint.kv_bytes(read_config(files[0]), "f16", rows)
    peak = statistics.median(one["peak_rss_bytes"] for one in told) - kv
    yield Row(
        name="memory of a report beyond the files and the KV cache: 12 leads, 10 s", measure="describe_device",
        value=(peak - stored) / 1e6, value_unit="MB", asked=SPARE_BYTES / 1e6, sense=AT_MOST, threads=1,
        details={"peak_rss_bytes": told[0]["peak_rss_bytes"], "files_bytes": stored, "kv_bytes": kv},
    )  # fmt: skip


def _recording(path: Path) -> None:
    """12 leads of one drawn heart, so that no data set is needed."""
    t = np.arange(5000) / 500
    phase = (t * 1.2) % 1
    beat = 1.2 * np.exp(-0.5 * ((phase - 0.3) / 0.012) ** 2) + 0.25 * np.exp(-0.5 * ((phase - 0.6) / 0.05) ** 2)
    random = np.random.default_rng(0)
    values = np.outer(beat, random.uniform(-1, 1.5, len(LEADS))) + 0.01 * random.normal(size=(len(t), len(LEADS)))
    np.savetxt(path, values, "%.4f", ",", header=",".join(f"{lead} (mV)" for lead in LEADS), comments="")
