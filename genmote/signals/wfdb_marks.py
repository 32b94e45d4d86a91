"""Marks of a PhysioNet record: the annotation file beside its header, in MIT format.

PhysioNet, WFDB Applications Guide: annot(5); WFDB Programmer's Guide, 4.1 for the codes of beats and rhythms.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from genmote.signals.kinds import Mark

ANNOTATORS = (".atr", ".qrs")  # the first that is there gives the marks
LONGEST = 1 << 24  # bytes: two months of beats
SKIP, AUX, NOTE, RHYTHM = 59, 63, 22, 28
CODES = dict(enumerate(' NLRaVFJASEj/Q~ | sT*D"=pB^t+u?![]en@xf()r')) | {15: "code 15", 17: "code 17"}


def beside(header: Path, rate_hz: float, per_frame: int, total: int, notes: list[str]) -> list[Mark]:
    """The marks of a record of `total` samples, `per_frame` of them in each of `rate_hz` frames a second, by time: a
    beat is one sample long, a rhythm lasts until the next one."""
    paths = [path for suffix in ANNOTATORS if (path := header.with_suffix(suffix)).is_file()]
    if not paths:
        return []
    try:
        with open(paths[0], "rb") as file:
            raw = file.read(LONGEST + 1)
    except OSError:
        raw = b""
    if not 0 < len(raw) <= LONGEST:
        notes.append(f"{paths[0].name}: cannot be read, is empty or over {LONGEST} bytes; its marks are left out")
        return []
    entries, ended = entries_of(raw)
    if not ended:
        notes.append(f"{paths[0].name}: has no end mark; its marks are read as far as they go")
    codes, unit_hz = dict(CODES), rate_hz
    found: list[tuple[int, str, bool]] = []
    for time, code, text in entries:
        if code == NOTE and text.startswith("## "):
            unit_hz = _resolution(text) or unit_hz
        elif code == NOTE and time == 0 and (defined := re.fullmatch(r"(\d{1,2}) (\S+)( .*)?", text)):
            codes[int(defined[1])] = defined[2]
        else:
            rhythm = code == RHYTHM and text != ""
            label = text if rhythm else f"{codes.get(code, f'code {code}')} {text}".rstrip()
            found.append((round(time * per_frame * rate_hz / unit_hz), label, rhythm))
    inside = sorted((entry for entry in found if 0 <= entry[0] < total), key=lambda entry: entry[0])
    if len(inside) < len(found):
        notes.append(f"{paths[0].name}: {len(found) - len(inside)} marks lie outside the record; left out")
    marks, until = [], total
    for at, label, rhythm in reversed(inside):
        marks.append(Mark(at, max(at + 1, until if rhythm else 0), label))
        until = at if rhythm else until
    return marks[::-1]


def entries_of(raw: bytes) -> tuple[list[tuple[int, int, str]], bool]:
    """Time, code and text of each, and whether the end mark is there.

    A word of 16 bits is a code above 10 bits, most often the time since the one before. The codes from 59 on say more
    about the one before, but for SKIP: a longer time is in the two words that follow.

    >>> entries_of(bytes([5, 4, 0, 0]))  # a normal beat at sample 5
    ([(5, 1, '')], True)
    """
    words = np.frombuffer(raw[: len(raw) // 2 * 2], "<u2").tolist()
    found: list[tuple[int, int, str]] = []
    at = time = 0
    while at < len(words):
        code, low = words[at] >> 10, words[at] & 1023
        at += 1
        if not code and not low:
            return found, True
        if code == SKIP and at + 2 <= len(words):
            step = words[at] << 16 | words[at + 1]
            time += step - (1 << 32) if step >> 31 else step
            at += 2
        elif code == AUX:
            text = raw[2 * at : 2 * at + low].decode("latin-1").strip("\0 ")
            at += (low + 1) // 2
            if found:
                found[-1] = (*found[-1][:2], text)
        elif code < SKIP:
            time += low
            if code:
                found.append((time, code, ""))
    return found, False


def _resolution(text: str) -> float | None:
    """Units of time in a second, where a note says it."""
    said = re.fullmatch(r"## time resolution: (\d{1,9}(?:\.\d{1,9})?)", text)
    return float(said[1]) if said and float(said[1]) > 0 else None
