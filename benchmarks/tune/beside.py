"""The trainer on the device beside PEFT (LoRA on all linear layers, float32, and with a base in four bits): the same
windows of text, the same order, the same rates. Peak of memory, and what was learnt."""

from __future__ import annotations

import hashlib
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
from genmote import home

FILE = "smollm2-q4_1"
RANK, FACTOR, BATCH, CONTEXT, STEPS, RATE = 8, 2.0, 4, 256, 200, 5e-4
JUDGED, EVERY = 40, 50  # windows held out; steps between two judgements
THREADS = 1
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
    steps = bench.pick(STEPS, 50)
    asked: dict[str, dict[str, Any]] = {
        f"peak of training, {LORA}, over PEFT's in float32": {"asked": 0.10, "aim": 0.06},
        f"held-out loss after {steps} steps, {LORA}, over PEFT's": {"asked": 1.01},
        f"peak of training, {LORA}, over PEFT's with the base in 4 bits (QLoRA)": {"asked": 0.5},
    }
    peak, loss, four_bits = asked
    try:
        given = prepared(bench, KEPT / f"beside-{steps}", steps)
        few = theirs(bench, given, "nf4", 4)
        many = theirs(bench, given, "float32", steps)
        bench.say(f"{steps} steps of ours")
        ours = trained(bench, given, steps)
    except ContestantError as why:
        for name, wanted in asked.items():
            yield missing(name, "tune_beside", why, asked=wanted["asked"], sense=AT_MOST)
        return
    details = {"steps": steps, "judged": ours["judged"], "peer_judged": many["judged"]}
    shared: dict[str, Any] = {"threads": THREADS, "details": details, **about(FILE)}
    plain = shared | {"peer_name": "PEFT, float32"}
    packed = shared | {"peer_name": "PEFT, bitsandbytes NF4, layers computed again"}
    own = ours["peak_rss_bytes"] / 1e6
    yield row(peak, own, many["peak_rss_bytes"] / 1e6, "MB", asked[peak], plain)
    yield row(loss, ours["held_out_after"], min(many["judged"]), "nats a token", asked[loss], plain)
    yield row(four_bits, own, few["peak_rss_bytes"] / 1e6, "MB", asked[four_bits], packed)


def row(name: str, ours: float, peer: float, unit: str, asked: dict[str, Any], shared: dict[str, Any]) -> Row:
    return Row(
        name=name, measure="tune_beside", value=ours / peer, value_unit="x", sense=AT_MOST, unit=unit,
        ours=ours, peer=peer, **asked, **shared,
    )  # fmt: skip


def prepared(bench: Bench, room: Path, steps: int) -> Given:
    """Windows of a text, its end held out, and the peer's copy of the base."""
    from genmote import Engine
    from genmote.tune import batches
    from genmote.tune.settings import Tuning
    from genmote.tune.trainer import scheduled

    python, model, whole = interpreter("tune", OTHERS.with_suffix(".txt")), bench.file(FILE), KEPT / "smollm2-float32"
    if not (whole / "model.safetensors").exists():
        bench.say("writing the base in float32 for PEFT")
        whole.mkdir(parents=True, exist_ok=True)
        process.run([str(python), "-P", str(OTHERS), "whole", str(model), str(whole)], timeout_s=PATIENCE_S)
    with Engine.load(model, threads=1) as engine:
        tokens = np.array(engine.tokenizer.encode(corpus().read_text(encoding="utf-8"), bos=False), np.int32)
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    learn, judge = windows[: BATCH * steps], windows[-JUDGED:]
    if len(windows) < len(learn) + len(judge):
        raise ContestantError(f"the text has {len(windows)} windows, wanted {len(learn) + len(judge)}")
    room.mkdir(parents=True, exist_ok=True)
    tuning = Tuning(rank=RANK, steps=steps, batch=BATCH, context=CONTEXT, rate=RATE)
    order = [batches.chosen(len(learn), BATCH, step, tuning.seed) for step in range(steps)]
    rates = [scheduled(tuning, step + 1) for step in range(steps)]
    found = Given(room / "learn.jsonl", room / "judge.jsonl", room / "given.npz", whole)
    for path, some in ((found.learn, learn), (found.judge, judge)):
        path.write_text("".join(json.dumps({"text": one.tolist()}) + "\n" for one in some), encoding="utf-8")
    np.savez(found.arrays, learn=learn, judge=judge, order=order, rates=rates, rank=RANK, factor=FACTOR)
    return found


def trained(bench: Bench, given: Given, steps: int) -> dict[str, Any]:
    """What `genmote tune` tells of its training; one that was cut short goes on."""
    words = [str(bench.file(FILE)), str(given.learn), "-o", str(given.learn.with_name("ours.gguf"))]
    words += ["--held-out", str(given.judge), "--rank", str(RANK), "--steps", str(steps), "--batch", str(BATCH)]
    words += ["--context", str(CONTEXT), "--rate", str(RATE), "--judge-every", str(EVERY), "--json"]
    words += ["--threads", str(THREADS)]
    found = process.run([sys.executable, "-m", "genmote.cli", "tune", *words], timeout_s=PATIENCE_S).json()
    return dict(found)


def theirs(bench: Bench, given: Given, kind: str, steps: int) -> dict[str, Any]:
    """The peak of PEFT's training and its held-out losses, or what they were in the same training before."""
    parts = (OTHERS.read_bytes(), OTHERS.with_suffix(".txt").read_bytes(), given.arrays.read_bytes())
    key = hashlib.sha256(b"".join(parts) + f"{kind} {steps} {THREADS}".encode()).hexdigest()
    kept = KEPT / f"peft-{kind}-{steps}-{key[:12]}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    with peer(given, kind, THREADS) as ask:
        losses: list[float] = []
        for done in range(0, steps, EVERY):
            bench.say(f"PEFT, {kind}: step {done} of {steps}")
            ask(f"steps {min(EVERY, steps - done)}")
            if kind == "float32":  # the other is of another base: its loss is no yardstick
                losses.append(ask("judge")["loss"])
        found = {"judged": losses, **ask("end")}
    with home.atomic_write(kept, "w") as out:
        json.dump(found, out)
    return found


@contextmanager
def peer(given: Given, kind: str, threads: int) -> Iterator[Any]:
    python = interpreter("tune", OTHERS.with_suffix(".txt"))
    with talking(
        [str(python), "-P", str(OTHERS), "learn", str(given.whole), str(given.arrays), kind, str(threads)]
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
