"""Text to calibrate on: windows of token ids (N, T), written by the model itself, or out of a file.

A model's own text needs no corpus, and is what the model will go on reading when it generates (LLM-QAT, Liu et al.
2023, arXiv 2305.17888). Every window starts from another opener, so that prose, dialogue, lists and code all
occur, and goes on by sampling from the unchanged distribution; where the model ends a text, the window goes on with
the next. A model that reads no text, such as a generator of signals, is given its windows as they are: (N, T, A) of
ids whose embeddings are added (`Decoder.embed`).
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote import home
from genmote.errors import SpecError
from genmote.fetch import Progress, quiet
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.models.tokenizer import load_tokenizer
from genmote.spec import setting

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine

Tokens = NDArray[np.int32]
VERSION = 1  # of how text is written: another number, other text
# A model's own text is told to be poor where it repeats itself: by the share of its runs of so many tokens that differ.
# Of what SmolLM2 writes 0.97 to 1 do, of prose letter by letter 0.78; a text that goes round in circles, or ends
# at once again and again, has next to none. Below a half, most of the time that is spent on it is wasted.
RUN, FRESH = 8, 0.5
BATCH_BYTES = 1 << 28  # keys and values of the windows that are written at once

TABLE = "token_embd.weight"

OPENERS = (
    "",
    "The",
    "In",
    "A",
    "It is",
    "When",
    "How to",
    "The history of",
    "According to",
    "She said",
    "He was born in",
    "This article",
    "1.",
    "Question:",
    "def ",
    "import ",
    "#",
    "I think",
    "Dear",
    "One day",
    "Scientists",
    "The city of",
    "During the",
    "For example,",
    "To make",
    "Once upon a time",
    "We",
    "Although",
    "After the war",
    "In mathematics,",
    "- ",
    "The film",
    "The album",
    "The game",
    "The river",
    "The company",
    "Chapter 1",
    "User:",
    "Water",
    "People",
)


@dataclass(frozen=True)
class Calibration:
    """Which text, and how much of it."""

    windows: int = setting("windows of calibration text", default=32)
    length: int = setting("tokens of a window; no more than the model's context are taken", default=512)
    seed: int = setting("number that fixes the text that the model writes", default=0)
    text: Path | None = setting("a text to calibrate on (default: the model writes it)", default=None)
    tokens: Path | None = setting("windows of token ids to calibrate on (.npy), instead of text", default=None)

    def faults(self) -> Iterable[str]:
        if self.windows < 1:
            yield f"windows={self.windows}: use 1 or more"
        if self.length < 16:
            yield f"length={self.length}: use windows of 16 tokens or more"
        if self.seed < 0:
            yield f"seed={self.seed}: use 0 or more"
        if self.text is not None and self.tokens is not None:
            yield "text, tokens: both say what is learned from; leave out either"

    def values(self) -> dict[str, Any]:
        """The settings as plain values; None is left out."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}

    def key(self, model_sha256: str) -> str:
        """Names the text that these settings mean with this model."""
        if self.tokens is not None:
            source = f"tokens {digest(self.tokens)}"
        elif self.text is not None:
            source = f"text {read(self.text)[1]} tokens of {model_sha256}"
        else:
            source = f"written {VERSION} by {model_sha256} seed {self.seed}"
        return hashlib.sha256(f"{source} {self.windows} {self.length}".encode()).hexdigest()


def windows(model: Path, model_sha256: str, settings: Calibration, progress: Progress = quiet) -> Tokens:
    """Token ids (N, T) to calibrate `model` on; what it has written is kept in the cache folder,
    while it is not all there in parts, from which an interrupted run goes on.

    SpecError where a text is too short, or windows are no such file.
    """
    if settings.tokens is not None:
        return _given(settings.tokens, ModelFile.open(model))
    folder = home.cache_dir() / "calibration"
    path = folder / f"{settings.key(model_sha256)[:32]}.npy"
    if settings.text is None and (kept := _kept(path, settings)) is not None:
        return kept
    from genmote.runtime.engine import Engine

    with Engine.load(model, progress=progress) as engine:
        settings = replace(settings, length=min(settings.length, engine.context))
        if settings.text is not None:
            return _cut(engine, settings)
        part = path.with_suffix(".part.npy") if home.usable(folder) else None
        found = write(engine, settings, progress, part)
    if part is not None:
        _keep(path, found)
        part.unlink(missing_ok=True)
    return found


