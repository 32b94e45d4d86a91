"""Talk with a model: answers stream, turns are remembered.

    genmote chat smollm2-135m
    genmote chat smollm2-135m --system "You are terse." --temperature 0.7

Lines that begin with a slash are for genmote: /reset forgets the conversation, /system TEXT gives new instructions
(and forgets), /help, /quit. Ctrl-C stops an answer; at the prompt it ends the chat. A base model has no chat format:
it continues what you write. With --json, each line of standard input is a turn and each answer one JSON object on a
line.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from genmote.cli._model import ModelFlags, PrefixFlags, SamplingFlags, load, reading
from genmote.cli._output import Bar, Output, note
from genmote.cli.generate import figures, stats
from genmote.errors import ContextError, UserError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine
    from genmote.runtime.session import Session
    from genmote.runtime.stream import Stream

HELP = (
    "/reset forgets the conversation, /system TEXT gives new instructions, Ctrl-C stops an answer, "
    "/quit ends (as Ctrl-D does)"
)


@dataclass(frozen=True, kw_only=True)
class Settings(PrefixFlags, SamplingFlags, ModelFlags):
    system: str | None = setting("instructions that the conversation begins with", default=None)
    max_tokens: int = setting("most tokens of one answer", default=512, short="-n")
    stats: bool = setting("tell speed and memory after each answer, on standard error", default=False)


def run(settings: Settings, out: Output) -> None:
    settings.check_prefix()
    bar = Bar(unit_bytes=False, late=True)
    options = settings.options() | {"progress": reading(bar)}
    if sys.stdin is None:
        raise UserError("standard input is closed: the turns of a conversation come from it")
    with load(settings, chat=True) as engine:
        session = settings.session(engine)
        talk: Talk | Continuation = Continuation(engine, session, options)
        if engine.chat_template:
            talk = Talk(engine, session, settings.system, options)
        if not engine.chat_template:
            note("this model has no chat template (it is a base model): it continues the text you write")
            if settings.system is not None:
                raise UserError("--system needs a model with a chat template: leave it out, or use another model")
        tty = sys.stdin.isatty() and not out.json
        if tty:
            note(f"{settings.model}, context {engine.context} tokens; {HELP}")
        for line in lines(tty):
            if line.startswith("/"):
                if not command(talk, line):
                    break
            elif line.strip():
                answer(engine, talk, line, settings, out, bar, keep_on=tty)
        if settings.save_prefix is not None:
            session.save(settings.save_prefix)


def lines(tty: bool) -> Iterator[str]:
    """The user's lines, with a prompt and editing on a terminal."""
    if tty:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() its editing)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are told to the model as such
    while True:
        try:
            line = input("> ") if tty else sys.stdin.readline()
        except EOFError:
            return
        except KeyboardInterrupt:
            if tty:
                print()
            raise
        if not tty and not line:
            return
        yield line.rstrip("\r\n")


def command(talk: Talk | Continuation, line: str) -> bool:
    """Do what a line with a slash says; False ends the conversation."""
    word, _, rest = line.partition(" ")
    if word in ("/quit", "/exit", "/bye"):
        return False
    if word == "/reset":
        talk.reset()
    elif word == "/system" and isinstance(talk, Talk):
        talk.system = rest.strip() or None
        talk.reset()
    elif word == "/system":
        note("a base model takes no instructions: write a text for it to continue")
    else:
        note(HELP if word in ("/help", "/?") else f"{word} is no command; {HELP}")
    return True


def answer(
    engine: Engine, talk: Talk | Continuation, line: str, settings: Settings, out: Output, bar: Bar, *, keep_on: bool
) -> None:
    """One turn; on a terminal the conversation goes on after a turn that is too long, and after Ctrl-C."""
    try:
        stream = talk.say(line)
    except ContextError as fault:
        if not keep_on:
            raise
        note(f"genmote chat: {fault}")
        return
    heard = ""
    try:
        with bar:
            for piece in stream:
                heard += piece.text
                out.say(piece.text, end="")
    except KeyboardInterrupt:
        stream.close()
        out.say("")
        if not keep_on:
            raise
        talk.heard(heard)
        note("(stopped; Ctrl-C at the prompt ends the chat)")
        return
    out.say("")
    talk.heard(stream.result.text)
    values = figures(engine, stream.result)
    if settings.stats and not out.json:
        note(stats(values, "there from before"))
    out.result({"role": "assistant", "content": values.pop("text"), **values}, "")


class Talk:
    """A conversation in the model's chat format. One session keeps its rows, so that only new turns are read."""

    def __init__(self, engine: Engine, session: Session, system: str | None, options: dict[str, Any]) -> None:
        self.engine, self.session, self.system, self.options = engine, session, system, options
        self.turns: list[dict[str, str]] = []

    def reset(self) -> None:
        self.turns = []

    def say(self, line: str) -> Stream:
        """The stream of the answer to `line`. Where the context is full, the oldest turns are forgotten."""
        self.turns.append({"role": "user", "content": line})
        head = [{"role": "system", "content": self.system}] if self.system else []
        while True:
            try:
                return self.engine.stream_chat([*head, *self.turns], session=self.session, **self.options)
            except ContextError:
                if len(self.turns) < 3:
                    self.turns.pop()
                    raise
                del self.turns[:2]
                note("(the context is full: the oldest turn is forgotten)")

    def heard(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})


class Continuation:
    """A text that the user and a base model write in turn."""

    def __init__(self, engine: Engine, session: Session, options: dict[str, Any]) -> None:
        self.engine, self.session, self.options = engine, session, options
        self.text = ""

    def reset(self) -> None:
        self.text = ""

    def say(self, line: str) -> Stream:
        before = self.text
        self.text = f"{before}\n{line}" if before else line
        try:
            return self.engine.stream(self.text, session=self.session, **self.options)
        except ContextError:
            self.text = before
            raise

    def heard(self, text: str) -> None:
        self.text += text
