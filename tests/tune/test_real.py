"""A real model: it learns, and takes as much memory as was planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genmote.models.gguf import ModelFile

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from genmote.tune.run import tune
from genmote.tune.settings import Tuning

options = json.loads(sys.argv[4])
memory = options.pop("memory", None)
made = tune(*sys.argv[1:4], Tuning(**options), threads=1, memory=memory)
print(json.dumps({**made.values(), "settings": made.card["settings"]}, default=str))
"""


@pytest.fixture
def data(lines: Any) -> Path:
    rooms, things = ("kitchen", "garage", "bedroom", "office"), ("light", "fan", "heater")
    ways = [("turn on the {}", "on"), ("switch the {} off", "off"), ("I want the {} on", "on")]
    return lines(  # type: ignore[no-any-return]
        *(
            {
                "messages": [
                    {"role": "user", "content": say.format(f"{room} {thing}")},
                    {"role": "assistant", "content": f"{thing}.{state}({room})"},
                ]
            }
            for room in rooms
            for thing in things
            for say, state in ways
        )
    )


def run(model: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    """One training in a process of its own, whose peak is its own too."""
    words = [sys.executable, "-c", RUN, str(model), str(data), str(output), json.dumps(options)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_smollm2_learns_commands(smollm2: Path, data: Path, tmp_path: Path) -> None:
    told = run(smollm2, data, tmp_path / "mine.gguf", steps=12, judge_every=6, rate=1e-3)
    assert told["held_out_after"] < 0.4 * told["held_out_before"]


@pytest.mark.parametrize(
    "options",
    [{}, {"inputs": "f16", "logit_rows": 8}, {"batch": 2, "rows": 512}, {"on": "norms"}, {"rank": 64}],
    ids=str,
)
def test_smollm2_takes_what_was_planned(options: dict[str, Any], smollm2: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and no two of its words are alike. " * 150)
    told = run(smollm2, text, tmp_path / "mine.gguf", steps=2, judge_every=2, held_out=str(text), **options)
    assert told["planned_bytes"] == pytest.approx(told["peak_rss_bytes"], rel=0.1)


@pytest.mark.parametrize(("memory", "chosen"), [(210, {"inputs": "f16"}), (145, {"weights": "disk"})])
def test_a_budget_is_kept(memory: int, chosen: dict[str, str], smollm2: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Numbers from one to twelve: one, two, three, four, five, six, seven, eight, nine, ten. " * 60)
    options = {"steps": 1, "batch": 2, "judge_every": 2, "memory": f"{memory}MB"}
    told = run(smollm2, text, tmp_path / "mine.gguf", **options)
    assert chosen.items() <= told["settings"].items() and told["peak_rss_bytes"] < memory * 1e6


def test_smollm2_learns_as_by_pytorch_in_full(smollm2: Path, data: Path, tmp_path: Path) -> None:
    """The same examples, first numbers and rates by PyTorch's differentiation and its AdamW in float32, on the
    dequantised weights without any rounding: while the held-out loss falls to a tenth, the two stay within 5%."""
    torch = pytest.importorskip("torch")
    from genmote import Engine
    from genmote.models.decoder import Decoder
    from genmote.models.weights import GgufWeights
    from genmote.ops.protocol import Span
    from genmote.ops.torch_ops import Matrix, create
    from genmote.tune import batches, examples
    from genmote.tune.learnt import Learnt
    from genmote.tune.settings import Tuning
    from genmote.tune.trainer import Trainer, scheduled

    torch.set_num_threads(1)
    tuning = Tuning(steps=12, batch=4, rate=1e-3, clip=1e9)
    with Engine.load(smollm2, threads=1) as engine:
        learn, judge = examples.held_out(examples.read(data, engine, 256, []), 0.3, 10, 0)
        ours = Trainer(engine.decoder, tuning)
        theirs = {name: torch.tensor(numbers, requires_grad=True) for name, numbers in ours.numbers.items()}
        config, ops = engine.config, create(round_inputs=False)
        base = GgufWeights(ModelFile.open(smollm2), ops)

        class Held(Learnt):
            def _matrix(self, numbers: Any) -> Any:
                return Matrix(numbers, False)

        decoder = Decoder(config, Held(base, ops, theirs, tuning.factor * tuning.rank), ops)
        adam = torch.optim.AdamW(theirs.values(), lr=tuning.rate, weight_decay=0.0)

        def nats(found: Any, some: Any, share: float) -> Any:
            (batch,) = batches.passes(found, some, 1 << 20, share)
            spans, start = [], 0
            for length in batch.lengths:
                spans.append(Span(decoder.cache(length), start, length))
                start += length
            each = torch.nn.functional.cross_entropy(
                decoder.head(decoder.run(batch.tokens, spans)), torch.tensor(batch.targets).long(), reduction="none"
            )
            return (each * torch.tensor(batch.weights)).sum()

        def judged() -> float:
            with torch.no_grad():
                every = range(len(judge))
                return float(nats(judge, every, 1 / batches.learnt_tokens(judge, every)))

        before = judged()
        assert ours.judge(judge) == pytest.approx(before, rel=0.01)
        for step in range(1, tuning.steps + 1):
            some = batches.chosen(len(learn), tuning.batch, step - 1, tuning.seed)
            ours.step(learn, some, step)
            for group in adam.param_groups:
                group["lr"] = scheduled(tuning, step)
            adam.zero_grad()
            nats(learn, some, 1 / batches.learnt_tokens(learn, some)).backward()
            adam.step()
        after = judged()
        print(f"held out before {before:.4f}, after by PyTorch {after:.4f}, ours {ours.judge(judge):.4f}")
        assert after < 0.2 * before
        assert ours.judge(judge) == pytest.approx(after, rel=0.05)
