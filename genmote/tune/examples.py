"""Examples to learn from, as tokens, and which of them are to be learnt.

A file with a name that ends in .jsonl has one example a line, in any of these forms; keys beside them are left alone:

    {"prompt": "Turn on the kitchen light", "completion": " light.turn_on kitchen"}   the completion and an end token
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}   the assistant's turns
    {"text": "All of this."}                                                          all of it

Texts are read as `generate` reads a prompt: names of control tokens are these tokens; in messages they are text.
Instead of a text there may be a list of token ids. Any other file is one text, which is cut into windows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genmote.digest import sha256
from genmote.errors import ExamplesError, SpecError, UserError
from genmote.models.chat import ChatTemplate
from genmote.models.contents import chat_turns
from genmote.models.tokenizer import Tokenizer

SHOWN = 3  # faults that are told of one file
ONE_ANSWER = "all examples have the same answer: what is learnt from them is that answer alone"
Pair = tuple[NDArray[np.int32], NDArray[np.bool_]]  # an example's tokens, and which of them are to be learnt
FORMS = '{"prompt": …, "completion": …}, {"messages": [...]} or {"text": …}'


class Reader(Protocol):
    """As much of an `Engine` as reading examples takes."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None

    @property
    def begin_token(self) -> int | None: ...
    @property
    def config(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class Examples:
    """Many examples, kept tight: example i is tokens[starts[i] : starts[i + 1]]."""

    tokens: NDArray[Any]  # (T,) uint16 where the vocabulary allows, else int32; of a generator (T, 1 + asks)
    learnt: NDArray[np.bool_]  # (T,) whether a token is to be learnt
    starts: NDArray[np.int64]  # (n + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """One example's tokens, and which of them are to be learnt."""
        part = slice(self.starts[index], self.starts[index + 1])
        return self.tokens[part], self.learnt[part]

    def rows(self, index: int) -> int:
        """Rows that an example takes in a pass: its last token is said by the row before it."""
        return int(self.starts[index + 1] - self.starts[index]) - 1

    def take(self, chosen: Sequence[int]) -> Examples:
        """Some of them, in this order."""
        return Examples.of([self[index] for index in chosen], self.tokens.dtype)

    @staticmethod
    def of(parts: Sequence[tuple[Any, Any]], dtype: Any) -> Examples:
        """Out of pairs of tokens and marks."""
        starts = np.cumsum([0, *(len(tokens) for tokens, _ in parts)])
        tokens = np.concatenate([np.asarray(tokens, dtype) for tokens, _ in parts] or [np.zeros(0, dtype)])
        learnt = np.concatenate([np.zeros(0, bool), *(np.asarray(marks, bool) for _, marks in parts)])
        return Examples(tokens, learnt, starts)

    def identity(self) -> str:
        """Names what is in them."""
        digest = sha256()
        for array in (self.tokens, self.learnt, self.starts):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()


def check_context(model: Reader, context: int) -> None:
    """Raise SpecError where examples may be longer than the model takes."""
    if context > model.config.context_length:
        raise SpecError(f"context={context}: this model takes 1 to {model.config.context_length} tokens")


def read(path: Path, model: Reader, context: int, tell: list[str]) -> Examples:
    """The examples of a file, each of at most `context` rows; `tell` gets what was cut, left out or seems wrong.

    What is longer is cut at its end; an example of which nothing that is to be learnt is left is left out. Raises
    ExamplesError with the lines' numbers for a file that is not as the module says, or has nothing to learn."""
    text = _text(path)
    by_lines = path.suffix.lower() == ".jsonl"
    found = _lines(path, text, model) if by_lines else _windows(model, text, context)
    if not by_lines and text.lstrip().startswith(("{", "[")):
        tell.append(f"{path.name} looks like JSON, and is read as one text: examples have a name that ends in .jsonl")
    kept, cut = list[Pair](), 0
    for tokens, learnt in found:
        cut += len(tokens) > context + 1
        learnt[:1] = False  # nothing says the first token
        if learnt[: context + 1].any():
            kept.append((tokens[: context + 1], learnt[: context + 1]))
    if cut:
        tell.append(f"{cut} of {len(found)} examples are longer than {context} tokens: cut at their end (--context)")
    if not found:
        raise ExamplesError(f"{path} has no examples to learn from: wanted lines of {FORMS}, or a text")
    if not kept:
        raise ExamplesError(
            f"{path}: none of {len(found)} examples has anything to learn within {context} tokens: raise --context, or "
            "give shorter prompts"
        )
    if left := len(found) - len(kept):
        tell.append(f"{left} of {len(found)} examples have nothing to learn (within {context} tokens): left out")
    dtype = np.uint16 if model.config.vocab_size <= 1 << 16 else np.int32
    examples = Examples.of(kept, dtype)
    tell.extend(_odd(examples))
    return examples


def one(line: str, model: Reader, context: int) -> Pair | None:
    """The example on one line of a .jsonl file, cut to `context` rows; None where nothing of it is to be learnt.
    Raises ExamplesError where it is none."""
    try:
        tokens, learnt = _example(json.loads(line), model)
    except (ValueError, RecursionError):
        raise ExamplesError(f"{line.strip():.40}: not JSON: wanted {FORMS}") from None
    except UserError as fault:  # a chat template that does not take it, for instance
        raise ExamplesError(str(fault)) from None
    marks = np.array(learnt[: context + 1], bool)
    marks[:1] = False  # nothing says the first token
    return (np.array(tokens[: context + 1], np.int32), marks) if marks.any() else None


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise ExamplesError(f"{path} cannot be read ({fault.strerror}): name a file of examples") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = raw[: fault.start].count(b"\n") + 1
        raise ExamplesError(
            f"{path}, line {line}: byte 0x{raw[fault.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None


def _windows(model: Reader, text: str, context: int) -> list[Pair]:
    """A text as windows that follow one another; each begins with the last token of the one before."""
    tokens = np.array(_encode(model, text, start=True, what="text"), np.int32)
    starts = range(0, len(tokens) - 1, context)
    windows = [tokens[start : start + context + 1] for start in starts]
    return [(window, np.ones(len(window), bool)) for window in windows]


def _lines(path: Path, text: str, model: Reader) -> list[Pair]:
    faults, found = list[str](), list[Pair]()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            tokens, learnt = _example(json.loads(line), model)
            found.append((np.array(tokens, np.int32), np.array(learnt, bool)))
        except ValueError as fault:
            faults.append(f"line {number}: not JSON ({fault})")
        except RecursionError:
            faults.append(f"line {number}: not JSON that can be read (nested too deep)")
        except UserError as fault:
            faults.append(f"line {number}: {fault}")
    if faults:
        more = f"; and {len(faults) - SHOWN} lines more" if len(faults) > SHOWN else ""
        raise ExamplesError(f"{path}, {'; '.join(faults[:SHOWN])}{more}: wanted {FORMS} on each line")
    return found


def _example(line: Any, model: Reader) -> tuple[list[int], list[bool]]:
    """One line's tokens, and which of them are to be learnt. Raises UserError."""
    if not isinstance(line, Mapping):
        raise ExamplesError(f"{json.dumps(line):.40} is no example")
    if "messages" in line:
        return _conversation(line["messages"], model)
    if "text" in line:
        tokens = _encode(model, line["text"], start=True, what="text")
        end = _end(model) if isinstance(line["text"], str) else []
        return tokens + end, [True] * (len(tokens) + len(end))
    if "prompt" in line and "completion" in line:
        prompt = _encode(model, line["prompt"], start=True, what="prompt")
        completion = _encode(model, line["completion"], start=False, what="completion") + _end(model)
        return prompt + completion, [False] * len(prompt) + [True] * len(completion)
    raise ExamplesError(f"keys {', '.join(map(repr, line)) or 'are missing'}")


def _conversation(messages: Any, model: Reader) -> tuple[list[int], list[bool]]:
    if model.chat_template is None:
        raise ExamplesError("messages, but the model has no chat template (it is a base model): use prompt, completion")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ExamplesError("messages: wanted a list of messages with role and content")
    if not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        raise ExamplesError("messages: wanted a role and content in each")
    if not any(message["role"] == "assistant" for message in messages):
        raise ExamplesError("messages: none is the assistant's, so there is nothing to learn")
    ids, said = chat_turns(model.chat_template, model.tokenizer, messages)
    begin = model.begin_token
    return (ids, said) if begin is None or ids[:1] == [begin] else ([begin, *ids], [False, *said])


def _encode(model: Reader, value: Any, *, start: bool, what: str) -> list[int]:
    """A text as `generate` reads a prompt (control tokens' names in it are these tokens), or token ids as they are."""
    if isinstance(value, str):
        tokens = model.tokenizer.encode(value, bos=False, start=start)
        return [model.begin_token, *tokens] if start and model.begin_token is not None else tokens
    size = model.config.vocab_size
    right = isinstance(value, list) and all(type(token) is int and 0 <= token < size for token in value)
    if not right:
        raise ExamplesError(f"{what}: wanted a text, or a list of token ids from 0 to {size - 1}")
    return list(value)


def _end(model: Reader) -> list[int]:
    return [] if model.tokenizer.eos_id is None else [model.tokenizer.eos_id]


def _odd(examples: Examples) -> Iterator[str]:
    """What in the examples may be a mistake: the same ones again, other answers to the same question, one to all."""
    answers: dict[bytes, set[bytes]] = {}
    again: Counter[bytes] = Counter()
    for index in range(len(examples)):
        tokens, learnt = examples[index]
        first = int(learnt.argmax())
        asked = tokens[:first].tobytes()
        again[tokens.tobytes()] += 1
        if first > 1:  # texts are not answers to anything
            answers.setdefault(asked, set()).add(tokens[first:].tobytes())
    if repeated := sum(count - 1 for count in again.values()):
        yield f"{repeated} of {len(examples)} examples are there more than once"
    if contradicting := sum(len(told) > 1 for told in answers.values()):
        yield f"{contradicting} prompts have more than one answer: the model learns to say each sometimes"
    if len(answers) > 1 and len(set().union(*answers.values())) == 1:
        yield ONE_ANSWER


def held_out(examples: Examples, share: float, most: int, seed: int) -> tuple[Examples, Examples]:
    """Examples to learn from, and others to judge by: a share of the distinct ones, at most so many, drawn by the seed.
    Equal examples stay on one side. With fewer than two distinct ones there is none to judge by."""
    groups: dict[bytes, list[int]] = {}
    for index in range(len(examples)):
        groups.setdefault(examples[index][0].tobytes(), []).append(index)
    distinct = list(groups.values())
    count = min(most, len(distinct) - 1, max(1, round(share * len(distinct)))) if len(distinct) > 1 else 0
    drawn = np.random.default_rng([seed, 0]).permutation(len(distinct))[:count].tolist()
    judged = sorted(distinct[group][0] for group in drawn)
    away = {index for group in drawn for index in distinct[group]}
    return examples.take([index for index in range(len(examples)) if index not in away]), examples.take(judged)
