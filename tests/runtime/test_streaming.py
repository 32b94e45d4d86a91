"""Streamed weights: the same bits as resident ones for every budget, order of use and company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import BudgetError, ModelFileError, OpsError, SpecError
from genmote.models import packed
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import load_shape, make_model, shape_names
from genmote.models.weights import GgufWeights
from genmote.ops import quant
from genmote.ops.protocol import Span
from genmote.runtime import streaming
from genmote.runtime.engine import Engine
from genmote.runtime.streaming import ROWS, Chunk, Room, Streaming, cuts, spread

native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)

TINY = [name for name in shape_names() if name.startswith("tiny-")]
PROMPT = [1, 5, 9, 2, 6, 30, 31, 7]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are cut as finely as large ones are."""
    for name, value in {"LEAST_RING": 1, "MOST_RING": 60_000, "LEAST_CHUNK": 4096, "MOST_CHUNK": 12_000}.items():
        monkeypatch.setattr(streaming, name, value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny model's file, made once."""
    folder = tmp_path_factory.mktemp("models")

    def make(shape: str = "tiny-llama", kind: str = "Q4_0") -> Path:
        path = folder / f"{shape}-{kind}.gguf"
        if not path.exists():
            make_model(shape, kind, path, seed=1)
        return path

    return make


def streamed(path: Path, total: int | None, *, fused: bool = True, threads: int = 2) -> tuple[Decoder, Streaming]:
    """A decoder whose weights have `total` bytes of memory."""
    file, ops = ModelFile.open(path), op_sets.load("native", threads=threads)
    found = packed.loader(file, ops)
    assert isinstance(found, packed.Packed)
    matrices = Streaming(found)
    weights = GgufWeights(file, ops, matrices)
    matrices.arrange(weights, total)
    decoder = Decoder(weights.config, weights, ops, fused=fused)
    decoder.before_pass = matrices.begin
    return decoder, matrices


def passes(decoder: Decoder) -> list[np.ndarray]:
    """Logits of a prompt in two pieces, of which the first has no head, of a batch of two, and of a last token."""
    first, second = decoder.cache(40), decoder.cache(40)
    assert decoder.forward(PROMPT[:5], [Span(first, 0, 5)], logits=None) is None
    found = [decoder.forward(PROMPT[5:], [Span(first, 0, 3)], logits="all")]
    found.append(decoder.forward([3, 4, *PROMPT], [Span(first, 0, 2), Span(second, 2, 8)]))
    found += [decoder.forward([token], [Span(second, 0, 1)]) for token in (3, 8, 3)]
    return [logits for logits in found if logits is not None]


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(found) == len(wanted) and all(map(np.array_equal, found, wanted))


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("fused", [True, False])
def test_every_budget_gives_the_same_bits(tiny: Callable[..., Path], shape: str, fused: bool) -> None:
    file, ops = ModelFile.open(tiny(shape)), op_sets.load("native", threads=2)
    weights = GgufWeights(file, ops)
    wanted = passes(Decoder(weights.config, weights, ops))
    whole = sum(info.nbytes for info in file.tensors.values())
    for total in (0, whole // 4, whole // 2, whole, None):
        decoder, matrices = streamed(tiny(shape), total, fused=fused)
        assert same(passes(decoder), wanted), total
        assert (matrices.streamed_bytes == 0) == (total is None)
        assert matrices.pinned_bytes <= (total or 0) or total is None


@pytest.mark.parametrize("kind", quant.codec_names())
def test_every_type_gives_the_same_bits(tiny: Callable[..., Path], kind: str) -> None:
    try:
        path = tiny("tiny-llama", kind)
    except SpecError:
        path = tiny("tiny-wide", kind)
    file, ops = ModelFile.open(path), op_sets.load("native", threads=2)
    weights = GgufWeights(file, ops)
    wanted = passes(Decoder(weights.config, weights, ops))
    for total in (0, file.nbytes // 2):
        assert same(passes(streamed(path, total)[0]), wanted)


def test_what_is_pinned_may_change_between_passes(tiny: Callable[..., Path]) -> None:
    decoder, matrices = streamed(tiny(), None)
    wanted = passes(decoder)
    whole = matrices.pinned_bytes
    gave = matrices.shrink(whole // 3)
    assert gave >= whole // 3 and matrices.pinned_bytes == whole - gave and matrices.streamed_bytes > 0
    assert same(passes(decoder), wanted)
    assert matrices.grow(whole // 6) <= whole // 6
    assert same(passes(decoder), wanted)
    assert matrices.shrink(10 * whole) > 0 and matrices.pinned_bytes == 0
    assert same(passes(decoder), wanted)
    assert matrices.grow(10 * whole) == whole and matrices.streamed_bytes == 0
    assert same(passes(decoder), wanted)


def test_weights_make_room_for_a_growing_text(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a text does not take yet is pinned; it is given up in time, and taken again when the text is gone."""
    decoder, matrices = streamed(tiny(), 0)
    wanted = passes(decoder)
    whole = streamed(tiny(), None)[1].pinned_bytes
    beside, most = 500_000, 0
    monkeypatch.setattr(streaming, "MARGIN", 1000)
    monkeypatch.setattr(streaming, "resident_bytes", lambda: beside + matrices.pinned_bytes)
    room = Room(600_000, row_bytes=100, page_bytes=200, activation_bytes=3000, chunk_rows=8)
    matrices.keep_to(room, 60_000)
    most = matrices.pinned_bytes
    assert 0 < most <= 60_000 - 1000
    for beside in (500_000, 540_000, 570_000, 599_000, 650_000):
        for rows in (8, 1):
            matrices.begin(True, rows)
            assert matrices.pinned_bytes == 0 or beside + matrices.pinned_bytes + rows * 100 + 1200 <= 600_000
    assert matrices.pinned_bytes == 0
    assert same(passes(decoder), wanted)
    beside = 500_000
    for _ in range(40):
        matrices.begin(True, 1)
    again = matrices.pinned_bytes
    assert 0 < again <= min(whole, 100_000)
    gave = matrices.shrink(again // 2)  # asked for by somebody else: it stays so
    for _ in range(40):
        matrices.begin(True, 1)
    assert matrices.pinned_bytes == again - gave
    before = matrices.pinned_bytes
    matrices.make_room(0)
    assert matrices.pinned_bytes == before
    matrices.make_room(900)  # of another text, at once
    assert matrices.pinned_bytes < before and beside + matrices.pinned_bytes + 90_000 + 1200 <= 600_000
    gave = again - matrices.pinned_bytes
    monkeypatch.setattr(streaming, "resident_bytes", lambda: 0)  # no system that tells
    matrices.begin(True, 1)
    assert matrices.pinned_bytes == again - gave
    assert same(passes(decoder), wanted)


def test_the_kernel_does_not_fill_what_was_let_go_again(tmp_path: Path, own_home: Path) -> None:
    """Memory that may be made of huge pages is filled whole, in the background, where one page of it is in use."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("this system does not tell")
    make_model("smollm2-135m", "q4_0", tmp_path / "m.gguf", seed=1)
    before = smaps.read_text().count(" hg ")
    _, matrices = streamed(tmp_path / "m.gguf", None)
    assert smaps.read_text().count(" hg ") > before
    for left in (matrices.pinned_bytes // 2, 0):
        matrices.pin(left)
    assert smaps.read_text().count(" hg ") == before


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-low-rank", "tiny-deci"])
def test_a_pass_reads_what_is_streamed_once(
    shape: str, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole blocks are read, and rows of the embedding; beyond that nothing twice."""
    monkeypatch.setattr(streaming, "LEAST_RING", 300_000)
    monkeypatch.setattr(streaming, "MOST_CHUNK", 50_000)
    decoder, matrices = streamed(tiny(shape, "F32"), 0)
    cache = decoder.cache(64)
    decoder.forward([1], [Span(cache, 0, 1)])
    before = matrices.reader.bytes_read
    for _ in range(10):
        decoder.forward([1], [Span(cache, 0, 1)])
    each = (matrices.reader.bytes_read - before) / 10
    assert matrices.streamed_bytes <= each <= 1.3 * matrices.streamed_bytes + 8192


def test_prompts_do_not_read_the_head(tiny: Callable[..., Path]) -> None:
    decoder, matrices = streamed(tiny(), 0)
    head = decoder.weights.head.matrix.nbytes
    counts = []
    for logits in (None, "last"):
        cache = decoder.cache(64)
        decoder.forward([1], [Span(cache, 0, 1)], logits=logits)
        before = matrices.reader.bytes_read
        for _ in range(10):
            decoder.forward([1], [Span(cache, 0, 1)], logits=logits)
        counts.append((matrices.reader.bytes_read - before) / 10)
    assert counts[1] - counts[0] >= 0.8 * head


def test_a_failed_pass_leaves_the_next_one_right(tiny: Callable[..., Path]) -> None:
    decoder, _ = streamed(tiny(), 0)
    wanted = passes(decoder)
    for stop in range(1, 4):
        layers = decoder.weights.layers
        kept, count = decoder._block, 0

        def interrupted(*args: Any, stop: int = stop, kept: Any = kept) -> Any:
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            return kept(*args)

        decoder._block = interrupted
        with pytest.raises(KeyboardInterrupt):
            for _ in layers:
                decoder.forward(PROMPT, [Span(decoder.cache(40), 0, 8)])
        decoder._block = kept
        assert same(passes(decoder), wanted)


def test_adapters(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """With an adapter a block is computed step by step, in another order of use."""
    shape = load_shape("tiny-llama")
    rng = np.random.default_rng(5)
    tensors = []
    for name, out, cols in (
        ("blk.0.attn_q", shape.width, shape.width),
        ("blk.1.ffn_up", shape.ffn_width, shape.width),
        ("blk.1.ffn_down", shape.width, shape.ffn_width),
    ):
        tensors.append((f"{name}.weight.lora_a", "F32", (4, cols), rng.standard_normal((4, cols), np.float32)))
        tensors.append((f"{name}.weight.lora_b", "F32", (out, 4), rng.standard_normal((out, 4), np.float32)))
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    adapter = tmp_path / "adapter.gguf"
    write_gguf(adapter, metadata | {"adapter.lora.alpha": np.float32(4)}, tensors)
    with Engine.load(tiny(), ops="native", threads=2) as engine, Engine.load(tiny(), ops="native", memory="1GB") as own:
        assert own.streaming is not None
        own.streaming.arrange(own.decoder.weights, 0)
        texts = []
        for adapters in (None, adapter, [(adapter, 0.5)], None):
            engine.set_adapters(adapters)
            own.set_adapters(adapters)
            wanted = engine.generate(PROMPT, max_tokens=8, ignore_eos=True).tokens
            before = own.streaming.reader.bytes_read
            assert own.generate(PROMPT, max_tokens=8, ignore_eos=True).tokens == wanted
            assert own.streaming.reader.bytes_read - before < 9 * 2 * own.streaming.streamed_bytes + (1 << 20)
            texts.append(tuple(wanted))
        assert texts[0] == texts[3] != texts[1]
        own.streaming.arrange(own.decoder.weights, None)
        assert own.streaming.shrink(10**9) > 0
        own.set_adapters(adapter)
        assert own.streaming.pinned_bytes == 0, "what was given back stays so"


def test_an_engine_within_a_budget(tiny: Callable[..., Path]) -> None:
    with Engine.load(tiny(), ops="native") as plain, Engine.load(tiny(), memory=10**9, threads=1) as engine:
        assert plain.plan is None and plain.streaming is None
        assert engine.plan is not None and engine.plan.budget_bytes == 10**9
        assert engine.streaming is not None and engine.streaming.streamed_bytes == 0
        assert engine.generate("a b c", max_tokens=5).text == plain.generate("a b c", max_tokens=5).text
        assert engine.perplexity("a b c d e f g h " * 8, context=16) == plain.perplexity(
            "a b c d e f g h " * 8, context=16
        )


def test_what_cannot_keep_to_a_budget_is_told(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OpsError, match="memory: only the native op set keeps to a budget, this is numpy; leave"):
        Engine.load(tiny(), ops="numpy", memory="1GB")
    for memory in (0, True, -5, 1.5):
        with pytest.raises(SpecError, match=r"memory=.*give bytes, or an amount such as 150MB"):
            Engine.load(tiny(), ops="native", memory=memory)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="memory 'much': wanted an amount"):
        Engine.load(tiny(), ops="native", memory="much")
    with pytest.raises(BudgetError, match="does not fit 1 MB"):
        Engine.load(tiny(), ops="native", memory="1MB")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GENMOTE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ModelFileError, match=r"needs the re-laid weights in a file, and .* takes none: run genmote pack"
    ):
        Engine.load(tiny(), ops="native", memory="1GB")


def test_a_packed_file_that_was_swapped_is_told(tiny: Callable[..., Path]) -> None:
    file, ops = ModelFile.open(tiny("tiny-qwen2")), op_sets.load("native", threads=1)
    found = packed.loader(file, ops)
    assert isinstance(found, packed.Packed)
    copy = found.path.with_name("copy")
    copy.write_bytes(found.path.read_bytes())
    copy.rename(found.path)
    with pytest.raises(ModelFileError, match="changed while it was opened; load the model again"):
        Streaming(found)


# -- cutting ----------------------------------------------------------------------------------------------------------


class Shape:
    """What `cuts` looks at."""

    def __init__(self, number: int, rows: int, cols: int) -> None:
        self.id, self.shape, self.nbytes = number, (rows, cols), -(-rows // 16) * 16 * cols


@pytest.mark.parametrize("rows", [1, 16, 17, 160, 5000])
@pytest.mark.parametrize("size", [1, 3000, 10**9])
def test_cuts_cover_each_matrix_in_order(rows: int, size: int) -> None:
    pair = [Shape(3, rows, 64), Shape(4, rows, 64)]
    found = list(cuts(pair, size))
    assert all([part[0] for part in cut] == [3, 4] and len({part[1:] for part in cut}) == 1 for cut in found)
    ends = [0, *(cut[0][2] for cut in found)]
    assert [cut[0][1] for cut in found] == ends[:-1] and ends[-1] == -(-rows // 16)
    assert all(begin % 2 == 0 for begin in ends[:-1])


def test_what_stays_is_spread_evenly() -> None:
    for count in (1, 2, 7, 64, 100):
        order = [i for i, _ in spread([Chunk(ROWS, ())] * count)]
        assert sorted(order) == list(range(count))
        for taken in range(1, count):
            places = sorted(order[:taken])
            widest = max(b - a for a, b in zip([-1, *places], [*places, count], strict=True))
            assert widest <= 4 * count / taken + 2


def test_an_arrangement_that_is_refused_leaves_the_one_there_was(tiny: Callable[..., Path]) -> None:
    decoder, matrices = streamed(tiny(), 0)
    wanted = passes(decoder)
    with pytest.raises((ValueError, IndexError)):  # its last matrix is none
        matrices.stream.arrange([(0, [(0, 0, 1)]), (0, [(10**6, 0, 1)])], [0, 1], 1 << 20)
    assert same(passes(decoder), wanted)
