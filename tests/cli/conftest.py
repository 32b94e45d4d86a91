from __future__ import annotations

import io
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from genmote.cli import main

if TYPE_CHECKING:
    from genmote.device.profile import Profile


@dataclass
class Ran:
    """What one command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        return json.loads(self.out)


Genmote = Callable[..., Ran]


@pytest.fixture
def genmote(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Genmote:
    """Runs a command in this process, with `stdin` as its standard input."""

    def run(*words: str, stdin: str = "") -> Ran:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        capsys.readouterr()
        status = main(words)
        told = capsys.readouterr()
        return Ran(status, told.out, told.err)

    return run


@pytest.fixture(scope="session")
def board() -> Profile:
    """What device-probe could have recorded of this machine: a Raspberry Pi's figures."""
    from genmote import records
    from genmote.device import profile

    found = profile.load("pi-4b-2gb")
    compute = replace(found.compute, cores=records.usable_cores())
    return replace(found, chip=records.cpu_model(), compute=compute, measured=profile.Measured(seconds=2.0, load=0.0))


@pytest.fixture
def known_machine(board: Profile) -> Generator[None]:
    """This machine is known as `board`: else every plan for it would measure it again, for seconds."""
    from genmote.cli import _machine

    assert _machine.remember(board, force=True).startswith("remembered")
    yield
    _machine.recorded().unlink()


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The engine is the echo model, whatever is asked for; gives the keywords that it was loaded with."""
    from genmote.runtime.engine import Engine
    from genmote.runtime.fake import fake_engine

    seen: dict[str, Any] = {}

    def load(cls: type, model: str, **options: Any) -> Engine:
        seen.update(options, model=model)
        engine = fake_engine(context=options.get("context") or 4096)
        engine.chat_template = seen.get("template")
        return engine

    monkeypatch.setattr(Engine, "load", classmethod(load))
    return seen


@pytest.fixture
def talking_echo(echo: dict[str, Any]) -> dict[str, Any]:
    """The echo model with a chat format in which it can be understood."""
    from genmote.models.chat import ChatTemplate

    echo["template"] = ChatTemplate("{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}[a]")
    return echo
