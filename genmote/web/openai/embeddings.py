"""POST /v1/embeddings: texts as vectors of unit length.

https://platform.openai.com/docs/api-reference/embeddings/create
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genmote.web.fields import Body, parse, wrong
from genmote.web.openai.completions import read_prompts
from genmote.web.openai.options import room_for, served
from genmote.web.problem import Problem
from genmote.web.service import Check, Service, read_body, while_connected

_MOST = 2048  # inputs in one request, as in the API


async def embeddings(request: Request) -> Response:
    service: Service = request.app.service
    body = parse(await read_body(request, service))
    inputs = await while_connected(request.receive, service.clerk(lambda: read(body, service)))
    encoded = body.choice("encoding_format", "float", ["float", "base64"]) == "base64"

    def compute(check: Check) -> list[dict[str, Any]]:
        found = []
        for index, tokens in enumerate(inputs):
            check()
            vector = _wire(service.backend.embed(tokens, check), encoded)
            found.append({"object": "embedding", "index": index, "embedding": vector})
        return found

    data = await while_connected(request.receive, service.compute(compute))
    count = sum(map(len, inputs))
    request.scope["note"]["prompt"] = count
    return JSONResponse(
        {
            "object": "list",
            "data": data,
            "model": service.backend.names[0],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
    )


def read(body: Body, service: Service) -> list[list[int]]:
    """The inputs as token ids. Raises `Problem` for what cannot be served. Runs the tokenizer."""
    backend = service.backend
    served(body, backend)
    if body.has("dimensions"):
        raise Problem(
            400,
            "dimensions is not supported: the model's vectors have one length, leave it out",
            param="dimensions",
            code="unsupported",
        )
    value = body.raw("input")
    if value == "" or (isinstance(value, list) and "" in value):
        raise wrong("input", "an empty text", "text")
    inputs = [prompt.ids for prompt in read_prompts(body, "input", backend)]
    if len(inputs) > _MOST:
        raise wrong("input", f"{len(inputs)} inputs", f"at most {_MOST}")
    for tokens in inputs:
        if not tokens:
            raise wrong("input", "an empty list of tokens", "at least one token")
        room_for(len(tokens) - 1, 1, backend, "input")
    return inputs


def _wire(vector: Sequence[float], encoded: bool) -> list[float] | str:
    """A vector as JSON numbers, or as base64 of little-endian float32."""
    values = np.asarray(vector, "<f4")
    return base64.b64encode(values.tobytes()).decode("ascii") if encoded else [float(value) for value in values]
