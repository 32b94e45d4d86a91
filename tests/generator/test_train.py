from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote import home
from genmote.errors import ModelFileError, SignalError, SpecError
from genmote.generator import file as model_files
from genmote.generator import learning
from genmote.generator.layout import joined
from genmote.generator.model import Generator
from genmote.generator.network import Network
from genmote.generator.train import train
from genmote.generator.walk import embedded
from genmote.models.gguf import ModelFile
from genmote.ops.protocol import Span
from genmote.signals.kinds import Series
from tests.generator.conftest import SETTINGS, doors, wave, waves

QUICK = replace(SETTINGS, steps=6, batch=512, context=96)


def weights(path: Path) -> dict[str, bytes]:
    file = ModelFile.open(path)
    return {name: file.raw(name).tobytes() for name in file.tensors}


def test_it_learns(trained: Path) -> None:
    card = model_files.card_of(ModelFile.open(trained))
    assert card["held_out_nats"] < card["chance_nats"] - 1
    assert card["recordings"] == 24 and card["labels"] == ["speed"] and card["licence"] == "not stated"


def test_a_seed_makes_the_same_model_again(tmp_path: Path) -> None:
    for name in "ab":
        train(waves(12, 100), tmp_path / f"{name}.gguf", QUICK)
    train(waves(12, 100), tmp_path / "c.gguf", replace(QUICK, seed=1))
    assert weights(tmp_path / "a.gguf") == weights(tmp_path / "b.gguf") != weights(tmp_path / "c.gguf")


def test_what_was_killed_goes_on_to_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(waves(12, 100), tmp_path / "whole.gguf", QUICK)
    monkeypatch.setattr(learning, "SAVE_S", -1.0)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("training") and done == 4:
            raise KeyboardInterrupt

    path = tmp_path / "cut.gguf"
    with pytest.raises(KeyboardInterrupt):
        train(waves(12, 100), path, QUICK, name="whole", progress=stop)
    assert not path.exists() and (tmp_path / "cut.gguf.work").is_dir()
    with home.held(tmp_path / "cut.gguf.work"), pytest.raises(SpecError, match=f"in use by process {os.getpid()}"):
        train(waves(12, 100), path, replace(QUICK, seed=1), name="whole")  # it would begin anew
    notes: list[str] = []
    train(waves(12, 100), path, QUICK, name="whole", notes=notes)
    assert "goes on after step 4 of 6" in notes
    assert weights(path) == weights(tmp_path / "whole.gguf")
    assert not (tmp_path / "cut.gguf.work").exists()


@pytest.mark.parametrize("damage", [b"", b"no state at all"])
def test_a_damaged_state_is_told(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "m.gguf.work").mkdir()
    (tmp_path / "m.gguf.work" / "state.pt").write_bytes(damage)
    notes: list[str] = []
    train(waves(12, 60), tmp_path / "m.gguf", replace(QUICK, steps=1), notes=notes)
    assert any("is damaged" in note and "begins anew" in note for note in notes)


