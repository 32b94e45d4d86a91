"""The share of a file's examples whose answer a model says whole, of itself: each of its tokens, the one that ends it
too, is the most probable one after those before it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def main() -> int:
    from genmote import Engine
    from genmote.tune import examples
    from genmote.tune.select._probe import DecoderProbe
    from genmote.tune.settings import Tuning

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("test", type=Path)
    parser.add_argument("--adapter", type=Path)
    chosen = parser.parse_args()
    with Engine.load(chosen.model, adapter=chosen.adapter, threads=1) as engine:
        some = examples.read(chosen.test, engine, Tuning().context, [])
        reading = DecoderProbe(engine.decoder, some, some.take([]), Tuning()).read(np.arange(len(some)))
    print(json.dumps({"right": float(reading.right.mean()), "examples": len(some)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
