"""Reports: what is measured is what the engine says; pages are whole, readable and made of the record alone."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from genmote import Engine, records
from genmote.compress import Calibration, Recipe, compress
from genmote.compress.evaluate import compare
from genmote.compress.report import load, measure, rows, summary
from genmote.compress.report_page import frontier, page
from genmote.compress.search import written
from genmote.compress.steps.rtn import Rtn
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.records import Record


def _made_up() -> ModuleType:
    spec = importlib.util.spec_from_file_location("made_up", Path(__file__).with_name("made_up.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made_up = _made_up()
VOID = {"meta", "br", "img"}


class Balanced(HTMLParser):
    """Sees that every tag is closed in its turn, and collects text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> str:
    """The page's text; fails on tags that do not match, on a script, and on anything that would be fetched."""
    parser = Balanced()
    parser.feed(html)
    assert not parser.open
    assert "<script" not in html and not re.search(r'(src|href|@import|url\()\s*=?\s*["\']?(?!http://www.w3.org)', html)
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        root = ElementTree.fromstring(drawing)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for node in root.iter():
            for name, most in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                if name in node.attrib:
                    assert -1 <= float(node.attrib[name]) <= most + 1, ElementTree.tostring(node)
            assert "nan" not in " ".join(node.attrib.values())
    return parser.text


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path, Path, str]:
    """A real report: its record, both files, the text."""
    folder = tmp_path_factory.mktemp("report")
    model, small = folder / "tiny.gguf", folder / "small.gguf"
    make_model("tiny-llama", "F16", model, 1)
    made = compress(model, small, Recipe((Rtn(type="Q4_0", head_type="Q8_0"),)))
    text = written(ModelFile.open(model), Calibration(length=64), 10, lambda *_: None)
    scores = {"a task": (0.5, 0.25)}
    record = measure(model, small, text=text, text_name="own text", steps=made.steps, scores=scores)
    return record, model, small, text


def test_a_report_tells_what_the_engine_measures(told: tuple[Record, Path, Path, str]) -> None:
    record, model, small, text = told
    with Engine.load(model) as one, Engine.load(small) as other:
        wanted = compare(one, other, text, context=min(512, one.context, other.context))
    values = record.values
    assert values["kl_nats_per_token"] == wanted.kl and values["agreement"] == wanted.agreement
    assert values["perplexity_ratio"] == wanted.perplexity_ratio
    for side, path, loss in (("original", model, wanted.original), ("compressed", small, wanted.compressed)):
        told_side = values[side]
        assert told_side["size_bytes"] == path.stat().st_size
        assert (told_side["perplexity"], told_side["bits_per_byte"]) == (loss.perplexity, loss.bits_per_byte)
        tensors = ModelFile.open(path).tensors.values()
        assert sum(told_side["parts_bytes"].values()) == sum(info.nbytes for info in tensors)
        numbers = sum(math.prod(info.shape) for info in tensors)
        assert told_side["bits_per_weight"] == pytest.approx(8 * sum(info.nbytes for info in tensors) / numbers)
        assert told_side["types"]["blk.0.attn_q.weight"] == ("F16" if side == "original" else "Q4_0")
        assert told_side["decode_tokens_per_s"] > 0 and told_side["peak_rss_bytes"] > 10_000_000
    assert record.model_sha256 == ModelFile.open(small).sha256()
    assert values["steps"][0]["use"] == "rtn" and values["recipe"]["step"][0]["head_type"] == "Q8_0"
    assert values["scores"] == {"a task": {"original": 0.5, "compressed": 0.25}}


def test_a_report_survives_its_file(told: tuple[Record, Path, Path, str], tmp_path: Path) -> None:
    records.append(tmp_path / "one.json", told[0])
    again = load(tmp_path / "one.json")
    assert again.values == json.loads(told[0].line())["values"]
    assert page(again) == page(told[0])
    text = read(page(again))
    assert "own text" in text and "a task" in text and "-25.0 points" in text


def test_the_summary_has_the_figures(told: tuple[Record, Path, Path, str]) -> None:
    record = told[0]
    text = summary(record)
    for name, *cells in rows(record.values):
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert all(cell in line for cell in cells)
    assert "own text" in text and "step rtn: " in text


def test_a_page_has_every_figure_of_its_table_and_the_choice_of_each_matrix() -> None:
    record = made_up.report()
    html = page(record)
    text = read(html)
    for name, *cells in rows(record.values):
        assert name in text and all(cell in text for cell in cells)
    for name, stored in record.values["compressed"]["types"].items():
        assert f"<title>{name.removesuffix('.weight')}: {stored}" in html
    assert "What the search expected and what came" in text and "0.1410" in text
    assert "Squared error at each matrix's output, as a share of the output that it aims at" in text
    assert "Beside other results" not in text
    assert "Beside other results" in read(page(record, [made_up.report("other.gguf", 70_000_000, 22.0)]))


