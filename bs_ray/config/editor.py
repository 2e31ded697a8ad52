"""How a photo is edited, and what an edit must keep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from bs_ray.config.base import Settings, with_new_name
from bs_ray.config.judges import UNSET_AS_BEFORE, JudgeSettings

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"steps": 10, "start": 0.6},
    "high": {"steps": 28, "start": 0.7, "soft_mask": 0.5},
}
"""Quality against time, by `editor.preset`; what a job sets itself takes precedence."""

_ALWAYS = {"weights": "flowedit", "steer": 1.0}
"""Settings of earlier versions, and the value that they now always have."""


class EditorSettings(Settings):
    """How a photo is edited (docs/method.md, "Editing")."""

    preset: Literal["fast", "high"] = "fast"
    """Sets what is left out below: 20 or 58 evaluations a photo."""
    method: Literal["displacement", "sdedit", "ddim_inversion", "edit_friendly", "null_text"] = (
        "displacement"
    )
    """`displacement` moves the photo by what the slider changes; the others are baselines."""
    steps: int = Field(10, ge=1, le=1000)
    """Denoising steps."""
    start: float = Field(0.6, gt=0, le=1, serialization_alias="strength")
    """Noise level at which an edit begins, as a share of the timesteps. Job files of earlier
    versions call it `strength`, and what is stored still does."""
    soft_mask: float = Field(0.0, ge=0, le=1)
    """`displacement`: keep the edit, to this degree, where the sliders act most."""
    fixed_point: int = Field(0, ge=0, le=10)
    """`ddim_inversion`: fixed-point iterations in each step of the inversion."""
    guidance_scale: float = Field(7.5, gt=0)
    """`null_text`: classifier-free guidance."""
    calibrated: bool = True
    """Strengths count units of effect, where a slider's card has measured them. Where this is
    false, and for sliders without calibration, a strength is the LoRA scale itself."""
    resident_sliders: int = Field(64, ge=1)
    """Sliders that the bank holds at once; the least recently used makes room for others."""
    prompt: str | None = None
    """Text condition of both branches; the first slider's target prompt where left out."""
    working_px: int | None = Field(None, ge=16)
    """Side of the square whose area edits are computed at; the base's own size by default."""
    region: Literal["photo", "face", "boxes"] = "photo"
    """What of a photo the base looks at: all of it, the faces that are found in it, or the boxes
    that come with it. The rest of the photo stays bit for bit."""
    faces: Literal["all", "largest"] | Annotated[int, Field(ge=1)] = "all"
    """`region: face`: which of the faces; a number stands for so many of the largest at most."""
    face_min_px: int = Field(32, ge=1)
    """`region: face`: faces whose box's longer side is smaller are left as they are."""
    face_margin: float = Field(0.3, ge=0, le=5)
    """What is added to a box on every side, as a share of its longer side, where the base does not
    say where it expects the eyes, or the box is the caller's."""
    no_face: Literal["leave", "photo"] = "leave"
    """`region: face`: what becomes of a photo without faces: it is left as it is, or edited as a
    whole. A note says so."""

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = cls._of_earlier_versions(given)
        named = given.get("preset", "fast")
        return next((PRESETS[name] for name in PRESETS if name == named), {}) | given

    @classmethod
    def _of_earlier_versions(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What a job file of an earlier version sets, in today's settings. Raises ValueError."""
        given = with_new_name(given, "strength", "start")
        if given.get("preset") == "balanced":
            given = {"steps": 16, "start": 0.7} | given | {"preset": "fast"}
        gone = {name: _ALWAYS[name] for name in _ALWAYS if name not in cls.model_fields}
        for name, always in gone.items():
            if given.get(name, always) != always:
                raise ValueError(
                    f"got {name} {given[name]!r}, a setting of earlier versions; expected none: "
                    "leave it out. Comparisons (`methods` of an evaluate job) may still set it"
                )
        return {name: value for name, value in given.items() if name not in gone}


def _without_boxes(editor: EditorSettings) -> EditorSettings:
    if editor.region == "boxes":
        raise ValueError(
            "got region: boxes; expected photo or face, since no boxes come with this job's "
            "photos. `bs-ray edit-one` takes some: --box"
        )
    return editor


JobEditor = Annotated[EditorSettings, AfterValidator(_without_boxes)]
"""The editor of a job whose photos bring no boxes."""


class QualityGate(Settings):
    """What an edit must keep; an edit that does not is made again, weaker."""

    judges: JudgeSettings | None = UNSET_AS_BEFORE
    """Who measures identity and effect: of each kind the first that is named. The base's own where
    left out."""
    identity: float = Field(0.8, ge=-1, le=1)
    """Least identity: 1 less the judge's distance from the photo, which for the base's own judge is
    cosine similarity. dlib calls two faces the same person's from 0.4 on."""
    effect: float = Field(0.0, ge=0)
    """Least change of the sliders' CLIP scores (positive minus negative prompt, each towards its
    strength's sign, mean over sliders); an edit below it is marked. 0 asks for none."""
    backoff: float = Field(0.7, gt=0, lt=1)
    """What strengths are multiplied by before each retry."""
    retries: int = Field(3, ge=0, le=10)
    """Most retries; after the last one the weakest edit is kept and marked."""
