"""The three stages of training, with PyTorch: steps, judgements, and a state from which a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from genmote import home
from genmote.describe import checking, drawn
from genmote.describe.examples import Example
from genmote.describe.facts import NO, YES
from genmote.describe.file import Found
from genmote.describe.material import Material, Talk, talks
from genmote.describe.network import Heads, Network
from genmote.errors import ExamplesError, SpecError, TrainingError
from genmote.fetch import Progress
from genmote.models import encoder
from genmote.models.backward import Batch
from genmote.models.config import read_config
from genmote.models.decoder import Decoder
from genmote.models.encoder import Form
from genmote.models.gguf import ModelFile
from genmote.models.patches import Patches, number
from genmote.models.write_lora import write_lora
from genmote.runtime.threads import checked_threads
from genmote.tune.batches import chosen
from genmote.tune.settings import Tuning
from genmote.tune.workbench._model import Model, WorkbenchOps
from genmote.tune.workbench._passes import Passes
from genmote.tune.workbench.lora import Lora

if TYPE_CHECKING:
    from genmote.describe.settings import Training

Tensor = torch.Tensor
T = TypeVar("T")
STAGES = ("encoder", "projector", "adapter")
SHARES = {"encoder": 0.3, "projector": 0.15, "adapter": 0.5}  # of --minutes; the rest is for loading and judging
SAVE_S = 30.0
JUDGEMENTS = 8  # of a stage
NEAR = 10.0  # how sharply an embedding is to lie at the words of one choice and not at another's
SEEN = 512  # signals by which an encoder's features are brought to one size
JUDGED = {"encoder": 256, "projector": 24, "adapter": 24}  # held-out examples
WARM, LOWEST = 0.05, 0.05  # part of the steps in which the rate rises; part of the rate that is left at the end
SLOW = 0.1  # of the rate, by which the encoder's blocks learn beside the adapter
# Questions of a signal, at most: for the encoder alone to encode it is what takes the time, and for the language model
# it and the facts are most of a prompt.
ASKED = {"encoder": 8, "projector": 3, "adapter": 3}
AT_ONCE = 2  # signals whose questions go through the language model together: what layers keep of more takes memory


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
        self.context = min(training.context, read_config(file).context_length)
        self.material = Material([*learnt, *judged], file, form, training)
        self.judged = self._to_judge(judged)
        self.learnt = _by_signals(learnt)
        self.network = Network(form, self._first())
        self.heads = Heads(form, training.seed)
        self.tuning = Tuning(
            rank=training.rank, on=training.on, seed=training.seed, base=None if base is None else base.adapter
        )
        self._table = torch.from_numpy(file.tensor("token_embd.weight"))
        self._middle = self._table[:: max(1, len(self._table) // 4096)].mean(dim=0)
        self._words: dict[str, Tensor] = {}
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
        before = (0, 0) if training.keep_encoder else (training.encoder_steps, training.projector_steps)
        self._steps = dict(zip(STAGES, (*before, training.steps), strict=True))

    def _to_judge(self, given: Sequence[Example]) -> list[Example]:
        """Examples to judge by, in an order of the seed: those given, and drawn ones, as large a part of them as of a
        step."""
        new = round(JUDGED["encoder"] * (self.training.drawn if given else 1))
        some = [*given, *islice(drawn.stream((1 << 31) + self.training.seed), new)]
        return [some[n] for n in np.random.default_rng([self.training.seed, 6]).permutation(len(some))]

    def _step_talks(self) -> list[Talk]:
        """What is asked in the step that comes: questions about some of the signals, in an order drawn anew each time
        round, and about others that are drawn for this step alone. What comes depends on nothing but the seed, the
        stage and the step."""
        name, seed = STAGES[self.stage], self.training.seed * 4 + self.stage
        count = self.training.encoder_batch if name == "encoder" else self.training.batch
        new = round(count * self.training.drawn) if self.learnt else count
        given = min(count - new, len(self.learnt))
        found: list[Talk] = []
        for n in chosen(len(self.learnt), given, self.step, seed) if given else []:
            order = np.random.default_rng([seed, 7, self.step, n]).permutation(len(self.learnt[n]))
            found.append(tuple(self.learnt[n][m] for m in order[: ASKED[name]]))
        return found + list(islice(talks(drawn.stream(seed * 1_000_003 + self.step, each=ASKED[name])), new))

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
        size = (
            float(np.sqrt(np.mean(table[:: max(1, len(table) // 4096)] ** 2))) * read_config(self.file).embedding_scale
        )
        some = {id(signal): signal for talk in self.learnt for example in talk for signal in example.signals}
        if not some:
            some = {
                id(one): one
                for talk in islice(talks(drawn.stream(self.training.seed)), SEEN)
                for one in talk[0].signals
            }
        order = np.random.default_rng([self.training.seed, 9]).permutation(len(some))[:SEEN]
        signals = list(some.values())
        return encoder.fresh(self.form, self.training.seed, size, [self.material.patches(signals[n]) for n in order])

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
            if name == "adapter" and self.training.keep_encoder:
                groups = [{"params": list(self.lora.values())}]
            elif name == "adapter":
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
        """Load the language model as floats, with an adapter."""
        if self.model is not None:
            return
        progress("loading the language model", 0, 0)
        self.model = Model(self.file, WorkbenchOps(), packed=False)
        lora = Lora()
        self.weights, self.lora = lora.prepare(self.model, self.tuning)
        fitting = [tuple(self._short(talk)) for talk in self.learnt]
        if left := sum(map(len, self.learnt)) - sum(map(len, fitting)):
            self.notes.append(f"{left} examples are longer than --context: left out")
        self.learnt = [talk for talk in fitting if talk]
        self.short_judged = self._short(self.judged)[: JUDGED["projector"]]
        if not self.short_judged or not (self.learnt or self.training.drawn):
            most = read_config(self.file).context_length
            raise ExamplesError(
                f"no example fits {self.context} tokens (the language model takes {most}): use a larger --context, or "
                "fewer slots"
            )

    def _short(self, examples: Sequence[Example]) -> list[Example]:
        return [example for example in examples if self.material.rows((example,)) <= self.context]

    def _run(self, name: str, progress: Progress) -> None:
        total = self._steps[name]
        limit_s = math.inf if self.training.minutes is None else 60 * self.training.minutes * SHARES[name]
        spent, began, saved = self.spent_s, time.monotonic(), time.monotonic()
        done = max(self.step / total, self.spent_s / limit_s)
        assert self.optimiser is not None
        try:
            while self.step < total and self.spent_s < limit_s:
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
                before, done = done, max(self.step / total, self.spent_s / limit_s)
                if int(done * JUDGEMENTS) > int(before * JUDGEMENTS):
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
        some = self._step_talks()
        if name == "encoder":
            loss = self._asked([example for talk in some for example in talk])[0]
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())
        some = [talk for one in some if (talk := self.material.fitting(one, self.context))]
        passes, whole = Passes(self._decoder(name), recompute=False, logit_rows=64), self._weight(some)
        return sum(passes.step(self._batch(few, whole), 0) for few in _chunks(some, AT_ONCE))

    def _weight(self, some: Sequence[Talk]) -> float:
        """What the tokens of all answers count together, each by the root of its answer's length: else long reports
        are nearly all that is learnt."""
        return sum(len(part) ** 0.5 for talk in some for part, said in self.material.said(talk) if said)  # type: ignore[arg-type]

    def _asked(self, examples: Sequence[Example]) -> tuple[Tensor, int, int]:
        """Mean loss of what the heads say of some examples; of how many the choice was right, and of how many there was
        one. An example without choices has the other answers for choices."""
        embeddings = self._embeddings(examples)
        found = self.heads(embeddings, [example.question for example in examples])
        answers = list(dict.fromkeys(e.answer for e in examples if not e.choices and not math.isfinite(e.value)))
        losses, right, asked = [], 0, 0
        for one, own, example in zip(found, embeddings, examples, strict=True):
            if math.isfinite(example.value):
                target = torch.from_numpy(number(np.array(example.value)).astype(np.float32))
                losses.append(F.smooth_l1_loss(self.heads.number(one), target, beta=0.1) * 4)
                continue
            choices = list(example.choices) or answers
            meant = checking.mentioned(example.answer, example.choices) if example.choices else {example.answer}
            if not meant or len(choices) < 2:
                continue
            logits = self.heads.choices(one, choices)
            target = torch.tensor([(choice in meant) / len(meant) for choice in choices])
            losses.append(F.cross_entropy(logits[None], target[None]))
            if example.choices and example.choices != (YES, NO):
                near = NEAR * F.normalize(own.mean(dim=0), dim=0) @ self._directions(choices).T
                losses.append(F.cross_entropy(near[None], target[None]))
            if example.choices:
                right, asked = right + (choices[int(logits.argmax())] in meant), asked + 1
        loss = torch.stack(losses).mean() if losses else 0 * found.sum()
        return loss, right, asked

    def _directions(self, choices: Sequence[str]) -> Tensor:
        """(len(choices), out) of length 1: where the language model has the words of each choice, from the mean of all
        its words. An embedding that lies there is read like the word: to learn that by steps of the language model
        takes many of them, and here it costs nothing."""
        for choice in choices:
            if choice not in self._words:
                tokens = self.material.tokenizer.encode(" " + choice, bos=False, special=False, start=False)
                self._words[choice] = F.normalize(self._table[tokens].mean(dim=0) - self._middle, dim=0)
        return torch.stack([self._words[choice] for choice in choices])

    def _embeddings(self, examples: Sequence[Example]) -> list[Tensor]:
        """The embeddings of each example's signals, one after the other; a signal of several is encoded once."""
        own: dict[int, tuple[int, Patches]] = {}
        for example in examples:
            for signal in example.signals:
                own.setdefault(id(signal), (len(own), self.material.patches(signal)))
        counts = [len(one.spans_s) // self.form.join for _, one in own.values()]
        parts = torch.split(self.network.embed([one for _, one in own.values()]), counts)
        return [torch.cat([parts[own[id(signal)][0]] for signal in example.signals]) for example in examples]

    @torch.no_grad()
    def _choices(self) -> dict[str, Any]:
        right = asked = 0
        for some in _chunks(self.judged[: JUDGED["encoder"]]):
            _, own, of = self._asked(some)
            right, asked = right + own, asked + of
        return {"choices_right": round(right / asked, 4), "choices": asked} if asked else {}

    # -- with the language model ---------------------------------------------------------------------------------------
    def _decoder(self, name: str) -> Decoder:
        assert self.model is not None
        weights = self.weights if name == "adapter" else self.model.weights
        return Decoder(self.model.config, weights, self.model.ops, fused=False)

    def _batch(self, some: Sequence[Talk], whole: float) -> Batch:
        """Some talks in one pass, of a step whose answers count `whole` together; the batch's `tokens` are embeddings
        (N, D), those of signals with their gradients."""
        assert self.model is not None
        decoder, material = self._decoder("projector"), self.material
        embeddings = self._embeddings([talk[0] for talk in some])
        rows, lengths, targets, weights = list[Tensor](), list[int](), list[NDArray[Any]](), list[NDArray[Any]]()
        for talk, own in zip(some, embeddings, strict=True):
            held, at, next_, counts = list[Tensor](), 0, list[int](), list[float]()
            for part, said in material.said(talk):
                if isinstance(part, int):
                    count = material.embeddings(talk[0].signals[part])
                    held.append(own[at : at + count])
                    at += count
                    next_ += [0] * count
                    counts += [0.0] * count
                elif part:
                    held.append(decoder.embed(part).detach())
                    next_ += part
                    counts += [said * len(part) ** -0.5 / whole] * len(part)
            rows.append(torch.cat(held)[:-1])  # nothing comes after the last answer
            lengths.append(len(next_) - 1)
            targets.append(np.array(next_[1:], np.int32))
            weights.append(np.array(counts[1:], np.float32))
        tokens = cast(Any, torch.cat(rows))
        return Batch(tokens, tuple(lengths), np.concatenate(targets), np.concatenate(weights))

    @torch.no_grad()
    def _judge(self, name: str) -> None:
        if name == "encoder":
            parts = _chunks(self.judged[: JUDGED[name]])
            loss = sum(float(self._asked(some)[0]) * len(some) for some in parts) / sum(map(len, parts))
        else:
            passes = Passes(self._decoder(name), recompute=False, logit_rows=64)
            singly: list[Talk] = [(example,) for example in self.short_judged]
            whole = self._weight(singly)
            loss = sum(passes.loss(self._batch(some, whole)) for some in _chunks(singly, AT_ONCE))
        self.curve.append((self.step, loss))
        if loss < self.best:
            self.best = loss
            for kept, parameter in zip(self.kept, self.parameters, strict=True):
                kept.copy_(parameter)

    def write_adapter(self, path: Path, title: str) -> None:
        """The adapter as a file of F16, whole or not at all."""
        assert self.model is not None
        numbers = {name: x.detach().numpy() for name, x in self.lora.items()}
        alpha = Lora().factor(self.tuning) * self.tuning.rank
        write_lora(path, self.model.config.architecture, numbers, alpha, type="F16", **{"general.name": title})

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


def _by_signals(examples: Sequence[Example]) -> list[Talk]:
    """Examples of the same signals together, in the order in which these first come."""
    found: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        found.setdefault(tuple(map(id, example.signals)), []).append(example)
    return [tuple(own) for own in found.values()]


def _chunks(some: Sequence[T], size: int = 16) -> list[list[T]]:
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
