"""Every knob, once. A job file is a value of one class here; `load` reads and checks it.

No torch and no Ray in this module: `bs-ray train job.yaml` answers a typing error at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

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
    action: Literal["enhance", "erase"] = "enhance"
    """`enhance`: strength 1 moves towards the positive prompt; `erase`: away from it."""
    disentangle: list[str] = []
    """Attributes to hold still, such as [male, female]: each is put in front of all four prompts,
    and the target sums the differences over them (Concept Sliders, Eq 8)."""


class Pairs(_Strict):
    """Pictures of the same thing at several strengths: an image-pair ("visual") slider."""

    images: str
    """Prefix with one folder per strength, named by it ("-1", "1", "2"); pictures of one name
    belong together. Local or s3://."""
    target: str = ""
    """c_t: what all of them show, such as "a face"."""
    jitter: float = Field(0.1, ge=0, lt=1)
    """Each step moves a strength by up to this share of itself, so that the range between is
    learned too."""


class Losses(_Strict):
    """The paper's loss and its weights (Eq 5-11); a weight of 0 switches an ingredient off."""

    triplet: float = Field(1.0, ge=0)
    """l_tri: weight of the guidance loss (Eq 5, 6)."""
    triplet_form: Literal["guidance", "margin"] = "guidance"
    """`guidance`: squared distance to T(s); `margin`: relu(margin + d(e, T(s)) - d(e, T(-s)))."""
    margin: float = Field(1.0, gt=0)
    """Margin of the margin form as a share of d(T(s), T(-s)): at 1 the loss vanishes exactly where
    the slider does as told."""
    perceptual: float = Field(1.0, ge=0)
    """l_perp: weight of the perceptual loss (Eq 7)."""
    adversarial: float = Field(0.1, ge=0)
    """l_adv: weight of the adversarial loss (hinge)."""
    discriminator: Literal["pixel", "latent"] = "pixel"
    """What the discriminator looks at: decoded pictures, or latents (the cheap mode)."""
    eta: float = Field(2.0, gt=0)
    """Guidance of the target: T(s) = e(c_n) + s * eta * (e(c+) - e(c-))."""
    soft_mask: float = Field(0.0, ge=0, le=1)
    """Multiply the target's difference by a smooth mask of its own magnitude, to this degree: the
    slider then acts where the prompts disagree (METHOD 3, 7). 0 is the paper."""
    max_strength: float = Field(2.0, gt=0)
    """S: every row draws its signed strength s from U(-S, S)."""
    image_timestep_max: int = Field(400, ge=1, le=1000)
    """Perceptual and adversarial terms act on timesteps up to this, where x0 is no blur."""
    perceptual_reference: Literal["real", "frozen"] = "frozen"
    """What Eq 7 compares with: the real photo (always for pairs), or the frozen base's own x0
    estimate."""
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

    @property
    def image_terms(self) -> bool:
        """Whether any loss looks at pictures, for which x0 estimates must be decoded."""
        pixels = self.adversarial > 0 and self.discriminator == "pixel"
        return self.perceptual > 0 or pixels


class LiveTeacher(_Strict):
    """The frozen base's predictions are computed at every step: 6 forwards a sample."""

    mode: Literal["live"] = "live"


class CachedTeacher(_Strict):
    """They are computed once, stored, and shared by runs: 3 forwards a sample (METHOD 3)."""

    mode: Literal["cached"] = "cached"
    samples: int = Field(1024, ge=2)
    """Stored noisy latents with the base's predictions; every run step takes batch_size of them."""
    cache: str = "teacher-cache"
    """Where caches live, local or s3://; found again by the hash of what they were made from."""
    trajectory_share: float = Field(0.0, ge=0, le=1)
    """Share of the samples taken from the frozen base's own denoising runs, rather than from noised
    photos."""
    trajectory_guidance: float = Field(3.0, ge=0)
    """Classifier-free guidance of these runs."""
    on_policy_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of every batch taken from runs with the slider on, refreshed at each checkpoint."""
    workers: int = Field(1, ge=1)
    """Ray Data actors that build the cache, each with its own copy of the base."""


class Tracking(_Strict):
    """Where a run's curves and previews go besides the screen."""

    tensorboard: bool = True
    """Event files under <runs>/<run>/tensorboard."""
    mlflow: str | None = None
    """Tracking URI of an MLflow server, or a folder (pip install mlflow)."""
    wandb: str | None = None
    """Weights & Biases project (pip install wandb; its key comes from the environment)."""


