"""Errors as problems (RFC 9457), for people and programs to read."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

_log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """What is wrong with a request. `kind` is for programs, `detail` for people."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ):
        """members: further members of the body."""
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers, self.members = dict(headers or {}), members

    def body(self, request_id: str) -> dict[str, Any]:
        """The reply's body: the members of RFC 9457, the problem's own ones, and `error`, which is
        how OpenAI's clients expect to read the same."""
        title = self.kind.replace("-", " ").capitalize()
        return {
            "type": f"urn:bs-ray:problem:{self.kind}",
            "title": title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
            **self.members,
            "error": {
                "message": self.detail,
                "type": _openai_type(self.status),
                "code": self.kind,
                "param": self._param(),
            },
        }

    def _param(self) -> str | None:
        """The field that a detail such as "image: got ..." is about."""
        found = _FIELD.match(self.detail)
        return found[1] if found else None


_FIELD = re.compile(r"([a-z_]+(?:\.\w+)*)(?: [^:]*)?: got ")
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def _openai_type(status: int) -> str:
    otherwise = "server_error" if status >= 500 else "invalid_request_error"
    return _OPENAI_TYPES.get(status, otherwise)


def busy(detail: str, retry_after_s: float = 1.0) -> Problem:
    """503: the same request may succeed later, and sending it again is safe.

    detail: why. The reasons are Busy of the engine (engine/batcher.py), no replica (deploy.py and
    ingress.py), and a registry that does not answer (service.py).
    """
    seconds = max(1, round(retry_after_s + 0.5))
    return Problem(
        503, "busy", f"{detail}; try again in {seconds} s", headers={"Retry-After": str(seconds)}
    )


class OpenAIError(BaseModel):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    code: str
    param: str | None
    """The field that it is about."""


class ProblemBody(BaseModel):
    """An error's reply."""

    model_config = ConfigDict(extra="allow")

    type: str
    """urn:bs-ray:problem:<kind>"""
    title: str
    status: int
    detail: str
    """Got, expected and what to do."""
    request_id: str
    error: OpenAIError


def answer(request: Request, problem: Problem) -> JSONResponse:
    """The problem as a reply."""
    body = problem.body(getattr(request.state, "request_id", ""))
    return JSONResponse(body, problem.status, problem.headers, media_type=MEDIA_TYPE)


async def _problem(request: Request, error: Any) -> JSONResponse:
    return answer(request, error)


async def _http(request: Request, error: Any) -> JSONResponse:
    """Starlette's own errors: an unknown path, a wrong method, a form that cannot be parsed."""
    problem = Problem(error.status_code, "http-error", str(error.detail), headers=error.headers)
    return answer(request, problem)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """The errors of FastAPI's own checks of paths and headers."""
    found = [f"{finding['loc'][-1]}: {finding['msg'].lower()}" for finding in error.errors()]
    return answer(request, Problem(422, "wrong-value", "; ".join(found)))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request %s failed", getattr(request.state, "request_id", ""), exc_info=error)
    detail = "the request failed on the server; its log has the cause under this request's id"
    return answer(request, Problem(500, "internal-error", detail))


def handle_problems(app: FastAPI) -> None:
    """Make a problem of every error of `app`."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
