"""The trainer on the device beside PEFT (LoRA on all linear layers, float32, and with a base in four bits): the same
windows of text, the same order, the same rates. Peak of memory, and what was learnt."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import process
from benchmarks.bench import Bench, about, missing
from benchmarks.environment import interpreter
from benchmarks.measures.perplexity import corpus
from benchmarks.process import REPOSITORY, ContestantError
from benchmarks.record import AT_MOST, Row

FILE = "smollm2-q4_1"
RANK, FACTOR, BATCH, CONTEXT, STEPS, RATE = 8, 2.0, 4, 256, 200, 5e-4
JUDGED, EVERY = 40, 50  # windows held out; steps between two judgements
OTHERS = Path(__file__).with_name("others.py")
KEPT = REPOSITORY / "build" / "bench-tune"
PATIENCE_S = 3 * 3600
LORA = f"LoRA r={RANK}, batch {BATCH} x {CONTEXT}, SmolLM2-135M Q4_1"


@dataclass(frozen=True)
class Given:
    """What both sides learn from."""

    learn: Path  # examples for `genmote tune`
    judge: Path
    arrays: Path  # the same for `others.py`
    whole: Path  # the base's weights in float32, for the peer


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of the peak and of the loss."""
    asked: dict[str, dict[str, Any]] = {
        f"peak of training, {LORA}, over PEFT's in float32": {"asked": 0.10, "aim": 0.06},
        f"held-out loss after {STEPS} steps, {LORA}, over PEFT's": {"asked": 1.01},
        f"peak of training, {LORA}, over PEFT's with the base in 4 bits (QLoRA)": {"asked": 0.5},
    }
    peak, loss, four_bits = asked
    try:
        with tempfile.TemporaryDirectory() as room:
            given = prepared(bench, Path(room))
            bench.say(f"{STEPS} steps of ours")
            ours = trained(bench, given)
            with peer(given, "float32", bench.cores) as theirs:
                losses = [theirs("judge")["loss"]]
                for done in range(0, STEPS, EVERY):
                    bench.say(f"step {done} of {STEPS} of PEFT's, held out {losses[-1]:.4f}")
                    theirs(f"steps {EVERY}")
                    losses.append(theirs("judge")["loss"])
                theirs_peak = theirs("end")["peak_rss_bytes"]
            details: dict[str, Any] = {"steps": STEPS, "judged": ours["judged"], "peer_judged": losses}
            shared: dict[str, Any] = {"threads": bench.cores, "peer_name": "PEFT, float32", **about(FILE)}
            yield row(peak, ours["peak_rss_bytes"] / 1e6, theirs_peak / 1e6, "MB", asked[peak], details, shared)
            yield row(loss, ours["held_out_after"], min(losses), "nats a token", asked[loss], details, shared)
            yield from in_four_bits(bench, given, four_bits, asked[four_bits], ours["peak_rss_bytes"])
    except ContestantError as why:
        for name, wanted in asked.items():
            yield missing(name, "tune_peft", why, asked=wanted["asked"], sense=AT_MOST)


def row(
    name: str,
    ours: float,
    peer: float,
    unit: str,
    asked: dict[str, Any],
    details: dict[str, Any],
    shared: dict[str, Any],
) -> Row:
    return Row(
        name=name, measure="tune_peft", value=ours / peer, value_unit="x", sense=AT_MOST, unit=unit,
        ours=ours, peer=peer, details=details, **asked, **shared,
    )  # fmt: skip


