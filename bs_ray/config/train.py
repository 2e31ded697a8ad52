"""The job file of `bs-ray train`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bs_ray.config.base import Prompts, Settings, check_name
from bs_ray.config.judges import UNSET_AS_BEFORE, JudgeSettings


class Pairs(Settings):
    """Pictures of the same thing at several strengths: an image-pair ("visual") slider."""

    images: str
    """Prefix with one folder per strength, named by it ("-1", "1", "2"); pictures of one name
    belong together. Local or s3://."""
    target: str = ""
    """c_t: what all of them show, such as "a face"."""
    jitter: float = Field(0.1, ge=0, lt=1)
    """Each step moves a strength by up to this share of itself, so that the slider also learns the
    strengths in between."""


PAPER: dict[str, Any] = {
    "perceptual_reference": "real",
    "perceptual_floor": 0.0,
    "adversarial": 0.1,
    "soft_mask": 0.0,
}
"""What `losses: paper` sets: the paper to the letter, where it says what it does."""


EARLIER_LOSSES: dict[str, Any] = {
    "perceptual_reference": "frozen",
    "adversarial": 0.1,
    "soft_mask": 0.0,
}
"""What version 0.1.0 took for losses that a job file leaves out."""
LATER_LOSSES = (
    *("adversarial_share", "adversarial_real", "adversarial_fake"),
    *("discriminator_steps", "discriminator_replay"),
)
"""Settings that came after version 0.1.0."""


class Losses(Settings):
    """The paper's losses and their weights (Eq 5-11); a weight of 0 switches a loss off.

    `losses: paper` is the paper's full method. What is left out is what did best on the embedded
    bases (docs/results.md, "The paper's ablation").
    """

    triplet: float = Field(1.0, ge=0)
    """l_tri: weight of the guidance loss (Eq 5, 6)."""
    triplet_form: Literal["guidance", "margin"] = "guidance"
    """`guidance`: squared distance to T(s); `margin`: relu(margin + d(e, T(s)) - d(e, T(-s)))."""
    margin: float = Field(1.0, gt=0)
    """Margin of the margin form as a share of d(T(s), T(-s)): at 1 the loss vanishes exactly where
    the slider's prediction is T(s)."""
    perceptual: float = Field(1.0, ge=0)
    """l_perp: weight of the perceptual loss (Eq 7)."""
    adversarial: float = Field(0.0, ge=0)
    """l_adv: weight of the adversarial loss (hinge)."""
    adversarial_share: float = Field(0.0, ge=0, le=1)
    """Instead of `adversarial`: the adversarial loss pulls with this share of the norm that the
    other losses' gradient has. It costs a second backward pass."""
    adversarial_real: Literal["photos", "target"] = "photos"
    """What the discriminator is shown as real: photos (the paper), or pictures of the target
    T(s)."""
    adversarial_fake: Literal["estimate", "edit"] = "estimate"
    """What it is shown as fake: the one-step estimate of x0, or a photo edited in 4 steps, of which
    one, drawn at random, has a gradient."""
    discriminator: Literal["pixel", "latent", "features"] = "pixel"
    """What the discriminator looks at: patches of decoded pictures, latents, which cost less, or
    the feature maps of the perceptual network."""
    discriminator_steps: int = Field(1, ge=1)
    """Steps of the discriminator in each step of the slider."""
    discriminator_replay: int = Field(0, ge=0)
    """Further steps draw from so many of the latest fakes, over all workers; with 0 they see the
    newest ones again."""
    eta: float = Field(2.0, gt=0)
    """Guidance of the target: T(s) = e(c_n) + s * eta * (e(c+) - e(c-))."""
    soft_mask: float = Field(1.0, ge=0, le=1)
    """Multiply the target's difference by a smooth mask of its own magnitude, to this degree: the
    slider then acts where the prompts disagree (docs/method.md, "Training"). 0 is the paper."""
    max_strength: float = Field(2.0, gt=0)
    """S: every row draws its signed strength s from U(-S, S)."""
    image_timestep_max: int = Field(400, ge=1, le=1000)
    """Perceptual and adversarial terms act on timesteps up to this; beyond it an estimate of x0 is
    a blur."""
    perceptual_reference: Literal["target", "real", "frozen"] = "target"
    """What Eq 7 compares with: the picture of the target T(s), the real photo (the paper, and
    always for pairs), or the frozen base's own x0 estimate. The last two oppose the slider."""
    schedule_start: float = Field(0.4, ge=0, le=1)
    """t0 of Eq 9-10 as a share of the steps."""
    schedule_rate: float = Field(10.0, gt=0)
    """k of Eq 9-10, per run: k = schedule_rate / steps."""
    perceptual_floor: float = Field(0.2, ge=0, le=1)
    """The perceptual weight of Eq 10 never falls below this; 0 is the paper."""
    adversarial_after: float = Field(0.3, ge=0, le=1)
    """Share of the steps after which the adversarial term comes in."""
    r1: float = Field(0.5, ge=0)
    """Weight of the discriminator's gradient penalty on real images (Mescheder et al. 2018)."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, str) and given != "paper":
            raise ValueError(f"got {given!r}; expected `paper`, or the losses' own settings")
        return dict(PAPER) if given == "paper" else given

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.adversarial and self.adversarial_share:
            raise ValueError(
                "got both adversarial and adversarial_share; expected one: a fixed weight, or a "
                "share of the gradient"
            )
        return self

    @property
    def adversary(self) -> bool:
        """Whether there is an adversarial loss."""
        return self.adversarial > 0 or self.adversarial_share > 0

    @property
    def image_terms(self) -> bool:
        """Whether any loss looks at pictures, so that latents must be decoded."""
        return self.perceptual > 0 or (self.adversary and self.discriminator != "latent")

    @property
    def needs_features(self) -> bool:
        """Whether the perceptual network is used."""
        return self.perceptual > 0 or (self.adversary and self.discriminator == "features")


class LiveTeacher(Settings):
    """The frozen base's predictions are computed at every step. A sample costs as much as 6 forward
    passes."""

    mode: Literal["live"] = "live"


class CachedTeacher(Settings):
    """The frozen base's predictions are computed once, stored, and shared by runs. A sample costs
    as much as 3 forward passes (docs/method.md, "Training")."""

    mode: Literal["cached"] = "cached"
    samples: int = Field(1024, ge=2)
    """Noisy latents to store with the base's predictions; a step of a run takes batch_size of
    them."""
    cache: str = "teacher-cache"
    """Where caches live, local or s3://. A run finds its cache by the hash of what the cache was
    made from."""
    trajectory_share: float = Field(0.0, ge=0, le=1)
    """Share of the samples that come from the frozen base's own denoising runs rather than from
    noised photos."""
    trajectory_guidance: float = Field(3.0, ge=0)
    """Classifier-free guidance of those denoising runs."""
    on_policy_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of every batch that comes from denoising runs with the slider on, made anew at each
    checkpoint."""
    workers: int = Field(1, ge=1)
    """Ray Data actors that build the cache, each with its own copy of the base."""


