"""What is said of files beside what they say: groups of a table's rows, a rate, names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Records, Series, Signal
from genmote.signals.said import Said

DRAW = np.random.default_rng(3)
Row = tuple[str, str, str]  # the time, the user, the rest


def rows(users: list[str], count: int, words: bool, when: str) -> list[Row]:
    """Rows of all users in turn, by time. `when`: they are of one time, of times between, or one user after another."""
    found = []
    for n in range(count):
        for k, user in enumerate(users):
            second = 1_700_000_000 + 10 * n + (3 * k if when == "between" else 0)
            if n in (7, 8) and k == 1:
                continue  # a gap
            word = f",{'on' if n % 3 else 'off'}" if words else ""
            found.append((str(second), user, f"{DRAW.normal(20, 3):.2f},{DRAW.integers(900)}{word}"))
    return sorted(found, key=lambda row: row[1]) if when == "after" else found


def same(one: Signal, other: Signal) -> None:
    assert type(one) is type(other) and len(one) == len(other) > 0
    if isinstance(one, Series) and isinstance(other, Series):
        assert (one.rate_hz, one.start_s, one.channels, one.units) == (
            other.rate_hz, other.start_s, other.channels, other.units,
        )  # fmt: skip
        assert one.grid is not None and other.grid is not None
        assert np.array_equal(one.grid.integers, other.grid.integers) and np.array_equal(one.grid.step, other.grid.step)
        assert np.array_equal(one.values, other.values, equal_nan=True)
        np.testing.assert_equal(one.times_s, other.times_s)
    else:
        assert isinstance(one, Records) and isinstance(other, Records) and one.fields == other.fields
        for mine, its in zip(one.columns, other.columns, strict=True):
            assert mine.tolist() == its.tolist()
        assert one.times_s is not None and np.array_equal(one.times_s, other.times_s)


@pytest.mark.parametrize("when", ["together", "between", "after"])
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("users", [["7", "12", "3"], ["ann", "bob", "eve, the other"]])
def test_a_group_is_as_a_file_of_its_own(tmp_path: Path, when: str, words: bool, users: list[str]) -> None:
    found = rows(users, 60, words, when)
    head = f"level (mV),count{',door' if words else ''}\n"
    whole = tmp_path / "w.csv"
    whole.write_text("time,user," + head + "".join(f'{time},"{user}",{rest}\n' for time, user, rest in found))
    notes: list[str] = []
    grouped = reading.read(whole, said=Said(group="user"), notes=notes)
    order = list(dict.fromkeys(user for _, user, _ in found))
    assert [one.name for one in grouped] == [f"w {user}" for user in order]
    assert [one.labels for one in grouped] == [{"user": user} for user in order]
    for user, one in zip(order, grouped, strict=True):
        alone = tmp_path / "one.csv"
        alone.write_text("time," + head + "".join(f"{time},{rest}\n" for time, its, rest in found if its == user))
        same(one, reading.read(alone)[0])
    if not words:
        assert "w.csv: 2 samples that are missing in gaps are NaN now" in notes
    for one, other in zip(
        grouped, reading.joined_all(reading.pieces(whole, said=Said(group="user"), rows=7)), strict=True
    ):
        same(one, other)
    lines = tmp_path / "w.jsonl"
    names = ["level (mV)", "count", *(["door"] if words else [])]
    cells = [dict(zip(names, rest.split(","), strict=True)) for _, _, rest in found]
    lines.write_text(
        "".join(json.dumps({"time": t, "user": u, **c}) + "\n" for (t, u, _), c in zip(found, cells, strict=True))
    )
    for one, other in zip(grouped, reading.read(lines, said=Said(group="user")), strict=True):
        same(one, other)


def test_rows_of_no_group_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,node (mV),x\n" + "".join(f"{n},{'' if n == 5 else n % 2},{n}\n" for n in range(20)))
    notes: list[str] = []
    found = reading.read(path, said=Said(group="node"), notes=notes)
    assert [len(one) for one in found] == [10, 10] and "a.csv: 1 rows without a node are left out" in notes
    assert isinstance(found[1], Series) and np.isnan(found[1].values[2, 0])  # where that row was
    assert [one.name for one in reading.read(path, said=Said(group="node (mV)"))] == ["a 0", "a 1"]


def test_a_rate_and_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{n},{n * n}\n" for n in range(5)))
    (found,) = reading.read(path, said=Said(sample_rate=50.0, names=("x", "y")))
    assert isinstance(found, Series) and found.channels == ("x", "y") and found.rate_hz == 50
    assert found.values[:, 1].tolist() == [0, 1, 4, 9, 16]
    path.write_text("time,a,b\n" + "".join(f"{n * n},{n},word {n}\n" for n in range(5)))
    notes: list[str] = []
    rows = reading.joined_all(reading.pieces(path, said=Said(sample_rate=50.0, names=("x", "y")), rows=2, notes=notes))[
        0
    ]
    assert notes.count("a.csv: is of records, which have no --sample-rate: it changes nothing") == 1
    assert (
        isinstance(rows, Records) and [field.name for field in rows.fields] == ["x", "y"] and rows.times_s is not None
    )
    path.write_text("time,a\n" + "".join(f"{n * n},{n}\n" for n in range(5)))
    (found,) = reading.read(path, said=Said(sample_rate=50.0))
    assert isinstance(found, Series) and found.rate_hz == 50 and found.times_s is None


def test_what_cannot_be_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,user,x\n" + "".join(f"{n},{n % 2},{n}\n" for n in range(20)))
    with pytest.raises(SignalError, match=r"a.csv: has no column 'who' to group its rows by: it has time, user, x"):
        reading.read(path, said=Said(group="who"))
    with pytest.raises(
        SignalError, match=r"a.csv: has 2 channels \(user, x\), and 1 names are given: wanted one for each"
    ):
        reading.read(path, said=Said(names=("a",)))
    cloud = tmp_path / "c.ply"
    cloud.write_text(
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
        "property float z\nend_header\n1 2 3\n"
    )
    with pytest.raises(SignalError, match=r"c.ply: is no table with columns: leave out --group"):
        reading.read(cloud, said=Said(group="x"))
    assert list(Said(sample_rate=-1.0, names=("a", "a")).faults()) == [
        "sample_rate=-1.0: use 0 (as the file says) or the samples of a second",
        "names=('a', 'a'): use each once",
    ]
