"""Experts on demand: the resident model's bits whatever the cache holds, counts that add up, faults that are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import ModelFileError, SpecError
from genmote.models import packed
from genmote.models.config import read_config
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import load_shape, make_model
from genmote.models.weights import GgufWeights, is_expert
from genmote.ops.protocol import Span
from genmote.runtime import footprint
from genmote.runtime.expert_bits import store_fewer
from genmote.runtime.experts import ExpertCache, Stored, open_experts, slot_bytes, stored_experts
from tests.conftest import settled_bytes

native_ops = pytest.importorskip("genmote.ops.native_ops", exc_type=ImportError)

TOKENS = np.random.default_rng(5).integers(0, 280, 48)


@pytest.fixture(scope="module", params=["tiny-olmoe", "tiny-qwen3moe", "tiny-mixtral", "widths of their own"])
def model(request: Any, tmp_path_factory: Any) -> Any:
    """A mixture; the last is one whose experts are wider in some layers than in others."""
    folder = tmp_path_factory.mktemp("experts")
    with pytest.MonkeyPatch.context() as patch:
        shape = request.param
        if shape == "widths of their own":
            shape, form = "tiny-qwen3moe", load_shape("tiny-qwen3moe")
            uneven = replace(form, layer_ffn_widths=tuple(32 * (1 + i % 3) for i in range(form.layers)))
            patch.setattr("genmote.models.make_model.load_shape", lambda name: uneven)
        make_model(shape, "q4_0", folder / "model.gguf", seed=3)
    ops = native_ops.create(threads=2)
    file = ModelFile.open(folder / "model.gguf")
    return file, ops, packed.pack(file, ops, folder / "model.packed")


def run(decoder: Decoder, pieces: Callable[[int], int] = lambda at: 1 if at > 20 else 7) -> np.ndarray:
    """Logits of TOKENS, fed in pieces."""
    cache, at, out = decoder.cache(64), 0, []
    while at < len(TOKENS):
        count = min(pieces(at), len(TOKENS) - at)
        logits = decoder.forward(TOKENS[at : at + count], [Span(cache, 0, count)], logits="all")
        assert logits is not None
        out.append(logits.copy())
        at += count
    return np.concatenate(out)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("settings", [{}, {"predict": False}, {"keep": False}, {"keep": False, "predict": False}])
def test_the_bits_are_the_resident_models(model: Any, settings: dict[str, bool], fused: bool) -> None:
    file, ops, found = model
    weights = GgufWeights(file, ops, found)
    wanted = run(Decoder(weights.config, weights, ops))
    total, each = weights.config.n_layers * weights.config.n_experts, open_experts(found, 1)[1].slot_bytes
    for slots in (1, 2, 3, total // 2, total, total + 5):
        decoder, cache = open_experts(found, slots * each, **settings)
        assert cache.slots == min(slots, total)
        decoder._block = decoder._block if fused else None
        np.testing.assert_array_equal(run(decoder), wanted, strict=True)
        counts = cache.counts
        assert counts.needed == counts.cached + counts.prefetched + counts.late + counts.missed > 0
        if settings == {} and slots >= total:
            assert counts.missed + counts.late + counts.prefetched <= total  # each is read once
            run(decoder)
            assert cache.counts.since(counts.copy()).missed == 0
        if not settings.get("keep", True) and not settings.get("predict", True):
            assert counts.cached == counts.prefetched == counts.late == 0 and counts.prefetch_bytes == 0


class Disk:
    """A reader that hands out pretended bytes: each read's offset, as text. Reads end when `step` is called, or waited
    for; those of `bad` offsets fail."""

    def __init__(self) -> None:
        self.reads: dict[int, tuple[int, Any, int, int]] = {}
        self.finished: set[int] = set()
        self.bad: set[int] = set()
        self.log: list[tuple[int, int]] = []  # offset, priority
        self.made = 0

    def submit(self, offset: int, nbytes: int, to: Any, at: int, priority: int) -> int:
        self.made += 1
        self.reads[self.made] = offset, to, at, priority
        self.log.append((offset, priority))
        return self.made

    def step(self) -> None:
        self.finished |= set(self.reads)

    def wait(self, ticket: int) -> None:
        offset, to, at, _ = self.reads.pop(ticket)
        self.finished.discard(ticket)
        if offset in self.bad:
            raise ModelFileError(f"cannot be read at byte {offset}")
        to[at : at + 8] = np.frombuffer(offset.to_bytes(8, "little"), np.uint8)

    def done(self, ticket: int) -> bool:
        return ticket in self.finished

    def cancel(self, ticket: int) -> None:
        self.reads.pop(ticket)
        self.finished.discard(ticket)

    def withdraw(self, ticket: int) -> bool:
        return not self.done(ticket) and self.reads.pop(ticket, None) is not None

    def hasten(self, ticket: int, priority: int) -> None:
        assert ticket in self.reads

    def check(self) -> None:
        pass


LAYERS, EXPERTS, SIZE = 3, 8, 4096


def pretended(slots: int, **settings: Any) -> tuple[ExpertCache, Disk]:
    """A cache over a pretended disk, whose matrices are their own offsets in the file."""
    stored = [
        [
            Stored((((layer * EXPERTS + e) * SIZE, SIZE),), tuple(("F32", (1, 1), 0, 0) for _ in range(3)))
            for e in range(EXPERTS)
        ]
        for layer in range(LAYERS)
    ]
    disk = Disk()
    read = lambda type, shape, data: int.from_bytes(bytes(data[:8]), "little")  # noqa: E731
    return ExpertCache(stored, disk, read, slots, used=2, **settings), disk


def taken(cache: ExpertCache, layer: int, chosen: list[int]) -> list[int]:
    """Take experts, and check that each comes once and is the right one."""
    got = [each for some in cache.take(layer, np.array([chosen])) for each in some]
    for expert, matrices in got:
        assert matrices == ((layer * EXPERTS + expert) * SIZE,) * 3
    assert sorted(expert for expert, _ in got) == sorted(set(chosen))
    return [expert for expert, _ in got]


def choices(seed: int, count: int) -> Iterator[tuple[int, list[int]]]:
    """A token's pass after another: (layer, two experts), some much more often than others."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(EXPERTS, 0.5), LAYERS)
    for _ in range(count):
        for layer in range(LAYERS):
            yield layer, rng.choice(EXPERTS, 2, replace=False, p=share[layer]).tolist()


