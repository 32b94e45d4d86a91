"""From a model's name to an engine: find the file, choose the op set, read tokenizer and template."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote import digest
from genmote import ops as opsets
from genmote.errors import BudgetError, ModelFileError, ModelNameError, OpsError, SpecError
from genmote.runtime.threads import checked_threads

if TYPE_CHECKING:
    from genmote.models.config import Config
    from genmote.models.gguf import ModelFile
    from genmote.ops.protocol import Ops
    from genmote.runtime.engine import Adapters, Engine
    from genmote.runtime.plan import Plan
    from genmote.runtime.streaming import Room, Streaming


def load(
    cls: type[Engine],
    model: str | os.PathLike[str],
    *,
    adapter: Adapters | None,
    ops: str | None,
    isa: str | None,
    threads: int | None,
    context: int | None,
    draft: str | os.PathLike[str] | None,
    memory: int | str | None,
    sessions: int,
    progress: Callable[..., None] | None,
    accelerator: str | None = None,
    device_memory: int | str | None = None,
    host_memory: int | str | None = None,
    kv: str | None = None,
    evict: str | None = None,
    kv_tokens: float | None = None,
    kv_spill: str | os.PathLike[str] | None = None,
    chat: bool = False,
) -> Engine:
    """What `Engine.load` does."""
    from genmote.models import packed, store
    from genmote.models.chat import MEMORY_BYTES, ChatTemplate
    from genmote.models.config import read_config
    from genmote.models.decoder import Decoder
    from genmote.models.gguf import ModelFile
    from genmote.models.tokenizer import load_tokenizer
    from genmote.models.weights import GgufWeights
    from genmote.runtime import footprint
    from genmote.runtime.accelerator import accelerated
    from genmote.runtime.experts import ExpertCache, without_experts
    from genmote.runtime.extras import Extras
    from genmote.runtime.session import CHUNK

    if memory is None and kv == "auto":  # without a budget nothing is given up
        kv = None
    budget = None if memory is None else budget_bytes(memory)
    if budget is not None:
        footprint.without_holes()
    count = checked_threads(threads)
    wanted = accelerated(ops, isa, accelerator, device_memory, host_memory)
    opset = choose_ops(ops, isa, count) if wanted is None else wanted.ops()  # before a model is fetched for nothing
    check_cache(opset, context, kv, evict, kv_tokens, kv_spill)
    path = store.resolve(model) if progress is None else store.resolve(model, progress=progress)
    started = time.perf_counter()
    file = ModelFile.open(path)
    files = open_adapters(adapter or ())
    if files:
        from genmote.models.lora import check_lora

        for _, _, each in files:
            check_lora(each, read_config(file))  # before weights are re-laid for nothing
    asked: dict[str, Any] = {"draft": draft, "context": context, "sessions": sessions, "threads": count, "kv": kv}
    asked |= {"evict": evict, "kv_tokens": kv_tokens, "kv_spill": kv_spill}
    planned = {"chat templates": MEMORY_BYTES} if chat and "tokenizer.chat_template" in file.metadata else {}
    if budget is not None:
        asked["beside"] = sum(planned.values())
        asked["adapter_bytes"] = footprint.adapter_bytes(read_config(file), [each for _, _, each in files])
        _check_table(file, budget, asked)
    tokenizer, template = load_tokenizer(file), ChatTemplate.of(file)  # before weights are re-laid for nothing
    matrices: Any = packed.loader(file, opset, progress=progress) if wanted is None else wanted.loader(file, opset)
    made = streaming = experts = None
    if budget is not None:
        tokenizer.release()  # the plan counts it
        footprint.trim()  # what a first load took to make its files is given back
        made = plan_for(file, budget, **asked)
        context, kv, evict, kv_tokens = made.context, made.kv, made.evict, made.kv_tokens
        matrices = streaming = _streaming(matrices, file, opset)
        if 0 < made.expert_bytes < footprint.weights(file).experts:
            experts = ExpertCache.of(streaming.packed, made.expert_bytes)
            matrices = without_experts(streaming)
    weights = GgufWeights(file, opset, matrices)
    if experts is not None:
        experts.attach(weights)
    engine = cls(
        Decoder(weights.config, weights, opset),
        tokenizer,
        chat_template=template,
        context=context,
        model_path=path,
        identity=file.sha256,
        threads=count,
        kv=kv,
        evict=evict,
        kv_tokens=kv_tokens,
        kv_spill=kv_spill,
        chunk=CHUNK if made is None else made.chunk_rows,
    )
    if wanted is not None:
        engine.tiers = wanted.told(matrices)
    # Reading a little here and there has mapped much around it; what is needed comes back.
    file.release(0, path.stat().st_size)
    if adapter is not None:
        engine.set_adapters(adapter)
    if draft is not None:  # a first load makes its files, in memory that weights do not have yet
        engine.draft = _draft(engine, draft, ops=ops, isa=isa, threads=threads, progress=progress)
    if made is not None and streaming is not None:
        footprint.trim()
        streaming.experts = experts
        streaming.arrange(engine.decoder.weights, made.pinned_bytes + made.ring_bytes if made.streams else None)
        engine.plan, engine.streaming, engine.experts = made, streaming, experts
        engine.decoder.before_pass = streaming.begin
        kept = room(made, weights.config)
        streaming.keep_to(kept, made.parts["kv"] if made.streams else 0)
        engine.extras = Extras(made, streaming, kept, weights.config, engine.lock, planned)
    engine.load_ms = (time.perf_counter() - started) * 1e3
    return engine


def check_cache(
    opset: Ops,
    context: int | None,
    kv: str | None,
    evict: str | None,
    kv_tokens: float | None,
    kv_spill: str | os.PathLike[str] | None,
) -> None:
    """Raise SpecError or OpsError for settings of the KV cache that no model can have: before one is loaded."""
    from genmote.ops.cache import KINDS
    from genmote.runtime.eviction import LEAST_ROWS, eviction, policy

    if kv not in (None, "auto", *KINDS):
        raise SpecError(f"kv={kv!r}: keys and values are kept as {', '.join(KINDS)}, or auto")
    if evict is not None:
        policy(evict)
    if kv_tokens is not None and kv_tokens >= LEAST_ROWS and kv_tokens == int(kv_tokens):
        eviction(evict, kv_tokens, context or 2**31)  # a share needs the model's context
    if kv_spill is None:
        return
    if opset.name != "native":
        raise OpsError(f"kv_spill with the {opset.name} op set: only the native one keeps rows on disk")
    if not os.path.isdir(kv_spill) or not os.access(kv_spill, os.W_OK | os.X_OK):
        what = "takes no new files: " if os.path.isdir(kv_spill) else "is no folder: make it first, or "
        raise SpecError(f"kv_spill={os.fspath(kv_spill)!r} {what}give another one for cold rows")


def budget_bytes(memory: int | str) -> int:
    """An amount of memory as `Engine.load` takes it. Raises SpecError."""
    from genmote.device.sizes import parse_bytes

    budget = parse_bytes(memory, what="memory") if isinstance(memory, str) else memory
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise SpecError(f"memory={memory!r}: give bytes, or an amount such as 150MB or 1.5GiB")
    return budget


def _check_table(file: ModelFile, budget: int, asked: dict[str, Any]) -> None:
    """Raise BudgetError where a first load would need more than the budget to make the model's token table."""
    from genmote.models.tokenizer import cache
    from genmote.runtime import footprint

    making = cache.making_bytes(file)
    file.release(0, file.nbytes)
    needed = footprint.resident_bytes() + making
    if making and needed > budget:
        plan_for(file, budget, **asked)  # a budget that is too small for any load is told as such
        raise BudgetError(
            f"{file.path.name} is loaded for the first time, and to make its token table takes "
            f"{-(-needed // 1_000_000)} MB, more than {budget / 1e6:.0f} MB: run genmote pack once where there is room",
            needed,
        )


