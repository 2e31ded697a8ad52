"""Every knob, once. A job file is a value of one class here; `load` reads and checks it.

No torch and no Ray in this module: `bs-ray train job.yaml` answers a typing error at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
)

from bs_ray.config.base import JobError, Settings
from bs_ray.config.edit import EditJob
from bs_ray.config.editor import EditorSettings
from bs_ray.config.evaluate import EvalJob
from bs_ray.config.serve import ServeJob
from bs_ray.config.train import TrainJob

Job = TrainJob | EditJob | ServeJob | EvalJob
_ADAPTER: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
_KINDS: dict[str, type[Settings]] = {
    "train": TrainJob,
    "edit": EditJob,
    "serve": ServeJob,
    "evaluate": EvalJob,
}


def load(path: str | Path, overrides: list[str] | None = None, kind: str | None = None) -> Job:
    """Read a job file, apply `key=value` overrides (dotted keys, YAML values) and check it.

    Raises JobError for a missing or malformed file, an unknown key, a wrong value, or a file of
    another kind than `kind`.
    """
    path = Path(path)
    if not path.is_file():
        raise JobError(f"job file: got {path}, which is not a file; expected a YAML job file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: got text that is not YAML; expected a job file. {error}") from None
    if not isinstance(values, dict):
        raise JobError(f"{path}: got {type(values).__name__}; expected a mapping of settings")
    for override in overrides or []:
        apply_override(values, override)
    return job_of(values, str(path), kind)


def job_of(values: dict[str, Any], source: str, kind: str | None = None) -> Job:
    """Settings as a job. Raises JobError, naming `source`, as `load` does."""
    found = values.get("kind")
    if found not in _KINDS:
        raise JobError(f"{source}: got kind {found!r}; expected one of {', '.join(_KINDS)}")
    if kind and found != kind:
        raise JobError(
            f"{source}: got a {found} job; expected a {kind} job: try `bs-ray {found} {source}`"
        )
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise JobError(f"{source}: {_explain(error, found)}") from None


def editor_settings(values: dict[str, Any]) -> EditorSettings:
    """An `editor` section. Raises JobError."""
    try:
        return EditorSettings.model_validate(values)
    except ValidationError as error:
        raise JobError(_explain(error, "editor")) from None


def shipped_job(name: str, overrides: list[str] | None = None) -> Job:
    """A job of the `jobs/` folder by its path there, such as `tiny/train-smile.yaml`."""
    package = Path(__file__).parent.parent
    folders = (package.parent / "jobs", package / "jobs")  # a clone, or an installed wheel
    folder = next((f for f in folders if f.is_dir()), folders[0])
    return load(folder / name, overrides)


def job_hash(job: Job) -> str:
    """16 hex digits that name the job's settings: a resumed run must have the same."""
    return hashlib.sha256(json.dumps(job.model_dump(), sort_keys=True).encode()).hexdigest()[:16]


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `key=value` (dotted key, YAML value) in a job's values. Raises JobError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise JobError(f"override: got {override!r}; expected key=value, such as steps=400")
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise JobError(
                f"override: got {override!r}, but {parent} is a value; expected a section"
            )
    values[leaf] = yaml.safe_load(text)


def _explain(error: ValidationError, kind: str) -> str:
    """pydantic's findings as one line each: key, got, expected, what to do."""
    lines = []
    for finding in error.errors():
        place = [str(part) for part in finding["loc"] if part != kind]
        if finding["type"] == "extra_forbidden":
            lines.append(_unknown_key(place, kind))
        elif finding["type"] == "missing":
            lines.append(f"{'.'.join(place)}: got nothing; expected a value (this key is required)")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            if not message.startswith("got "):  # our own messages say what was got
                got = json.dumps(finding["input"], default=str)[:80]
                message = f"got {got}; {message[0].lower()}{message[1:]}"
            lines.append(f"{'.'.join(place) or 'job'}: {message}")
    return "; ".join(lines)


def _unknown_key(place: list[str], kind: str) -> str:
    owners: list[Any] = [_KINDS[kind]]
    for part in place[:-1]:
        fields = [owner.model_fields[part] for owner in owners if part in owner.model_fields]
        # A slider's name, or the member of a union, is no field: it stays within the section.
        owners = [t for field in fields for t in _sections(field.annotation)] or owners
    known = list(dict.fromkeys(name for owner in owners for name in owner.model_fields))
    close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
    hint = f"a known setting; did you mean {close[0]!r}?" if close else f"one of {', '.join(known)}"
    return f"got unknown key {'.'.join(place)!r}; expected {hint}"


def _sections(annotation: Any) -> list[type[Settings]]:
    """The settings classes that an annotation such as `dict[str, A] | B` names."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]
