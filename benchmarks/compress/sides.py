"""Both sides of a compression: files made once and kept under build/, perplexities taken alike.

Everything that takes long is kept in `FOLDER` under a name that says what it depends on: ours on the recipe and on the
code, the peer's on its command. Neither side sees any of the text that is measured on: both learn from the same text,
which the model has written itself; but `round` reads more of such text than what the importance matrix is made of.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.bench import Bench
from benchmarks.measures.perplexity import CONTEXT, corpus
from benchmarks.process import REPOSITORY, ContestantError
from benchmarks.record import sha256

FOLDER = REPOSITORY / "build" / "bench-compress"
RECIPES = Path(__file__).resolve().parent / "recipes"
LONG_S = 7200.0
PEER = "avx512"


@dataclass(frozen=True)
class Made:
    """A file, and what making it took."""

    path: Path
    seconds: float
    peak_rss_bytes: int
    told: Mapping[str, Any]  # what `compress --json` told

    @property
    def megabytes(self) -> float:
        return self.path.stat().st_size / 1e6


def windows(bench: Bench) -> int:
    """Windows of text that perplexity is measured on."""
    return bench.pick(40, 8)


def learned(bench: Bench) -> int:
    """Windows of text that both sides learn from."""
    return bench.pick(32, 16)


def recipe(name: str) -> dict[str, Any]:
    """A recipe of `RECIPES`. Raises `ContestantError` where there is none."""
    path = RECIPES / f"{name}.toml"
    if not path.exists():
        raise ContestantError(f"no recipe {name} yet")
    return tomllib.loads(path.read_text())


def ours(bench: Bench, source: str, title: str, words: Sequence[str], recipe: Path | None = None) -> Made:
    """`genmote compress` of a model of `files.RECIPES` with these flags, and with a recipe's file."""
    model = bench.file(source)
    parts = [sha256(model), *words, "" if recipe is None else recipe.read_text(), code(), str(learned(bench))]
    stem = f"{source}-{title}-{digest(parts)}"
    out, note = FOLDER / f"{stem}.gguf", FOLDER / f"{stem}.json"
    if not (out.exists() and note.exists()):
        FOLDER.mkdir(parents=True, exist_ok=True)
        bench.say(f"compressing {source}: {title}")
        given = ["--recipe", str(recipe)] if recipe is not None else []
        command = ["compress", str(model), "-o", str(out), *words, *given, "--samples", str(learned(bench)), "--json"]
        ran = process.python("genmote.cli", *command, timeout_s=LONG_S)
        told = ran.json()
        note.write_text(json.dumps({"seconds": ran.wall_ms / 1e3, "peak": ran.peak_rss_bytes, "told": told}))
    kept = json.loads(note.read_text())
    return Made(out, kept["seconds"], kept["peak"], kept["told"])


def with_recipe(bench: Bench, source: str, name: str) -> Made:
    """A recipe of `RECIPES` on a model."""
    recipe(name)
    return ours(bench, source, name, [], RECIPES / f"{name}.toml")


def own_text(bench: Bench, source: str) -> Path:
    """The text that our side learns from, as a file."""
    from genmote.compress import Calibration, calibration
    from genmote.models.gguf import ModelFile

    model = bench.file(source)
    settings = Calibration(windows=learned(bench))
    path = FOLDER / f"{source}-{settings.key(sha256(model))[:12]}.txt"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        bench.say(f"{source} writes {settings.windows} windows of text")
        file = ModelFile.open(model)
        rows = calibration.windows(model, file.sha256(), settings)
        path.write_text(calibration.text_of(file, rows), encoding="utf-8")
    return path


def importance(bench: Bench, source: str) -> Path:
    """The peer's importance matrix of that text."""
    text, model = own_text(bench, source), bench.file(source)
    path = text.with_suffix(".imatrix.gguf")
    if not path.exists():
        bench.say(f"llama-imatrix on {text.name}")
        program = bench.peer(PEER).program("llama-imatrix")
        temporary = path.with_suffix(".part.gguf")  # it is written again and again as the text is read
        words = ["-m", str(model), "-f", str(text), "-o", str(temporary), "--process-output", "--no-ppl"]
        process.run([program, *words, "-c", str(CONTEXT), "-t", str(bench.cores)], timeout_s=LONG_S)
        temporary.rename(path)
    return path


