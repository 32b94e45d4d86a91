from __future__ import annotations

from pathlib import Path

import numpy as np
import plyfile
import pytest

from genmote.errors import SignalError
from genmote.signals import _clouds, reading
from genmote.signals.kinds import Frames

DRAW = np.random.default_rng(6)
KINDS = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "u2"), ("red", "u1"), ("shift", "i1")]


def vertices(count: int = 500, kinds: list[tuple[str, str]] = KINDS) -> np.ndarray:
    made = np.zeros(count, kinds)
    for name, kind in kinds:
        made[name] = DRAW.normal(0, 20, count) if kind[0] == "f" else DRAW.integers(0, 100, count)
    return made


FACES = np.array([([0, 1, 2],), ([1, 2, 3],)], [("vertex_indices", "i4", (3,))])


def write(path: Path, points: np.ndarray, *, text: bool = False, order: str = "<", first: bool = True) -> Path:
    """A file by plyfile."""
    elements = [plyfile.PlyElement.describe(points, "vertex"), plyfile.PlyElement.describe(FACES, "face")]
    plyfile.PlyData(elements if first else elements[::-1], text=text, byte_order=order, comments=["made"]).write(path)
    return path


def one(path: Path, notes: list[str] | None = None) -> Frames:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Frames) and found.shape == "points" and len(found) == 1
    return found


@pytest.mark.parametrize("form", [{"text": True}, {"order": "<"}, {"order": ">"}])
def test_points_come_back(tmp_path: Path, form: dict[str, object]) -> None:
    points, notes = vertices(), list[str]()
    found = one(write(tmp_path / "a.ply", points, **form), notes)  # type: ignore[arg-type]
    assert found.channels == tuple(name for name, _ in KINDS) and found.units == ("",) * 6 and notes == []
    (cloud,) = found.frames
    assert cloud.dtype == np.float32
    for n, (name, _) in enumerate(KINDS):
        assert (cloud[:, n] == points[name]).all()


@pytest.mark.parametrize("text", [True, False])
def test_numbers_of_64_bits(tmp_path: Path, text: bool) -> None:
    points = vertices(kinds=[("x", "f8"), ("y", "f8"), ("z", "f8"), ("id", "u4")])
    (cloud,) = one(write(tmp_path / "a.ply", points, text=text)).frames
    assert cloud.dtype == np.float64 and (cloud[:, 0] == points["x"]).all() and (cloud[:, 3] == points["id"]).all()


def test_other_elements_before_the_vertices(tmp_path: Path) -> None:
    points = vertices()
    camera = plyfile.PlyElement.describe(np.zeros(3, [("a", "f8"), ("b", "u1")]), "camera")
    for text in (True, False):
        plyfile.PlyData([camera, plyfile.PlyElement.describe(points, "vertex")], text=text).write(tmp_path / "a.ply")
        assert (one(tmp_path / "a.ply").frames[0][:, 0] == points["x"]).all()
    assert (one(write(tmp_path / "a.ply", points, text=True, first=False)).frames[0][:, 0] == points["x"]).all()
    with pytest.raises(SignalError, match=r"a\.ply: has lists in or before its vertices: wanted the vertices first"):
        one(write(tmp_path / "a.ply", points, first=False))


@pytest.mark.parametrize("text", [True, False])
def test_a_cut_file_is_read_as_far_as_it_goes(tmp_path: Path, text: bool) -> None:
    points = vertices(40_000)
    path = write(tmp_path / "a.ply", points, text=text)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    notes: list[str] = []
    (cloud,) = one(path, notes).frames
    assert 15_000 < len(cloud) < 25_000 and (cloud[:, 1] == points["y"][: len(cloud)]).all()
    assert notes == [f"a.ply ends early, after {len(cloud)} of 40000 points; what is there is read"]


def test_points_without_a_place_are_left_out(tmp_path: Path) -> None:
    points = vertices()
    points["x"][3], points["z"][7] = np.nan, np.inf
    notes: list[str] = []
    (cloud,) = one(write(tmp_path / "a.ply", points), notes).frames
    assert (cloud[:, 1] == np.delete(points["y"], [3, 7])).all()
    assert notes == ["a.ply: 2 points have no place (x, y or z is no number); left out"]


HEAD = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "1 2 3\n4 5\n6 7 8\n", r"a\.ply, line 9: has 2 numbers: wanted 3 of a point"),
        (HEAD + "1 2 3\n4 5 six\n", r"a\.ply, line 9: got 'six': wanted a number"),
        (HEAD + "nan 2 3\n4 5 inf\n", r"a\.ply: none of its 2 points has a place: wanted some"),
        (HEAD, r"a\.ply: none of its 0 points has a place"),
        (HEAD.replace("float z", "float w"), r"a\.ply: its points have no z: wanted x, y and z among x, y, w"),
        (HEAD.replace("float z", "float x"), r"a\.ply: its points have no z"),
        (HEAD.replace("property float z", "property float z\nproperty float z"), r"a\.ply: its points have a numb"),
        (HEAD.replace("vertex 2", "vertex 0"), r"a\.ply: says that it has 0 points of 3 numbers: wanted 1 to \d+"),
        (HEAD.replace("vertex 2", "vertex 99999999999"), r"a\.ply: says that it has 99999999999 points of 3 numb"),
        (HEAD.replace("vertex", "face"), r"a\.ply: has no vertices, but face: wanted a cloud of points"),
        (HEAD.replace("float z", "half z"), r"a\.ply, line 6: got 'property half z': wanted the header of a PLY f"),
        (HEAD.replace("end_header\n", ""), r"a\.ply, line 7: got '': wanted the header of a PLY file to go on"),
        (HEAD.replace("float z", "list uchar int z"), r"a\.ply: has lists in or before its vertices"),
        (HEAD.replace("float z", "uchar z") + "1 2 256\n1 2 3\n", r"a\.ply: got 256 for z: wanted whole numbers of ui"),
    ],
)  # fmt: skip
def test_what_it_cannot_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.ply").write_text(text, "ascii")
    with pytest.raises(SignalError, match=message):
        reading.read(tmp_path / "a.ply")


def test_what_is_no_ply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ply").write_bytes(b"solid\n" * 50)
    with pytest.raises(SignalError, match=r"a\.ply: does not begin with ply: wanted a PLY file"):
        reading.read(tmp_path / "a.ply", reader="ply")
    monkeypatch.setattr(_clouds, "MOST", 100)
    with pytest.raises(SignalError, match=r"says that it has 500 points of 6 numbers: wanted 1 to 100 numbers"):
        reading.read(write(tmp_path / "a.ply", vertices()))
