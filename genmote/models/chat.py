"""Chat templates: the Jinja2 program in a model file that writes a conversation as the model was trained to read it.

The dialect is that of Hugging Face's ``apply_chat_template``: trimmed blocks, ``raise_exception``, ``strftime_now``,
``tojson`` without HTML escapes, ``break`` and ``continue``, ``{% generation %}``.

A template is a program from a stranger. It runs in Jinja2's immutable sandbox, which keeps it from the machine, and
under limits that keep it from the machine's time and memory (`template_limits.py`). Jinja2 is imported when the first
conversation is rendered.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from genmote.errors import TemplateError
from genmote.models import template_limits as limits
from genmote.models.gguf_values import MetaArray

if TYPE_CHECKING:
    import jinja2

    from genmote.models.gguf import ModelFile

# Filters that no chat template needs: by search patterns, whose time has no bound, or by chance.
_UNUSED = frozenset(
    "filesizeformat forceescape groupby pprint random striptags urlize wordcount wordwrap xmlattr".split()
)


MEMORY_BYTES = 6 << 20  # what Jinja and a compiled template take, as measured; the libraries that Jinja loads included


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
        with _failures("fails"), limits.limited():
            return limits.bounded_text(limits.stepwise(template.generate(names)))

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        return _compile(self.source)

    @functools.cached_property
    def _tool_template(self) -> jinja2.Template:
        return self._template if self.tool_source == self.source else _compile(self.tool_source)


def _token(model: ModelFile, name: str) -> str:
    """The text of the token that ``tokenizer.ggml.NAME_token_id`` names, or nothing."""
    token, tokens = model.metadata.get(f"tokenizer.ggml.{name}_token_id"), model.metadata.get("tokenizer.ggml.tokens")
    if (
        not isinstance(token, int)
        or isinstance(token, bool)
        or not isinstance(tokens, MetaArray | list)
        or not 0 <= token < len(tokens)
    ):
        return ""
    return str(tokens[token])


def _compile(source: str) -> jinja2.Template:
    if len(source) > limits.MOST_SOURCE:
        raise TemplateError(f"a chat template of {len(source)} characters: at most {limits.MOST_SOURCE} are compiled")
    with _failures("does not compile"), limits.limited():
        return _environment().from_string(source)


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is the template's fault and becomes one line."""
    try:
        yield
    except limits.Limit as error:
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


# -- the dialect


@functools.cache
def _environment() -> jinja2.Environment:
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator, Frame
    from jinja2.exceptions import TemplateRuntimeError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.filters import do_sum
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
        """Leads through the environment what compiled templates otherwise make by themselves."""

        def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
            join = nodes.EnvironmentAttribute("joined")
            self.visit(nodes.Call(join, node.nodes, [], None, None).set_environment(self.environment), frame)

        def visit_List(self, node: nodes.List, frame: Frame) -> None:
            self._made(super().visit_List, node, frame)

        def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
            self._made(super().visit_Dict, node, frame)

        def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
            if node.ctx == "load":
                self._made(super().visit_Tuple, node, frame)
            else:
                super().visit_Tuple(node, frame)

        def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
            if isinstance(node.arg, nodes.Slice):
                self._made(super().visit_Getitem, node, frame)
            else:
                super().visit_Getitem(node, frame)

        def _made(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
            self.write("environment.made(")
            visit(node, frame)
            self.write(")")

    class Environment(ImmutableSandboxedEnvironment):
        code_generator_class = Code
        intercepted_binops = frozenset({"+", "*", "**", "%"})
        made = staticmethod(limits.made)

        def joined(self, *values: Any) -> str:
            return limits.bounded_text(str(limits.measured(value)) for value in values)

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            limits.check_operation(operator, left, right)
            return limits.made(super().call_binop(context, operator, left, right))

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            allowed = not isinstance(obj, str) or attr in limits.TEXT_METHODS
            return allowed and super().is_safe_attribute(obj, attr, value)

        def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            limits.check_call(__obj, (*args, *kwargs.values()))
            found = super().call(__context, __obj, *args, **kwargs)
            return found if getattr(__obj, "__name__", "") == "get" else limits.made(found)

    def raise_exception(message: str) -> None:
        raise TemplateRuntimeError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if not isinstance(indent, int | None) or (indent or 0) > 32 or sum(map(len, separators or ())) > 32:
            raise TemplateRuntimeError("tojson takes an indent of at most 32, and short separators")
        form = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return form.encode(value) if indent is None else limits.bounded_text(form.iterencode(value))

    def strftime_now(form: str) -> str:
        if len(form) > 1000:
            raise TemplateRuntimeError("strftime_now takes a format of at most 1000 characters")
        return datetime.now().strftime(form)

    def total(values: Any, attribute: str | int | None = None, start: float = 0) -> Any:
        if not isinstance(start, int | float):
            raise TemplateRuntimeError("sum adds numbers")
        return do_sum(environment, values, attribute, start)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=limits.measured
    )
    environment.concat = limits.bounded_text  # type: ignore[method-assign]  # what blocks and macros wrote
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    filters = {**environment.filters, "tojson": tojson, "sum": total}
    environment.filters = {name: limits.guarded(filters[name]) for name in filters.keys() - _UNUSED}
    return environment
