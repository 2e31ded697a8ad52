"""Generations: what an output holds after each time that its input had news.

    _bs_ray/input.parquet, _bs_ray/shards/     input list and ledger of generation 1
    _bs_ray/0002/input.parquet, .../shards/    those of generation 2
    generations/0002/                          its reports; once summary.json is there, it is whole
    summary.json, manifest.parquet, ...        copies of the reports of the last whole generation

A generation begins when its input list is written and is whole when its summary is, each by one
conditional put. The next one begins only then. So of any number of drivers, all work on the same.
"""

from __future__ import annotations

from bs_ray.storage import MissingKeyError, Store

MANIFEST_KEY, QUARANTINE_KEY, SUMMARY_KEY = "manifest.parquet", "quarantine.jsonl", "summary.json"
RETIRED_KEY = "retired.jsonl"
_REPORTS = "generations"


def work_folder(generation: int) -> str:
    """Where its input list and its ledger are. The first one's place is that of old outputs."""
    return "_bs_ray" if generation == 1 else f"_bs_ray/{generation:04d}"


def report_key(generation: int, name: str) -> str:
    """Where a report of a generation is, for ever."""
    return f"{_REPORTS}/{generation:04d}/{name}"


def last_whole(output: Store) -> int:
    """The newest generation that is whole; 0 for none."""
    ends = f"/{SUMMARY_KEY}"
    found = (e.key for e in output.walk(_REPORTS + "/") if e.key.endswith(ends))
    return max((int(key.split("/")[1]) for key in found), default=0)


def is_published(output: Store, generation: int) -> bool:
    """Whether readers who know the output alone see this generation."""
    try:
        return output.read(SUMMARY_KEY) == output.read(report_key(generation, SUMMARY_KEY))
    except MissingKeyError:
        return False


def publish(output: Store) -> None:
    """Put copies of the last whole generation's reports where readers look for them.

    A driver that was asleep while another one finished a later generation must not bring back the
    former one, so whoever has written looks again.
    """
    published = 0
    while (last := last_whole(output)) != published:
        for name in (MANIFEST_KEY, QUARANTINE_KEY, SUMMARY_KEY):  # the summary names the others
            output.write(name, output.read(report_key(last, name)))
        published = last
