"""What a client did wrong, in the error shape of the OpenAI API: one JSON object that says what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from genmote.errors import ContextError, GenmoteError, GrammarError, ModelNameError, ServeError, TemplateError


class Problem(Exception):
    """Ends a request with `status` and ``{"error": {"message", "type", "param", "code"}}``.

    `param` names the field of the request at fault, `code` is for programs; both may be None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """
        >>> Problem(400, "n: got 0, wanted 1 or more", param="n").body()["error"]["type"]
        'invalid_request_error'
        """
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


_CODES: tuple[tuple[type[GenmoteError], int, str | None], ...] = (
    (ContextError, 400, "context_length_exceeded"),
    (GrammarError, 400, "invalid_schema"),
    (TemplateError, 400, "template_error"),
    (ModelNameError, 404, "model_not_found"),
    (ServeError, 503, "shutting_down"),  # the scheduler takes no more texts
)


def problem_of(error: GenmoteError) -> Problem:
    """The `Problem` that tells a client about an error raised below: the user's own are 400, the rest 500.

    >>> problem_of(GrammarError("bad schema")).code
    'invalid_schema'
    """
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            return Problem(status, str(error), code=code)
    return Problem(400 if error.exit_status == 2 else 500, str(error))


def shutting_down() -> Problem:
    return Problem(503, "the server is shutting down: try again later", code="shutting_down")
