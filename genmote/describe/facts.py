"""Facts about signals that need no annotator: numbers and categories that are computed, each by a stated rule.

A fact that would be decided by a hair is not there at all (`measure.py` has the rules). A number has a tolerance: by
how much an answer may be off and still be right.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genmote.describe import beats, measure
from genmote.describe.measure import Floats, spread
from genmote.signals.kinds import Records, Series, Signal

YES, NO = "yes", "no"
FIRST_HALF, SECOND_HALF, SAME = "the first half", "the second half", "about the same"
FIRST, SECOND = "the first", "the second"
TOGETHER, OPPOSITE, UNRELATED = "together", "in opposite directions", "independently"
AT_ONCE = "at the same time"
FASTER, SLOWER, STEADY = "faster", "slower", "steady"
NAMES = re.compile(r"\b(port|id|number|code|zip)\b", re.IGNORECASE)  # fields whose numbers only name something
MOTION = ("g", "m/s²", "m/s^2", "rad/s", "deg/s", "°/s")  # units of a movement's channels
LEAST = 16  # samples of a series of which anything is said
WIDE = 16  # channels beyond which they are not compared in pairs


@dataclass(frozen=True)
class Fact:
    """`about`: the kind, for which `wording.py` has questions. A category has a `word` out of `choices`, or several
    that a comma and a space divide, a number a `value` in `unit` and a `tolerance`. `slots`: what else the wording
    names, such as the channel."""

    about: str
    word: str = ""
    choices: tuple[str, ...] = ()
    value: float = math.nan
    unit: str = ""
    tolerance: float = math.nan
    slots: dict[str, str] = field(default_factory=dict)


def yes_no(about: str, is_so: bool, **slots: str) -> Fact:
    return Fact(about, YES if is_so else NO, (YES, NO), slots=slots)


def facts(signal: Signal, channels: Collection[int] | None = None) -> list[Fact]:
    """All that can be said of one signal, or of these channels of a series; of frames nothing yet."""
    if isinstance(signal, Series):
        return [*of_series(signal, channels)]
    return [*of_records(signal)] if isinstance(signal, Records) else []


# -- series ------------------------------------------------------------------------------------------------------------


def of_series(series: Series, channels: Collection[int] | None = None) -> Iterator[Fact]:
    if len(series) < LEAST:
        return
    duration = float(series.duration_s)
    yield Fact("duration", value=duration, unit="s", tolerance=0.05 * duration)
    yield Fact("channels", value=len(series.channels), unit="", tolerance=0.0)
    if len(series.channels) <= 8:
        for channel, unit in zip(series.channels, series.units, strict=True):
            if unit:
                others = tuple(dict.fromkeys(one for one in series.units if one))
                yield Fact("unit", unit, others, slots={"channel": channel})
    if series.rate_hz >= 1:
        yield Fact("rate_hz", value=series.rate_hz, unit="Hz", tolerance=0.02 * series.rate_hz)
    elif series.rate_hz > 0:
        yield Fact("interval", value=1 / series.rate_hz, unit="s", tolerance=0.02 / series.rate_hz)
    gone = np.asarray(~np.isfinite(series.values).all(axis=1))
    yield yes_no("gaps", bool(gone.any()))
    yield from _gap(series, gone)
    wanted = sorted(range(len(series.channels)) if channels is None else channels)
    for n in wanted:
        yield from _of_channel(series, measure.finite(series.values[:, n]), series.channels[n], series.units[n])
    yield from _between(series, wanted[:6])
    yield from _movements(series)
    for about, told in beats.told(series):
        if isinstance(told, bool):
            yield yes_no(about, told)
        elif about == "heart_rate":
            yield Fact(about, value=told, unit="bpm", tolerance=beats.TOLERANCE_BPM)
        else:
            yield Fact(about, value=told, unit="", tolerance=max(1.0, 0.05 * told))


def _gap(series: Series, gone: NDArray[np.bool_]) -> Iterator[Fact]:
    """How long the longest gap is, where it is at least a twentieth of the whole and half as long again as others."""
    found = sorted(measure.stretches(gone), key=lambda one: one.stop - one.start)
    if not found or series.rate_hz <= 0:
        return
    lengths = [(one.stop - one.start) / series.rate_hz for one in found]
    if lengths[-1] >= series.duration_s / 20 and (len(found) == 1 or lengths[-1] >= 1.5 * lengths[-2]):
        yield Fact("longest_gap", value=lengths[-1], unit="s", tolerance=max(0.2 * lengths[-1], 1 / series.rate_hz))


def _of_channel(series: Series, x: Floats, channel: str, unit: str) -> Iterator[Fact]:
    known = np.isfinite(x)
    if known.sum() < LEAST:
        return
    yield from _levels(series, x, channel, unit)
    yield from _shape(series, x, channel, unit)
    yield from _halves(x, channel)
    yield from _events(series, x, channel)


def near(value: float, width: float) -> float:
    """The tolerance of a level: `width`, or a fiftieth of the value where that is more. The width is a tenth of the
    channel's range for extremes, and a quarter of its standard deviation for means (0.09 of the range of a sine)."""
    return max(width, 0.02 * abs(value), 1e-12)


