from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from genmote.cli import main


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