@pytest.mark.parametrize("slots", [2, 3, 7, 12, 24])
def test_replacement_is_that_of_a_plain_simulation(slots: int) -> None:
    """Without reading ahead: what is dropped is what was chosen by the smallest decayed share of the tokens."""
    cache, disk = pretended(slots, predict=False)
    held: set[tuple[int, int]] = set()
    uses = {(layer, e): [0.0, 0.0] for layer in range(LAYERS) for e in range(EXPERTS)}
    frequency = dict.fromkeys(uses, 0.0)
    hits = misses = 0
    for layer, chosen in choices(3, 300):
        for expert in range(EXPERTS):
            long, short = uses[layer, expert]
            long, short = 0.99 * long + 0.01 * (expert in chosen), 0.5 * short + 0.5 * (expert in chosen)
            uses[layer, expert] = [long, short]
            frequency[layer, expert] = 0.8 * long + 0.2 * short
        needed = {(layer, e) for e in chosen}
        hits += len(needed & held)
        misses += len(needed - held)
        taken(cache, layer, chosen)
        now = {(int(a), int(b)) for a, b in np.argwhere(cache.where >= 0)}
        assert needed <= now and len(now) == min(slots, len(held | needed))
        stayed = [frequency[key] for key in (held & now) - needed]
        assert max((frequency[key] for key in held - now), default=0) <= min(stayed, default=1) + 1e-6
        held = now
    assert (cache.counts.cached, cache.counts.missed) == (hits, misses)
    assert cache.counts.demand_bytes == misses * SIZE == len(disk.log) * SIZE
    assert cache.counts.passes == 300


def test_history_does_not_depend_on_how_rows_are_fed() -> None:
    rows = np.random.default_rng(2).integers(0, EXPERTS, (40, 2))
    one, many = pretended(24, predict=False)[0], pretended(24, predict=False)[0]
    for row in rows:
        list(one.take(0, row[None]))
    for part in np.split(rows, [7, 8, 30]):
        list(many.take(0, part))
    np.testing.assert_allclose(one.worth, many.worth, rtol=1e-12)


