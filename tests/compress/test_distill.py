"""Distillation: its loss and optimiser against plain ones, what learns and what stays, a killed run that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from genmote.compress import Calibration, Recipe, compress
from genmote.compress.adam import Adam
from genmote.compress.layers import Model, save, write
from genmote.compress.steps import distill as module
from genmote.compress.steps._base import Sight
from genmote.compress.steps.distill import Distill
from genmote.compress.steps.prune_channels import PruneChannels
from genmote.compress.steps.rtn import Rtn
from genmote.compress.teacher import ROWS, Divergence, taught
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile

SHORT = Distill(tokens=16 * 4 * 32, batch=4, at_once=2, length=32, measured=4, rate=2e-3, top=32)
SMALL = Calibration(windows=4, length=32)


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_the_loss_is_the_divergence_over_the_likeliest_and_the_rest(cap: float) -> None:
    draw = torch.Generator().manual_seed(0)
    rows, width, vocab, top = ROWS + 7, 6, 40, 5
    final = torch.randn(rows, width, generator=draw, requires_grad=True)
    head = 2 * torch.randn(vocab, width, generator=draw)
    logs, ids = torch.topk(torch.log_softmax(3 * torch.randn(rows, vocab, generator=draw), dim=1), top)
    loss = Divergence.apply(final, head, cap, ids, logs)
    (2 * loss).backward()
    ours, final.grad = final.grad, None

    z = final @ head.T
    q = torch.log_softmax(cap * torch.tanh(z / cap) if cap else z, dim=1)
    shown = torch.zeros(rows, vocab, dtype=torch.bool).scatter_(1, ids, True)
    q_rest = q.exp().masked_fill(shown, 0).sum(dim=1).log()
    p_rest = 1 - logs.exp().sum(dim=1)
    plain = (logs.exp() * (logs - q.gather(1, ids))).sum() + (p_rest * (p_rest.log() - q_rest)).sum()
    (2 * plain).backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-4)
    assert torch.allclose(ours, final.grad, atol=1e-4 * float(final.grad.abs().max()))


def test_the_teacher_tells_the_engines_likeliest(llama: Path) -> None:
    from genmote.runtime.engine import Engine

    tokens = np.random.default_rng(0).integers(0, 200, (2, 20)).astype(np.int32)
    found = taught(llama, tokens, 8, lambda *_: None)
    with Engine.load(llama) as engine:
        from genmote.runtime.prompt import Rows
        from genmote.runtime.session import Session

        logits = Session(engine).extend(Rows(tokens[1].tolist()), 0, 20, 20)
    assert logits is not None
    wanted = torch.log_softmax(torch.from_numpy(logits), dim=1)
    assert np.array_equal(found.ids[1], np.argsort(-logits, axis=1, kind="stable")[:, :8])
    assert np.allclose(found.logs[1], wanted.gather(1, torch.from_numpy(found.ids[1]).long()), atol=0.01)


def test_adam_steps_as_the_plain_one_does_within_bfloat16() -> None:
    draw = torch.Generator().manual_seed(0)
    start, goal = torch.randn(50, generator=draw), torch.randn(50, generator=draw)
    ours, plain = start.clone().requires_grad_(), start.clone().requires_grad_()
    adam, theirs = Adam([ours]), torch.optim.Adam([plain], lr=0.02, betas=(0.9, 0.95), eps=1e-12)
    for _ in range(60):
        for x in (ours, plain):
            F.mse_loss(x, goal).backward()
        assert adam.step(0.02, longest=1e9) == pytest.approx(float(plain.grad.norm()), rel=0.05)
        theirs.step()
        theirs.zero_grad()
        assert ours.grad is None
    moved = (plain - start).abs().mean()
    assert (ours - plain).abs().mean() < 0.02 * moved
    assert {x.dtype for x in (*adam.first, *adam.second)} == {torch.bfloat16}


def test_a_long_gradient_is_shortened() -> None:
    for factor in (1.0, 1000.0):
        x = torch.zeros(4, requires_grad=True)
        adam = Adam([x])
        (factor * x.sum()).backward()
        assert adam.step(0.1, longest=1.0) == pytest.approx(2 * factor)
        assert float(adam.first[0].float().norm()) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("train", ["all", "norms", "adapters"])
def test_what_is_asked_for_learns_and_the_rest_stays(llama: Path, tmp_path: Path, train: str) -> None:
    cut = PruneChannels(share=0.5, multiple=16)
    step = replace(SHORT, train=train, rank=4, rate=1e-2 if train == "norms" else 2e-3)
    made = compress(llama, tmp_path / "out.gguf", Recipe((cut, step), SMALL), work=tmp_path / "work")
    figures = made.steps[1]["figures"]
    assert figures["kl_after"] < 0.97 * figures["kl_before"]
    before, after = ModelFile.open(next((tmp_path / "work").glob("01-*.gguf"))), ModelFile.open(made.path)
    assert list(before.tensors) == list(after.tensors)
    changed = {name for name in before.tensors if not np.array_equal(before.tensor(name), after.tensor(name))}
    norms = {name for name in before.tensors if "norm" in name}
    matrices = {name for name in before.tensors if name.startswith("blk.")} - norms
    assert changed == (norms if train == "norms" else norms | matrices)
    if train == "adapters":
        name = "blk.0.ffn_up.weight"
        assert np.linalg.matrix_rank(after.tensor(name) - before.tensor(name), tol=1e-4) == 4


def test_hidden_states_are_learned_too(llama: Path, tmp_path: Path) -> None:
    cut = PruneChannels(share=0.5, multiple=16)
    errors = []
    for weight in (0.0, 10.0):
        work = tmp_path / str(weight)
        recipe = Recipe((cut, replace(SHORT, hidden=weight)), SMALL)
        made = compress(llama, tmp_path / "out.gguf", recipe, work=work)
        states = []
        for path in (llama, made.path):
            whole = module.Whole(path)
            with torch.no_grad():
                states.append(list(whole.states(np.arange(64, dtype=np.int32).reshape(2, 32)))[-1])
        errors.append(float((states[0] - states[1]).square().mean()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("train", ["all", "adapters"])
def test_pruned_zeros_stay(llama: Path, tmp_path: Path, train: Literal["all", "adapters"]) -> None:
    model = Model(ModelFile.open(llama))
    site = model.block(1, None).sites["blk.1.ffn_up.weight"]
    pruned = site.weight.clone()
    pruned[::2, 1:] = 0
    site.replace(pruned)
    save(tmp_path / "over.gguf", [site], [])
    model.overlay(tmp_path / "over.gguf")
    write(tmp_path / "sparse.gguf", model.file)
    sight = Sight(None, llama, llama, tmp_path, lambda *_: None)
    replace(SHORT, rate=3e-4, train=train).compress_model(tmp_path / "sparse.gguf", tmp_path / "out.gguf", sight)
    after = ModelFile.open(tmp_path / "out.gguf").tensor(site.name)
    assert np.array_equal(after == 0, pruned.numpy() == 0)
    assert not np.array_equal(after, pruned.numpy())


@pytest.mark.parametrize("train", ["all", "codes"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_S", 0.0)
    before = PruneChannels(share=0.5, multiple=16) if train == "all" else Rtn(type="Q4_1")
    recipe = Recipe((before, replace(SHORT, train=train, rate=2e-3 if train == "all" else 3e-4)), SMALL)
    compress(llama, tmp_path / "whole.gguf", recipe)

    def kill(what: str, done: int, total: int) -> None:
        if what == "distilling" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(llama, tmp_path / "resumed.gguf", recipe, progress=kill)
    assert not (tmp_path / "resumed.gguf").exists()
    seen = []
    compress(llama, tmp_path / "resumed.gguf", recipe, progress=lambda *told: seen.append(told))
    assert min(done for what, done, _ in seen if what == "distilling") == 7
    assert (tmp_path / "resumed.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_given_text_is_learned_from(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and again. " * 800, encoding="utf-8")
    made = compress(llama, tmp_path / "out.gguf", Recipe((replace(SHORT, text=text, tokens=512),), SMALL))
    assert len(made.steps[0]["figures"]["losses"]) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch=0: use 1 or more"),
        ({"tokens": 100}, "tokens=100: a step takes 8 windows of 256; use as many or more"),
        ({"rate": 0}, "rate=0: use more than 0, such as 2e-4"),
        ({"hidden": -1}, "hidden=-1: use 0 or more"),
        ({"length": 4}, "length=4: use windows of 16 tokens or more"),
        ({"train": "some"}, "train='some', wanted one of all, norms, adapters"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Recipe.of({"step": [{"use": "distill", **settings}]})


def test_a_loss_that_is_no_number_is_told(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has a loss that is no number; lower rate=1e"):
        compress(llama, tmp_path / "out.gguf", Recipe((replace(SHORT, rate=1e30),), SMALL))
    assert not (tmp_path / "out.gguf").exists()


def test_a_damaged_checkpoint_is_told(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_S", 0.0)

    def kill(what: str, done: int, total: int) -> None:
        if what == "distilling" and done == 2:
            raise KeyboardInterrupt

    recipe = Recipe((SHORT,), SMALL)
    with pytest.raises(KeyboardInterrupt):
        compress(llama, tmp_path / "out.gguf", recipe, progress=kill)
    (state,) = (tmp_path / "out.gguf.work").rglob("state.pt")
    state.write_bytes(b"nothing")
    with pytest.raises(SpecError, match="state.pt: is damaged; remove it"):
        compress(llama, tmp_path / "out.gguf", recipe)
