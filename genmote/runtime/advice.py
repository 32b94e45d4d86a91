"""What would do where a plan does not: a shorter context, fewer bits, another board, a shorter prompt.

Every answer here is a plan that was made, so a suggestion that is told is one that works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genmote.errors import BudgetError, SpecError
from genmote.ops.cache import KINDS
from genmote.runtime.footprint import weights
from genmote.runtime.plan import SHORTER, Plan, fewer_rows, plan
from genmote.runtime.roofline import Machine

if TYPE_CHECKING:
    from genmote.device.profile import Profile
    from genmote.models.gguf import ModelFile

TYPES = ("Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q3_K", "Q2_K")  # from most to fewest bits
NOTABLE = 1.25  # times as fast: worth telling


@dataclass(frozen=True)
class Deadline:
    """What an application asks for: seconds to the first token, tokens a second after it; None: anything will do.

    The pace must hold to the end of a text: until the context is full, or with `whole_context` False until the prompt
    and a typical answer are held.
    """

    latency_s: float | None = None
    pace: float | None = None
    whole_context: bool = True

    def met(self, found: Plan) -> bool:
        return not self.missed(found)

    def missed(self, found: Plan) -> list[str]:
        """What of it a plan is expected to miss, in words."""
        speed = found.expected
        if speed is None:
            raise SpecError("a deadline needs a machine whose speed is known: name a device")
        told = []
        if self.latency_s is not None and speed.first_token_s > self.latency_s:
            told.append(
                f"after a prompt of {speed.prompt_tokens} tokens the answer is expected to begin in "
                f"{seconds(speed.first_token_s)}, wanted {seconds(self.latency_s)}"
            )
        slowest = speed.full_decode_tokens_per_s if self.whole_context else speed.text_decode_tokens_per_s
        if self.pace is not None and slowest < self.pace:
            told.append(f"{rate(slowest)} tokens/s are expected {self.judged_at(found)}, wanted {self.pace:g}")
        return told

    def judged_at(self, found: Plan) -> str:
        """Where in a text the pace is looked at, in words."""
        if self.whole_context or found.expected is None:
            return f"with the context of {found.context} tokens full"
        return f"when {found.expected.text_tokens} tokens of prompt and answer are held"


@dataclass(frozen=True)
class Option:
    """A change that makes it work: what to do, in words and as settings, and the plan with it."""

    what: str
    settings: dict[str, Any]
    plan: Plan


def choose(file: ModelFile, deadline: Deadline, *, machine: Machine, **settings: Any) -> Option | None:
    """The plan that meets the deadline with the least given up: first with the fewest threads, then, where `kv` is
    "auto", with keys and values in fewer bits and then fewer rows, then with the model stored in fewer bits. None where
    nothing does."""
    kv, threads = settings.pop("kv", None), settings.pop("threads", None)
    own = weights(file).total
    for stored_as in (None, *TYPES):
        if stored_as is not None and weights(file, stored_as=stored_as).total >= own:
            continue
        for cache in _stored(file, kv, settings):
            for count in (threads,) if threads else range(1, machine.cores + 1):
                given = settings | cache | {"threads": count, "stored_as": stored_as}
                found = _tried(lambda: plan(file, machine=machine, **given))  # noqa: B023  (called at once)
                if found is not None and deadline.met(found):
                    return Option(_told(stored_as, cache if kv == "auto" else {}, count), given, found)
    return None


def _stored(file: ModelFile, kv: str | None, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings for keys and values, from what loses least: those that were given, more only for "auto"."""
    for kind in KINDS if kv == "auto" else (kv,):
        yield {"kv": kind}
    if kv == "auto" and settings.get("evict") is None and settings.get("kv_tokens") is None:
        context = settings.get("context") or int(file.metadata[f"{file.architecture}.context_length"])
        for rows in fewer_rows(context):
            yield {"kv": KINDS[-1], "kv_tokens": rows}


def _told(stored_as: str | None, cache: dict[str, Any], threads: int) -> str:
    parts = [f"{threads} thread{'s' * (threads != 1)}"]
    if cache.get("kv", "f16") != "f16":
        parts.append(f"--kv {cache['kv']}")
    if "kv_tokens" in cache:
        parts.append(f"--kv-tokens {cache['kv_tokens']}")
    if stored_as is not None:
        parts.append(f"the model stored as {stored_as}")
    return ", ".join(parts)


def fitting(
    file: ModelFile, *, machine: Machine | None, deadline: Deadline | None = None, **settings: Any
) -> list[Option]:
    """Changes, one at a time, with which the model fits the memory (and meets the deadline)."""
    found = []
    own = _tried(lambda: plan(file, machine=machine, **settings))
    for what, change in _changes(file, settings):
        made = _tried(lambda: plan(file, machine=machine, **settings | change))  # noqa: B023
        if made is not None and (deadline is None or deadline.met(made)):
            if own is not None and made.context != own.context and "context" not in change:
                what = f"{what}, texts of {made.context} tokens"
            found.append(Option(what, change, made))
    return _first_of_each(found)


