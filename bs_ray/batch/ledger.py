"""The ledger says what is done: one line for each shard, written once, after the shard's outputs.

A shard's photos are written first, and then its line, on condition that there is none yet. A crash
before that costs this shard's work and nothing else. The reports are made from the lines alone.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.batch.input_list import InputList
from bs_ray.batch.rows import OUTPUT_SCHEMA, EditedRow, OutputRow
from bs_ray.batch.sinks import SINKS, EncodedPhoto
from bs_ray.images.encode import encode
from bs_ray.images.rows import QuarantinedRow, is_quarantined, quarantined
from bs_ray.storage import Store

MANIFEST_KEY, QUARANTINE_KEY, SUMMARY_KEY = "manifest.parquet", "quarantine.jsonl", "summary.json"
_SHARDS = "_bs_ray/shards"
_REQUESTS = 8
_LINES = 64  # shards in memory at once

Row = OutputRow | QuarantinedRow


def commit_shard(
    output: Store,
    sink: str,
    shard: int,
    rows: Sequence[EditedRow | QuarantinedRow],
    provenance: Callable[[EditedRow], dict[str, Any]],
) -> list[Row]:
    """Write the shard's photos, then its line, whose rows are returned in the given order.

    The edits of a photo follow each other; where one of them cannot be encoded, all are given up.
    """
    photos = [list(edits) for _, edits in groupby(rows, key=lambda row: row["key"])]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        made = list(pool.map(lambda edits: _made(edits, provenance), photos))
    flat = [row for some in made for row in some]
    written = iter(SINKS[sink](output, shard, [m for m in flat if isinstance(m, EncodedPhoto)]))
    done: list[Row] = [next(written) if isinstance(row, EncodedPhoto) else row for row in flat]
    line = {"shard": shard, "rows": done}
    output.write_if_absent(_shard_key(shard), _json(line, indent=1).encode())
    return done


def _made(
    edits: Sequence[EditedRow | QuarantinedRow], provenance: Callable[[EditedRow], dict[str, Any]]
) -> Sequence[EncodedPhoto | QuarantinedRow]:
    if is_quarantined(edits[0]):
        return [edits[0]]
    try:
        pairs = [(row, provenance(row)) for row in edits]  # type: ignore[arg-type]
        return [EncodedPhoto(row, encode(row, made), made) for row, made in pairs]  # type: ignore[arg-type]
    except Exception as error:  # such as metadata too long for the format
        reason = f"damaged: {type(error).__name__}: {error}"
        return [quarantined(edits[0]["key"], "encode", reason)]


def done_shards(output: Store) -> set[int]:
    """The shards that have a line."""
    entries = output.walk(_SHARDS + "/")
    return {int(e.key.rpartition("/")[2].removesuffix(".json")) for e in entries}


def reopen(output: Store, shards: Sequence[int]) -> None:
    """Remove the lines of some shards, so that the next run makes them again."""
    for shard in shards:
        output.delete(_shard_key(shard))


def read_lines(output: Store, shards: Sequence[int]) -> Iterator[Row]:
    """All rows of some shards, in order."""
    return chain.from_iterable(read_shards(output, shards))


def read_shards(output: Store, shards: Sequence[int]) -> Iterator[list[Row]]:
    """The rows of each of some shards, in order; memory holds a few lines."""

    def rows(shard: int) -> list[Row]:
        return json.loads(output.read(_shard_key(shard)))["rows"]

    with ThreadPoolExecutor(_REQUESTS) as pool:
        for first in range(0, len(shards), _LINES):
            yield from pool.map(rows, shards[first : first + _LINES])


def _shard_key(shard: int) -> str:
    return f"{_SHARDS}/{shard:05d}.json"


def write_reports(input_list: InputList) -> dict[str, Any]:
    """Write manifest.parquet, quarantine.jsonl and, last, summary.json; returns the summary.

    Everything in them comes from the ledger, so equal jobs leave equal reports. Raises
    RuntimeError where inputs and rows do not match one to one.
    """
    output = input_list.output
    outputs, kinds = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        table, list_of_bad = Path(folder, MANIFEST_KEY), Path(folder, QUARANTINE_KEY)
        with (
            pq.ParquetWriter(table, OUTPUT_SCHEMA, compression="zstd") as good,
            list_of_bad.open("w", encoding="utf-8") as bad,
        ):
            for rows in _reconciled(input_list):
                refused = [row for row in rows if is_quarantined(row)]
                made = [row for row in rows if not is_quarantined(row)]
                good.write_table(pa.Table.from_pylist(made, schema=OUTPUT_SCHEMA))
                bad.writelines(_json(row) + "\n" for row in refused)
                kinds.update(f"{r['stage']}: {r['reason'].partition(':')[0]}" for r in refused)
                outputs += len(made)
        output.write(MANIFEST_KEY, table.read_bytes())
        output.write(QUARANTINE_KEY, list_of_bad.read_bytes())
    summary = {
        "inputs": input_list.photos,
        "edited": input_list.photos - kinds.total(),
        "quarantined": kinds.total(),
        "outputs": outputs,
        "quarantined_by_reason": dict(sorted(kinds.items())),
        "ignored": input_list.ignored,
        "shards": input_list.shards,
        "input_sha256": input_list.sha256,
        "settings": input_list.settings,
    }
    output.write(SUMMARY_KEY, (_json(summary, indent=2) + "\n").encode())
    return summary


def _reconciled(input_list: InputList) -> Iterator[list[Row]]:
    """The ledger's rows, some shards at a time, checked against the input list key by key."""
    keys = input_list.keys()
    for first in range(0, input_list.shards, _LINES):
        shards = range(first, min(first + _LINES, input_list.shards))
        rows = list(read_lines(input_list.output, shards))
        for key, _ in groupby(rows, key=lambda row: row["key"]):
            if next(keys, None) != key:
                raise _foreign(input_list, key)
        yield rows
    if (left := next(keys, None)) is not None:
        raise _foreign(input_list, left)


def _foreign(input_list: InputList, key: str) -> RuntimeError:
    return RuntimeError(
        f"{input_list.output.uri}: got rows that do not match the {input_list.photos} inputs key "
        f"by key, first at {key!r}. Something else wrote below _bs_ray; use a fresh output"
    )


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, indent=indent)
