"""A street's air by the hour: `AirQualityUCI.csv` of UCI, with its commas or semicolons; without labels.

Windows of four days, one each two days; -200 is a missing value, and a channel that is mostly missing is left out.
Groups are months.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from genmote.describe.labelled import Labelled
from genmote.describe.layouts._windows import windows
from genmote.errors import ExamplesError
from genmote.fetch import Progress
from genmote.signals import reading, recordings
from genmote.signals.kinds import Series

FILE = "AirQualityUCI.csv"
# As they are called here, in whichever spelling: what they are and their unit.
KNOWN = {
    "COGT": ("CO", "mg/m³"),
    "C6H6GT": ("benzene", "µg/m³"),
    "NOXGT": ("NOx", "ppb"),
    "NO2GT": ("NO2", "µg/m³"),
    "T": ("temperature", "°C"),
    "RH": ("humidity", "%"),
}
MISSING = -200
WINDOW_S, STEP_S, HOUR_S = 96 * 3600.0, 48 * 3600.0, 3600.0


def load(folder: Path, notes: list[str], progress: Progress) -> list[Labelled]:
    path = folder / FILE
    if not path.is_file():
        raise ExamplesError(f"{folder}: has no {FILE}: wanted it there")
    whole = reading.read(path, notes=notes)[0]
    names = whole.channels if isinstance(whole, Series) else ()
    plain = {"".join(filter(str.isalnum, name)).upper(): name for name in names}
    here = [key for key in KNOWN if key in plain]
    if not isinstance(whole, Series) or len(here) < 2:
        raise ExamplesError(f"{path}: wanted columns such as CO(GT), NO2(GT), T and RH by the hour")
    air = recordings.picked(whole, [plain[key] for key in here])
    assert isinstance(air, Series)
    values = np.where(air.values == MISSING, np.nan, air.values)
    channels, units = zip(*(KNOWN[key] for key in here), strict=True)
    start = air.start_s if air.times_s is None else float(air.times_s[0])
    steady = Series("air", values, 1 / HOUR_S, channels, units, start_s=start)
    found = []
    for part in windows(steady, WINDOW_S, STEP_S):
        known = [n for n in range(len(channels)) if np.isfinite(part.values[:, n]).mean() > 0.5]
        if known:
            kept = recordings.picked(part, [channels[n] for n in known])
            assert isinstance(kept, Series)
            found.append(Labelled(kept, time.strftime("%Y-%m", time.gmtime(part.start_s or 0))))
    progress("reading", 1, 1)
    return found
