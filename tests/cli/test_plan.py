"""genmote plan: what it prints, what it refuses, and what it advises then."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from genmote.errors import SpecError
from genmote.models.chat import MEMORY_BYTES
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model


@pytest.fixture
def model(tmp_path, own_home) -> str:
    make_model("tiny-llama-256", "q8_0", tmp_path / "m.gguf", seed=1)
    return str(tmp_path / "m.gguf")


def test_a_device_with_room(genmote, model):
    ran = genmote("plan", model, "--device", "pi-zero-2w")
    assert ran.status == 0, ran.err
    assert "m.gguf on Raspberry Pi Zero 2 W, 256 tokens of context:" in ran.out
    assert "of 335.5 MB" in ran.out and "not measured" in ran.out and "tokens/s at the beginning (waits for" in ran.out
    assert "with the context full" in ran.out
    assert re.search(r"\n  loading   \d+ ms \([\d.]+ MB from storage\), the first time ever \d+ ms \(", ran.out)
    rows = [line for line in ran.out.splitlines() if line.startswith("  W")]
    assert rows and "weights" in rows[0] and "Q8_0" in rows[0]


def test_a_model_of_the_package_is_called_by_its_name(genmote, own_home):
    assert genmote("plan", "mixture-16x", "--device", "pi-zero-2w").out.startswith("mixture-16x.gguf on Raspberry Pi")
    ran = genmote("plan", "mixture-16x", "--device", "pi-zero-2w", "--memory", "20MB")
    assert ran.err.startswith("genmote plan: mixture-16x.gguf does not fit 20 MB")


def test_more_than_a_device_leaves_to_a_program_is_told(genmote, model):
    ran = genmote("plan", model, "--device", "pi-zero-2w", "--memory", "400MB")
    told = "plan: 400MB is more than the 335.5 MB that the system of Raspberry Pi Zero 2 W leaves to one program\n"
    assert ran.status == 0 and ran.err == told


def test_no_more_is_planned_than_this_process_may_use(genmote, model, known_machine, monkeypatch):
    """Its control group's limit, or this machine's memory; another device's plan has nothing to do with it."""
    allowed = lambda most: monkeypatch.setattr("genmote.device.sensors.most_memory", lambda: (most, "group /x"))  # noqa: E731
    allowed(300_000_000)
    ran = genmote("plan", model, "--context", "256")
    assert "of memory (this process may use 300.0 MB: group /x)" in ran.out and "may use" not in ran.err
    values = genmote("plan", model, "--json").json
    assert (values["limit_bytes"], values["limit_of"], values["budget_bytes"]) == (300_000_000, "group /x", None)
    whole = values["predicted_bytes"]
    allowed(whole - 1_000_000)
    ran = genmote("plan", model, "--context", "256")
    assert f" of {(whole - 1_000_000) / 1e6:.1f} MB" in ran.out
    assert re.search(r"plan: this process may use .* \(group /x\), which is the budget of this plan: run it", ran.err)
    assert genmote("plan", model, "--json").json["budget_bytes"] == whole - 1_000_000
    ran = genmote("plan", model, "--memory", "5GB")
    assert (
        ran.status == 2 and "memory=5.0 GB: this process may use" in ran.err and "name with --device where" in ran.err
    )
    assert genmote("plan", model, "--memory", str(whole - 990_000)).status == 0, "groups count in whole pages"
    assert genmote("plan", model, "--memory", "300MB", "--device", "pi-zero-2w").status == 0
    allowed(1_000_000)
    assert genmote("plan", model, "--json").json["limit_bytes"] == 1_000_000


def test_what_a_conversation_takes_more_is_told(genmote, model, known_machine, tmp_path):
    """By what `genmote chat` plans: the same least."""
    words = ["plan", model, "--context", "64"]
    whole = genmote(*words, "--json").json
    assert whole["chat"]["predicted_bytes"] == whole["predicted_bytes"] + MEMORY_BYTES
    assert "  chat      the engine of its template takes 6.3 MB more: " in genmote(*words).out
    roomy = str(whole["predicted_bytes"] + 8_000_000)
    assert "takes 6.3 MB more: fits\n" in genmote(*words, "--memory", roomy).out
    tight = ["--memory", str(whole["predicted_bytes"] + 1_000_000)]
    ran, values = genmote(*words, *tight), genmote(*words, *tight, "--json").json["chat"]
    assert ran.status == 0 and values["fits"] is False
    told = f"does not fit, the least is {-(-values['least_bytes'] // 1_000_000)} MB"
    assert told in ran.out
    again = genmote(*words, "--memory", str(values["least_bytes"]), "--json").json
    assert again["chat"]["fits"] and again["chat"]["context"] == 64
    file = ModelFile.open(model)
    metadata = {name: value for name, value in file.typed_metadata().items() if "template" not in name}
    tensors = [(name, info.type, info.shape, file.raw(name)) for name, info in file.tensors.items()]
    write_gguf(tmp_path / "bare.gguf", metadata, tensors)
    bare = genmote("plan", str(tmp_path / "bare.gguf"), "--context", "64", "--json").json
    assert bare["fits"] and "chat" not in bare


