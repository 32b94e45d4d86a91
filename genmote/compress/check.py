"""What a compressed model's parts really cost: the original, with some of its tensors taken from the compressed file,
beside the original in the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from genmote.compress.allocate import Option
from genmote.compress.evaluate import Comparison, compare
from genmote.fetch import Progress
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf

QUARTERS = 4
MOST_SCALE = 8.0  # that a measurement changes an expectation by


class Check:
    """Measures on `text`, in windows of `context` tokens, in the engine; files needed meanwhile lie in `folder`."""

    def __init__(
        self, source: ModelFile, made: ModelFile, text: str, context: int, folder: Path, progress: Progress
    ) -> None:
        self.source, self.made, self.text, self.context = source, made, text, context
        self.folder, self.progress = folder, progress

    def whole(self, path: Path | None = None) -> Comparison:
        """The compressed model beside the original."""
        from genmote.runtime.engine import Engine

        with Engine.load(self.source.path) as original, Engine.load(path or self.made.path) as other:
            return compare(original, other, self.text, context=self.context)

    def divergence(self, names: Iterable[str]) -> float:
        """Nats of KL divergence a token that these tensors of the compressed file add to the original."""
        taken = set(names)
        path = self.folder / "part.gguf"
        tensors = []
        for info in self.source.tensors.values():
            file = self.made if info.name in taken else self.source
            stored = file.tensors[info.name]
            tensors.append((stored.name, stored.type, stored.shape, file.raw(stored.name)))
        write_gguf(path, self.source.typed_metadata(), tensors)
        try:
            found = self.whole(path).kl
        finally:
            path.unlink()
        assert found is not None  # the vocabulary is the same
        return found

    def scales(self, chosen: Mapping[str, Option], blocks: int) -> dict[str, float]:
        """What was measured over what was expected, of each group of matrices (see `groups`)."""
        changed = {name: option for name, option in chosen.items() if option.damage > 0}
        members: dict[str, list[str]] = {}
        for name in changed:
            for group in dict.fromkeys(groups(name, blocks)):
                members.setdefault(group, []).append(name)
        found = {}
        for done, (group, names) in enumerate(sorted(members.items())):
            self.progress("measuring what each part costs", done, len(members))
            found[group] = self.divergence(names) / sum(changed[name].damage for name in names)
        self.progress("measuring what each part costs", len(members), len(members))
        return found


def groups(name: str, blocks: int) -> tuple[str, str]:
    """What a matrix's damage is corrected with: its kind, and its quarter of the blocks.

    >>> groups("blk.29.ffn_down_a.weight", 30), groups("token_embd.weight", 30)
    (('ffn_down', 'quarter 4'), ('head', 'head'))
    """
    parts = name.split(".")
    if parts[0] != "blk":
        return "head", "head"
    kind = parts[2].removesuffix("_a").removesuffix("_b")  # a factor counts with its matrix
    return kind, f"quarter {int(parts[1]) * QUARTERS // blocks + 1}"


def corrected(name: str, option: Option, scales: dict[str, float], blocks: int) -> Option:
    """An option with its damage as the measurements make it: by its kind's scale, and by how its quarter of the blocks
    differs from all quarters."""
    kind, quarter = groups(name, blocks)
    if kind not in scales:  # nothing of its kind was changed: nothing is known
        return option
    factor = scales[kind]
    quarters = [scales[key] for key in scales if key.startswith("quarter")]
    if quarter in scales and quarter != kind:
        factor *= scales[quarter] / (sum(quarters) / len(quarters))
    return Option(option.what, option.bytes, option.damage * bounded(factor))


def bounded(scale: float) -> float:
    return min(MOST_SCALE, max(1 / MOST_SCALE, scale))
