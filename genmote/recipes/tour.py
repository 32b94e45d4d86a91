"""A tour: two real recordings are measured, and a small model tells their owner what the measurements say.

The numbers are measured by plain signal processing; the model only puts them into words, and what it says is checked
for numbers that nobody measured.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genmote.errors import TemplateError
from genmote.fetch import Progress, quiet
from genmote.signals import chart, recordings
from genmote.signals.heart import heart_rate
from genmote.signals.motion import motion, turns

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine
    from genmote.runtime.generation import Result
    from genmote.runtime.stream import Stream

CONTEXT = 512  # tokens of a question and its answer
SPARE_BYTES = 60_000_000  # what the program may take beside the model's file and the KV cache
NUMBER = re.compile(r"\d+(?:\.\d+)?")
SYSTEM = (
    "You explain measurements of a small device to its wearer. Use only the numbers given. Answer in two sentences."
)


@dataclass(frozen=True)
class Finding:
    """What was measured in one recording, the question about it, and a picture of it."""

    name: str
    title: str
    carrier: str  # the package that carries the recording, and its licence
    figures: dict[str, float]  # keys carry their units
    summary: tuple[tuple[str, str], ...]  # for people
    question: str  # with the measurements, as the model is asked
    picture: str  # SVG

    @property
    def asked(self) -> str:
        """The question without the measurements."""
        return asked(self.question)


def asked(question: str) -> str:
    """A question without its measurements."""
    return question.partition("\n")[0]


@dataclass(frozen=True)
class Budget:
    """Bytes that the tour may take at most."""

    file_bytes: int
    kv_bytes: int
    spare_bytes: int = SPARE_BYTES

    @property
    def total_bytes(self) -> int:
        return self.file_bytes + self.kv_bytes + self.spare_bytes


def pulse(progress: Progress = quiet) -> Finding:
    """Heart rate from a pulse sensor's recording."""
    (series,) = recordings.series("heart", progress=progress)
    signal = series.values[:, 0]
    found = heart_rate(signal, series.rate_hz)
    seconds = np.arange(len(signal)) / series.rate_hz
    beats = seconds[found.kept]
    near = (seconds >= beats[-1] - 12) & (seconds <= beats[-1] + 0.5)
    panels = [
        chart.Panel(
            "The whole recording; shaded where the beat is steady enough to be counted",
            seconds,
            signal,
            "seconds",
            "reflected light, counts",
            shades=_stretches(beats, 60 / found.slowest_bpm),
        ),
        chart.Panel(
            "Its last seconds: the beats that were found",
            seconds[near],
            signal[near],
            "seconds",
            "reflected light, counts",
            points=(beats, signal[found.kept]),
        ),
    ]
    subtitle = (
        f"{found.mean_bpm:.1f} beats a minute, {found.beats} beats in {found.usable_s:.0f} s; {_carrier('heart')}"
    )
    return Finding(
        name="heart",
        title=recordings.sample("heart").title,
        carrier=_carrier("heart"),
        figures={
            "mean_bpm": found.mean_bpm,
            "slowest_bpm": found.slowest_bpm,
            "fastest_bpm": found.fastest_bpm,
            "sdnn_ms": found.sdnn_ms,
            "rmssd_ms": found.rmssd_ms,
            "beats": found.beats,
            "usable_s": found.usable_s,
            "duration_s": found.duration_s,
        },
        summary=(
            (
                "heart rate",
                f"{found.mean_bpm:.1f} beats a minute, from {found.slowest_bpm:.1f} to {found.fastest_bpm:.1f}",
            ),
            ("variability", f"SDNN {found.sdnn_ms:.0f} ms, RMSSD {found.rmssd_ms:.0f} ms"),
            ("usable", f"{found.beats} beats in {found.usable_s:.0f} of {found.duration_s:.0f} s; the rest is noise"),
        ),
        question=(
            "Tell me what my heart rate was, and whether it lies in the usual resting range of 60 to 100 beats per "
            "minute.\n\nMeasurements of the pulse sensor:\n"
            f"Mean heart rate: {found.mean_bpm:.0f} beats per minute\n"
            f"Slowest: {found.slowest_bpm:.0f} beats per minute\n"
            f"Fastest: {found.fastest_bpm:.0f} beats per minute\n"
            f"Beats found: {found.beats} in {found.usable_s:.0f} seconds\n"
            f"Variability between beats: SDNN {found.sdnn_ms:.0f} ms, RMSSD {found.rmssd_ms:.0f} ms"
        ),
        picture=chart.svg("A pulse, and the beats found in it", subtitle, panels),
    )


