"""The job file of `bs-ray evaluate`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from bs_ray.config.base import OtherBases, Settings, check_name, with_new_name
from bs_ray.config.editor import EditorSettings, JobEditor
from bs_ray.config.judges import JudgeSettings
from bs_ray.config.words import MeasuredWords

WORDS = "clip"
"""The measure that reads CLIP's direction between a slider's own prompts."""
DRAWN = ("faces", "wild", "text")
"""The splits that the tiny bases' own world draws."""

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,.@_-]{0,63}")


def _check_label(label: str) -> str:
    """The name of a split or an arm, which tables, plots and files carry."""
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"got the name {label!r}; expected 1-64 of letters, digits, spaces and , . @ _ -, "
            "starting with a letter or digit"
        )
    return label


Label = Annotated[str, AfterValidator(_check_label)]


class PhotoSplit(Settings):
    """Photos of the user's own."""

    photos: str
    """A folder, an s3:// prefix, shards as `bs-ray ingest` writes them, or an archive (.tgz,
    .tar.gz, .tar or .zip)."""
    count: int = Field(64, ge=1)
    """How many are measured: a sample by the hash of seed and name, so that more photos contain
    those of a smaller count."""
    identities: bool = False
    """Whether the folder that a photo lies in names the person (shards name them themselves). At
    most one photo of each person is then measured, and the identity judge is put to the test on
    unedited pairs."""
    people: Literal["all", "held-out"] = "all"
    """`held-out`: only people that no network of the embedded bases was trained on, a fixed tenth
    by the hash of their names. For LFW and UTKFace, whose files name them."""


class PromptSplit(Settings):
    """Pictures that the base generates from a table of prompts."""

    prompts: str
    """A CSV file with the columns case_number, prompt and evaluation_seed, as Concept Sliders
    evaluates with."""
    count: int = Field(64, ge=1)
    """How many of its rows, from the first on, are generated."""


Split = Annotated[int, Field(ge=1)] | PhotoSplit | PromptSplit


class ComparedSettings(EditorSettings):
    """An editor that is compared, with what is no setting elsewhere, since it does not pay."""

    weights: Literal["flowedit", "infedit", "dds"] = "flowedit"
    """`displacement`: how much a step counts."""
    steer: float = Field(1.0, ge=0)
    """`displacement`: scales what moves the photo, not what holds it; a value other than 1 costs a
    third evaluation a step."""


class ComparedArm(Settings):
    """One of several things that do the same: a version, a file, a base, an editor."""

    slider: str | MeasuredWords
    """name, name@version, the path or URI of a .safetensors file, words, or the name that `sliders`
    gives to words."""
    base: str | None = None
    """The job's base where left out."""
    registry: str | None = None
    """The job's registry where left out."""
    editor: ComparedSettings | None = None
    """The job's editor where left out."""


