from __future__ import annotations

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.generator.layout import CHANNEL, DAY, HOUR, LEFT, LEFTS, Layout, bucket, slow
from genmote.generator.windows import Windows, held_out, recordings
from genmote.signals import coding
from genmote.signals.header import END
from genmote.signals.kinds import Frames, Series
from tests.generator.conftest import doors, wave, waves


def layout_of(signals: list[Series], context: int = 64, clock: bool = False) -> Layout:
    return Layout(coding.fit("bins", signals, bins=16), clock, context)


def hourly(days: int, start: float = 1.6e9) -> Series:
    values = np.sin(np.arange(24 * days)[:, None] / 4).astype(np.float32)
    return Series("air", values, 1 / 3600, ("co",), ("ppm",), start_s=start)


def test_each_row_asks_for_the_channel_of_the_next_token() -> None:
    signal = wave(1, 6)
    layout = layout_of([signal])
    channels = layout.rows(signal).asks[:, CHANNEL]
    header = layout.header(signal).tokens
    assert channels.tolist() == header[-2:].tolist() * 6  # the header names the channels last


def test_hours_and_days_are_those_of_the_calendar() -> None:
    series = hourly(9)
    layout = layout_of([series], clock=True)
    asks = layout.rows(series).asks
    first = layout.codec.vocabulary + 2 + LEFTS
    import datetime

    for n in (0, 5, 100, 215):
        when = datetime.datetime.fromtimestamp(1.6e9 + 3600 * n, datetime.UTC)
        assert asks[n, HOUR] - first == when.hour
        assert (asks[n, DAY] - first - 24) == (when.weekday() + 1) % 7


@pytest.mark.parametrize(
    ("series", "wanted"),
    [(hourly(9), True), (hourly(1), False), (hourly(9, start=0.0), False), (wave(1), False)],
    ids=["weeks", "a day", "no date", "fast"],
)
def test_the_hour_matters_where_recordings_are_dated_long_and_slow(series: Series, wanted: bool) -> None:
    assert slow([series]) is wanted


def test_steps_left_are_told_apart_when_few() -> None:
    left = np.arange(1, 5000, dtype=np.int32)
    found = bucket(left)
    assert (np.diff(found) >= 0).all() and found[0] == 0 and found[-1] == LEFTS - 1
    assert len(set(found[:16].tolist())) == 16


def test_a_codec_without_samples_says_so() -> None:
    frames = Frames("f", "grid", [np.zeros((8, 8, 1), np.float32)], ("grey",), ("",))
    layout = Layout(coding.fit("grid", [frames]), False, 128)
    with pytest.raises(SignalError, match="no tokens of single samples"):
        layout.starts(frames, layout.rows(frames))


def test_rows_of_records_are_found() -> None:
    records = doors(1, 20)
    layout = Layout(coding.fit("fields", [records]), False, 128)
    rows = layout.rows(records)
    starts = layout.starts(records, rows)
    assert len(starts) == 21 and starts[-1] == len(rows)
    assert len(set(np.diff(starts).tolist())) <= 3


def test_held_out_are_whole_recordings_where_there_are_many() -> None:
    signals = waves(20, 50)
    learnt, judged = held_out(signals, 3)
    names = {s.name for s in learnt}, {s.name for s in judged}
    assert len(judged) == 2 and not names[0] & names[1] and len(names[0] | names[1]) == 20


def test_held_out_is_the_end_of_each_where_there_are_few() -> None:
    signal = wave(1, 100)
    (learnt,), (judged,) = held_out([signal], 0)
    assert len(learnt) == 90 and np.array_equal(judged.values, signal.values[90:])


def test_nothing_to_learn_from() -> None:
    signals = [wave(1, 10)]
    with pytest.raises(SignalError, match="no recording with a sample"):
        recordings(layout_of(signals), [signals[0].part(0, 0)], [])


def test_windows_learn_samples_and_ends_and_nothing_else() -> None:
    signals = waves(4, 100)
    layout = layout_of(signals)
    windows = Windows(layout, recordings(layout, signals, []))
    draw = np.random.default_rng(0)
    for _ in range(20):
        batch = windows.batch(6, draw)
        assert batch.tokens.shape[1] < layout.context
        learnt = batch.targets[batch.targets >= 0]
        own = (learnt >= layout.codec.head.size) & (learnt < layout.codec.vocabulary)
        assert (own | (learnt == END)).all()
        rows, at = np.nonzero((batch.targets[:, :-1] >= 0) & (batch.targets[:, 1:] >= 0))
        assert (batch.tokens[rows, at + 1] == batch.targets[rows, at]).all()


def test_a_gap_is_told_from_its_end() -> None:
    signals = waves(2, 100)
    layout = layout_of(signals)
    windows = Windows(layout, recordings(layout, signals, []))
    (recording, _) = windows.found
    part = windows._filled(recording, 10, 40, np.random.default_rng(1))
    left = part.asks[:, LEFT]
    gap = left[left >= 0] - (layout.codec.vocabulary + 2)
    steps = len(gap) // 2
    assert gap.tolist() == np.repeat(bucket(np.arange(steps, 0, -1, dtype=np.int32)), 2).tolist()
    after, before = (int(np.flatnonzero(part.tokens == token)[0]) for token in (layout.after, layout.before))
    follows, past = part.tokens[after + 1 : before], part.tokens[before + 1 :]
    assert np.array_equal(np.concatenate([past, follows]), recording.part(10, 40).tokens)


def test_fixed_stretches_cover_everything_once() -> None:
    signals = waves(3, 100)
    layout = layout_of(signals)
    windows = Windows(layout, recordings(layout, signals, []))
    tokens = sum(len(part) - len(windows.found[0].header) for part in windows.fixed(1000))
    assert tokens == sum(len(recording.rows) for recording in windows.found)
