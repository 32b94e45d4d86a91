"""Chat templates: the dialect, the real model's known text, and what a hostile template runs into."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from genmote.errors import TemplateError
from genmote.models import template_limits as limits
from genmote.models.chat import ChatTemplate
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf

HELLO = [{"role": "user", "content": "Hello <b> & 'q'"}]
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}


def test_smollm2_speaks_chatml(smollm2: Path) -> None:
    template = ChatTemplate.of(ModelFile.open(smollm2))
    assert template is not None
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    asked = "<|im_start|>user\nHello <b> & 'q'<|im_end|>\n"
    assert template.render(HELLO) == f"{system}{asked}<|im_start|>assistant\n"
    answered = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi!"}]
    assert template.render(answered, add_generation_prompt=False) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{asked}<|im_start|>assistant\nHi!<|im_end|>\n"
    )


def test_a_base_model_has_none(gemma3: Path) -> None:
    assert ChatTemplate.of(ModelFile.open(gemma3)) is None


def write(path: Path, **metadata: Any) -> ModelFile:
    names = {f"tokenizer.{key}": value for key, value in metadata.items()}
    write_gguf(path, {**names, "tokenizer.ggml.tokens": ["a", "<s>", "</s>"]}, [])
    return ModelFile.open(path)


def test_tokens_and_the_template_for_tools_come_from_the_file(tmp_path: Path) -> None:
    model = write(
        tmp_path / "m.gguf",
        **{"ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "chat_template.tool_use": "tools: {{ tools | tojson }}"},
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    )
    template = ChatTemplate.of(model)
    assert template is not None and template.render(HELLO) == "<s>Hello <b> & 'q'</s>"
    assert template.render(HELLO, tools=[TOOL]).startswith('tools: [{"type": "function", "function": {"name": "read"')


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="its chat template is not text; the file is damaged"):
        ChatTemplate.of(write(tmp_path / "m.gguf", chat_template=3))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\nx", "user\nx"),
        ("{{ {'b': 'é<', 'a': [1, none, true]} | tojson }}", '{"b": "é<", "a": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}!", "user!"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ messages[0]['content'].split(' ')[0] ~ '-' ~ 3 }}", "Hello-3"),
        ("{% if not add_generation_prompt %}no{% endif %}{{ tools is none }}{{ thinking }}", "Trueyes"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') + '{}-{:>3}'.format(1, 'b') + '%03d' % 7 }}", "[a]1-  b007"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | join(',') }}", "user"),
        ("{{ messages[0].get('name', 'nobody') }}{{ missing }}{{ missing is defined }}", "nobodyFalse"),
    ],
)
def test_dialect(source: str, text: str) -> None:
    assert ChatTemplate(source).render(HELLO, thinking="yes") == text


def test_today() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([]) in {str(datetime.now().year + n) for n in (-1, 0)}


def test_the_conversation_is_not_changed() -> None:
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(TemplateError, match="fails: .* is unsafe"):
        ChatTemplate("{{ messages.append(1) }}").render(messages)
    assert messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", "the chat template does not compile: Unexpected end of template"),
        ("{{ raise_exception('Only users may ask') }}", "the chat template fails: Only users may ask; change"),
        ("{{ messages[0].content.nope.nope }}", "the chat template fails: .* has no attribute 'nope'; change the"),
        ("{{ 1 / 0 }}", "the chat template fails: division by zero"),
        ("{{ messages[0].content + none }}", "the chat template fails: can only concatenate str"),
        ("{{ ''.__class__.__mro__ }}", "the chat template fails: .*unsafe"),
        ("{% include 'x' %}", "the chat template fails: no loader"),
        ("x" * (limits.MOST_SOURCE + 1), "a chat template of 1048577 characters: at most 1048576 are compiled"),
    ],
)
def test_a_template_that_fails(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        ChatTemplate(source).render(HELLO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("message", [3, {"content": "a"}, {"role": 1, "content": "a"}])
def test_a_message_without_a_role(message: Any) -> None:
    with pytest.raises(TemplateError, match="message 1 is .*: wanted a mapping with a role and content"):
        ChatTemplate("x").render([*HELLO, message])


DOUBLING = (
    "{{% set ns = namespace(s={start}) %}}"
    "{{% for i in range(60) %}}{{% set ns.s = {step} %}}{{% endfor %}}{{{{ ns.s }}}}"
)
HOSTILE = {
    "loops that write nothing": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "a long output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "a repeated text": "{{ 'x' * 10 ** 9 }}",
    "a repeated list": "{{ [1] * 10 ** 9 }}",
    "a doubled text": DOUBLING.format(start="'aaaa'", step="ns.s ~ ns.s"),
    "an added text": DOUBLING.format(start="'aaaa'", step="ns.s + ns.s"),
    "a nested list": DOUBLING.format(start="[1]", step="[ns.s, ns.s]"),
    "a nested mapping": DOUBLING.format(start="[1]", step="{'a': ns.s, 'b': ns.s}"),
    "a squared number": DOUBLING.format(start="9", step="ns.s * ns.s"),
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a doubled block": "{% set ns = namespace(s='aaaa') %}{% for i in range(60) %}"
    "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "a wide filter": "{{ 'x' | center(10 ** 9) }}",
    "a wide method": "{{ 'x'.ljust(10 ** 9) }}",
    "a wide format": "{{ '{:>1000000000}'.format(3) }}",
    "a wide nested format": "{{ '{:>{w}}'.format(3, w=99999) }}",
    "a wide percent": "{{ '%1000000000d' % 3 }}",
    "a wide star": "{{ '%*d' % (99999, 3) }}",
    "a wide format filter": "{{ '%1000000000d' | format(3) }}",
    "a replacement": "{{ ('x' * 2000000).replace('x', 'y' * 2000000) }}",
    "a join": "{{ range(99999) | list | join('x' * 99999) }}",
    "a generator of long texts": "{{ range(10000) | map('string') | map('center', 100000) | list | length }}",
    "a generator that is joined": "{{ range(99999) | map('string') | join('x' * 4000000) }}",
    "a generator of lists": "{{ range(100000) | batch(1) | map('list') | map('list') | list | length }}",
    "many slices": "{{ range(99999) | list | slice(100000) | map('center', 100000) | first }}",
    "a text taken apart": "{{ ('ab ' * 1300000).split() | length }}",
    "a text taken apart at a letter": "{{ ('aba' * 1300000).rsplit('b') | length }}",
    "a text as a list": "{{ ('\u1234' * 4000000) | list | length }}",
    "a wide indent": "{{ ('a\n' * 100000) | indent(1000) | length }}",
    "a numerous replacement": "{{ ('x' * 4000000) | replace('x', 'y' * 64) | length }}",
    "a format of many fields": "{{ ('{0}' * 100000).format('x' * 40000) | length }}",
    "a percent of many fields": "{{ ('%(a)s' * 100000) % {'a': 'x' * 40000} }}",
    "a format of many wide fields": "{{ ('{:>9999}' * 100000).format(*range(99999)) }}",
    "long numbers as text": "{{ ([9 ** 1290] * 131072) ~ '' }}",
    "many values held": "".join(f"{{% set a{i} = 'x' * 4000000 %}}" for i in range(1000)),
    "many slices held": "{% set a = 'x' * 4000000 %}" + "".join(f"{{% set a{i} = a[1:] %}}" for i in range(1000)),
    "many copies held": "{% set a = 'x' * 4000000 %}" + "".join(f"{{% set a{i} = a.upper() %}}" for i in range(1000)),
    "constants": "{{ " + " ~ ".join(["('x' | center(100000))"] * 5000) + " }}",
    "comparing trees": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "two calls of itself": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a tree of calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
}


GREEDY = (
    "a generator of long texts, a text taken apart, a text as a list, a wide indent, a numerous replacement, "
    "a format of many fields, a percent of many fields, long numbers as text, many values held, many slices held"
).split(", ")
TOLD = {
    "a nested list": "makes a value of more than 4194304 characters or 131072 items",
    "a squared number": "makes a number of more than 4096 bits",
    "a wide star": "formats with a width that has no bound",
    "a wide method": r"calls for a size of 1e\+09",
    "a generator of long texts": "makes a value of more than 4194304 characters or 131072 items",
    "many values held": "makes more than 64 MB",
    "a long output": "writes more than 4194304 characters",
    "loops that write nothing": "runs 1000000 lines without coming to an end",
    "two calls of itself": "ends in RecursionError",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template(name: str) -> None:
    """It ends in time, says which limit, and takes little memory: beside the limit on what it makes there may be one
    value that is still being made."""
    ChatTemplate("x").render([])
    if name in GREEDY:
        tracemalloc.start()
    started = time.perf_counter()
    told = f"the chat template {TOLD.get(name, '.*')}: it is broken or hostile; give another template"
    try:
        with pytest.raises(TemplateError, match=told):
            ChatTemplate(HOSTILE[name]).render(HELLO)
        assert time.perf_counter() - started < 2 * limits.MOST_SECONDS
        assert tracemalloc.get_traced_memory()[1] < limits.MOST_MADE + 8 * limits.MOST_SIZE
    finally:
        tracemalloc.stop()


def test_the_limit_of_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_SECONDS", 0.0)
    with pytest.raises(TemplateError, match="the chat template runs 0 seconds without coming to an end: it is broken"):
        ChatTemplate(HOSTILE["loops that write nothing"]).render(HELLO)


REFUSED = {
    "adding lists": ("{{ range(50000) | batch(1) | sum(start=[]) }}", "sum adds numbers"),
    "a translation": ("{{ ('x' * 4000000).translate({120: 'y' * 100000}) }}", "'translate' of 'str' object is unsafe"),
    "tabs": ("{{ ('\t' * 4000000).expandtabs(100000) }}", "'expandtabs' of 'str' object is unsafe"),
    "an encoding": ("{{ ('x' * 4000000).encode('utf-32') }}", "'encode' of 'str' object is unsafe"),
    "a wide JSON": ("{{ range(99999) | list | tojson(indent=100000) }}", "tojson takes an indent of at most 32"),
    "a long date": ("{{ strftime_now('%c' * 2000000) }}", "strftime_now takes a format of at most 1000 characters"),
    "chance": ("{{ messages | random }}", "No filter named 'random'"),
}


@pytest.mark.parametrize(("source", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_template_needs(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render(HELLO)


def test_a_filter_gives_a_list_that_may_be_read_twice() -> None:
    source = (
        "{% set x = [1, 2] | map('string') %}{{ x | join }}{{ x | join }}{{ x | length }}{{ {'a': 1} | items | list }}"
    )
    assert ChatTemplate(source).render([]) == "12122[('a', 1)]"


def test_a_long_conversation_is_within_the_limits(smollm2: Path) -> None:
    template = ChatTemplate.of(ModelFile.open(smollm2))
    assert template is not None
    text = template.render([{"role": ("user", "assistant")[i % 2], "content": f"{i} " * 100} for i in range(2000)])
    assert text.count("<|im_start|>") == 2002


def test_a_tracer_stays_and_threads_render_at_once() -> None:
    template = ChatTemplate("{% for i in range(3000) %}{{ messages[0].content }}{% endfor %}")
    seen: list[bool] = []

    def render(letter: str) -> None:
        seen.append(template.render([{"role": "user", "content": letter}]) == letter * 3000)

    def tracer(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        render("z")
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    threads = [threading.Thread(target=render, args=(letter,)) for letter in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 4


def test_jinja_is_imported_when_a_conversation_is_rendered() -> None:
    code = (
        "import sys; from genmote.models.chat import ChatTemplate as C; t = C('x'); assert 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code + "; assert t.render([]) == 'x'; import jinja2"], check=True)
