from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from genmote.errors import TemplateError
from genmote.recipes import tour
from genmote.runtime.fake import fake_engine

pytestmark = pytest.mark.usefixtures("recorded")


def test_the_pulse() -> None:
    found = tour.pulse()
    assert found.figures["mean_bpm"] == pytest.approx(75, abs=0.1) and found.figures["beats"] == 51
    assert (
        "Mean heart rate: 75 beats per minute\n" in found.question and "Beats found: 51 in 40 seconds" in found.question
    )
    assert found.asked.endswith("60 to 100 beats per minute.") and "\n" not in found.asked
    assert "heartpy 1.2.7 (MIT)" in found.carrier
    ElementTree.fromstring(found.picture)


def test_the_movement() -> None:
    found = tour.movement()
    assert found.figures["repetitions"] == 20 and found.figures["dominant_hz"] == pytest.approx(0.5, abs=0.01)
    assert (
        "Repetitions: 20, one every 2.0 seconds" in found.question and "seglearn 1.2.5 (BSD-3-Clause)" in found.carrier
    )
    ElementTree.fromstring(found.picture)


@pytest.mark.parametrize(
    ("answer", "odd"),
    [
        ("Your heart rate was 75 beats per minute, within 60 to 100.", []),
        ("It was 75.0 or 77, or 7, not 5.5.", ["77", "7", "5.5"]),
        ("A fine pulse.", []),
    ],
)
def test_numbers_that_nobody_measured_are_found(answer: str, odd: list[str]) -> None:
    assert tour.invented(tour.pulse().question, answer) == odd


def test_the_budget_is_file_and_cache_and_60_mb(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(bytes(1000))
    layers = (SimpleNamespace(n_kv_heads=2, head_dim=8), SimpleNamespace(n_kv_heads=1, head_dim=16))
    config = SimpleNamespace(layers=layers)
    engine: Any = SimpleNamespace(model_path=tmp_path / "m.gguf", config=config, context=100)
    kv = 100 * 2 * 2 * (2 * 8 + 16)  # tokens, keys and values, bytes of a number, numbers
    allowed = tour.budget(engine)
    assert (allowed.file_bytes, allowed.kv_bytes, allowed.total_bytes) == (1000, kv, 60_001_000 + kv)


def test_a_base_model_cannot_be_asked() -> None:
    with (
        fake_engine() as engine,
        pytest.raises(TemplateError, match="this model has no chat template: use smollm2-135m"),
    ):
        tour.ask(engine, tour.pulse().question, 5)


def test_stretches_end_at_pauses() -> None:
    beats = np.array([1.0, 1.8, 2.6, 9.0, 9.8])
    assert tour._stretches(beats, 0.8) == [(1.0, 2.6), (9.0, 9.8)]


def test_company_counts_others_and_not_ourselves() -> None:
    company = tour.Company()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    cores = company.cores()
    if cores is None:
        pytest.skip("this system does not tell how busy it is")
    own = 0.3 / (time.monotonic() - company._started)
    busy = tour._busy_s()
    assert busy is not None and company._busy is not None
    total = (busy - company._busy) / (time.monotonic() - company._started)
    assert cores == pytest.approx(total - own, abs=0.15)
