from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import MISSING, Mark, Series
from genmote.signals.readers import eyelink

PREAMBLE = """** CONVERTED FROM a.edf using edfapi
** DATE: Wed Jul  5 13:13:12 2023
** EYELINK II CL v6.14
**

MSG\t100 !CAL
>>>>>>> CALIBRATION (HV9,P-CR) FOR LEFT: <<<<<<<<<
MSG\t100 !CAL -25.6, -25.5        -0,    133
\t  -63     7   -44     4
   132.75 -13.023  242.52
MSG\t101 !CAL CALIBRATION HV9 LR LEFT    GOOD
MSG\t102 !CAL VALIDATION HV9 LR RIGHT POOR ERROR 0.31 avg. 0.84 max  OFFSET 0.27 deg. 9.2,8.4 pix.
MSG\t103 DISPLAY ON
MSG\t104 TRIALID 7 a
MSG\t105 GAZE_COORDS 0.00 0.00 1920.00 1080.00
"""


def head(rate: float = 500, eyes: str = "LEFT", kind: str = "GAZE", more: str = "", at: int = 1000) -> str:
    return (
        f"START\t{at} \t{eyes}\tSAMPLES\tEVENTS\nPRESCALER\t1\nVPRESCALER\t1\nPUPIL\tAREA\n"
        f"EVENTS\t{kind}\t{eyes}\tRATE\t{rate:7.2f}\tTRACKING\tCR\tFILTER\t2\n"
        f"SAMPLES\t{kind}\t{eyes}\tRATE\t{rate:7.2f}\tTRACKING\tCR\tFILTER\t2{more}\n"
    )


def samples(times: list[float], eyes: int = 1) -> str:
    """Each has its own numbers."""
    lines = []
    for n, time in enumerate(times):
        values = "\t".join(
            f"  {100 * e + n / 10:.1f}\t  {500 + 100 * e + n / 10:.1f}\t  {e + 2 * n}.0" for e in range(eyes)
        )
        lines.append(f"{time:g}\t{values}\t...")
    return "\n".join(lines) + "\n"


def write(folder: Path, text: str, name: str = "a.asc") -> Path:
    (folder / name).write_text(text)
    return folder / name


def read(path: Path, rows: int = 1 << 16) -> tuple[list[Series], list[str]]:
    notes: list[str] = []
    found: dict[str, list[Series]] = {}
    for piece in reading.pieces(path, rows=rows, notes=notes):
        assert isinstance(piece, Series) and len(piece) <= rows
        found.setdefault(piece.name, []).append(piece)
    whole = [reading.joined([*parts]) for parts in found.values()]
    assert all(isinstance(series, Series) for series in whole)
    return [series for series in whole if isinstance(series, Series)], notes


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("eyes", [["LEFT"], ["RIGHT"], ["LEFT", "RIGHT"]])
def test_samples_come_back(tmp_path: Path, rows: int, eyes: list[str]) -> None:
    text = PREAMBLE + head(eyes="\t".join(eyes)) + samples([1000 + 2 * n for n in range(50)], len(eyes)) + "END\t1100\n"
    (found,), notes = read(write(tmp_path, text), rows)
    wanted = [
        [v for e in range(len(eyes)) for v in (1000 * e + n, 5000 + 1000 * e + n, 10 * e + 20 * n)] for n in range(50)
    ]
    assert found.grid is not None and found.grid.integers.tolist() == wanted and found.rate_hz == 500
    assert np.allclose(found.values, np.array(wanted) / 10, rtol=1e-7) and found.name == "a 1"
    sides = [eye.lower() for eye in eyes]
    assert found.channels == tuple(f"{side} {what}" for side in sides for what in ("x", "y", "pupil area"))
    assert found.units == ("px", "px", "a.u.") * len(eyes)
    assert found.labels == {
        "date": "Wed Jul 5 13:13:12 2023",
        "calibration left": "HV9 GOOD",
        "validation right": "POOR, 0.31 deg on average, 0.84 deg at most",
        "trial": "7 a",
        "screen": "0.00 0.00 1920.00 1080.00",
        "first sample": "1000 ms",
    }
    told = "messages lie between recordings; left out, but for trial, screen and calibration"
    assert notes == [f"a.asc: 3 {told}"]


def test_missing_values_and_gaps(tmp_path: Path) -> None:
    lines = "1000\t 1.5\t 2\t .\t...\n1002\t.\t-32768\t0.0\t...\n1008\t1e8\t7.0\t8.0\t...\n1004\t1\t1\t1\t...\n"
    lines += "1010\tx\t1\t1\t...\n1012\t1\n1014\t1e20\t1\t1\t...\nnonsense\n1016 3 4 5\nEFIX L 5\n# said\n"
    for rows in (1, 2, 100):
        (found,), notes = read(write(tmp_path, head() + lines + "END 1016\n"), rows)
        none = [MISSING] * 3
        assert found.grid is not None and found.grid.integers.tolist() == [
            [15, 20, MISSING],
            [MISSING, MISSING, 0],
            none,
            none,
            [MISSING, 70, 80],
            none,
            none,
            none,
            [30, 40, 50],
        ]
        assert np.isnan(found.values).tolist() == (found.grid.integers == MISSING).tolist()
        assert notes == [
            "a.asc: 5 samples are missing; they are NaN",
            "a.asc: 1 samples are not later than the one before; left out",
            "a.asc: 3 samples cannot be understood; left out",
            "a.asc: 2 lines say nothing known; left out",
        ]