def test_what_was_not_measured_is_left_out() -> None:
    record = made_up.report(kl_nats_per_token=None, agreement=None, scores={}, steps=[], search=None, recipe=None)
    text = read(page(record))
    assert "perplexity, 21.40 → 24.50" in text
    assert "KL divergence" not in text and "The steps are not known" in text and "search expected" not in text
    assert "KL divergence" not in summary(record)


def test_perplexities_of_other_tokens_are_not_compared() -> None:
    record = made_up.report(kl_nats_per_token=None, agreement=None, perplexity_ratio=None)
    text = read(page(record))
    a, b = record.values["original"]["bits_per_byte"], record.values["compressed"]["bits_per_byte"]
    assert f"{b / a:.3f}xbits per byte, {a:.4f} → {b:.4f}" in text and "perplexity, 21.40" not in text
    assert next(row for row in rows(record.values) if row[0] == "perplexity")[1:] == ("21.400", "24.500", "")
    assert "24.500" in read(frontier([record]))


def test_what_a_step_has_to_say_is_told() -> None:
    step = {"use": "prune", "settings": {"share": 0.5}, "seconds": 3.0, "figures": {"zeros": 0.5}, "note": "no faster"}
    record = made_up.report(steps=[step])
    assert "zeros 0.5; no faster" in read(page(record))
    assert "step prune: 3 s; no faster" in summary(record)


def test_a_missed_goal_stands_on_the_page() -> None:
    search = {"goal": "at most 60 MB", "missed": "no choice of types takes less than 69.4 MB", "rounds": []}
    assert "no choice of types takes less than 69.4 MB" in read(page(made_up.report(search=search)))


def test_a_device_stands_on_the_page_and_in_the_summary() -> None:
    search = {"goal": "at most 60 MB", "missed": None, "rounds": [], "device": "a board"}
    search |= {"expected_tokens_per_s": 12.34, "original_expected_tokens_per_s": None}
    told = made_up.report(search=search)
    line = (
        "Expected: 12.3 tokens/s on a board, the original does not fit its memory; by that machine's figures, not meas"
    )
    assert line in read(page(told)) and line in summary(told)
    for none in (None, {**search, "device": None}):
        assert "Expected:" not in summary(made_up.report(search=none))


def test_a_frontier_tells_what_does_not_compare() -> None:
    alike = read(frontier([made_up.report("a.gguf"), made_up.report("b.gguf")]))
    assert "These texts differ" not in alike
    assert "Each speed is of its result's own run, with whatever else ran there then, on " in alike
    other = made_up.report("b.gguf", text="another text")
    assert "These texts differ: losses on one say nothing" in read(frontier([made_up.report("a.gguf"), other]))


def test_names_cannot_break_a_page() -> None:
    nasty = 'a<script>&".gguf'
    assert nasty in read(page(made_up.report(nasty)))
    assert nasty in read(frontier([made_up.report(nasty)]))


def test_the_frontier_is_of_those_that_none_beats() -> None:
    sizes = [(54, 27.0), (60, 24.5), (70, 25.0), (80, 23.0), (80, 22.0)]
    html = frontier([made_up.report(f"r{n}.gguf", s * 1_000_000, p) for n, (s, p) in enumerate(sizes)])
    assert read(html).count(".gguf") >= 11  # each in the picture and in the table, and the original
    line = re.search(r'<polyline[^>]* points="([^"]*)"', html)
    assert line is not None
    corners = [tuple(map(float, point.split(","))) for point in line[1].split()]
    assert len(corners) == 3  # not the third, which is larger and worse, nor the fourth
    assert corners == sorted(corners) and [y for _, y in corners] == sorted(y for _, y in corners)


def test_a_file_without_a_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read .*: wanted a report that compress --report wrote"):
        load(tmp_path / "none.json")
    records.append(tmp_path / "other.json", Record("bench.decode", {}))
    with pytest.raises(SpecError, match="other.json: holds no report"):
        load(tmp_path / "other.json")
    (tmp_path / "words.json").write_text("no record\nat all\n")
    with warnings.catch_warnings(action="error"), pytest.raises(SpecError, match="words.json: holds no report"):
        load(tmp_path / "words.json")
    records.append(tmp_path / "empty.json", Record("compress", {}))
    with pytest.raises(SpecError, match="empty.json: holds no report"):
        load(tmp_path / "empty.json")
