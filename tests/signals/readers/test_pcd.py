from __future__ import annotations

import struct
from pathlib import Path

import lzf
import numpy as np
import pypcd4
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Frames
from genmote.signals.readers import pcd

DRAW = np.random.default_rng(8)
PLACES = DRAW.normal(0, 20, (500, 3)).astype(np.float32).round(3)
LIGHT = DRAW.integers(0, 256, (500, 1)).astype(np.float32)
FORMS = {form.value: form for form in pypcd4.Encoding}


def write(path: Path, form: str, points: np.ndarray = PLACES) -> Path:
    """A file by pypcd4."""
    made = pypcd4.PointCloud.from_xyzi_points(np.hstack([points, LIGHT[: len(points)]]))
    made.save(path, encoding=FORMS[form])
    return path


def one(path: Path, notes: list[str] | None = None) -> Frames:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Frames) and found.shape == "points" and len(found) == 1
    return found


@pytest.mark.parametrize("form", pcd.FORMS)
def test_points_come_back(tmp_path: Path, form: str) -> None:
    notes: list[str] = []
    found = one(write(tmp_path / "a.pcd", form), notes)
    assert found.channels == ("x", "y", "z", "intensity") and found.units == ("m", "m", "m", "") and notes == []
    (cloud,) = found.frames
    assert cloud.dtype == np.float32 and (cloud == np.hstack([PLACES, LIGHT])).all() and found.labels == {}


@pytest.mark.parametrize("form", pcd.FORMS[1:])
def test_colours_are_taken_apart(tmp_path: Path, form: str) -> None:
    colours = DRAW.integers(0, 256, (500, 3))
    packed = pypcd4.PointCloud.encode_rgb(colours.astype(np.uint8))
    made = pypcd4.PointCloud.from_xyzrgb_points(np.hstack([PLACES, packed.reshape(-1, 1)]))
    made.save(tmp_path / "a.pcd", encoding=FORMS[form])
    found = one(tmp_path / "a.pcd")
    assert found.channels == ("x", "y", "z", "red", "green", "blue")
    assert (found.frames[0][:, 3:] == colours).all() and (found.frames[0][:, :3] == PLACES).all()


@pytest.mark.parametrize(("kind", "name"), [("U", "rgb"), ("F", "rgb"), ("I", "rgba"), ("float", "rgb")])
def test_colours_in_a_text(tmp_path: Path, kind: str, name: str) -> None:
    """Whole numbers, whatever they are called; or, as older files have it, the float of the same bits."""
    packed = [0x00010203, 0x00FF8040]
    said = [f"{np.uint32(n).view(np.float32):.9g}" for n in packed] if kind == "float" else packed
    head = (
        f"VERSION .7\nFIELDS x y z {name}\nSIZE 4 4 4 4\nTYPE F F F {kind[0].upper()}\nWIDTH 2\nHEIGHT 1\nDATA ascii\n"
    )
    (tmp_path / "a.pcd").write_text(head + "".join(f"1 2 3 {n}\n" for n in said), "ascii")
    found = one(tmp_path / "a.pcd")
    assert found.channels[3:] == ("red", "green", "blue", "alpha")[: len(name)]
    assert found.frames[0][:, 3:6].tolist() == [[1, 2, 3], [255, 128, 64]]


HEAD = (
    "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y _ z ring code\nSIZE 8 8 1 8 2 4\n"
    "TYPE F F U F U I\nCOUNT 1 1 3 1 1 2\nWIDTH 4\nHEIGHT 2\nVIEWPOINT 1 2 3 1 0 0 0\nPOINTS 8\nDATA "
)
ROWS = [(1.5 * n, -n / 3, 1, 2, 3, 7.25, n, n - 5, 100_000 + n) for n in range(8)]


def by_hand(form: str) -> bytes:
    if form == "ascii":
        return (HEAD + "ascii\n" + "".join(" ".join(map(str, row)) + "\n" for row in ROWS)).encode()
    if form == "binary":
        return (HEAD + "binary\n").encode() + b"".join(struct.pack("<dd3BdHii", *row) for row in ROWS)
    columns = [*zip(*ROWS, strict=True)]
    kinds = ["d", "d", "BBB", "d", "H", "ii"]
    raw, at = b"", 0
    for kind in kinds:  # all numbers of a field together, point after point
        some = columns[at : at + len(kind)]
        raw += b"".join(struct.pack("<" + kind, *numbers) for numbers in zip(*some, strict=True))
        at += len(kind)
    packed = lzf.compress(raw)
    return (HEAD + "binary_compressed\n").encode() + struct.pack("<II", len(packed), len(raw)) + packed


