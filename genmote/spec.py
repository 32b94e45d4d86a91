"""Settings: one dataclass is the Python argument, the TOML file, the command line flag and the record's field.

A field's type says what is accepted: ``int``, ``float``, ``str``, ``bool``, ``Path``, ``Literal[...]``, ``X | None``,
``tuple[X, ...]``, and (in TOML) another dataclass. :func:`setting` gives a field its help. All faults are listed at
once.

>>> @dataclass(frozen=True)
... class Gptq:
...     bits: int = setting("bits a weight", default=4)
...     damp: float = setting("share of the mean diagonal that is added", default=0.01)
>>> build(Gptq, {"bits": 3})
Gptq(bits=3, damp=0.01)
>>> build(Gptq, {"bit": 3, "damp": "much"})
Traceback (most recent call last):
genmote.errors.SpecError: Gptq: bit is no setting, did you mean bits? (known: bits, damp); damp='much', wanted a number
"""

from __future__ import annotations

import argparse
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from genmote import registry
from genmote.errors import SpecError
from genmote.registry import near

T = TypeVar("T")
__all__ = ["add_flags", "build", "dataclass", "from_flags", "from_toml", "member", "setting", "to_toml"]


def setting(
    help: str,
    *,
    default: Any = MISSING,
    positional: bool = False,
    short: str | None = None,
    flag: str | None = None,
    many: bool = False,
) -> Any:
    """A dataclass field with its help line; `positional`, `short` (as in ``-n``), `flag` (where that cannot be the
    field's name: ``--from``) and `many` (a flag of a tuple takes all words up to the next flag) shape its command line
    form."""
    metadata = {"help": help, "positional": positional, "short": short, "flag": flag, "many": many}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def build(cls: type[T], values: Mapping[str, Any], *, where: str | None = None) -> T:
    """An instance of the dataclass `cls` from plain values; raises one `SpecError` that lists every fault."""
    faults: list[str] = []
    made = _build(cls, values, faults, "")
    if faults:
        raise SpecError(f"{where or cls.__name__}: " + "; ".join(faults))
    return typing.cast(T, made)


def member(package: str, base: type[T], text: str, *, what: str, where: str) -> T:
    """The member of a room that a text names, with its settings: ``NAME[:FIELD=VALUE,...]``. `base` is the class that
    the room's members are, `what` one is called, `where` begins the faults.

    >>> from genmote.runtime.evict._base import Evict
    >>> member("genmote.runtime.evict", Evict, "window:sinks=2", what="eviction policy", where="evict")
    Window(sinks=2, recent=0.25)
    """
    name, _, settings = text.partition(":")
    module = registry.load(package, name, what=what)
    cls: type[T] = next(
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, base) and x.__module__ == module.__name__
    )
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for pair in filter(None, settings.split(",")):
        field, _, value = pair.partition("=")
        try:
            values[field] = (
                int(value) if hints.get(field) is int else number(value) if hints.get(field) is float else value
            )
        except ValueError:
            raise SpecError(f"{where}: {pair!r} is no number; write it like {field}=8") from None
    return build(cls, values, where=where)


def _build(cls: Any, values: Mapping[str, Any], faults: list[str], prefix: str) -> Any:
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    unmade = False
    for name in values:
        if name not in known:
            hint = near(name, list(known))
            faults.append(f"{prefix}{name} is no setting{hint or ','} (known: {', '.join(known)})")
            unmade = True
    given: dict[str, Any] = {}
    for name, f in known.items():
        needed = f.default is MISSING and f.default_factory is MISSING
        if name in values:
            before = len(faults)
            given[name] = _convert(hints[name], values[name], faults, prefix + name)
            if len(faults) > before:  # the default takes its place, so that the other values are looked at too
                del given[name]
                unmade = unmade or needed
        elif needed:
            faults.append(f"{prefix}{name} is missing{_wanted(hints[name], ', wanted ')}")
            unmade = True
    if unmade:
        return None
    made = cls(**given)
    # A class tells more about its values than their types by a method `faults() -> Iterable[str]`.
    more: Iterable[str] = made.faults() if hasattr(made, "faults") else ()
    faults.extend(prefix + fault for fault in more)
    return made


