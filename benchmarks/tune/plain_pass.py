"""One pass forward of a batch of texts, with the logits of all rows some at a time: what a training is compared to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from genmote import Engine
from genmote.ops.protocol import Span

LOGIT_ROWS = 32


def main() -> int:
    """Arguments: a model, a text, how many windows of how many tokens."""
    model, text, batch, context = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    with Engine.load(model, threads=1) as engine:
        rows = batch * context
        said = text.read_text(encoding="utf-8")[: 8 * rows]
        tokens = np.array(engine.tokenizer.encode(said, bos=False)[:rows], np.int32)
        assert len(tokens) == rows, "the text is too short"
        decoder = engine.decoder
        spans = [Span(decoder.cache(context), start, context) for start in range(0, rows, context)]
        x = decoder.run(tokens, spans)
        for start in range(0, rows, LOGIT_ROWS):
            logits = decoder.head(x[start : start + LOGIT_ROWS])
        print(json.dumps({"rows": rows, "mean": float(np.mean(logits))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