def test_finer_numbers_have_no_grid(tmp_path: Path) -> None:
    (found,), _ = read(write(tmp_path, head(kind="HREF") + "1000 1.25 2.5 3\n1002 -7 -8 9\nEND 1002\n"))
    assert found.grid is None and found.values.tolist() == [[1.25, 2.5, 3], [-7, -8, 9]] and found.units[0] == "href"
    scaled = head(kind="PUPIL").replace("PRESCALER\t1", "PRESCALER\t10", 1).replace("AREA", "DIAMETER")
    (found,), _ = read(write(tmp_path, scaled + "1000 1.5 2.5 3\nEND 1002\n"))
    assert found.grid is not None and found.grid.integers.tolist() == [[15, 25, 30]]
    assert np.allclose(found.values, [[0.15, 0.25, 3]]) and found.units == ("camera", "camera", "a.u.")
    assert found.channels[2] == "left pupil diameter"


@pytest.mark.parametrize(
    ("rate", "times"),
    [
        (2000, [1000, 1000.5, 1001, 1001.5]),
        (2000, [1000, 1000, 1001, 1001]),  # older files have whole milliseconds
        (250, [1000, 1004, 1008, 1012]),
    ],
)
def test_rates(tmp_path: Path, rate: float, times: list[float]) -> None:
    (found,), notes = read(write(tmp_path, head(rate) + samples(times) + "END 2000\n"))
    assert found.rate_hz == rate and len(found) == 4 and notes == []


EVENTFUL = (
    head(eyes="LEFT\tRIGHT")
    + "MSG\t999 !MODE RECORD CR 500 2 1 LR\nINPUT\t1000\t127\n"
    + samples([1000, 1002], 2)
    + "SFIX L   1004\n"
    + samples([1004, 1006, 1008], 2)
    + "MSG 1007 TRIALID later\nSSACC R  1010\nSBLINK R 1012\n"
    + samples([1010, 1012, 1014, 1016], 2)
    + "EFIX L   1004\t1016\t14\t  961.2\t  540.5\t    284\nEBLINK R 1012\t1016\t6\nSSACC L  1018\nBUTTON\t1018\t2\t1\n"
    + samples([1018, 1020], 2)
    + "ESACC R  1010\t1020\t12\t.\t.\t1\t1\t2.3e+06\t102\nMSG\t1020 stop\nMSG\t5000 after\nEFIX R 900\t910\t9\n"
    + "END\t1020 \tSAMPLES\tEVENTS\tRES\t  47.75\t  45.92\n"
)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 100])
def test_events_and_messages_are_marks(tmp_path: Path, rows: int) -> None:
    (found,), notes = read(write(tmp_path, EVENTFUL), rows)
    assert sorted(found.marks, key=lambda mark: (mark.start, mark.label)) == [
        Mark(0, 1, "!MODE RECORD CR 500 2 1 LR"),
        Mark(0, 1, "input 127"),
        Mark(2, 9, "fixation left"),
        Mark(4, 5, "TRIALID later"),
        Mark(5, 11, "saccade right"),
        Mark(6, 9, "blink right"),
        Mark(9, 10, "button 2 1"),
        Mark(9, 11, "saccade left"),  # never ended
        Mark(10, 11, "stop"),
    ]
    assert notes == ["a.asc: 2 marks lie outside the samples, or in those that were already given; left out"]


def test_recordings_and_long_gaps_are_series_of_their_own(tmp_path: Path) -> None:
    text = head() + samples([1000, 1002]) + "END 1002\nMSG 1500 TRIALID two\nEFIX L 1000 1002 1 1 1 1\n"
    text += head(at=2000) + samples([2000, 2002]) + "SFIX L 62006\nMSG 62006 now\n" + samples([62006, 62008, 62010])
    text += head(250, "RIGHT", at=63000) + samples([63000, 63004]) + "SAMPLES GAZE LEFT RIGHT RATE 1000\n"
    text += samples([63010], 2)
    found, notes = read(write(tmp_path, text))
    assert [(s.name, len(s), s.rate_hz, s.labels["first sample"]) for s in found] == [
        ("a 1", 2, 500, "1000 ms"),
        ("a 2", 2, 500, "2000 ms"),
        ("a 3", 3, 500, "62006 ms"),
        ("a 4", 2, 250, "63000 ms"),
        ("a 5", 1, 1000, "63010 ms"),
    ]
    assert [s.marks for s in found] == [(), (), (Mark(0, 1, "now"), Mark(0, 3, "fixation left")), (), ()]
    assert [s.labels.get("trial") for s in found] == [None, "two", None, None, None]
    assert notes == [
        "a.asc: 1 messages lie between recordings; left out, but for trial, screen and calibration",
        "a.asc: 1 gaps are longer than 60 s; a new series begins after each",
        "a.asc: 2 recordings have no END line; read as far as they go",
    ]


