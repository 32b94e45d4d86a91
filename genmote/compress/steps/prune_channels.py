"""Take channels out of the feed-forward parts, from each block as many as it can best spare.

A channel is a row of `ffn_gate` and `ffn_up` and a column of `ffn_down`. Which go, and how many of which block, is told
by the growth of the text's surprise where the other columns of `ffn_down` compensate (`surgeon.py`, `fisher.py`); then
all blocks are fitted to the original's outputs (`refit.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genmote.compress.cut import cut_channels, whole_linears
from genmote.compress.refit import refitted
from genmote.compress.removals import removals
from genmote.compress.steps import _named
from genmote.compress.steps._base import ModelStep, Sight
from genmote.compress.surgeon import Removal, shared_out
from genmote.errors import SpecError
from genmote.models.config import Config, read_config
from genmote.models.gguf import ModelFile
from genmote.spec import setting


@dataclass(frozen=True)
class PruneChannels(ModelStep):
    share: float = setting("share of all feed-forward channels that go", default=0.25)
    multiple: int = setting("each block keeps a multiple of so many channels", default=32)
    even: bool = setting("take as many from each block, as some engines want it", default=False)
    at_once: int = setting("channels that go between two looks at what is left", default=8)
    widths: tuple[str, ...] = setting(
        "BLOCK=CHANNELS: what some blocks keep, such as blk.0=1216; others stay whole, and share, multiple and even "
        "say nothing",
        default=(),
    )

    def faults(self) -> Iterable[str]:
        if not 0 < self.share < 1:
            yield f"share={self.share}: use a share between 0 and 1, such as 0.25"
        for name in ("multiple", "at_once"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: use 1 or more"
        yield from _named.faults("widths", self.widths, "blk.0=1216")

    def begin(self, model: ModelFile) -> Iterable[str]:
        yield from super().begin(model)
        config = read_config(model)
        check(model, config)
        if self.widths:
            self._named(config)
        else:
            self._goal(self._choices(config))

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        file = ModelFile.open(source)
        config = read_config(file)
        found = self.measure(source, sight)
        if self.widths:
            widths = self._named(config)
        else:
            choices = self._choices(config)
            widths = [choice[n] for choice, n in zip(choices, self._taken(choices, found), strict=True)]
        gone = [old - new for old, new in zip(config.ffn_widths, widths, strict=True)]
        kept = [r.without(n) for r, n in zip(found, gone, strict=True)]
        damage = sum(float(r.damage[n]) for r, n in zip(found, gone, strict=True))
        refitted(source, target, sight, lambda cut: cut_channels(file, cut, kept))
        return {"channels": widths, "of": list(config.ffn_widths), "expected_nats": damage}

    def measure(self, source: Path, sight: Sight) -> list[Removal]:
        """In which order each block's channels go, and what that costs."""
        return removals(source, sight, "ffn_down.weight", lambda _: 1, self.at_once)

    def _named(self, config: Config) -> list[int]:
        """The width of each block where it is said what some keep."""
        whole = {f"blk.{index}": width for index, width in enumerate(config.ffn_widths)}
        return list((whole | _named.bounded("widths", self.widths, whole, "channels")).values())

    def _choices(self, config: Config) -> list[list[int]]:
        """The widths that each block may have."""
        choices = [_widths(width, self.multiple) for width in config.ffn_widths]
        if max(map(len, choices)) == 1:
            raise SpecError(
                f"multiple={self.multiple}: the blocks have {max(config.ffn_widths)} channels; use a smaller one"
            )
        return choices

    def _goal(self, choices: Sequence[Sequence[int]]) -> int:
        """How many channels go."""
        total, least = (sum(choice[n] for choice in choices) for n in (0, -1))
        goal = round(self.share * total / self.multiple) * self.multiple
        if not goal:
            raise SpecError(f"share={self.share}: nothing would go; use a larger share")
        if goal > total - least:
            raise SpecError(
                f"share={self.share}: with multiple={self.multiple} at most {(total - least) / total:.3f} can go"
            )
        return goal

    def _taken(self, choices: Sequence[Sequence[int]], found: Sequence[Removal]) -> list[int]:
        """How many steps down its widths each block goes."""
        if self.even:
            wanted = 1 - self.share
            return [min(range(len(c)), key=lambda n, c=c: abs(c[n] - wanted * c[0])) for c in choices]  # type: ignore[misc]
        curves = [
            [(choice[0] - width, float(r.damage[choice[0] - width])) for width in choice]
            for choice, r in zip(choices, found, strict=True)
        ]
        return shared_out(curves, self._goal(choices))


def check(file: ModelFile, config: Config) -> None:
    """SpecError for a model whose channels cannot be taken out."""
    whole_linears(file, "prune-channels")
    if config.n_experts:
        raise SpecError("prune-channels: this model has experts, whose channels are not pruned; use prune-layers")


def _widths(width: int, multiple: int) -> list[int]:
    """The widths that a block of `width` channels may have, from what it has down.

    >>> _widths(100, 32)
    [100, 96, 64, 32]
    """
    return [width, *(w for w in range(width // multiple * multiple, 0, -multiple) if w < width)]