def _levels(series: Series, x: Floats, channel: str, unit: str) -> Iterator[Fact]:
    slots, times = {"channel": channel}, measure.clock(series)
    low, high = float(np.nanmin(x)), float(np.nanmax(x))
    reach = high - low
    edge = max(1, len(x) // 20)
    extremes, means = 0.1 * reach, 0.25 * float(np.nanstd(x))
    levels = {
        "mean": (_mean(x), means),
        "highest": (high, extremes),
        "lowest": (low, extremes),
        "range": (reach, extremes),
        "at_start": (_mean(x[:edge]), means),
        "at_end": (_mean(x[-edge:]), means),
    }
    for about, (value, width) in levels.items():
        if math.isfinite(value) and (about != "range" or reach > 0):
            yield Fact(about, value=value, unit=unit, tolerance=near(value, width), slots=slots)
    for about, sign in (("when_highest", 1), ("when_lowest", -1)):
        at = int(np.nanargmax(sign * x))
        away = np.abs(times - times[at]) > 0.05 * series.duration_s
        # Where a tenth of the range or less lies between it and another time, either may be meant.
        if reach > 0 and away.any() and np.nanmax(sign * x[away], initial=-np.inf) < sign * x[at] - 0.1 * reach:
            value, tolerance = float(times[at]), 0.07 * series.duration_s
            yield Fact(about, value=value, unit="s", tolerance=tolerance, slots=slots)


def _mean(x: Floats) -> float:
    known = x[np.isfinite(x)]
    return float(known.mean()) if len(known) else math.nan


def _shape(series: Series, x: Floats, channel: str, unit: str) -> Iterator[Fact]:
    slots = {"channel": channel}
    if (word := measure.trend(x)) is not None:
        choices = (measure.RISING, measure.FALLING, measure.NO_TREND)
        yield Fact("trend", word, choices, slots=slots)
    rate = measure.steady_hz(series)
    if rate > 0 and (length := measure.period(x)) is not None:
        yield yes_no("periodic", length > 0, channel=channel)
        if length > 0:
            seconds = length / rate
            yield Fact("period", value=seconds, unit="s", tolerance=0.1 * seconds, slots=slots)
            count = len(x) / length
            if count <= 60:
                yield Fact("repetitions", value=count, unit="", tolerance=max(1.0, 0.1 * count), slots=slots)
    if (still := measure.flat(x)) is not None:
        yield yes_no("flat", still.stop > still.start, channel=channel)
    if rate > 0 and (at := measure.step(x)) is not None:
        yield yes_no("step", at >= 0, channel=channel)
        if at >= 0:
            yield Fact("when_step", value=at / rate, unit="s", tolerance=0.07 * series.duration_s, slots=slots)


def _movements(series: Series) -> Iterator[Fact]:
    """How often a movement repeats, by the median count of the channels of motion that have a clear one, where three
    of four are within 15 % of it."""
    moved = [n for n, unit in enumerate(series.units) if unit in MOTION]
    rate = measure.steady_hz(series)
    if len(moved) < 2 or not rate > 0:
        return
    counts = [count for n in moved if (count := measure.repetitions(measure.finite(series.values[:, n])))]
    usual = float(np.median(counts)) if counts else 0.0
    if counts and np.mean(np.abs(np.array(counts) - usual) <= 0.15 * usual) >= 0.75:
        yield Fact("movements", value=usual, unit="", tolerance=max(1.0, 0.05 * usual))
    yield from _tempo(series, moved)


def _tempo(series: Series, moved: Sequence[int]) -> Iterator[Fact]:
    """Whether the movement becomes faster or slower: by the median, over its channels, of how much longer a period is
    in the second half; by 15 % at least. Steady within 5 %."""
    half = len(series) // 2
    ratios = []
    for n in moved:
        x = measure.finite(series.values[:, n])
        if (first := measure.period(x[:half])) and (second := measure.period(x[half:])):
            ratios.append(second / first)
    if not ratios:
        return
    ratio, choices = float(np.median(ratios)), (FASTER, SLOWER, STEADY)
    if np.mean(np.abs(np.log(ratios) - np.log(ratio)) <= 0.05) < 0.75:
        return  # the channels do not tell the same
    if abs(np.log(ratio)) >= np.log(1.15):
        yield Fact("tempo", SLOWER if ratio > 1 else FASTER, choices)
    elif abs(np.log(ratio)) <= np.log(1.05):
        yield Fact("tempo", STEADY, choices)


def _halves(x: Floats, channel: str) -> Iterator[Fact]:
    """The level is higher in one half where the means differ by at least 0.8 of the spread within the halves, and about
    the same with at most 0.15; one half varies more with at least 1.6 times the spread, about the same within 1.15."""
    first, second = (half[np.isfinite(half)] for half in np.array_split(x, 2))
    if min(len(first), len(second)) < LEAST:
        return
    choices, slots = (FIRST_HALF, SECOND_HALF, SAME), {"channel": channel}
    within = math.hypot(first.std(), second.std()) / math.sqrt(2)
    apart = float(second.mean() - first.mean())
    if within > 0 and abs(apart) >= 0.8 * within:
        yield Fact("higher_half", SECOND_HALF if apart > 0 else FIRST_HALF, choices, slots=slots)
    elif abs(apart) <= 0.15 * within:
        yield Fact("higher_half", SAME, choices, slots=slots)
    if (word := _more(float(first.std()), float(second.std()), choices)) and _more(
        spread(first), spread(second), choices
    ) == word:
        yield Fact("livelier_half", word, choices, slots=slots)


def _more(first: float, second: float, choices: tuple[str, str, str], much: float = 1.6, same: float = 1.15) -> str:
    """Which is greater, `much` times at least; the third choice within `same`; nothing between the two."""
    low, high = min(first, second), max(first, second)
    if high <= 0 or high <= same * low:
        return choices[2]
    return (choices[0] if first > second else choices[1]) if high >= much * low else ""


def _events(series: Series, x: Floats, channel: str) -> Iterator[Fact]:
    found = measure.bursts(x)
    if found is None or len(found) > 12:
        return
    yield yes_no("bursts", bool(found), channel=channel)
    if found:
        slots, count = {"channel": channel}, len(found)
        yield Fact("burst_count", value=count, unit="", tolerance=0.0 if count <= 5 else 1.0, slots=slots)
        if count == 1 and (rate := measure.steady_hz(series)) > 0:
            at = (found[0].start + found[0].stop) / 2 / rate
            yield Fact("when_burst", value=at, unit="s", tolerance=0.07 * series.duration_s, slots=slots)


def _between(series: Series, wanted: Sequence[int]) -> Iterator[Fact]:
    """What channels are to each other: largest swing and highest mean, among those of one unit; of those `wanted` pairs
    that follow each other (r of at least 0.8, of at most 0.15, of at most -0.8), and which of two comes first."""
    count = len(series.channels)
    if not 1 < count <= WIDE:
        return
    x = measure.finite(series.values)
    known = np.isfinite(x)
    if (known.sum(axis=0) < LEAST).any():
        return
    if len(set(series.units)) == 1:
        swing, level = np.nanstd(x, axis=0), np.nanmean(x, axis=0)
        order = np.argsort(-swing, kind="stable")
        if swing[order[0]] >= 1.3 * swing[order[1]]:
            yield Fact("largest_swing", series.channels[order[0]], series.channels)
        order = np.argsort(-level, kind="stable")
        if level[order[0]] - level[order[1]] >= 0.2 * float(np.ptp(x[known])):
            yield Fact("highest_mean", series.channels[order[0]], series.channels)
    rate = measure.steady_hz(series)
    for i, j in itertools.combinations(wanted, 2):
        slots = {"channel": series.channels[i], "other": series.channels[j]}
        yield from _pair(x[:, i], x[:, j], rate, slots, series.duration_s)


def _pair(a: Floats, b: Floats, rate: float, slots: dict[str, str], duration: float) -> Iterator[Fact]:
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < LEAST or not a[both].std() > 0 or not b[both].std() > 0:
        return
    r = float(np.corrcoef(a[both], b[both])[0, 1])
    word = TOGETHER if r >= 0.8 else OPPOSITE if r <= -0.8 else UNRELATED if abs(r) <= 0.15 else ""
    late = measure.lag(a, b) if rate > 0 else None
    if word and (word != UNRELATED or not late):  # what only lags does not move by itself
        yield Fact("together", word, (TOGETHER, OPPOSITE, UNRELATED), slots=slots)
    if late is None or not (abs(late) <= 1 or abs(late) >= len(a) / 50):
        return
    choices = (slots["channel"], slots["other"], AT_ONCE)
    yield Fact("leads", AT_ONCE if abs(late) <= 1 else choices[late < 0], choices, slots=slots)
    if abs(late) > 1:
        seconds = abs(late) / rate
        yield Fact("lag", value=seconds, unit="s", tolerance=max(0.25 * seconds, 0.01 * duration), slots=slots)


# -- two windows -------------------------------------------------------------------------------------------------------


def between(first: Series, second: Series) -> Iterator[Fact]:
    """What two signals are to each other, channel by channel of the same name and unit: the higher level, the livelier,
    the one that repeats faster; and the longer."""
    choices = (FIRST, SECOND, SAME)
    if word := _more(first.duration_s, second.duration_s, choices, 1.3, 1.02):
        yield Fact("longer", word, choices)
    for n, (channel, unit) in enumerate(zip(first.channels, first.units, strict=True)):
        if channel not in second.channels or second.units[at := second.channels.index(channel)] != unit:
            continue
        x, y = measure.finite(first.values[:, n]), measure.finite(second.values[:, at])
        if min(np.isfinite(x).sum(), np.isfinite(y).sum()) < LEAST:
            continue
        slots = {"channel": channel}
        apart = _mean(y) - _mean(x)
        within = math.hypot(np.nanstd(x), np.nanstd(y)) / math.sqrt(2)
        if abs(apart) >= 0.8 * within and apart:
            yield Fact("higher", SECOND if apart > 0 else FIRST, choices, slots=slots)
        elif abs(apart) <= 0.15 * within:
            yield Fact("higher", SAME, choices, slots=slots)
        if word := _more(float(np.nanstd(x)), float(np.nanstd(y)), choices):
            yield Fact("livelier", word, choices, slots=slots)
        rates = measure.steady_hz(first), measure.steady_hz(second)
        lengths = measure.period(x), measure.period(y)
        if all(rates) and all(lengths):
            often = tuple(rate / length for rate, length in zip(rates, lengths, strict=True) if length)
            if word := _more(often[0], often[1], choices, 1.2, 1.05):
                yield Fact("faster", word, choices, slots=slots)


# -- records -----------------------------------------------------------------------------------------------------------


def of_records(records: Records) -> Iterator[Fact]:
    """How many rows; of a category its commonest word (half as common again as the next), its share and how many words
    there are; of a number its mean, extremes and sum."""
    count = len(records)
    if count < 1:
        return
    yield Fact("rows", value=count, unit="", tolerance=0.0 if count <= 10 else 0.1 * count)
    if records.times_s is not None and count > 1:
        lasted = float(records.times_s.max() - records.times_s.min())
        yield Fact("records_duration", value=lasted, unit="s", tolerance=max(0.05 * lasted, 1e-9))
    for about, column in zip(records.fields, records.columns, strict=True):
        slots = {"channel": about.name}
        if about.type == "category":
            words, counts = np.unique([str(cell) for cell in column if cell is not None], return_counts=True)
            order = np.argsort(-counts, kind="stable")
            if not len(words):
                continue
            if len(words) > 1 and counts[order[0]] >= 1.5 * counts[order[1]]:
                choices = tuple(str(words[n]) for n in order[:12])
                yield Fact("commonest", str(words[order[0]]), choices, slots=slots)
            for n in order[:2]:
                share = 100 * float(counts[n]) / count
                yield Fact("share", value=share, unit="%", tolerance=10.0, slots={**slots, "word": str(words[n])})
            yield Fact("kinds", value=len(words), unit="", tolerance=0.0 if len(words) <= 5 else 1.0, slots=slots)
        elif about.type in ("number", "integer") and not NAMES.search(about.name):
            x = measure.finite(column)
            if not np.isfinite(x).any():
                continue
            width = 0.1 * float(np.nanmax(x) - np.nanmin(x))
            levels = (
                ("mean", _mean(x), 0.25 * float(np.nanstd(x))),
                ("highest", float(np.nanmax(x)), width),
                ("lowest", float(np.nanmin(x)), width),
            )
            for kind, value, near_by in levels:
                yield Fact(kind, value=value, unit=about.unit, tolerance=near(value, near_by), slots=slots)