def notes(tokens: Tokens, inputs: int, *, signals: bool = False) -> Iterator[str]:
    """What is wrong with token ids (N, T) as something to learn from, for matrices of up to `inputs` inputs; `signals`:
    they are no text.

    >>> next(notes(np.zeros((4, 20), np.int32), 64))
    'the text repeats itself, only 2% of its runs of 8 tokens differ: give a better one (--text FILE)'
    """
    what, better, more = ("text", "a better one (--text FILE)", "more of it (--samples)")
    if signals:
        what, better, more = ("signal", "recordings in which more happens", "more of it (--samples, longer recordings)")
    run = min(RUN, tokens.shape[1])
    runs = np.lib.stride_tricks.sliding_window_view(tokens, run, axis=1).reshape(-1, run)
    different = len(np.unique(runs, axis=0))
    if different < FRESH * len(runs):
        share = f"{different / len(runs):.0%}"
        yield f"the {what} repeats itself, only {share} of its runs of {run} tokens differ: give {better}"
    # Fewer rows than a matrix has inputs: in some direction of these its errors are weighed by the damping alone.
    if different < inputs:
        yield (
            f"the {what} has {different} different places, fewer than the {inputs} inputs of the widest matrix: give "
            f"{more}"
        )


def ids(tokens: Tokens) -> Tokens:
    """(N, T) of windows (N, T) or (N, T, A): what each row is, without what is added to it."""
    return tokens if tokens.ndim == 2 else tokens[..., 0]


def digest(path: Path) -> str:
    """A file's SHA-256."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as fault:
        raise SpecError(f"{path}: cannot be read ({fault.strerror}): wanted what to calibrate on") from None


def _given(path: Path, model: ModelFile) -> Tokens:
    found = _load(path)
    if found is None or found.ndim not in (2, 3) or found.dtype.kind not in "iu" or min(found.shape) < 1:
        raise SpecError(f"{path}: wanted windows of token ids, whole numbers (N, T) or (N, T, A) as NumPy saves them")
    rows, context = model.tensors[TABLE].shape[0], read_config(model).context_length
    columns = found.reshape(found.shape[0] * found.shape[1], -1)
    least = np.append(0, np.full(columns.shape[1] - 1, -1))  # past the first column -1 is none (`Decoder.embed`)
    if (wrong := columns[(columns < least) | (columns >= rows)]).size:
        raise SpecError(f"{path}: {wrong[0]} is no token of the model, whose ids are 0 to {rows - 1}")
    if found.shape[1] > context:
        raise SpecError(f"{path}: windows of {found.shape[1]} tokens, the model's context is {context}: cut them")
    return found.astype(np.int32)


def _keep(path: Path, tokens: Tokens) -> None:
    with home.atomic_write(path) as out:
        np.save(out, tokens)


def _begun(path: Path, settings: Calibration) -> Tokens | None:
    """The first windows, as an interrupted run has left them."""
    found = _load(path)
    if found is None or found.ndim != 2 or found.shape[1] != settings.length or len(found) >= settings.windows:
        return None
    return found


def _load(path: Path) -> Tokens | None:
    try:
        # Not `np.load`, which takes archives too, and raises more than this where a file is cut.
        found: Tokens = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found


def _kept(path: Path, settings: Calibration) -> Tokens | None:
    if (found := _load(path)) is None:
        return None
    sound = found.ndim == 2 and len(found) == settings.windows and 1 <= found.shape[1] <= settings.length
    return found if sound else None


def read(path: Path) -> tuple[str, str]:
    """A file's text and its SHA-256."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8"), hashlib.sha256(data).hexdigest()
    except OSError as fault:
        raise SpecError(f"{path}: cannot be read ({fault.strerror}): wanted a text to calibrate on") from None
    except UnicodeDecodeError as fault:
        raise SpecError(f"{path}: is not UTF-8 text (byte {fault.start})") from None


def _cut(engine: Engine, settings: Calibration) -> Tokens:
    """Windows spread evenly over the text, each with the model's begin token first where it has one."""
    assert settings.text is not None
    tokens = engine.tokenizer.encode(read(settings.text)[0], bos=False)
    begin = [] if engine.begin_token is None else [engine.begin_token]
    body = settings.length - len(begin)
    if len(tokens) < body * settings.windows:
        raise SpecError(
            f"{settings.text} has {len(tokens)} tokens, {settings.windows} windows of {settings.length} take "
            f"{body * settings.windows}: give a longer text, or fewer or shorter windows"
        )
    return _spread(tokens, begin, settings.windows, settings.length)


def _spread(tokens: list[int], begin: list[int], count: int, length: int) -> Tokens:
    body = length - len(begin)
    starts = np.linspace(0, len(tokens) - body, count).astype(int)
    return np.array([begin + tokens[start : start + body] for start in starts], np.int32)