def test_a_slow_plan_tells_what_writes_faster(genmote, model, monkeypatch):
    from genmote.runtime import advice
    from genmote.runtime.plan import plan

    words = ["plan", model, "--device", "pi-zero-2w"]
    monkeypatch.setattr(advice, "faster", lambda file, own, **asked: [advice.Option("--kv int8", {"kv": "int8"}, own)])
    assert "what writes faster" not in genmote(*words).out, "nothing is read from storage"
    streamed = lambda *given, **asked: replace(plan(*given, **asked), streamed_bytes=1)  # noqa: E731
    monkeypatch.setattr("genmote.runtime.plan.plan", streamed)
    assert re.search(r"\n\nwhat writes faster .*\n--kv int8 ", genmote(*words).out)
    assert genmote(*words, "--json").json["faster"][0]["settings"] == {"kv": "int8"}


def test_sinks_that_fill_all_rows_are_refused(genmote, model, known_machine):
    ran = genmote("plan", model, "--evict", "window:sinks=999", "--kv-tokens", "64")
    assert ran.status == 2 and "always keeps the first 999 rows" in ran.err


def test_keys_and_values_that_only_find_out_are_told(genmote, model):
    words = ["plan", model, "--device", "pi-zero-2w", "--context", "256", "--kv-tokens", "64"]
    told = "f16, 64 rows a layer, kept by expected+retrieval; before, 256 in f16 to find out which layers look back\n"
    assert told in genmote(*words).out
    assert "f16, 64 rows a layer, kept by window\n" in genmote(*words, "--evict", "window").out


def test_json_holds_all_of_it(genmote, model):
    values = genmote("plan", model, "--device", "pi-zero-2w", "--context", "128", "--json").json
    assert values["fits"] is True and values["context"] == 128 and values["budget_bytes"] == 320 << 20
    assert values["predicted_bytes"] == sum(values["parts"].values())
    assert values["expected"]["source"] == "Raspberry Pi Zero 2 W"


def test_too_little_memory_tells_what_would_do(genmote, model):
    ran = genmote("plan", model, "--device", "pi-zero-2w", "--memory", "37MB", "--context", "256")
    assert ran.status == 2
    assert (
        ran.err.count("\n") == 1 and "m.gguf does not fit 37 MB: with a context of 256 tokens the least is" in ran.err
    )
    assert "--device" not in ran.out  # no board does within this memory
    values = genmote("plan", model, "--device", "pi-zero-2w", "--memory", "20MB", "--json").json
    assert values["fits"] is False and values["least_bytes"] > 20e6
    assert values["boards"] == [] and "does not fit 20 MB" in values["reason"]


def test_a_microcontroller_is_refused_with_the_reason(genmote, model):
    ran = genmote("plan", model, "--device", "esp32-s3")
    assert ran.status == 2 and "a microcontroller: 8 MB of memory" in ran.err and not ran.out
    values = genmote("plan", model, "--device", "esp32-s3", "--json").json
    assert values["fits"] is False and "a microcontroller" in values["reason"]
    other = genmote("plan", model, "--device", "pi-zero-2w", "--memory", "20MB", "--json").json
    assert values.keys() == other.keys() and (values["least_bytes"], values["would_do"]) == (None, [])
    fits = genmote("plan", model, "--device", "pi-zero-2w", "--json").json
    assert values["model"] == other["model"] == fits["model"] == model, "as it was asked for, whatever comes of it"


def test_more_threads_than_cores_are_told(genmote, model):
    words = ["plan", model, "--device", "pi-zero-2w", "--context", "128", "--threads"]
    told = "plan: 400 threads on 4 cores are no faster, and each takes memory: leave --threads out, or give at most 4\n"
    assert genmote(*words, "400").err == told and not genmote(*words, "4").err


def test_a_deadline_that_is_met(genmote, model):
    ran = genmote("plan", model, "--device", "pi-zero-2w", "--latency", "2s", "--pace", "5", "--prompt-tokens", "32")
    assert ran.status == 0, ran.err
    assert "chosen    1 thread: the least that meets the deadline, the pace when 96 tokens of prompt" in ran.out
    ran = genmote("plan", model, "--device", "pi-zero-2w", "--pace", "5")
    assert "the least that meets the deadline, the pace with the context of 256 tokens full" in ran.out


