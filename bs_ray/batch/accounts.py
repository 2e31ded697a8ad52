"""The accounts of a generation: every photo of its input is edited or quarantined, by key.

They are made from its own ledger lines, and from the accounts of the generation before for what
stands; so equal jobs leave equal accounts.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.batch.external_sort import side_by_side
from bs_ray.batch.generations import (
    MANIFEST_KEY,
    QUARANTINE_KEY,
    RETIRED_KEY,
    SUMMARY_KEY,
    report_key,
)
from bs_ray.batch.input_list import InputList, place_of, read_input_list
from bs_ray.batch.ledger import read_lines
from bs_ray.batch.rows import OUTPUT_SCHEMA
from bs_ray.images.rows import is_quarantined

MANIFEST_SCHEMA = OUTPUT_SCHEMA.append(pa.field("generation", pa.int32(), nullable=False))
_PAGE = 4096  # photos in memory at once

Rows = list[dict[str, Any]]
"""What became of one photo: its OutputRows or its QuarantinedRow, with the generation it is of."""


def write_reports(input_list: InputList) -> None:
    """Make the generation whole: write its reports and, last, its summary.

    Raises RuntimeError where inputs and rows do not match one to one.
    """
    output, generation = input_list.output, input_list.generation
    every, own = _Counts(), _Counts()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in (MANIFEST_KEY, QUARANTINE_KEY, RETIRED_KEY)]
        table, bad, retired = paths
        with (
            pq.ParquetWriter(table, MANIFEST_SCHEMA, compression="zstd") as good,
            bad.open("w", encoding="utf-8") as bad_file,
            retired.open("w", encoding="utf-8") as retired_file,
        ):
            accounts = _reconciled(input_list)
            while page := list(islice(accounts, _PAGE)):
                rows = [row for some, _ in page for row in some]
                every.add(rows)
                own.add(row for row in rows if row["generation"] == generation)
                made = [row for row in rows if not is_quarantined(row)]
                good.write_table(pa.Table.from_pylist(made, schema=MANIFEST_SCHEMA))
                bad_file.writelines(_json(row) + "\n" for row in rows if is_quarantined(row))
                retired_file.writelines(_json(row) + "\n" for _, some in page for row in some)
        for path in paths:
            output.write(report_key(generation, path.name), path.read_bytes())
    summary = {
        "inputs": input_list.photos,
        "edited": input_list.photos - every.quarantined,
        "quarantined": every.quarantined,
        "outputs": every.outputs,
        "quarantined_by_reason": dict(sorted(every.kinds.items())),
        "ignored": input_list.ignored,
        "shards": input_list.shards,
        "input_sha256": input_list.sha256,
        "settings": input_list.settings,
        "generation": generation,
        "manifest": report_key(generation, MANIFEST_KEY),
        "quarantine": report_key(generation, QUARANTINE_KEY),
        "retired": report_key(generation, RETIRED_KEY),
        "changes": input_list.changes,
        "made": {
            "inputs": input_list.to_edit,
            "edited": input_list.to_edit - own.quarantined,
            "quarantined": own.quarantined,
            "outputs": own.outputs,
            "bytes": own.bytes,
        },
    }
    text = _json(summary, indent=2) + "\n"
    output.write_if_absent(report_key(generation, SUMMARY_KEY), text.encode())


class _Counts:
    """What some rows come to."""

    def __init__(self) -> None:
        self.outputs = self.bytes = 0
        self.kinds = Counter[str]()

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            if is_quarantined(row):
                self.kinds[f"{row['stage']}: {row['reason'].partition(':')[0]}"] += 1
            else:
                self.outputs += 1
                self.bytes += row["bytes"]

    @property
    def quarantined(self) -> int:
        return self.kinds.total()


def read_accounts(input_list: InputList) -> Iterator[tuple[dict[str, Any], Rows]]:
    """Every photo of a whole generation, as its input list has it, and what became of it."""
    made, refused = _by_key(_manifest_rows(input_list)), _by_key(_quarantine_rows(input_list))
    good, bad = next(made, None), next(refused, None)
    for row in input_list.rows():
        if good and good[0] == row["key"]:
            yield row, good[1]
            good = next(made, None)
        elif bad and bad[0] == row["key"]:
            yield row, bad[1]
            bad = next(refused, None)
        else:
            raise _foreign(input_list, row["key"])


def _by_key(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Rows]]:
    for key, some in groupby(rows, key=itemgetter("key")):
        yield key, list(some)


def _manifest_rows(input_list: InputList) -> Iterator[dict[str, Any]]:
    path = input_list.output.local_copy(report_key(input_list.generation, MANIFEST_KEY))
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_PAGE):
            yield from batch.to_pylist()


def _quarantine_rows(input_list: InputList) -> Iterator[dict[str, Any]]:
    path = input_list.output.local_copy(report_key(input_list.generation, QUARANTINE_KEY))
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _reconciled(input_list: InputList) -> Iterator[tuple[Rows, Rows]]:
    """For every photo, in order, its rows, and those of the generation before that they replace.

    A photo that is gone has none itself.
    """
    own = _by_key(_own_rows(input_list))
    former, now = _former(input_list), ((place_of(row), row) for row in input_list.rows())
    for before, photos in side_by_side(former, now):
        known = dict(before)
        for photo in photos:
            was = known.pop(photo["key"], [])
            if photo["generation"] == input_list.generation:
                key, rows = next(own, (None, []))
                if key != photo["key"]:
                    raise _foreign(input_list, key or photo["key"])
                yield rows, _retired(was, "replaced", {row.get("output") for row in rows})
            elif was:
                yield was, []
            else:
                raise _foreign(input_list, photo["key"])
        for was in known.values():
            yield [], _retired(was, "gone", set())
    if left := next(own, None):
        raise _foreign(input_list, left[0])


def _own_rows(input_list: InputList) -> Iterator[dict[str, Any]]:
    """The rows of the generation's own ledger."""
    generation = input_list.generation
    for row in read_lines(input_list.output, range(input_list.shards), generation):
        yield {**row, "generation": generation}


def _former(input_list: InputList) -> Iterator[tuple[str, tuple[str, Rows]]]:
    """The accounts of the generation before, as (place, (key, rows))."""
    if input_list.generation > 1:
        former = read_input_list(input_list.output, input_list.generation - 1)
        assert former is not None
        for photo, rows in read_accounts(former):
            yield place_of(photo), (photo["key"], rows)


def _retired(rows: Rows, why: str, still: set[str | None]) -> Rows:
    """The lines about outputs that no longer count; `still`: places that do.

    A photo that never had an output is named where it is gone.
    """
    return [
        {
            "key": row["key"],
            "edit": row.get("edit", ""),
            "output": row.get("output", ""),
            "generation": row["generation"],
            "why": why,
        }
        for row in rows
        if row.get("output") not in still and ("output" in row or why == "gone")
    ]


def _foreign(input_list: InputList, key: str) -> RuntimeError:
    return RuntimeError(
        f"{input_list.output.uri}: got rows that do not match the {input_list.photos} inputs key "
        f"by key, first at {key!r}. Something else wrote below _bs_ray; use a fresh output"
    )


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, indent=indent)
