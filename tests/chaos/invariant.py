"""What holds when a job has finished, whatever happened on the way."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO

import pyarrow.parquet as pq

from bs_ray.storage import Store
from tests.chaos.proxy import Event

TIMINGS = ("report.html", "_bs_ray/drivers/", "_bs_ray/latest.png")
"""Below an output, what tells of runs and their times; all else is a function of the job."""


def files(store: Store) -> dict[str, bytes]:
    """Every object but TIMINGS."""
    keys = [entry.key for entry in store.list()]
    return {key: store.read(key) for key in keys if not key.startswith(TIMINGS)}


def check_output(inputs: Mapping[str, bytes], found: Mapping[str, bytes]) -> None:
    """inputs = edited + quarantined by key; every hash is that of the bytes."""
    rows = pq.read_table(BytesIO(found["manifest.parquet"])).to_pylist()
    refused = [json.loads(line) for line in found["quarantine.jsonl"].splitlines()]
    assert sorted([row["key"] for row in [*rows, *refused]]) == sorted(inputs), "lost or doubled"
    images = {key for key in found if key.startswith("images/")}
    strange = images ^ {row["output"] for row in rows}
    assert not strange, f"in the store or in the manifest alone: {strange}"
    for row in rows:
        key = row["key"]
        assert row["sha256"] == hashlib.sha256(inputs[key]).hexdigest(), f"{key}: input's hash"
        made = found[row["output"]]
        assert row["output_sha256"] == hashlib.sha256(made).hexdigest(), f"{key}: output's hash"


def check_same(found: Mapping[str, bytes], undisturbed: Mapping[str, bytes]) -> None:
    """The bytes are those of a run that nothing happened to."""
    assert found.keys() == undisturbed.keys(), f"other keys: {found.keys() ^ undisturbed.keys()}"
    other = [key for key in found if found[key] != undisturbed[key]]
    assert not other, f"other bytes than the undisturbed run's: {other}"


def check_uploads(events: Sequence[Event], output: str) -> None:
    """No key below `output` was ever sent with different bytes, by whatever run."""
    sent = defaultdict(set)
    for event in events:
        key = event.key.removeprefix(output)
        if event.method == "PUT" and key != event.key and not key.startswith(TIMINGS):
            sent[key].add(event.upload)
    twice = [key for key, uploads in sent.items() if len(uploads) > 1]
    assert not twice, f"made twice, into different bytes: {twice}"


def check_flips(events: Sequence[Event], failed: bool) -> Counter[str]:
    """Every flipped bit was noticed in one run; returns how many there were, by kind.

    In an upload: the store refused it. In a download: the reader asked again, or the run failed.
    """
    flips = Counter[str]()
    for index, event in enumerate(events):
        if event.fault == "flip_request" and event.status:
            assert 400 <= event.status < 500, f"the store took a flipped bit: {event}"
        elif event.fault == "flip_reply":
            later = [e for e in events[index + 1 :] if (e.method, e.key) == ("GET", event.key)]
            assert later or failed, f"nobody asked again after a flipped bit: {event}"
        else:
            continue
        flips[event.fault] += 1
    return flips
