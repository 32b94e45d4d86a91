"""generate, chat, perplexity: what they print around an engine that needs no model."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genmote.cli import generate, main
from genmote.errors import UserError
from tests.cli.conftest import Genmote

KEYS = {
    "text",
    "prompt_tokens",
    "prefill_tokens_per_s",
    "decode_tokens",
    "decode_tokens_per_s",
    "first_token_ms",
    "load_ms",
    "peak_rss_bytes",
}


def test_generate_streams_the_text(genmote: Genmote, echo: dict[str, Any]) -> None:
    ran = genmote("generate", "m", "--prompt", "ab ab", "--max-tokens", "5", "--threads", "2", "--isa", "avx2")
    assert (ran.status, ran.out, ran.err) == (0, " ab a\n", "")
    assert (echo["model"], echo["threads"], echo["isa"], echo["adapter"]) == ("m", 2, "avx2", None)


def test_generate_as_json_has_the_promised_keys(genmote: Genmote, echo: dict[str, Any]) -> None:
    told = genmote("generate", "m", "--prompt", "ab ab", "--max-tokens", "5", "--temperature", "0", "--json").json
    assert set(told) >= KEYS
    assert told["text"] == " ab a" and told["prompt_tokens"] == 6 and told["decode_tokens"] == 5
    assert told["finish_reason"] == "length" and told["peak_rss_bytes"] > 10**6


def test_prompts_from_files_and_pipes(genmote: Genmote, echo: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("ab ab")
    assert genmote("generate", "m", "--file", str(tmp_path / "p.txt"), "-n", "5").out == " ab a\n"
    assert genmote("generate", "m", "-n", "5", stdin="ab ab").out == " ab a\n"
    assert genmote("generate", "m", "-n", "5", "--file", "-", stdin="ab ab").out == " ab a\n"


def test_the_work_on_a_prompt_is_kept(genmote: Genmote, echo: dict[str, Any], tmp_path: Path) -> None:
    kept, words = str(tmp_path / "kept"), ("generate", "m", "-n", "5", "--json", "-p")
    first = genmote(*words, "ab ab ab ab", "--save-prefix", kept)
    assert (first.status, first.json["cached_tokens"]) == (0, 0)
    again = genmote(*words, "ab ab ab ab", "--prefix", kept).json
    assert again["text"] == first.json["text"]
    assert again["cached_tokens"] == again["prompt_tokens"] - 1  # the last is run for what follows
    told = genmote(*[word for word in words if word != "--json"], "ab ab ab ab", "--prefix", kept, "--stats").err
    asked, cached = again["prompt_tokens"], again["cached_tokens"]
    assert f"prompt {asked} tokens, {cached} of them from the prefix, {asked - cached} read at " in told
    more = genmote(*words, "ab ab ab abc", "--prefix", kept).json
    other = genmote(*words, "x", "--prefix", kept).json
    assert (more["cached_tokens"], other["cached_tokens"]) == (12, 1)
    assert genmote(*words, "x").json["text"] == other["text"]


def test_chat_keeps_the_work_on_its_instructions(
    genmote: Genmote, talking_echo: dict[str, Any], tmp_path: Path
) -> None:
    words = ("chat", "m", "-n", "3", "--json", "--system", "ab " * 20)
    first = genmote(*words, "--save-prefix", str(tmp_path / "kept"), stdin="xyz\n/quit\n")
    again = genmote(*words, "--prefix", str(tmp_path / "kept"), stdin="xyz\n")
    assert again.json["content"] == first.json["content"]
    assert first.json["cached_tokens"] == 0 and again.json["cached_tokens"] > 60


def test_a_kept_prompt_that_cannot_be_used_is_one_line(genmote: Genmote, echo: dict[str, Any], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"GENMOTE-PREFIX 1\nand more")
    for words, said in (
        (["--prefix", "/no/such"], "--prefix /no/such: no such file; make it with --save-prefix"),
        (["--prefix", str(damaged)], "is no whole saved prefix: its checksum does not match; delete it"),
        (["--save-prefix", "/no/such/file"], "/no/such is no folder: make it first, or choose another --save-prefix"),
    ):
        ran = genmote("generate", "m", "-p", "a", "-n", "1", *words)
        assert ran.status == 2 and said in ran.err and ran.err.count("\n") == 1


def test_a_closed_standard_input(genmote: Genmote, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["chat", "m"]) == main(["generate", "m", "--file", "-"]) == main(["generate", "m"]) == 2


@pytest.mark.parametrize(("verb", "status"), [("models", 0), ("nonsense", 2)])
def test_closed_standard_outputs(verb: str, status: int, own_home: Path) -> None:
    command = 'exec "$0" -m genmote.cli "$1" >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, sys.executable, verb], check=False).returncode == status


def test_bytes_that_are_no_text_do_not_end_a_chat(
    genmote: Genmote, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9 \xff\nab ab\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    assert main(["chat", "m", "-n", "2", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_constraints_that_cannot_be_are_told_before_a_model_is_loaded(
    genmote: Genmote, echo: dict[str, Any], tmp_path: Path, verb: str
) -> None:
    pytest.importorskip("llguidance")
    (tmp_path / "s.json").write_text('{"type": "integer", "minimum": 5, "maximum": 3}')
    (tmp_path / "g.lark").write_text("start: other")
    (tmp_path / "good.lark").write_text('start: "a"')
    (tmp_path / "good.json").write_text("{}")
    for words, said in (
        (["--schema", "s.json"], "bad json_schema: Unsatisfiable schema: minimum (5) is greater than maximum (3)"),
        (["--grammar", "g.lark"], 'bad lark: at 1(8): unknown name: "other"'),
        (["--schema", "good.json", "--grammar", "good.lark"], "--schema and --grammar are each a constraint"),
        (["--save-prefix", "no/file"], "is no folder: make it first, or choose another --save-prefix"),
    ):
        named = [str(tmp_path / word) if "." in word or "/" in word else word for word in words]
        ran = genmote(verb, "m", *named, stdin="a")
        assert ran.status == 2 and said in ran.err and ran.err.count("\n") == 1
    assert "model" not in echo  # none was loaded


def test_a_share_may_be_a_percentage(genmote: Genmote, echo: dict[str, Any]) -> None:
    assert genmote("generate", "m", "-p", "a", "-n", "1", "--kv-tokens", "50%").status == 0
    assert echo["kv_tokens"] == 0.5
    ran = genmote("generate", "m", "-p", "a", "--kv-tokens", "half")
    assert ran.status == 2 and "argument --kv-tokens: invalid number value: 'half'" in ran.err


@pytest.mark.parametrize("verb", ["generate", "chat", "perplexity"])
def test_how_much_of_a_long_prompt_was_read_is_told(
    genmote: Genmote, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    now = iter(range(100_000))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    (tmp_path / "t.txt").write_text("ab " * 500)
    if verb == "perplexity":
        ran = genmote("perplexity", "m", str(tmp_path / "t.txt"), "--context", "64")
    else:
        ran = genmote(verb, "m", "-n", "2", stdin="ab " * 500)
    assert ran.status == 0
    told = [line for line in ran.err.splitlines() if "% of" in line]
    what = "windows scored" if verb == "perplexity" else "reading the prompt, tokens"
    assert len(told) >= 3 and told[-1] == f"{what}: 100% of {told[-1].split()[-1]}" and "s left" in told[-2]


def test_line_ends_of_piped_text_stay(genmote: Genmote, echo: dict[str, Any]) -> None:
    assert genmote("generate", "m", "-n", "1", "--json", stdin="a\r\nb").json["prompt_tokens"] == 1 + 4


def test_stats_go_to_standard_error(genmote: Genmote, echo: dict[str, Any]) -> None:
    ran = genmote("generate", "m", "-p", "ab ab", "-n", "5", "--stats")
    assert ran.out == " ab a\n" and ran.err.startswith("prompt 6 tokens at ") and ran.err.count("\n") == 2
    last = ran.err.splitlines()[-1]
    energy = r"energy (unavailable|[\d.e+-]+ J \(measured: .+\))"
    assert re.fullmatch(rf"in all [\d.]+ s, disk read .+, written .+, {energy}", last)


def test_the_meter_tells_what_all_of_it_took(
    genmote: Genmote, echo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genmote.device import meter

    words = ("generate", "m", "-p", "ab ab", "-n", "5", "--save-prefix", str(tmp_path / "kept"), "--json")
    monkeypatch.setattr(meter.energy, "find", lambda root: None)
    told = genmote(*words).json["meter"]
    assert (told["energy"], "energy_j" in told, told["tokens"]) == ("unavailable", False, 5)
    assert told["wall_s"] > 0 and told["peak_rss_bytes"] > 0
    assert told.get("written_bytes", 1) > 0  # the prefix; absent where the system does not tell

    class Counter:
        of = "a counter"

        def start(self) -> None: ...

        def stop(self) -> float:
            return 2.5

    monkeypatch.setattr(meter.energy, "find", lambda root: Counter())
    told = genmote(*words).json["meter"]
    assert (told["energy"], told["energy_j"], told["energy_of"]) == ("measured", 2.5, "a counter")
    assert told["energy_mj_per_token"] == 500.0
    err = genmote(*words[:-1], "--stats").err
    assert err.endswith("energy 2.5 J (measured: a counter)\n")
    monkeypatch.setattr(meter, "Meter", None)  # is not even made where nobody asks
    assert genmote(*words[:-1]).status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--file", "b"], "--prompt and --file are both given: wanted one text"),
        (["--file", "/no/such"], "/no/such cannot be read (No such file or directory): wanted a text file"),
        (["-p", "a", "--schema", "/no/such"], "/no/such cannot be read"),
        (["-p", "a", "--max-tokens", "0"], "max_tokens=0: use a whole number of at least 1"),
        (["-p", "a", "--top-p", "7", "--min-p", "-1"], "top_p=7.0"),
        (["-p", "a" * 5000], "5001 tokens, the context is 4096"),
    ],
)
def test_bad_input_is_one_line(genmote: Genmote, echo: dict[str, Any], words: list[str], message: str) -> None:
    ran = genmote("generate", "m", *words)
    assert ran.status == 2 and ran.out == ""
    assert message in ran.err and ran.err.count("\n") == 1


def test_a_file_that_is_no_text(genmote: Genmote, echo: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "p.bin").write_bytes(b"\xff\xfe\x00")
    ran = genmote("generate", "m", "--file", str(tmp_path / "p.bin"))
    assert ran.status == 2 and "p.bin is not UTF-8 text: wanted a text file" in ran.err


def test_no_prompt_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(UserError, match="no text to continue: give --prompt TEXT or --file FILE, or pipe it in"):
        generate.prompt_of(generate.Settings(model="m"))


def test_grammar_files(genmote: Genmote, echo: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    (tmp_path / "g.lark").write_text('start: "yes" | "no"\n')
    assert genmote("generate", "m", "-p", "a", "--grammar", str(tmp_path / "g.lark")).out in ("yes\n", "no\n")
    (tmp_path / "g.gbnf").write_text('root ::= "on" | "off"\n')
    assert genmote("generate", "m", "-p", "a", "--grammar", str(tmp_path / "g.gbnf")).out in ("on\n", "off\n")
    (tmp_path / "s.json").write_text('{"enum": ["x"]}')
    assert genmote("generate", "m", "-p", "a", "--schema", str(tmp_path / "s.json")).out == '"x"\n'
    (tmp_path / "bad.json").write_text("{")
    ran = genmote("generate", "m", "-p", "a", "--schema", str(tmp_path / "bad.json"))
    assert ran.status == 2 and "bad.json, line 1 column 2: Expecting property name" in ran.err


def test_an_answer_that_was_cut_short_is_told(genmote: Genmote, echo: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    (tmp_path / "s.json").write_text('{"enum": ["a long answer"]}')
    ran = genmote("generate", "m", "-p", "a", "-n", "3", "--schema", str(tmp_path / "s.json"))
    assert ran.status == 0 and ran.out == '"a \n'
    assert ran.err == "genmote generate: the text was cut short and is not whole: raise --max-tokens 3\n"


def interrupted_after(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come while the first text is written, after so many of its pieces."""
    from genmote.runtime.stream import Stream

    count, before = iter(range(1000)), Stream.__next__

    def take(self: Stream) -> Any:
        if next(count) == pieces:
            raise KeyboardInterrupt
        return before(self)

    monkeypatch.setattr(Stream, "__next__", take)


