"""What may be chosen of a training: one dataclass for Python, the command line and the card; without NumPy, as the list
of verbs is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is made."""

    language: str = setting("the language model, a name or a path", default="smollm2-135m")
    facts: bool = setting("put a line of computed facts into each prompt", default=True)
    drawn: float = setting("part of the signals of a step that are drawn anew, with questions of them", default=0.5)
    encoder_steps: int = setting("steps of the encoder alone", default=2000)
    projector_steps: int = setting("steps of the projector", default=100)
    steps: int = setting("steps of projector and adapter", default=300)
    minutes: float | None = setting("time that all of it may take (default: as the steps take)", default=None)
    encoder_batch: int = setting("signals of a step of the encoder alone", default=12)
    batch: int = setting("signals of a step with the language model", default=6)
    encoder_rate: float = setting("learning rate of the encoder alone", default=1e-3)
    rate: float = setting("learning rate of projector and adapter", default=1e-3)
    rank: int = setting("rank of the adapter", default=8)
    on: str = setting("matrices that it adapts (as genmote tune --on)", default="all")
    context: int = setting("most tokens of an example", default=384)
    width: int = setting("numbers of the encoder's states", default=192)
    ffn: int = setting("numbers within the encoder's feed-forward parts", default=384)
    slots: int = setting("stretches of time that a signal is cut into, at most", default=48)
    join: int = setting("of which so many together are one embedding", default=2)
    bridge: int = setting("numbers between the encoder and the language model", default=384)
    base: Path | None = setting(
        "a model (.toml) whose encoder and adapter are gone on from", default=None, flag="--from"
    )
    keep_encoder: bool = setting(
        "take the encoder of --from as it is, so that several models have one: only the adapter learns", default=False
    )
    tasks: tuple[str, ...] = setting(
        "kinds of question that classify is to know (default: those about labels)", default=(), many=True, flag="--task"
    )
    confidence: float = setting("a label less likely than this is not told", default=0.5)
    type: Literal["Q8_0", "F16", "F32"] = setting("how the encoder's weights are stored", default="Q8_0")
    seed: int = setting("seed of everything drawn", default=0)
    threads: int | None = setting("threads (default: one a core)", default=None)
    licence: str = setting("the licence of the examples' signals, for the card", default="not stated")

    def faults(self) -> Iterable[str]:
        if min(self.encoder_steps, self.projector_steps, self.steps) < 0 or self.batch < 1 or self.encoder_batch < 2:
            yield (
                f"encoder_steps={self.encoder_steps}, projector_steps={self.projector_steps}, steps={self.steps}, "
                f"encoder_batch={self.encoder_batch}, batch={self.batch}: use 0 or more, of batches at least 2 and 1"
            )
        if not 0 <= self.drawn <= 1:
            yield f"drawn={self.drawn}: use 0 to 1, or a percentage"
        if self.minutes is not None and not 0 < self.minutes <= 10000:
            yield f"minutes={self.minutes}: use more than 0, such as 50"
        if self.keep_encoder and self.base is None:
            yield "keep_encoder: there is none to keep; say with --from whose"
        if not 0 < self.rate < 1 or not 0 < self.encoder_rate < 1:
            yield f"encoder_rate={self.encoder_rate}, rate={self.rate}: use such as 0.001"
        if not 1 <= self.rank <= 1024:
            yield f"rank={self.rank}: use 1 to 1024, such as 8"
        if not 64 <= self.context <= 1 << 16:
            yield f"context={self.context}: use 64 or more, such as 384"
        if not 0 <= self.confidence <= 1:
            yield f"confidence={self.confidence}: use 0 to 1"
        if not 0 <= self.seed < 1 << 32:
            yield f"seed={self.seed}: use 0 to {(1 << 32) - 1}"
        if self.threads is not None and not 1 <= self.threads <= 1024:
            yield f"threads={self.threads}: use 1 to 1024"