def plan_for(file: ModelFile, budget: int, *, draft: str | os.PathLike[str] | None, threads: int, **asked: Any) -> Plan:
    """How the model runs within `budget` bytes, which a model that guesses for it has a part of."""
    from genmote.models import store
    from genmote.models.config import read_config
    from genmote.models.gguf import ModelFile
    from genmote.runtime import plan as planning

    beside = 0
    if draft is not None:
        guesser = ModelFile.open(store.resolve(draft))
        trained = read_config(guesser).context_length
        small = planning.plan(
            guesser,
            context=min(asked.get("context") or trained, trained),
            sessions=asked.get("sessions", 1),
            threads=threads,
        )
        beside = small.predicted_bytes - small.parts["interpreter"]
    try:
        return planning.plan(file, memory=max(1, budget - beside), threads=threads, **asked)
    except BudgetError as error:
        if not beside or error.least_bytes is None:
            raise
        least = error.least_bytes + beside
        raise BudgetError(
            f"{file.path.name} does not fit {budget / 1e6:.0f} MB with the draft model, which takes {beside / 1e6:.0f} "
            f"MB of them: the least is {-(-least // 1_000_000)} MB; what helps: no --draft, a shorter --context",
            least,
        ) from None


def room(made: Plan, config: Config) -> Room:
    """What a plan leaves to a text as it grows."""
    from genmote.ops.cache import PAGE
    from genmote.runtime import footprint
    from genmote.runtime.eviction import eviction
    from genmote.runtime.streaming import Room

    forget = eviction(made.evict, made.kv_tokens, made.context)
    scratch = 0 if forget is None else forget.scratch_bytes(config, forget.longest(config.n_layers))
    return Room(
        made.budget_bytes or 0,
        footprint.kv_row_bytes(config, made.kv),
        2 * sum(config.kv_heads) * PAGE * made.sessions,
        made.parts["activations"] - scratch,
        made.chunk_rows,
        footprint.logits_bytes(config),
        scratch,
    )


