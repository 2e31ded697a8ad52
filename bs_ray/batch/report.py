"""The pages and pictures that a job leaves: report.html, contact sheets of before and after."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from bs_ray import __version__
from bs_ray.batch.board import STAGES
from bs_ray.batch.generations import SUMMARY_KEY, last_whole, report_key
from bs_ray.batch.input_list import KINDS, InputList, read_input_list
from bs_ray.batch.lease import earlier_runs
from bs_ray.batch.ledger import read_lines
from bs_ray.batch.prepare import EditFailed
from bs_ray.batch.readers import fetch_all
from bs_ray.batch.rows import ImageRow, OutputRow
from bs_ray.batch.sinks import read_output
from bs_ray.batch.survey import place_of_input
from bs_ray.config import EditJob
from bs_ray.images.rows import QuarantinedRow, is_quarantined
from bs_ray.images.sheets import draw_pairs
from bs_ray.progress import counted
from bs_ray.storage import Store

REPORT_KEY, LATEST_KEY = "report.html", "_bs_ray/latest.png"
_PAIRS = 8
_EXAMPLES = 3  # photos shown of each kind of quarantine
_ENTRIES = 100_000  # lines of the quarantine that the page reads
_GENERATIONS = 30  # the last ones, which the page has a line for


def contact_sheet(job: EditJob, path: str | Path, pairs: int = _PAIRS) -> Path:
    """Write a PNG of `pairs` photos before and after, spread over the first generation's outputs.

    Raises EditFailed where the job has not finished.
    """
    output = Store(job.output)
    input_list = read_input_list(output)
    if input_list is None or not last_whole(output):
        raise EditFailed(f"{job.output}: got no finished job; run `bs-ray edit` first")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet(job, input_list, spread(input_list, pairs), pairs))
    return path


def spread(input_list: InputList, pairs: int = _PAIRS) -> list[int]:
    """Numbers of some shards, spread from the first to the last."""
    count = min(pairs, input_list.shards)
    return [i * input_list.shards // count for i in range(count)]


def sheet(job: EditJob, input_list: InputList, shards: Sequence[int], pairs: int = _PAIRS) -> bytes:
    """A PNG of photos before and after, from some committed shards."""
    share = -(-pairs // len(shards))
    images: dict[str, ImageRow] = {}
    shown: list[OutputRow] = []
    for shard in shards:
        lines = read_lines(input_list.output, [shard], input_list.generation)
        rows = [row for row in lines if not is_quarantined(row)]
        count = min(share, len(rows))
        shown += [rows[i * len(rows) // count] for i in range(count)]
        images |= {image["key"]: image for image in input_list.shard(shard)}
    shown = shown[:pairs]
    before = fetch_all(
        place_of_input(job.input)[0],
        [images[row["key"]] for row in shown],
        job.image_column,
        job.max_bytes,
    )
    triples = [
        (
            f"{row['key']} {row['edit']}".rstrip(),
            data,
            read_output(input_list.output, row["output"]),
        )
        for row, data in zip(shown, before, strict=True)
        if isinstance(data, bytes)
    ]
    title = ", ".join(f"{name} {_strengths(given)}" for name, given in job.strengths.items())
    return draw_pairs(triples, title)


def _strengths(given: float | list[float]) -> str:
    return "/".join(f"{s:+g}" for s in (given if isinstance(given, list) else [given]))


def write_report(job: EditJob, input_list: InputList) -> None:
    """Write report.html at the output, about its last generation, which is whole."""
    output = input_list.output
    summary = json.loads(output.read(report_key(input_list.generation, SUMMARY_KEY)))
    pages = Environment(loader=PackageLoader("bs_ray", "."), autoescape=True)
    png = sheet(job, input_list, spread(input_list)) if summary["made"]["outputs"] else b""
    page = pages.get_template("batch/report.html.j2").render(
        title=f"bs_ray: {job.name}",
        counted=counted,
        job=job,
        version=__version__,
        summary=summary,
        sliders=[f"{name} {_strengths(given)}" for name, given in job.strengths.items()],
        sheet=f"data:image/png;base64,{base64.b64encode(png).decode()}" if png else "",
        bad=_quarantine(output.read(summary["quarantine"]), summary["quarantined_by_reason"]),
        generations=_generations(output, summary["generation"]),
        kinds=KINDS,
        runs=earlier_runs(output),
        stages=STAGES,
        settings=json.dumps(input_list.settings, indent=2, sort_keys=True),
    )
    output.write(REPORT_KEY, page.encode())


def _generations(output: Store, last: int) -> list[dict[str, Any]]:
    """The summaries of the last generations; none where there is but one."""
    numbers = range(max(1, last - _GENERATIONS + 1), last + 1)
    summaries = [json.loads(output.read(report_key(g, SUMMARY_KEY))) for g in numbers]
    return summaries if last > 1 else []


def _quarantine(lines: bytes, kinds: dict[str, int]) -> list[tuple[str, int, list[QuarantinedRow]]]:
    """(kind, how many, some of them) of quarantined photos, the most frequent kind first."""
    examples: dict[str, list[QuarantinedRow]] = defaultdict(list)
    for line in lines.splitlines()[:_ENTRIES]:
        row = json.loads(line)
        kind = f"{row['stage']}: {row['reason'].partition(':')[0]}"
        if len(examples[kind]) < _EXAMPLES:
            examples[kind].append(row)
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    return [(kind, count, examples[kind]) for kind, count in ordered]
