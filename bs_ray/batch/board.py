"""What a job shows while it runs: progress, latest.png at the output, Prometheus metrics."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from bs_ray.batch.ledger import read_lines
from bs_ray.batch.prepare import PreparedJob
from bs_ray.images.rows import is_quarantined
from bs_ray.progress import BarsWithLines

STAGES = ("fetch", "decode", "edit", "write")
_LINES = 10  # lines of progress, on a console that is no terminal
_SHEET_EVERY_S = 15.0
_SHEET_SHARDS = 8


class Metrics:
    """The job for Prometheus, on http://<any address>:port/metrics; counts agree with the
    manifest."""

    def __init__(self, port: int | None):
        """port: where to serve; None serves nowhere, 0 on any free port, which is `self.port`
        then."""
        self.registry = CollectorRegistry()
        self.images = self._counter("images", "Photos that are through, by status.", ["status"])
        self.outputs = self._counter("outputs", "Edited photos written.")
        self.shards = self._counter("shards", "Shards committed.")
        self.busy = self._counter("stage_busy_seconds", "Time spent by stage.", ["stage"])
        self.expected = Gauge("bs_ray_edit_images_expected", "Inputs.", registry=self.registry)
        self._server = None
        if port is not None:
            self._server = start_http_server(port, registry=self.registry)[0]
            self.port = self._server.server_port

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"bs_ray_edit_{name}", text, labels, registry=self.registry)

    def add(self, shards: int, done: int, bad: int, outputs: int) -> None:
        """More of the job has been committed."""
        self.shards.inc(shards)
        self.images.labels("done").inc(done)
        self.images.labels("quarantined").inc(bad)
        self.outputs.inc(outputs)

    def close(self) -> None:
        """Stop serving."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()


class Board:
    """Progress of a generation, counting from the shards that earlier runs have done."""

    def __init__(
        self,
        console: Console,
        prepared: PreparedJob,
        done: list[int],
        metrics: Metrics,
        draw_latest: Callable[[list[int]], None],
    ):
        """draw_latest: called now and then, on a thread, with the shards that were committed
        last."""
        self.prepared, self.metrics = prepared, metrics
        self.seen = self.quarantined = self.fresh = self.outputs = 0
        self.busy = dict.fromkeys(STAGES, 0.0)
        self.total = prepared.input_list.to_edit
        metrics.expected.set(self.total)
        self.started, self._tenth = time.monotonic(), 0
        self._count_earlier(done)
        self._bar = _BarWithStages(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        generation = prepared.input_list.generation
        name = prepared.job.name + (f", generation {generation}" if generation > 1 else "")
        self._task = self._bar.add_task(
            name, total=self.total, completed=self.seen, note="starting", stages=""
        )
        self._latest: deque[int] = deque(maxlen=_SHEET_SHARDS)
        self._stop = threading.Event()
        self._artist = threading.Thread(target=self._draw, args=(draw_latest,), daemon=True)

    def _count_earlier(self, done: list[int]) -> None:
        last = None
        generation = self.prepared.input_list.generation
        for row in read_lines(self.prepared.output, done, generation):
            self.seen += row["key"] != last
            last = row["key"]
            self.quarantined += is_quarantined(row)
            self.outputs += not is_quarantined(row)
        self.metrics.add(len(done), self.seen - self.quarantined, self.quarantined, self.outputs)

    def __enter__(self) -> Board:
        if self._bar.console.is_terminal:
            self._bar.start()
        self._artist.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._artist.join()
        self._bar.stop()

    def add(self, shard: dict[str, Any]) -> None:
        """Another shard has been committed; `shard` is what `write_shard` returned."""
        inputs, bad = shard["inputs"], shard["quarantined"]
        self.seen, self.fresh = self.seen + inputs, self.fresh + inputs
        self.quarantined += bad
        self.outputs += shard["outputs"]
        self.metrics.add(1, inputs - bad, bad, shard["outputs"])
        for stage in STAGES:
            self.busy[stage] += shard[f"{stage}_s"]
            self.metrics.busy.labels(stage).inc(shard[f"{stage}_s"])
        self._latest.append(shard["shard"])
        self._bar.update(self._task, completed=self.seen, note=self._note(), stages=self._stages())
        self._print_line()

    @property
    def seconds(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self.started

    def _note(self) -> str:
        rate = self.fresh / self.seconds
        parts = [f"{self.quarantined} quarantined", f"{rate:.1f} images/s"]
        if (price := self.prepared.job.cost_per_hour) and rate:
            hours = self.seconds / 3600
            whole = hours + (self.total - self.seen) / rate / 3600
            parts.append(f"cost {hours * price:.2f} of {whole * price:.2f}")
        return ", ".join(parts)

    def _stages(self) -> str:
        """How many processes each stage has kept busy on average; for the editors, of how many."""
        shown = {stage: f"{stage} {s / self.seconds:.2f}" for stage, s in self.busy.items()}
        shown["edit"] += f" of {self.prepared.job.workers}"
        return "busy: " + ", ".join(shown.values())

    def _print_line(self) -> None:
        tenth = _LINES * self.seen // self.total
        if self._bar.console.is_terminal or tenth == self._tenth:
            return
        self._tenth = tenth
        left = timedelta(seconds=round((self.total - self.seen) * self.seconds / self.fresh))
        self._bar.console.print(
            f"{self.seen} of {self.total}, {self._note()}, ETA {left}; {self._stages()}",
            soft_wrap=True,
            highlight=False,
        )

    def _draw(self, draw_latest: Callable[[list[int]], None]) -> None:
        drawn: list[int] = []
        while not self._stop.is_set():
            self._stop.wait(_SHEET_EVERY_S if drawn else 1.0)  # it draws once more at the end
            latest = list(self._latest)
            if latest and latest != drawn:
                with contextlib.suppress(Exception):  # a picture that fails must not stop the job
                    draw_latest(latest)
                drawn = latest


class _BarWithStages(BarsWithLines):
    """A bar, and a line below it that says how busy the stages are."""

    def lines(self) -> Iterable[str]:
        return [f"  {t.fields['stages']}" for t in self.tasks if t.fields["stages"]]
