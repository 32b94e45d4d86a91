"""The command line: one file a verb, found by its name.

A verb's module has a docstring (its help), a frozen dataclass `Settings` (its arguments and flags, see `spec.py`) and
``run(settings, out)``. A folder is a verb that has verbs of its own, one file each, or folders again: `genmote signal
show`, `genmote eval signal forecast`. Modules whose name starts with an underscore are helpers.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import signal as system_signal  # `signal` is a verb
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from types import FrameType, ModuleType
from typing import Any, NoReturn

from genmote import __version__, registry, spec
from genmote.cli._output import Output, shown
from genmote.errors import GenmoteError, UserError

INTERRUPTED, TERMINATED, PIPE_GONE = 130, 143, 141


class Parser(argparse.ArgumentParser):
    """An argument parser whose faults are our errors: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("expected one argument", "wanted one value, which begins with no -")
        raise UserError(f"{message}{self._meant(message)}; see {self.prog} --help")

    def _meant(self, message: str) -> str:
        """A hint where an option is not known and another one is called much like it."""
        if not message.startswith("unrecognized arguments:"):
            return ""
        known = {name[2:]: name for name in self._option_string_actions if name.startswith("--")}
        for word in message.split():
            if word.startswith("--") and (found := get_close_matches(word[2:].partition("=")[0], known, n=1)):
                return f", did you mean {known[found[0]]}?"
        return ""


def verbs(group: str = "") -> dict[str, str]:
    """Every verb, or those of a verb that has its own, with the first line of its help."""
    room = _room(group)
    return {name: summary(registry.load(room, name)) for name in registry.names(room)}


def commands(group: str = "") -> list[str]:
    """What can be run: a verb, or a verb and those of its own, such as ``signal show``."""
    found: list[str] = []
    for verb in verbs(group):
        command = f"{group} {verb}".lstrip()
        found += commands(command) if is_group(registry.load(_room(group), verb)) else [command]
    return found


def _room(group: str) -> str:
    """The package of a verb's own verbs.

    >>> _room(""), _room("eval Signal")
    ('genmote.cli', 'genmote.cli.eval.signal')
    """
    return ".".join(["genmote.cli", *group.lower().replace("-", "_").split()])


def is_group(module: ModuleType) -> bool:
    return hasattr(module, "__path__")


def summary(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


def parser_of(command: str) -> tuple[Parser, ModuleType]:
    """The argument parser of a command, and its module; an unknown verb is a `UserError`."""
    group, _, verb = command.rpartition(" ")
    module = registry.load(_room(group), verb, what=f"verb of {group}" if group else "verb", error=UserError)
    parser = Parser(
        prog=f"genmote {command}",
        description=inspect.getdoc(module),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    spec.add_flags(parser, module.Settings)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser, module


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (failed), 2 (a user's mistake), 130 (Ctrl-C)."""
    # Before NumPy is loaded: its matrix library would keep a spinning thread a core beside the kernels' own threads,
    # which makes the choice of an eviction policy many times slower where a core is busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    for standard in ("stdout", "stderr"):
        if getattr(sys, standard) is None:  # closed by whoever started us: nobody wants to read it
            setattr(sys, standard, open(os.devnull, "w"))  # noqa: SIM115  (as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            # A terminal that cannot show a character shows a question mark, not a traceback.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    name = " ".join(["genmote", _command(words)]).rstrip()
    out = Output(json="--json" in (words[: words.index("--")] if "--" in words else words))
    with _terminated():
        try:
            status = _run(words, out)
            sys.stdout.flush()
            return status
        except GenmoteError as fault:
            return _tell(name, str(fault), fault.exit_status, out)
        except KeyboardInterrupt:
            return _tell(name, "interrupted", INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output has gone (`| head`): what is still buffered must not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_GONE
        except MemoryError:
            return _tell(name, "not enough memory: use a smaller model, --context or --threads", 1, out)
        except OSError as fault:
            where = f"{fault.filename}: " if fault.filename else ""
            return _tell(name, f"{where}{fault.strerror or fault}", 1, out)


def _run(words: list[str], out: Output) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"genmote {__version__}")
        return 0
    if words[0].startswith("-"):
        raise UserError(f"{words[0]} stands before any verb: write genmote VERB, see genmote --help")
    command = _command(words)
    if (module := _group(command)) is not None:
        following = words[len(command.split()) :]
        if following and following[0] not in ("-h", "--help", "help"):
            raise UserError(f"{following[0]} stands before any verb of {command}: write genmote {command} VERB")
        print(overview(command, inspect.getdoc(module) or ""))
        return 0
    if " " in words[0]:
        raise UserError(f"no verb is called {words[0]!r}: write genmote {words[0]} without quotes")
    parser, module = parser_of(command)
    parse = parser.parse_intermixed_args if getattr(module, "INTERMIXED", False) else parser.parse_args
    namespace = parse(words[len(command.split()) :])
    out.json = namespace.json
    settings: Any = spec.from_flags(module.Settings, namespace)
    status = module.run(settings, out)
    return int(status or 0)


def _command(words: Sequence[str]) -> str:
    """The verb that words begin with, and its own verbs where it has some; "" where they begin with none."""
    command = "" if not words or words[0].startswith("-") else words[0]
    for word in words[1:]:
        if _is_flag(word) or _group(command) is None:
            break
        command = f"{command} {word}"
    return command


def _group(command: str) -> ModuleType | None:
    """The module of a verb that has verbs of its own; None for all else."""
    group, _, verb = command.rpartition(" ")
    if not verb:
        return None
    try:
        module = registry.load(_room(group), verb, error=UserError)
    except UserError:  # told where it is parsed
        return None
    return module if is_group(module) else None


def _is_flag(word: str) -> bool:
    return word.startswith("-") or word == "help"


def overview(group: str = "", about: str = "generative AI on IoT devices") -> str:
    """What `genmote --help` prints, and the help of a verb that has verbs of its own."""
    listed = verbs(group)
    width = max(map(len, listed))
    lines = [f"  {name:<{width}}  {text}" for name, text in listed.items()]
    name = " ".join(["genmote", group]).rstrip()
    head = f"genmote {__version__}: {about}\n" if not group else f"{about}\n"
    return "\n".join(
        [
            head,
            f"usage: {name} VERB [arguments]\n",
            *lines,
            f"\n`{name} VERB --help` tells more; every verb takes --json.",
        ]
    )


def _tell(name: str, message: str, status: int, out: Output | None = None) -> int:
    """The fault in one line on standard error; with ``--json`` also as the one object, where there is none yet."""
    line = shown(" ".join(message.split()))
    with contextlib.suppress(OSError):
        print(f"{name}: {line}", file=sys.stderr)
        if out is not None and out.json and not out.told:
            out.result({"error": line, "status": status}, "")
            sys.stdout.flush()
    return status


@contextlib.contextmanager
def _terminated() -> Any:
    """While the block runs, SIGTERM unwinds it like Ctrl-C does, so that nothing half stays behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    try:
        before = system_signal.signal(system_signal.SIGTERM, leave)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        system_signal.signal(system_signal.SIGTERM, before)
