"""Chat templates: the Jinja2 program in a model file that writes a conversation as the model was trained to read it.

The dialect is that of Hugging Face's ``apply_chat_template``: trimmed blocks, ``raise_exception``, ``strftime_now``,
``tojson`` without HTML escapes, ``break`` and ``continue``, ``{% generation %}``.

A template is a program from a stranger. It runs in Jinja2's immutable sandbox, which keeps it from the machine, and
under limits that keep it from the machine's time and memory: so many lines and seconds, so large a value, so long an
output. Jinja2 is imported when the first conversation is rendered.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

from genmote.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

    from genmote.models.gguf import ModelFile

MOST_SOURCE = 1 << 20  # characters of a template
MOST_STEPS = 1_000_000  # lines of the compiled template that one rendering may run
MOST_SECONDS = 10.0
MOST_SIZE = 1 << 22  # characters of any text that it may make
MOST_ITEMS = 1 << 17  # of any list or mapping, with all that is in them
_MOST_BITS = 4096  # of any number
_WIDE = re.compile(r"\*|\{[^}]*\{|\d{5}")  # a width in a format string that pads without end


class _Limit(Exception):
    """The template went beyond a limit."""


class ChatTemplate:
    """A chat template.

    >>> chatml = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    >>> ChatTemplate(chatml, eos="</s>").render([{"role": "user", "content": "Hi"}])
    '<|user|>Hi</s>'
    """

    def __init__(self, source: str, *, tool_source: str | None = None, bos: str = "", eos: str = "") -> None:
        """`source` writes conversations, `tool_source` those with tools. They are compiled when first used."""
        self.source, self.tool_source = source, source if tool_source is None else tool_source
        self._tokens = {"bos_token": bos, "eos_token": eos}

    @classmethod
    def of(cls, model: ModelFile) -> ChatTemplate | None:
        """The template of a model file; None when it has none: a base model, which continues text."""
        source = model.metadata.get("tokenizer.chat_template")
        if source is None:
            return None
        tool_source = model.metadata.get("tokenizer.chat_template.tool_use")
        if not isinstance(source, str) or not isinstance(tool_source, str | None):
            raise TemplateError(f"{model.path}: its chat template is not text; the file is damaged")
        return cls(source, tool_source=tool_source, bos=_token(model, "bos"), eos=_token(model, "eos"))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as one text.

        `messages`: mappings with ``role`` and ``content``. `tools`: function descriptions in JSON schema. `variables`
        are passed on (``enable_thinking=False``). Raises `TemplateError` where the template does not compile, refuses
        the conversation, fails, or goes beyond its limits.
        """
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise TemplateError(
                    f"message {index} is {message!r:.80}: wanted a mapping with a role and content, "
                    'such as {"role": "user", "content": "Hello"}'
                )
        template = self._tool_template if tools else self._template
        names = {**self._tokens, **variables, "messages": [dict(message) for message in messages]}
        names |= {"tools": list(tools) if tools else None, "add_generation_prompt": add_generation_prompt}
        with _failures("fails"):
            return _bounded_text(_stepwise(template.generate(names)))

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        return _compile(self.source)

    @functools.cached_property
    def _tool_template(self) -> jinja2.Template:
        return self._template if self.tool_source == self.source else _compile(self.tool_source)


def _token(model: ModelFile, name: str) -> str:
    """The text of the token that ``tokenizer.ggml.NAME_token_id`` names, or nothing."""
    token, tokens = model.metadata.get(f"tokenizer.ggml.{name}_token_id"), model.metadata.get("tokenizer.ggml.tokens")
    return str(tokens[token]) if isinstance(token, int) and tokens is not None and 0 <= token < len(tokens) else ""


def _compile(source: str) -> jinja2.Template:
    if len(source) > MOST_SOURCE:
        raise TemplateError(f"a chat template of {len(source)} characters: at most {MOST_SOURCE} are compiled")
    with _failures("does not compile"):
        return _environment().from_string(source)


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is the template's fault and becomes one line."""
    try:
        yield
    except _Limit as error:
        raise TemplateError(f"the chat template {error}: it is broken or hostile; give another template") from None
    except (RecursionError, MemoryError) as error:
        kind = type(error).__name__
        raise TemplateError(
            f"the chat template ends in {kind}: it is broken or hostile; give another template"
        ) from None
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise TemplateError(
            f"the chat template {what}: {told:.300}; change the conversation, or give another template"
        ) from error