class EvalJob(Settings):
    """Measure sliders: `bs-ray evaluate JOB.yaml`."""

    kind: Literal["evaluate"] = "evaluate"
    name: str
    base: str = "tiny"
    other_bases: OtherBases = "warn"
    """Whether sliders may be used that were trained on another base of its family: `refuse`, `warn`
    (the figures say so) or `allow`."""
    registry: str = "sliders"
    sliders: dict[str, str | MeasuredWords] = {}
    """Slider -> what it is meant to move: a reading of a judge, such as `age`, or `clip` for
    CLIP's direction between the slider's own prompts. A list of names stands for the reading of
    the same name, and for `clip` where no judge has one. Under a name of the job's own, words are
    a slider too: `smiling: {positive: "person, smiling", negative: "person, frowning", moves:
    smile}`."""
    output: str = "reports"
    """Prefix for the report and its files, local or s3://."""
    strengths: list[float] = Field([-2, -1, 0, 1, 2], min_length=3)
    """The sweep; -1, 0 and 1 are always among them."""
    splits: dict[Label, Split] = Field(
        {"faces": 256, "wild": 256, "text": 64}, min_length=1, serialization_alias="settings"
    )
    """Split -> what is measured. `faces`, `wild` and `text` are drawn by the world of the tiny
    bases, and have a count; any other name has photos or prompts. Job files of earlier versions
    call this `settings`."""
    judges: JudgeSettings | None = None
    """Which judges measure; where left out, those at hand."""
    editor: JobEditor = EditorSettings()
    guidance_scale: float = Field(4.0, ge=0)
    """Classifier-free guidance of the generations."""
    batch_size: int = Field(16, ge=1)
    """Faces per forward pass (each with all strengths)."""
    workers: int = Field(1, ge=1)
    """Ray Data actors. On a cluster with GPUs each takes one."""
    methods: dict[Label, ComparedSettings] = {}
    """Compare these editors, by name, at equal effect; strengths are LoRA scales then."""
    effects: dict[str, Annotated[float, Field(gt=0)]] = {}
    """With `methods`: slider -> how far its attribute moves from minus to plus the strength that
    each method is given."""
    compare: dict[Label, ComparedArm] = {}
    """Compare these at equal effect, each with the first. A list of sliders will do: [age@1,
    age@2]."""
    at_effect: float | None = Field(None, gt=0)
    """With `compare`: the effect, from minus to plus, at which they are compared; where left out,
    four fifths of what the weakest of them reaches."""
    seeds: int = Field(1, ge=1)
    """With `methods`: how often those that draw noise are measured, with seeds from `seed` on."""
    base_images: int = Field(0, ge=0)
    """Pictures to measure the base itself with (round trips, captions); 0 leaves it out."""
    seed: int = 0

    _name = field_validator("name")(check_name)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        given = with_new_name(given, "settings", "splits")
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if isinstance(given.get("sliders"), list):
            given["sliders"] = dict.fromkeys(given["sliders"], "")
        if isinstance(given.get("compare"), list):
            given["compare"] = {_name_of(slider): {"slider": slider} for slider in given["compare"]}
        if isinstance(given.get("splits"), dict):
            given["splits"] = {name: split_of(it) for name, it in given["splits"].items()}
        return given

    @field_validator("strengths")
    @classmethod
    def _has_units(cls, strengths: list[float]) -> list[float]:
        if missing := {-1.0, 0.0, 1.0} - set(strengths):
            raise ValueError(f"got strengths without {sorted(missing)}; expected -1, 0 and 1")
        return sorted(strengths)

    @model_validator(mode="after")
    def _splits_have_pictures(self) -> Self:
        for name, split in self.splits.items():
            if isinstance(split, int) != (name in DRAWN):
                raise ValueError(
                    f"got splits.{name}={split!r}; expected a count for {', '.join(DRAWN)}, which "
                    "the tiny bases' world draws, and photos or prompts for any other name"
                )
        return self

    @model_validator(mode="after")
    def _compares_like_with_like(self) -> Self:
        for name in self.words:
            check_name(name)
        if not self.sliders and not self.compare:
            raise ValueError("got no sliders; expected some, or `compare`")
        if not (self.methods or self.compare):
            return self
        if self.methods and self.compare:
            raise ValueError("got methods and compare; expected one of them")
        if self.methods and self.effects.keys() != self.sliders.keys():
            raise ValueError(
                f"got effects for {sorted(self.effects)} with methods; expected one for each of "
                f"{sorted(self.sliders)}: methods are compared at equal effect"
            )
        texts = [n for n, s in self.splits.items() if n == "text" or isinstance(s, PromptSplit)]
        if self.methods and texts:
            raise ValueError(f"got splits.{texts[0]} with methods; expected photos: they edit")
        if self.compare and len(self.compare) < 2:
            raise ValueError(f"got compare with {list(self.compare)}; expected two or more")
        if odd := {s for s in self.strengths if -s not in self.strengths}:
            raise ValueError(
                f"got strengths {sorted(odd)} without their opposites; expected both signs of "
                "each, since an effect counts from minus to plus"
            )
        return self

    @property
    def words(self) -> dict[str, MeasuredWords]:
        """The sliders that are words, by the job's name for them."""
        return {n: w for n, w in self.sliders.items() if isinstance(w, MeasuredWords)}

    @property
    def moves(self) -> dict[str, str]:
        """Slider -> what it is meant to move, "" where the job does not say."""
        return {n: w.moves if isinstance(w, MeasuredWords) else w for n, w in self.sliders.items()}


def _name_of(slider: str) -> str:
    """A slider's name in the tables: a file goes by its own name and its folder's."""
    if not slider.endswith(".safetensors"):
        return slider
    parts = slider.removesuffix(".safetensors").split("/")[-2:]
    return " ".join(re.sub(r"[^A-Za-z0-9 ,.@_-]+", "-", part).strip("- ") for part in parts).strip()


def split_of(given: Any) -> Any:
    """A split in full: a text stands for a table of prompts, or for where photos lie."""
    if not isinstance(given, str):
        return given
    return {"prompts" if given.lower().endswith(".csv") else "photos": given}
