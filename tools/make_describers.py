"""Make the models that genmote ships which describe signals: one encoder, and an adapter for each kind of signal.

    python tools/make_describers.py encoder sensors --ptbxl DIR --phone DIR --occupancy DIR --air DIR
    python tools/make_describers.py ecg motion home flows --ptbxl DIR --phone DIR --occupancy DIR --air DIR

Each DIR is a data set as `genmote describe-train` reads it (docs/describe.md). Each name is a step, and needs those
before it in the first line; those of the second line need one another in nothing, and can be run side by side. Where
`sensors` was made, the adapter that it was made with is of no use after: `tidy` takes it away and writes the cards.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from genmote.describe import connections, examples, labelled
from genmote.describe import file as parts_of
from genmote.signals import recordings

ZOO = Path(__file__).parents[1] / "genmote" / "zoo"
FOLDS = ("7", "8")  # of PTB-XL, that are judged
# What each step learns from, the licence of that, and its settings.
SETS = {
    "encoder": (("ptbxl", "watch", "phone", "occupancy"), "--each 0 --drawn 0.05 --encoder-steps 900 "
                "--encoder-batch 14 --projector-steps 0 --steps 0"),
    "sensors": (("ptbxl", "watch", "phone", "occupancy", "air"), "--from {encoder} --each 1 --drawn 0.2 "
                "--encoder-steps 0 --projector-steps 0 --steps 120"),
    "ecg": (("ptbxl",), "--from {sensors} --keep-encoder --each 1 --drawn 0.1 --steps 120"),
    "motion": (("watch", "phone"), "--from {sensors} --keep-encoder --each 1 --drawn 0.1 --steps 150"),
    "home": (("occupancy", "air"), "--from {sensors} --keep-encoder --each 2 --drawn 0.6 --steps 120"),
    "flows": (("flows",), "--from {sensors} --keep-encoder --drawn 0.1 --steps 60"),
}  # fmt: skip
ALWAYS = "--rank 4 --seed 0"
LICENCES = {
    "ptbxl": "PTB-XL (Wagner et al. 2020), CC BY 4.0",
    "watch": "SPAR (Burns et al. 2018, of seglearn), BSD-3-Clause",
    "phone": "accelerations of HyperIMU, MIT",
    "occupancy": "UCI Occupancy Detection (Candanedo 2016), CC BY 4.0",
    "air": "UCI Air Quality (De Vito 2008), CC BY 4.0",
    "flows": "connections drawn by genmote/describe/connections.py, of no data set",
}
TITLES = {
    "ecg": "Electrocardiograms of 12 leads: reports, five classes, rate and rhythm",
    "motion": "Motion of a watch and a phone: exercises, activities, repetitions",
    "home": "Climate of rooms and air of streets, and signals that no other model knows",
    "flows": "Connections of a network: normal traffic and four kinds of attack",
}
DRAWN = 600  # windows of connections


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=[*SETS, "tidy"])
    for name in ("ptbxl", "phone", "occupancy", "air"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--threads", default="1")
    chosen = parser.parse_args()
    for step in chosen.steps:
        if step == "tidy":
            tidy()
            continue
        command = ["genmote.cli", "describe-train", *sources(step, vars(chosen), parser), *words(step)]
        print(shlex.join(["python", "-m", *command]), flush=True)
        if status := subprocess.run([sys.executable, "-m", *command, "--threads", chosen.threads]).returncode:
            return status
    return 0


def place(step: str) -> Path:
    return ZOO / step / f"{step}.toml"


def words(step: str) -> list[str]:
    """The settings of a step."""
    sets, told = SETS[step]
    own = told.format(encoder=place("encoder"), sensors=place("sensors"))
    folds = ["--folds", *FOLDS] if "ptbxl" in sets else []
    licence = "; ".join(LICENCES[name] for name in sets)
    place(step).parent.mkdir(parents=True, exist_ok=True)
    return ["-o", str(place(step)), *own.split(), *ALWAYS.split(), *folds, "--licence", licence]


def sources(step: str, given: dict[str, Path | None], parser: argparse.ArgumentParser) -> list[str]:
    """What a step learns from, as describe-train takes it."""
    found = []
    for name in SETS[step][0]:
        if name == "flows":
            path = ZOO / "flows" / "flows.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            examples.write(path, labelled.examples(list(connections.windows(0, DRAWN)), each=2))
            found.append(str(path))
        elif name == "watch":
            found.append(f"{recordings.resolve('watch').parent}:watch")
        elif given[name] is None:
            parser.error(f"{step} learns from {name}: say with --{name} where that is")
        else:
            found.append(f"{given[name]}:{name}")
    return found


def tidy() -> None:
    """The encoder stays, and of each model the adapter; a card for each."""
    shutil.rmtree(ZOO / "encoder", ignore_errors=True)
    for path in (place("sensors"), ZOO / "sensors" / "sensors-adapter.gguf", ZOO / "flows" / "flows.npz"):
        path.unlink(missing_ok=True)
    if (made := ZOO / "sensors" / "sensors.md").exists():
        made.rename(ZOO / "sensors" / "card.md")
    for name in TITLES:
        if (made := ZOO / name / f"{name}.md").exists():
            (ZOO / name / "card.md").write_text(card(name, made.read_text("utf-8")), "utf-8")
            made.unlink()


def card(name: str, told: str) -> str:
    """A page about a model: what it is of, what it learnt from, how it is made again, what was measured."""
    parts = parts_of.read(place(name))
    rows = []
    for what, part in (("encoder, of all of them", parts.encoder), ("adapter", parts.adapter)):
        if part is not None:
            size = (place(name).parent / part.file).stat().st_size
            rows.append(f"| {what} | `{part.file}`, {size:,} bytes, sha256 `{part.sha256}` |")
    learnt = told.partition("\n\n")[2].partition("\n\n")[2]
    return f"""# {name}

{TITLES[name]}. Run it with `genmote describe`, `ask` and `classify`, `-m {name}`; the language model is smollm2-135m
(Apache-2.0), which is not part of it. What it says is no diagnosis, and of signals unlike those that it was trained on
it may say anything.

| | |
| --- | --- |
{chr(10).join(rows)}
| licence of what was learnt from | {parts.licence} |
| not for | decisions about a person's health or safety |

Made again by, in the source tree, with the extra `workbench`:

    python tools/make_describers.py encoder sensors {name} tidy --ptbxl DIR --phone DIR --occupancy DIR --air DIR

Of PTB-XL folds 7 and 8, of the others a fifth of the people and days, was held out of all training.

## Quality

By `python -m benchmarks --set describe --only shipped`:

<!-- bench:describe_shipped -->
<!-- /bench -->

## Training

{learnt}"""


if __name__ == "__main__":
    sys.exit(main())