@pytest.mark.parametrize("form", pcd.FORMS)
def test_padding_many_numbers_a_field_and_a_viewpoint(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.pcd").write_bytes(by_hand(form))
    found = one(tmp_path / "a.pcd")
    assert found.channels == ("x", "y", "z", "ring", "code 0", "code 1")
    assert found.labels == {"viewpoint": "1 2 3 1 0 0 0"}
    assert found.frames[0].dtype == np.float64
    assert found.frames[0].tolist() == [[row[0], row[1], *row[5:]] for row in ROWS]


@pytest.mark.parametrize("size", [100, 5000, 100_000])
@pytest.mark.parametrize("values", [2, 200])
def test_lzf_against_liblzf(size: int, values: int) -> None:
    raw = np.repeat(DRAW.integers(0, values, size), DRAW.integers(1, 30, size)).astype(np.uint8).tobytes()[:size]
    packed = lzf.compress(raw)
    assert pcd.unlzf(packed, len(raw)) == raw
    assert pcd.unlzf(packed, len(raw) + 1) is None and pcd.unlzf(packed[:-1], len(raw)) is None
    assert pcd.unlzf(packed + b"\0a", len(raw)) is None and pcd.unlzf(b"\x40\x01", 4) is None


@pytest.mark.parametrize("form", ["ascii", "binary"])
def test_a_cut_file_is_read_as_far_as_it_goes(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "a.pcd", form)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    notes: list[str] = []
    (cloud,) = one(path, notes).frames
    assert 150 < len(cloud) < 300 and (cloud[:, :3] == PLACES[: len(cloud)]).all()
    assert notes == [f"a.pcd ends early, after {len(cloud)} of 500 points; what is there is read"]


def test_points_without_a_place_are_left_out(tmp_path: Path) -> None:
    places = PLACES.copy()
    places[[3, 9], [0, 2]] = np.nan
    for form in pcd.FORMS:
        notes: list[str] = []
        (cloud,) = one(write(tmp_path / "a.pcd", form, places), notes).frames
        assert (cloud[:, :3] == np.delete(PLACES, [3, 9], axis=0)).all()
        assert notes == ["a.pcd: 2 points have no place (x, y or z is no number); left out"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DATA ascii", "DATA zip", r"a\.pcd: has DATA zip: wanted ascii, binary, binary_compressed"),
        ("POINTS 8", "POINTS eight", r"a\.pcd: its header has 'eight' for POINTS: wanted a whole number"),
        ("POINTS 8", "POINTS 0", r"a\.pcd: says that it has 0 points of 9 numbers: wanted 1 to"),
        ("POINTS 8\n", "", None),
        ("HEIGHT 2\nVIEWPOINT 1 2 3 1 0 0 0\nPOINTS 8\n", "", r"a\.pcd: its header has 'nothing' for HEIGHT: wan"),
        ("SIZE 8 8 1 8 2 4\n", "", r"a\.pcd: its header has no SIZE: wanted a PCD file of version 0\.6 or 0\.7"),
        ("SIZE 8 8", "SIZE 3 8", r"a\.pcd: its fields x y _ z ring code are of size 3 8 1 8 2 4, type F F U F U I"),
        ("COUNT 1 1", "COUNT 1", r"a\.pcd: its fields x y _ z ring code are of size .* wanted one each, of 1 to 8 byt"),
        ("COUNT 1 1", "COUNT 9999 1", r"a\.pcd: has 10007 numbers a point: wanted at most 1024"),
        ("VERSION 0.7", "version 0.7", r"a\.pcd, line 2: got 'version 0\.7': wanted a PCD header"),
        ("FIELDS x", "FIELDS a", r"a\.pcd: its points have no x: wanted x, y and z among a, y, z, ring, code 0"),
        ("7.25 7 2", "7.25 7.5 2", r"a\.pcd: got 7\.5 for ring: wanted whole numbers of uint16"),
    ],
)  # fmt: skip
def test_what_it_cannot_read(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    text = by_hand("ascii").decode()
    assert old in text
    (tmp_path / "a.pcd").write_text(text.replace(old, new), "ascii")
    if message is None:
        assert len(one(tmp_path / "a.pcd").frames[0]) == 8
        return
    with pytest.raises(SignalError, match=message):
        reading.read(tmp_path / "a.pcd")


def test_compressed_points_that_are_damaged(tmp_path: Path) -> None:
    raw = by_hand("binary_compressed")
    begin = raw.index(b"compressed\n") + 11
    for changed, message in (
        (raw[: begin + 4], r"a\.pcd: ends before its points: wanted their compressed size"),
        (raw[:-3], r"a\.pcd: ends 3 bytes early: wanted \d+ of compressed points"),
        (raw[: begin + 4] + struct.pack("<I", 7) + raw[begin + 8 :], r"a\.pcd: has 7 bytes of 8 points: wanted 296"),
        (raw[: begin + 8] + b"\xff" * (len(raw) - begin - 8), r"a\.pcd: its compressed points are damaged: wanted 296"),
    ):
        (tmp_path / "a.pcd").write_bytes(changed)
        with pytest.raises(SignalError, match=message):
            reading.read(tmp_path / "a.pcd")
