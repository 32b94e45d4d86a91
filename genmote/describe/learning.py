"""The three stages of training, with PyTorch: steps, judgements, and a state from which a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from genmote import home
from genmote.describe import prompt
from genmote.describe.examples import Example
from genmote.describe.file import Found
from genmote.describe.network import Heads, Network
from genmote.errors import ExamplesError, SpecError, TrainingError
from genmote.fetch import Progress
from genmote.models import encoder
from genmote.models.backward import Batch
from genmote.models.decoder import Decoder
from genmote.models.encoder import Form
from genmote.models.gguf import ModelFile
from genmote.models.patches import Patches, number, patches
from genmote.models.tokenizer import load_tokenizer
from genmote.models.write_lora import write_lora
from genmote.runtime.threads import checked_threads
from genmote.signals.kinds import Signal
from genmote.tune.batches import chosen
from genmote.tune.settings import Tuning
from genmote.tune.workbench._model import Model, WorkbenchOps
from genmote.tune.workbench._passes import Passes
from genmote.tune.workbench.lora import Lora

if TYPE_CHECKING:
    from genmote.describe.train import Training

Tensor = torch.Tensor
STAGES = ("encoder", "projector", "adapter")
SHARES = {"encoder": 0.3, "projector": 0.15, "adapter": 0.5}  # of --minutes; the rest is for loading and judging
SAVE_S = 30.0
JUDGEMENTS = 8  # of a stage
JUDGED = {"encoder": 256, "projector": 24, "adapter": 24}  # held-out examples
WARM, LOWEST = 0.05, 0.05  # part of the steps in which the rate rises; part of the rate that is left at the end
SLOW = 0.1  # of the rate, by which the encoder's blocks learn beside the adapter
HELD_BYTES = 400 << 20  # of signals as the encoder reads them, kept


class Material:
    """Examples as the encoder and the language model read them."""

    def __init__(self, examples: Sequence[Example], file: ModelFile, form: Form, training: Training) -> None:
        self.examples, self.form = examples, form
        self.tokenizer = load_tokenizer(file)
        self.facts: prompt.Facts | None = None
        if training.facts:
            from genmote.describe.factline import line

            self.facts = line
        self._patches: dict[int, tuple[Signal, Patches]] = {}
        self._bytes = 0
        self._said: dict[int, tuple[list[list[int] | int], list[int]]] = {}

    def patches(self, signal: Signal) -> Patches:
        if (kept := self._patches.get(id(signal))) is not None:
            return kept[1]
        made = patches(signal, self.form.slots, self.form.join)
        if self._bytes + made.rows.nbytes < HELD_BYTES:
            self._patches[id(signal)] = signal, made
            self._bytes += made.rows.nbytes
        return made

    def said(self, index: int) -> tuple[list[list[int] | int], list[int]]:
        """An example's prompt, token ids and the numbers of its signals, and the answer's token ids."""
        if index not in self._said:
            example = self.examples[index]
            parts = prompt.tokens(self.tokenizer, prompt.pieces(example.signals, example.question, self.facts))
            self._said[index] = parts, prompt.answer(self.tokenizer, example.answer)
        return self._said[index]

    def rows(self, index: int) -> int:
        """How long an example is, as rows of the language model."""
        parts, answer = self.said(index)
        signals = self.examples[index].signals
        counts = [
            len(p) if not isinstance(p, int) else len(self.patches(signals[p]).spans_s) // self.form.join for p in parts
        ]
        return sum(counts) + len(answer)


class Learning:
    """One training. Afterwards `network` and the adapter hold the best that was seen."""

    def __init__(
        self,
        file: ModelFile,
        form: Form,
        base: Found | None,
        learnt: Sequence[Example],
        judged: Sequence[Example],
        training: Training,
        state: Path,
        notes: list[str],
    ) -> None:
        self.file, self.form, self.base, self.training, self.notes = file, form, base, training, notes
        self.learnt = Material(learnt, file, form, training)
        self.judged = Material(judged, file, form, training)
        self.network = Network(form, self._first())
        self.heads = Heads(form, training.seed)
        self.tuning = Tuning(
            rank=training.rank, on=training.on, seed=training.seed, base=None if base is None else base.adapter
        )
        self.model: Model | None = None
        self.lora: dict[str, Tensor] = {}
        self.weights: Any = None  # the language model's, with the adapter
        self.stage, self.step, self.spent_s = 0, 0, 0.0
        self.figures: dict[str, Any] = {}
        self.curve: list[tuple[int, float]] = []
        self.best = math.inf
        self.kept: list[Tensor] = []
        self.optimiser: torch.optim.Optimizer | None = None
        self.state_path = state
        self.key = _key(file, base, learnt, judged, training)
        self._steps = dict(
            zip(STAGES, (training.encoder_steps, training.projector_steps, training.steps), strict=True)
        )
        self._fitting = list(range(len(learnt)))

    def _first(self) -> dict[str, NDArray[np.float32]]:
        if self.base is not None:
            own = encoder.read_form(self.base.encoder)
            if own != self.form:
                raise SpecError(
                    f"{self.base.encoder.path.name} has another form ({own}) than is asked for ({self.form}): give the "
                    "--width, --ffn, --slots, --join and --bridge that it was made with, and its language model"
                )
            return {name: self.base.encoder.tensor(name) for name in self.form.shapes()}
        table = self.file.tensor("token_embd.weight")
        from genmote.models.config import read_config

        size = float(np.sqrt(np.mean(table[:: max(1, len(table) // 4096)] ** 2))) * read_config(
            self.file
        ).embedding_scale
        return encoder.fresh(self.form, self.training.seed, size)

    # -- the whole of it -----------------------------------------------------------------------------------------------
    def go(self, progress: Progress) -> dict[str, Any]:
        """Train to the end; figures for the card."""
        threads = torch.get_num_threads()
        torch.set_num_threads(checked_threads(self.training.threads))
        try:
            state = self._read_state()
            self.stage = 0 if state is None else int(state["stage"])
            while self.stage < len(STAGES):
                name = STAGES[self.stage]
                if self._steps[name]:
                    self._begin(name, progress)
                    if state is not None:
                        self._restore(state)
                    self._run(name, progress)
                state = None
                self.stage, self.step, self.spent_s = self.stage + 1, 0, 0.0
            self._language(progress)  # the adapter is written, also where it has learnt nothing
        finally:
            torch.set_num_threads(threads)
        return self.figures

    def _begin(self, name: str, progress: Progress) -> None:
        self.curve, self.best, self.step, self.spent_s = [], math.inf, 0, 0.0
        rate = self.training.rate
        groups: list[dict[str, Any]]
        if name == "encoder":
            rate = self.training.encoder_rate
            groups = [{"params": [*self.network.parameters(), *self.heads.parameters()]}]
        else:
            self._language(progress)
            bridge = self.network.bridge()
            groups = [{"params": bridge}]
            if name == "adapter":
                others = [p for p in self.network.parameters() if not any(p is own for own in bridge)]
                groups += [{"params": list(self.lora.values())}, {"params": others, "slow": True}]
        for group in groups:
            group["lr"] = rate * (SLOW if group.setdefault("slow", False) else 1)
        everything = [*self.network.parameters(), *self.heads.parameters(), *self.lora.values()]
        for parameter in everything:
            parameter.requires_grad_(False)
        for parameter in self._parameters(groups):
            parameter.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        self.kept = [p.detach().clone() for p in self._parameters(groups)]

    @staticmethod
    def _parameters(groups: Sequence[dict[str, Any]]) -> list[Tensor]:
        return [parameter for group in groups for parameter in group["params"]]

    @property
    def parameters(self) -> list[Tensor]:
        assert self.optimiser is not None
        return self._parameters(self.optimiser.param_groups)

    def _language(self, progress: Progress) -> None:
        """Load the language model as floats, with an adapter; and leave out what is too long for it."""
        if self.model is not None:
            return
        progress("loading the language model", 0, 0)
        self.model = Model(self.file, WorkbenchOps(), packed=False)
        lora = Lora()
        self.weights, self.lora = lora.prepare(self.model, self.tuning)
        self._fitting = self._short(self.learnt)
        self._short_judged = self._short(self.judged)
        if not self._fitting:
            raise ExamplesError(
                f"no example fits {self.training.context} tokens: use a larger --context, or fewer slots"
            )
        if left := len(self.learnt.examples) - len(self._fitting):
            self.notes.append(f"{left} of {len(self.learnt.examples)} examples are longer than --context: left out")

    def _short(self, material: Material) -> list[int]:
        return [n for n in range(len(material.examples)) if material.rows(n) <= self.training.context]

    def _run(self, name: str, progress: Progress) -> None:
        total = self._steps[name]
        limit_s = math.inf if self.training.minutes is None else 60 * self.training.minutes * SHARES[name]
        spent, began, saved = self.spent_s, time.monotonic(), time.monotonic()
        every = max(1, total // JUDGEMENTS)
        assert self.optimiser is not None
        try:
            while self.step < total and self.spent_s < limit_s:
                done = max(self.step / total, self.spent_s / limit_s)
                for group in self.optimiser.param_groups:
                    rate = self.training.encoder_rate if name == "encoder" else self.training.rate
                    group["lr"] = rate * _rate(done) * (SLOW if group["slow"] else 1)
                self.optimiser.zero_grad(set_to_none=True)
                loss = self._learn(name)
                if not math.isfinite(loss):
                    raise TrainingError(f"the loss is {loss} in step {self.step + 1} of the {name}: use a lower rate")
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimiser.step()
                self.step += 1
                self.spent_s = spent + time.monotonic() - began
                expected = total
                if limit_s < math.inf:
                    expected = min(total, max(self.step, round(self.step * limit_s / max(self.spent_s, 1e-9))))
                progress(f"training the {name}", self.step, expected)
                if self.step % every == 0 or self.step == total:
                    self._judge(name)
                if time.monotonic() - saved > SAVE_S:
                    self._save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            self._save()
            raise
        except FloatingPointError as fault:
            raise TrainingError(f"{fault} in step {self.step + 1} of the {name}: use a lower rate") from None
        if not self.curve or self.curve[-1][0] < self.step:
            self._judge(name)
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(kept)
        self.figures[name] = {
            "steps": self.step,
            "seconds": round(self.spent_s, 1),
            "held_out_nats": round(self.best, 4),
            "curve": [[step, round(loss, 4)] for step, loss in self.curve],
            **(self._choices() if name == "encoder" else {}),
        }
        self._save(done=True)

    # -- the encoder alone ---------------------------------------------------------------------------------------------
    def _learn(self, name: str) -> float:
        training, place = self.training, STAGES.index(name)
        if name == "encoder":
            count = len(self.learnt.examples)
            some = chosen(count, min(training.encoder_batch, count), self.step, training.seed * 4 + place)
            loss = self._asked(self.learnt, some)[0]
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())
        picks = chosen(len(self._fitting), min(training.batch, len(self._fitting)), self.step, training.seed * 4 + place)
        passes = Passes(self._decoder(name), recompute=False, logit_rows=64)
        return passes.step(self._batch(self.learnt, [self._fitting[n] for n in picks]), 0)

    def _asked(self, material: Material, some: Sequence[int]) -> tuple[Tensor, int, int]:
        """Mean loss of what the heads say of some examples; of how many the choice was right, and of how many there was
        one. An example without choices has the other answers for choices."""
        examples = [material.examples[n] for n in some]
        embeddings = self._embeddings(material, examples)
        found = self.heads(embeddings, [example.question for example in examples])
        answers = list(dict.fromkeys(e.answer for e in examples if not e.choices and not math.isfinite(e.value)))
        losses, right, asked = [], 0, 0
        for one, example in zip(found, examples, strict=True):
            if math.isfinite(example.value):
                target = torch.from_numpy(number(np.array(example.value)).astype(np.float32))
                losses.append(F.smooth_l1_loss(self.heads.number(one), target, beta=0.1) * 4)
                continue
            choices = list(example.choices) or answers
            if example.answer not in choices or len(choices) < 2:
                continue
            logits = self.heads.choices(one, choices)
            place = choices.index(example.answer)
            losses.append(F.cross_entropy(logits[None], torch.tensor([place])))
            if example.choices:
                right, asked = right + int(int(logits.argmax()) == place), asked + 1
        loss = torch.stack(losses).mean() if losses else 0 * found.sum()
        return loss, right, asked

    def _embeddings(self, material: Material, examples: Sequence[Example]) -> list[Tensor]:
        """The embeddings of each example's signals, one after the other; a signal of several is encoded once."""
        own: dict[int, tuple[int, Patches]] = {}
        for example in examples:
            for signal in example.signals:
                own.setdefault(id(signal), (len(own), material.patches(signal)))
        counts = [len(one.spans_s) // self.form.join for _, one in own.values()]
        parts = torch.split(self.network.embed([one for _, one in own.values()]), counts)
        return [torch.cat([parts[own[id(signal)][0]] for signal in example.signals]) for example in examples]

    @torch.no_grad()
    def _choices(self) -> dict[str, Any]:
        right = asked = 0
        for some in _chunks(range(min(JUDGED["encoder"], len(self.judged.examples)))):
            _, own, of = self._asked(self.judged, some)
            right, asked = right + own, asked + of
        return {"choices_right": round(right / asked, 4), "choices": asked} if asked else {}

    # -- with the language model ---------------------------------------------------------------------------------------
    def _decoder(self, name: str) -> Decoder:
        assert self.model is not None
        weights = self.weights if name == "adapter" else self.model.weights
        return Decoder(self.model.config, weights, self.model.ops, fused=False)

    def _batch(self, material: Material, some: Sequence[int]) -> Batch:
        """Some examples in one pass; `tokens` are embeddings (N, D), those of signals with their gradients."""
        assert self.model is not None
        decoder = self._decoder("projector")
        examples = [material.examples[n] for n in some]
        embeddings = self._embeddings(material, examples)
        rows, lengths, targets, weights = list[Tensor](), list[int](), list[NDArray[Any]](), list[NDArray[Any]]()
        learnt = sum(len(material.said(n)[1]) for n in some)
        for n, own in zip(some, embeddings, strict=True):
            parts, answer = material.said(n)
            held, at = list[Tensor](), 0
            for part in [*parts, answer[:-1]]:
                if isinstance(part, int):
                    count = len(material.patches(material.examples[n].signals[part]).spans_s) // self.form.join
                    held.append(own[at : at + count])
                    at += count
                elif part:
                    held.append(decoder.embed(part).detach())
            x = torch.cat(held)
            target, weight = np.zeros(len(x), np.int32), np.zeros(len(x), np.float32)
            target[len(x) - len(answer) :] = answer
            weight[len(x) - len(answer) :] = 1 / learnt
            rows.append(x)
            lengths.append(len(x))
            targets.append(target)
            weights.append(weight)
        tokens = cast(Any, torch.cat(rows))
        return Batch(tokens, tuple(lengths), np.concatenate(targets), np.concatenate(weights))

    @torch.no_grad()
    def _judge(self, name: str) -> None:
        if name == "encoder":
            parts = list(_chunks(range(min(JUDGED[name], len(self.judged.examples)))))
            losses = [float(self._asked(self.judged, some)[0]) * len(some) for some in parts]
            loss = sum(losses) / max(1, sum(map(len, parts)))
        else:
            passes = Passes(self._decoder(name), recompute=False, logit_rows=64)
            some = self._short_judged[: JUDGED[name]]
            loss = sum(passes.loss(self._batch(self.judged, part)) * len(part) for part in _chunks(some, 4))
            loss /= max(1, len(some))
        self.curve.append((self.step, loss))
        if loss < self.best:
            self.best = loss
            for kept, parameter in zip(self.kept, self.parameters, strict=True):
                kept.copy_(parameter)

    def write_adapter(self, path: Path, title: str) -> None:
        """The adapter as a file, whole or not at all."""
        assert self.model is not None
        numbers = {name: x.detach().numpy() for name, x in self.lora.items()}
        alpha = Lora().factor(self.tuning) * self.tuning.rank
        write_lora(path, self.model.config.architecture, numbers, alpha, **{"general.name": title})

    # -- a state to go on from -----------------------------------------------------------------------------------------
    def _save(self, *, done: bool = False) -> None:
        """What has been learnt, to go on from; `done`: the stage is over."""
        assert self.optimiser is not None
        state = {
            "key": self.key,
            "stage": self.stage + done,
            "step": 0 if done else self.step,
            "spent_s": 0.0 if done else self.spent_s,
            "best": math.inf if done else self.best,
            "curve": [] if done else self.curve,
            "figures": json.dumps(self.figures),
            "network": self.network.state_dict(),
            "heads": self.heads.state_dict(),
            "lora": {name: x.detach() for name, x in self.lora.items()},
            "kept": [] if done else self.kept,
            "optimiser": {} if done else self.optimiser.state_dict(),
        }
        try:
            with home.atomic_write(self.state_path, "wb") as out:
                torch.save(state, out)
        except OSError as fault:
            raise TrainingError(f"{self.state_path} cannot be written ({fault.strerror}): free space") from None

    def _read_state(self) -> dict[str, Any] | None:
        """What a killed run has left, where it is of this training: its numbers are taken."""
        if not self.state_path.exists():
            return None
        try:
            state = cast(dict[str, Any], torch.load(self.state_path, weights_only=True))
            if state["key"] != self.key:
                self.notes.append(f"{self.state_path.parent}: of another training; this one begins anew")
                return None
            figures = json.loads(state["figures"])
            self.network.load_state_dict(state["network"])
            self.heads.load_state_dict(state["heads"])
            stage, step = int(state["stage"]), int(state["step"])
        except Exception as fault:  # whatever a damaged file makes PyTorch raise
            raise TrainingError(
                f"{self.state_path}: is damaged ({type(fault).__name__}); take it away to begin anew"
            ) from None
        self.figures = figures
        told = f"the {STAGES[stage]}, step {step}" if stage < len(STAGES) else "the end"
        self.notes.append(f"goes on from {told}")
        if state["lora"]:
            self._language(lambda *told: None)
            with torch.no_grad():
                for name, numbers in state["lora"].items():
                    self.lora[name].copy_(numbers)
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on within a stage."""
        assert self.optimiser is not None
        if not state["optimiser"]:
            return
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.spent_s, self.best = int(state["step"]), float(state["spent_s"]), float(state["best"])
        self.curve = [(int(step), float(loss)) for step, loss in state["curve"]]
        self.kept = state["kept"]


def _chunks(some: Sequence[int], size: int = 16) -> list[list[int]]:
    return [list(some[at : at + size]) for at in range(0, len(some), size)]


def _rate(done: float) -> float:
    """The part of the rate when `done` of a stage is over: it rises, then falls as a cosine."""
    if done < WARM:
        return max(0.02, done / WARM)
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM) / (1 - WARM))))


def _key(
    file: ModelFile, base: Found | None, learnt: Sequence[Example], judged: Sequence[Example], training: Training
) -> str:
    """Names what a training is of: its settings, its models and its examples."""
    told = {k: str(v) for k, v in vars(training).items() if k not in ("threads", "minutes", "tasks", "confidence")}
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    found.update(file.sha256().encode() + (b"" if base is None else base.encoder.sha256().encode()))
    for example in [*learnt, *judged]:
        shapes = [len(signal) for signal in example.signals]
        found.update(f"{example.question}\0{example.answer}\0{example.group}\0{shapes}".encode())
    return found.hexdigest()