def prepared(bench: Bench, room: Path) -> Given:
    """Windows of a text, its end held out, and the peer's copy of the base."""
    from genmote import Engine
    from genmote.tune import batches
    from genmote.tune.settings import Tuning
    from genmote.tune.trainer import scheduled

    python, model, whole = interpreter("tune", OTHERS.with_suffix(".txt")), bench.file(FILE), KEPT / "smollm2-float32"
    if not (whole / "model.safetensors").exists():
        bench.say("writing the base in float32 for PEFT")
        KEPT.mkdir(parents=True, exist_ok=True)
        process.run([str(python), str(OTHERS), "whole", str(model), str(whole)], timeout_s=PATIENCE_S)
    with Engine.load(model, threads=1) as engine:
        tokens = np.array(engine.tokenizer.encode(corpus().read_text(encoding="utf-8"), bos=False), np.int32)
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    learn, judge = windows[: BATCH * STEPS], windows[-JUDGED:]
    if len(windows) < len(learn) + len(judge):
        raise ContestantError(f"the text has {len(windows)} windows, wanted {len(learn) + len(judge)}")
    tuning = Tuning(rank=RANK, steps=STEPS, batch=BATCH, context=CONTEXT, rate=RATE)
    order = [batches.chosen(len(learn), BATCH, step, tuning.seed) for step in range(STEPS)]
    rates = [scheduled(tuning, step + 1) for step in range(STEPS)]
    found = Given(room / "learn.jsonl", room / "judge.jsonl", room / "given.npz", whole)
    for path, some in ((found.learn, learn), (found.judge, judge)):
        path.write_text("".join(json.dumps({"text": one.tolist()}) + "\n" for one in some), encoding="utf-8")
    np.savez(found.arrays, learn=learn, judge=judge, order=order, rates=rates, rank=RANK, factor=FACTOR)
    return found


def trained(bench: Bench, given: Given) -> dict[str, Any]:
    """What `genmote tune` tells of its training."""
    words = [str(bench.file(FILE)), str(given.learn), "-o", str(given.learn.with_name("ours.gguf"))]
    words += ["--held-out", str(given.judge), "--rank", str(RANK), "--steps", str(STEPS), "--batch", str(BATCH)]
    words += ["--context", str(CONTEXT), "--rate", str(RATE), "--judge-every", str(EVERY), "--json"]
    words += ["--threads", str(bench.cores)]
    found = process.run([sys.executable, "-m", "genmote.cli", "tune", *words], timeout_s=PATIENCE_S).json()
    return dict(found)


def in_four_bits(bench: Bench, given: Given, name: str, asked: dict[str, Any], ours: float) -> Iterator[Row]:
    """Its peak shows after a few steps; its loss is of another base, and is no yardstick."""
    bench.say("PEFT with the base in four bits")
    try:
        with peer(given, "nf4", bench.cores) as theirs:
            theirs("steps 4")
            found = theirs("end")["peak_rss_bytes"]
    except ContestantError as why:
        yield missing(name, "tune_peft", why, asked=asked["asked"], sense=AT_MOST)
        return
    shared = {"threads": bench.cores, "peer_name": "PEFT, bitsandbytes NF4, layers computed again", **about(FILE)}
    yield row(name, ours / 1e6, found / 1e6, "MB", asked, {}, shared)


@contextmanager
def peer(given: Given, kind: str, threads: int) -> Iterator[Any]:
    python = interpreter("tune", OTHERS.with_suffix(".txt"))
    with talking(
        [str(python), str(OTHERS), "learn", str(given.whole), str(given.arrays), kind, str(threads)]
    ) as answer:
        yield answer


@contextmanager
def talking(command: list[str]) -> Iterator[Any]:
    """A contestant that answers a line by a line of JSON: a function that says a line and gives the answer."""
    with tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, text=True, cwd=REPOSITORY
        )
        assert child.stdin is not None and child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def said() -> dict[str, Any]:
            while line := stdout.readline():
                if line.startswith("{"):
                    return dict(json.loads(line))
            child.wait()
            told.seek(0)
            last = [line for line in told.read().splitlines() if line.strip()][-1:] or ["nothing said"]
            raise ContestantError(f"{Path(command[0]).name} exited with {child.returncode}: {last[0][:300]}")

        def ask(line: str) -> dict[str, Any]:
            stdin.write(line + "\n")
            stdin.flush()
            return said()

        try:
            said()
            yield ask
        finally:
            child.kill()
            child.wait()
            stdin.close()
            stdout.close()
