from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from genmote.signals.chart import COLUMNS, LEFT, RIGHT, WIDTH, Panel, svg, thinned, ticks

SVG = "{http://www.w3.org/2000/svg}"


def panel(count: int = 500, **more: object) -> Panel:
    x = np.linspace(0, 10, count)
    return Panel("a < b & c", x, np.sin(x), "seconds", "g", **more)  # type: ignore[arg-type]


def test_the_picture_is_well_formed_and_shows_what_it_was_given() -> None:
    points = (np.array([1.0, 2.0, 99.0]), np.array([0.5, 0.2, 0.0]))
    root = ElementTree.fromstring(svg("Title <1>", "sub", [panel(points=points, shades=[(2, 4), (20, 30)]), panel()]))
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"Title <1>", "sub", "a < b & c", "seconds", "g"} <= set(words)
    assert len(list(root.iter(f"{SVG}polyline"))) == 2
    assert len(list(root.iter(f"{SVG}circle"))) == 2, "a point outside is not drawn"
    (shade,) = [box for box in root.iter(f"{SVG}rect") if box.get("class") == "shade"]
    assert float(shade.attrib["x"]) == pytest.approx(LEFT + 0.2 * COLUMNS, abs=0.1)
    assert float(shade.attrib["width"]) == pytest.approx(0.2 * COLUMNS, abs=0.1)


def test_lines_stay_within_their_panel() -> None:
    text = svg("t", "s", [panel(50_000)])
    points = re.findall(r"([\d.-]+),([\d.-]+)", re.findall(r'points="([^"]*)"', text)[0])
    across = [float(x) for x, _ in points]
    assert min(across) >= LEFT and max(across) <= WIDTH - RIGHT + 0.1 and across == sorted(across)
    assert len(points) <= 2 * COLUMNS and len(text) < 60_000


def test_thinning_keeps_the_peaks() -> None:
    y = np.zeros(100_000)
    y[[12_345, 70_000]] = 5, -3
    x, kept = thinned(np.arange(100_000.0), y, 100)
    assert len(x) <= 200 and kept.max() == 5 and kept.min() == -3 and x[np.argmax(kept)] == 12_345


def test_a_flat_line_can_be_drawn() -> None:
    x = np.arange(10.0)
    ElementTree.fromstring(svg("t", "s", [Panel("flat", x, np.zeros(10), "s", "g")]))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 789.0), (1e-6, 3e-6), (115.9, 128.2), (5.0, 5.0)])
def test_ticks_are_round_and_cover_the_range(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    steps = np.diff(found)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9 and 2 <= len(found) <= 9
    assert np.allclose(steps, steps[0]) and all(len(f"{tick:g}") <= 7 for tick in found)
