"""Records: whatever is measured ends as one JSON line that says how it was had.

A record is a flat dictionary of ``values`` beside its provenance; ``docs/formats.md`` gives the schema. Tables, plots
and the README are drawn from records, never typed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genmote import __version__
from genmote.errors import SpecError

SCHEMA = 1
ENERGY = ("measured", "modelled", "unavailable")


@dataclass(frozen=True)
class Record:
    """One measurement.

    `what` names it ("bench.decode"); `values` holds figures whose keys carry their units (``decode_tokens_per_s``);
    `energy` says how any energy among them was had.
    """

    what: str
    values: Mapping[str, Any]
    model_sha256: str | None = None
    seed: int | None = None
    threads: int | None = None
    energy: str = "unavailable"
    device: Mapping[str, Any] = field(default_factory=lambda: device())
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    time: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        faults = []
        if not self.what:
            faults.append("what is empty, wanted a name such as bench.decode")
        if self.energy not in ENERGY:
            faults.append(f"energy={self.energy!r}, wanted one of {', '.join(ENERGY)}")
        bad = [key for key, value in self.values.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            faults.append(f"values {', '.join(bad)} are not finite: leave out what was not measured, or give null")
        if faults:
            raise SpecError("record: " + "; ".join(faults))

    def line(self) -> str:
        """The record as one line of JSON, without the line's end."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


def device() -> dict[str, Any]:
    """This machine: name, architecture, processor's model, cores that may be used, memory in bytes."""
    return {
        "name": platform.node(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Versions of genmote, Python and NumPy; NumPy's from its metadata, so that nothing heavy is loaded."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"genmote": __version__, "python": platform.python_version()}
    with contextlib.suppress(PackageNotFoundError):
        found["numpy"] = version("numpy")
    return found


def cpu_model() -> str:
    """The processor's own name, or the architecture's where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in lines.items()}
    return named.get("model name") or named.get("Model") or named.get("Hardware") or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on (a container or taskset may leave fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Bytes of memory in the machine, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def append(path: str | os.PathLike[str], record: Record) -> None:
    """Add `record` to the file at `path`: one write of one whole line, on the disk when this returns.

    Lines of several writers never mix. A torn line that a power cut left is closed first, so that it costs only itself.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (("\n" if torn else "") + record.line() + "\n").encode("utf-8")
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path}: the disk is full, the record was not kept whole")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a file, in order. A damaged line is left out with a warning; a newer schema is a `SpecError`."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                record = Record(**fields)
            except (ValueError, TypeError, SpecError):
                warnings.warn(f"{path}:{number}: not a record, left out", stacklevel=2)
                continue
            if record.schema > SCHEMA:
                raise SpecError(
                    f"{path}:{number}: record schema {record.schema}, this genmote reads up to {SCHEMA}: update it"
                )
            yield record