def text_of(model: ModelFile, tokens: Tokens) -> str:
    """Windows (N, T) or (N, T, A) of token ids as text, a line's end between them."""
    tokenizer = load_tokenizer(model)
    return "\n".join(tokenizer.decode(row.tolist()) for row in ids(tokens))


def in_tokens_of(model: ModelFile, original: ModelFile, tokens: Tokens) -> Tokens:
    """Windows (N, T) of the original's token ids in those of `model`, of whose tokens some may be gone: of the same
    text, as long, and no more of them."""
    if model.tensors[TABLE].shape[0] == original.tensors[TABLE].shape[0]:
        return tokens
    tokenizer, (count, length) = load_tokenizer(model), tokens.shape
    begin = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    ids = tokenizer.encode(text_of(original, tokens), bos=False)
    count = min(count, len(ids) // (length - len(begin)))
    if not count:
        raise SpecError(
            f"the text has {len(ids)} tokens of those that are left, one window takes {length}: give more of it"
        )
    return _spread(ids, begin, count, length)


def write(engine: Engine, settings: Calibration, progress: Progress = quiet, part: Path | None = None) -> Tokens:
    """Windows (N, T) that the model writes: several at once, each with draws of its own from (seed, window). `part`:
    where those that are done are kept meanwhile."""
    config = engine.config
    row_bytes = 4 * sum(config.kv_heads) * config.head_dim  # keys and values, two bytes each
    at_once = max(1, min(settings.windows, BATCH_BYTES // (row_bytes * settings.length)))
    total = settings.windows * settings.length
    begun = None if part is None else _begun(part, settings)
    found: list[list[int]] = [] if begun is None else begun.tolist()
    while len(found) < settings.windows:
        numbers = range(len(found), min(settings.windows, len(found) + at_once))
        done = len(found) * settings.length
        found += _write(engine, settings, numbers, lambda n, done=done: progress("writing text", done + n, total))
        if part is not None and len(found) < settings.windows:
            _keep(part, np.array(found, np.int32))
    return np.array(found, np.int32)


def _write(engine: Engine, settings: Calibration, numbers: Sequence[int], told: Any) -> list[list[int]]:
    """The windows of these numbers, in one batch."""
    from genmote.runtime.prompt import Rows
    from genmote.runtime.session import Session, Work, run_batch

    length, vocab_size = settings.length, min(engine.config.vocab_size, engine.tokenizer.vocab_size)
    draws = [np.random.Generator(np.random.PCG64([settings.seed, number])) for number in numbers]
    texts = [_opening(engine, number, draw)[: length - 1] for number, draw in zip(numbers, draws, strict=True)]
    sessions = [Session(engine) for _ in texts]
    at = [0] * len(texts)
    while any(len(text) < length for text in texts):
        works, writers = [], []
        for number, text in enumerate(texts):
            if len(text) < length:
                works.append(Work(sessions[number], Rows(text[at[number] :]), 0, len(text) - at[number], 1))
                writers.append(number)
                at[number] = len(text)
        for number, logits in zip(writers, run_batch(engine, works), strict=True):
            assert logits is not None
            token = _draw(logits[0, :vocab_size], draws[number])
            texts[number].append(token)
            begin = engine.begin_token
            if token in engine.tokenizer.eog_ids and begin not in (None, token) and len(texts[number]) < length:
                texts[number].append(int(begin))  # the next text
        told(sum(map(len, texts)))
    return texts


def _opening(engine: Engine, number: int, draw: np.random.Generator) -> list[int]:
    """How window `number` begins: an opener."""
    begin = [] if engine.begin_token is None else [engine.begin_token]
    opener = engine.tokenizer.encode(OPENERS[number % len(OPENERS)], bos=False)
    if begin or opener:
        return begin + opener
    ends = sorted(engine.tokenizer.eog_ids)
    return ends[:1] or [int(draw.integers(engine.tokenizer.vocab_size))]


def _draw(logits: NDArray[np.float32], draw: np.random.Generator) -> int:
    """A token by its probability, temperature 1."""
    with np.errstate(invalid="ignore"):  # infinity less infinity, which is told below
        weights = np.exp(logits - logits.max())
    cumulated = np.cumsum(weights, dtype=np.float64)
    if not math.isfinite(cumulated[-1]):
        raise SpecError("the model's logits are not finite numbers where it writes text: the model file is damaged")
    return int(np.searchsorted(cumulated, draw.random() * cumulated[-1], side="right"))