def test_columns_that_are_not_read_and_other_letters(tmp_path: Path) -> None:
    text = head(more="\tVEL\tRES\tINPUT") + "1000 1 2 3 0.1 0.2 30 30 127 ...\nMSG 1000 ÄÖ\nEND 1000\n"
    (tmp_path / "a.asc").write_bytes(text.replace("\n", "\r\n").encode("latin-1"))
    (found,), notes = read(tmp_path / "a.asc")
    assert found.values.tolist() == [[1, 2, 3]] and found.marks == (Mark(0, 1, "ÄÖ"),)
    assert notes == ["a.asc: columns VEL, RES, INPUT of the samples are left out"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            PREAMBLE,
            r"a\.asc: has no samples between START and END: wanted some; convert the recording by edf2asc without",
        ),
        (PREAMBLE + "1000 1 2 3\n", r"a\.asc: has no samples between START and END"),
        ("START 1 LEFT SAMPLES\n2 1 2 3\n", r"a\.asc: line 2: a sample, but no line SAMPLES before it with GAZE"),
        ("START 1\nSAMPLES GAZE LEFT RATE 0\n2 1 2 3\n", r"a\.asc: line 3: a sample, but no line SAMPLES before it"),
        ("START 1\nSAMPLES GAZE RATE 500\n2 1 2 3\n", r"a\.asc: line 3: a sample, but no line SAMPLES before it"),
        ("START 1\n" + "x" * 70_000, r"a\.asc: line 2: is longer than 65536 bytes: wanted an \.asc file"),
    ],
)
def test_what_it_cannot_read(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(SignalError, match=match):
        reading.read(write(tmp_path, text))


def test_which_files_it_takes(tmp_path: Path) -> None:
    assert not eyelink.knows(tmp_path / "dem.asc", b"ncols 4\nnrows 6\nxllcorner 0.0\n")
    assert eyelink.knows(tmp_path / "a.txt", head().encode())


def test_marks_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eyelink, "MOST", 3)
    text = head() + "".join(f"MSG 1000 {n}\n" for n in range(5)) + samples([1000]) + "END 1000\n"
    (found,), notes = read(write(tmp_path, text))
    assert [mark.label for mark in found.marks] == ["0", "1", "2"]
    assert notes == ["a.asc: 2 marks are more than 3 that wait for samples; left out"]


def test_memory_stays_with_the_window(tmp_path: Path) -> None:
    path = write(tmp_path, head() + samples([1000 + 2 * n for n in range(20_000)]) + "END 1\n")
    tracemalloc.start()
    assert sum(len(piece) for piece in eyelink.pieces(path, 1000, [])) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("seed", range(30))
def test_damage_ends_in_no_traceback(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    text = list(EVENTFUL)
    for _ in range(12):
        text[draw.randrange(len(text))] = draw.choice("0123456789.-e \t\nSEMX²\0")
    path = write(tmp_path, "".join(text))
    try:
        list(reading.pieces(path, reader="eyelink", rows=draw.choice([1, 3, 50])))
    except SignalError as fault:
        assert "a.asc" in str(fault)


def plain(path: Path) -> dict[float, list[float]]:
    """Time and numbers of each sample, read by its columns."""
    found, inside = {}, False
    for line in path.read_text(errors="replace").splitlines():
        inside = (inside or line.startswith("START")) and not line.startswith("END")
        if inside and line[:1].isdigit():
            cells = line.split("\t")
            count = 6 if len(cells) > 6 else 3
            found[float(cells[0])] = [float("nan" if c.strip() == "." else c) for c in cells[1 : 1 + count]]
    return found


@pytest.mark.parametrize(
    ("name", "lengths", "marks"),
    [
        ("binocular", [368], {"fixation left": 2, "fixation right": 2, "blink left": 1, "blink right": 1}),
        ("monocular_2khz", [280, 129], {"fixation left": 2, "saccade left": 1}),
        ("monocular_no_dummy", [4046], {"fixation left": 2, "saccade left": 2, "blink left": 2}),
    ],
)
def test_real_recordings(data: Callable[[str], Path], name: str, lengths: list[int], marks: dict[str, int]) -> None:
    path = data(f"eye_tracking/eyelink_{name}_example.asc")
    found, _ = read(path)
    assert [len(series) for series in found] == lengths
    labels = [mark.label for series in found for mark in series.marks]
    assert {label: labels.count(label) for label in marks} == marks
    told, seen = plain(path), 0
    for series in found:
        first = float(series.labels["first sample"].split()[0])
        for n, row in enumerate(series.values):
            wanted = told.get(first + n * 1000 / series.rate_hz, [np.nan] * len(row))
            assert np.allclose(row, wanted, rtol=1e-6, equal_nan=True)
            seen += first + n * 1000 / series.rate_hz in told
    assert seen == len(told) > 10
