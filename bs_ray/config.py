"""Every knob, once. A job file is a value of one class here; `load` reads and checks it.

No torch and no Ray in this module: `bs-ray train job.yaml` answers a typing error at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class JobError(ValueError):
    """A job file that cannot be used; the message says got, expected and what to do."""


def check_name(name: str) -> str:
    """A slider's or run's name: it becomes part of a path, so its letters are limited."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"got name {name!r}; expected 1-64 of a-z, 0-9, '-' and '_', starting with a letter or "
            "digit"
        )
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Prompts(_Strict):
    """What a slider moves between (METHOD 1)."""

    target: str
    """c_t: what the slider acts on, such as "person"."""
    positive: str
    """c+: the attribute at its high end, such as "person, smiling"."""
    negative: str
    """c-: the low end, such as "person, frowning"."""
    neutral: str | None = None
    """c_n: the centre of the target; the target prompt where left out."""


class Losses(_Strict):
    """The paper's loss and its weights (Eq 5-11); a weight of 0 switches an ingredient off."""

    triplet: float = Field(1.0, ge=0)
    """l_tri: weight of the guidance loss (Eq 5, 6)."""
    perceptual: float = Field(1.0, ge=0)
    """l_perp: weight of the perceptual loss (Eq 7)."""
    adversarial: float = Field(0.1, ge=0)
    """l_adv: weight of the adversarial loss (hinge)."""
    eta: float = Field(2.0, gt=0)
    """Guidance of the target: T(s) = e(c_n) + s * eta * (e(c+) - e(c-))."""
    max_strength: float = Field(2.0, gt=0)
    """S: every row draws its signed strength s from U(-S, S)."""
    image_timestep_max: int = Field(400, ge=1, le=1000)
    """Perceptual and adversarial terms act on timesteps up to this, where x0 is no blur."""
    perceptual_reference: Literal["real", "frozen"] = "frozen"
    """What Eq 7 compares with: the real photo, or the frozen base's own x0 estimate."""
    schedule_start: float = Field(0.4, ge=0, le=1)
    """t0 of Eq 9-10 as a share of the steps."""
    schedule_rate: float = Field(10.0, gt=0)
    """k of Eq 9-10, per run: k = schedule_rate / steps."""
    perceptual_floor: float = Field(0.2, ge=0, le=1)
    """Least perceptual share of the schedule (0 is the paper)."""
    adversarial_after: float = Field(0.3, ge=0, le=1)
    """Share of the steps after which the adversarial term comes in."""
    r1: float = Field(0.5, ge=0)
    """Weight of the discriminator's gradient penalty on real images (Mescheder et al. 2018)."""


