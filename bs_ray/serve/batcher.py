"""Rows from many requests, computed together: the one place that decides what shares a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting(Generic[Row]):
    row: Row
    arrived_s: float
    reply: asyncio.Future


class Batcher(Generic[Row, Result]):
    """Calls `run(rows) -> results` on a thread of its own, with what has come in meanwhile.

    A batch is cut when the thread is free, not before: under load batches fill up by themselves,
    and the event loop keeps answering. (`@serve.batch` cuts one every `wait_s` even while another
    runs, so its batches stay small just when large ones are needed.)
    """

    def __init__(
        self, run: Callable[[list[Row]], Sequence[Result]], *, max_rows: int, wait_s: float
    ):
        """wait_s: how long the first row of a batch waits for company, since its arrival."""
        self._run, self._max_rows, self._wait_s = run, max_rows, wait_s
        self._queue: asyncio.Queue[_Waiting[Row]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._worker: asyncio.Task | None = None
        self.failures_in_a_row = 0
        """Rows that failed on their own since a run last succeeded."""

    async def submit(self, row: Row) -> tuple[Result, int]:
        """The row's result, and how many rows shared its run. Raises what `run` raised for it."""
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        waiting = _Waiting(row, loop.time(), loop.create_future())
        self._queue.put_nowait(waiting)
        return await waiting.reply

    async def _work(self) -> None:
        while True:
            await self._finish(await self._collect())

    async def _collect(self) -> list[_Waiting[Row]]:
        batch = [await self._queue.get()]
        deadline_s = batch[0].arrived_s + self._wait_s
        while len(batch) < self._max_rows:
            try:
                # A deadline already past still takes what stands in the queue.
                async with asyncio.timeout_at(deadline_s):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch

    async def _finish(self, batch: list[_Waiting[Row]]) -> None:
        batch = [waiting for waiting in batch if not waiting.reply.done()]  # callers that left
        if not batch:
            return
        rows, loop = [waiting.row for waiting in batch], asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self._run, rows)
        except Exception as error:
            await self._fail(batch, error)
            return
        self.failures_in_a_row = 0
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.reply.done():
                waiting.reply.set_result((result, len(rows)))

    async def _fail(self, batch: list[_Waiting[Row]], error: Exception) -> None:
        """Try the rows one by one, so that one row's error reaches its own caller only."""
        if len(batch) > 1:
            for waiting in batch:
                await self._finish([waiting])
            return
        self.failures_in_a_row += 1
        if not batch[0].reply.done():
            batch[0].reply.set_exception(error)
