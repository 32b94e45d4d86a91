"""Measure genmote beside its peers and keep the records.

    python -m benchmarks [--set speed|memory|compress|signals|tune|describe] [--quick] [--only MEASURE,...] [--seeds N]
        [--no-record] [--json]

Six sets: `speed` (`benchmarks/measures/`), `memory` (`benchmarks/fit/`), whose contestants run in control groups,
`compress` (`benchmarks/compress/`), which keeps what takes long, `signals` (`benchmarks/signals/`), `tune`
(`benchmarks/tune/`), and `describe` (`benchmarks/describe/`).
`--quick` (about three minutes once the peers are built) asks the same questions with fewer repeats. The peers are
built on the first run, which takes minutes. Every number that was asked for prints one line: asked, measured, met or
not. The exit status is 0 also where a number is missed: this is a measuring instrument, not a test.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import compress, describe, fit, measures, peers, record, signals, tune
from benchmarks.bench import Bench
from benchmarks.record import Row, disturbed
from benchmarks.tables import figure
from genmote import records

# llama.cpp builds that a set needs
VARIANTS: dict[str, Iterable[str]] = {"speed": peers.VARIANTS, "signals": (), "tune": (), "describe": ()}
SETS = {"speed": measures, "memory": fit, "compress": compress, "signals": signals, "tune": tune, "describe": describe}


def available(name: str = "speed") -> list[str]:
    """The measures of a set, by their files' names: the modules that have a `measure`."""
    package = SETS[name]
    found = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted(each for each in found if "\ndef measure(" in (Path(package.__path__[0]) / f"{each}.py").read_text())


def prepare(quick: bool, variants: Iterable[str] = peers.VARIANTS) -> Bench:
    """Build or find the peers."""
    bench = Bench(quick=quick, cores=len(os.sched_getaffinity(0)))
    for variant in variants:
        try:
            bench.peers[variant] = peers.build(variant, jobs=bench.cores)
        except peers.PeerError as why:
            bench.absent[variant] = str(why)
    return bench


def versions(bench: Bench) -> dict[str, str]:
    """Versions of everything that ran."""
    found = records.versions() | {"commit": record.commit()}
    found |= {f"llama.cpp {name}": f"{peer.version}; {peer.compiler}" for name, peer in bench.peers.items()}
    if importlib.util.find_spec("xllamacpp"):
        found["xllamacpp"] = importlib.metadata.version("xllamacpp")
    return found


def line(row: Row) -> str:
    """A row for people: met or not, asked, measured, the two sides."""
    verdict = {True: "met   ", False: "MISSED", None: "      "}[row.met]
    if row.value is None:
        return f"  -     {row.name}: not measured ({row.note})"
    asked = f", asked {row.sense} {row.asked:g}" if row.asked is not None else ""
    aim = f", aim {row.aim:g}" if row.aim is not None else ""
    peer = f" against {row.peer:.4g}" if row.peer is not None else ""
    sides = (
        f" [{row.ours:.4g}{peer} {row.unit}]" if row.ours is not None and (peer or row.unit != row.value_unit) else ""
    )
    busy = f" (disturbed: other programs used {row.others_cores:.1f} cores)" if disturbed(row.others_cores) else ""
    return f"  {verdict} {row.name}: {figure(row.value, row.value_unit)}{asked}{aim}{sides}{busy}"


def record_path(machine: Mapping[str, Any]) -> Path:
    """Where a run's records go: one file a run, named by date and CPU."""
    cpu = re.sub(r"[^a-z0-9]+", "-", str(machine["cpu"]).lower()).strip("-")
    return record.RECORDS / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{cpu}.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure genmote beside its peers.")
    parser.add_argument("--set", choices=SETS, default="speed", help="which measures (default: speed)")
    parser.add_argument("--quick", action="store_true", help="fewer repeats; about three minutes")
    every = "; ".join(f"{name}: {','.join(available(name))}" for name in SETS)
    parser.add_argument("--only", help=f"measures to run, comma-separated, as NAME or NAME:PART+PART ({every})")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each model that is trained (default: 1)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--json", action="store_true", help="print the records instead of lines")
    chosen = parser.parse_args(arguments)
    known = available(chosen.set)
    asked = (
        [each.partition(":")[::2] for each in chosen.only.split(",")] if chosen.only else [(each, "") for each in known]
    )
    names = [name for name, _ in asked]
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no measure {unknown[0]!r} in the set {chosen.set}; there are {', '.join(known)}")
    bench = prepare(chosen.quick, VARIANTS.get(chosen.set, ("avx512",)))
    bench.seeds = max(1, chosen.seeds)
    started = time.monotonic()
    machine, ran = record.device(), versions(bench)
    target = record_path(machine)
    rows: list[Row] = []
    for name, parts in asked:
        bench.parts = tuple(filter(None, parts.split("+")))
        for row in importlib.import_module(f"{SETS[chosen.set].__name__}.{name}").measure(bench):
            rows.append(row)
            entry = record.as_record(row, machine=machine, versions=ran, quick=chosen.quick)
            if not chosen.no_record:
                records.append(target, entry)
            print(entry.line() if chosen.json else line(row), flush=True)
    met, missed = sum(row.met is True for row in rows), sum(row.met is False for row in rows)
    bench.say(f"{met} met, {missed} missed, {len(rows) - met - missed} told, {time.monotonic() - started:.0f} s")
    if not chosen.no_record:
        bench.say(f"records in {target.relative_to(record.RECORDS.parent.parent)}")
    return 0


def guarded() -> int:
    """`main`, with Ctrl-C ending in one line and status 130."""
    try:
        return main()
    except KeyboardInterrupt:
        print("bench: stopped; what was measured so far is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(guarded())
