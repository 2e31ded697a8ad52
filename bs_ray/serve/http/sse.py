"""Server-sent events as OpenAI's clients read them with `stream=True`, and progress in between."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from bs_ray.serve.engine.tasks import EditTask, Event, Partial, Result, Step
from bs_ray.serve.http.pictures import write_picture
from bs_ray.serve.http.prepared import Part, Prepared
from bs_ray.serve.http.problems import Problem
from bs_ray.serve.http.schema import EditRequest
from bs_ray.serve.http.service import Caller, Service, as_problem

_log = logging.getLogger(__name__)


async def begin(service: Service, prepared: Prepared, caller: Caller) -> AsyncIterator[bytes]:
    """The events of a request that the engine has accepted. Raises Problem before the first
    event."""
    merged = _merged(service, prepared)
    try:
        first = await anext(merged, None)  # none where a photo has no face to edit
    except Exception as error:
        if problem := as_problem(error):
            raise problem from error
        raise
    return _written(service, prepared, caller, first, merged)


async def _merged(service: Service, prepared: Prepared) -> AsyncIterator[tuple[int, Event]]:
    """The events of all tasks as they happen, each with its task's index. Closing it cancels all
    tasks."""
    queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()

    async def follow(index: int) -> None:
        try:
            async for event in service.backend.events(prepared.tasks[index]):
                queue.put_nowait((index, event))
        except Exception as error:
            queue.put_nowait((index, error))

    followers = [asyncio.ensure_future(follow(i)) for i in range(len(prepared.tasks))]
    left = len(followers)
    try:
        while left:
            index, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Result)
            yield index, event
    finally:
        for follower in followers:
            follower.cancel()


async def _written(
    service: Service,
    prepared: Prepared,
    caller: Caller,
    first: tuple[int, Event] | None,
    rest: AsyncIterator[tuple[int, Event]],
) -> AsyncIterator[bytes]:
    kind = "image_edit" if isinstance(prepared.request, EditRequest) else "image_generation"
    progress: dict[int, Step] = {}
    results: dict[int, Result] = {}
    event = first
    try:
        while event:
            index, what = event
            if isinstance(what, Step):
                progress[index] = what
                done = sum(step.step for step in progress.values())
                steps = what.steps * len(prepared.tasks)
                yield _event(f"{kind}.progress", step=done, steps=steps)
            elif isinstance(what, Partial):
                file = await service.aside(_partial, prepared, index, what)
                yield _event(f"{kind}.partial_image", partial_image_index=what.index, b64_json=file)
            else:
                results[index] = what
            event = await anext(rest, None)
        reply = await service.reply_of(prepared, [results[i] for i in sorted(results)], caller)
        shared: dict[str, Any] = {"created_at": reply.created, "meta": reply.meta.model_dump()}
        for place, image in enumerate(reply.data):
            found = image.model_dump(exclude_none=True)
            yield _event(f"{kind}.completed", index=place, **found, **shared)
    except Exception as error:
        problem = as_problem(error)
        if problem is None:
            _log.error("request %s failed", caller.request_id, exc_info=error)
            detail = "the request failed on the server; its log has the cause"
            problem = Problem(500, "internal-error", detail)
        yield _event("error", **problem.body(caller.request_id))
    finally:
        await rest.aclose()  # type: ignore[attr-defined]
    yield b"data: [DONE]\n\n"


def _partial(prepared: Prepared, index: int, what: Partial) -> str:
    """The picture of the first mix so far, as far as it is the task's: a PNG in base64."""
    part, first = _place(prepared, index)
    if part.subject is None:
        pixels = what.pictures[0]
    else:
        pixels = part.subject.preview(what.changes[0], first)
    file = write_picture(pixels, "png", 0, None, {"partial": what.index})
    return base64.b64encode(file).decode()


def _place(prepared: Prepared, index: int) -> tuple[Part, int]:
    """The part that the task of that number is of, and its first view."""
    for part in prepared.parts:
        first = 0
        for task in part.tasks:
            if index == 0:
                return part, first
            first += len(task.edits) if isinstance(task, EditTask) else 0
            index -= 1
    raise IndexError(index)


def _event(kind: str, **data: Any) -> bytes:
    """The bytes of one event. `type` is its name, except in a problem, which has its own type."""
    body = {"type": kind, **data}
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()
