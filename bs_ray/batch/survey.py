"""The files below an input, counted: which may hold photos, and which are left out, and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from bs_ray.batch.external_sort import SortedFiles, ends
from bs_ray.images.formats import SUFFIXES, is_companion
from bs_ray.storage import Store

SUFFIXES_OF = {"images": SUFFIXES, "parquet": (".parquet",), "webdataset": (".tar",)}
"""Input format -> how the names of its files end."""
_OURS = "_bs_ray"
"""A folder in the output of every job."""
_NAMED = 5  # kinds of other files that a note names


class Survey:
    """What lies below an input, sorted by name; it is listed once, here."""

    def __init__(self, source: Store, folder: Path, pattern: str, output: Store):
        """folder: for scratch files. pattern: as `place_of_input` gives it. output: the job's own;
        whatever of it lies below the input is left out. Raises StorageError."""
        self._pattern, self.companions, self.unmatched = pattern, 0, 0
        own = output.uri.removeprefix(source.uri.rstrip("/") + "/")
        self._outputs = {own} if own != output.uri else set[str]()
        self._files = SortedFiles(source, folder, self._takes)
        self.counts = dict.fromkeys(SUFFIXES_OF, 0)
        self.first: dict[str, str] = {}
        """Format -> the first file of it."""
        self.results, self._others = Counter[str](), Counter[str]()
        self._count()

    def _takes(self, key: str) -> bool:
        if _OURS in key:
            before, found, _ = f"/{key}".partition(f"/{_OURS}/")
            self._outputs |= {before[1:]} if found else set()
        if self._pattern and not re.fullmatch(self._pattern, key):
            self.unmatched += 1
        elif is_companion(key):
            self.companions += 1
        else:
            return True
        return False

    def _count(self) -> None:
        for batch in self._files.batches():
            for place in sorted(self._outputs):
                self.results[place] += pc.sum(_below(batch["key"], place)).as_py() or 0
            taken = self._outside(batch)
            photos = ends(taken["key"], SUFFIXES)
            for kind, suffixes in SUFFIXES_OF.items():
                keys = taken["key"].filter(ends(taken["key"], suffixes))
                self.counts[kind] += len(keys)
                if len(keys):
                    self.first.setdefault(kind, keys[0].as_py())
            for key in taken["key"].filter(pc.invert(photos)).to_pylist():
                self._others[PurePosixPath(key).suffix.lower()[:10] or "without a suffix"] += 1

    def _outside(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The files of a batch that belong to no output."""
        for place in sorted(self._outputs):
            batch = batch.filter(pc.invert(_below(batch["key"], place)))
        return batch

    def pages(self, kind: str) -> Iterator[pa.RecordBatch]:
        """The files of a format in order, some at a time."""
        for batch in self._files.batches():
            taken = self._outside(batch)
            yield taken.filter(ends(taken["key"], SUFFIXES_OF[kind]))

    @property
    def files(self) -> int:
        """All files, but for those that do not match the pattern."""
        return self._files.count + self.companions

    def ignored(self, kind: str) -> int:
        """How many files a listing of this format leaves out."""
        return self.files - self.counts[kind]

    def notes(self, kind: str) -> Iterator[str]:
        """What a listing of this format leaves out, and why."""
        if self.companions:
            some = _files(self.companions)
            yield f"left out: {some} that systems put beside photos (._*, .DS_Store and the like)"
        for place, count in sorted(self.results.items()):
            if count:
                where = f"below {place}, the output of a job" if place else f"below {_OURS}"
                yield f"left out: {_files(count)} {where}"
        if self.unmatched:
            yield f"left out: {_files(self.unmatched)} beside what `input` names"
        others = self._others.copy()
        if kind != "images":
            others["photos"] = self.counts["images"]
            del others[SUFFIXES_OF[kind][0]]
        if named := [f"{n:,} {what}" for what, n in others.most_common(_NAMED) if n]:
            more = len(others) - _NAMED
            yield f"ignored: {', '.join(named)}{f', {more} other kinds' if more > 0 else ''}"


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _below(keys: pa.Array, place: str) -> pa.Array:
    """Which keys lie in an output. One that is the whole input is the input of the next job."""
    return pc.starts_with(keys, f"{place}/" if place else f"{_OURS}/")


def absolute_input(uri: str) -> str:
    """The same input for a process in another working folder."""
    store, pattern = place_of_input(uri)
    if not pattern:
        return store.uri
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def place_of_input(uri: str) -> tuple[Store, str]:
    """(the store to list, a regular expression for keys in it) of an `input`.

    That is a prefix, with "" for all that is there; one file; or a glob, as shells know them: `*`
    stands for anything but a slash, `**` for any folders. What a glob matches may be a folder.
    """
    remote, path = "://" in uri, Path(uri).expanduser()
    if not remote and path.is_dir():
        return Store(uri), ""
    folder, slash, name = uri.rpartition("/")
    packed = name.lower().endswith((*SUFFIXES_OF["webdataset"], *SUFFIXES_OF["parquet"]))
    if (packed and "*" not in name) if remote else path.is_file():
        return Store(folder or slash or "."), re.escape(name)
    parts = uri.split("/")
    first = next((i for i, part in enumerate(parts) if "*" in part or "?" in part), None)
    if first is None or (remote and first <= _AUTHORITY):
        return Store(uri), ""
    root = "/".join(parts[:first]) or ("/" if uri.startswith("/") else ".")
    return Store(root), _regex("/".join(parts[first:]))


_AUTHORITY = 2  # part of a URI that names its bucket
_GLOBS = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _regex(glob: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob.rstrip("/"))
    return "".join(_GLOBS.get(part, re.escape(part)) for part in parts) + "(/.*)?"
