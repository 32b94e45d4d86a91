from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmote.errors import SignalError
from genmote.signals.live.payload import CELLS, LARGEST, ROWS, rows_of


@pytest.mark.parametrize(
    ("payload", "rows"),
    [
        (b"21.50", [{"value": "21.50"}]),
        (b" -3e2\r\n", [{"value": "-3e2"}]),
        (b"true", [{"value": "true"}]),
        (b"\xef\xbb\xbf7", [{"value": "7"}]),
        (b"[1, null, 3]", [{"column 1": "1", "column 2": "", "column 3": "3"}]),
        (b"[[1,2],[3,4]]", [{"column 1": "1", "column 2": "2"}, {"column 1": "3", "column 2": "4"}]),
        (b'[{"a":1},{"a":2,"b":"x"}]', [{"a": "1"}, {"a": "2", "b": "x"}]),
        (b'{"a":{"b":[1,2]},"on":false,"gone":null}', [{"a.b.0": "1", "a.b.1": "2", "on": "false", "gone": ""}]),
        (b"1,2\n3,\n", [{"column 1": "1", "column 2": "2"}, {"column 1": "3", "column 2": ""}]),
        (b"1,5;2,5", [{"column 1": "1.5", "column 2": "2.5"}]),
        (b"1\t2", [{"column 1": "1", "column 2": "2"}]),
        (b"1  2 3", [{"column 1": "1", "column 2": "2", "column 3": "3"}]),
        (b"1\n2", [{"value": "1"}, {"value": "2"}]),
    ],
)
def test_forms(payload: bytes, rows: list[dict[str, str]]) -> None:
    assert rows_of(payload) == rows


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "^nothing: wanted JSON or numbers"),
        (b" \n", "^nothing"),
        (b"\xff\xfe1", "which is not UTF-8: wanted JSON or numbers"),
        (b"hello", "'hello': wanted a JSON object or array, or numbers"),
        (b"1,x", "wanted a JSON object or array, or numbers"),
        (b",,", "wanted a JSON object or array, or numbers"),
        (b'{"a":1', "wanted a JSON object or array, or numbers"),
        (b'["x"]', "wanted a JSON object or array, or numbers"),
        (b"[[1],[[2]]]", "wanted a JSON object or array, or numbers"),
        (b"null", "wanted a JSON object or array, or numbers"),
        (b"[" * 100_000, "wanted a JSON object or array, or numbers"),
        (b"1e999", "wanted a JSON object or array, or numbers"),
        (b"{}", f"1 rows of up to 0 cells: wanted 1 to {ROWS} rows of 1 to {CELLS}"),
        (b"[" + b"1," * CELLS + b"1]", f"1 rows of up to {CELLS + 1} cells"),
        (b"1\n" * (ROWS + 1), f"{ROWS + 1} rows of up to 1 cells"),
        (b"1" * (LARGEST + 1), f"{LARGEST + 1} bytes: wanted at most {LARGEST}"),
    ],
)
def test_what_is_none(payload: bytes, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        rows_of(payload)


@given(st.binary(max_size=60) | st.text('[]{},:;."0123456789eE+- \ntruefalsn', max_size=60).map(str.encode))
def test_noise_ends_in_rows_or_an_error(payload: bytes) -> None:
    try:
        rows = rows_of(payload)
    except SignalError:
        return
    assert rows and all(row and all(isinstance(cell, str) for cell in row.values()) for row in rows)


NUMBERS = st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9)


@given(st.dictionaries(st.text("abc", min_size=1), NUMBERS, min_size=1, max_size=8))
def test_numbers_of_an_object_come_through(told: dict[str, Any]) -> None:
    (row,) = rows_of(json.dumps(told).encode())
    assert row.keys() == told.keys()
    assert all(math.isclose(float(row[key]), value) or float(row[key]) == value for key, value in told.items())
