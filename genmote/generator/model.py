"""A generator: a small decoder over a codec's tokens, ready for its jobs. Nothing here needs PyTorch.

>>> import inspect
>>> list(inspect.signature(Generator.load).parameters)
['path', 'threads', 'ops', 'adapter']
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.generator import file as model_files
from genmote.generator.layout import Layout
from genmote.registry import listed
from genmote.signals.coding import Codec
from genmote.signals.header import MODALITY
from genmote.signals.kinds import Series, Signal

if TYPE_CHECKING:
    from genmote.generator.detect import Scorer
    from genmote.generator.forecast import Forecast
    from genmote.models.decoder import Decoder
    from genmote.runtime.engine import Adapters


class Generator:
    """One model of a kind of signals, and its jobs. Methods take turns, they are not for several threads at once."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        ops: str | None = None,
        adapter: Adapters | None = None,
    ) -> Generator:
        """A model file that `genmote signal train` wrote, or the name of one that comes with the package. `ops`: the op
        set (None: the fastest here); `adapter`: a file that `genmote adapt` made of it, or pairs (path, scale).
        ModelFileError for what is no such file, ModelNameError for a name that means none, OpsError for an op set that
        is not here."""
        from genmote.models import store
        from genmote.models.decoder import Decoder
        from genmote.models.gguf import ModelFile
        from genmote.models.lora import AdaptedWeights, read_lora
        from genmote.models.weights import GgufWeights
        from genmote.runtime.loading import choose_ops, open_adapters
        from genmote.runtime.threads import checked_threads

        path = store.resolve(path)
        file = ModelFile.open(path)
        layout = model_files.layout_of(file)
        opset = choose_ops(ops, None, checked_threads(threads))
        own = GgufWeights(file, opset)
        weights: Any = own
        if files := open_adapters(adapter or ()):
            weights = AdaptedWeights(own, [(read_lora(one, own.config, opset), scale) for _, scale, one in files])
        made = cls(Decoder(own.config, weights, opset), layout, model_files.card_of(file), path)
        file.release(0, path.stat().st_size)  # the op set has its own form of the weights
        return made

    def __init__(self, decoder: Decoder, layout: Layout, card: dict[str, Any], path: Path | None = None) -> None:
        self.decoder, self.layout, self.card, self.path = decoder, layout, card, path

    @property
    def codec(self) -> Codec:
        return self.layout.codec

    @property
    def exact(self) -> bool:
        """Whether the op set gives the same bits on every machine."""
        return self.decoder.ops.exact

    def empty(self, labels: Mapping[str, str] | None = None, channels: Sequence[str] = ()) -> Series:
        """A series without a sample: of the channels asked for, or as most recordings were that it learnt from, of what
        the label `modality` says. SignalError where the model is of no series, or knows no such channel or label."""
        head, asked = self.codec.head, self.labels(labels or {})
        if self.codec.KIND is not Series:
            raise SignalError(f"the model is of {self.codec.KIND.__name__.lower()}, this needs a series")
        forms = self.card.get("forms", [])
        have = [form for form in forms if set(channels) <= set(form["channels"])]
        said = {key: value for key, value in (labels or {}).items() if key != MODALITY}
        if MODALITY in (labels or {}):
            have = [form for form in have if form["modality"] == asked[MODALITY]] or have
        fits = [f for f in have if all(v in f.get("labels", {}).get(k, []) for k, v in said.items())] or have
        rate = float(head.rates_hz[0]) if len(head.rates_hz) else 0.0
        pairs = list(zip(head.channels, head.units, strict=True))
        if fits:
            form = fits[0]
            rate, pairs = float(form["rate_hz"]), list(zip(form["channels"], form["units"], strict=True))
            if MODALITY not in (labels or {}):
                asked[MODALITY] = form["modality"]
        units = dict(pairs)
        for n, name in enumerate(channels):
            if name not in units:
                known = listed(dict.fromkeys(head.channels))
                raise SignalError(f"channel {name!r}: the model knows {known}; choose among them")
            if name in channels[:n]:
                raise SignalError(f"channel {name!r} is asked for twice: name each once")
        names = tuple(channels) or tuple(name for name, _ in pairs)
        own = tuple(units[name] for name in names)
        none = np.zeros((0, len(names)), np.float32)
        return Series("signal", none, rate, names, own, None if rate > 0 else np.zeros(0), labels=asked)

    def fitted(self, signal: Signal) -> Signal:
        """The signal with a modality that the model knows: its own, or that of the recordings learnt from that have
        most of its channels."""
        known = self.codec.head.modalities
        if not known or signal.labels.get(MODALITY, type(signal).__name__.lower()) in known:
            return signal
        own = set(signal.channels) if isinstance(signal, Series) else set()
        forms = [form for form in self.card.get("forms", []) if form["modality"] in known]
        likest = max(forms, key=lambda form: len(own & set(form["channels"])), default={"modality": known[0]})
        return replace(signal, labels={**signal.labels, MODALITY: likest["modality"]})

    def labels(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Labels for a header: those asked for, and the modality. SignalError for one that the model does not know."""
        head = self.codec.head
        known: dict[str, list[str]] = {}
        for key, value in zip(head.label_keys, head.label_values, strict=True):
            known.setdefault(key, []).append(value)
        for key, value in asked.items():
            if key == MODALITY and value in head.modalities:
                continue
            if value not in known.get(key, []):
                if len(head.modalities) > 1:
                    known = {MODALITY: list(head.modalities), **known}
                told = "; ".join(f"{name}: {', '.join(values[:12])}" for name, values in known.items())
                raise SignalError(f"label {key}={value}: the model was told of {told or 'no labels'}")
        first = {} if not head.modalities else {MODALITY: head.modalities[0]}
        return {**first, **asked}

    def generate(
        self,
        count: int = 1,
        *,
        steps: int | None = None,
        labels: Mapping[str, str] | None = None,
        channels: Sequence[str] = (),
        prefix: Signal | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        progress: Progress = quiet,
    ) -> list[Signal]:
        """Signals as the model knows them: `count` of them, of `steps` samples (None: until the model ends one, at
        most as long as it was trained to see). `prefix`: what each begins with, as it is. `labels`, `channels`:
        what they are of; a prefix has its own channels."""
        from genmote.generator.generate import generate

        return generate(self, count, steps, dict(labels or {}), channels, prefix, seed, temperature, progress)

    def forecast(self, history: Series, steps: int, *, paths: int = 32, seed: int = 0) -> Forecast:
        """How a series may go on: `paths` ways of `steps` samples. Channels that no recording learnt from had together
        are forecast each by itself."""
        from genmote.generator.forecast import apart, forecast

        return apart(self, history, lambda one: forecast(self, one, steps, paths, seed))

    def impute(self, series: Series, *, paths: int = 16, seed: int = 0) -> Forecast:
        """What may have been where samples are missing (NaN); what is there is kept."""
        from genmote.generator.forecast import apart, impute

        return apart(self, series, lambda one: impute(self, one, paths, seed))

    def together(self, channels: Sequence[str]) -> list[list[int]]:
        """Positions of channels that are told together: all, where recordings that it learnt from had all of them, or
        where none is known that had one alone; else each by itself."""
        forms = [set(form["channels"]) for form in self.card.get("forms", [])]
        every = list(range(len(channels)))
        if len(channels) < 2 or any(set(channels) <= form for form in forms):
            return [every]
        return [[n] for n in every] if any(len(form) == 1 for form in forms) else [every]

    def scorer(self) -> Scorer:
        """What tells of each sample how unlikely it is, piece after piece, in constant memory."""
        from genmote.generator.detect import Scorer

        if self.layout.scale != "none":
            raise SignalError(
                "the model tells stretches by scales of their own: to score samples, train without --scale"
            )
        return Scorer(self)

    def scores(self, signal: Signal) -> NDArray[np.float32]:
        """(T,) nats of each sample or row: how unlikely it was after what came before."""
        return self.scorer().push(signal)
