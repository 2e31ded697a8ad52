"""Folders as stores: an object is a file."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bs_ray.storage.base import TEMPORARY, Entry, probe_name
from bs_ray.storage.errors import AccessError, MissingBucketError, StorageError, no_key


class Folder:
    """Objects are files. Writes go to a temporary file in the same folder, then take their name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes:
        with self._errors("read", key):
            return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        with self._errors("write", key), self._temporary(key, data) as temporary:
            os.replace(temporary, self.root / key)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        with self._errors("write", key), self._temporary(key, data) as temporary:
            try:
                os.link(temporary, self.root / key)  # atomic: the name appears with its content
            except FileExistsError:
                return False
            return True

    def stat(self, key: str) -> Entry | None:
        with self._errors("read", key):
            try:
                return _file_entry(self.root / key, key) if (self.root / key).is_file() else None
            except FileNotFoundError:
                return None

    def walk(self, prefix: str) -> Iterator[Entry]:
        for path in _files(self.root / os.path.dirname(prefix)):
            key = path.relative_to(self.root).as_posix()
            if path.name.startswith(TEMPORARY) or not key.startswith(prefix):
                continue
            with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
                yield _file_entry(path, key)

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            (self.root / key).unlink(missing_ok=True)

    def local_copy(self, key: str, cache_dir: Path | None) -> Path:
        if not (self.root / key).is_file():
            raise no_key(self.root / key)
        return self.root / key

    def download(self, entry: Entry, path: Path, report: Callable[[int], None]) -> None:
        with self._errors("read", entry.key):
            shutil.copyfile(self.root / entry.key, path)
        report(entry.size)

    def check(self, write: bool) -> None:
        if not write:
            if not self.root.is_dir():
                raise MissingBucketError(
                    f"Folder {self.root} does not exist. Expected an existing folder to read from."
                )
            with self._errors("list", ""):
                os.listdir(self.root)
            return
        probe = probe_name()
        self.write(probe, b"")
        self.delete(probe)

    def arrow_filesystem(self) -> tuple[Any, str]:
        from pyarrow import fs

        return fs.LocalFileSystem(), str(self.root)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes) -> Iterator[Path]:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / (TEMPORARY + secrets.token_hex(8))
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # otherwise a power cut can leave a name without its bytes
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        path = self.root / key
        try:
            yield
        except FileNotFoundError as error:
            if verb == "read":
                raise no_key(path) from error
            raise AccessError(f"Cannot {verb} {path}: {error.strerror}. {_FOLDER_HELP}") from error
        except PermissionError as error:
            raise AccessError(f"Cannot {verb} {path}: {error.strerror}. {_FOLDER_HELP}") from error
        except OSError as error:
            raise StorageError(f"Cannot {verb} {path}: {error.strerror}. {_FOLDER_HELP}") from error


_FOLDER_HELP = "Expected a folder with the rights and the space for it."


def _files(top: Path) -> Iterator[Path]:
    """All files below a folder, links followed. Each folder is listed once, however many links
    lead to it: by its own path, where that lies below, else by the first link."""
    seen, links = set[tuple[int, int]](), [top]
    while links:
        folders = [links.pop(0)]
        while folders:
            folder = folders.pop()
            try:
                about = folder.stat()
                entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
            except FileNotFoundError:
                continue
            except OSError as error:  # a folder must not be passed over in silence
                raise AccessError(
                    f"Cannot list {folder}: {error.strerror}. {_FOLDER_HELP}"
                ) from None
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif _is_linked_folder(entry):
                    links.append(Path(entry.path))
                else:
                    yield Path(entry.path)


def _is_linked_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _file_entry(path: Path, key: str) -> Entry:
    try:
        key.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(key).decode("utf-8", "backslashreplace")
        return Entry(shown, 0, "", "name: got bytes that are not UTF-8; expected a name of text")
    try:
        stat = path.stat()
    except OSError:
        if not path.is_symlink():
            raise
        return Entry(key, 0, "", f"dead link: it leads to {os.readlink(path)!r}")
    return Entry(key, stat.st_size, f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}")
