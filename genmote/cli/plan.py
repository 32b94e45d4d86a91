"""Tell before it is loaded whether a model fits a device, what it takes of the memory, and how fast it will be.

    genmote plan smollm2-135m --device pi-zero-2w
    genmote plan smollm2-135m --memory 96MB --context 2000 --kv auto --svg budget.svg
    genmote plan smollm2-135m --device pi-4b-4gb --latency 1s --prompt-tokens 32 --pace 20
    genmote plan smollm2-135m --memory 150MB --check

Sizes come from the model file's header; speeds from the device's profile (without --device: this machine's) are what
to expect, not what was measured. --check runs it in a process of its own, with the context full, and compares. Where
the model does not fit, or misses --latency or --pace, what would do is told, and the exit status is 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._model import EVICT, KV_SPILL, KV_TOKENS
from genmote.cli._output import Bar, Output, check_place, note, save, size
from genmote.cli._plan_text import chat_text, comparison, help_text, report
from genmote.errors import BudgetError, SpecError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.device.profile import Profile
    from genmote.models.gguf import ModelFile
    from genmote.runtime.advice import Deadline, Option
    from genmote.runtime.plan import Plan
    from genmote.runtime.roofline import Machine

ROUNDED = 1 << 16  # bytes that a control group's limit may be smaller than what was asked of it: whole pages


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = setting("a model's name (fetched if it is not here) or path", positional=True)
    adapter: tuple[str, ...] = setting("a LoRA adapter's path, or PATH:SCALE; may be repeated", default=())
    device: str | None = setting("a device's name (see genmote devices) or profile file (default: here)", default=None)
    memory: str | None = setting("the budget, such as 150MB (default: what the device leaves)", default=None)
    context: int | None = setting(
        "most tokens of prompt and text (default: as many as fit beside all weights, or up to 2048)", default=None
    )
    kv: str | None = setting("keys and values as f16, int8 or int4; auto: fewer bits where needed", default=None)
    evict: str | None = setting(EVICT, default=None)
    kv_tokens: float | None = setting(KV_TOKENS, default=None)
    kv_spill: str | None = setting(KV_SPILL, default=None)
    sessions: int = setting("texts at the same time", default=1)
    threads: int | None = setting("threads (default: the device's cores)", default=None)
    prompt_tokens: int | None = setting(
        "tokens of the prompt that a first token waits for (default: 256); --pace must then hold for it and its answer",
        default=None,
    )
    latency: str | None = setting(
        "from a prompt to its first token at most, such as 200ms or 2s; loading is not counted", default=None
    )
    pace: float | None = setting("tokens a second at least, also with the context full", default=None)
    svg: Path | None = setting("a picture of the budget (SVG)", default=None)
    check: bool = setting("run it, and compare what was predicted with what is measured", default=False)


def run(settings: Settings, out: Output) -> int:
    from genmote.cli._machine import this_machine
    from genmote.cli._model import find
    from genmote.device import profile
    from genmote.device.sensors import most_memory
    from genmote.models.gguf import ModelFile
    from genmote.runtime import advice
    from genmote.runtime.roofline import Machine

    if settings.svg is not None:
        check_place(settings.svg, "--svg")
    if settings.check and settings.device is not None:
        raise SpecError("--check runs on this machine: leave --device out, and give its --memory")
    if settings.check and settings.sessions != 1:
        raise SpecError(f"--check runs one text, not {settings.sessions}: leave --sessions out")
    if settings.device is not None and (why := profile.load(settings.device).refused) is not None:
        out.result(refused(settings, why), "")
    if settings.threads is not None and settings.threads < 1:
        raise SpecError(f"threads={settings.threads}: wanted 1 or more")
    device = None if settings.device is None else profile.runnable(settings.device)
    deadline = deadline_of(settings)
    path = find(settings.model)
    file = ModelFile.open(path)
    asked = asked_for(settings, device) | {"adapter_bytes": adapter_bytes(file, settings)}
    machine = Machine.of(device or this_machine(path))
    if (threads := settings.threads or 0) > machine.cores:
        cores = f"{machine.cores} core{'s' * (machine.cores != 1)}"
        note(
            f"plan: {threads} threads on {cores} are no faster, and each takes memory: leave --threads out, or give at "
            f"most {machine.cores}"
        )
    limit = None if device is not None else most_memory()
    asked |= within_limit(file, machine, asked, limit)
    try:
        found, chosen = planned(file, machine, asked, deadline)
    except BudgetError as fault:
        note(f"genmote plan: {fault}")  # the reason first: what follows is read after it
        helps, others = what_helps(file, machine, asked, deadline, settings)
        needed = needed_at_least(file, machine, asked, deadline)
        values = refused(settings, str(fault), fault.least_bytes, helps, others) | told_limit(limit)
        out.result(values, help_text(helps, others, needed=needed))
        return fault.exit_status
    if settings.check and chosen is not None and (kind := chosen.settings["stored_as"]) is not None:
        raise SpecError(
            f"the deadline takes the model stored as {kind}, and --check would run this file: give it such a file"
        )
    values = found.values() | {"model": settings.model, "device": settings.device, "fits": True, **told_limit(limit)}
    text = report(found, chosen, deadline, limit)
    if (chat := conversation(file, machine, asked if chosen is None else asked | chosen.settings)) is not None:
        values["chat"] = chat
        text += f"\n  {'chat':<8}  {chat_text(chat, found)}"
    if found.streamed_bytes and deadline is None:
        faster = advice.faster(file, found, machine=machine, **asked)
        values["faster"] = [{"what": o.what, "settings": o.settings, **short_values(o.plan)} for o in faster]
        text += "\n\n" + help_text(faster, [], "what writes faster") if faster else ""
    if settings.svg is not None:
        save(settings.svg, picture(settings, file, found, asked), "--svg")
        values["svg"] = settings.svg
        text += f"\n\npicture: {settings.svg}"
    if settings.check:
        measured = check(path, found, settings)
        values["measured"] = measured
        text += "\n\n" + comparison(expecting(file, machine, asked, measured) or found, measured)
    out.result(values, text)
    return 0


def asked_for(settings: Settings, device: Profile | None) -> dict[str, Any]:
    """Keyword arguments of `runtime.plan.plan`."""
    from genmote.device.sizes import parse_bytes
    from genmote.runtime.footprint import INTERPRETER_BYTES
    from genmote.runtime.plan_speed import TYPICAL_PROMPT
    from genmote.runtime.threads import default_threads

    memory = None if settings.memory is None else parse_bytes(settings.memory, what="memory")
    if device is not None:
        if memory is not None and memory > device.memory_bytes:
            raise SpecError(
                f"memory={settings.memory}: {device.title} has {size(device.memory_bytes)}, of which the system leaves "
                f"{size(device.usable_bytes)} to one program: leave --memory out, or name a larger device"
            )
        if memory is not None and memory > device.usable_bytes:
            note(
                f"plan: {settings.memory} is more than the {size(device.usable_bytes)} that the system of "
                f"{device.title} leaves to one program"
            )
        memory = device.usable_bytes if memory is None else memory
    return {
        "memory": memory,
        "context": settings.context,
        "kv": settings.kv,
        "evict": settings.evict,
        "kv_tokens": settings.kv_tokens,
        "kv_spill": settings.kv_spill,
        "sessions": settings.sessions,
        "threads": settings.threads or (None if device is not None else default_threads()),
        "prompt_tokens": TYPICAL_PROMPT if settings.prompt_tokens is None else settings.prompt_tokens,
        "interpreter": INTERPRETER_BYTES,
    }


def within_limit(
    file: ModelFile, machine: Machine, asked: dict[str, Any], limit: tuple[int, str] | None
) -> dict[str, Any]:
    """What changes of the settings because this process may have only so much: the budget, where none was given and
    the model would take more. Raises SpecError for a budget beyond it."""
    from genmote.runtime.plan import plan

    if limit is None:
        return {}
    most, whose = limit
    memory = asked["memory"]
    if memory is not None and memory > most + ROUNDED:
        raise SpecError(
            f"memory={size(memory)}: this process may use {size(most)} here ({whose}): leave --memory out, or name "
            "with --device where it will run"
        )
    if memory is not None or (whole := plan(file, machine=machine, **asked).predicted_bytes) <= most:
        return {}
    note(
        f"plan: this process may use {size(most)} here ({whose}), which is the budget of this plan: run it with "
        f"--memory {most // 1_000_000}MB, without which it would take {size(whole)}"
    )
    return {"memory": most}


def conversation(file: ModelFile, machine: Machine, asked: dict[str, Any]) -> dict[str, Any] | None:
    """What a conversation takes more, the chat template's engine, and whether it still fits; None where the model has
    no template."""
    from genmote.models.chat import MEMORY_BYTES
    from genmote.runtime.plan import plan

    if "tokenizer.chat_template" not in file.metadata:
        return None
    told: dict[str, Any] = {"more_bytes": MEMORY_BYTES}
    try:
        made = plan(file, machine=machine, **asked | {"beside": MEMORY_BYTES})
    except BudgetError as fault:
        return told | {"fits": False, "least_bytes": fault.least_bytes}
    return told | {"fits": True, "context": made.context, **short_values(made)}


def told_limit(limit: tuple[int, str] | None) -> dict[str, Any]:
    return {} if limit is None else {"limit_bytes": limit[0], "limit_of": limit[1]}


def adapter_bytes(file: ModelFile, settings: Settings) -> int:
    """What the adapters take. Raises ModelFileError for what is none of this model's."""
    from genmote.cli._model import scaled
    from genmote.models.config import read_config
    from genmote.runtime import footprint
    from genmote.runtime.loading import open_adapters

    opened = open_adapters([scaled(text) for text in settings.adapter])
    return footprint.adapter_bytes(read_config(file), [each for _, _, each in opened])


