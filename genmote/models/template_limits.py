"""Limits of a template's run: so many lines and seconds, so large a value, so much made in all.

Each operation is checked before it makes something: what would be too large is never there. A generator is drawn into
a list while it is counted. Whatever is made is also charged to a budget, since a template can hold many values.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

MOST_SOURCE = 1 << 20  # characters of a template
MOST_STEPS = 1_000_000  # lines of the compiled template that one rendering may run
MOST_SECONDS = 10.0
MOST_SIZE = 1 << 22  # characters of any text that it may make
MOST_ITEMS = 1 << 17  # of any list or mapping, with all that is in them
MOST_MADE = 1 << 26  # bytes of all that it makes
_MOST_BITS = 4096  # of any number
_MOST_DIGITS = 1300  # that such a number has; also of a float
_WIDE = re.compile(r"\*|\{[^}]*\{|\d{5}")  # a width in a format string that pads without end
_IN_PARTS = {"sync_do_list", "do_sort", "sync_do_slice", "do_title", "do_urlencode"}  # filters that take a text apart
_SPLITS = {"split", "rsplit", "splitlines", "do_indent"}

# Methods of texts that a template may call: whose results are no longer than their arguments, or are checked here.
TEXT_METHODS = frozenset(
    "capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix "
    "removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title "
    "upper zfill".split()
)


class Limit(Exception):
    """The template went beyond a limit."""


class _Budget(threading.local):
    """What the template that this thread runs has left."""

    end = math.inf  # time.monotonic()
    left = MOST_MADE


_budget = _Budget()


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """A fresh budget of time and bytes for what runs inside."""
    before = _budget.end, _budget.left
    _budget.end, _budget.left = time.monotonic() + MOST_SECONDS, MOST_MADE
    try:
        yield
    finally:
        _budget.end, _budget.left = before


def stepwise(pieces: Iterator[str]) -> Iterator[str]:
    """Run a template while counting the lines that it runs: it may loop without writing anything."""
    left = MOST_STEPS

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        return step if frame.f_code.co_filename == "<template>" else None

    def step(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Limit(f"runs {MOST_STEPS} lines without coming to an end")
        _check_clock()
        return step

    before = sys.gettrace()
    while True:
        sys.settrace(enter)
        try:
            piece = next(pieces, None)
        finally:
            sys.settrace(before)
        if piece is None:
            return
        yield piece


def bounded_text(pieces: Iterable[str]) -> str:
    found, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_SIZE:
            raise Limit(f"writes more than {MOST_SIZE} characters")
        found.append(piece)
    return str(made("".join(found)))


def measured(value: Any) -> Any:
    """The value, when everything in it together is small enough to be written out."""
    _size(value)
    return value


def made(value: Any) -> Any:
    """A value that is new, measured and charged; of a list or tuple also the texts and lists in it, but not what is in
    a mapping, which was there before."""
    _size(value)
    inner = [part for part in value if isinstance(part, str | list | tuple)] if isinstance(value, list | tuple) else []
    if inner or isinstance(value, str | list | tuple | dict):
        _budget.left -= sys.getsizeof(value) + sum(map(sys.getsizeof, inner))
    if _budget.left < 0:
        raise Limit(f"makes more than {MOST_MADE >> 20} MB")
    return value


def drawn(values: Iterator[Any]) -> list[Any]:
    """What a generator gives, as a list that is counted while it grows."""
    found, characters, items = [], 0, 0
    for value in values:
        more = _size(value)
        characters, items = characters + more[0], items + more[1] + 1
        _check_size(characters, items)
        found.append(value)
    return found


def _size(value: Any) -> tuple[int, int]:
    """Characters and items of a value with all that is in it; raises `Limit` where they are too many."""
    _check_clock()
    characters, items, stack = 0, 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str | bytes):
            characters += len(item)
        elif isinstance(item, int):
            _check_number(item.bit_length())
            characters += item.bit_length() // 3 + 1
        elif _is_container(item):
            items += len(item)
            if items <= MOST_ITEMS:
                stack += item
                stack += item.values() if isinstance(item, Mapping) else ()
        _check_size(characters, items)
    return characters, items


def _is_container(item: Any) -> bool:
    return isinstance(item, Collection) and hasattr(type(item), "__len__")  # Jinja2's context is one without


def _check_clock() -> None:
    if time.monotonic() > _budget.end:
        raise Limit(f"runs {MOST_SECONDS:g} seconds without coming to an end")


def _check_size(characters: int, items: int = 0) -> None:
    if characters > MOST_SIZE or items > MOST_ITEMS:
        raise Limit(f"makes a value of more than {MOST_SIZE} characters or {MOST_ITEMS} items")


def _check_number(bits: int) -> None:
    if bits > _MOST_BITS:
        raise Limit(f"makes a number of more than {_MOST_BITS} bits")


def _check_form(form: str, values: Any, sign: str) -> None:
    """Refuse a format string whose fields (each begins with `sign`) could write too much of the values."""
    if _WIDE.search(form):
        raise Limit("formats with a width that has no bound")
    characters, items = _size(values)
    widest = max((int(width) for width in re.findall(r"\d+", form)), default=0)
    _check_size(len(form) + form.count(sign) * (characters + 8 * items + widest + _MOST_DIGITS))


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation before it makes something huge."""
    measured((left, right))
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str) and isinstance(times, int):
                _check_size(len(value) * times)
            elif isinstance(value, list | tuple) and isinstance(times, int):
                _check_size(0, len(value) * times)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() * right)
    if operator == "%" and isinstance(left, str):
        _check_form(left, right, "%")


def check_call(function: Any, arguments: Iterable[Any]) -> None:
    """Refuse a call of a method or filter whose arguments could make it write without end."""
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps `format`
    own = getattr(function, "__self__", None)
    values = [own, *arguments] if isinstance(own, str) else list(arguments)
    values = [value for value in values if isinstance(value, str | int | float) or _is_container(value)]
    sizes = [_size(value) for value in values]
    if any(isinstance(value, int) and abs(value) > MOST_ITEMS for value in values):
        raise Limit(f"calls for a size of {max(abs(v) for v in values if isinstance(v, int)):.3g}")
    name = getattr(function, "__name__", "")
    if not values:
        return
    first, *others = values
    if name in ("format", "format_map", "do_format"):
        _check_form(str(first), others, "%" if name == "do_format" else "{")
    elif name in _IN_PARTS and isinstance(first, str):
        _check_size(0, len(first))
    elif name in ("replace", "do_replace"):
        texts = [str(value) for value in others]
        times = max((str(first).count(text) for text in texts), default=0)
        _check_size(sizes[0][0] + times * max(map(len, texts), default=0))
    elif name in ("join", "sync_do_join"):
        between = sum(len(value) for value in values if isinstance(value, str))
        _check_size(sum(characters for characters, _ in sizes) + between * max(items for _, items in sizes))
    elif name in _SPLITS:
        separator = next((value for value in others if isinstance(value, str)), None) if name != "do_indent" else None
        parts = str(first).count(separator) if separator else sum(1 for _ in re.finditer(r"\s+", str(first)))
        _check_size(0, parts)
        if name == "do_indent":
            _check_size(sizes[0][0] + (parts + 1) * max(len(v) if isinstance(v, str) else int(v) for v in [*others, 4]))


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are measured, and whose generators become lists."""

    @functools.wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        check_call(function, (*arguments, *named.values()))
        found = function(*arguments, **named)
        return made(drawn(found) if isinstance(found, Iterator) else found)

    return checked
