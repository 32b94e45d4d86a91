"""Both sides of what is asked of signals' models: ours, trained for a set and kept, and the peers' environment.

A model is kept in `build/bench-signals/` under its settings and what it learnt from, and trained once; what the peers
gave is kept beside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.environment import interpreter
from benchmarks.process import REPOSITORY, ContestantError
from genmote.generator.model import Generator
from genmote.signals.kinds import Series, Signal

KEPT = REPOSITORY / "build" / "bench-signals"
OTHERS = Path(__file__).with_name("others.py")
NEEDS = Path(__file__).with_name("others.txt")


def trained(bench: Bench, name: str, signals: Sequence[Signal], training: Mapping[str, Any], seed: int) -> Generator:
    """A generator for a set, trained on first use."""
    from genmote.generator.train import Training, train

    key = hashlib.sha256(json.dumps({**training, "seed": seed}, sort_keys=True).encode())
    for signal in signals:
        key.update(signal.name.encode() + json.dumps(signal.labels, sort_keys=True).encode())
        if isinstance(signal, Series):
            key.update(np.ascontiguousarray(signal.values).tobytes())
        else:
            key.update(str(len(signal)).encode())
    path = KEPT / f"{name.replace(' ', '-')}-{seed}-{key.hexdigest()[:12]}.gguf"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        bench.say(f"training {path.name} on {sum(map(len, signals))} samples")
        card = train(signals, path, Training(seed=seed, minutes=600.0, **training))
        bench.say(
            f"{card['steps']} steps, {card['seconds']:.0f} s, {card['held_out_nats']} nats of {card['chance_nats']}"
        )
    return Generator.load(path)


def others(what: str, given: Mapping[str, Any], timeout_s: float = 7200) -> dict[str, NDArray[np.float64]]:
    """What the peers give for `others.py`'s job `what`, or gave for the same numbers before."""
    python = interpreter("signals", NEEDS)
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "in.npz", Path(place) / "out.npz"
        np.savez(source, **given)
        key = hashlib.sha256(OTHERS.read_bytes() + NEEDS.read_bytes() + source.read_bytes()).hexdigest()
        kept = KEPT / f"peers-{what}-{key[:12]}.npz"
        if kept.exists():
            return dict(np.load(kept))
        try:
            subprocess.run(
                [str(python), str(OTHERS), what, str(source), str(target)],
                check=True, capture_output=True, text=True, timeout=timeout_s,
            )  # fmt: skip
        except subprocess.CalledProcessError as why:
            last = (why.stderr or why.stdout or "nothing said").strip().splitlines()[-1]
            raise ContestantError(f"the peers' {what} ended with {why.returncode}: {last[:300]}") from why
        except subprocess.TimeoutExpired as why:
            raise ContestantError(f"the peers' {what} took longer than {timeout_s:.0f} s") from why
        KEPT.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, kept.with_suffix(".part"))
        kept.with_suffix(".part").replace(kept)
        return dict(np.load(kept))