def test_a_deadline_that_nothing_meets(genmote, model):
    ran = genmote(
        "plan", model, "--device", "pi-zero-2w", "--latency", "1ms", "--prompt-tokens", "200", "--context", "256"
    )
    assert ran.status == 2 and ran.err.count("\n") == 1
    assert "on Raspberry Pi Zero 2 W: after a prompt of 200 tokens the answer is expected to begin in" in ran.err
    assert "a prompt of at most" in ran.out or "--device phone-2024" in ran.out
    ran = genmote("plan", model, "--device", "pi-zero-2w", "--pace", "1e9")
    assert ran.status == 2
    assert "No setting and no known board does so: a faster machine, or a smaller model, is needed." in ran.out
    ran = genmote("plan", model, "--device", "pi-zero-2w", "--latency", "0.001ms")
    assert re.search(r"does so, even a prompt of one token takes \d+ m?s: a faster machine, or a smaller", ran.out)


def test_memory_is_advised_for_a_deadline_only_where_it_helps(model, monkeypatch):
    """Where weights are read from storage for lack of it."""
    from genmote.cli.plan import needed_at_least
    from genmote.runtime.advice import Deadline
    from genmote.runtime.plan import plan
    from genmote.runtime.roofline import Machine

    file, board = ModelFile.open(model), Machine(4e9, 2e9, 30e9, 15e9, 1e6, 4, "a slow card")
    asked = {"memory": None, "context": 64, "prompt_tokens": 16, "interpreter": 40 << 20}
    whole = plan(file, machine=board, **asked)
    deadline = Deadline(pace=whole.expected.full_decode_tokens_per_s * 0.9)
    monkeypatch.setattr("genmote.runtime.plan.LEAST_RING", 10_000)
    tight = asked | {"memory": whole.predicted_bytes - whole.parts["activations"]}
    assert plan(file, machine=board, **tight).streamed_bytes
    assert needed_at_least(file, board, tight, deadline) == ": more memory, or a smaller model, is needed"
    assert needed_at_least(file, board, tight, Deadline(pace=1e9)).startswith(": a faster machine")
    assert needed_at_least(file, board, tight | {"memory": 1_000_000}, deadline).startswith(": more memory")
    assert needed_at_least(file, board, tight, None).startswith(": more memory")


def test_the_reason_comes_before_what_would_do(model, own_home):
    """In the one stream that a terminal shows; and once."""
    words = [sys.executable, "-m", "genmote.cli", "plan", model, "--device", "pi-zero-2w", "--memory", "5MB"]
    ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 2 and len(lines) == 2
    assert lines[0].startswith("genmote plan: m.gguf does not fit 5 MB: ")
    assert lines[1] == "No setting and no known board does so: more memory, or a smaller model, is needed."