def deadline_of(settings: Settings) -> Deadline | None:
    from genmote.runtime.advice import Deadline

    if settings.pace is not None and not settings.pace > 0:
        raise SpecError(f"pace={settings.pace:g}: wanted tokens a second, above 0")
    if settings.prompt_tokens is not None and settings.prompt_tokens < 1:
        raise SpecError(f"prompt_tokens={settings.prompt_tokens}: wanted 1 or more")
    if settings.latency is None and settings.pace is None:
        return None
    latency = None if settings.latency is None else parse_seconds(settings.latency)
    return Deadline(latency, settings.pace, whole_context=settings.prompt_tokens is None)


def parse_seconds(text: str) -> float:
    """Seconds of a time as people write it.

    >>> parse_seconds("200ms"), parse_seconds("1.5 s"), parse_seconds("2")
    (0.2, 1.5, 2.0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|)\s*", text)
    if found is None or not float(found[1]):
        raise SpecError(f"latency {text!r}: wanted a time above 0 such as 200ms or 2s")
    return float(found[1]) * (1e-3 if found[2] == "ms" else 1.0)


def planned(
    file: ModelFile, machine: Machine, asked: dict[str, Any], deadline: Deadline | None
) -> tuple[Plan, Option | None]:
    """The plan, and with a deadline what was chosen to meet it. Raises BudgetError where it cannot be done."""
    from genmote.runtime import advice
    from genmote.runtime.plan import plan

    if deadline is None:
        return plan(file, machine=machine, **asked), None
    own = plan(file, machine=machine, **asked)
    chosen = advice.choose(file, deadline, machine=machine, **asked)
    if chosen is None and deadline.met(own):  # nothing less does
        return own, None
    if chosen is None:
        raise BudgetError(f"{file.path.name} on {machine.source}: {'; '.join(deadline.missed(own))}")
    return chosen.plan, chosen


def what_helps(
    file: ModelFile, machine: Machine, asked: dict[str, Any], deadline: Deadline | None, settings: Settings
) -> tuple[list[Option], list[tuple[str, Plan]]]:
    """Changes of settings that work, and boards on which it works as asked."""
    from genmote.device import profile
    from genmote.runtime import advice

    found = advice.fitting(file, machine=machine, deadline=deadline, **asked)
    if deadline is not None:
        prompt = advice.longest_prompt(file, deadline, machine=machine, **asked)
        if prompt is not None and prompt < asked["prompt_tokens"]:
            from genmote.runtime.plan import plan

            short = {"prompt_tokens": prompt}
            made = plan(file, machine=machine, **asked | short)
            found.insert(0, advice.Option(f"a prompt of at most {prompt} tokens", short, made))
    profiles = {name: profile.load(name) for name in profile.names()}
    within = None if settings.memory is None else asked["memory"]  # what was asked for, not what a board has
    return found, advice.boards(file, profiles, deadline=deadline, within=within, **asked)


def needed_at_least(file: ModelFile, machine: Machine, asked: dict[str, Any], deadline: Deadline | None) -> str:
    """What is needed where no setting and no board does, in words. More memory makes a deadline only where weights are
    read from storage for lack of it."""
    from genmote.runtime.advice import seconds
    from genmote.runtime.plan import plan

    memory = ": more memory, or a smaller model, is needed"
    if deadline is None:
        return memory
    try:
        own = plan(file, machine=machine, **asked)
    except BudgetError:
        return memory
    held = asked | {"memory": None, "context": own.context}
    if deadline.met(plan(file, machine=machine, **held)):
        return memory
    least = plan(file, machine=machine, **held | {"prompt_tokens": 1}).expected
    even = ""
    if deadline.latency_s is not None and least is not None and least.first_token_s > deadline.latency_s:
        even = f", even a prompt of one token takes {seconds(least.first_token_s)}"
    return f"{even}: a faster machine, or a smaller model, is needed"


def refused(
    settings: Settings,
    reason: str,
    least_bytes: int | None = None,
    helps: Sequence[Option] = (),
    others: Sequence[tuple[str, Plan]] = (),
) -> dict[str, Any]:
    """A refusal's values for --json: the same keys whatever is lacking."""
    return {
        "model": settings.model,
        "device": settings.device,
        "fits": False,
        "reason": reason,
        "least_bytes": least_bytes,
        "would_do": [{"what": o.what, "settings": o.settings, **short_values(o.plan)} for o in helps],
        "boards": [{"device": name, **short_values(made)} for name, made in others],
    }


