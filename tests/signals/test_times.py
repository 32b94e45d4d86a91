"""Times that are read many at once, against the same one by one."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.signals import _times

DRAW = np.random.default_rng(0)
MOMENTS = DRAW.integers(-60 * 10**15, 200 * 10**15, 2000)  # µs, of the years 68 to 8307


@pytest.mark.parametrize("digits", [0, 1, 3, 6])
@pytest.mark.parametrize("between", "T ")
def test_plain_times_are_what_they_are_one_by_one(digits: int, between: str) -> None:
    cells = [str(np.datetime64(int(at), "us")).replace("T", between)[: 20 + digits - (digits == 0)] for at in MOMENTS]
    found = _times._plain(cells)
    assert found is not None
    one_by_one = np.array([_times.seconds_of(cell, "dmy") for cell in cells])
    assert np.isfinite(one_by_one).all() and (np.abs(found - one_by_one) <= np.spacing(np.abs(found))).all()


@pytest.mark.parametrize(
    "cell",
    [
        *("2024-02-30 00:00:00", "2024-01-01 24:00:00", "2024-06-30 23:59:60", "0000-02-20 00:00:00", "", "NaT"),
        *("2024-01-01", "2024-01-01 00:00:00Z", "2024-01-01 00:00:00.1234567", "2024-01-01\n2024-01-01 00:00:00"),
    ],
)
def test_others_are_read_one_by_one(cell: str) -> None:
    assert _times._plain(["2024-01-01 00:00:00", cell]) is None