class EarlyStop(_Strict):
    """Stop when previews no longer show the slider moving its attribute further."""

    patience: int = Field(3, ge=1)
    """Previews in a row without progress after which the run ends."""
    min_gain: float = Field(0.02, gt=0)
    """Rise of the effect that counts as progress, as a share of the effect so far."""


class TrainJob(_Strict):
    """Train one slider, or several together: `bs-ray train JOB.yaml`."""

    kind: Literal["train"] = "train"
    name: str
    """Name of the run, and of the slider it publishes."""
    base: str = "tiny"
    """`tiny`, `tiny-flow`, or a diffusers folder: SDXL, SD3.5, Flux.1, Flux.2 Klein, Z-Image or
    Qwen-Image. To plan a run, the name of a published one will do, such as `sdxl-base-1.0`."""
    algorithm: Literal["beyond_sliders", "concept_sliders"] = "beyond_sliders"
    """`concept_sliders` is the reference procedure that we compare with, one polarity and all."""
    prompts: Prompts | None = None
    """A text slider. Exactly one of prompts, sliders and pairs is given."""
    sliders: dict[str, Prompts] = {}
    """Several text sliders by name, trained together over one frozen pass."""
    pairs: Pairs | None = None
    """An image-pair slider."""
    photos: str | None = None
    """Prefix with Parquet shards of real photos (`bs-ray ingest`), local or s3://. Left out, noisy
    latents come from the base alone, which the losses on pictures do not allow."""
    registry: str = "sliders"
    """Where sliders are published, local or s3://."""
    runs: str = "runs"
    """Where checkpoints, previews and events live, local or s3://."""
    losses: Losses = Losses()
    teacher: Annotated[LiveTeacher | CachedTeacher, Field(discriminator="mode")] = LiveTeacher()
    max_broken_share: float = Field(0.1, ge=0, le=1)
    """Pictures that do not decode are listed and left out; the job stops beyond this share."""
    resolution: int | None = Field(None, ge=16)
    """Side of the training pictures in pixels; the base's native size where left out."""
    steps: int = Field(200, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(16, ge=1)
    """Rows a step for each slider, over all workers."""
    rank: int = Field(4, ge=1)
    """r of the low-rank update (Eq 3)."""
    alpha: float = Field(4.0, gt=0)
    """Scale of the update: W = W0 + s * alpha / r * B A (Eq 4)."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of the slider (AdamW)."""
    discriminator_lr: float = Field(1e-3, gt=0)
    """Learning rate of the discriminator (AdamW)."""
    gradient_checkpointing: bool = False
    """Recompute the denoiser's activations in the backward pass: less memory, a third more time."""
    workers: int | tuple[int, int] = 2
    """Ray Train workers, each taking batch_size / workers rows; [least, most] is elastic."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage of both engines; 3 shards the frozen base as well."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`torch` trains without DeepSpeed: plain data parallelism."""
    use_gpu: bool = False
    """One GPU per worker."""
    cpus_per_worker: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    preview_every: int = Field(0, ge=0)
    """Steps between previews (pictures at several strengths, effect and drift so far); 0: only at
    the end."""
    early_stop: EarlyStop | None = None
    tracking: Tracking = Tracking()
    calibrate: bool = True
    """Measure the finished slider over a range of strengths; its card then says what they do."""
    max_failures: int = Field(2, ge=0)
    """Worker failures after which the run gives up."""
    seed: int = 0

    _name = field_validator("name")(check_name)

    @property
    def concepts(self) -> dict[str, Prompts]:
        """Slider name -> its prompts, in the order of the bank; empty for image pairs."""
        if self.prompts:
            return {self.name: self.prompts}
        return dict(self.sliders)

    @property
    def slider_names(self) -> list[str]:
        """The sliders that the run publishes."""
        return list(self.concepts) or [self.name]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @field_validator("sliders")
    @classmethod
    def _names(cls, sliders: dict[str, Prompts]) -> dict[str, Prompts]:
        for name in sliders:
            check_name(name)
        return sliders

    @model_validator(mode="after")
    def _one_mode(self) -> Self:
        given = [key for key in ("prompts", "sliders", "pairs") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(
                f"got {' and '.join(given) or 'neither prompts, sliders nor pairs'}; expected "
                "exactly one of prompts (a text slider), sliders (several) and pairs (pictures)"
            )
        return self

    @model_validator(mode="after")
    def _even_batches(self) -> Self:
        if not 1 <= self.least_workers <= self.most_workers:
            raise ValueError(f"got workers {self.workers}; expected 1 or more, and least <= most")
        for count in range(self.least_workers, self.most_workers + 1):
            if self.batch_size % count:
                raise ValueError(
                    f"got batch_size {self.batch_size} for {count} workers; expected a multiple of "
                    "workers"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_picture_is_its_own_reference(cls, given: Any) -> Any:
        if (
            isinstance(given, dict)
            and given.get("pairs")
            and isinstance(given.get("losses", {}), dict)
        ):
            losses = {"perceptual_reference": "real"} | given.get("losses", {})
            return given | {"losses": losses}
        return given

    @model_validator(mode="after")
    def _settings_that_fit(self) -> Self:
        losses, cached = self.losses, isinstance(self.teacher, CachedTeacher)
        if not self.photos and not self.pairs and (losses.perceptual or losses.adversarial):
            raise ValueError(
                "got no photos, but losses.perceptual and losses.adversarial compare with real "
                "ones; expected photos, or both weights 0"
            )
        if self.pairs and cached:
            raise ValueError(
                "got teacher.mode cached for pairs, which need no teacher; expected live"
            )
        if self.pairs and losses.perceptual and losses.perceptual_reference == "frozen":
            raise ValueError(
                "got losses.perceptual_reference frozen for pairs, whose reference is the picture "
                "itself; expected real"
            )
        if self.pairs and losses.triplet_form == "margin":
            raise ValueError(
                "got losses.triplet_form margin for pairs, which have no opposite target; expected "
                "guidance"
            )
        if self.pairs and self.batch_size % (2 * self.most_workers):
            raise ValueError(
                f"got batch_size {self.batch_size} for pairs on {self.most_workers} workers; "
                "expected a multiple of 2 x workers, for both pictures of a pair share a step"
            )
        drawn = cached and getattr(self.teacher, "trajectory_share", 0) > 0
        if drawn and losses.perceptual and losses.perceptual_reference == "real":
            raise ValueError(
                "got losses.perceptual_reference real with teacher.trajectory_share, but latents "
                "of the base's own runs have no real photo; expected frozen, or a share of 0"
            )
        if self.algorithm == "concept_sliders" and (not self.prompts or cached):
            raise ValueError(
                "got algorithm concept_sliders with sliders, pairs or a cached teacher; expected "
                "prompts and a live teacher: the reference procedure knows nothing else"
            )
        if self.algorithm == "concept_sliders" and (losses.perceptual or losses.adversarial):
            raise ValueError(
                "got algorithm concept_sliders with losses.perceptual or losses.adversarial; "
                "expected both 0: the reference procedure has one loss"
            )
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"steps": 10, "strength": 0.6},
    "balanced": {"steps": 16, "strength": 0.7},
    "high": {"steps": 28, "strength": 0.7, "soft_mask": 0.5},
}
"""Quality against time, by `editor.preset`; what a job sets itself wins."""


class EditorSettings(_Strict):
    """How a photo is edited (METHOD 4)."""

    preset: Literal["fast", "balanced", "high"] = "fast"
    """Sets what is left out below: 20, 32 or 58 evaluations a photo."""
    method: Literal["displacement", "sdedit", "ddim_inversion", "edit_friendly", "null_text"] = (
        "displacement"
    )
    """`displacement` moves the photo by what the slider changes; the others are baselines."""
    steps: int = Field(10, ge=1, le=1000)
    """Denoising steps."""
    strength: float = Field(0.6, gt=0, le=1)
    """Where in the noise range editing starts, as a share of the timesteps."""
    weights: Literal["flowedit", "infedit", "dds"] = "flowedit"
    """What a step of `displacement` counts for."""
    steer: float = Field(1.0, ge=0)
    """`displacement`: scales what moves the photo, not what holds it; other than 1 it costs a third
    evaluation a step."""
    soft_mask: float = Field(0.0, ge=0, le=1)
    """`displacement`: keep the edit, to this degree, where the sliders act most."""
    fixed_point: int = Field(0, ge=0, le=10)
    """`ddim_inversion`: fixed-point iterations in each step of the inversion."""
    guidance_scale: float = Field(7.5, gt=0)
    """`null_text`: classifier-free guidance."""
    calibrated: bool = True
    """A strength counts units of effect, where the slider's card has measured them; else, and for
    sliders without calibration, it is the LoRA's own scale."""
    resident_sliders: int = Field(64, ge=1)
    """Sliders that stand in the bank at once; the least recently used makes room for others."""
    prompt: str | None = None
    """Text condition of both branches; the first slider's target prompt where left out."""
    working_px: int | None = Field(None, ge=16)
    """Side of the square whose area edits are computed at; the base's own size by default."""

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, given: Any) -> Any:
        if isinstance(given, dict):
            named = given.get("preset", "fast")
            return next((PRESETS[name] for name in PRESETS if name == named), {}) | given
        return given


