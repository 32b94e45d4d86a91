"""The budget as a picture: shares are true, and what is written into an SVG stays text."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.runtime.budget_picture import PARTS, bar, svg
from genmote.runtime.plan import Plan, plan


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Plan:
    path = tmp_path_factory.mktemp("picture") / "m.gguf"
    make_model("tiny-llama", "q4_0", path, seed=1)
    return plan(ModelFile.open(path), context=64, interpreter=40 << 20)


def test_a_bar_has_as_many_letters_as_the_parts_take(made):
    for budget in (None, made.predicted_bytes, 2 * made.predicted_bytes):
        drawn = bar(replace(made, budget_bytes=budget), 64)
        assert len(drawn) == 66 and drawn[0] == "[" and drawn[-1] == "]"
        whole = budget or made.predicted_bytes
        for name, (letter, _, _) in PARTS.items():
            assert abs(drawn.count(letter) - 64 * made.parts[name] / whole) < 1
        assert drawn.count(".") == pytest.approx(64 * (whole - made.predicted_bytes) / whole, abs=1)


def test_every_part_has_a_letter_of_its_own(made):
    assert set(PARTS) == set(made.parts)
    assert len({letter for letter, _, _ in PARTS.values()}) == len(PARTS)


def test_the_picture_is_xml_and_its_bar_is_true(made):
    wide = replace(made, budget_bytes=2 * made.predicted_bytes)
    lines = [("f16", [(16, 50_000_000), (32, 60_000_000)]), ("int4", [(16, 45_000_000), (32, 50_000_000)])]
    tree = ElementTree.fromstring(svg(wide, "a <model> & its board", lines))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in tree.iter(f"{space}text")]
    assert "a <model> & its board" in texts and "f16" in texts and "budget" in texts
    named = [rect for rect in tree.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    drawn = {rect.find(f"{space}title").text.split(":")[0]: float(rect.get("width")) for rect in named}
    for name, (_, told, _) in PARTS.items():
        if made.parts[name]:
            assert drawn[told] == pytest.approx(912 * made.parts[name] / wide.budget_bytes, abs=0.1)
    assert len(list(tree.iter(f"{space}polyline"))) == 2
    assert sum(drawn.values()) == pytest.approx(912 / 2, abs=1)
