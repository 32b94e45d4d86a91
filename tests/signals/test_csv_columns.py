from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals.csv_columns import rate_of, read_column


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_columns_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "timer, hr\r\n0.0,515\r\n8.5,-5.1e1\r\n\r\n17,514\r\n")
    assert read_column(path, "hr").tolist() == [515, -51, 514] and read_column(path, "timer").tolist() == [0, 8.5, 17]
    assert read_column(written(tmp_path, b'\xef\xbb\xbf"hr"\n1\n'), "hr").tolist() == [1]


def test_numbers_alone(tmp_path: Path) -> None:
    assert read_column(written(tmp_path, "530\n518\n506")).tolist() == [530, 518, 506]


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("timer,hr\n0,1\n", "pulse", r"a\.csv has no column 'pulse': it has timer, hr"),
        ("", "hr", "has no column 'hr': it has no line at all"),
        ("hr\n", "hr", r"a\.csv has no values: wanted a number a line"),
        ("", None, "has no values"),
        ("timer,hr\n0,1\n8,x\n", "hr", r"a\.csv, line 3: got 'x', wanted a number in column 2"),
        ("timer,hr\n0\n", "hr", r"a\.csv, line 2: got 1 columns, wanted a number in column 2"),
        (b"hr\n\xff\xfe\n", "hr", r"a\.csv is no CSV file"),
    ],
)
def test_what_is_no_such_file_is_told(tmp_path: Path, text: str | bytes, column: str | None, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        read_column(written(tmp_path, text), column)


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"b\.csv cannot be read \(No such file or directory\): wanted a CSV file"):
        read_column(tmp_path / "b.csv")


def test_the_rate_of_steady_times() -> None:
    assert rate_of(np.arange(11) / 50 + 3, Path("a.csv")) == pytest.approx(50)


@pytest.mark.parametrize("times", [[0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 5.0], [2.0, 1.0, 0.0], [0.0, np.nan, 2.0]])
def test_times_that_are_not_steady_are_told(times: list[float]) -> None:
    with pytest.raises(SignalError, match=r"a\.csv has times that do not rise in equal steps: wanted a recording at"):
        rate_of(np.array(times), Path("a.csv"))
