"""Folders as data sets are laid out; each kind of fault is one line that says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from genmote.describe import labelled, splits
from genmote.describe.checking import right
from genmote.describe.labelled import load
from genmote.describe.layouts import ptbxl
from genmote.errors import ExamplesError
from genmote.signals.kinds import Records, Series

from . import folders

DATA = Path(os.environ.get("GENMOTE_BENCH_SIGNALS") or Path(__file__).parents[4] / "shared" / "data")


def fault(folder: Path, layout: str) -> str:
    with pytest.raises(ExamplesError) as told:
        load(folder, layout)
    assert "\n" not in str(told.value)
    return str(told.value)


# -- what any layout says ----------------------------------------------------------------------------------------------


def test_an_unknown_layout_and_an_absent_folder(tmp_path: Path) -> None:
    assert "no layout is called 'ptb', did you mean ptbxl?; known: air, csv, flows" in fault(tmp_path, "ptb")
    assert "nowhere: is not there: wanted a folder of the layout csv" in fault(tmp_path / "nowhere", "csv")


@pytest.mark.parametrize(
    ("layout", "wanted"),
    [
        ("air", "has no AirQualityUCI.csv: wanted it there"),
        ("csv", "labels.csv: cannot be read (No such file or directory): wanted a table with file"),
        ("flows", "holds none of rows.csv, KDDTest+.csv, KDDTrain+.csv: wanted connections in NSL-KDD's columns"),
        ("occupancy", "holds none of datatraining.txt, datatest.txt, datatest2.txt"),
        ("phone", "labels.txt: cannot be read (No such file or directory): wanted a line for each stretch"),
        ("ptbxl", "has no scp_statements.csv: wanted it beside ptbxl_database.csv, as PTB-XL comes"),
        ("watch", "holds neither watch.pickle nor watch_dataset.npy: genmote signal show watch fetches the first"),
    ],
)
def test_an_empty_folder(layout: str, wanted: str, tmp_path: Path) -> None:
    assert wanted in fault(tmp_path, layout)
    assert layout in labelled.layouts()


# -- PTB-XL ------------------------------------------------------------------------------------------------------------


def test_ptbxl(tmp_path: Path) -> None:
    notes: list[str] = []
    found = load(folders.ptbxl(tmp_path), "ptbxl", notes=notes)
    assert len(found) == 3 and notes == ["ptbxl_database.csv: the records of 1 of its 4 rows are not here; left out"]
    assert [one.labels for one in found] == [("normal ECG",), ("myocardial infarction", "hypertrophy"), ()]
    assert [one.fold for one in found] == [1, 2, 9] and [one.group for one in found] == ["11", "12", "13"]
    assert [one.language for one in found] == ["de", "en", "en"]
    assert found[0].report == "sinusrhythmus normales ekg" and found[2].report == ""
    signal = found[0].signal
    assert isinstance(signal, Series) and signal.channels == ("I", "II") and signal.rate_hz == 100
    told = {fact.about: fact.word for fact in found[1].known}
    assert told["rhythm"] == "atrial fibrillation"
    assert told["findings"] == "inferior myocardial infarction; left ventricular hypertrophy; atrial fibrillation"


def test_ptbxl_at_500_hz_where_there_is_no_other(tmp_path: Path) -> None:
    folders.ptbxl(tmp_path)
    (tmp_path / "records100/00000/00001_lr.hea").unlink()
    folders.record(tmp_path / "records500/00000/00001_hr", rate=500)
    assert [one.signal.rate_hz for one in load(tmp_path, "ptbxl") if isinstance(one.signal, Series)] == [500, 100, 100]


@pytest.mark.parametrize(
    ("file", "old", "new", "wanted"),
    [
        ("ptbxl_database.csv", "scp_codes", "codes", "has no column 'scp_codes': it has ecg_id, patient_id"),
        ("ptbxl_database.csv", "{'NORM': 100.0, 'SR': 0.0}", "NORM", "row 2: scp_codes 'NORM': wanted such as {'NORM'"),
        ("ptbxl_database.csv", ",2,records", ",two,records", "row 3: strat_fold 'two': wanted a whole number"),
        (
            "ptbxl_database.csv",
            "records100/",
            "elsewhere/",
            "none of its 4 records is here: wanted elsewhere/00000/0000",
        ),
        ("scp_statements.csv", "diagnostic_class", "class", "has no column 'diagnostic_class'"),
    ],
)
def test_faults_of_ptbxl(file: str, old: str, new: str, wanted: str, tmp_path: Path) -> None:
    path = folders.ptbxl(tmp_path) / file
    path.write_text(path.read_text().replace(old, new).replace("records500", "elsewhere500"))
    assert wanted in fault(tmp_path, "ptbxl")


def test_faults_of_tables(tmp_path: Path) -> None:
    path = folders.ptbxl(tmp_path) / "ptbxl_database.csv"
    whole = path.read_text()
    path.write_bytes("patient_id,größe\n".encode("latin-1"))
    assert "ptbxl_database.csv: is not UTF-8: save it as UTF-8" in fault(tmp_path, "ptbxl")
    path.write_text(whole.splitlines()[0] + "\n")
    assert "has no row: wanted one for each recording" in fault(tmp_path, "ptbxl")
    path.write_text("")
    assert "has no column 'patient_id': it has none" in fault(tmp_path, "ptbxl")
    path.write_text(whole.replace("1_hr\n", "1_hr,more\n"))
    assert "row 2 has more cells than the first line has names" in fault(tmp_path, "ptbxl")
    path.write_text(whole.replace("normales", "x" * (1 << 21)))
    assert "is no table of comma-separated values (field larger than field limit" in fault(tmp_path, "ptbxl")


def test_languages() -> None:
    told = {
        "sinusrhythmus linkstyp sonst normales ekg": "de",
        "sinusrytm vÄnster el-axel": "sv",
        "sinus rhythm. st segments are depressed": "en",
        "4.46": "en",
    }
    assert {text: ptbxl.language(text) for text in told} == told


# -- a plain folder ----------------------------------------------------------------------------------------------------


def test_csv(tmp_path: Path) -> None:
    found = load(folders.plain(tmp_path), "csv")
    assert [one.labels for one in found] == [("slow",), ("fast", "loud")]
    assert all(one.classes == ("fast", "loud", "slow") and one.task == "speed" for one in found)
    assert [one.group for one in found] == ["one", "b.csv"] and [one.fold for one in found] == [3, 0]
    assert found[0].report == "A slow wave." and isinstance(found[0].signal, Series)
    assert found[0].signal.units == ("V",) and found[0].signal.rate_hz == pytest.approx(10)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("file,", "path,", "labels.csv: has no column 'file': it has path, label"),
        ("label,report", "name,text", "has neither a column 'label' nor one 'report': wanted at least one of them"),
        ("a.csv,", "c.csv,", "row 2: "),
        ("a.csv,", ",", "row 2 names no file: wanted one beside labels.csv"),
        ("a.csv,", "../a.csv,", "lies outside of"),
        ("fast; loud", "", "row 3, b.csv: has neither a label nor a report: fill one in, or leave it out"),
        (",3\n", ",third\n", "row 2, a.csv: fold 'third': wanted a whole number"),
    ],
)
def test_faults_of_csv(old: str, new: str, wanted: str, tmp_path: Path) -> None:
    path = folders.plain(tmp_path) / "labels.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(old.encode(), new.encode(), 1))
    assert wanted in fault(tmp_path, "csv")


def test_a_picture_in_a_csv_folder(tmp_path: Path) -> None:
    folders.plain(tmp_path)
    head = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    (tmp_path / "cloud.ply").write_text(head + "end_header\n0 0 0\n1 1 1\n")
    path = tmp_path / "labels.csv"
    path.write_text(path.read_text().replace("a.csv", "cloud.ply", 1))
    assert "row 2: cloud.ply holds frames; series and records are described so far" in fault(tmp_path, "csv")


# -- the others --------------------------------------------------------------------------------------------------------


def test_phone(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 3))
    np.savetxt(tmp_path / "acc_exp01_user01.txt", x, "%.3f")
    (tmp_path / "labels.txt").write_text("1 1 1 0 600\n1 1 4 600 1000\n2 2 1 0 600\n")
    notes: list[str] = []
    found = load(tmp_path, "phone", notes=notes)
    assert [one.labels for one in found] == [("walking",)] * 2 + [("sitting",)]
    assert all(len(one.signal) == 256 and one.group == "person 1" for one in found)
    assert "labels.txt: 1 of the files that it names are not here; left out" in notes
    (tmp_path / "labels.txt").write_text("1 1 walking 0 600\n")
    assert "line 1: wanted experiment, user, activity, first and last sample" in fault(tmp_path, "phone")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    assert "labels.txt: is not UTF-8: save it as UTF-8" in fault(tmp_path, "phone")
    (tmp_path / "labels.txt").write_text("1 1 1 0 100\n")
    assert "holds no recording of the layout phone that can be used" in fault(tmp_path, "phone"), (
        "shorter than a window"
    )
    np.savetxt(tmp_path / "acc_exp01_user01.txt", x[:, :2], "%.3f")
    assert "wanted three columns of numbers, one for each axis" in fault(tmp_path, "phone")


def test_flows(tmp_path: Path) -> None:
    names = ["duration", "protocol_type", "service", "flag", "src_bytes", "dst_bytes", "num_failed_logins", "count"]
    names += ["srv_count", "serror_rate", "rerror_rate", "same_srv_rate", "label"]
    rows = [
        ",".join(["0", "tcp", "http", "SF", str(n), "0", "0", "1", "1", "0", "0", "1", "normal"]) for n in range(45)
    ]
    rows += [row.replace("normal", "neptune") for row in rows[:20]]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([",".join(names), *rows]) + "\n")
    found = load(tmp_path, "flows")
    assert [one.labels for one in found] == [("normal traffic",)] * 2 + [("denial of service",)]
    assert all(isinstance(one.signal, Records) and len(one.signal) == 20 for one in found)
    assert "label" not in [
        field.name for one in found if isinstance(one.signal, Records) for field in one.signal.fields
    ]
    path.write_text(path.read_text().replace("neptune", "novel", 1))
    assert "no attack is known as 'novel'" in fault(tmp_path, "flows")
    path.write_text("\n".join([",".join(names), *rows]).replace("0,tcp", "fast,tcp"))
    assert "column 'duration' has 'fast' and others: wanted numbers" in fault(tmp_path, "flows")
    path.write_text("\n".join([",".join(names), *rows]).replace("serror_rate", "errors"))
    assert "has no column 'serror_rate': wanted those of NSL-KDD" in fault(tmp_path, "flows")


def test_occupancy(tmp_path: Path) -> None:
    lines = ["Date,Temperature,Humidity,Light,CO2,HumidityRatio,Occupancy"]
    lines += [
        f"2026-01-05 {8 + n // 60:02}:{n % 60:02}:00,{21 + n / 100:.2f},30,{n % 7},{500 + n},0.004,{int(n >= 150)}"
        for n in range(300)
    ]
    (tmp_path / "datatest.txt").write_text("\n".join(lines) + "\n")
    found = load(tmp_path, "occupancy")
    assert [one.labels for one in found] == [("empty",), ("empty",), ("occupied",), ("occupied",)]
    signal = found[0].signal
    assert isinstance(signal, Series) and signal.channels == ("temperature", "humidity", "light", "CO2")
    assert len(signal) == 120 and signal.rate_hz == pytest.approx(1 / 60)
    (tmp_path / "datatest.txt").write_text("Date,Light\n2026-01-05 08:00:00,1\n2026-01-05 08:01:00,2\n")
    assert "wanted columns Temperature, Humidity, Light, CO2 and Occupancy, and a time" in fault(tmp_path, "occupancy")


def test_air(tmp_path: Path) -> None:
    lines = ["Date,Time,CO(GT),NO2(GT),T,RH"]
    lines += [
        f"{10 + n // 24:02}/03/2004,{n % 24:02}:00:00,{1 + n % 5}.5,-200,{n % 24},{50 + n % 3}" for n in range(200)
    ]
    (tmp_path / "AirQualityUCI.csv").write_text("\n".join(lines) + "\n")
    found = load(tmp_path, "air")
    signal = found[0].signal
    assert isinstance(signal, Series) and signal.channels == ("CO", "temperature", "humidity"), "NO2 is missing"
    assert len(signal) == 96 and found[0].group == "2004-03" and not found[0].labels
    (tmp_path / "AirQualityUCI.csv").write_text("Date,Time,other\n10/03/2004,18:00:00,1\n10/03/2004,19:00:00,2\n")
    assert "wanted columns such as CO(GT), NO2(GT), T and RH by the hour" in fault(tmp_path, "air")


def test_watch(tmp_path: Path) -> None:
    (tmp_path / "watch_dataset.npy").write_bytes(b"none of it")
    for layout in ("watch", "watch_sets"):
        assert "is not seglearn's watch data set: wanted X, y and subject of each set" in fault(tmp_path, layout)


# -- examples ----------------------------------------------------------------------------------------------------------


def test_examples_of_a_folder(tmp_path: Path) -> None:
    found = load(folders.ptbxl(tmp_path), "ptbxl")
    made = labelled.examples(found, each=6)
    about = {one.about for one in made}
    assert {"label", "report"} <= about and all(right(one, one.answer) for one in made)
    (german,) = [one for one in made if one.about == "report" and one.group == "11"]
    assert german.answer == "sinusrhythmus normales ekg" and any(word in german.question for word in ("EKG", "Befund"))
    for one in made:
        assert all(signal.labels == {} for signal in one.signals), "what a signal is said to be is not shown"
    again = labelled.examples(found, each=6)
    assert [(one.question, one.answer) for one in made] == [(one.question, one.answer) for one in again]
    bare = labelled.examples(found, each=0, cannots=False)
    assert {one.about for one in bare} == {"label", "report"}
    assert len({id(one.signals[0]) for one in bare}) == 2, "a file keeps a signal once"


@pytest.mark.skipif(not DATA.is_dir(), reason="the recordings are not here")
def test_the_recordings_that_are_here() -> None:
    found = load(DATA / "ptbxl500", "ptbxl")
    assert len(found) == 353 and sum("hypertrophy" in one.labels for one in found) == 25
    assert {one.fold for one in found} == set(range(1, 9))
    parts = splits.by_fold(found, (7, 8), (6,))
    assert {name: len(part) for name, part in parts.items()} == {"train": 232, "choose": 33, "test": 88}
    assert len(load(DATA / "hyperimu_har", "phone")) > 400
