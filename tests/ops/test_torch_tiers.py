"""Tiers: where layers are put, that they are right whatever is asked for in which order, that copies go ahead."""

from __future__ import annotations

import importlib
import time
from concurrent.futures import Future

import numpy as np
import pytest

from genmote.errors import BudgetError
from genmote.ops import quant

torch = pytest.importorskip("torch")
tiers_of = importlib.import_module("genmote.ops.torch_tiers")

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")),
]


def model(layers: int, seed: int = 0) -> tuple[list, list[np.ndarray]]:
    """Parts of made layers, each of two matrices, and the layers' bytes."""
    rng = np.random.default_rng(seed)
    parts, files = [], []
    for index in range(layers):
        made = tiers_of.Parts()
        raws = []
        for name, shape in (("Q4_0", (8, 64 + 32 * (index % 3))), ("F16", (4, 8))):
            raw = quant.quantize(name, rng.standard_normal(shape).astype(np.float32))
            made.add(name, shape, raw.size)
            raws.append(raw)
        file = np.zeros(made.nbytes, np.uint8)
        for part, raw in zip(made.parts, raws, strict=True):
            file[part.offset : part.offset + part.nbytes] = raw
        parts.append(made)
        files.append(file)
    return parts, files


def make(parts: list, files: list[np.ndarray], device: str, ram: tuple[int, ...], slow_s: float = 0.0):  # type: ignore[no-untyped-def]
    def read(layer: int, into) -> None:  # type: ignore[no-untyped-def]
        time.sleep(slow_s)
        into.numpy()[:] = files[layer]

    return tiers_of.Tiers(torch.device(device), torch.float32, dict(enumerate(parts)), ram, read)


def wanted(parts: list, files: list[np.ndarray], layer: int) -> list[np.ndarray]:
    return [
        quant.dequantize(part.type, files[layer][part.offset : part.offset + part.nbytes], part.shape)
        for part in parts[layer].parts
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ram", [(), (0, 2, 4), (0, 1, 2, 3, 4)])
def test_the_floats_are_right_in_any_order(device: str, ram: tuple[int, ...]) -> None:
    parts, files = model(5)
    tiers = make(parts, files, device, ram)
    matrices = {i: [tiers_of.TieredMatrix(tiers, i, part, True) for part in parts[i].parts] for i in range(5)}
    order = [*range(5), *range(5), *np.random.default_rng(1).integers(0, 5, 60).tolist()]
    for layer in order:
        for matrix, numbers in zip(matrices[layer], wanted(parts, files, layer), strict=True):
            assert matrix.shape == numbers.shape
            assert np.array_equal(matrix.weight.cpu().numpy(), numbers)
    disk = [layer for layer in range(5) if layer not in ram]
    assert (tiers.counts.disk_bytes > 0) == bool(disk)
    tiers.close()


@pytest.mark.parametrize("device", DEVICES)
def test_layers_in_their_order_are_on_their_way_before_they_are_wanted(device: str) -> None:
    parts, files = model(6)
    tiers = make(parts, files, device, (0, 1, 2))
    for _ in range(4):
        for layer in range(6):
            tiers.floats(layer)
            tiers.floats(layer)  # its other matrices
    assert tiers.counts.layers == 24 and tiers.counts.demanded == 1  # the very first
    assert tiers.counts.copied_bytes >= 4 * sum(p.nbytes for p in parts)
    tiers.close()


def test_reading_and_computing_overlap() -> None:
    parts, files = model(6)
    tiers = make(parts, files, "cpu", (), slow_s=0.02)
    began = time.perf_counter()
    for _ in range(3):
        for layer in range(6):
            tiers.floats(layer)
            time.sleep(0.02)  # what the layer computes
    took = time.perf_counter() - began
    assert 18 * 0.02 < took < 18 * 0.032  # one after the other would take 18 * 0.04
    assert tiers.counts.waited_s < 0.6 * took
    tiers.close()


def test_one_streamed_layer_stays_once_it_is_there() -> None:
    parts, files = model(1)
    tiers = make(parts, files, "cpu", ())
    for _ in range(3):
        tiers.floats(0)
    assert tiers.counts.copied_bytes == parts[0].nbytes
    tiers.close()


def test_a_read_that_fails_is_told_and_the_next_one_is_right() -> None:
    parts, files = model(4)
    broken: set[int] = set()

    def read(layer: int, into) -> None:  # type: ignore[no-untyped-def]
        if layer in broken:
            raise OSError("the disk is gone")
        into.numpy()[:] = files[layer]

    tiers = tiers_of.Tiers(torch.device("cpu"), torch.float32, dict(enumerate(parts)), (), read)
    for _ in range(3):  # each time both slots come back
        broken.add(2)
        tiers.floats(0)
        tiers.floats(1)
        with pytest.raises(OSError, match="the disk is gone"):
            tiers.floats(2)
        with pytest.raises(OSError, match="the disk is gone"):
            tiers.floats(2)
        broken.clear()
        for layer in (2, 3, 0, 3, 1):
            first = parts[layer].parts[0]
            numbers = tiers.floats(layer)[: first.numbers].view(first.shape)
            assert np.array_equal(numbers.numpy(), wanted(parts, files, layer)[0])
    tiers.close()


def test_whoever_is_interrupted_while_a_layer_comes_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, files = model(4)
    tiers = make(parts, files, "cpu", (), slow_s=0.02)

    def interrupted(future: Future, timeout: float | None = None) -> None:  # type: ignore[type-arg]
        raise KeyboardInterrupt

    for layer in (0, 2, 0, 2, 1):  # more often than there are slots
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Future, "result", interrupted)
            tiers.floats(layer)
    for layer in (3, 0, 1, 2):
        first = parts[layer].parts[0]
        numbers = tiers.floats(layer)[: first.numbers].view(first.shape)
        assert np.array_equal(numbers.numpy(), wanted(parts, files, layer)[0])
    tiers.close()