class Tracking(Settings):
    """Where a run's curves and previews are written, besides the screen."""

    tensorboard: bool = True
    """Event files under <runs>/<run>/tensorboard."""
    mlflow: str | None = None
    """Tracking URI of an MLflow server, or a folder (pip install mlflow)."""
    wandb: str | None = None
    """Weights & Biases project (pip install wandb; its key comes from the environment)."""


class EarlyStop(Settings):
    """Stop once previews show that the slider moves its attribute no further."""

    patience: int = Field(3, ge=1)
    """Previews in a row without progress after which the run ends."""
    min_gain: float = Field(0.02, gt=0)
    """Rise of the effect that counts as progress, as a share of the effect so far."""


class TrainJob(Settings):
    """Train one slider, or several together: `bs-ray train JOB.yaml`."""

    kind: Literal["train"] = "train"
    name: str
    """Name of the run, and of the slider it publishes."""
    base: str = "tiny"
    """`tiny`, `tiny-flow`, `tiny-photo`; or SDXL, SD3.5, Flux.1, Flux.2 Klein, Z-Image or
    Qwen-Image as a diffusers folder, a hub id, a bucket's prefix or a .safetensors file
    (docs/bases.md). To plan a run, the name of a published one will do, such as `sdxl-base-1.0`."""
    algorithm: Literal["beyond_sliders", "concept_sliders"] = "beyond_sliders"
    """`concept_sliders` is the reference procedure that results compare with: it trains one
    polarity, as its authors' code does."""
    prompts: Prompts | None = None
    """A text slider. Exactly one of prompts, sliders and pairs is given."""
    sliders: dict[str, Prompts] = {}
    """Several text sliders by name, trained together: the frozen base predicts once for all."""
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
    region: Literal["photo", "face"] = Field("photo", exclude_if=lambda region: region == "photo")
    """What of a photo the base is shown: the middle square, or the largest face, framed as an edit
    with `editor.region: face` frames it. Photos without a face are then left out."""
    people: Literal["all", "not-held-out"] = Field("all", exclude_if=lambda people: people == "all")
    """`not-held-out`: leave out the people that `people: held-out` of an evaluation measures. For
    LFW and UTKFace, whose files name them."""
    max_broken_share: float = Field(0.1, ge=0, le=1)
    """Pictures that cannot be decoded are listed and left out; beyond this share the job stops."""
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
    """Learning rate of the slider (AdamW), constant over the run: there is no schedule."""
    discriminator_lr: float = Field(1e-3, gt=0)
    """Learning rate of the discriminator (AdamW), constant as well."""
    gradient_checkpointing: bool = False
    """Recompute the denoiser's activations in the backward pass, which takes less memory and a
    third more time."""
    workers: int | tuple[int, int] = 2
    """Ray Train workers, each of which takes batch_size / workers rows. With [min, max] their
    number follows what the cluster has."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage of both engines; 3 shards the frozen base as well."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`torch` trains without DeepSpeed, by plain data parallelism."""
    use_gpu: bool = False
    """One GPU per worker."""
    cpus_per_worker: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    preview_every: int = Field(0, ge=0)
    """Steps between previews (pictures at several strengths, effect and drift so far); with 0 there
    is one, at the end."""
    early_stop: EarlyStop | None = None
    tracking: Tracking = Tracking()
    calibrate: bool = True
    """Measure the finished slider over a range of strengths; its card then says what they do."""
    judges: JudgeSettings | None = UNSET_AS_BEFORE
    """What looks at the pictures of previews and of the calibration; the base's own judges where
    left out."""
    max_failures: int = Field(2, ge=0)
    """The run goes on after this many failures of workers, and gives up at the next one."""
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
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def min_workers(self) -> int:
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
        if not 1 <= self.min_workers <= self.max_workers:
            raise ValueError(f"got workers {self.workers}; expected 1 or more, and min <= max")
        for count in range(self.min_workers, self.max_workers + 1):
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
        if not self.photos and (self.region == "face" or self.people != "all"):
            raise ValueError(
                "got region face or people without photos; expected photos. Pictures of pairs are "
                "taken as they are, since both must show the same place"
            )
        if not self.photos and not self.pairs and (losses.perceptual or losses.adversary):
            raise ValueError(
                "got no photos, but losses.perceptual and the adversarial loss compare with "
                "pictures; expected photos, or losses.perceptual 0 and no adversarial loss"
            )
        if self.pairs and cached:
            raise ValueError(
                "got teacher.mode cached for pairs, which need no teacher; expected live"
            )
        if self.pairs and losses.perceptual and losses.perceptual_reference != "real":
            raise ValueError(
                f"got losses.perceptual_reference {losses.perceptual_reference} for pairs, whose "
                "reference is the picture itself; expected real"
            )
        if self.pairs and losses.adversary and losses.adversarial_real == "target":
            raise ValueError(
                "got losses.adversarial_real target for pairs, whose target is the picture itself; "
                "expected photos"
            )
        if self.pairs and losses.triplet_form == "margin":
            raise ValueError(
                "got losses.triplet_form margin for pairs, which have no opposite target; expected "
                "guidance"
            )
        if self.pairs and self.batch_size % (2 * self.max_workers):
            raise ValueError(
                f"got batch_size {self.batch_size} for pairs on {self.max_workers} workers; "
                "expected a multiple of 2 x workers, for both pictures of a pair share a step"
            )
        generated = cached and getattr(self.teacher, "trajectory_share", 0) > 0
        if generated and losses.perceptual and losses.perceptual_reference == "real":
            raise ValueError(
                "got losses.perceptual_reference real with teacher.trajectory_share, but latents "
                "of the base's own runs have no real photo; expected target, or a share of 0"
            )
        if self.algorithm == "concept_sliders" and (not self.prompts or cached):
            raise ValueError(
                "got algorithm concept_sliders with sliders, pairs or a cached teacher; expected "
                "prompts and a live teacher: the reference procedure knows nothing else"
            )
        if self.algorithm == "concept_sliders" and (losses.perceptual or losses.adversary):
            raise ValueError(
                "got algorithm concept_sliders with losses.perceptual or an adversarial loss; "
                "expected neither: the reference procedure has one loss"
            )
        return self
