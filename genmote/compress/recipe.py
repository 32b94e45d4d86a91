"""A recipe: what to calibrate on, and a list of steps in the order in which they are done.

    [calibration]
    windows = 32

    [[step]]
    use = "gptq"
    type = "Q4_0"

>>> Recipe.of({"step": [{"use": "rtn", "type": "Q8_0"}]}).steps[0].type
'Q8_0'
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genmote import registry
from genmote.compress.calibration import Calibration
from genmote.compress.steps._base import Step
from genmote.errors import OpsError, SpecError
from genmote.spec import build, to_toml

ROOM = "genmote.compress.steps"


def names() -> list[str]:
    """The steps that there are."""
    return registry.names(ROOM)


def need_torch() -> None:
    """Raise OpsError where PyTorch is absent."""
    if importlib.util.find_spec("torch") is None:
        raise OpsError("compress needs PyTorch, which is not installed: run pip install 'genmote[workbench]'")


def step_class(name: str) -> type[Step]:
    """The class of the step `name`; SpecError for one that there is not, OpsError where PyTorch is absent."""
    need_torch()
    module = registry.load(ROOM, name, what="step")
    member: type[Step] = next(
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, Step) and x.__module__ == module.__name__
    )
    return member


def step_name(step: Step) -> str:
    return type(step).__module__.rpartition(".")[2].replace("_", "-")


@dataclass(frozen=True)
class Recipe:
    """Steps in order, and the text that they calibrate on."""

    steps: tuple[Step, ...]
    calibration: Calibration = field(default_factory=Calibration)

    @classmethod
    def of(cls, values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
        """A recipe from plain values, as TOML gives them; one SpecError lists every fault."""
        faults = [f"{key} is no part of a recipe (known: calibration, step)" for key in values if key not in PARTS]
        steps: list[Step] = []
        listed = values.get("step", [])
        if not isinstance(listed, list) or not listed or not all(isinstance(item, Mapping) for item in listed):
            faults.append('no steps: write a [[step]] with use = "NAME" for each')
            listed = []
        for number, item in enumerate(listed, 1):
            settings = dict(item)
            name = settings.pop("use", None)
            try:
                if not isinstance(name, str):
                    raise SpecError(f"use={name!r}: name a step (known: {', '.join(names())})")
                steps.append(build(step_class(name), settings, where=name))
            except SpecError as fault:
                faults.append(f"step {number}: {fault}")
        calibration = Calibration()
        given = values.get("calibration", {})
        try:
            if not isinstance(given, Mapping):
                raise SpecError(f"calibration={given!r}: wanted a table, such as [calibration] with windows = 32")
            calibration = build(Calibration, given, where="calibration")
        except SpecError as fault:
            faults.append(str(fault))
        if faults:
            raise SpecError(f"{where}: " + "; ".join(faults))
        return cls(tuple(steps), calibration)

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """A recipe out of a TOML file."""
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as fault:
            raise SpecError(f"{path}: cannot be read ({fault.strerror}): wanted a recipe in TOML") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
            raise SpecError(f"{path}: not TOML: {fault}") from None
        return cls.of(values, where=str(path))

    def values(self) -> dict[str, Any]:
        """What `of` takes, with every default written out."""
        steps = [{"use": step_name(step), **asdict(step)} for step in self.steps]
        return {"calibration": self.calibration.values(), "step": steps}

    def toml(self) -> str:
        """The recipe as `read` takes it, a line for each rule of a list."""
        parts = [f"[calibration]\n{to_toml(self.calibration)}"]
        parts += [f'[[step]]\nuse = "{step_name(step)}"\n{to_toml(step)}' for step in self.steps]
        return "\n".join(parts).replace('", "', '",\n    "')


PARTS = ("calibration", "step")
