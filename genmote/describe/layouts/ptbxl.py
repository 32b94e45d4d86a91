"""PTB-XL: `ptbxl_database.csv`, `scp_statements.csv` and records of 12 leads (Wagner et al., Scientific Data 7, 2020).

The classes are the five diagnostic superclasses; a record is of each that one of its diagnostic SCP codes belongs to,
whatever its likelihood, as in the data set's own example and in Strodthoff et al., IEEE Journal of Biomedical and
Health Informatics 25 (2021) 1519-1528. Reports stand as they were written, but in lower case, in German,
English or Swedish. Records at 100 Hz are read, or those at 500 Hz where there are no others; rows without a record are
left out, and told.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from genmote.describe.facts import Fact
from genmote.describe.labelled import Labelled, table
from genmote.errors import ExamplesError
from genmote.fetch import Progress
from genmote.signals import reading
from genmote.signals.kinds import Series

DATABASE, STATEMENTS, CONDENSED = "ptbxl_database.csv", "scp_statements.csv", "scp_codes.csv"
WANTED = ("patient_id", "report", "scp_codes", "strat_fold", "filename_lr")
CLASSES = {
    "NORM": "normal ECG",
    "MI": "myocardial infarction",
    "STTC": "ST/T change",
    "CD": "conduction disturbance",
    "HYP": "hypertrophy",
}
RHYTHMS = {
    "SR": "sinus rhythm",
    "AFIB": "atrial fibrillation",
    "STACH": "sinus tachycardia",
    "SARRH": "sinus arrhythmia",
    "SBRAD": "sinus bradycardia",
    "PACE": "paced rhythm",
    "AFLT": "atrial flutter",
}
# Words that reports of one language have, and the others do not.
LANGUAGES = {
    "de": r"sinusrhythmus|normales|ekg|sonst|linkstyp|lagetyp|steiltyp|\w*schenkelblock|wahrscheinlich|nicht|und"
    r"|kein\w*|\w*bradykardie|\w*tachykardie|arrhythmie|ver[aä]nderung|m[oö]glich|vorhofflimmern|unauff[aä]llig\w*",
    "en": r"sinus rhythm|ecg|normal ecg|rhythm|wave|waves|leads|left|right|trace only requested|are|with|and"
    r"|no definite",
    "sv": r"sinusrytm|normalt|eljest|v[aä]nster|h[oö]ger|el-axel|avvikande|f[oö]rlopp|rytm|s[aå]som|\w*kardi|ospecifik"
    r"|sk[aä]nkelblock|f[oö]r[aä]ndring|eller|vid",
}


def load(folder: Path, notes: list[str], progress: Progress) -> list[Labelled]:
    superclasses, descriptions = _statements(folder)
    path = folder / DATABASE
    rows = table(path, WANTED)
    found, absent = [], 0
    for number, row in enumerate(rows, 2):
        codes = _codes(path, number, row["scp_codes"])
        if not row["strat_fold"].removesuffix(".0").isdigit():
            raise ExamplesError(f"{path}: row {number}: strat_fold {row['strat_fold']!r}: wanted a whole number")
        names = [row[key] for key in ("filename_lr", "filename_hr") if row.get(key)]
        header = next((file for name in names if (file := folder / f"{name}.hea").is_file()), None)
        progress("reading", number - 1, len(rows))
        if header is None:
            absent += 1
            continue
        (signal,) = reading.read(header, notes=notes)[:1]
        assert isinstance(signal, Series)
        classes = {superclasses[code] for code in codes if code in superclasses}
        found.append(
            Labelled(
                signal,
                row["patient_id"].removesuffix(".0"),
                "diagnosis",
                tuple(word for code, word in CLASSES.items() if code in classes),
                tuple(CLASSES.values()),
                " ".join(row["report"].lower().split()),
                language(row["report"]),
                int(float(row["strat_fold"])),
                (*_rhythm(codes), Fact("findings", "; ".join(descriptions.get(code, code) for code in codes))),
            )
        )
    if absent and found:
        notes.append(f"{path.name}: the records of {absent} of its {len(rows)} rows are not here; left out")
    if not found:
        raise ExamplesError(f"{path}: none of its {len(rows)} records is here: wanted {rows[0]['filename_lr']}.hea")
    return found


def language(report: str) -> str:
    """ "de", "en" or "sv", by the words of it; "en" where none is known.

    >>> language("sinusrhythmus normales ekg"), language("sinus rhythm. normal ecg."), language("sinusrytm normalt ekg")
    ('de', 'en', 'sv')
    """
    counts = {key: len(re.findall(rf"\b(?:{words})\b", report.lower())) for key, words in LANGUAGES.items()}
    best = max(counts.values())
    return "en" if best in (0, counts["en"]) else max(counts, key=lambda key: (counts[key], key))


def _statements(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Of diagnostic SCP codes the superclass of each; of all codes what they say in English."""
    path = folder / STATEMENTS
    if not path.is_file():
        path = folder / CONDENSED  # some of its columns
    if not path.is_file():
        raise ExamplesError(f"{folder}: has no {STATEMENTS}: wanted it beside {DATABASE}, as PTB-XL comes")
    rows = table(path, ["description", "diagnostic_class"])
    named = [(row.get("") or row.get("code", ""), row) for row in rows]
    superclasses = {code: row["diagnostic_class"] for code, row in named if row["diagnostic_class"] in CLASSES}
    return superclasses, {code: row["description"] for code, row in named}


def _codes(path: Path, number: int, cell: str) -> list[str]:
    try:
        told = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ExamplesError(f"{path}: row {number}: scp_codes {cell[:40]!r}: wanted such as {{'NORM': 100.0}}")
    return [str(code) for code in told]


def _rhythm(codes: list[str]) -> tuple[Fact, ...]:
    """The rhythm, where the annotator gave exactly one that is known."""
    named = [RHYTHMS[code] for code in codes if code in RHYTHMS]
    return (Fact("rhythm", named[0], tuple(RHYTHMS.values())),) if len(named) == 1 else ()
