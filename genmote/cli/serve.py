"""Serve a model over the OpenAI HTTP API, until Ctrl-C.

    genmote serve smollm2-135m --port 8080
    GENMOTE_API_KEY=... genmote serve smollm2-135m --host 0.0.0.0

Only this machine is listened to, unless a key is set. Requests are generated side by side, up to --max-sessions of
them; more wait, up to --queue.
"""

from __future__ import annotations

from genmote.cli._model import ModelFlags, bounds_of, scaled
from genmote.cli._output import Bar, Output
from genmote.errors import ServeError
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(ModelFlags):
    host: str = setting("address to listen on", default="127.0.0.1")
    port: int = setting("port to listen on; 0 takes any free one", default=8080)
    key: str | None = setting("key that clients must send (better: GENMOTE_API_KEY)", default=None)
    max_sessions: int = setting("texts generated at the same time", default=4)
    name: str | None = setting("what clients call the model (default: its name)", default=None)
    queue: int = setting("requests that may wait", default=16)
    body_limit: int = setting("most bytes of a request", default=4 * 1024 * 1024)


def run(settings: Settings, out: Output) -> None:
    try:
        from genmote.web import server
    except ModuleNotFoundError as fault:
        if (fault.name or "").startswith("genmote"):
            raise
        raise ServeError(f"serving needs {fault.name}: pip install 'genmote[server]'") from None

    with Bar() as bar:

        def ready(told: server.Ready) -> None:
            bar.close()
            values = {"url": told.url, "model": told.model, "context": told.context, "slots": told.slots}
            out.result(values, str(told))
            out.flush()

        server.serve(
            settings.model,
            name=settings.name,
            host=settings.host,
            port=settings.port,
            key=settings.key,
            max_sessions=settings.max_sessions,
            queue=settings.queue,
            body_limit=settings.body_limit,
            context=settings.context,
            threads=settings.threads,
            adapter=[scaled(text) for text in settings.adapter] or None,
            ops=settings.ops,
            isa=settings.isa,
            accelerator=settings.accelerator,
            device_memory=settings.device_memory,
            host_memory=settings.host_memory,
            memory=settings.memory,
            kv=settings.kv,
            evict=settings.evict,
            kv_tokens=settings.kv_tokens,
            kv_spill=settings.kv_spill,
            draft=settings.draft,
            governor=bounds_of(settings),
            progress=bar,
            ready=ready,
        )