# -- limits


def _stepwise(pieces: Iterator[str]) -> Iterator[str]:
    """Run a template while counting the lines that it runs: it may loop without writing anything."""
    left, end = MOST_STEPS, time.monotonic() + MOST_SECONDS

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        return step if frame.f_code.co_filename == "<template>" else None

    def step(_frame: FrameType, _event: str, _argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Limit(f"runs {MOST_STEPS} lines without coming to an end")
        if time.monotonic() > end:
            raise _Limit(f"runs {MOST_SECONDS:g} seconds without coming to an end")
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


def _bounded_text(pieces: Iterable[str]) -> str:
    found, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_SIZE:
            raise _Limit(f"writes more than {MOST_SIZE} characters")
        found.append(piece)
    return "".join(found)


def _measured(value: Any) -> Any:
    """The value, when everything in it together is small enough to be written out."""
    characters, items, stack = 0, 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str | bytes):
            characters += len(item)
        elif isinstance(item, int):
            _check_number(item.bit_length())
        elif _is_container(item):
            items += len(item)
            if items <= MOST_ITEMS:
                stack += item
                stack += item.values() if isinstance(item, Mapping) else ()
        _check_size(characters, items)
    return value


def _is_container(item: Any) -> bool:
    return isinstance(item, Collection) and hasattr(type(item), "__len__")  # Jinja2's context is one without


def _check_size(characters: int, items: int = 0) -> None:
    if characters > MOST_SIZE or items > MOST_ITEMS:
        raise _Limit(f"makes a value of more than {MOST_SIZE} characters or {MOST_ITEMS} items")


def _check_number(bits: int) -> None:
    if bits > _MOST_BITS:
        raise _Limit(f"makes a number of more than {_MOST_BITS} bits")


def _check_form(form: str) -> None:
    if _WIDE.search(form):
        raise _Limit("formats with a width that has no bound")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation before it makes something huge."""
    _measured((left, right))
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str) and isinstance(times, int):
                _check_size(len(value) * times)
            elif isinstance(value, list | tuple) and isinstance(times, int):
                _check_size(0, len(value) * times)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() * right)
    if operator == "%" and isinstance(left, str):
        _check_form(left)


def _check_call(function: Any, arguments: Iterable[Any]) -> None:
    """Refuse a call whose arguments could make it write without end: a width, or texts that replace each other."""
    product = 1
    for argument in (getattr(function, "__self__", None), *arguments):
        _measured(argument)
        if isinstance(argument, str) or _is_container(argument):
            product *= max(1, len(argument))
        elif isinstance(argument, int) and abs(argument) > MOST_ITEMS:
            raise _Limit(f"calls for a size of {argument:.3g}")
    _check_size(product // 64)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are measured."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        _check_call(function, (*arguments, *named.values()))
        if function.__name__ == "do_format":
            _check_form(str(arguments[0]))
        return _measured(function(*arguments, **named))

    return guarded


# -- the dialect


@functools.cache
def _environment() -> jinja2.Environment:
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator, Frame
    from jinja2.exceptions import TemplateRuntimeError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's words for training; here it only holds them."""

        tags: set[str] = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Code(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
            join = nodes.EnvironmentAttribute("joined")
            self.visit(nodes.Call(join, node.nodes, [], None, None).set_environment(self.environment), frame)

    class Environment(ImmutableSandboxedEnvironment):
        code_generator_class = Code
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def joined(self, *values: Any) -> str:
            return _bounded_text(str(_measured(value)) for value in values)

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return _measured(super().call_binop(context, operator, left, right))

        def wrap_str_format(self, value: Any) -> Any:
            if isinstance(form := getattr(value, "__self__", None), str) and value.__name__ in ("format", "format_map"):
                _check_form(form)
            return super().wrap_str_format(value)

        def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            _check_call(__obj, (*args, *kwargs.values()))
            return super().call(__context, __obj, *args, **kwargs)

    def raise_exception(message: str) -> None:
        raise TemplateRuntimeError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=_measured
    )
    environment.concat = _bounded_text  # type: ignore[method-assign]  # what blocks and macros wrote
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = tojson
    environment.filters = {name: _guarded(function) for name, function in environment.filters.items()}
    return environment