def test_the_picture_is_written(genmote, model, tmp_path):
    ran = genmote("plan", model, "--device", "pi-3b-plus", "--svg", str(tmp_path / "b.svg"), "--json")
    assert ran.json["svg"] == str(tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text().startswith("<svg")
    ran = genmote("plan", model, "--device", "pi-3b-plus", "--svg", str(tmp_path / "none" / "b.svg"))
    assert ran.status == 2 and "is no folder: make it first, or choose another --svg" in ran.err


def test_the_picture_and_a_model_take_no_pipes_place(genmote, model, tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr("genmote.models.gguf.ModelFile.open", lambda *_: pytest.fail("worked before it was refused"))
    for words in (["plan", model, "--svg"], ["generate", model, "-p", "a", "--save-prefix"]):
        ran = genmote(*words, str(pipe))
        assert ran.status == 2 and "pipe cannot be written (it is a pipe, not a file): choose another" in ran.err
    ran = genmote("make-model", "tiny-llama", str(pipe))
    assert ran.status == 2 and "pipe: cannot be written (it is a pipe, not a file)" in ran.err
    assert pipe.is_fifo()


def test_this_machine_is_measured_or_remembered(genmote, model, board):
    from genmote import home, records
    from genmote.cli import _machine
    from genmote.device import profile

    ran = genmote("plan", model, "--context", "64")
    assert ran.status == 0 and "plan: this machine was measured in a second" in ran.err
    loaded = replace(board, measured=profile.Measured(seconds=2.0, load=records.usable_cores()))
    assert "remembered for plans, measured for 2 s each, at a load of" in _machine.remember(loaded)
    assert _machine.recorded().is_relative_to(home.cache_dir())
    ran = genmote("plan", model, "--context", "64")
    told = "by the figures of Raspberry Pi 4 Model B 2 GB (figures taken under load: too low) and "
    assert ran.status == 0 and not ran.err and told in ran.out
    _machine.remember(replace(board, measured=profile.Measured(seconds=0.1, load=0.0)))
    ran = genmote("plan", model, "--context", "64")
    assert ran.status == 0 and "by the figures of Raspberry Pi 4 Model B 2 GB and " in ran.out


def test_a_worse_measurement_takes_no_better_ones_place(own_home, board, monkeypatch):
    from genmote import home
    from genmote.cli import _machine
    from genmote.device import profile

    untold, long, short, loaded = (
        replace(board, measured=None if told is None else profile.Measured(seconds=told[0], load=told[1]))
        for told in (None, (2.0, 0.1), (0.1, 0.0), (9.0, 99.0))
    )
    for made in (untold, long):
        assert _machine.remember(made).startswith("remembered for plans, ")
    for made in (untold, short, loaded):
        said = _machine.remember(made)
        assert said.startswith("not remembered: plans keep to the better one of before (measured for 2 s each, at a ")
        assert said.endswith("--force takes this one") and made.how_measured in said
        assert _machine.remembered() == long
    assert _machine.remember(short, force=True).startswith("remembered")
    assert _machine.remembered() == short
    assert _machine.remember(long).startswith("remembered") and _machine.remembered() == long
    monkeypatch.setattr(home, "usable", lambda folder: False)
    assert _machine.remember(long) == f"not remembered: {home.cache_dir()} cannot be written"


def test_a_check_compares(genmote, model, known_machine):
    ran = genmote("plan", model, "--context", "64", "--threads", "1", "--check")
    assert ran.status == 0, ran.err
    assert "peak memory" in ran.out and "predicted  measured  ratio" in ran.out and " 60 tokens" not in ran.out
    assert "48 tokens read, 16 written" in ran.out or "measured without a control group" in ran.out
    assert re.search(r"^disk read .+, written .+, energy (unavailable|[\d.e+-]+ J \(measured: )", ran.out, re.MULTILINE)
    values = genmote("plan", model, "--context", "64", "--threads", "1", "--check", "--json").json["measured"]
    assert values["energy"] in ("measured", "unavailable") and ("energy_j" in values) == (
        values["energy"] == "measured"
    )
    assert values["read_bytes"] >= 0 and values["written_bytes"] >= 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--check", "--device", "pi-zero-2w"], "--check runs on this machine: leave --device out"),
        (["--device", "pi-zero-2w", "--latency", "soon"], "latency 'soon': wanted a time above 0 such as 200ms or 2s"),
        (["--device", "pi-zero-2w", "--latency", "0ms"], "latency '0ms': wanted a time above 0"),
        (["--device", "pi-zero-2w", "--pace", "0"], "pace=0: wanted tokens a second, above 0"),
        (["--device", "pi-zero-2w", "--prompt-tokens", "0"], "prompt_tokens=0: wanted 1 or more"),
        (["--device", "pi-zero-2w", "--threads", "0"], "threads=0: wanted 1 or more"),
        (
            ["--device", "pi-zero-2w", "--memory", "600MB"],
            "memory=600MB: Raspberry Pi Zero 2 W has 536.9 MB, of which the system leaves 335.5 MB to one program",
        ),
        (["--device", "pi-zero-2w", "--memory", "lots"], "memory 'lots': wanted an amount above 0"),
        (["--device", "pi-zero-2w", "--kv", "int3"], "kv='int3': keys and values are kept as f16, int8, int4, or auto"),
    ],
)
def test_settings_that_cannot_be(genmote, model, flags, told):
    ran = genmote("plan", model, *flags)
    assert ran.status == 2 and told in ran.err


def test_times_as_people_write_them():
    from genmote.cli.plan import parse_seconds

    assert [parse_seconds(text) for text in ("200ms", "0.2s", "0.2")] == [0.2] * 3
    with pytest.raises(SpecError):
        parse_seconds("2 minutes")


def test_a_check_of_what_it_would_not_run_is_refused(genmote, model, known_machine, monkeypatch):
    from genmote.runtime import advice, plan

    ran = genmote("plan", model, "--memory", "200MB", "--sessions", "4", "--check")
    assert ran.status == 2 and "--check runs one text, not 4: leave --sessions out" in ran.err

    def choose(file, deadline, *, machine, **settings):
        return advice.Option("less", {"stored_as": "Q4_0"}, plan.plan(file, machine=machine, **settings))

    monkeypatch.setattr(advice, "choose", choose)
    ran = genmote("plan", model, "--memory", "200MB", "--pace", "1", "--check")
    assert ran.status == 2 and "the deadline takes the model stored as Q4_0, and --check would run this file" in ran.err