def test_a_frequent_expert_outlives_a_recent_one() -> None:
    cache, _ = pretended(3, predict=False)
    for _ in range(20):
        taken(cache, 0, [0, 1])
    for expert in (2, 3, 4, 5):
        taken(cache, 0, [expert, 0])
    assert cache.where[0, 0] >= 0 and cache.where[0, 1] >= 0


def test_what_is_read_ahead_is_counted_by_when_it_came() -> None:
    cache, disk = pretended(6)
    guess = np.zeros((1, EXPERTS), np.float32)
    guess[0, [4, 6]] = 0.5
    cache.ahead(0, guess)
    assert {offset // SIZE for offset, priority in disk.log if priority > 0} >= {4, 6}
    assert taken(cache, 0, [4, 6]) in ([4, 6], [6, 4])  # under way: waited for
    assert (cache.counts.late, cache.counts.missed) == (2, 0)
    guess[:] = 0
    guess[0, [1, 2]] = 0.5
    cache.ahead(1, guess)
    disk.step()
    taken(cache, 1, [1, 3])
    assert (cache.counts.prefetched, cache.counts.missed) == (1, 1)
    taken(cache, 1, [1, 3])
    assert cache.counts.cached == 2
    assert cache.counts.needed == 6 and cache.counts.hit_rate == 0.5


def test_a_disk_that_does_not_keep_up_gets_only_likely_guesses() -> None:
    """The best guess is certain; the second is just above where the choice ends."""
    guess = np.full((1, EXPERTS), 0.01, np.float32)
    guess[0, [3, 4, 5]] = 0.50, 0.20, 0.16

    def asked(cache: ExpertCache, disk: Disk) -> set[int]:
        cache.ahead(2, guess)
        return {offset // SIZE % EXPERTS for offset, _ in disk.log}

    assert asked(*pretended(6)) == {3, 4}
    cache, disk = pretended(6)
    for _ in range(20):  # each time what was read ahead is waited for
        cache.ahead(0, np.eye(EXPERTS, dtype=np.float32)[[0]])
        taken(cache, 0, [0, 1])
        cache._abandon(int(cache.where[0, 0]))
    assert cache.lateness > 0.05
    disk.log.clear()
    assert asked(cache, disk) == {3}


def test_memory_is_given_back_and_taken_again(model: Any) -> None:
    """Between passes, down to what one row needs: the bits stay, and the process's memory follows."""
    decoder, cache = open_experts(model[2], 1 << 30)
    wanted = run(decoder)
    whole = cache.nbytes
    assert cache.shrink(1) == cache.slot_bytes and cache.nbytes == whole - cache.slot_bytes
    cache.shrink(whole)
    assert cache.nbytes == cache.used * cache.slot_bytes
    assert not cache.shrink(1)
    np.testing.assert_array_equal(run(decoder), wanted)
    assert (cache.where >= 0).sum() <= cache.used
    assert cache.grow(2 * cache.slot_bytes + 1) == 2 * cache.slot_bytes
    np.testing.assert_array_equal(run(decoder), wanted)
    assert cache.grow(whole) == whole - (cache.used + 2) * cache.slot_bytes
    np.testing.assert_array_equal(run(decoder), wanted)
    assert cache.nbytes == whole


def test_memory_is_given_back_in_whole_pages(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system's pages are larger than the file's blocks, it takes back nothing less (EINVAL)."""
    monkeypatch.setattr("mmap.PAGESIZE", 16384)
    decoder, cache = open_experts(model[2], 1 << 30)
    wanted = run(decoder)
    given: list[tuple[int, int]] = []

    class Map:
        def madvise(self, advice: int, at: int, count: int) -> None:
            assert at % 16384 == 0 and count % 16384 == 0
            given.append((at, count))

    cache.map = Map()  # type: ignore[assignment]
    assert cache.shrink(1 << 30) == sum(count for _, count in given) > 0
    np.testing.assert_array_equal(run(decoder), wanted)
    planned = footprint.weights(model[0]).expert
    assert planned % 16384 == 0 and cache.slot_bytes <= planned <= cache.slot_bytes + 16384


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_slot_is_planned_for_the_largest_expert(share: float, tmp_path: Path) -> None:
    """Where some are stored in fewer bits the others are larger than a layer's average."""
    make_model("tiny-mixtral", "q8_0", tmp_path / "model.gguf", seed=3)
    file = ModelFile.open(tmp_path / "model.gguf")
    config = read_config(file)
    change = np.random.default_rng(0).random((config.n_layers, config.n_experts))
    store_fewer(file, tmp_path / "fewer.gguf", change, "q4_0", share)
    fewer = ModelFile.open(tmp_path / "fewer.gguf")
    found = packed.pack(fewer, native_ops.create(threads=1), tmp_path / "fewer.packed")
    planned, stored = footprint.weights(fewer), stored_experts(found)
    assert slot_bytes(stored) <= planned.expert <= slot_bytes(stored) + 2 * footprint.PAGE
    whole = [each.nbytes for layer in stored for each in layer]
    assert len(set(whole)) == 2 and planned.experts == pytest.approx(sum(whole), abs=64 * 3 * len(whole))


def test_a_wrong_guess_is_not_read_any_more() -> None:
    cache, disk = pretended(6)
    guess = np.zeros((1, EXPERTS), np.float32)
    guess[0, [1, 2]] = 0.5
    cache.ahead(1, guess)
    taken(cache, 1, [6, 7])
    assert not disk.reads and cache.counts.prefetch_bytes == 0 and cache.counts.missed == 2


def test_demand_goes_before_what_is_read_ahead() -> None:
    cache, disk = pretended(6)
    cache.ahead(0, np.eye(EXPERTS, dtype=np.float32)[[3]])
    taken(cache, 0, [5, 6])
    ahead = [priority for offset, priority in disk.log if offset // SIZE not in (5, 6)]
    demand = [priority for offset, priority in disk.log if offset // SIZE in (5, 6)]
    assert max(demand) < min(ahead)


def test_random_guesses_change_nothing_but_the_counts() -> None:
    """Whatever is guessed, and whenever reads end, each expert comes once, and is the right one."""
    rng = np.random.default_rng(11)
    for slots in (1, 2, 3, 5, 9, 24):
        cache, disk = pretended(slots)
        needed = 0
        for layer, chosen in choices(slots, 150):
            rows = rng.integers(1, 4)
            if rng.random() < 0.8:
                cache.ahead(layer, rng.dirichlet(np.full(EXPERTS, 0.2), rows).astype(np.float32))
            if rng.random() < 0.5:
                disk.step()
            taken(cache, layer, chosen)
            needed += 2
            held = cache.where[cache.where >= 0]
            assert len(set(held.tolist())) == len(held) == slots - len(cache.free)
            assert set(cache.tickets) <= set(held.tolist())
        assert cache.counts.needed == needed
        assert len(disk.reads) == sum(map(len, cache.tickets.values()))


def test_a_failed_read_is_told_and_leaves_a_sound_cache() -> None:
    cache, disk = pretended(4)
    disk.bad.add(5 * SIZE)
    with pytest.raises(ModelFileError, match="cannot be read at byte 20480"):
        taken(cache, 0, [2, 5])
    assert cache.where[0, 5] < 0
    disk.bad.clear()
    for layer, chosen in choices(1, 20):
        taken(cache, layer, chosen)
    assert not cache.busy.any()
    # One that was read ahead tells it when it is taken in.
    disk.bad.add((EXPERTS + 7) * SIZE)
    while cache.where[1, 7] >= 0:
        taken(cache, 2, np.random.default_rng(len(disk.log)).choice(EXPERTS, 2, replace=False).tolist())
    guess = np.zeros((1, EXPERTS), np.float32)
    guess[0, 7] = 1
    cache.ahead(1, guess)
    disk.step()
    with pytest.raises(ModelFileError):
        taken(cache, 1, [7, 0])
    disk.bad.clear()
    taken(cache, 1, [7, 0])


def test_a_file_that_changes_is_told(model: Any, tmp_path: Path) -> None:
    file, ops, found = model
    copy = tmp_path / "copy.packed"
    copy.write_bytes(found.path.read_bytes())
    other = packed._open(copy, file, ops)
    assert other is not None
    decoder, _ = open_experts(other, 2)
    run(decoder)
    with open(copy, "r+b") as out:
        out.seek(-10, 2)
        out.write(b"different!")
    cache = decoder.cache(8)
    with pytest.raises(ModelFileError, match="changed while its weights were being read"):
        decoder.forward(TOKENS[:3], [Span(cache, 0, 3)])
    assert cache.length == 0


def test_an_expert_is_one_read(model: Any) -> None:
    places = stored_experts(model[2])
    found = model[2]
    assert all(len(stored.runs) == 1 for layer in places for stored in layer)
    assert sum(is_expert(name) for name in found.places) == 3 * len(places) * len(places[0])


def test_a_model_without_experts_is_told(tmp_path: Path) -> None:
    make_model("tiny-llama", "q8_0", tmp_path / "model.gguf")
    ops = native_ops.create(threads=1)
    found = packed.pack(ModelFile.open(tmp_path / "model.gguf"), ops, tmp_path / "model.packed")
    with pytest.raises(SpecError, match=r"model.gguf has no experts to load on demand"):
        open_experts(found, 4)
    with pytest.raises(SpecError, match="0 slots for experts: wanted 1 or more"):
        pretended(0)


def test_an_engine_that_holds_half_of_the_experts_gives_the_resident_text(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner's bytes become slots, the other weights are pinned, and what it took is told."""
    from genmote import Engine
    from genmote.runtime import loading

    path = model[0].path
    with Engine.load(path, ops="native", threads=2) as engine:
        wanted = engine.generate([5, 6, 7, 8], max_tokens=24, ignore_eos=True).tokens
        assert engine.experts is None

    def half(*given: Any, **settings: Any) -> Any:
        made = planned(*given, **settings)
        return replace(made, expert_bytes=made.expert_bytes // 2)

    planned = loading.plan_for
    monkeypatch.setattr(loading, "plan_for", half)
    with Engine.load(path, ops="native", threads=2, memory=settled_bytes() + 500_000_000, context=64) as engine:
        assert engine.experts is not None and 1 < engine.experts.slots <= engine.experts.where.size // 2
        assert engine.generate([5, 6, 7, 8], max_tokens=24, ignore_eos=True).tokens == wanted
        counts = engine.experts.counts
        assert counts.passes == 24 and counts.missed > 0
        assert f"experts: {counts.needed} needed in 24 passes" in str(counts)
        assert counts.values()["hit_rate"] == round(counts.hit_rate, 4)


def test_experts_give_way_before_what_every_token_needs(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the memory is wanted by a growing text; they come again when there is room."""
    from genmote import Engine
    from genmote.runtime import plan as planning
    from genmote.runtime import streaming

    path = model[0].path
    made = planning.plan(model[0], memory=1 << 30, context=64, threads=2)
    assert made.streamed_bytes == 0 == made.ring_bytes
    made = replace(made, expert_bytes=made.expert_bytes * 3 // 4)
    with Engine.load(path, ops="native", threads=2) as engine:
        wanted = engine.generate([5, 6, 7, 8], max_tokens=24, ignore_eos=True).tokens
    monkeypatch.setattr("genmote.runtime.loading.plan_for", lambda *_, **__: made)
    with Engine.load(path, ops="native", threads=2, memory=1 << 30, context=64) as engine:
        stream, cache = engine.streaming, engine.experts
        assert stream is not None and cache is not None and stream.experts is cache
        pinned, slots = stream.pinned_bytes, cache.nbytes
        assert stream.streamed_bytes == 0
        room, resident = stream._room, 0
        assert room is not None
        monkeypatch.setattr(streaming, "MARGIN", 1)
        monkeypatch.setattr(streaming, "resident_bytes", lambda: resident)
        resident = room.budget_bytes  # no byte is left
        assert engine.generate([5, 6, 7, 8], max_tokens=24, ignore_eos=True).tokens == wanted
        assert cache.nbytes < slots
        resident = 1
        for _ in range(40):
            stream.begin(1, 1)
        assert (stream.pinned_bytes, stream.streamed_bytes, cache.nbytes) == (pinned, 0, slots)
