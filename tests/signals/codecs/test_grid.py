"""Frames as tokens: pictures against the stated error, clouds against a slow range image, and their order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from genmote.errors import SignalError, SpecError
from genmote.signals import coding
from genmote.signals.coding import about, fit
from genmote.signals.kinds import Frames

Arrays = list[np.ndarray[Any, Any]]


def pictures(*frames: Any) -> Frames:
    made = [np.asarray(frame) for frame in frames]
    width = made[0].shape[2] if made else 1
    return Frames("p", "grid", made, tuple("rgbd"[:width]), ("",) * width)


def cloud(*frames: Any, channels: str = "xyzi") -> Frames:
    made = [np.asarray(frame, np.float32).reshape(-1, len(channels)) for frame in frames]
    return Frames("c", "points", made, tuple(channels), ("m",) * len(channels))


def round_trip(codec: coding.Codec, signal: Frames, notes: list[str] | None = None) -> Frames:
    again = codec.decode(codec.encode(signal, notes), about(signal), notes)
    assert isinstance(again, Frames) and again.shape == signal.shape and again.channels == signal.channels
    return again


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
NUMBERS = st.just(math.nan) | st.floats(-(2.0**90), 2.0**90, width=32)


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(st.sampled_from([np.uint8, np.int16, np.int64]), SHAPES)
    | arrays.arrays(st.sampled_from([np.float32, np.float64]), SHAPES, elements=NUMBERS),
    st.sampled_from(["uniform", "quantile"]),
    st.sampled_from(["mean", "centre"]),
    st.integers(2, 40),
    st.integers(1, 5),
)
def test_every_pixel_is_within_the_stated_error(frame: Any, spacing: str, within: str, bins: int, patch: int) -> None:
    signal = pictures(frame, frame[::-1])
    if np.isnan(frame).all(axis=(0, 1)).any():
        with pytest.raises(SignalError, match=r"channel . has no number in it"):
            fit("grid", [signal])
        return
    codec = fit("grid", [signal], spacing=spacing, within=within, bins=bins, patch=patch)
    notes: list[str] = []
    again, bounds = round_trip(codec, signal, notes), list(codec.error().values())
    assert notes == [] and len(again) == 2
    for before, after in zip(signal.frames, again.frames, strict=True):
        assert np.array_equal(np.isnan(before), np.isnan(after))
        off = np.abs(after.astype(np.float64) - before.astype(np.float64))
        assert (np.nan_to_num(off).max(axis=(0, 1)) <= [bound.absolute for bound in bounds]).all()


def test_a_patch_stands_together() -> None:
    height, width, side = 5, 7, 3
    frame = np.arange(height * width, dtype=float).reshape(height, width, 1)
    codec = fit("grid", [pictures(frame)], bins=height * width, patch=side)
    wanted = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            for row in range(top, min(top + side, height)):
                wanted += [row * width + column for column in range(left, min(left + side, width))]
    codes = codec.encode(pictures(frame)) - codec.head.size
    assert codes[0] == height * width + 1 and codes[1:].tolist() == wanted


def test_a_picture_of_bytes_in_256_bins_comes_back_whole() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    signal = pictures(frame)
    assert np.array_equal(round_trip(fit("grid", [signal]), signal).frames[0], frame)


def slow_cells(codec: Any, points: Any) -> dict[tuple[int, int], list[float]]:
    """The nearest point of each direction, one point after another."""
    look = codec.look
    cells: dict[tuple[int, int], list[float]] = {}
    for point in points.astype(float).tolist():
        x, y, z = point[:3]
        distance = math.sqrt(x * x + y * y + z * z)
        elevation, azimuth = math.atan2(z, math.hypot(x, y)), math.atan2(y, x) % (2 * math.pi)
        if not look.lowest <= elevation <= look.highest:
            continue
        row = min(int((look.highest - elevation) / ((look.highest - look.lowest) or 1) * look.height), look.height - 1)
        cell = (row, min(int(azimuth / (2 * math.pi) * look.width), look.width - 1))
        if cell not in cells or distance < math.dist(cells[cell][:3], (0, 0, 0)):
            cells[cell] = point
    return cells


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 60), st.integers(2, 300))
def test_points_are_moved_by_no_more_than_is_stated(seed: int, rows: int, columns: int, bins: int) -> None:
    draw = np.random.default_rng(seed)
    points = draw.normal(0, 20, (draw.integers(1, 200), 4)).astype(np.float32)
    points[:, 2] /= 10
    signal = cloud(points)
    codec = fit("grid", [signal], rows=rows, columns=columns, bins=bins)
    notes: list[str] = []
    again = round_trip(codec, signal, notes).frames[0]
    kept = slow_cells(codec, points)
    assert len(again) == len(kept)
    behind = len(points) - len(kept)
    assert notes == ([f"c: {behind} of {len(points)} points are behind others, left out"] if behind else [])
    bounds = codec.error()
    for got, (_, point) in zip(again.tolist(), sorted(kept.items()), strict=True):
        distance = math.dist(point[:3], (0, 0, 0))
        moved = math.dist(got[:3], point[:3])
        assert moved <= bounds["x"].absolute + bounds["x"].relative * distance
        assert abs(got[3] - point[3]) <= bounds["i"].absolute
        assert abs(math.dist(got[:3], (0, 0, 0)) - distance) <= bounds["range"].absolute + 1e-6 * distance


@pytest.mark.parametrize(("azimuth", "elevations"), [(1e-6, (0.0, 0.0)), (math.pi / 4, (-1.0, 1.0))])
def test_the_stated_movement_is_about_what_the_worst_point_moves(azimuth: float, elevations: tuple[float, ...]) -> None:
    """In the corner of a cell, at a range that comes back as it was."""
    corners = [
        [10 * math.cos(e) * math.cos(azimuth), 10 * math.cos(e) * math.sin(azimuth), 10 * math.sin(e)]
        for e in elevations
    ]
    signal = cloud(corners, channels="xyz")
    codec = fit("grid", [signal], rows=2, columns=4)
    kept = np.array([point for _, point in sorted(slow_cells(codec, signal.frames[0]).items())])
    moved = np.linalg.norm(round_trip(codec, signal).frames[0] - kept, axis=1).max()
    bound = codec.error()["x"]
    most = bound.absolute + bound.relative * 10
    assert 0.35 * most < moved <= most
    if elevations[0] == elevations[1]:
        assert moved > 0.95 * most


def test_points_that_are_nowhere_are_counted() -> None:
    codec = fit("grid", [cloud([[5, 0, -1, 1], [5, 0, 1, 2]])], rows=4, columns=8)
    wild = cloud([[0, 0, 9, 1], [np.nan, 0, 0, 1], [np.inf, 0, 0, 1], [3, 4, 0, 1.5], [0, 5.1, 0.5, np.nan]])
    notes: list[str] = []
    again = round_trip(codec, wild, notes).frames[0]
    assert len(again) == 2 and notes == [
        "c: 3 of 5 points are too high or low, or no numbers, left out",
        "c: 2 values of range lie outside of 5.09902 to 5.09902, cut to that",
    ]
    assert np.isnan(again[:, 3]).sum() == 1
    round_trip(codec, cloud(wild.frames[0], wild.frames[0]), notes := [])
    assert notes[0] == "c: 6 of 10 points are too high or low, or no numbers, left out"


def test_odd_frames() -> None:
    one = cloud([[1, 2, 3, 4]])
    codec = fit("grid", [one], rows=2, columns=2)
    assert len(round_trip(codec, cloud()).frames) == 0
    assert round_trip(codec, cloud([])).frames[0].shape == (0, 4)
    assert round_trip(codec, one).frames[0][0, 3] == 4
    bare = cloud([[1, 2, 3]], channels="xyz")
    assert round_trip(fit("grid", [bare]), bare).frames[0].shape == (1, 3)
    zero = cloud([[0, 0, 0]], channels="xyz")
    assert np.allclose(round_trip(fit("grid", [zero]), zero).frames[0], 0)
    constant = pictures(np.full((3, 3, 1), 7.5))
    assert (round_trip(fit("grid", [constant]), constant).frames[0] == 7.5).all()
    gone = pictures(np.full((3, 3, 1), np.nan))
    assert np.isnan(round_trip(fit("grid", [constant]), gone).frames[0]).all()


def test_what_lies_outside_is_cut_and_counted() -> None:
    codec = fit("grid", [pictures(np.linspace(0, 1, 25).reshape(5, 5, 1))])
    notes: list[str] = []
    again = round_trip(codec, pictures(np.full((5, 5, 1), np.inf)), notes)
    assert (again.frames[0] == 1).all() and notes == ["p: 25 values of r lie outside of 0 to 1, cut to that"]


def test_damaged_tokens_give_what_they_can() -> None:
    signal = pictures(*np.arange(27.0).reshape(3, 3, 3, 1))
    codec = fit("grid", [signal], bins=27)
    tokens = codec.encode(signal)
    notes: list[str] = []
    again = codec.decode(np.delete(tokens, 12), about(signal), notes)
    assert isinstance(again, Frames) and notes == ["p: 1 of 3 frames are broken, cut or filled with no numbers"]
    whole = codec.decode(tokens, about(signal))
    assert isinstance(whole, Frames)
    assert np.array_equal(again.frames[0], whole.frames[0]) and np.array_equal(again.frames[2], whole.frames[2])
    codec.decode(tokens[5:], about(signal), notes := [])
    assert notes == ["p: 5 tokens before the first frame, left out"]


def test_errors() -> None:
    with pytest.raises(
        SpecError,
        match="bins=1, wanted 2 to 65536; tail=-1.0, wanted 0 or more and less than half; patch=0, wanted 1 to",
    ):
        fit("grid", [cloud([[1, 2, 3, 4]])], bins=1, tail=-1.0, patch=0)
    grey, colour = pictures(np.zeros((2, 2, 1))), pictures(np.zeros((2, 2, 3)))
    with pytest.raises(SignalError, match="p: other channels than p; fit a codec on each"):
        fit("grid", [grey, colour])
    with pytest.raises(SignalError, match="c: points with x, y, i; wanted x, y and z among them"):
        fit("grid", [cloud([[1, 2, 3]], channels="xyi")])
    with pytest.raises(SignalError, match="c: no frame with anything in it; give at least one to be fitted on"):
        fit("grid", [cloud([])])
    with pytest.raises(SignalError, match="c: no point that is a number; give a cloud that has some to be fitted on"):
        fit("grid", [cloud([[np.nan] * 4])])
    codec = fit("grid", [grey])
    with pytest.raises(SignalError, match="p: grid of r, g, b, the codec is for grid of r; fit one on it"):
        codec.encode(colour)
    with pytest.raises(SignalError, match="c: points of x, y, z, i, the codec is for grid of r; fit one on it"):
        codec.encode(cloud([[1, 2, 3, 4]]))
    with pytest.raises(SignalError, match="p: a frame of 2 x 3 pixels, the codec is for 2 x 2; cut or scale it"):
        codec.encode(pictures(np.zeros((2, 3, 1))))
    timed = coding.About("p", times_s=np.zeros(1))
    notes: list[str] = []
    assert codec.decode(codec.encode(pictures(*np.zeros((2, 2, 2, 1)))), timed, notes).times_s is None
    assert notes == ["p: 1 times for 2 frames; wanted one each, left out"]
    state = codec.state()
    with pytest.raises(
        SignalError, match="a codec of 2 numbers a pixel with 1 ranges: wanted one each; write the model"
    ):
        coding.from_state({**state, "look.channels": ["r", "g"], "look.units": ["", ""]})
    for key, value, told in (
        (
            "look.units",
            [],
            r"a codec with look\.channels=\('r',\), units=\(\), wanted a unit for each, and of points x",
        ),
        ("look.height", 0, r"a codec with look\.height=0, width=2, wanted 1 to 65536 each; write the model file again"),
        ("look.lowest", 1.0, r"a codec with look\.lowest=1.0, highest=0.0, wanted angles that rise; write the model"),
    ):
        with pytest.raises(SignalError, match=told):
            coding.from_state({**state, key: value})


def test_a_real_lidar(shared_data: Path) -> None:
    paths = sorted((shared_data / "kitti_lidar3/velodyne").glob("*.bin"))[:2]
    frames = [np.fromfile(path, "<f4").reshape(-1, 4) for path in paths]
    signal = cloud(*frames)
    codec = fit("grid", [signal], columns=1024)
    notes: list[str] = []
    again = round_trip(codec, signal, notes)
    bound = codec.error()["x"]
    for frame, got in zip(frames, again.frames, strict=True):
        kept = np.array([point for _, point in sorted(slow_cells(codec, frame).items())])
        assert len(kept) == len(got) > len(frame) / 5
        moved = np.linalg.norm(got[:, :3] - kept[:, :3], axis=1)
        assert (moved <= bound.absolute + bound.relative * np.linalg.norm(kept[:, :3], axis=1)).all()
