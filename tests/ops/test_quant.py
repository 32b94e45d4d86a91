"""Tensor types: sizes, errors, and codes that come back, against the reference decoder of the `gguf` package."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import SpecError
from genmote.ops import quant
from genmote.ops.quant import codec, fit

QUANTISED = [name for name in quant.codec_names() if quant.TYPES[name].block_size > 1]
# Root-mean-square error on a normal distribution of standard deviation 1. The bounds of the 4- and 5-bit types lie
# below what a scale that just covers the range gives (0.091 for Q4_0 and so on), so a search that does nothing fails.
RMS_BOUND = {
    "Q8_0": 0.0068,
    "Q6_K": 0.019,
    "Q5_0": 0.0455,
    "Q5_1": 0.0375,
    "Q5_K": 0.039,
    "IQ4_NL": 0.079,
    "Q4_0": 0.0895,
    "Q4_1": 0.0765,
    "Q4_K": 0.0785,
    "Q3_K": 0.153,
    "Q2_K": 0.305,
}


def normal(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


@pytest.mark.parametrize("name", quant.codec_names())
def test_sizes_and_decoding_are_those_of_the_reference(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    kind = quant.TYPES[name]
    reference = gguf.GGMLQuantizationType(kind.ggml_id)
    assert reference.name == name
    assert gguf.GGML_QUANT_SIZES[reference] == (kind.block_size, kind.block_bytes)
    # Random bytes are legal blocks of every type: all codes, all factors, all scales, NaN and infinity among them.
    rows, cols = 64, 2048
    raw = np.random.default_rng(1).integers(0, 256, quant.nbytes(name, (rows, cols)), dtype=np.uint8)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(raw.reshape(rows, -1), reference)
    got = quant.dequantize(name, raw, (rows, cols))
    assert np.array_equal(np.isnan(got), np.isnan(want))
    number = ~np.isnan(want)
    assert np.array_equal(got.view(np.uint32)[number], want.view(np.uint32)[number])


@pytest.mark.parametrize("name", ["Q8_0", "BF16", "F16", "F32"])
def test_encoding_is_the_reference_s_bytes_where_it_has_no_choice(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    x = normal(16, 512)
    want = gguf.quants.quantize(x, gguf.GGMLQuantizationType(quant.TYPES[name].ggml_id))
    assert np.array_equal(quant.quantize(name, x), want.reshape(-1).view(np.uint8))


def test_all_names_of_the_reference_are_known() -> None:
    gguf = pytest.importorskip("gguf")
    known = {kind.ggml_id: kind.name for kind in quant.TYPES.values()} | quant.UNSUPPORTED
    names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    assert {key: known.get(key) for key in names} == names


@pytest.mark.parametrize("name", QUANTISED)
def test_error_is_that_of_a_good_search(name: str) -> None:
    x = normal(64, 4096)
    raw = quant.quantize(name, x)
    back = quant.dequantize(name, raw, x.shape)
    assert np.sqrt(np.mean((back - x) ** 2)) < RMS_BOUND[name]


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_search_beats_covering_the_range(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(3).standard_t(4, (128, 1024)).astype(np.float32)
    kind = gguf.GGMLQuantizationType(quant.TYPES[name].ggml_id)
    plain = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    ours = quant.dequantize(name, quant.quantize(name, x), x.shape)
    assert np.mean((ours - x) ** 2) < 0.95 * np.mean((plain - x) ** 2)


@pytest.mark.parametrize("levels", [4, 8])
def test_symmetric_scale_is_close_to_the_best_of_all(levels: int) -> None:
    """Against brute force: the best of 4000 scales, by the same weighted error."""
    x = normal(32, 16, seed=5)
    x /= np.abs(x).max(axis=1, keepdims=True)
    weight = fit.weights_of(x)

    def error(scale: np.ndarray) -> np.ndarray:
        codes = np.clip(np.rint(x / scale[:, None]), -levels, levels - 1)
        return (weight * (x - codes * scale[:, None]) ** 2).sum(axis=1)

    tried = np.linspace(0.3, 2.0, 2000) / levels
    best = np.min([error(np.full(32, d)) for d in np.concatenate([tried, -tried])], axis=0)
    found = error(fit.symmetric(x, levels))
    assert found.mean() < 1.1 * best.mean()


def test_affine_fit_is_exact_on_numbers_that_lie_on_a_grid() -> None:
    codes = np.random.default_rng(2).integers(0, 16, (50, 32))
    codes[:, 0], codes[:, 1] = 0, 15
    x = (0.25 * codes - 1.5).astype(np.float32)
    assert np.array_equal(quant.dequantize("Q4_1", quant.quantize("Q4_1", x), x.shape), x)


@pytest.mark.parametrize("name", QUANTISED)
def test_unpacked_parts_make_the_numbers(name: str) -> None:
    x = normal(4, 512)
    raw = quant.quantize(name, x)
    codes, scale, offset = quant.unpack(name, raw)
    assert codes.dtype == np.int8
    numbers = codes.reshape(*scale.shape, -1) * scale[:, :, None]
    if offset is not None:
        numbers = numbers + offset[:, :, None]
    assert np.array_equal(numbers.reshape(x.shape), quant.dequantize(name, raw, x.shape))


@pytest.mark.parametrize("name", quant.codec_names())
def test_rows_are_those_of_the_matrix(name: str) -> None:
    x = normal(10, 512)
    raw = quant.quantize(name, x)
    rows = [7, 0, 7, 9]
    whole = quant.dequantize(name, raw, x.shape)
    assert np.array_equal(quant.dequantize_rows(name, raw, x.shape, rows), whole[rows])
    with pytest.raises(IndexError):
        quant.dequantize_rows(name, raw, x.shape, [10])


@pytest.mark.parametrize("name", quant.codec_names())
def test_pieces_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(5, 768)
    raw = quant.quantize(name, x)
    numbers = quant.dequantize(name, raw, x.shape)
    monkeypatch.setattr(codec, "PIECE", 512)
    assert np.array_equal(quant.quantize(name, x), raw)
    assert np.array_equal(quant.dequantize(name, raw, x.shape), numbers)


SIZES = st.floats(min_value=-42, max_value=3.9)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(QUANTISED),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    size=SIZES,
    shift=st.floats(-3, 3),
    sparse=st.booleans(),
)
def test_any_finite_row_comes_back(name: str, blocks: int, seed: int, size: float, shift: float, sparse: bool) -> None:
    """Zeros, subnormal numbers, one-sided and huge ones: the error stays within the type's step."""
    rng = np.random.default_rng(seed)
    kind = quant.TYPES[name]
    x = rng.standard_normal(blocks * kind.block_size) + shift
    if sparse:
        x *= rng.random(x.size) < 0.1
    x = (x * 10.0**size).astype(np.float32)
    back = quant.dequantize(name, quant.quantize(name, x), x.shape)
    peak = np.abs(x.reshape(blocks, -1)).max(axis=1)
    # The widest step of each type, as a share of its block's largest number (two-level scales round twice); a scale
    # below float16's range is lost whole: 2**-25 times the largest code, and the factor of a K type.
    step = {"Q8_0": 0.005, "Q6_K": 0.04, "Q5_0": 0.08, "Q5_1": 0.06, "Q5_K": 0.08, "IQ4_NL": 0.16, "Q4_1": 0.12}
    lost = 2.0**-25 * {"Q6_K": 32 * 128, "IQ4_NL": 128, "Q8_0": 128, "Q3_K": 128, "Q2_K": 60}.get(name, 32)
    lost *= 64 if name in ("Q4_K", "Q5_K") else 1
    bound = step.get(name, 0.75 if name == "Q2_K" else 0.35) * peak + lost
    assert (np.abs(back - x).reshape(blocks, -1).max(axis=1) <= bound).all()


