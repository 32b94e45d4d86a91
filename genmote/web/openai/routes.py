"""The OpenAI HTTP API as a list of routes, to be mounted in a `genmote.web.app.App`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from genmote.web.backend import Backend
from genmote.web.openai.chat import chat_completions
from genmote.web.openai.completions import completions
from genmote.web.openai.embeddings import embeddings
from genmote.web.openai.options import unknown_model
from genmote.web.service import Service


def routes() -> list[Route]:
    return [
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
    ]


async def models(request: Request) -> Response:
    service: Service = request.app.service
    return JSONResponse({"object": "list", "data": [_card(service.backend)]})


async def model(request: Request) -> Response:
    service: Service = request.app.service
    name = request.path_params["name"]
    if name not in service.backend.names:
        raise unknown_model(name, service.backend)
    return JSONResponse(_card(service.backend))


def _card(backend: Backend) -> dict[str, Any]:
    return {
        "id": backend.names[0],
        "object": "model",
        "created": backend.created,
        "owned_by": "genmote",
        "context_length": backend.context,
    }