def test_ctrl_c_ends_the_line_first(genmote: Genmote, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(2, monkeypatch)
    ran = genmote("generate", "m", "-p", "ab ab")
    assert ran.status == 130 and ran.out == " a\n" and ran.err == "genmote generate: interrupted\n"


def test_ctrl_c_at_a_terminal_stops_only_the_answer(
    talking_echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said: Iterator[str | None] = iter(["hello", "again", None])

    def ask(prompt: str) -> str:
        if (line := next(said)) is None:
            raise KeyboardInterrupt
        return line

    interrupted_after(2, monkeypatch)
    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["chat", "m", "-n", "4"]) == 130
    ran = capsys.readouterr()
    assert "(stopped; Ctrl-C at the prompt ends the chat)" in ran.err
    assert len(ran.out.splitlines()) == 3, "a stopped answer, a whole one, and the end of the prompt's line"


def test_chat_remembers_turns(genmote: Genmote, talking_echo: dict[str, Any]) -> None:
    ran = genmote("chat", "m", "-n", "3", "--json", stdin="xyz xyz\nmore\n/reset\nxyz xyz\n/quit\nnever\n")
    first, second, third = (json.loads(line) for line in ran.out.splitlines())
    assert ran.status == 0 and first["role"] == "assistant"
    assert second["prompt_tokens"] > first["prompt_tokens"] == third["prompt_tokens"]
    assert third["content"] == first["content"]


def test_chat_with_a_system_message(genmote: Genmote, talking_echo: dict[str, Any]) -> None:
    words = ("chat", "m", "-n", "2", "--json", "--system", "S")
    ran = genmote(*words, stdin="a\n/system longer words\na\n/system\na\n")
    counts = [json.loads(line)["prompt_tokens"] for line in ran.out.splitlines()]
    assert counts == [1 + len("[s]S[u]a[a]"), 1 + len("[s]longer words[u]a[a]"), 1 + len("[u]a[a]")]


def test_chat_forgets_the_oldest_turn_where_the_context_is_full(genmote: Genmote, talking_echo: dict[str, Any]) -> None:
    ran = genmote("chat", "m", "-n", "3", "--context", "64", stdin="\n".join(["twelve words"] * 8) + "\n")
    assert ran.status == 0 and len(ran.out.splitlines()) == 8
    assert "(the context is full: the oldest turn is forgotten)" in ran.err


def test_chat_with_a_turn_that_never_fits(genmote: Genmote, talking_echo: dict[str, Any]) -> None:
    ran = genmote("chat", "m", "--context", "64", stdin="x" * 100 + "\n")
    assert ran.status == 2 and "the context is 64" in ran.err


def test_a_base_model_says_so_and_continues(genmote: Genmote, echo: dict[str, Any]) -> None:
    ran = genmote("chat", "m", "-n", "5", stdin="ab ab\n/system x\n/what\n")
    assert ran.status == 0 and ran.out == " ab a\n"
    notes = ran.err.splitlines()
    assert notes[0] == "this model has no chat template (it is a base model): it continues the text you write"
    assert "a base model takes no instructions" in notes[1] and notes[2].startswith("/what is no command; /reset")


def test_a_base_model_takes_no_system_message(genmote: Genmote, echo: dict[str, Any]) -> None:
    ran = genmote("chat", "m", "--system", "x", stdin="")
    assert ran.status == 2 and "--system needs a model with a chat template" in ran.err


def test_perplexity(genmote: Genmote, echo: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("ab" * 600)
    ran = genmote("perplexity", "m", str(tmp_path / "t.txt"), "--context", "64", "--chunks", "3", "--json")
    told = ran.json
    assert told["chunks"] == 3 and told["context"] == 64 and 1 <= told["perplexity"] < 2
    assert ran.err == ""
    ran = genmote("perplexity", "m", str(tmp_path / "t.txt"), "--context", "64")
    assert ran.out.startswith("perplexity 1.") and "over 18 windows of 64 tokens" in ran.out


def test_perplexity_of_what_cannot_be_read(genmote: Genmote, echo: dict[str, Any]) -> None:
    ran = genmote("perplexity", "m", "/no/such")
    assert ran.status == 2 and "/no/such cannot be read" in ran.err
    ran = genmote("perplexity", "m", "-", "--context", "512", stdin="short")
    assert ran.status == 2 and "one window takes 512" in ran.err


def test_adapters_with_scales(genmote: Genmote, echo: dict[str, Any]) -> None:
    genmote("generate", "m", "-p", "a", "-n", "1", "--adapter", "x.gguf", "--adapter", "y.gguf:0.5")
    assert echo["adapter"] == [("x.gguf", 1.0), ("y.gguf", 0.5)]


def test_serve_says_what_cannot_be(genmote: Genmote, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = genmote("serve", "m", "--host", "0.0.0.0")
    assert ran.status == 2 and "set a key (--key or GENMOTE_API_KEY)" in ran.err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "genmote.web.server", raising=False)
    monkeypatch.delattr("genmote.web.server", raising=False)
    ran = genmote("serve", "m")
    assert ran.status == 2 and "serving needs uvicorn: pip install 'genmote[server]'" in ran.err


def test_the_governor_tells_its_steps(genmote: Genmote, echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from genmote.device.sensors import Memory, Seen, Sensors

    full = Seen(memory=Memory(10**6, 10**8, "this machine"))
    monkeypatch.setattr(Sensors, "read", lambda self: full)
    words = ("generate", "m", "-p", "ab", "-n", "3")
    told = "governor: 0.0 s: memory: 1.0 MB of 100.0 MB left (this machine): nothing: no pinned weights"
    ran = genmote(*words, "--governor")
    assert ran.status == 0 and ran.err.startswith(told)
    (step,) = genmote(*words, "--governor", "--json").json["governor"]
    assert step["sensor"] == "memory" and step["lossless"] is True and step["why"] == "below 3.0 MB, wanted 8.0 MB"
    assert "governor" not in genmote(*words, "--json").json
    ran = genmote(*words, "--governor-kv", "64")
    assert ran.status == 2 and "--governor-kv bounds the governor: give --governor too, or --kv-tokens" in ran.err
    ran = genmote(*words, "--governor", "--governor-kv", "8")
    assert ran.status == 2 and "governor: kv_tokens=8, wanted at least 32" in ran.err