class TrainJob(_Strict):
    """Train one slider: `bs-ray train JOB.yaml`."""

    kind: Literal["train"] = "train"
    name: str
    """Name of the run and of the slider it publishes."""
    base: str = "tiny"
    """`tiny`, or the folder of a diffusers SDXL base."""
    prompts: Prompts
    photos: str
    """Prefix with Parquet shards of real photos (`bs-ray ingest`), local or s3://."""
    registry: str = "sliders"
    """Where the slider is published, local or s3://."""
    runs: str = "runs"
    """Where checkpoints live, local or s3://."""
    losses: Losses = Losses()
    steps: int = Field(200, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(16, ge=1)
    """Rows a step, over all workers."""
    rank: int = Field(4, ge=1)
    """r of the low-rank update (Eq 3)."""
    alpha: float = Field(4.0, gt=0)
    """Scale of the update: W = W0 + s * alpha / r * B A (Eq 4)."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of the slider (AdamW)."""
    discriminator_lr: float = Field(1e-3, gt=0)
    """Learning rate of the discriminator (AdamW)."""
    workers: int = Field(2, ge=1)
    """Ray Train workers; each takes batch_size / workers rows."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage of both engines."""
    use_gpu: bool = False
    """One GPU per worker."""
    checkpoint_every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    max_failures: int = Field(2, ge=0)
    """Worker failures after which the run gives up."""
    seed: int = 0

    _name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def _even_batches(self) -> Self:
        if self.batch_size % self.workers:
            raise ValueError(
                f"got batch_size {self.batch_size} for {self.workers} workers; expected a multiple "
                "of workers"
            )
        return self


class EditorSettings(_Strict):
    """How a photo is edited (METHOD 4)."""

    method: Literal["displacement", "sdedit"] = "displacement"
    """`displacement` moves the photo by what the slider changes; `sdedit` re-noises it."""
    steps: int = Field(10, ge=1, le=1000)
    """Denoising steps."""
    strength: float = Field(0.6, gt=0, le=1)
    """Where in the noise range editing starts, as a share of the timesteps."""
    prompt: str | None = None
    """Text condition of both branches; the first slider's target prompt where left out."""
    working_px: int | None = Field(None, ge=16)
    """Side of the square whose area edits are computed at; the base's own size by default."""


class EditJob(_Strict):
    """Edit a bucket of photos: `bs-ray edit JOB.yaml`. The same command resumes."""

    kind: Literal["edit"] = "edit"
    name: str
    base: str = "tiny"
    """`tiny`, or the folder of a diffusers SDXL base."""
    input: str
    """Prefix of the photos (any nesting), local or s3://."""
    output: str
    """Prefix for edited photos, manifest and quarantine, local or s3://."""
    registry: str = "sliders"
    """Where sliders are looked up, local or s3://."""
    sliders: dict[str, float] = Field(min_length=1)
    """Slider (`name`, `name@version` or a .safetensors path) -> signed strength."""
    editor: EditorSettings = EditorSettings()
    shard_images: int = Field(32, ge=1)
    """Photos per shard: what is committed at once, and redone at most after a crash."""
    batch_size: int = Field(16, ge=1)
    """Photos per forward pass."""
    workers: int = Field(1, ge=1)
    """Editor actors, each with its own copy of the base."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    max_pixels: int = Field(64_000_000, ge=1)
    """Photos with more pixels are quarantined before they are decoded."""
    max_bytes: int = Field(64 << 20, ge=1)
    """Files larger than this are quarantined unread."""
    max_quarantined_share: float = Field(0.5, ge=0, le=1)
    """The job fails once more than this share of the inputs seen is quarantined."""
    seed: int = 0

    _name = field_validator("name")(check_name)


class Autoscaling(_Strict):
    """Ray Serve's replica count."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: float = Field(16, gt=0)
    """Requests in flight per replica that the autoscaler aims for."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"got min_replicas {self.min_replicas} > max_replicas {self.max_replicas}; "
                "expected min <= max"
            )
        return self


class ServeJob(_Strict):
    """Serve sliders: `bs-ray serve JOB.yaml`."""

    kind: Literal["serve"] = "serve"
    name: str
    base: str = "tiny"
    registry: str = "sliders"
    sliders: list[str] = Field(min_length=1)
    """Sliders to load, `name` or `name@version`."""
    editor: EditorSettings = EditorSettings()
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    autoscaling: Autoscaling = Autoscaling()
    max_batch_rows: int = Field(16, ge=1)
    """Most edits in one forward pass."""
    batch_wait_ms: float = Field(20, ge=0)
    """How long the first edit of a batch waits for company."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests waiting beyond this are answered 503 at once."""
    cpus_per_replica: float = Field(1.0, ge=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    max_pixels: int = Field(16_000_000, ge=1)
    max_bytes: int = Field(16 << 20, ge=1)
    max_strength: float = Field(4.0, gt=0)
    """Largest |scale| that a request may ask for."""

    _name = field_validator("name")(check_name)


class EvalJob(_Strict):
    """Measure sliders: `bs-ray evaluate JOB.yaml`."""

    kind: Literal["evaluate"] = "evaluate"
    name: str
    base: str = "tiny"
    registry: str = "sliders"
    sliders: dict[str, str] = Field(min_length=1)
    """Slider -> the attribute of the reader that it is meant to move."""
    output: str = "reports"
    """Folder for report.html, metrics.json and metrics.parquet."""
    strengths: list[float] = Field([-2, -1, 0, 1, 2], min_length=3)
    """The sweep; -1, 0 and 1 are always among them."""
    settings: dict[Literal["faces", "wild", "text"], Annotated[int, Field(ge=1)]] = Field(
        {"faces": 256, "wild": 256, "text": 64}, min_length=1
    )
    """Setting -> how many are measured: held-out faces, in-the-wild photos, generations."""
    editor: EditorSettings = EditorSettings()
    guidance_scale: float = Field(4.0, ge=0)
    """Classifier-free guidance of the text-guided setting."""
    batch_size: int = Field(16, ge=1)
    """Faces per forward pass (each with all strengths)."""
    workers: int = Field(1, ge=1)
    """Ray Data actors."""
    base_images: int = Field(0, ge=0)
    """Pictures to measure the base itself with (round trips, captions); 0 leaves it out."""
    seed: int = 0

    _name = field_validator("name")(check_name)

    @field_validator("strengths")
    @classmethod
    def _has_units(cls, strengths: list[float]) -> list[float]:
        if missing := {-1.0, 0.0, 1.0} - set(strengths):
            raise ValueError(f"got strengths without {sorted(missing)}; expected -1, 0 and 1")
        return sorted(strengths)


Job = TrainJob | EditJob | ServeJob | EvalJob
_ADAPTER: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
_KINDS: dict[str, type[_Strict]] = {
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
        _apply(values, override)
    found = values.get("kind")
    if found not in _KINDS:
        raise JobError(f"{path}: got kind {found!r}; expected one of {', '.join(_KINDS)}")
    if kind and found != kind:
        raise JobError(
            f"{path}: got a {found} job; expected a {kind} job: try `bs-ray {found} {path}`"
        )
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise JobError(f"{path}: {_explain(error, found)}") from None


def shipped_job(name: str, overrides: list[str] | None = None) -> Job:
    """A job of the `jobs/` folder by its path there, such as `tiny/train-smile.yaml`."""
    package = Path(__file__).parent
    folders = (package.parent / "jobs", package / "jobs")  # a clone, or an installed wheel
    folder = next((f for f in folders if f.is_dir()), folders[0])
    return load(folder / name, overrides)


def job_hash(job: Job) -> str:
    """16 hex digits that name the job's settings: a resumed run must have the same."""
    return hashlib.sha256(json.dumps(job.model_dump(), sort_keys=True).encode()).hexdigest()[:16]


def _apply(values: dict[str, Any], override: str) -> None:
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
            got = json.dumps(finding["input"], default=str)[:80]
            message = finding["msg"].removeprefix("Value error, ")
            lines.append(
                f"{'.'.join(place) or 'job'}: got {got}; {message[0].lower()}{message[1:]}"
            )
    return "; ".join(lines)


def _unknown_key(place: list[str], kind: str) -> str:
    owner: Any = _KINDS[kind]
    for part in place[:-1]:
        field = getattr(owner, "model_fields", {}).get(part)
        owner = field.annotation if field else owner
    known = list(getattr(owner, "model_fields", {}))
    close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
    hint = f"a known setting; did you mean {close[0]!r}?" if close else f"one of {', '.join(known)}"
    return f"got unknown key {'.'.join(place)!r}; expected {hint}"
