"""Compressing with a generator's help: nothing is lost, on any machine; the wrong model, or none, is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import OpsError, SignalError
from genmote.generator import practise
from genmote.generator.compress import SEEN, Teller, windows
from genmote.generator.file import Form
from genmote.generator.layout import Layout
from genmote.generator.model import Generator
from genmote.generator.train import _first
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.signals import _twin, adaptive, coding, container, practice, reading
from genmote.signals.kinds import MISSING, Grid, Mark, Series

ROOT = Path(__file__).parents[2]
DRAW = np.random.default_rng(21)


def series(integers: np.ndarray, name: str = "s", step: float = 0.25, first: int = 0, **more: Any) -> Series:
    channels = integers.shape[1]
    grid = Grid(integers.astype(np.int64), np.full(channels, step), np.zeros(channels))
    names = tuple(f"c{n + first}" for n in range(channels))
    settings = {"rate_hz": 50.0, **more}
    return Series(name, grid.values(), settings.pop("rate_hz"), names, ("V",) * channels, grid=grid, **settings)


def waves(rows: int, seed: int, channels: int = 2) -> np.ndarray:
    """Channels that swing together, with noise."""
    draw = np.random.default_rng(seed)
    phase = np.cumsum(draw.uniform(0.05, 0.3, rows))
    own = np.arange(1, channels + 1)
    return np.rint(60 * np.sin(phase[:, None] + own / 3) * own + draw.normal(0, 2, (rows, channels))).astype(np.int64)


def made(folder: Path, name: str = "m.gguf", *, clock: bool = False, seed: int = 1, **settings: Any) -> Path:
    """A model that has learnt nothing: what it tells is as good as any to be exact about."""
    codec = coding.fit("bins", [series(waves(500, 3))], **{"bins": 16, **settings})
    _first(folder / name, Form(32, 1, 32), Layout(codec, clock, 96), "m", seed)
    return folder / name


@pytest.fixture
def data() -> Callable[[str], Path]:
    """A real file of the data sets that may lie beside the project; the test is skipped where it does not."""

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"{name} is not beside the project")
        return path

    return find


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return made(folder)


@pytest.fixture(scope="module")
def practised(folder: Path, plain: Path) -> Path:
    """A model that practised, also on a channel that it does not know."""
    recordings = [series(waves(400, seed, 3)) for seed in range(6)]
    practise.run(plain, recordings, folder / "p.gguf")
    return folder / "p.gguf"


@pytest.fixture(scope="module")
def teller(practised: Path) -> Teller:
    return Teller.load(practised, threads=1)


def again(path: Path, *signals: Series, teller: Teller, **settings: Any) -> list[Series]:
    container.write(path, signals, teller=teller, **settings)
    return [one for one in reading.joined_all(container.read(path, teller)) if isinstance(one, Series)]


def check(a: Series, b: Series) -> None:
    assert a.grid is not None and b.grid is not None
    assert np.array_equal(a.grid.integers, b.grid.integers) and np.array_equal(a.values, b.values, equal_nan=True)
    assert (a.name, a.rate_hz, a.channels, a.units, a.labels, a.marks, a.start_s) == (
        *(b.name, b.rate_hz, b.channels, b.units, b.labels, b.marks, b.start_s),
    )
    assert (a.times_s is None) == (b.times_s is None)
    if a.times_s is not None and b.times_s is not None:
        assert np.array_equal(a.times_s, b.times_s)


# -- what the model tells ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "channels", "room"), [(1, 1, 1), (50, 1, 7), (50, 3, 7), (60, 12, 13), (9, 3, 50)])
def test_windows_tell_of_each_sample_once_and_fit(total: int, channels: int, room: int) -> None:
    found = list(windows(total, channels, room))
    assert [n for _, first, stop in found for n in range(first, stop)] == list(range(total))
    assert all(stop - 1 - begin <= room and begin <= first for begin, first, stop in found)


@pytest.mark.parametrize("clock", [False, True])
def test_walking_tells_the_same_bits_as_running_a_block_at_once(folder: Path, clock: bool) -> None:
    teller = Teller.load(made(folder, f"w{clock}.gguf", clock=clock), threads=1)
    blocks = []
    for rows, channels in ((1, 2), (150, 2), (2 * SEEN, 1)):
        about = series(np.zeros((rows, channels)), rate_hz=0.01, start_s=1.7e9)
        blocks.append((about, DRAW.integers(0, 17, (rows, channels))))
    lanes = [teller.lane(about) for about, _ in blocks]
    walked: list[list[np.ndarray]] = [[] for _ in blocks]
    while active := [n for n, lane in enumerate(lanes) if lane.at < lane.codes.size]:
        found = teller.step([lanes[n] for n in active])
        for logits, n in zip(found, active, strict=True):
            walked[n].append(logits)
            lanes[n].flat[lanes[n].at - 1] = blocks[n][1].reshape(-1)[lanes[n].at - 1]
    for (about, codes), logits in zip(blocks, walked, strict=True):
        assert np.array_equal(np.concatenate(list(teller.logits(about, codes))), np.stack(logits))


# -- nothing is lost --------------------------------------------------------------------------------------------------

HOLED = np.where(DRAW.random((200, 2)) < 0.2, MISSING, waves(200, 8))
CASES = {
    "alike": waves(300, 7),
    "one row": waves(1, 7),
    "outside": waves(80, 7) * 50,
    "constant beside": np.column_stack([np.full(90, 7), waves(90, 7)[:, 0]]),
    "constant with gaps": np.column_stack([np.where(np.arange(90) % 7, 7, MISSING), waves(90, 7)[:, 0]]),
    "all constant": np.full((40, 2), 3),
    "gaps": HOLED,
    "all gone beside": np.column_stack([np.full(90, MISSING), waves(90, 7)[:, 0]]),
    "few values": DRAW.choice([-(10**9), 0, 17, 10**12], (200, 2)),
    "wide beside": np.column_stack([waves(60, 7)[:, 0], DRAW.integers(-(2**62), 2**62, 60)]),
    "far from 0": waves(90, 7) + 2**60,
    "multiples": waves(90, 7) * 4 + 3,
    "a channel unknown": waves(120, 7, 4),
    "many channels": waves(30, 7, 70),
    "noise": DRAW.integers(-(2**40), 2**40, (60, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_lost(name: str, tmp_path: Path, teller: Teller) -> None:
    whole = series(CASES[name], labels={"who": "Å"}, start_s=0.25, marks=(Mark(0, 1, "start"),))
    (found,) = again(tmp_path / "a.gmsc", whole, teller=teller)
    check(whole, found)


def test_times_of_their_own_are_known_to_the_model(tmp_path: Path, folder: Path) -> None:
    teller = Teller.load(made(folder, "t.gguf", clock=True), threads=1)
    times = 1.7e9 + np.cumsum(DRAW.uniform(10, 4000, 150))
    whole = series(waves(150, 7), times_s=times, rate_hz=0.0)
    (found,) = again(tmp_path / "a.gmsc", whole, teller=teller)
    check(whole, found)


@pytest.mark.parametrize(("lanes", "wide"), [(1, 99), (3, 99), (16, 4), (16, 99)])
def test_pieces_blocks_and_series_are_walked_together(
    lanes: int, wide: int, tmp_path: Path, teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "BLOCK_SAMPLES", 100)
    monkeypatch.setattr(container, "LANES", lanes)
    monkeypatch.setattr(container, "WIDE", wide)
    long, other = series(waves(420, 7), start_s=1.7e9), series(DRAW.integers(0, 9, (60, 1)), "other", first=5)
    last = series(waves(130, 9), "last")
    container.write(tmp_path / "a.gmsc", [long.part(0, 200), long.part(200, 420), other, last], teller=teller)
    found = reading.joined_all(container.read(tmp_path / "a.gmsc", teller))
    for a, b in zip([long, other, last], found, strict=True):
        assert isinstance(b, Series)
        check(a, b)


@pytest.mark.parametrize("max_error", [0.05, 0.6, 3.0])
def test_near_lossless_keeps_its_word(tmp_path: Path, teller: Teller, max_error: float) -> None:
    exact = series(waves(200, 7))
    (found,) = again(tmp_path / "a.gmsc", exact, teller=teller, max_error=max_error)
    assert np.abs(found.values - exact.values).max() <= max_error * (1 + 1e-6)
    loose = replace(exact, grid=None, values=exact.values + DRAW.normal(0, 0.1, exact.values.shape).astype(np.float32))
    (found,) = again(tmp_path / "a.gmsc", loose, teller=teller, max_error=max_error)
    assert np.abs(found.values - loose.values).max() <= max_error * (1 + 1e-6)


def test_real_hearts(tmp_path: Path, data: Callable[[str], Path], teller: Teller) -> None:
    path = sorted(data("ptbxl500/records100/00000").glob("*.hea"))[41]
    (heart,) = reading.read(path)
    assert isinstance(heart, Series) and heart.grid is not None
    renamed = replace(heart.part(0, 250), channels=tuple(f"c{n}" for n in range(12)), units=("V",) * 12)
    (found,) = again(tmp_path / "a.gmsc", renamed, teller=teller)
    check(renamed, found)


CALLED = 1 + 1 + 32 + len("p.gguf") + 4  # what a file says of its model

# -- what it is worth -------------------------------------------------------------------------------------------------


def test_practice_makes_recordings_of_its_kind_smaller(tmp_path: Path, practised: Path) -> None:
    whole = series(waves(400, 99, 3))
    without = container.write(tmp_path / "a.gmsc", [whole]).bytes
    with_it = container.write(tmp_path / "b.gmsc", [whole], teller=Teller.load(practised, threads=1)).bytes
    assert with_it - CALLED < 0.97 * without


@pytest.mark.parametrize("name", ["noise", "few values", "outside", "all constant", "many channels"])
def test_what_a_model_is_of_no_help_for_takes_its_name_more_and_no_more(
    name: str, tmp_path: Path, teller: Teller
) -> None:
    whole = series(CASES[name])
    without = container.write(tmp_path / "a.gmsc", [whole]).bytes
    with_it = container.write(tmp_path / "b.gmsc", [whole], teller=teller).bytes
    assert with_it <= without + CALLED


def test_what_the_model_knows_nothing_of_is_told_once(tmp_path: Path, teller: Teller) -> None:
    notes: list[str] = []
    long = series(np.column_stack([waves(100, 7) * 9, DRAW.integers(0, 9, 100)]))
    container.write(tmp_path / "a.gmsc", [long.part(0, 50), long.part(50, 100)], teller=teller, notes=notes)
    assert notes[0] == "s: the model tells nothing of c2"
    assert "samples lie outside of what the model was trained on" in notes[1] and len(set(notes)) == len(notes)


# -- the same bits everywhere -----------------------------------------------------------------------------------------

SMALL = series(np.where(DRAW.random((40, 3)) < 0.1, MISSING, waves(40, 7, 3)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, teller: Teller) -> Path:
    path = tmp_path_factory.mktemp("small") / "a.gmsc"
    container.write(path, [SMALL], teller=teller)
    assert b"P" in path.read_bytes()  # the model was of help
    return path


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "neon", "dotprod"])
def test_every_instruction_set_reads_and_writes_the_same(
    isa: str, small: Path, practised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    if isa not in native.isa_names() or not native.isa_runs(isa):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("GENMOTE_ISA", isa)
    teller = Teller.load(practised, threads=2)
    (found,) = container.read(small, teller)
    check(SMALL, found)
    container.write(tmp_path / "b.gmsc", [SMALL], teller=teller, threads=3)
    assert (tmp_path / "b.gmsc").read_bytes() == small.read_bytes()


def test_numpy_and_the_twin_read_and_write_the_same(
    small: Path, practised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    monkeypatch.setattr(adaptive, "_native", lambda: None)
    teller = Teller.load(practised, ops="numpy")
    (found,) = container.read(small, teller)
    check(SMALL, found)
    container.write(tmp_path / "b.gmsc", [SMALL], teller=teller)
    assert (tmp_path / "b.gmsc").read_bytes() == small.read_bytes()


DECODE = """
import sys
from pathlib import Path
import numpy as np
from genmote.generator.compress import Teller
from genmote.signals import container
(found,) = container.read(Path(sys.argv[1]), Teller.load(Path(sys.argv[2]), ops="numpy"))
np.save(sys.argv[3], found.grid.integers)
"""


@pytest.mark.slow
def test_an_emulated_arm_processor_reads_it(small: Path, practised: Path, tmp_path: Path) -> None:
    """Debian's Python and NumPy for ARM, and no kernels: the op set and the coder that are written in Python."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not here (Debian: qemu-user)")
    tool = [sys.executable, str(ROOT / "tools" / "arm_python.py"), str(ROOT / "build" / "arm-python")]
    root = subprocess.run(tool, capture_output=True, text=True, check=False)
    if root.returncode != 0:
        pytest.skip(root.stderr.strip())
    arm = Path(root.stdout.strip())
    shutil.copytree(ROOT / "genmote", tmp_path / "genmote", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    python = arm / "usr" / "bin" / f"python3.{sys.version_info.minor}"
    command = ["qemu-aarch64", "-cpu", "cortex-a53", "-L", str(arm), str(python), "-c", DECODE]
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [*command, str(small), str(practised), str(tmp_path / "found.npy")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=env,
    )
    assert ran.returncode == 0, ran.stderr
    assert SMALL.grid is not None
    assert np.array_equal(np.load(tmp_path / "found.npy"), SMALL.grid.integers)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_another_model_or_none(small: Path, plain: Path, practised: Path) -> None:
    wanted = Teller.load(practised).sha256
    with pytest.raises(
        SignalError, match=rf"was compressed with a model: give the file 'p.gguf' with --model \(SHA-256 {wanted}\)"
    ):
        list(container.read(small))
    with pytest.raises(SignalError, match=rf"with the model 'p.gguf' of SHA-256 {wanted}, 'm.gguf' has [0-9a-f]{{64}}"):
        list(container.read(small, Teller.load(plain)))


def test_a_model_beside_a_file_that_needs_none_is_no_fault(tmp_path: Path, teller: Teller) -> None:
    whole = series(waves(30, 7))
    container.write(tmp_path / "a.gmsc", [whole])
    (found,) = container.read(tmp_path / "a.gmsc", teller)
    check(whole, found)


def test_damage_is_told_and_what_came_before_it_is_there(
    tmp_path: Path, teller: Teller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "BLOCK_SAMPLES", 60)
    path = tmp_path / "a.gmsc"
    container.write(path, [series(waves(120, 7))], teller=teller)
    good = path.read_bytes()
    for number in range(40):
        broken = bytearray(good)
        broken[int(DRAW.integers(5, len(good)))] ^= 1 << int(DRAW.integers(8))
        path.write_bytes(bytes(broken))
        with pytest.raises(SignalError, match=r"damaged|ends in the middle|model"):
            list(container.read(path, teller))
        path.write_bytes(good[: len(good) - 1 - 3 * number])
        with pytest.raises(SignalError, match="ends in the middle"):
            list(container.read(path, teller))
    path.write_bytes(good[:-40])
    pieces = container.read(path, teller)
    assert len(next(pieces)) == 30


def test_a_block_that_is_not_as_its_checksum_says(tmp_path: Path, teller: Teller) -> None:
    """A chunk whose own checksum is right, around bytes that are not."""
    path = tmp_path / "a.gmsc"
    monkey = series(waves(120, 7))
    container.write(path, [monkey], teller=teller)
    with open(path, "rb") as file:
        file.seek(5)
        chunks = []
        while (chunk := container._next(path, file))[0] != container.END:
            chunks.append(chunk)
    for number in range(30):
        with open(path, "wb") as out:
            out.write(b"GMSC\x02")
            for kind, body in chunks:
                broken = bytearray(body)
                if kind == container.TOLD_BLOCK:
                    broken[int(DRAW.integers(len(body)))] ^= 1 << int(DRAW.integers(8))
                    broken = broken[: len(broken) - number % 3]
                container._chunk(out, kind, bytes(broken))
            container._chunk(out, container.END, b"")
        with pytest.raises(SignalError, match="block 1 is damaged"):
            list(container.read(path, teller))


def test_models_that_cannot_tell(folder: Path, plain: Path) -> None:
    with pytest.raises(SignalError, match=r"x\.gguf: its codec bins has no token for each sample"):
        Teller.load(made(folder, "x.gguf", exact=True))
    model = Generator.load(plain)
    object.__setattr__(model.layout, "scale", "level")
    with pytest.raises(SignalError, match=r"m\.gguf: it is told each stretch by a scale of its own"):
        Teller(model, "", "m.gguf")
    pytest.importorskip("torch")
    with pytest.raises(OpsError, match="op set torch gives other bits on other machines"):
        Teller.load(plain, ops="torch")


def test_nothing_to_practise_on(teller: Teller) -> None:
    for signals in ([], [replace(series(waves(90, 7)), grid=None)], [series(waves(20, 7))], [series(HOLED)]):
        with pytest.raises(SignalError, match="no recording of whole numbers without gaps to practise on"):
            practise.practise(teller, signals)


def test_a_damaged_practice(practised: Path, tmp_path: Path) -> None:
    file = ModelFile.open(practised)
    tensors: list[Any] = [(n, t.type, t.shape, file.read(n)) for n, t in file.tensors.items()]
    for key, value, told in (
        ("version", np.uint32(9), "a practice of version 9, this genmote reads 1"),
        ("weights", np.zeros(3, np.float32), "a practice whose parts do not fit together"),
        ("step", np.zeros(3), "a practice with numbers that are none"),
        ("widths", np.full(12, np.nan, np.float32), "a practice with numbers that are none"),
        ("units", "V", "a practice whose parts do not fit together"),
    ):
        metadata = {**file.typed_metadata(), f"genmote.practice.{key}": value}
        write_gguf(tmp_path / "d.gguf", metadata, tensors)
        with pytest.raises(SignalError, match=told):
            Teller.load(tmp_path / "d.gguf")


def test_practice_comes_back_from_a_file(teller: Teller, practised: Path) -> None:
    learnt = teller.practice
    assert learnt is not None and learnt.channels == ("c0", "c1", "c2")
    back = practice.from_state(learnt.state())
    assert all(np.array_equal(value, getattr(back, key)) for key, value in vars(learnt).items())


def test_moments_are_those_of_the_recordings(teller: Teller) -> None:
    """Against the plain mean over time of all products of a channel's inputs."""
    learnt = teller.practice
    assert learnt is not None
    whole = waves(2000, 5, 3)
    planes = [practice.Plane(n, 0.25) for n in range(3)]
    only = replace(learnt, products=_products(whole * 0.25, learnt.products.shape[-1]))
    moments, cross = only._products(planes, 1)
    inputs = np.stack([np.concatenate([np.zeros(i), whole[: len(whole) - i, n]]) for n, i in _twin.sources(1, 3)])
    assert np.allclose(moments[:-1, :-1], practice.STRENGTH * inputs @ inputs.T / 2000, rtol=0.02, atol=0.5)
    assert np.allclose(cross[:-1], practice.STRENGTH * inputs @ whole[:, 1] / 2000, rtol=0.02, atol=0.5)


def _products(values: np.ndarray, lags: int) -> np.ndarray:
    found = [values[lag:].T @ values[: len(values) - lag] / len(values) for lag in range(lags)]
    return np.stack(found, axis=2).astype(np.float32)