def _convert(hint: Any, value: Any, faults: list[str], name: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        return _convert(next(h for h in inner if h is not type(None)), value, faults, name)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(inner[0], item, faults, f"{name}[{i}].") for i, item in enumerate(value))
    if is_dataclass(hint) and isinstance(value, Mapping):
        return _build(hint, value, faults, name if name.endswith(".") else name + ".")
    if origin is typing.Literal and value in inner:
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    faults.append(f"{name.rstrip('.')}={value!r}{_wanted(hint, ', wanted ')}")
    return None


def _wanted(hint: Any, before: str = "") -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _wanted(next(h for h in inner if h is not type(None)), before)
    if origin is typing.Literal:
        return before + "one of " + ", ".join(map(str, inner))
    if origin is tuple or is_dataclass(hint):
        return before + ("a list" if origin is tuple else "a table")
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return before + words.get(hint, getattr(hint, "__name__", str(hint)))


def from_toml(cls: type[T], path: str | Path) -> T:
    """An instance of `cls` from a TOML file; unreadable or faulty files raise `SpecError`."""
    import tomllib

    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as fault:
        raise SpecError(f"{path}: cannot be read ({fault.strerror}): wanted a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise SpecError(f"{path}: not TOML: {fault}") from None
    return build(cls, values, where=str(path))


def to_toml(instance: Any) -> str:
    """The settings as TOML text that :func:`from_toml` reads back to an equal instance; None is left out."""
    plain: list[str] = []
    tables: list[str] = []
    for f in fields(instance):
        value = getattr(instance, f.name)
        many = isinstance(value, tuple) and value and is_dataclass(value[0])
        if is_dataclass(value) or many:
            brackets = "[[{}]]" if many else "[{}]"
            tables += [f"\n{brackets.format(f.name)}\n{to_toml(part)}" for part in (value if many else (value,))]
        elif value is not None:
            plain.append(f"{f.name} = {_literal(value)}\n")
    return "".join(plain + tables)


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # a JSON string is a TOML string too


def add_flags(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Give `parser` one argument a field: ``max_tokens: int`` becomes ``--max-tokens N``, a bool a switch."""
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        _add_flag(parser, f, hints[f.name])


def _add_flag(parser: argparse.ArgumentParser, f: Field[Any], hint: Any) -> None:
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if optional:
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    required = f.default is MISSING and f.default_factory is MISSING
    help_text = f.metadata.get("help", "")
    if f.default is not MISSING and f.default is not None and not isinstance(f.default, (bool, tuple)):
        help_text += f" (default {f.default})"
    options: dict[str, Any] = {"help": help_text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction if f.default is True else "store_true"
    else:
        item = inner[0] if origin is tuple else hint
        if typing.get_origin(item) is typing.Literal:
            options["choices"] = typing.get_args(item)
            options["type"] = type(options["choices"][0])
        else:
            options["type"] = number if item is float else item
    if f.metadata.get("positional"):
        if origin is tuple:
            options["nargs"] = "+" if required else "*"
        elif not required:
            options["nargs"] = "?"
        parser.add_argument(f.name, metavar=f.name.upper(), **options)
        return
    if origin is tuple and f.metadata.get("many"):
        options |= {"action": "extend", "nargs": "+"}
    elif origin is tuple:
        options["action"] = "append"
    if "type" in options and "choices" not in options:
        options["metavar"] = {int: "N", number: "X", Path: "FILE"}.get(options["type"], "TEXT")
    flags = [f.metadata.get("flag") or "--" + f.name.replace("_", "-")]
    if f.metadata.get("short"):
        flags.insert(0, f.metadata["short"])
    parser.add_argument(*flags, dest=f.name, required=required, **options)


def number(text: str) -> float:
    """A number on the command line, which may be a percentage: ``50%`` is 0.5. Raises ValueError, also for a percentage
    above 100: as a number it could mean so many of something."""
    if not text.endswith("%"):
        return float(text)
    if (share := float(text.removesuffix("%"))) > 100:
        raise ValueError(f"{text}: more than 100%")
    return share / 100


def from_flags(cls: type[T], namespace: argparse.Namespace) -> T:
    """An instance of `cls` from what `parser.parse_args` gave; raises `SpecError` on every fault at once."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    return build(cls, {k: v for k, v in vars(namespace).items() if k in names}, where="command line")