# -- placement ---------------------------------------------------------------------------------------------------------


def sized(*nbytes: int) -> list:
    """Layers of one Q8_0 matrix each, 32 numbers in 34 bytes."""
    layers = []
    for size in nbytes:
        layers.append(tiers_of.Parts())
        layers[-1].add("Q8_0", (size // 34, 32), size)
    return layers


def test_all_is_on_the_device_where_it_fits() -> None:
    layers = sized(*[3400] * 9)
    floats = 4 * layers[0].numbers
    found = tiers_of.place(layers, 1000, 4, None, None)
    assert (found.device, found.ram, found.disk, found.ring_bytes) == (tuple(range(9)), (), (), 0)
    assert found.device_bytes == 1000 + 9 * floats
    assert len(tiers_of.place(layers, 1000, 4, found.device_bytes, 0).device) == 9
    assert len(tiers_of.place(layers, 1000, 4, found.device_bytes - 1, None).device) < 9


def test_a_placement_keeps_to_both_limits_and_wastes_neither() -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        layers = sized(*(34 * rng.integers(10, 60, 9)).tolist())
        least = tiers_of.place(layers, 500, 4, None, None)
        device = int(rng.integers(1, 2 * least.device_bytes))
        host = int(rng.integers(0, sum(x.nbytes for x in layers)))
        try:
            found = tiers_of.place(layers, 500, 4, device, host)
        except BudgetError:
            continue
        assert sorted((*found.device, *found.ram, *found.disk)) == list(range(9))
        assert found.device_bytes <= device
        resident = 4 * sum(layers[i].numbers for i in found.device)
        assert found.device_bytes == 500 + resident + found.ring_bytes
        assert found.ram_bytes <= host or not found.ram  # the staging of two layers is needed in any case


def test_pinned_memory_is_counted_in_powers_of_two() -> None:
    layers = sized(*[3400] * 9)  # 3456 bytes each, aligned: 4096 when pinned
    tight = tiers_of.place(layers, 0, 4, None, None).device_bytes - 1
    plain = tiers_of.place(layers, 0, 4, tight, None)
    pinned = tiers_of.place(layers, 0, 4, tight, None, pinned=True)
    assert plain.ram == pinned.ram and plain.ram_bytes == 3456 * len(plain.ram)
    assert pinned.ram_bytes == 4096 * len(pinned.ram)
    assert len(tiers_of.place(layers, 0, 4, tight, plain.ram_bytes, pinned=True).ram) < len(plain.ram)


def test_streamed_layers_lie_evenly_between_resident_ones() -> None:
    layers = sized(*[3400] * 12)
    one, slots = 4 * layers[0].numbers, tiers_of._ring_bytes(layers[:1], 4)
    for resident in (1, 2, 4, 6):
        found = tiers_of.place(layers, 0, 4, slots + resident * one, None)
        assert len(found.device) == resident
        away = np.diff([*found.ram, found.ram[0] + 12])
        assert away.max() - away.min() <= 1


def test_a_device_too_small_for_the_ring_is_refused_with_what_it_takes() -> None:
    layers = sized(*[3400] * 9)
    least = 1000 + tiers_of._ring_bytes(layers, 4)
    with pytest.raises(BudgetError, match=rf"device memory of {least - 1} bytes: .* take {least} bytes there"):
        tiers_of.place(layers, 1000, 4, least - 1, None)
    assert tiers_of.place(layers, 1000, 4, least, None).device == ()