def theirs(bench: Bench, source: str, type_name: str, *options: str) -> Path:
    """`llama-quantize` with the importance matrix."""
    model, matrix = bench.file(source), importance(bench, source)
    path = FOLDER / f"{source}-peer-{type_name}-{digest([sha256(model), matrix.name, *options])}.gguf"
    if not path.exists():
        bench.say(f"llama-quantize {source} {type_name} {' '.join(options)}")
        program = bench.peer(PEER).program("llama-quantize")
        words = ["--allow-requantize", "--imatrix", str(matrix), *options]
        temporary = path.with_suffix(".part")
        process.run([program, *words, str(model), str(temporary), type_name, str(bench.cores)], timeout_s=LONG_S)
        temporary.rename(path)
    return path


def perplexity(bench: Bench, model: Path, *, peer: bool = False) -> float:
    """Of the test text, by our engine or (`peer`) by llama-perplexity; kept for each file, number of windows and
    program."""
    text, count = corpus(), windows(bench)
    reader = bench.peer(PEER).version if peer else engine()
    name = f"{sha256(model)[:16]}-{sha256(text)[:8]}-{count}-{digest([reader])}"
    note = FOLDER / f"perplexity-{name}.json"
    if note.exists():
        return float(json.loads(note.read_text()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    bench.say(f"perplexity of {model.name}, {count} windows{', by llama.cpp' if peer else ''}")
    found = theirs_of(bench, model, text, count) if peer else ours_of(bench, model, text, count)
    note.write_text(json.dumps(found))
    return found


def ours_of(bench: Bench, model: Path, text: Path, count: int) -> float:
    sizes = ["--context", str(CONTEXT), "--chunks", str(count), "--threads", str(bench.cores)]
    words = ["perplexity", str(model), "--text", str(text), *sizes]
    return float(process.python("benchmarks.ours", *words, timeout_s=LONG_S).json()["perplexity"])


def theirs_of(bench: Bench, model: Path, text: Path, count: int) -> float:
    from benchmarks.measures.perplexity import final_estimate

    sizes = ["--ctx-size", str(CONTEXT), "--chunks", str(count), "-t", str(bench.cores)]
    words = [bench.peer(PEER).program("llama-perplexity"), "-m", str(model), "-f", str(text), *sizes]
    return final_estimate(process.run(words, errors=True, timeout_s=LONG_S).output)


def engine() -> str:
    """Names the code that our perplexities are measured by."""
    folders = [REPOSITORY / "genmote" / part for part in ("models", "ops", "runtime")]
    python = [path for folder in folders for path in folder.rglob("*.py")]
    return digest([path.read_text() for path in sorted([*python, *(REPOSITORY / "native").glob("*.*")])])


def code() -> str:
    """Names the code that makes our files: where it changes, they are made anew."""
    folders = [REPOSITORY / "genmote" / "compress", REPOSITORY / "genmote" / "ops" / "quant"]
    sources = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return digest([path.read_text() for path in sources])


def digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def types_of(path: Path) -> dict[str, str]:
    """The tensor types of a file's matrices. Raises `ContestantError` for one that we do not read."""
    from genmote.errors import GenmoteError
    from genmote.models.gguf import ModelFile

    try:
        tensors = ModelFile.open(path).tensors
    except GenmoteError as why:
        raise ContestantError(str(why)) from why
    return {info.name: info.type for info in tensors.values() if len(info.shape) > 1}


def toml_of(types: Mapping[str, str]) -> str:
    """A recipe that stores each matrix as this type, by GPTQ."""
    rules = ",\n".join(f'  "{name}={stored}"' for name, stored in types.items())
    return f'[[step]]\nuse = "gptq"\ntype = "keep"\ntypes = [\n{rules},\n]\n'
