"""What a program that uses the outputs reads, and checks."""

import hashlib
import io
import json
from typing import Any

import pyarrow.parquet as pq

from bs_ray.batch.sinks import read_output
from bs_ray.storage import Store


def manifest(output: Store, place: str = "manifest.parquet") -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(output.read(place))).to_pylist()


def jsonl(output: Store, place: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read(place).splitlines()]


def read_as_others_do(output: Store) -> int:
    """Follow summary.json: everything that it names is there and whole. Returns the generation."""
    summary = json.loads(output.read("summary.json"))
    rows = manifest(output, summary["manifest"])
    refused = jsonl(output, summary["quarantine"])
    assert len(rows) == summary["outputs"] and len(refused) == summary["quarantined"]
    keys = [row["key"] for row in [*rows, *refused]]
    assert len(set(keys)) == len(keys) == summary["inputs"]
    for row in rows:
        data = read_output(output, row["output"])
        assert hashlib.sha256(data).hexdigest() == row["output_sha256"], row
    return summary["generation"]