def short_values(made: Plan) -> dict[str, Any]:
    speed = made.expected
    return {
        "predicted_bytes": made.predicted_bytes,
        "streamed_bytes": made.streamed_bytes,
        "decode_tokens_per_s": None if speed is None else speed.decode_tokens_per_s,
        "full_decode_tokens_per_s": None if speed is None else speed.full_decode_tokens_per_s,
        "first_token_s": None if speed is None else speed.first_token_s,
    }


def picture(settings: Settings, file: ModelFile, made: Plan, asked: dict[str, Any]) -> str:
    """The SVG, with the memory that longer contexts would take."""
    from genmote.ops.cache import KINDS
    from genmote.runtime.budget_picture import svg
    from genmote.runtime.plan import plan

    longest = int(file.metadata[f"{file.architecture}.context_length"])
    most = min(longest, max(2 * made.context, 1024))
    lines = []
    for kind in KINDS:
        points = []
        for step in range(1, 17):
            tokens = max(16, most * step // 16)
            free = asked | {"memory": None, "context": tokens, "kv": kind, "evict": None, "kv_tokens": None}
            points.append((tokens, plan(file, **free).predicted_bytes))
        lines.append((kind, points))
    where = settings.device or (made.expected.source if made.expected is not None else "this machine")
    return svg(made, f"{settings.model} on {where}", lines)


def check(path: Path, made: Plan, settings: Settings) -> dict[str, Any]:
    """The planned run, measured: in a jail of the budget where one can be made, else beside it."""
    from genmote.cli._model import scaled
    from genmote.runtime import trial

    with Bar() as bar:
        return trial.measured(path, made, adapter=[scaled(text) for text in settings.adapter], progress=bar)


def expecting(file: ModelFile, machine: Machine, asked: dict[str, Any], measured: dict[str, Any]) -> Plan | None:
    """The same plan, with the speeds that are expected of the prompt that was run."""
    from genmote.runtime.plan import plan

    try:
        return plan(file, machine=machine, **asked | {"prompt_tokens": measured["prompt_tokens"]})
    except BudgetError:
        return None
