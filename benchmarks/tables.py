"""Write the tables of the README and the documentation from the records.

    python -m benchmarks.tables FILE.md ... [--check]

A table stands between `<!-- bench:NAME -->` and `<!-- /bench -->`, NAME being a measure (`decode`, `memory`, …),
several of them with commas, `speed` (the whole speed set), `fit` (the memory set), `compress`, `signals`, `tune` or
`describe` (those sets). Of each row the newest record of each CPU is shown. `--check` changes nothing and exits with 1
where a file is not what the records say.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import record
from genmote.records import Record

BLOCK = re.compile(r"(<!-- bench:([a-z_,]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
HEADER = "| what | ours | peer | measured | asked | |\n| --- | ---: | ---: | ---: | ---: | --- |\n"


def latest(found: Iterable[Record]) -> list[Record]:
    """The newest record of each row and CPU; a figure before none, more trainings before fewer, undisturbed before
    disturbed, a full run before a quick one."""
    chosen: dict[tuple[str, str], Record] = {}

    def rank(entry: Record) -> tuple[bool, int, bool, bool, str]:
        told = entry.values
        quiet = not record.disturbed(told["others_cores"])
        return told["value"] is not None, told.get("seeds", 1), quiet, not told["quick"], entry.time

    for entry in sorted(found, key=rank):
        key = (str(entry.values["name"]), cpu_name(entry))
        chosen[key] = entry
    return list(chosen.values())


def cpu_name(entry: Record) -> str:
    """The CPU of a record as a table's title names it."""
    device = entry.device
    told = [flag for flag in ("amx_int8", "avx512_vnni", "avx2", "i8mm", "asimddp") if flag in device["cpu_flags"]]
    number = f" (family {device['cpu_family']}, model {device['cpu_model']})" if device.get("cpu_family") else ""
    return f"{device['cpu']}{number}, {device['cores']} cores, {told[0] if told else device['machine']}"


def figure(value: Any, unit: str = "") -> str:
    """Three or four digits, with the unit where there is one."""
    if value is None:
        return ""
    text = f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"  # 999.9 would be 1e+03
    return f"{text} {unit}".strip()


def failed_since(entry: Record, found: Iterable[Record]) -> bool:
    """Whether a later run on this CPU could not measure the row."""
    name, cpu = entry.values["name"], cpu_name(entry)
    return any(
        each.values["value"] is None and each.time > entry.time
        for each in found
        if each.values["name"] == name and cpu_name(each) == cpu
    )


def line(entry: Record, *, stale: bool = False) -> str:
    """One row of a table; `stale`: a later run could not measure it."""
    told = entry.values
    value_unit = {"x": "x"}.get(told["value_unit"], told["value_unit"])
    sides = told["unit"] != told["value_unit"] or told["peer"] is not None
    ours, seeds = figure(told["ours"], told["unit"]) if sides else "", told.get("seeds", 1)
    if seeds > 1 and (each := told["ours_samples"]):
        ours = f"{figure(told['ours'])} ({figure(min(each))} to {figure(max(each))}) {told['unit']}".strip()
    asked = f"{told['sense']} {figure(told['asked'])}" if told["asked"] is not None else ""
    if told["aim"] is not None:
        asked = f"{asked} (aim {figure(told['aim'])})".strip()
    measured = figure(told["value"], value_unit) if told["value"] is not None else f"not measured: {told['note']}"
    if record.disturbed(told["others_cores"]) and seeds == 1:  # how well a model does is not a matter of time
        measured += " (disturbed)"
    if stale:
        measured += " (not measured again since)"
    verdict = {True: "met", False: "**missed**", None: ""}[told["met"]]
    return f"| {told['name']} | {ours} | {figure(told['peer'])} | {measured} | {asked} | {verdict} |\n"


def set_of(entry: Record) -> str:
    """The set that a record belongs to: the measures of the other sets begin with its name."""
    named = entry.what.removeprefix("bench.").split("_")[0]
    return named if named in ("fit", "compress", "signals", "tune", "describe") else "speed"


def table(names: str, found: Iterable[Record]) -> str:
    """The tables of the named measures, one a CPU, with what they were measured on."""
    found, wanted = list(found), set(names.split(","))
    picked = [entry for entry in latest(found) if {entry.what.removeprefix("bench."), set_of(entry)} & wanted]
    if not picked:
        return "No record yet: `make bench` makes them, or `make bench-memory`, `bench-compress`, `bench-signals`.\n"
    text = ""
    for cpu in dict.fromkeys(cpu_name(entry) for entry in picked):
        mine = [entry for entry in picked if cpu_name(entry) == cpu]
        newest = max(mine, key=lambda entry: entry.time)
        commits = list(dict.fromkeys(e.versions["commit"] for e in mine if e.versions.get("commit")))
        named = {str(entry.values["peer_name"]) for entry in mine if entry.values["peer_name"]}
        peers = sorted(name for name in named if "llama" in name)  # not "one stream of ours" or "plain read"
        text += f"{cpu}; {newest.time[:10]}, genmote {newest.versions['genmote']}"
        text += f" ({', '.join(commits)})" if commits else ""
        text += f"; peers: {'; '.join(peers)}" if peers else ""
        rows = "".join(line(entry, stale=failed_since(entry, found)) for entry in mine)
        text += f"; energy {newest.energy}.\n\n{HEADER}{rows}\n"
    return text.rstrip("\n") + "\n"


def fill(text: str, found: list[Record]) -> str:
    """A document with every marked block drawn anew."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{table(block[2], found)}\n{block[3]}", text)


def main(arguments: list[str] | None = None) -> int:
    """Fill or check the named files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description="Draw tables from the records.")
    parser.add_argument("file", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where a file is stale")
    chosen = parser.parse_args(arguments)
    found, stale = record.load(), False
    for path in chosen.file:
        text = path.read_text()
        fresh = fill(text, found)
        if fresh == text:
            continue
        stale = True
        if chosen.check:
            print(f"{path}: its tables are not what the records say; run python -m benchmarks.tables {path}")
        else:
            path.write_text(fresh)
    return int(stale and chosen.check)


if __name__ == "__main__":
    sys.exit(main())
