"""Reading a job file: overrides, checks, and errors that suggest what was meant."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from bs_ray.config.base import JobError, Settings
from bs_ray.config.edit import EditJob
from bs_ray.config.editor import EditorSettings
from bs_ray.config.evaluate import EvalJob
from bs_ray.config.explain import explain
from bs_ray.config.overrides import apply_override
from bs_ray.config.serve import ServeJob
from bs_ray.config.table import TableJob
from bs_ray.config.train import EARLIER_LOSSES, LATER_LOSSES, Losses, TrainJob
from bs_ray.config.words import WordsAtStrength

Job = TrainJob | EditJob | ServeJob | EvalJob | TableJob
_ADAPTER: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
KINDS: dict[str, type[Settings]] = {
    "train": TrainJob,
    "edit": EditJob,
    "serve": ServeJob,
    "evaluate": EvalJob,
    "table": TableJob,
}
"""A job file's `kind` -> the class whose value the file is."""
_VERBS = {"table": "evaluate"}
"""Kind -> the verb that runs it, where that is not its own name."""


def load(path: str | Path, overrides: list[str] | None = None, kind: str | None = None) -> Job:
    """Read a job file, apply `key=value` overrides (see overrides.py) and check it.

    Raises JobError for a missing or malformed file, an unknown key, a wrong value, or a file of
    another kind than the verb `kind` runs.
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
        apply_override(values, override, KINDS.get(values.get("kind", "")))
    return job_of(values, str(path), kind)


def job_of(values: dict[str, Any], source: str, kind: str | None = None) -> Job:
    """Settings as a job. Raises JobError as `load` does; the message names `source`."""
    found = values.get("kind")
    if found not in KINDS:
        raise JobError(f"{source}: got kind {found!r}; expected one of {', '.join(KINDS)}")
    verb = _VERBS.get(found, found)
    if kind and verb != kind:
        raise JobError(
            f"{source}: got a {found} job; expected a {kind} job: try `bs-ray {verb} {source}`"
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


def words_at_strength(values: dict[str, Any]) -> WordsAtStrength:
    """Words in a `sliders` section. Raises JobError."""
    try:
        return WordsAtStrength.model_validate(values)
    except ValidationError as error:
        raise JobError(_explain(error, "words")) from None


def shipped_job(name: str, overrides: list[str] | None = None) -> Job:
    """A job of the `jobs/` folder by its path there, such as `tiny/train-smile.yaml`."""
    package = Path(__file__).parent.parent
    folders = (package.parent / "jobs", package / "jobs")  # a clone, or an installed wheel
    folder = next((f for f in folders if f.is_dir()), folders[0])
    return load(folder / name, overrides)


def job_hash(job: Job) -> str:
    """16 hex digits that name the job's settings. A run resumes only under the same ones."""
    values = job.model_dump(by_alias=True)  # under their stored names, which never change
    if isinstance(job, TrainJob):
        # A setting that came later has no say in the name of a run that leaves it alone.
        for name in LATER_LOSSES:
            if values["losses"][name] == Losses.model_fields[name].default:
                del values["losses"][name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def as_begun_before(job: TrainJob) -> TrainJob:
    """The job with the defaults that its losses had in version 0.1.0, where it leaves them out."""
    left_out = EARLIER_LOSSES.keys() - job.losses.model_fields_set
    before = {name: EARLIER_LOSSES[name] for name in left_out}
    return job.model_copy(update={"losses": job.losses.model_copy(update=before)})


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _explain(error: ValidationError, kind: str) -> str:
    """What is wrong with a job, finding by finding: the key, got, expected, what to do."""
    lines = []
    for finding in error.errors():
        place = [str(part) for part in finding["loc"] if part != kind]
        if finding["type"] == "extra_forbidden":
            lines.append(_unknown_key(place, kind))
        else:
            lines.append(explain(finding, ".".join(place) or "job", _shown))
    return "; ".join(lines)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:80]


def _unknown_key(place: list[str], kind: str) -> str:
    owners: list[Any] = [KINDS[kind]]
    for part in place[:-1]:
        fields = [owner.model_fields[part] for owner in owners if part in owner.model_fields]
        # A slider's name and the member of a union are no fields: they stay within the section.
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
