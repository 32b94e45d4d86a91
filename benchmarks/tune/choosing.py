"""What ways to choose examples are worth (`genmote/tune/select/`): accuracy with a part of the examples, beside all.

    python -m benchmarks.tune.choosing DATA --task agent --model smollm2-135m --seeds 5 --keep 10% --record out.jsonl

DATA holds the folders `home_llm_piles_en` (agent commands → service), `loghub_2k` (log line → system and template) and
`nsl_kdd_test` (flow → kind of attack). What learns is a linear head over the frozen
states of the model: each example is read by the model once, and a training then takes a second, so that many seeds
are possible. The ways' code is the package's own; only the probe that measures for them is the head's.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from genmote import records
from genmote.ops.protocol import Span
from genmote.runtime.engine import Engine
from genmote.spec import number
from genmote.tune.select._base import Indices, Reading, choose, how_many, names

ROUNDS, BATCH, RATE = 20, 16, 5e-3  # of a training of the head
PILOT, HELD_OUT = 240, 64  # steps of a pilot; examples that trials are judged by
KINDS = {
    "flood": "neptune smurf back teardrop pod land apache2 udpstorm processtable mailbomb worm",
    "scan": "satan ipsweep nmap portsweep mscan saint",
    "login": "guess_passwd ftp_write imap phf multihop warezmaster warezclient spy xlock xsnoop snmpguess "
    "snmpgetattack httptunnel sendmail named",
    "root": "buffer_overflow loadmodule rootkit perl sqlattack xterm ps",
}
Pair = tuple[str, str]


def agent(data: Path, random: np.random.Generator) -> Iterator[Pair]:
    """Each phrase of the pile, and each template with three devices of its type."""
    pile = data / "home_llm_piles_en"
    for row in _rows(pile / "pile_of_specific_actions.csv"):
        yield row["phrase"], row["service_name"]
    devices: dict[str, list[str]] = {}
    for row in _rows(pile / "pile_of_device_names.csv"):
        devices.setdefault(row["device_name"].split(".")[0], []).append(row["description"])
    for row in _rows(pile / "pile_of_templated_actions.csv"):
        kind, phrase = row["device_type"], row["phrase"]
        if phrase.count("<") == 1 and "<device_name>" in phrase and kind in devices:
            for _ in range(3):
                yield phrase.replace("<device_name>", str(random.choice(devices[kind]))), f"{kind}.{row['service']}"


def logs(data: Path, random: np.random.Generator) -> Iterator[Pair]:
    for path in sorted((data / "loghub_2k").glob("*/*_2k.log_structured.csv")):
        for row in _rows(path):
            yield row["Content"][:90], f"{path.parent.name} {row['EventId']}"


def flows(data: Path, random: np.random.Generator) -> Iterator[Pair]:
    kinds = {name: kind for kind, some in KINDS.items() for name in some.split()} | {"normal": "normal"}
    for r in _rows(data / "nsl_kdd_test" / "rows.csv"):
        told = f"{r['protocol_type']} {r['service']} {r['flag']} bytes {r['src_byts']} {r['dst_bytes']}"
        told += (
            f" login {r['logged_in']} count {r['count']} {r['srv_count']} error {r['serror_rate']} {r['rerror_rate']}"
        )
        yield told, kinds[r["label"]]


TASKS: dict[str, Callable[[Path, np.random.Generator], Iterator[Pair]]] = {"agent": agent, "logs": logs, "flows": flows}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


class Head:
    """A softmax over a linear map, learnt by Adam (Kingma & Ba 2014)."""

    def __init__(self, width: int, classes: int) -> None:
        self.weights, self.first, self.second = (np.zeros((width, classes)) for _ in range(3))

    def wrong(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Probabilities less what is right, (n, classes)."""
        scores = x @ self.weights
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        powers /= powers.sum(axis=1, keepdims=True)
        powers[np.arange(len(y)), y] -= 1
        return powers

    def right(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ self.weights).argmax(axis=1) == y

    @classmethod
    def learnt(cls, x: np.ndarray, y: np.ndarray, classes: int, steps: int, seed: int) -> Iterator[Head]:
        """The head after half of the steps, and after all."""
        head, random, order = cls(x.shape[1], classes), np.random.default_rng(seed), list[int]()
        for step in range(1, steps + 1):
            while len(order) < BATCH:
                order += random.permutation(len(x)).tolist()
            some, order = order[:BATCH], order[BATCH:]
            gradient = x[some].T @ head.wrong(x[some], y[some]) / BATCH
            head.first += 0.1 * (gradient - head.first)
            head.second += 0.001 * (gradient**2 - head.second)
            move = head.first / (1 - 0.9**step) / (np.sqrt(head.second / (1 - 0.999**step)) + 1e-8)
            head.weights -= RATE * (1 - (step - 1) / steps) * move
            if step in (steps // 2, steps):
                yield head


class HeadProbe:
    """Measures examples (x, y) by heads; what is held out is (u, v)."""

    def __init__(self, x: np.ndarray, y: np.ndarray, u: np.ndarray, v: np.ndarray, classes: int, seed: int) -> None:
        self.x, self.y, self.u, self.v, self.classes, self.seed = x, y, u, v, classes, seed
        random = np.random.default_rng(0)
        self.project = random.normal(size=(x.shape[1], 48)), random.normal(size=(classes, 16))

    def _reading(self, head: Head, of: Indices) -> Reading:
        wrong = head.wrong(self.x[of], self.y[of])
        losses = -np.log(1 + wrong[np.arange(len(of)), self.y[of]] + 1e-12)
        states = self.x[of].astype(np.float32)
        right, said = head.right(self.x[of], self.y[of]), self.y[of].astype(np.int32)[:, None]
        lengths = np.linalg.norm(wrong, axis=1)
        return Reading(losses, lengths, right, states, states.astype(np.float16)[:, None], said)

    def read(self, of: Indices) -> Reading:
        """By a head that has learnt a little, since one that has learnt nothing reads all alike."""
        return self.follow(of)[1]

    def follow(self, of: Indices) -> list[Reading]:
        some = of[np.random.default_rng([self.seed, 9]).permutation(len(of))[:96]]
        found = [self._reading(Head(self.x.shape[1], self.classes), of)]
        for head in Head.learnt(self.x[some], self.y[some], self.classes, PILOT, self.seed):
            found.append(self._reading(head, of))
            self.piloted = head
        return found

    def gradients(self, of: Indices) -> tuple[np.ndarray, np.ndarray]:
        self.follow(of)
        return self._gradients(self.x[of], self.y[of]), self._gradients(self.u, self.v)

    def _gradients(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        inputs, outputs = x @ self.project[0], self.piloted.wrong(x, y) @ self.project[1]
        return (inputs[:, :, None] * outputs[:, None, :]).reshape(len(y), -1)


def trained(x: np.ndarray, y: np.ndarray, classes: int, seed: int) -> Head:
    *_, head = Head.learnt(x, y, classes, max(2, len(x) * ROUNDS // BATCH), seed)
    return head


def states(model: str, texts: list[str]) -> np.ndarray:
    """The final state of each text's last token, each number of mean 0 and spread 1 over the texts, short enough."""
    found = []
    with Engine.load(model) as engine:
        for n, text in enumerate(texts):
            tokens = np.array(engine.tokenizer.encode(text + " ->"), np.int32)
            span = Span(engine.decoder.cache(len(tokens)), 0, len(tokens))
            found.append(engine.decoder.hidden(tokens, [span], rows="last")[0])
            if n % 100 == 99:
                print(f"{n + 1} of {len(texts)} read", file=sys.stderr)
    x = np.array(found, np.float64)
    return (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6) / np.sqrt(x.shape[1]) * 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", choices=TASKS, default="agent")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=number, default=0.1)
    parser.add_argument("--ways", default="+".join(["random", *(name for name in names() if name != "random")]))
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    random = np.random.default_rng(1)
    pairs = list(TASKS[asked.task](asked.data, random))
    pairs = [pairs[n] for n in random.permutation(len(pairs))[: asked.examples]]
    labels, y = np.unique([label for _, label in pairs], return_inverse=True)
    x = states(asked.model, [text for text, _ in pairs])
    words: dict[str, int] = {}
    texts = []
    for text, label in pairs:
        tokens = [words.setdefault(word, len(words)) for word in [*re.findall(r"\w+|\W", text), label]]
        texts.append((np.array(tokens), np.arange(len(tokens)) == len(tokens) - 1))
    for seed in range(asked.seeds):
        order = np.random.default_rng([seed, 1]).permutation(len(x))
        tested, rest = order[: len(x) // 4], order[len(x) // 4 :]
        aside = min(HELD_OUT, len(rest) // 5)
        held, some = rest[:aside], rest[aside:]
        count = how_many(asked.keep, len(rest))
        probe = HeadProbe(x[some], y[some], x[held], y[held], len(labels), seed)
        chosen: dict[str, np.ndarray] = {"all": rest}
        for way in asked.ways.split("+"):
            found = choose([texts[n] for n in some], count, way, seed=seed, probe=probe)
            chosen[way] = some[found.indices]
        for way, kept in chosen.items():
            right = trained(x[kept], y[kept], len(labels), seed).right(x[tested], y[tested])
            by_label = [float(right[y[tested] == label].mean()) for label in np.unique(y[tested])]
            values: dict[str, object] = {
                "task": asked.task,
                "way": way,
                "examples": len(rest),
                "kept": len(kept),
                "labels": len(labels),
            }
            values |= {
                "accuracy": round(float(right.mean()), 4),
                "accuracy_by_label": round(float(np.mean(by_label)), 4),
            }
            record = records.Record("bench.choosing", values, seed=seed)
            print(asked.task, seed, way, values["accuracy"], values["accuracy_by_label"], flush=True)
            if asked.record is not None:
                records.append(asked.record, record)


if __name__ == "__main__":
    main()
