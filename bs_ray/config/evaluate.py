"""The job file of `bs-ray evaluate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bs_ray.config.base import Settings, check_name, with_new_name
from bs_ray.config.editor import EditorSettings, JobEditor


class ComparedSettings(EditorSettings):
    """An editor that is compared, with what is no setting elsewhere, since it does not pay."""

    weights: Literal["flowedit", "infedit", "dds"] = "flowedit"
    """`displacement`: how much a step counts."""
    steer: float = Field(1.0, ge=0)
    """`displacement`: scales what moves the photo, not what holds it; a value other than 1 costs a
    third evaluation a step."""


class EvalJob(Settings):
    """Measure sliders: `bs-ray evaluate JOB.yaml`."""

    kind: Literal["evaluate"] = "evaluate"
    name: str
    base: str = "tiny"
    registry: str = "sliders"
    sliders: dict[str, str] = Field(min_length=1)
    """Slider -> the attribute of the reader that it is meant to move."""
    output: str = "reports"
    """Prefix for report.html, metrics.json and metrics.parquet, local or s3://."""
    strengths: list[float] = Field([-2, -1, 0, 1, 2], min_length=3)
    """The sweep; -1, 0 and 1 are always among them."""
    splits: dict[Literal["faces", "wild", "text"], Annotated[int, Field(ge=1)]] = Field(
        {"faces": 256, "wild": 256, "text": 64}, min_length=1, serialization_alias="settings"
    )
    """Split -> how many are measured: held-out faces, in-the-wild photos, generations. Job files of
    earlier versions call it `settings`."""
    editor: JobEditor = EditorSettings()
    guidance_scale: float = Field(4.0, ge=0)
    """Classifier-free guidance of the generations."""
    batch_size: int = Field(16, ge=1)
    """Faces per forward pass (each with all strengths)."""
    workers: int = Field(1, ge=1)
    """Ray Data actors."""
    methods: dict[str, ComparedSettings] = {}
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

    @model_validator(mode="before")
    @classmethod
    def _names_of_earlier_versions(cls, given: Any) -> Any:
        return with_new_name(given, "settings", "splits")

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
        if self.methods and "text" in self.splits:
            raise ValueError("got splits.text with methods; expected faces and wild: they edit")
        return self
