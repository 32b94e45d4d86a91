from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from genmote.generator.scores import networks  # noqa: E402


def waves(count: int, period: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (count, 1))
    wave = np.sin(phase + 2 * np.pi * np.arange(24) / period) + 0.2 * rng.standard_normal((count, 24))
    return wave[..., None].astype(np.float32)


@pytest.mark.slow
def test_a_recurrent_network_tells_two_distributions_apart_and_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "GRU_STEPS", 4)
    before = torch.random.get_rng_state()
    once, again = (networks.discriminative(waves(90, 12, 0), waves(90, 12, 1) + 1) for _ in range(2))
    assert once == again, "the seed fixes it"
    assert (torch.random.get_rng_state() == before).all(), "what the caller draws is left alone"
    monkeypatch.setattr(networks, "GRU_STEPS", 150)
    assert networks.discriminative(waves(300, 12, 0), waves(300, 12, 1)) < 0.15
    assert networks.discriminative(waves(300, 12, 0), waves(300, 6, 1)) > 0.4


@pytest.mark.slow
def test_context_fid_grows_with_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "ENCODER_STEPS", 60)
    real = waves(300, 12, 0)
    encoder = networks.Encoder(real, seed=1)
    assert encoder.embed(real).shape == (300, networks.EMBEDDING)
    same = networks.context_fid(encoder, real, waves(300, 12, 1))
    somewhat = networks.context_fid(encoder, real, waves(300, 10, 2))
    much = networks.context_fid(encoder, real, np.random.default_rng(0).normal(size=real.shape).astype(np.float32))
    assert networks.context_fid(encoder, real, real) < 1e-6 < same < somewhat / 2 < much / 4


def test_the_seed_fixes_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "ENCODER_STEPS", 3)
    real = waves(40, 12, 0)
    one, other, third = (networks.Encoder(real, seed=seed).embed(real) for seed in (1, 1, 2))
    assert (one == other).all() and (one != third).any()


def test_the_contrast_is_least_where_both_views_are_alike() -> None:
    draw = torch.Generator().manual_seed(0)
    views = 5 * torch.nn.functional.normalize(torch.randn(3, 4, 8, generator=draw), dim=2)
    alike, mixed = networks._alike(views, views), networks._alike(views, views[:, [1, 0, 3, 2]])
    assert alike < 0.1 < mixed
    # By its definition: of each of the 2K, minus the logarithm of the softmax over all others at its other view.
    first, second = torch.randn(2, 1, 3, 5, generator=draw)
    both = torch.cat([first, second], dim=1)[0]
    plain = []
    for n in range(6):
        like = {m: float(both[n] @ both[m]) for m in range(6) if m != n}
        plain.append(np.log(sum(np.exp(x) for x in like.values())) - like[(n + 3) % 6])
    assert float(networks._alike(first, second)) == pytest.approx(np.mean(plain), rel=1e-5)