@pytest.mark.parametrize("name", quant.codec_names())
def test_zeros_stay_zeros(name: str) -> None:
    assert not quant.dequantize(name, quant.quantize(name, np.zeros((2, 256))), (2, 256)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", quant.codec_names())
def test_numbers_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    x = normal(2, 256)
    x[1, 17] = bad
    with pytest.raises(SpecError, match=rf"cannot store {bad} as {name}: weights must be finite"):
        quant.quantize(name, x)


@pytest.mark.parametrize("name", [name for name in quant.codec_names() if name != "F32"])
def test_numbers_beyond_the_type_are_refused(name: str) -> None:
    x = np.zeros((1, 256), np.float32)
    x[0, 3] = np.finfo(np.float32).max
    message = "beyond the range of" if name in ("F16", "BF16") else "cannot hold numbers as large"
    with pytest.raises(SpecError, match=message):
        quant.quantize(name, x)


def test_f32_keeps_the_largest_number() -> None:
    x = np.full((1, 4), np.finfo(np.float32).max, np.float32)
    assert np.array_equal(quant.dequantize("F32", quant.quantize("F32", x), (1, 4)), x)


def test_errors_name_the_way_out() -> None:
    with pytest.raises(SpecError, match=r"rows of 576 numbers do not fit Q4_K, .* blocks of 256; use Q5_0"):
        quant.quantize("Q4_K", np.zeros((2, 576)))
    with pytest.raises(SpecError, match=r"tensor type 'Q9' is unknown; use one of F32,"):
        quant.nbytes("Q9", (1,))
    with pytest.raises(SpecError, match=r"tensor type IQ2_XXS \(id 16\) is not supported"):
        quant.by_id(16)
    with pytest.raises(SpecError, match=r"tensor type id 99 is not supported"):
        quant.by_id(99)
    with pytest.raises(SpecError, match=r"Q4_0 of shape \(2, 32\) takes 36 bytes; got 35"):
        quant.dequantize("Q4_0", np.zeros(35, np.uint8), (2, 32))
    with pytest.raises(SpecError, match=r"I32 tensors are carried along"):
        quant.quantize("I32", np.zeros((1, 1)))
    with pytest.raises(SpecError, match=r"F16 stores plain numbers; only Q8_0"):
        quant.unpack("F16", np.zeros(2, np.uint8))


def test_fallback_fits() -> None:
    for name in quant.codec_names():
        for cols in (40, 96, 512, 576):
            quant.nbytes(quant.fallback(name, cols), (3, cols))
    assert [quant.fallback(n, 576) for n in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")] == [
        "IQ4_NL", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0", "Q8_0",
    ]  # fmt: skip


def test_empty_and_one_dimensional() -> None:
    assert quant.dequantize("Q4_0", quant.quantize("Q4_0", np.zeros((0, 32))), (0, 32)).shape == (0, 32)
    assert quant.dequantize("Q8_0", quant.quantize("Q8_0", np.ones(64)), (64,)).shape == (64,)
    assert quant.nbytes("F32", ()) == 4


def test_memory_stays_near_the_result() -> None:
    import tracemalloc

    x = normal(256, 8192)
    raw = quant.quantize("Q4_K", x)
    tracemalloc.start()
    quant.dequantize("Q4_K", raw, x.shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    quant.quantize("Q4_K", x)
    peak_back = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes + (2 << 20)
    assert peak_back < raw.size + (8 << 20)


@pytest.mark.parametrize("name", QUANTISED)
def test_scales_and_codes_come_apart_and_together_again(name: str) -> None:
    layout = quant.layout(name)
    blocks = quant.quantize(name, normal(8, 512)).view(layout.record)
    scales, codes = layout.scales_of(blocks), layout.codes_of(blocks)
    assert np.array_equal(layout.pack(scales, codes).view(np.uint8), blocks.view(np.uint8))
    assert np.isin(codes, layout.levels).all() and list(layout.levels) == sorted(set(layout.levels.tolist()))
    assert codes.size == scales.values()[0].size * layout.group
    if layout.reach is not None:
        assert scales.factor is not None
        assert layout.reach[0] <= scales.factor.min() and scales.factor.max() <= layout.reach[1]


@pytest.mark.parametrize("name", QUANTISED)
def test_rounding_takes_the_nearest_level(name: str) -> None:
    """Against all levels tried, for numbers on and far beyond the range."""
    layout = quant.layout(name)
    x = 1.3 * normal(16, quant.TYPES[name].block_size, seed=4)
    scales = layout.fit_scales(x / 1.3)
    scale, offset = (None if part is None else np.repeat(part, layout.group, axis=1) for part in scales.values())
    values = layout.levels * scale[..., None] + (0 if offset is None else offset[..., None])
    codes = layout.round(x, scales) * scale + (0 if offset is None else offset)
    assert np.allclose(np.abs(codes - x), np.abs(values - x[..., None]).min(axis=-1), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in QUANTISED if name != "Q8_0"])
def test_scales_follow_the_weight_of_each_number(name: str) -> None:
    """Numbers that count more are stored better than without the weights, and by the weighted error it is a gain."""
    layout = quant.layout(name)
    x = normal(64, quant.TYPES[name].block_size, seed=6)
    weight = np.random.default_rng(7).exponential(1.0, x.shape).astype(np.float32) ** 3 + np.float32(1e-3)

    def error(scales: quant.Scales) -> float:
        blocks = layout.pack(scales, layout.round(x, scales))
        return float((weight * (quant.dequantize(name, blocks.view(np.uint8), x.shape) - x) ** 2).sum())

    assert error(layout.fit_scales(x, weight)) < 0.97 * error(layout.fit_scales(x))


def test_a_type_of_plain_numbers_has_no_layout() -> None:
    with pytest.raises(SpecError, match="F16 stores plain numbers; only Q8_0"):
        quant.layout("F16")
