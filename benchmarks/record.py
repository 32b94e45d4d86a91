"""One measured row, and its record: one JSON line of `genmote.records` with its provenance."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.process import REPOSITORY
from genmote import records

RECORDS = Path(__file__).resolve().parent / "records"
SEED = 7  # of prompts and of the seeded weights
QUIET_CORES = 0.15  # what other programs may use before a timing is called disturbed
AT_LEAST, AT_MOST = "at least", "at most"


@dataclass(frozen=True)
class Row:
    """A named number: what was asked, what was measured, whether it is met.

    `value` is what `asked` and `aim` speak about: a ratio of ours to the peer's for a comparison, or a figure in
    `unit` on its own. `ours` and `peer` are medians of the samples; a comparison's `value` is the median of the
    ratios pair by pair. `value` None: not measured here, and `note` says why.
    """

    name: str
    measure: str
    value: float | None
    value_unit: str
    asked: float | None
    sense: str = AT_LEAST
    aim: float | None = None
    unit: str = ""
    ours: float | None = None
    ours_samples: list[float] = field(default_factory=list)
    peer_name: str | None = None
    peer: float | None = None
    peer_samples: list[float] = field(default_factory=list)
    threads: int | None = None
    model: str | None = None
    model_sha256: str | None = None
    ours_energy_mj: float | None = None
    peer_energy_mj: float | None = None
    seeds: int = 1  # trainings of ours, where the figure is of a model that was trained for it
    others_cores: float | None = None  # kept busy by other programs meanwhile
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the asked number is reached; None where nothing was asked or nothing measured."""
        if self.value is None or self.asked is None:
            return None
        return self.value >= self.asked if self.sense == AT_LEAST else self.value <= self.asked


def disturbed(others_cores: float | None) -> bool:
    """Whether other programs used so much that a timing should be taken again."""
    return others_cores is not None and others_cores > QUIET_CORES


def compare(ours: list[float], peers: list[float]) -> float:
    """Median of the ratios pair by pair: pairs ran next to each other, so a slow minute hits both."""
    return statistics.median(a / b for a, b in zip(ours, peers, strict=True))


@functools.cache
def sha256(path: Path) -> str:
    """Of a whole file; read once a run."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def device() -> dict[str, Any]:
    """The machine without its name on the network, and what tells processors apart whose names a host shortens."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    entry = dict(re.findall(r"^([^\t:\n]+)\s*:\s*(.*)$", text.split("\n\n")[0], re.MULTILINE))
    telling = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm")
    flags = (entry.get("flags") or entry.get("Features") or "").split()
    own = records.device()
    return own | {
        "name": own["cpu"],
        # A kernel's version, without the words that the one who built it adds.
        "system": " ".join((platform.system(), *re.findall(r"^\d+\.\d+", platform.release()))),
        "cpu_family": entry.get("cpu family"),
        "cpu_model": entry.get("model"),
        "cpu_cache": entry.get("cache size"),
        "cpu_flags": [flag for flag in telling if flag in flags],
    }


def commit() -> str:
    """The commit that ran, with a `+` where the package or the kernels differ from it; empty outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "genmote", "native")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def as_record(row: Row, *, machine: Mapping[str, Any], versions: Mapping[str, str], quick: bool) -> records.Record:
    """The row with its provenance."""
    values = dataclasses.asdict(row) | {"met": row.met, "quick": quick}
    provenance = {name: values.pop(name) for name in ("model_sha256", "threads")}
    energy = any(values[name] is not None for name in ("ours_energy_mj", "peer_energy_mj"))
    return records.Record(
        what=f"bench.{values.pop('measure')}",
        values=values,
        seed=SEED,
        energy="measured" if energy else "unavailable",
        device=machine,
        versions=versions,
        **provenance,
    )


def load(folder: Path = RECORDS) -> list[records.Record]:
    """All records of a folder, oldest first."""
    found = [entry for path in sorted(folder.glob("*.jsonl")) for entry in records.read(path)]
    return sorted(found, key=lambda entry: entry.time)
