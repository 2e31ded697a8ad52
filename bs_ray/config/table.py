"""The job file of a table of methods: train what is missing, measure all of it, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from bs_ray.config.base import Prompts, Settings, check_name
from bs_ray.config.editor import EditorSettings, JobEditor
from bs_ray.config.evaluate import EvalJob, Label, Split, split_of
from bs_ray.config.judges import JudgeSettings
from bs_ray.config.train import TrainJob
from bs_ray.config.words import ETA, MeasuredWords, Words

DRAWN_PHOTOS = "drawn"
WORDS = "words"


class TableSlider(Prompts):
    """An attribute: its prompts, and the reading that says how far it has moved."""

    reads: str = ""
    """A reading of a judge, or `clip`; the slider's own name where left out."""
    at_effect: float | None = Field(None, gt=0)
    """The effect, from minus to plus, at which methods are compared; four fifths of what the
    weakest of them reaches where left out."""


class PublishedFigures(Settings):
    """What a paper's table prints for a method; a table shows it and computes nothing with it."""

    clip: float | None = None
    lpips: float | None = None


class TableRow(Settings):
    """A row: one slider on one kind of pictures."""

    slider: str
    """One of `sliders`."""
    split: Label
    """One of `splits`."""
    in_paper: str = ""
    """The paper's own row, where this one stands for another attribute."""
    paper: dict[str, PublishedFigures] = {}
    """Method -> the paper's own figures."""


class TableJob(Settings):
    """Tables such as the paper's I and II: `bs-ray evaluate JOB.yaml`."""

    kind: Literal["table"] = "table"
    name: str
    title: str = ""
    """What stands over the table; the job's name where left out."""
    base: str = "tiny"
    photos: str | None = None
    """What methods train on: shards (`bs-ray ingest`), a folder or an archive, which are packed
    first, or `drawn`: pictures of the tiny bases' own world."""
    registry: str = "sliders"
    """Where sliders are looked for and published, as SLIDER-METHOD."""
    runs: str = "runs"
    """Where training keeps its checkpoints, and packed photos lie."""
    output: str = "reports"
    """Prefix for the table, its page and what was measured, local or s3://."""
    sliders: dict[str, TableSlider] = Field(min_length=1)
    train: dict[str, Any] = {}
    """Settings of a training job that all methods share."""
    methods: dict[str, Literal["words"] | dict[str, Any]] = Field(min_length=2)
    """Method -> its own settings of a training job, or `words`: a slider without training. The
    first one is what the others are compared with."""
    rows: dict[Label, TableRow] = Field(min_length=1)
    """What stands at the head of a row -> what it measures."""
    splits: dict[Label, Split] = Field(min_length=1)
    """As in an evaluate job."""
    judges: JudgeSettings | None = None
    """As in an evaluate job."""
    editor: JobEditor = EditorSettings()
    strengths: list[float] = [-2, -1, -0.5, 0, 0.5, 1, 2]
    """LoRA scales of the sweep, between which methods are brought to the same effect."""
    strength: float = Field(1.0, gt=0)
    """The LoRA scale of the paper's protocol, where methods are not brought to the same effect: the
    paper names none."""
    guidance_scale: float = Field(4.0, ge=0)
    """Of generations."""
    batch_size: int = Field(16, ge=1)
    workers: int = Field(1, ge=1)
    seed: int = 0

    _name = field_validator("name")(check_name)

    @field_validator("sliders", "methods")
    @classmethod
    def _names(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            check_name(name)
        return given

    @field_validator("splits", mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        return {k: split_of(it) for k, it in given.items()} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _rows_name_what_there_is(self) -> Self:
        for label, row in self.rows.items():
            named: list[tuple[str, str, Iterable[str]]] = [
                ("slider", row.slider, self.sliders),
                ("split", row.split, self.splits),
                *(("paper", method, self.methods) for method in row.paper),
            ]
            for kind, name, known in named:
                if name not in known:
                    raise ValueError(
                        f"got rows.{label}.{kind} {name!r}; expected one of {', '.join(known)}"
                    )
        return self

    @model_validator(mode="after")
    def _every_job_is_whole(self) -> Self:
        """What follows from this job can be run, as far as settings tell."""
        if self.strength not in self.strengths:
            raise ValueError(
                f"got strength {self.strength:g}; expected one of strengths {self.strengths}"
            )
        for slider in self.sliders:
            if slider not in {row.slider for row in self.rows.values()}:
                raise ValueError(f"got sliders.{slider}, which no row names; expected a row for it")
            for method in self.methods:
                try:
                    self.training(slider, method)
                except ValidationError as error:
                    first = error.errors()[0]
                    place = ".".join(str(part) for part in first["loc"]) or "settings"
                    raise ValueError(
                        f"methods.{method}, as a training job: {place}: {first['msg']}"
                    ) from None
            self.evaluation(slider, list(self.methods))
        return self

    def training(self, slider: str, method: str, photos: str | None = None) -> TrainJob | None:
        """How a method trains a slider; None for words. photos: where they lie once packed."""
        prompts, settings = self.prompts(slider), self.methods[method]
        if isinstance(settings, str):
            return None
        fixed = {
            "name": f"{slider}-{method}",
            "base": self.base,
            "prompts": prompts.model_dump(),
            "photos": photos or self.photos,
            "registry": self.registry,
            "runs": self.runs,
        }
        return TrainJob.model_validate(fixed | _merged(self.train, settings))

    def prompts(self, slider: str) -> Prompts:
        """Its prompts alone."""
        given = self.sliders[slider]
        return Prompts.model_validate(given.model_dump(include=set(Prompts.model_fields)))

    def words(self, slider: str) -> MeasuredWords:
        """Its prompts as a slider that needs no training, with the eta that methods train with."""
        said = self.prompts(slider).model_dump(include=set(Words.model_fields))
        eta = self.train.get("losses", {}).get("eta", ETA)
        return MeasuredWords.model_validate(said | {"eta": eta, "moves": self.reads(slider)})

    def reads(self, slider: str) -> str:
        """What it should move."""
        return self.sliders[slider].reads or slider

    def evaluation(
        self, slider: str, methods: list[str], versions: dict[str, str] | None = None
    ) -> EvalJob:
        """How the sliders of these methods are measured, on all splits that rows of it name.
        versions: method -> name@version, once that is known."""
        names = {method: f"{slider}-{method}" for method in methods}
        arms = {
            method: {"slider": self.words(slider)}
            if self.methods[method] == WORDS
            else {"slider": (versions or names)[method]}
            for method in methods
        }
        named = {row.split for row in self.rows.values() if row.slider == slider}
        return EvalJob(
            name=f"{self.name}-{slider}",
            base=self.base,
            registry=self.registry,
            sliders=dict.fromkeys(names.values(), self.reads(slider)),
            compare=arms,
            at_effect=self.sliders[slider].at_effect,
            splits={name: split for name, split in self.splits.items() if name in named},
            output=f"{self.output.rstrip('/')}/{slider}",
            judges=self.judges,
            editor=self.editor.model_copy(update={"calibrated": False}),
            strengths=self.strengths,
            guidance_scale=self.guidance_scale,
            batch_size=self.batch_size,
            workers=self.workers,
            seed=self.seed,
        )


def _merged(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Settings where those of a method's own stand before the shared ones, section by section."""
    both = {
        name: _merged(shared[name], value)
        for name, value in own.items()
        if isinstance(value, dict) and isinstance(shared.get(name), dict)
    }
    return shared | own | both