def movement(progress: Progress = quiet) -> Finding:
    """Repetitions of an exercise from a smartwatch's acceleration: the first set of the first exercise asked for."""
    exercise, planned = "abduction", 20
    series = next(one for one in recordings.series("watch", progress=progress) if one.name == exercise)
    found = motion([series])
    repetitions = round(found.dominant_hz * found.duration_s)
    magnitude = np.linalg.norm(series.values[:, :3], axis=1)
    seconds = np.arange(len(magnitude)) / series.rate_hz
    subtitle = f"{repetitions} repetitions, one every {1 / found.dominant_hz:.1f} s; {_carrier('watch')}"
    marks = turns(series.values[:, :3], series.rate_hz, found.dominant_hz)
    points = (seconds[marks], magnitude[marks])
    panel = chart.Panel(
        "Acceleration, gravity included; a mark in each repetition", seconds, magnitude, "seconds", "g", points
    )
    return Finding(
        name="watch",
        title=f"Smartwatch at the wrist, one set of shoulder {exercise}, {found.duration_s:.0f} s at 50 Hz",
        carrier=_carrier("watch"),
        figures={
            "duration_s": found.duration_s,
            "mean_g": found.mean_g,
            "std_g": found.std_g,
            "peak_g": found.peak_g,
            "dominant_hz": found.dominant_hz,
            "repetitions": repetitions,
        },
        summary=(
            ("movement", f"{found.dominant_hz:.2f} Hz over {found.duration_s:.0f} s: {repetitions} repetitions"),
            ("acceleration", f"{found.mean_g:.2f} ± {found.std_g:.2f} g, at most {found.peak_g:.1f} g"),
        ),
        question=(
            "Tell me how many repetitions of the shoulder exercise the watch counted, and whether the plan of "
            f"{planned} is fulfilled.\n\nMeasurements of the watch:\n"
            f"Exercise: shoulder {exercise}\n"
            f"Repetitions: {repetitions}, one every {1 / found.dominant_hz:.1f} seconds"
        ),
        picture=chart.svg(f"A movement: shoulder {exercise}", subtitle, [panel]),
    )


FINDINGS: tuple[Callable[[Progress], Finding], ...] = (pulse, movement)


def budget(engine: Engine) -> Budget:
    """File + KV cache of the whole context (keys and values in 16 bits) + 60 MB."""
    size = 0 if engine.model_path is None else engine.model_path.stat().st_size
    row = sum(2 * 2 * layer.n_kv_heads * layer.head_dim for layer in engine.config.layers)
    return Budget(size, row * engine.context)


def prompt(engine: Engine, question: str) -> list[int]:
    """Token ids of the question in the model's own chat format."""
    if engine.chat_template is None:
        raise TemplateError("the demo asks questions, and this model has no chat template: use smollm2-135m")
    return engine.chat_prompt([{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}])


def ask(engine: Engine, question: str, max_tokens: int) -> Stream:
    """The model's answer, the likeliest token each time."""
    return engine.stream(prompt(engine, question), max_tokens=max_tokens)


def figures(engine: Engine, results: Sequence[Result]) -> dict[str, Any]:
    """Speed and memory of all answers together."""
    read = sum(result.prompt_tokens - result.cached_tokens for result in results)
    written = sum(max(0, result.decode_tokens - 1) for result in results)  # the first comes out of the prompt's pass
    prefill_s, decode_s = sum(result.prefill_s for result in results), sum(result.decode_s for result in results)
    return {
        "load_ms": engine.load_ms,
        "first_token_ms": results[0].first_token_ms,
        "prompt_tokens": read,
        "prefill_tokens_per_s": read / prefill_s if prefill_s else 0.0,
        "decode_tokens": sum(result.decode_tokens for result in results),
        "decode_tokens_per_s": written / decode_s if decode_s else 0.0,
        "peak_rss_bytes": engine.peak_rss_bytes,
        "ops": engine.ops_name,
        "threads": engine.threads,
    }


def invented(question: str, answer: str) -> list[str]:
    """Numbers of the answer that its question did not give."""
    given = {float(number) for number in NUMBER.findall(question)}
    return [number for number in NUMBER.findall(answer) if float(number) not in given]


class Company:
    """How busy other programs kept the machine since this was made: what takes the edge off a timing."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.monotonic(), _busy_s(), _own_s()

    def cores(self) -> float | None:
        """Cores that others kept busy on average; None where the system does not tell."""
        busy = _busy_s()
        if busy is None or self._busy is None:
            return None
        others = (busy - self._busy) - (_own_s() - self._own)
        return max(0.0, others) / max(1e-3, time.monotonic() - self._started)


def _busy_s() -> float | None:
    """Seconds of work of all cores since the machine started."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting
    except (OSError, ValueError, IndexError):
        return None


def _own_s() -> float:
    """Seconds of work of this process and its ended children."""
    return sum(os.times()[:4])


def _carrier(name: str) -> str:
    about = recordings.sample(name)
    (part,) = about.parts
    return f"from the package {part.package} {part.version} ({about.licence})"


def _stretches(beats: np.ndarray, longest_s: float) -> list[tuple[float, float]]:
    """Stretches of time without a longer pause between beats."""
    cuts = np.flatnonzero(np.diff(beats) > 1.01 * longest_s)
    return [(float(part[0]), float(part[-1])) for part in np.split(beats, cuts + 1)]