class QualityGate(_Strict):
    """What an edit must keep; one that does not is made again, weaker."""

    identity: float = Field(0.8, ge=-1, le=1)
    """Least cosine similarity of the identity judge with the photo."""
    effect: float = Field(0.0, ge=0)
    """Least change of the sliders' CLIP scores (positive minus negative prompt, each towards its
    strength's sign, mean over sliders); below it the row is marked. 0 asks for none."""
    backoff: float = Field(0.7, gt=0, lt=1)
    """What strengths are multiplied by before each retry."""
    retries: int = Field(3, ge=0, le=10)
    """Most retries; after the last the weakest is kept, and marked."""


class EditJob(_Strict):
    """Edit a bucket of photos: `bs-ray edit JOB.yaml`. The same command resumes."""

    kind: Literal["edit"] = "edit"
    name: str
    base: str = "tiny"
    """`tiny`, or the folder of a diffusers SDXL base."""
    input: str
    """Prefix of the photos, local or s3://: image files at any depth, `*.parquet` or `*.tar`."""
    input_format: Literal["auto", "images", "parquet", "webdataset"] = "auto"
    """`auto`: what most files below `input` are."""
    key_column: str = "key"
    """Parquet: the column that names a photo. Where there is none, rows are numbered."""
    image_column: str = "bytes"
    """Parquet: the binary column with the image file, or a struct with `bytes` (Hugging Face)."""
    limit: int | None = Field(None, ge=1)
    """Take the first so many photos, in the order of their keys."""
    sample: int | None = Field(None, ge=1)
    """Take so many photos, drawn by `seed` from all of them."""
    output: str
    """Prefix for edited photos, manifest and quarantine, local or s3://."""
    sink: Literal["images", "webdataset", "parquet"] = "images"
    """`images`: a file a photo, named as the input. The others: one file a shard."""
    registry: str = "sliders"
    """Where sliders are looked up, local or s3://."""
    sliders: dict[str, float | list[float]] = Field(min_length=1)
    """Slider (`name`, `name@version` or a .safetensors path) -> signed strength. Several strengths
    make a grid: every combination is one edit of every photo, which is encoded once for all."""
    plan: str | None = None
    """Instead of a grid, every photo says what to do with it: the column (Parquet) or field of the
    .json (WebDataset) with `{edit's name: {slider: strength}}` as JSON. `sliders` then lists those
    that may be named; their strengths are not used."""
    editor: EditorSettings = EditorSettings()
    gate: QualityGate | None = None
    """Measure every edit against its photo, and back off where too little of it is left."""
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
    decode_s: float = Field(20.0, gt=0)
    """Seconds that one photo may take to decode; then it is quarantined."""
    decode_mb: int = Field(2048, ge=256)
    """Memory in MB that decoding one photo may take."""
    max_quarantined_share: float = Field(0.5, ge=0, le=1)
    """The job fails once more than this share of the inputs seen is quarantined."""
    cost_per_hour: float | None = Field(None, gt=0)
    """What all workers together cost an hour, in any currency: progress then shows the bill."""
    seed: int = 0

    _name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def _plan_and_grid(self) -> Self:
        if empty := [name for name, strengths in self.sliders.items() if strengths == []]:
            raise ValueError(
                f"got no strength for {empty[0]}; expected a number, or several for a grid"
            )
        if self.limit and self.sample:
            raise ValueError("got limit and sample; expected one of them")
        if self.plan and self.input_format == "images":
            raise ValueError("got plan with images; expected Parquet or WebDataset, which hold one")
        return self

    def edits(self, names: Mapping[str, str] | None = None) -> dict[str, dict[str, float]]:
        """Edit's name -> slider -> strength: the grid; {"": mix} where it is a single edit.

        names: what to call sliders in place of their references.
        """
        called = {r: (names or {}).get(r, r) for r in self.sliders}
        axes = {called[r]: s if isinstance(s, list) else [s] for r, s in self.sliders.items()}
        mixes = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
        if len(mixes) == 1:
            return {"": mixes[0]}
        several = [name for name, strengths in axes.items() if len(strengths) > 1]
        return {"_".join(f"{name}{mix[name]:+g}" for name in several): mix for mix in mixes}


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
    """`name` is always its newest version, `name@version` that one; `*` all that fit the base."""
    refresh_s: float = Field(5.0, gt=0)
    """How often the registry is looked at for new versions."""
    max_rank: int | None = Field(None, ge=1)
    """Highest LoRA rank that there is room for; that of the sliders at the start by default."""
    cached_sliders: int = Field(256, ge=1)
    """Sliders in a replica's memory; the least recently used makes room. `editor.resident_sliders`
    says how many of them may act at once."""
    editor: EditorSettings = EditorSettings()
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    autoscaling: Autoscaling = Autoscaling()
    max_batch_rows: int = Field(16, ge=1)
    """Most edits in one forward pass."""
    max_queued_requests: int = Field(256, ge=1)
    """Edits that wait at one replica; more are answered 503 at once."""
    deadline_s: float = Field(30.0, gt=0)
    """How long an edit may take from its arrival. One that would be late, or make another one late,
    is answered 503 at once; a request may ask for less (X-Request-Timeout, seconds)."""
    step_timeout_s: float = Field(60.0, gt=0)
    """A replica whose step takes longer hangs, and is replaced."""
    drain_s: float = Field(30.0, gt=0)
    """How long a replica that is told to stop may finish the edits it has."""
    cpus_per_replica: float = Field(1.0, ge=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    max_pixels: int = Field(16_000_000, ge=1)
    max_bytes: int = Field(16 << 20, ge=1)
    decode_s: float = Field(10.0, gt=0)
    """Seconds of CPU that decoding one photo may take."""
    decode_mb: int = Field(1024, ge=256)
    """Memory that it may take."""
    max_strength: float = Field(4.0, gt=0)
    """Largest |scale| that a request may ask for."""
    keys: str | None = None
    """File of API keys (`bs-ray keys add`), local or s3://; without one everybody may ask."""
    outputs: str | None = None
    """Folder or prefix for pictures that are asked for as URLs; its own rules delete them."""
    image_hosts: list[str] = []
    """Hosts that photos may be fetched from by URL, `photos.example.com` or `*.example.com`."""
    cors_origins: list[str] = []
    """Web origins whose pages may call the API."""

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
    methods: dict[str, EditorSettings] = {}
    """Compare these editors, by name, at matched effect instead of sweeping `strengths`."""
    effects: dict[str, Annotated[float, Field(gt=0)]] = {}
    """With `methods`: slider -> how far its attribute moves from minus to plus the strength that
    each method is given."""
    seeds: int = Field(1, ge=1)
    """With `methods`: how often those that draw noise are measured, with seeds from `seed` on."""
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

    @model_validator(mode="after")
    def _compares_like_with_like(self) -> Self:
        if self.methods and self.effects.keys() != self.sliders.keys():
            raise ValueError(
                f"got effects for {sorted(self.effects)} with methods; expected one for each of "
                f"{sorted(self.sliders)}: methods are compared at equal effect"
            )
        if self.methods and "text" in self.settings:
            raise ValueError("got settings.text with methods; expected faces and wild: they edit")
        return self


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
    package = Path(__file__).parent
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


def _sections(annotation: Any) -> list[type[_Strict]]:
    """The settings classes that an annotation such as `dict[str, A] | B` names."""
    if isinstance(annotation, type) and issubclass(annotation, _Strict):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]