@pytest.mark.parametrize("lost", ["weights", "kept", "figures"])
def test_of_a_state_with_a_part_lost_nothing_is_taken(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(learning, "SAVE_S", -1.0)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("training") and done == 2:
            raise KeyboardInterrupt

    quick, path = replace(QUICK, steps=3), tmp_path / "m.gguf"
    with pytest.raises(KeyboardInterrupt):
        train(waves(12, 60), path, quick, progress=stop)
    place = tmp_path / "m.gguf.work" / "state.pt"
    state = torch.load(place, weights_only=True)
    torch.save({**state, lost: state[lost][:-1]}, place)
    notes: list[str] = []
    train(waves(12, 60), path, quick, notes=notes)
    assert any("is damaged (ValueError); training begins anew" in note for note in notes)
    train(waves(12, 60), tmp_path / "whole.gguf", quick)
    assert weights(path) == weights(tmp_path / "whole.gguf")


def test_the_state_of_another_training_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "SAVE_S", -1.0)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("training"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(waves(12, 60), tmp_path / "m.gguf", QUICK, progress=stop)
    notes: list[str] = []
    train(waves(13, 60), tmp_path / "m.gguf", replace(QUICK, steps=1), notes=notes)
    assert any("of another training" in note for note in notes)


def test_training_and_running_compute_the_same(tmp_path: Path) -> None:
    """The network that learns, and the decoder over the op sets of a device, give the same nats."""
    import torch

    path = tmp_path / "m.gguf"
    train(waves(12, 100), path, replace(QUICK, type="F32"))
    layout = model_files.layout_of(ModelFile.open(path))
    network = Network(path, layout)
    signal = wave(3, 40)
    rows = joined([layout.header(signal), layout.rows(signal)])
    with torch.no_grad():
        tokens, asks, targets = (
            torch.from_numpy(x.astype(np.int64))[None] for x in (rows.tokens[:-1], rows.asks[1:], rows.tokens[1:])
        )
        wanted = network.losses(tokens, asks, targets).numpy()[0]
    for ops in ("numpy", None):
        model = Generator.load(path, ops=ops)
        x = embedded(model.decoder, rows.tokens[:-1], rows.asks[1:])
        logits = model.decoder.forward(x, [Span(model.decoder.cache(96), 0, len(x))], logits="all")
        assert logits is not None
        shares = logits - logits.max(axis=1, keepdims=True)
        nats = np.log(np.exp(shares).sum(axis=1)) - shares[np.arange(len(x)), rows.tokens[1:]]
        np.testing.assert_allclose(nats, wanted, atol=2e-3)


def test_it_goes_on_from_another_model(tmp_path: Path, trained: Path) -> None:
    card = train(waves(12, 200), tmp_path / "on.gguf", replace(QUICK, base=trained, steps=3, rate=1e-4))
    before = model_files.card_of(ModelFile.open(trained))["held_out_nats"]
    assert card["held_out_nats"] < before + 0.5  # it has not begun anew
    a, b = (Generator.load(p) for p in (trained, tmp_path / "on.gguf"))
    assert a.codec.state().keys() == b.codec.state().keys() and a.layout.context == b.layout.context


def test_what_a_base_knows_helps_with_new_channels(tmp_path: Path, trained: Path) -> None:
    """Numbers keep their meaning: after three steps on channels that it has never seen, it knows more than one that
    began anew knows after as many."""
    new = [replace(s, channels=("x", "y")) for s in waves(12, 200)]
    quick = replace(QUICK, steps=3, bins=32, context=192, batch=1024)
    on = train(new, tmp_path / "on.gguf", replace(quick, base=trained))
    anew = train(new, tmp_path / "anew.gguf", quick)
    assert on["channels"] == ["x", "y"] and on["held_out_nats"] < anew["held_out_nats"] - 0.1


def test_a_base_of_rows_learns_no_new_fields(tmp_path: Path, of_rows: Generator) -> None:
    other = [replace(doors(seed), labels={"house": "a"}) for seed in range(4)]
    assert of_rows.path is not None
    with pytest.raises(SpecError, match="only a model of bins can learn new ones; begin anew without --from"):
        train(other, tmp_path / "m.gguf", replace(QUICK, base=of_rows.path, labels=("house",)))


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ([], "recordings of kinds none: wanted some, all of one kind"),
        ([wave(1, 50), doors(1, 50)], "kinds Records, Series: wanted some, all of one kind"),
        ([wave(1, 40)], "tokens to learn from: wanted at least 256"),
    ],
)
def test_recordings_that_nothing_is_learnt_from(signals: list[Series], message: str, tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=message):
        train(signals, tmp_path / "m.gguf", QUICK)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 8}, "context=8: use 64 to 8192"),
        ({"minutes": 0.0}, "minutes=0.0: use more than 0"),
        ({"threads": 0}, "threads=0: use 1 to 1024"),
        ({"steps": -1}, "steps=-1, batch=512: use 0 or more"),
        ({"rate": 2.0}, "rate=2.0, dropout"),
        ({"seed": -1}, "seed=-1: use 0 to"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, float], message: str) -> None:
    assert any(message in fault for fault in replace(QUICK, **change).faults())


