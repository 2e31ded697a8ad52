"""What every request passes first: an id, a limit on its body, headers, and a count of it."""

from __future__ import annotations

import re
import time
import uuid

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bs_ray.serve.http.pictures import too_large
from bs_ray.serve.http.problems import answer
from bs_ray.serve.metrics import IngressMetrics

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
}
_OPERATIONS = {"/v1/images/edits": "edits", "/v1/images/generations": "generations"}


class Middleware:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: IngressMetrics):
        self.app, self.max_bytes, self.metrics = app, max_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, began_s = Request(scope), time.perf_counter()
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status = 499  # stays so where the client leaves before the answer

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS.items()]
                if not given:  # Ray Serve's proxy, which gave it, also adds it to the reply
                    message["headers"].append((b"x-request-id", request.state.request_id.encode()))
            await send(message)

        try:
            await self._limited(request, scope, receive, send_marked)
        except Exception:
            status = 500  # handle_problems writes the reply
            raise
        finally:
            if operation := _OPERATIONS.get(scope["path"]):
                self.metrics.answered(operation, status, time.perf_counter() - began_s)
        return None

    async def _limited(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a body whose announced size is too large, and stop reading one that grows too
        large."""
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            problem = too_large(f"body: got {announced} bytes", self.max_bytes)
            return await answer(request, problem)(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise too_large(f"body: got more than {self.max_bytes} bytes", self.max_bytes)
            return message

        await self.app(scope, counted, send)
        return None
