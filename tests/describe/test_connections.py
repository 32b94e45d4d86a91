"""Drawn connections: of each kind, as they are known to look, and the same for the same seed."""

from __future__ import annotations

import numpy as np

from genmote.describe import labelled
from genmote.describe.connections import windows
from genmote.describe.layouts.flows import CLASSES, FIELDS, ROWS
from genmote.signals.kinds import Records


def test_windows_of_each_kind_in_the_columns_of_the_layout() -> None:
    found = list(windows(3, 50))
    assert [one.labels for one in found[:5]] == [(kind,) for kind in CLASSES]
    for one in found:
        assert isinstance(one.signal, Records) and len(one.signal) == ROWS and one.classes == CLASSES
        assert [field.name for field in one.signal.fields] == [name for _, name, _, _ in FIELDS]
        for field, column in zip(one.signal.fields, one.signal.columns, strict=True):
            assert field.type == "category" or (np.isfinite(column.astype(float)) & (column.astype(float) >= 0)).all()
    again = list(windows(3, 50))
    assert all(
        np.array_equal(a, b)
        for one, two in zip(found, again, strict=True)
        for a, b in zip(one.signal.columns, two.signal.columns, strict=True)  # type: ignore[union-attr]
    )
    assert not np.array_equal(found[0].signal.columns[4], next(windows(4, 1)).signal.columns[4])  # type: ignore[union-attr]


def test_kinds_differ_in_what_is_known_of_them() -> None:
    names = [name for _, name, _, _ in FIELDS]
    held = {kind: [one.signal for one in windows(0, 200) if one.labels == (kind,)] for kind in CLASSES}

    def mean(kind: str, name: str) -> float:
        at = names.index(name)
        return float(np.mean([one.columns[at].astype(float).mean() for one in held[kind]]))  # type: ignore[union-attr]

    assert mean("normal traffic", "SYN errors") < 0.01 < mean("denial of service", "SYN errors")
    assert mean("probing", "rejections") > 0.4 > mean("remote access", "rejections")
    assert mean("remote access", "failed logins") > mean("normal traffic", "failed logins")
    assert mean("privilege escalation", "duration") > 10 * mean("probing", "duration")
    asked = labelled.examples(list(windows(0, 20)), each=1)
    assert sum(one.about == "label" for one in asked) >= 15
