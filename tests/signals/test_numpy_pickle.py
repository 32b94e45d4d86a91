"""Pickles of NumPy are read as NumPy reads them; any other pickle is refused, and nothing that it says is run."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import recordings
from genmote.signals.kinds import Series
from genmote.signals.numpy_pickle import load

RNG = np.random.default_rng(5)


def npy(path: Path, program: bytes, shape: tuple[int, ...] = (), descr: str = "|O") -> Path:
    """An .npy file that holds `program` as its pickle."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    path.write_bytes(out.getvalue() + program)
    return path


def pickled(path: Path, value: Any, protocol: int = 4) -> Path:
    return npy(path, pickle.dumps(value, protocol))


def same(a: Any, b: Any) -> bool:
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def held() -> dict[str, Any]:
    twice = RNG.standard_normal((3, 2))
    return {
        "X": [RNG.standard_normal((n, 6)) for n in (4, 0, 7)],
        "names": ["one", "zwei", "três"],
        "tuple": (1, 2.5, None, True, b"\x00\xff", -(10**30)),
        "twice": [twice, twice],
        "fortran": np.asfortranarray(RNG.standard_normal((3, 4))),
        "scalar": np.array(3.5),
        5: {"inner": {"y": np.arange(5)}},
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_numpy_wrote_is_read(tmp_path: Path, protocol: int) -> None:
    value = held()
    assert same(load(pickled(tmp_path / "a.npy", value, protocol)), value)


def test_np_save_of_a_dictionary(tmp_path: Path) -> None:
    value = held()
    np.save(tmp_path / "a.npy", np.array(value, dtype=object), allow_pickle=True)
    assert same(load(tmp_path / "a.npy"), value)


@pytest.mark.parametrize("code", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i8"])
def test_every_type_of_number(tmp_path: Path, code: str) -> None:
    array = (
        (RNG.standard_normal((5, 3)) * 50).astype(code) if code[0] != "u" else np.arange(15, dtype=code).reshape(5, 3)
    )
    assert same(load(pickled(tmp_path / "a.npy", array)), array)


def test_the_real_recording_is_what_numpy_reads(recording: Callable[[str], list[Series]]) -> None:
    ours = recording("watch")
    path = recordings.resolve("watch")
    theirs = np.load(path, allow_pickle=True, encoding="latin1").item()
    assert len(ours) == len(theirs["X"]) == 140
    for series, array in zip(ours, theirs["X"], strict=True):
        assert np.array_equal(series.values, array.astype(np.float32))
    short = {"PEN": "pendulum", "ABD": "abduction", "FEL": "forward elevation", "IR": "internal rotation"}
    short |= {"ER": "external rotation", "TRAP": "lower trapezius row", "ROW": "bent-over row"}
    assert [series.name for series in ours] == [short[theirs["y_labels"][label]] for label in theirs["y"]]
    assert list(ours[0].channels) == theirs["X_labels"]


class Runs:
    """An object whose pickle runs a function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Runs(os.system, "touch {mark}"), r"(posix|nt)\.system"),
        (Runs(eval, "open('{mark}', 'w')"), r"builtins\.eval"),
        (Runs(os.rename, "{mark}", "b"), r"rename"),
        (Runs(np.fromfile, "{mark}"), "fromfile"),
        (np.random.default_rng(0), r"numpy\.random"),
        (np.float64(1.5), r"scalar"),
        (Path("x"), "pathlib"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused(tmp_path: Path, value: Any, named: str) -> None:
    mark = tmp_path / "run"
    if isinstance(value, Runs):
        value = Runs(value.call[0], *(word.format(mark=mark) for word in value.call[1:]))
    path = pickled(tmp_path / "a.npy", {"X": [value]})
    with pytest.raises(SignalError, match=rf"a\.npy: the pickle asks for .*{named}.*: refused, only arrays of numbers"):
        load(path)
    assert not mark.exists()


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def name(module: str, word: str) -> bytes:
    return f"c{module}\n{word}\n".encode()


ENCODE, NDARRAY, DTYPE = name("_codecs", "encode"), name("numpy", "ndarray"), name("numpy", "dtype")
RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")


def array(shape: bytes, code: str = "f8", data: bytes = b"C\x08" + bytes(8), order: str = "<") -> bytes:
    """The program of an array; `shape` and `data` are programs themselves."""
    type_ = (
        DTYPE
        + b"("
        + text(code)
        + b"K\x00K\x01tR(K\x03"
        + text(order)
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    made = RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01btR"
    return made + b"(K\x01" + shape + type_ + b"\x89" + data + b"tb"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (ENCODE + b"(" + text("bomb") + text("zip") + b"tR.", "calls encode as NumPy does not: refused"),
        (RECONSTRUCT + b"(" + DTYPE + b"K\x00\x85C\x01btR.", "calls _reconstruct as NumPy does not"),
        (NDARRAY + b"(K\x05tR.", "calls ndarray as NumPy does not"),
        (NDARRAY + b")\x81.", "is damaged: "),
        (DTYPE + b"}" + text("name") + text("x") + b"sb.", "the pickle wants to change dtype: refused"),
        (DTYPE + b".", "the pickle holds 'dtype': wanted arrays, dictionaries"),
        (b"\x82\x05.", "asks for extension 5: refused"),
        (b"P0\n.", "is damaged: UnpicklingError"),
        (array(b"K\x02\x85") + b".", r"an array of shape \(2,\) of float64 in 8 bytes: the sizes do not fit"),
        (array(b"\x8a\x06" + b"\xff" * 5 + b"\x7f\x85") + b".", "the sizes do not fit"),
        (array(b"J\xff\xff\xff\xff\x85") + b".", r"an array of shape \(-1,\): wanted whole numbers"),
        (array(b"\x88\x85") + b".", r"an array of shape \(True,\): wanted whole numbers"),
        (array(b"K\x01\x85", code="S8") + b".", "an array of 'S8': wanted numbers"),
        (array(b"K\x01\x85", code="O8") + b".", "an array of 'O8': wanted numbers"),
        (array(b"K\x01\x85", order="!") + b".", "a type of numbers is described in an unknown way"),
        (array(b"K\x01\x85", data=b"N") + b".", "an array of 'f8': wanted numbers"),
        (RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01btR.", "an array is described in an unknown way"),
        (b"]" * 40 + b"a" * 39 + b".", "lists within lists, deeper than 32"),
        (b"]q\x00h\x00a.", "lists within lists, deeper than 32"),
        (b"\x8f(K\x01\x90.", "the pickle holds 'set'"),
        (b"}K\x01\x85K\x02s.", "the pickle holds 'dict'"),
    ],
)
def test_what_arrays_do_not_need_is_refused(tmp_path: Path, program: bytes, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        load(npy(tmp_path / "a.npy", b"\x80\x04" + program))


@pytest.mark.parametrize(
    "program",
    [
        b"r\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"B\xff\xff\xff\x7fabc.",  # bytes that are not there
        b"\x8e" + struct.pack("<Q", 1 << 60) + b".",
        b"\x95" + struct.pack("<Q", 1 << 60) + b"K\x01.",
        b"\x96" + struct.pack("<Q", 1 << 40) + b".",
    ],
)
def test_a_lie_about_sizes_takes_no_memory(tmp_path: Path, program: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SignalError):
        load(npy(tmp_path / "a.npy", b"\x80\x05" + program))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_shared_lists_are_made_once(tmp_path: Path) -> None:
    value: Any = [1]
    for _ in range(25):
        value = [value, value]  # 2**25 numbers, were each made anew
    made = load(pickled(tmp_path / "a.npy", value))
    assert made[0] is made[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"\x93NUMPY\x01\x00v\x00{", "is damaged"),
        (b"PK\x03\x04" + bytes(100), "is damaged: ValueError"),
    ],
)
def test_what_is_no_npy_file_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(SignalError, match=message):
        load(tmp_path / "a.npy")


def test_an_absent_file_and_plain_numbers_are_told(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"b\.npy cannot be read \(No such file or directory\): wanted a pickled"):
        load(tmp_path / "b.npy")
    np.save(tmp_path / "a.npy", np.arange(3.0))
    with pytest.raises(SignalError, match=r"a\.npy: an array of float64 and shape \(3,\): wanted one pickled object"):
        load(tmp_path / "a.npy")


def test_a_damaged_file_is_one_error_wherever_it_is_damaged(tmp_path: Path) -> None:
    whole = pickled(tmp_path / "a.npy", {"X": [np.arange(6.0).reshape(2, 3)], "y": np.arange(2)}).read_bytes()
    random = np.random.default_rng(9)
    for length in range(len(whole)):
        (tmp_path / "a.npy").write_bytes(whole[:length])
        with pytest.raises(SignalError):
            load(tmp_path / "a.npy")
    for _ in range(800):
        broken = bytearray(whole)
        for at in random.integers(0, len(whole), random.integers(1, 4)):
            broken[at] = random.integers(256)
        (tmp_path / "a.npy").write_bytes(broken)
        try:
            load(tmp_path / "a.npy")  # a changed number is no fault that can be seen
        except SignalError as fault:
            assert "\n" not in str(fault)
