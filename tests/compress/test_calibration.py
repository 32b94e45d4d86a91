"""Calibration text: the same for the same seed, another for another, drawn from the model's own distribution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote import Engine, home
from genmote.compress import calibration
from genmote.compress.calibration import Calibration
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model

SMALL = Calibration(windows=4, length=20)


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    make_model(request.param, "Q8_0", path, 1)
    return path


def windows(model: Path, settings: Calibration) -> np.ndarray:
    return calibration.windows(model, ModelFile.open(model).sha256(), settings)


def test_the_model_writes_the_same_text_for_the_same_seed(model: Path, own_home: Path) -> None:
    first = windows(model, SMALL)
    assert first.shape == (4, 20) and first.dtype == np.int32
    kept = list((home.cache_dir() / "calibration").iterdir())
    assert len(kept) == 1
    kept[0].write_bytes(b"damaged")
    assert np.array_equal(windows(model, SMALL), first)  # written again
    np.save(kept[0], first + 1)
    assert np.array_equal(windows(model, SMALL), first + 1)  # taken from the cache
    assert not np.array_equal(windows(model, replace(SMALL, seed=1)), first)
    assert not np.array_equal(windows(model, replace(SMALL, windows=5))[:4], first + 1)


def test_windows_do_not_depend_on_how_many_are_written_at_once(
    model: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.load(model) as engine:
        together = calibration.write(engine, SMALL)
        monkeypatch.setattr(calibration, "BATCH_BYTES", 1)
        assert np.array_equal(calibration.write(engine, SMALL), together)


def test_an_interrupted_run_goes_on_with_the_next_windows(
    model: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.load(model) as engine:
        wanted = calibration.write(engine, SMALL)
    monkeypatch.setattr(calibration, "BATCH_BYTES", 1)  # one window at a time
    opening, begun = calibration._opening, []

    def killed(engine: Engine, number: int, draw: np.random.Generator) -> list[int]:
        begun.append(number)
        if begun == [0, 1, 2]:
            raise KeyboardInterrupt
        return opening(engine, number, draw)

    monkeypatch.setattr(calibration, "_opening", killed)
    with pytest.raises(KeyboardInterrupt):
        windows(model, SMALL)
    (part,) = (home.cache_dir() / "calibration").iterdir()
    assert np.array_equal(np.load(part), wanted[:2])
    assert np.array_equal(windows(model, SMALL), wanted) and begun == [0, 1, 2, 2, 3]
    assert len(list((home.cache_dir() / "calibration").iterdir())) == 1 and not part.exists()


def test_a_part_that_is_damaged_is_written_again(model: Path, own_home: Path) -> None:
    with Engine.load(model) as engine:
        wanted = calibration.write(engine, SMALL)
        part = own_home / "part.npy"
        part.parent.mkdir(parents=True, exist_ok=True)
        for damaged in (b"damaged", None):
            part.write_bytes(damaged or b"")
            if damaged is None:
                np.save(part, wanted[:2, :-1])  # of another length
            assert np.array_equal(calibration.write(engine, SMALL, part=part), wanted)


def test_tokens_are_drawn_by_their_probability() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2, 1e-9], np.float32))
    draw = np.random.default_rng(0)
    counts = np.bincount([calibration._draw(logits, draw) for _ in range(4000)], minlength=4)
    assert np.allclose(counts / 4000, [0.5, 0.3, 0.2, 0], atol=0.03) and counts[3] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_without_numbers_writes_no_text(value: float) -> None:
    logits = np.array([1.0, value, 0.5], np.float32)
    with pytest.raises(
        SpecError, match="logits are not finite numbers where it writes text: the model file is damaged"
    ):
        calibration._draw(logits, np.random.default_rng(0))


def test_every_window_begins_as_the_model_s_texts_do(model: Path, own_home: Path) -> None:
    with Engine.load(model) as engine:
        found = calibration.write(engine, SMALL)
        if engine.begin_token is not None:
            assert (found[:, 0] == engine.begin_token).all()
        assert len({tuple(row[:6]) for row in found.tolist()}) == len(found)


def test_a_file_s_text_is_cut_into_windows(model: Path, own_home: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40)
    found = windows(model, replace(SMALL, text=text))
    assert found.shape == (4, 20)
    with Engine.load(model) as engine:
        begin = engine.begin_token
        body = found if begin is None else found[:, 1:]
        whole = engine.tokenizer.encode(text.read_text(), bos=False)
    assert begin is None or (found[:, 0] == begin).all()
    assert list(body[0]) == whole[: body.shape[1]] and list(body[-1]) == whole[-body.shape[1] :]
    key = replace(SMALL, text=text).key("sha")
    text.write_text("another text")
    assert replace(SMALL, text=text).key("sha") != key


def test_a_text_that_is_too_short(model: Path, own_home: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("short")
    with pytest.raises(SpecError, match="has .* tokens, 4 windows of 20 take"):
        windows(model, replace(SMALL, text=tmp_path / "text.txt"))


def test_windows_are_no_longer_than_the_context(model: Path, own_home: Path) -> None:
    settings = Calibration(windows=1, length=100_000)
    first = windows(model, settings)
    assert first.shape == (1, ModelFile.open(model).metadata[f"{ModelFile.open(model).architecture}.context_length"])
    assert np.array_equal(windows(model, settings), first)


def slow_share(tokens: np.ndarray) -> float:
    runs = [tuple(row[at : at + 8]) for row in tokens.tolist() for at in range(len(row) - 7)]
    return len(set(runs)) / len(runs)


@pytest.mark.parametrize(("period", "poor"), [(1, True), (3, True), (200, True), (260, False), (1000, False)])
def test_a_text_that_repeats_itself_is_told(period: int, poor: bool) -> None:
    """Windows of one long text that goes round after `period` tokens."""
    text = np.random.default_rng(0).integers(0, 50, period)
    tokens = np.resize(text, 520).reshape(4, 130).astype(np.int32)
    assert (slow_share(tokens) < 0.5) == poor
    found = list(calibration.notes(tokens, 1))
    assert len(found) == poor
    assert not poor or f"only {slow_share(tokens):.0%} of its runs of 8 tokens differ" in found[0]


def test_a_text_with_fewer_places_than_inputs_is_told() -> None:
    tokens = np.arange(4 * 20, dtype=np.int32).reshape(4, 20)
    told = "has 52 different places, fewer than the 53 inputs of the widest matrix: give more of it"
    assert told in next(calibration.notes(tokens, 53)) and not list(calibration.notes(tokens, 52))


def test_what_is_no_text_is_called_otherwise() -> None:
    """Nobody is told to give a text to a generator of signals."""
    told = list(calibration.notes(np.zeros((4, 20), np.int32), 53, signals=True))
    assert [line.partition(":")[2] for line in told] == [
        " give recordings in which more happens",
        " give more of it (--samples, longer recordings)",
    ]
    assert all(line.startswith("the signal ") for line in told)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read .*: wanted a text to calibrate on"):
        replace(SMALL, text=tmp_path / "none").key("")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(SpecError, match="is not UTF-8 text"):
        replace(SMALL, text=tmp_path / "latin").key("")
