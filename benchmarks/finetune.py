"""A model trained further, all of its weights, and stored as FP16: an original that lies on no quantised grid.

The text is Python's own reference, which comes with Python: what is learned does not matter here, only that every
weight moves by a share of a 4-bit step.
"""

from __future__ import annotations

import sys
from pathlib import Path

STEPS, BATCH, LENGTH, RATE = 60, 4, 256, 3e-4


def finetune(source: Path, target: Path) -> None:
    """Write `target`, whole or not at all: `source` after `STEPS` steps of Adam on the next token."""
    from pydoc_data.topics import topics

    import numpy as np
    import torch

    from genmote.compress.adam import Adam
    from genmote.compress.pupil import Pupil
    from genmote.models.gguf import ModelFile
    from genmote.models.requantise import convert_type
    from genmote.models.tokenizer import load_tokenizer

    file = ModelFile.open(source)
    tokens = load_tokenizer(file).encode("\n\n".join(topics[name] for name in sorted(topics)), bos=False)
    rows = np.array(tokens[: len(tokens) // LENGTH * LENGTH], np.int32).reshape(-1, LENGTH)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    pupil = Pupil(source, file, "all", 1, 0)
    adam = Adam(pupil.parameters)
    for step in range(STEPS):
        windows = rows.take(range(step * BATCH, (step + 1) * BATCH), 0, mode="wrap")
        logits = pupil.whole.logits(pupil.whole.final(windows)).view(BATCH, LENGTH, -1)[:, :-1]
        wanted = torch.from_numpy(windows[:, 1:].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step(RATE * min(1.0, 2 * (1 - step / STEPS)))
        print(f"bench: fine-tuning, step {step + 1} of {STEPS}: {float(loss.detach()):.3f} nats", file=sys.stderr)
    whole, between = target.with_suffix(".f32.part"), target.with_suffix(".blocks.part")
    try:
        pupil.write(whole, between, lambda *_: None)
        convert_type(whole, target, "F16")
    finally:
        for part in (whole, between):
            part.unlink(missing_ok=True)
