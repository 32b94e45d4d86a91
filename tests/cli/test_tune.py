"""`genmote tune` and `genmote merge`, as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from genmote import records
from genmote.models.gguf import ModelFile
from tests.cli.conftest import Genmote


@pytest.fixture
def model(tmp_path: Path, genmote: Genmote) -> Path:
    path = tmp_path / "tiny.gguf"
    assert genmote("make-model", "tiny-llama", str(path), "--type", "Q8_0").status == 0
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    letters = "abcdefghij"
    path.write_text(
        "".join(json.dumps({"prompt": f"{a}{b}", "completion": b}) + "\n" for a in letters for b in letters)
    )
    return path


QUICK = ("--steps", "8", "--batch", "2", "--context", "16", "--rate", "0.01", "--judge-every", "4", "--threads", "1")


def test_an_adapter_that_generate_takes(genmote: Genmote, model: Path, data: Path, tmp_path: Path) -> None:
    output, plot, record = (tmp_path / name for name in ("mine.gguf", "mine.svg", "records.jsonl"))
    beside = ("--plot", str(plot), "--record", str(record))
    ran = genmote("tune", str(model), str(data), "-o", str(output), *QUICK, *beside)
    assert ran.status == 0 and ran.out.startswith(f"{output} (") and "held out: " in ran.out and "tokens/s" in ran.out
    assert "step 4: learning " in ran.err and "step 8: learning " in ran.err
    assert ET.parse(plot).getroot().tag.endswith("svg")
    assert plot.read_text().count('class="panel"') == 3
    kept = next(iter(records.read(record)))
    assert kept.what == "tune" and kept.values["steps"] == 8 and kept.model_sha256 == ModelFile.open(model).sha256()
    told = genmote("tune", str(model), str(data), "-o", str(output), *QUICK, "--json").json
    assert told["steps"] == 8 and len(told["judged"]) == 3 and told["card"]["examples"] == 90
    assert told["peak_rss_bytes"] > 0 and told["planned_bytes"] > 0 and told["held_out_after"] > 0
    ran = genmote("generate", str(model), "--adapter", str(output), "--prompt", "ab", "--max-tokens", "2")
    assert ran.status == 0

    whole = tmp_path / "whole.gguf"
    ran = genmote("merge", str(model), str(output), "-o", str(whole), "--json")
    assert ran.json["matrices"] == 14 and ran.json["types"] == ["Q8_0"] and ran.json["size_bytes"] > 0
    ran = genmote("merge", str(model), str(output), "-o", str(output))
    assert ran.status == 2 and "mine.gguf is the adapter itself; name another file" in ran.err
    ran = genmote("merge", str(model), str(output), "-o", str(whole), "--scale", "1e40")
    assert ran.status == 2 and "scale 1e+40 for adapter mine.gguf: wanted a number from -1000 to 1000" in ran.err
    assert "stored as F16" in genmote("merge", str(model), str(output), "-o", str(whole), "--type", "F16").out
    assert genmote("generate", str(whole), "--prompt", "ab", "--max-tokens", "2").status == 0


def test_a_budget_is_told_and_one_that_is_too_small_refused(
    genmote: Genmote, model: Path, data: Path, tmp_path: Path
) -> None:
    words = ("tune", str(model), str(data), "-o", str(tmp_path / "mine.gguf"), *QUICK, "--memory")
    assert "1000 MB: " in genmote(*words, "1GB").err
    ran = genmote(*words, "20MB")
    assert ran.status == 2 and "to train on this model takes at least" in ran.err and ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--on", "attn_z"), "on=attn_z: attn_z cannot be learnt"),
        (("--rank", "0", "--steps", "0"), "rank=0: use 1 to 1024, such as 8; steps=0"),
        (("--held-out", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (("--plot", "/nowhere/p.svg"), "no folder: make it first, or choose another --plot"),
        (("--ops", "torch"), "'torch' has no backward operations"),
        (("--method", "lorra"), "method=lorra: no method is called so, did you mean lora"),
        (("--recompute",), "recompute, type: of methods with PyTorch; method=backward takes neither"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: tuple[str, ...], said: str, genmote: Genmote, model: Path, data: Path, tmp_path: Path
) -> None:
    ran = genmote("tune", str(model), str(data), "-o", str(tmp_path / "mine.gguf"), *QUICK, *words)
    assert ran.status == 2 and said in ran.err and not (tmp_path / "mine.gguf").exists()
    assert len(ran.err.splitlines()) == 1


def test_a_method_of_the_workbench_writes_a_model_and_a_budget_chooses_one(
    genmote: Genmote, model: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    whole = tmp_path / "whole.gguf"
    words = ("tune", str(model), str(data), "-o", str(whole), *QUICK)
    ran = genmote(*words, "--method", "workbench", "--memory", "2GB", "--type", "F16")
    assert ran.status == 0 and "2000 MB: full, " in ran.err and "the file, rounded: " in ran.out
    assert genmote("generate", str(whole), "--prompt", "ab", "--max-tokens", "2").status == 0
    told = genmote(*words, "--method", "lomo", "--recompute", "--json").json
    assert told["held_out_written"] > 0 and told["output_bytes"] == whole.stat().st_size
    assert told["card"]["settings"]["method"] == "lomo" and told["card"]["settings"]["recompute"] is True
    ran = genmote(*words, "--method", "workbench", "--memory", "100MB")
    assert ran.status == 2 and "takes at least" in ran.err and len(ran.err.splitlines()) == 1


def test_faulty_examples_and_places(genmote: Genmote, model: Path, data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"text": "\xff"}\n')
    ran = genmote("tune", str(model), str(bad), "-o", str(tmp_path / "mine.gguf"), *QUICK)
    assert ran.status == 2 and "line 1: byte 0xff is not UTF-8" in ran.err
    ran = genmote("tune", str(model), str(data), "-o", str(tmp_path / "mine.bin"), *QUICK)
    assert ran.status == 2 and "wanted a name that ends in .gguf" in ran.err
    ran = genmote("tune", str(model), str(data), "-o", str(model), *QUICK)
    assert ran.status == 2 and "is the model itself" in ran.err
    ran = genmote("tune", "signals-foundation", str(data), "-o", str(tmp_path / "mine.gguf"), *QUICK)
    assert ran.status == 2 and "signals-foundation.gguf is a generator of signals, which reads no text" in ran.err
    assert "genmote adapt signals-foundation FILES --state FOLDER, or genmote signal train FILES -o" in ran.err


def test_a_training_that_stops_is_told(genmote: Genmote, model: Path, data: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "mine.gguf")
    ran = genmote("tune", str(model), str(data), "-o", output, *QUICK, "--on", "head", "--rate", "1e30")
    assert ran.status == 1 and "training stopped, no adapter was written; use a lower --rate" in ran.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_the_same_command_goes_on(
    model: Path, data: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    words = ["tune", str(model), str(data), "-o", str(tmp_path / "mine.gguf"), *QUICK, "--steps", "100000"]
    for begins in ("held out: ", "goes on after step "):
        command = [sys.executable, "-m", "genmote.cli", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        told = [process.stderr.readline()]
        while told[-1] and sum(line.startswith("step ") for line in told) < 2:  # of the second the first was kept
            told.append(process.stderr.readline())
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (status, ""), err
        assert told[0].startswith(begins) and "Traceback" not in err
        assert "what was kept last stays: the same command goes on from there" in err.splitlines()


def test_merge_of_what_does_not_fit(genmote: Genmote, model: Path, data: Path, tmp_path: Path) -> None:
    assert genmote("tune", str(model), str(data), "-o", str(tmp_path / "mine.gguf"), *QUICK).status == 0
    other = tmp_path / "other.gguf"
    assert genmote("make-model", "tiny-llama-256", str(other)).status == 0
    ran = genmote("merge", str(other), str(tmp_path / "mine.gguf"), "-o", str(tmp_path / "w.gguf"))
    assert ran.status == 2 and "do not fit the model's" in ran.err
    ran = genmote("merge", str(model), str(model), "-o", str(tmp_path / "w.gguf"))
    assert ran.status == 2 and "is not a LoRA adapter" in ran.err
    ran = genmote("merge", str(model), str(tmp_path / "mine.gguf"), "-o", str(model))
    assert ran.status == 2 and "is the model itself" in ran.err
