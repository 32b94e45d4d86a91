"""Small folders as the data sets are laid out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def record(path: Path, seed: int = 0, leads: Sequence[str] = ("I", "II"), rate: int = 100, count: int = 500) -> None:
    """A WFDB record of format 16."""
    samples = (np.random.default_rng(seed).normal(size=(count, len(leads))) * 100).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".dat").write_bytes(samples.tobytes())
    lines = [f"{path.name} {len(leads)} {rate} {count}"]
    lines += [
        f"{path.name}.dat 16 1000.0(0)/mV 16 0 {samples[0, n]} {int(samples[:, n].sum()) % 65536} 0 {lead}"
        for n, lead in enumerate(leads)
    ]
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")


def ptbxl(folder: Path) -> Path:
    """Three of four records: a normal one, one with two classes, one without a report."""
    rows: list[dict[str, object]] = []
    told = (
        ("{'NORM': 100.0, 'SR': 0.0}", "sinusrhythmus  normales ekg", 1, 11.0),
        ("{'IMI': 15.0, 'LVH': 100.0, 'AFIB': 0.0}", "Atrial fibrillation. Left ventricular hypertrophy.", 2, 12.0),
        ("{'SBRAD': 0.0}", "", 9, 13.0),
        ("{'NORM': 80.0}", "not here", 10, 14.0),
    )
    for n, (codes, report, fold, patient) in enumerate(told):
        name = f"records100/00000/{n + 1:05}_lr"
        about = {"ecg_id": n + 1, "patient_id": patient, "report": report, "scp_codes": codes, "strat_fold": fold}
        rows.append(about | {"filename_lr": name, "filename_hr": f"records500/00000/{n + 1:05}_hr"})
        if n < 3:
            record(folder / name, n)
    table(folder / "ptbxl_database.csv", rows)
    statements = [
        ("NORM", "normal ECG", 1.0, "NORM"),
        ("IMI", "inferior myocardial infarction", 1.0, "MI"),
        ("LVH", "left ventricular hypertrophy", 1.0, "HYP"),
        *[
            ("SR", "sinus rhythm", "", ""),
            ("AFIB", "atrial fibrillation", "", ""),
            ("SBRAD", "sinus bradycardia", "", ""),
        ],
    ]
    names = ("", "description", "diagnostic", "diagnostic_class")
    table(folder / "scp_statements.csv", [dict(zip(names, row, strict=True)) for row in statements])
    return folder


def plain(folder: Path) -> Path:
    """Two files with labels and a report."""
    for n, name in enumerate(("a.csv", "b.csv")):
        x = np.sin(np.arange(100) / (3 + n))
        lines = [f"{t / 10},{value:.3f}" for t, value in enumerate(x)]
        (folder / name).write_text("time,level (V)\n" + "\n".join(lines) + "\n")
    rows: list[dict[str, object]] = [
        {"file": "a.csv", "label": "slow", "report": "A slow wave.", "group": "one", "task": "speed", "fold": 3},
        {"file": "b.csv", "label": "fast; loud", "report": "", "group": "", "task": "speed", "fold": ""},
    ]
    table(folder / "labels.csv", rows)
    return folder
