"""Our side of a training, beside `others.py`: the same windows, order and rates, the same commands from standard input.

python -m benchmarks.tune.ours MODEL GIVEN.npz THREADS
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from genmote import Engine
from genmote.tune.examples import Examples
from genmote.tune.settings import Tuning
from genmote.tune.trainer import Trainer


def main() -> int:
    model, file, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    given = dict(np.load(file))
    every = np.ones(given["learn"].shape[1], bool)
    examples = Examples.of([(tokens, every) for tokens in given["learn"]], np.int32)
    steps, batch = given["order"].shape
    rank = int(given["rank"])
    tuning = Tuning(
        rank=rank,
        alpha=float(given["factor"]) * rank,
        steps=steps,
        batch=batch,
        context=len(every),
        rate=float(given["rates"].max()),
        rows=batch * len(every),
    )
    with Engine.load(model, threads=threads) as engine:
        trainer = Trainer(engine.decoder, tuning)
        answer({"ready": True})
        done = 0
        for line in sys.stdin:
            what, *count = line.split()
            if what != "steps":
                break
            seconds, losses = [], []
            for _ in range(int(count[0])):
                began = time.perf_counter()
                losses.append(trainer.step(examples, given["order"][done].tolist(), done + 1))
                seconds.append(time.perf_counter() - began)
                done += 1
            answer({"seconds": seconds, "losses": losses})
    return 0


def answer(values: dict[str, object]) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    sys.exit(main())
