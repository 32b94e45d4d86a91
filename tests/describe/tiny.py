"""A describing model of a tiny language model, untrained, and signals for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genmote.describe import file as parts_of
from genmote.describe.examples import Example
from genmote.describe.file import Part, Parts, Task
from genmote.models import encoder
from genmote.models.config import read_config
from genmote.models.encoder import Form
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.signals.kinds import Series

TASK = Task(about="kind", question="What kind is it?", labels=("calm", "wild", "none of these"))


def form(out: int) -> Form:
    return Form(out, width=64, ffn=64, bridge=64, slots=16, join=2)


def language(folder: Path) -> Path:
    path = folder / "language.gguf"
    if not path.exists():
        make_model("tiny-llama", "Q8_0", path)
    return path


def model(
    folder: Path,
    *,
    facts: bool = False,
    name: str = "model",
    type: str = "Q8_0",
    health: bool = False,
    channels: tuple[str, ...] = (),
) -> Path:
    """A model's TOML, with its parts beside it."""
    own = ModelFile.open(language(folder))
    shape = form(read_config(own).width)
    path = folder / f"{name}-encoder.gguf"
    about = encoder.metadata(shape, name, own.sha256(), "tiny")
    encoder.write(path, shape, encoder.fresh(shape, 3, 0.5), type, about)
    parts = Parts(
        version=1,
        title=name,
        facts=facts,
        health=health,
        channels=channels,
        language=Part(file=own.path.name, sha256=own.sha256()),
        encoder=Part(file=path.name, sha256=ModelFile.open(path).sha256()),
        tasks=(TASK,),
    )
    parts_of.write(folder / f"{name}.toml", parts)
    return folder / f"{name}.toml"


def wave(seed: int = 0, samples: int = 400, channels: tuple[str, ...] = ("level", "speed")) -> Series:
    draw = np.random.default_rng(seed)
    turn = np.arange(samples)[:, None] / 9 + np.arange(len(channels)) + draw.random()
    values = 20 + 3 * np.sin(turn) + 0.1 * draw.standard_normal((samples, len(channels)))
    return Series(f"wave-{seed}", values.astype(np.float32), 40.0, channels, ("m",) * len(channels))


def examples(count: int = 40) -> list[Example]:
    """Series that rise or fall: which of the two, and around what level."""
    found = []
    for n in range(count):
        draw = np.random.default_rng([9, n])
        level, up = float(draw.uniform(10, 90)), bool(n % 2)
        slope = np.linspace(-6, 6, 64) * (1 if up else -1)
        values = (level + slope + 0.3 * draw.standard_normal(64)).astype(np.float32)[:, None]
        own = (Series(f"s{n}", values, 2.0, ("heat",), ("°C",)),)
        word = "rising" if up else "falling"
        found.append(Example(own, "Where does it go?", word, "label", ("rising", "falling"), f"g{n}"))
        found.append(
            Example(own, "Which level?", f"{level:.0f} °C", "mean", (), f"g{n}", value=level, unit="°C", tolerance=2.0)
        )
    return found