def _changes(file: ModelFile, settings: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes worth a try, of each sort from the least that is given up to the most."""
    kinds = KINDS[KINDS.index(settings.get("kv") or "f16") + 1 :] if settings.get("kv") != "auto" else ()
    for kind in kinds:
        yield f"--kv {kind}", {"kv": kind}
    context = settings.get("context") or int(file.metadata[f"{file.architecture}.context_length"])
    if settings.get("evict") is None and settings.get("kv_tokens") is None:
        for rows in fewer_rows(context):
            yield f"--kv-tokens {rows}", {"kv_tokens": rows}
    else:
        yield "--evict window", {"evict": "window"}
        for shorter in SHORTER:
            if shorter < context:
                change = {"context": shorter, "evict": None, "kv_tokens": None}
                yield f"--context {shorter} and no eviction", change
    for shorter in SHORTER:
        if shorter < context:
            yield f"--context {shorter}", {"context": shorter}
    for kind in kinds:
        for shorter in SHORTER:
            if shorter < context:
                yield f"--kv {kind} --context {shorter}", {"kv": kind, "context": shorter}
    own = weights(file).total
    for kind in TYPES:
        if weights(file, stored_as=kind).total < own:
            yield f"the model stored as {kind}", {"stored_as": kind}


def faster(file: ModelFile, own: Plan, *, machine: Machine, **settings: Any) -> list[Option]:
    """Changes with which a plan that reads weights from storage writes notably faster, its texts as long: fewer
    threads, which leave their scratch memory to weights, then fewer bits and fewer rows of keys and values than the
    plan has, also where "auto" chose those."""
    kept = settings | {"context": own.context}
    if settings.get("kv") == "auto":
        kept |= {"kv": own.kv, "evict": own.evict, "kv_tokens": own.kv_tokens}
    changes: list[tuple[str, dict[str, Any]]] = []
    if settings.get("threads") is None:
        changes += [(f"--threads {count}", {"threads": count}) for count in range(1, own.threads)]
    changes += [(what, change) for what, change in _changes(file, kept) if change.keys() in ({"kv"}, {"kv_tokens"})]
    found = []
    for what, change in changes:
        made = _tried(lambda: plan(file, machine=machine, **kept | change))  # noqa: B023
        if made is not None and _gain(own, made) >= NOTABLE:
            found.append(Option(what, change, made))
    best = {tuple(option.settings): option for option in sorted(found, key=lambda option: _gain(own, option.plan))}
    return [option for option in found if "kv" in option.settings or option is best[tuple(option.settings)]]


def _gain(before: Plan, after: Plan) -> float:
    """How many times faster it writes, where that is most: at the beginning or with the context full."""
    if before.expected is None or after.expected is None:
        return 0.0
    one, two = before.expected, after.expected
    return max(
        two.decode_tokens_per_s / one.decode_tokens_per_s, two.full_decode_tokens_per_s / one.full_decode_tokens_per_s
    )


def _first_of_each(options: Iterable[Option]) -> list[Option]:
    """Of each sort of change the first that does: more of it only costs."""
    sorts: dict[tuple[str, ...], Option] = {}
    for option in options:
        sorts.setdefault(tuple(sorted(option.settings)), option)
    return list(sorts.values())


def boards(
    file: ModelFile,
    profiles: dict[str, Profile],
    *,
    deadline: Deadline | None = None,
    most: int = 3,
    within: int | None = None,
    **settings: Any,
) -> list[tuple[str, Plan]]:
    """The smallest boards, by usable memory and then by bandwidth, on which it fits and meets the deadline, `within` so
    many bytes where that is given."""
    ordered = sorted(profiles.items(), key=lambda item: (item[1].usable_bytes, item[1].bandwidth.read_gb_s))
    found: list[tuple[str, Plan]] = []
    for name, profile in ordered:
        if profile.refused is not None or len(found) == most:
            continue
        memory = min(profile.usable_bytes, within or profile.usable_bytes)
        given = settings | {"memory": memory, "threads": None}
        made = _tried(lambda: plan(file, machine=Machine.of(profile), **given))  # noqa: B023
        if made is not None and (deadline is None or deadline.met(made)):
            found.append((name, made))
    return found


def longest_prompt(file: ModelFile, deadline: Deadline, *, machine: Machine, **settings: Any) -> int | None:
    """The longest prompt whose first token comes in time; None where none does."""
    low, high = 1, int(settings.pop("prompt_tokens"))
    best = None
    while low <= high:
        middle = (low + high) // 2
        made = _tried(lambda: plan(file, machine=machine, prompt_tokens=middle, **settings))  # noqa: B023
        if made is not None and deadline.met(made):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def _tried(make: Callable[[], Plan]) -> Plan | None:
    try:
        return make()
    except (BudgetError, SpecError):
        return None


def seconds(count: float) -> str:
    """A time for people.

    >>> seconds(0.0123), seconds(3.21), seconds(125)
    ('12 ms', '3.2 s', '125 s')
    """
    return f"{count * 1e3:.0f} ms" if count < 1 else f"{count:.{1 if count < 100 else 0}f} s"


def rate(count: float) -> str:
    """Three figures, as many as are worth telling.

    >>> rate(0.2061), rate(21.57), rate(1210.9)
    ('0.206', '21.6', '1211')
    """
    return f"{count:.3g}" if count < 100 else f"{count:.0f}"