def _streaming(matrices: Any, file: ModelFile, opset: Ops) -> Streaming:
    """The loader that keeps to a budget, over the packed file."""
    from genmote.models.packed import Packed, path_of
    from genmote.runtime.streaming import Streaming

    if opset.name != "native":
        raise OpsError(f"memory: only the native op set keeps to a budget, this is {opset.name}; leave memory out")
    if not isinstance(matrices, Packed):
        raise ModelFileError(
            f"{file.path.name}: a memory budget needs the re-laid weights in a file, and {path_of(file).parent} takes "
            "none: run genmote pack where there is room, and put the file there or beside the model"
        )
    return Streaming(matrices)


def _draft(
    engine: Engine, model: str | os.PathLike[str], *, progress: Callable[..., None] | None, **options: Any
) -> Engine:
    """The engine of the model that guesses for `engine`; it sees as much of a text as it can."""
    from genmote.fetch import quiet
    from genmote.models import store
    from genmote.models.config import read_config
    from genmote.models.gguf import ModelFile
    from genmote.runtime.speculate import check_tokens

    path = store.resolve(model, progress=progress or quiet)
    trained = read_config(ModelFile.open(path)).context_length
    small = type(engine).load(path, context=min(engine.context, trained), progress=progress, **options)
    check_tokens(small.tokenizer, engine.tokenizer)
    return small


def open_adapters(adapters: Adapters) -> list[tuple[Path, float, ModelFile]]:
    """Adapter files with their scales; a lone path has scale 1."""
    from genmote.models.gguf import ModelFile

    pairs = [(adapters, 1.0)] if isinstance(adapters, str | os.PathLike) else list(adapters)
    found = []
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], int | float):
            raise SpecError(f"adapter {pair!r}: give a path, or pairs (path, scale)")
        path = Path(pair[0])
        if not path.is_file():
            raise ModelNameError(f"{path}: no adapter file is there; check the path")
        found.append((path, float(pair[1]), ModelFile.open(path)))
    return found


def choose_ops(name: str | None, isa: str | None, threads: int) -> Ops:
    """The op set called `name`, or GENMOTE_OPS, or the fastest that runs here. One line on standard error tells of the
    slow one, where nobody asked for it."""
    wanted = name or os.environ.get("GENMOTE_OPS") or None
    if wanted is None:
        wanted = "native" if importlib.util.find_spec("genmote.ops._native") else "numpy"
        if wanted == "numpy":
            print(
                "genmote: the native kernels are not built here, NumPy computes instead (slow); "
                "install a C++ compiler and reinstall genmote",
                file=sys.stderr,
            )
            if os.environ.get("GENMOTE_ISA"):
                print("genmote: GENMOTE_ISA has no effect without the native kernels", file=sys.stderr)
    if wanted == "native":
        return opsets.load(wanted, isa=isa, threads=threads)
    if isa is not None:
        raise OpsError(f"isa={isa!r}: only the native op set has instruction sets, this is {wanted}; leave isa out")
    return opsets.load(wanted)


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with open(path, "rb", buffering=0) as file:
        return digest.of_file(file)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, remembered while the file does not change."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def peak_rss_bytes() -> int:
    """Greatest resident memory of this process so far."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
