"""The job file of `bs-ray edit`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bs_ray.config.base import MAX_PIXELS, OtherBases, Settings, check_name, with_new_name
from bs_ray.config.editor import EditorSettings, QualityGate
from bs_ray.config.words import WordsAtStrength


class EditJob(Settings):
    """Edit a bucket of photos: `bs-ray edit JOB.yaml`. The same command resumes."""

    kind: Literal["edit"] = "edit"
    name: str
    base: str = "tiny"
    """`tiny`, `tiny-flow`, `tiny-photo`; or of any family that trains a diffusers folder, a hub id,
    a bucket's prefix, or a .safetensors file (docs/bases.md)."""
    other_bases: OtherBases = "warn"
    """Whether sliders may be used that were trained on another base of its family: `refuse`, `warn`
    (a note on every output) or `allow`."""
    input: str
    """Prefix of the photos, local or s3://: image files at any depth, `*.parquet` or `*.tar`."""
    input_format: Literal["auto", "images", "parquet", "webdataset"] = "auto"
    """`auto`: what most files below `input` are."""
    key_column: str = "key"
    """Parquet: the column that names a photo. Where there is none, rows are numbered."""
    image_column: str = "bytes"
    """Parquet: the binary column with the image file, or a struct with `bytes` (Hugging Face)."""
    boxes_column: str = "boxes"
    """`region: boxes`: where a photo's boxes are, `[[left, top, right, bottom], ...]` in pixels of
    the upright photo. The column (Parquet), or the field of the .json that belongs to the photo
    (WebDataset; beside an image file, a/b.jpg -> a/b.json, which may also be such a list)."""
    limit: int | None = Field(None, ge=1)
    """Take this many photos, the first in the order of their keys."""
    sample: int | None = Field(None, ge=1)
    """Take this many photos, drawn by `seed` from all of them."""
    output: str
    """Prefix for the edited photos, the manifest and the quarantine, local or s3://."""
    sink: Literal["images", "webdataset", "parquet"] = "images"
    """`images`: one file for each photo, named as the input. The others: one file for each
    shard."""
    registry: str = "sliders"
    """Where sliders are looked up, local or s3://."""
    sliders: dict[str, float | list[float] | WordsAtStrength] = Field(min_length=1)
    """Slider (`name`, `name@version` or a .safetensors path) -> signed strength. Several strengths
    make a grid: every combination is one edit of every photo, which is encoded once for all. Under
    a name of the job's own, words are a slider too: `smiling: {positive: "person, smiling",
    negative: "person, frowning", strength: 1}`."""
    edits_column: str | None = Field(None, serialization_alias="plan")
    """Instead of a grid, every photo brings its own edits: the column (Parquet) or the field of the
    .json (WebDataset) that holds `{edit's name: {slider: strength}}` as JSON. `sliders` then lists
    the sliders that may be named; their strengths are not used. Job files of earlier versions call
    it `plan`, and what is stored still does."""
    editor: EditorSettings = EditorSettings()
    gate: QualityGate | None = None
    """Measure every edit against its photo, and make it weaker where too little of the photo is
    left."""
    shard_images: int = Field(32, ge=1)
    """Photos per shard: as many are committed at once, and at most as many are redone after a
    crash."""
    shard_mb: int = Field(64, ge=1)
    """Size of a shard's files in MB, at most, unless one photo alone is larger; a shard then has
    fewer photos than `shard_images`. A generation that has begun keeps its shards."""
    batch_size: int = Field(16, ge=1)
    """Edits per forward pass; each region of a photo is one, and a grid of several stays whole."""
    workers: int = Field(1, ge=1)
    """Editor actors, each with its own copy of the base."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Photos with more pixels are quarantined before they are decoded."""
    max_bytes: int = Field(64 << 20, ge=1)
    """Files larger than this are quarantined unread."""
    decode_s: float = Field(20.0, gt=0)
    """Seconds that one photo may take to decode; one that takes longer is quarantined."""
    decode_mb: int = Field(2048, ge=256)
    """Memory in MB that decoding one photo may take; one that needs more is quarantined."""
    max_quarantined_share: float = Field(0.5, ge=0, le=1)
    """The job fails once more than this share of the inputs seen is quarantined."""
    cost_per_hour: float | None = Field(None, gt=0)
    """What all workers together cost an hour, in any currency; progress then shows the cost so
    far."""
    seed: int = 0

    _name = field_validator("name")(check_name)

    @model_validator(mode="before")
    @classmethod
    def _names_of_earlier_versions(cls, given: Any) -> Any:
        return with_new_name(given, "plan", "edits_column")

    @model_validator(mode="after")
    def _one_source_of_edits(self) -> Self:
        for name in self.words:
            check_name(name)
        if empty := [name for name, strengths in self.strengths.items() if strengths == []]:
            raise ValueError(
                f"got no strength for {empty[0]}; expected a number, or several for a grid"
            )
        if self.limit and self.sample:
            raise ValueError("got limit and sample; expected one of them")
        if self.edits_column and self.input_format == "images":
            raise ValueError(
                "got edits_column with images; expected Parquet or WebDataset, which hold one"
            )
        return self

    @property
    def words(self) -> dict[str, WordsAtStrength]:
        """The sliders that are words, by the job's name for them."""
        return {n: w for n, w in self.sliders.items() if isinstance(w, WordsAtStrength)}

    @property
    def strengths(self) -> dict[str, float | list[float]]:
        """Slider, as the job names it -> one strength or several."""
        return {
            n: w.strength if isinstance(w, WordsAtStrength) else w for n, w in self.sliders.items()
        }

    def edits(self, references: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """The grid: edit's name -> name@version -> strength; {"": mix} where there is one edit.

        references: slider as the job names it -> name@version.
        """
        axes = {references[r]: s if isinstance(s, list) else [s] for r, s in self.strengths.items()}
        mixes = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
        if len(mixes) == 1:
            return {"": mixes[0]}
        several = [reference for reference, strengths in axes.items() if len(strengths) > 1]
        return {
            "_".join(
                f"{reference.partition('@')[0]}{mix[reference]:+g}" for reference in several
            ): mix
            for mix in mixes
        }