def test_a_context_without_room_is_refused(tmp_path: Path) -> None:
    names = tuple(f"c{n}" for n in range(50))
    wide = Series("wide", np.random.default_rng(0).standard_normal((50, 50)).astype(np.float32), 1.0, names, names)
    with pytest.raises(SpecError, match="context=64: wide has a header of 53 tokens, which leaves 8 for samples"):
        train([wide], tmp_path / "m.gguf", replace(QUICK, context=64))


def test_a_scale_goes_with_bins_alone(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="scale=level: goes with --codec bins alone, not patch"):
        train(waves(2), tmp_path / "m.gguf", replace(QUICK, bins=None, codec="patch", scale="level"))


@pytest.mark.parametrize(
    "change", [{"bins": 64}, {"codec": "patch"}, {"scale": "level"}, {"spacing": "quantile"}], ids=str
)
def test_what_a_base_has_decided_is_not_changed(change: dict[str, str], trained: Path, tmp_path: Path) -> None:
    (name, value), *_ = change.items()
    with pytest.raises(SpecError, match=f"{name}={value}: waves.gguf has {name} .*, and what goes on from it keeps it"):
        train(waves(2), tmp_path / "m.gguf", replace(QUICK, base=str(trained), **change))  # type: ignore[arg-type]


def test_the_card_of_what_goes_on_tells_what_it_is(trained: Path, tmp_path: Path) -> None:
    card = train(waves(12, 100), tmp_path / "m.gguf", replace(QUICK, base=str(trained), steps=1))
    assert card["settings"]["context"] == SETTINGS.context != QUICK.context
    assert "size" not in card["settings"] and card["settings"]["scale"] == "none"


def test_time_ends_a_training_of_many_steps_too(tmp_path: Path) -> None:
    """What was learnt till then is kept, and it is told; threads are as they were."""
    notes: list[str] = []
    before = learning.torch.get_num_threads()
    short = replace(SETTINGS, steps=5000, minutes=0.02, threads=before + 1)
    card = train(waves(4), tmp_path / "m.gguf", short, notes=notes)
    assert 1 <= card["steps"] < 5000 and f"0.02 minutes are over after {card['steps']} of 5000 steps" in notes
    assert card["best_step"] == card["steps"] and learning.torch.get_num_threads() == before


def test_no_number_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(Network, "losses", lambda self, *_: torch.full((2, 2), torch.nan, requires_grad=True))
    with pytest.raises(SpecError, match="loss is no number after 1 steps: use a lower --rate"):
        train(waves(12, 60), tmp_path / "m.gguf", QUICK)


def test_a_file_that_is_no_generator(tmp_path: Path, trained: Path) -> None:
    from genmote.models.gguf_write import write_gguf

    file = ModelFile.open(trained)
    kept = file.typed_metadata()
    tensors = [(i.name, i.type, i.shape, file.raw(i.name)) for i in file.tensors.values()]

    def written(**changes: object) -> ModelFile:
        said = {k: v for k, v in {**kept, **changes}.items() if v is not None}
        write_gguf(tmp_path / "x.gguf", said, tensors)
        return ModelFile.open(tmp_path / "x.gguf")

    with pytest.raises(ModelFileError, match="no generator of signals: make one with genmote signal train"):
        model_files.layout_of(written(**{"genmote.generator.version": None}))
    with pytest.raises(ModelFileError, match="generator of version 9, this genmote reads 1"):
        model_files.layout_of(written(**{"genmote.generator.version": np.uint32(9)}))
    with pytest.raises(ModelFileError, match="genmote.generator.clock; the file is damaged"):
        model_files.layout_of(written(**{"genmote.generator.clock": None}))
    with pytest.raises(ModelFileError, match="embeddings for .* tokens of its codec"):
        model_files.layout_of(written(**{"genmote.generator.clock": True}))
    with pytest.raises(ModelFileError, match="codec without"):
        model_files.layout_of(written(**{"genmote.codec.scale.edges": None, "genmote.codec.settings.bins": None}))
    assert model_files.card_of(written(**{"genmote.generator.card": "{"})) == {}


def test_the_card_is_plain(trained: Path) -> None:
    from genmote.generator import card

    said = model_files.card_of(ModelFile.open(trained))
    page = card.page(said)
    assert "24 recordings" in page and "speed" in page and "not stated" in page
    assert json.dumps(said)
