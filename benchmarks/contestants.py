"""The contestants of a speed comparison, each one fresh process a sample: prefill and decode in tokens a second.

All do the same: load the model, warm up, then time the prompt (random tokens, one call, the last row's logits) and
the decode of random tokens one by one from an empty cache. Loading, tokenizing and sampling are not in the figures,
but for `xllamacpp`, whose server samples greedily as it goes.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import process
from benchmarks.peers import Peer
from benchmarks.process import ContestantError
from benchmarks.record import SEED


@dataclass(frozen=True)
class Work:
    """One sample's work: the file, threads, prompt tokens to prefill and tokens to decode (0: leave that part out)."""

    model: Path
    threads: int
    prefill: int
    decode: int
    timeout_s: float = 900


@dataclass(frozen=True)
class Speed:
    """Tokens a second, and the energy of the whole child process where the system tells it."""

    prefill: float | None
    decode: float | None
    peak_rss_bytes: int
    energy_mj: float | None
    others_cores: float | None = None
    isa: str | None = None


Contestant = Callable[[Work], Speed]


def genmote(isa: str | None = None) -> Contestant:
    """Ours, with the instruction set that it chooses itself or the one that is named."""

    def sample(work: Work) -> Speed:
        # AVX2 alone, as the peer was built: this processor may have the 256-bit VNNI that the set takes where it can.
        env = {"GENMOTE_ISA": isa, "GENMOTE_AVXVNNI": "0"} if isa else {}
        sizes = ("--prefill", str(work.prefill), "--decode", str(work.decode), "--seed", str(SEED))
        words = ("speed", str(work.model), "--threads", str(work.threads), *sizes)
        ran = process.python("benchmarks.ours", *words, env=env, timeout_s=work.timeout_s)
        told = ran.json()
        speeds = told["prefill_tokens_per_s"], told["decode_tokens_per_s"]
        return Speed(*speeds, told["peak_rss_bytes"], ran.energy_mj, ran.others_cores, told["isa"])

    return sample


def llama_bench(peer: Peer) -> Contestant:
    """llama.cpp's own benchmark program, one repetition after its warm-up, all else at its defaults."""

    def sample(work: Work) -> Speed:
        sizes = ["-p", str(work.prefill), "-n", str(work.decode), "-t", str(work.threads)]
        command = [peer.program("llama-bench"), "-m", str(work.model), *sizes, "-r", "1", "-o", "json"]
        ran = process.run(command, timeout_s=work.timeout_s)
        tests = {"prefill" if test["n_gen"] == 0 else "decode": float(test["avg_ts"]) for test in ran.json()}
        return Speed(tests.get("prefill"), tests.get("decode"), ran.peak_rss_bytes, ran.energy_mj, ran.others_cores)

    return sample


def xllamacpp() -> Contestant:
    """The `xllamacpp` wheel (llama.cpp compiled for AVX2), through its server's own timings."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ContestantError("xllamacpp is not installed")

    def sample(work: Work) -> Speed:
        sizes = ("--prefill", str(work.prefill), "--decode", str(work.decode), "--seed", str(SEED))
        words = (str(work.model), "--threads", str(work.threads), *sizes)
        ran = process.python("benchmarks.xllama", *words, timeout_s=work.timeout_s)
        told = ran.json()
        return Speed(
            told["prefill_tokens_per_s"],
            told["decode_tokens_per_s"],
            ran.peak_rss_bytes,
            ran.energy_mj,
            ran.others_cores,
        )

    return sample


def interleave(ours: Contestant, peer: Contestant, work: Work, repeats: int) -> tuple[list[Speed], list[Speed]]:
    """Samples A B, B A, A B, … so that a drift of the machine falls on both alike."""
    first: list[Speed] = []
    second: list[Speed] = []
    for number in range(repeats):
        turns = [(ours, first), (peer, second)]
        for contestant, samples in turns if number % 2 == 0 else reversed(turns):
            samples.append(contestant(work))
    return first, second


def disturbance(samples: Sequence[Speed | process.Ran]) -> float | None:
    """Median of the cores that other programs kept busy, or None where the system does not tell."""
    known = [sample.others_cores for sample in samples if sample.others_cores is not None]
    return statistics.median(known) if known else None


def total_energy(samples: list[Speed]) -> float | None:
    """Median energy of a sample's process in millijoules, or None where the system does not tell it."""
    known = [sample.energy_mj for sample in samples if sample.energy_mj is not None]
    return statistics.median(known) if known else None
