"""Bodies of requests and replies: OpenAI's images API with sliders."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from bs_ray.config import PRESETS, Prompts
from bs_ray.config.explain import explain
from bs_ray.images.base64_text import base64_bytes
from bs_ray.serve.http.boxes import MAX_BOXES, GivenBox, RegionInfo
from bs_ray.serve.http.named import AnySlider, SliderScale, Strict, Sweep
from bs_ray.serve.http.problems import Problem

MAX_IMAGES = 16
"""Photos in one request, as in OpenAI's API."""
MAX_SLIDERS = 64
OutputFormat = Literal["png", "jpeg", "webp", "npy"]
Method = Literal["displacement", "sdedit", "ddim_inversion", "edit_friendly"]
"""The methods that share steps with others. Null-text does not: it fits an embedding first."""
Quality = Literal["auto", "standard", "low", "medium", "high", "fast"]
_EDITOR_OF: dict[str, dict[str, Any]] = {
    "low": PRESETS["fast"],
    "fast": PRESETS["fast"],
    # The mask is what pays: it costs a tenth, and keeps the photo as well as `high`.
    "medium": {**PRESETS["fast"], "soft_mask": PRESETS["high"]["soft_mask"]},
    "high": PRESETS["high"],
}


def _photo_bytes(value: object) -> object:
    """Base64, plain or as a data URL, as bytes. Files are bytes already; URLs stay text."""
    if not isinstance(value, str) or value.startswith(("http://", "https://")):
        return value
    return base64_bytes(value)


def _several(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


_PHOTO = {"type": "string", "format": "byte"}
_COUNT = {"minItems": 1, "maxItems": MAX_IMAGES}
Photo = Annotated[
    bytes | str,
    BeforeValidator(_photo_bytes),
    WithJsonSchema(_PHOTO),
]
"""A photo file's bytes, or its URL."""


class _ImageRequest(Strict):
    """The fields that edits and generations share."""

    model: str | None = Field(None, max_length=200)
    """The server's base, see /v1/models."""
    n: int = Field(1, ge=1, le=10)
    """Pictures for each photo or prompt, with seeds `seed`, `seed + 1`, ..."""
    sliders: list[SliderScale] = Field([], max_length=MAX_SLIDERS)
    sweep: Sweep | None = None
    """Adds one slider, at each of its scales, to `sliders`."""
    steps: int | None = Field(None, ge=1, le=1000)
    """Denoising steps; the server's own where left out."""
    seed: int = Field(0, ge=0, lt=2**53)
    """Fixes the noise: the same request gives the same pictures."""
    output_format: OutputFormat = "png"
    """`npy` is float32 [H, W, 3] in [0, 255], for callers that measure or chain edits."""
    output_compression: int = Field(95, ge=0, le=100)
    """Quality of JPEG and WebP."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False
    """Answer with server-sent events: progress, partial images, then the pictures."""
    partial_images: int = Field(0, ge=0, le=3)
    """With `stream`: how many previews to send on the way."""
    size: str = Field("auto", max_length=20)
    """`auto`, or the photo's own: a photo keeps its size, a generation has the base's."""
    background: Literal["auto"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    """Accepted for compatibility; the server has no moderation."""
    user: str | None = Field(None, max_length=200)

    @field_validator("sliders")
    @classmethod
    def _each_once(cls, sliders: list[SliderScale]) -> list[SliderScale]:
        names = Counter(slider.title for slider in sliders)
        if twice := [name for name, n in names.items() if n > 1]:
            raise ValueError(f"got {', '.join(twice)} more than once; expected each name once")
        return sliders

    @model_validator(mode="after")
    def _sweeps_another(self) -> Self:
        if self.sweep:
            swept = self.sweep.title
            if swept in (slider.title for slider in self.sliders):
                raise ValueError(f"sweep: got {swept}, which `sliders` has as well; expected one")
        return self

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        targets = {s.target for s in self.named.values() if s.target is not None}
        if len(targets) > 1:
            raise ValueError("got several targets; expected one, which all sliders act on")
        return self

    @property
    def named(self) -> dict[str, AnySlider]:
        """All sliders of the request, by their keys."""
        return {
            slider.key: slider for slider in [*self.sliders, *([self.sweep] if self.sweep else [])]
        }

    def mixes(self) -> list[dict[str, float]]:
        """The request's mixes, slider's key -> signed strength, one for each picture of a
        photo."""
        fixed = {slider.key: slider.scale for slider in self.sliders}
        if not self.sweep:
            return [fixed]
        return [{**fixed, self.sweep.key: scale} for scale in self.sweep.scales]


class EditRequest(_ImageRequest):
    """Edit one photo, or several in the same way."""

    image: Annotated[
        list[Photo],
        BeforeValidator(_several),
        Field(min_length=1, max_length=MAX_IMAGES),
        WithJsonSchema({"anyOf": [_PHOTO, {"type": "array", "items": _PHOTO, **_COUNT}]}),
    ]
    """Photo files: base64 or data URLs in JSON, files in a form, or URLs of hosts that the server
    allows."""
    mask: Photo | None = None
    """A PNG of the first photo's size; the photo may change where the PNG is transparent."""
    prompt: str | None = Field(None, max_length=32_000)
    """OpenAI's clients send one. The server has a prompt of its own and refuses others."""
    method: Method | None = None
    quality: Quality = "auto"
    """`auto` and `standard` are the server's own settings, `low` and `fast` the editor's preset
    `fast`; `medium` adds its soft mask, and `high` is its preset `high`."""
    strength: float | None = Field(None, gt=0, le=1)
    """Where in the noise range the edit begins, as a share of it."""
    region: Literal["photo", "face", "boxes"] | None = None
    """What of the photo is edited: all of it, the faces that are found in it, or `boxes`. The
    server's own setting where left out, or `boxes` where some are given."""
    boxes: list[GivenBox] | None = Field(None, min_length=1, max_length=MAX_BOXES)
    """Where to edit the one photo of the request, instead of finding faces."""
    faces: Literal["all", "largest"] | Annotated[int, Field(ge=1)] | None = None
    """Which of the found faces; a number stands for so many of the largest at most."""
    no_face: Literal["leave", "photo"] | None = None
    """What becomes of a photo without faces: it is left as it is, or edited as a whole."""
    input_fidelity: Literal["low", "high"] | None = None
    """Accepted for compatibility; the photo is always kept as far as possible."""

    @model_validator(mode="before")
    @classmethod
    def _image_objects(cls, given: Any) -> Any:
        """OpenAI's newer body: images: [{"image_url": ...}], mask: {"image_url": ...}."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if "images" in given and "image" not in given:
            given["image"] = [_url_of(item) for item in _several(given.pop("images"))]
        if isinstance(given.get("mask"), dict):
            given["mask"] = _url_of(given["mask"])
        return given

    @model_validator(mode="after")
    def _boxes_fit(self) -> Self:
        if self.region == "boxes" and not self.boxes:
            raise ValueError("boxes: got none; expected some, since region is boxes")
        if self.region == "photo" and self.boxes:
            raise ValueError("boxes: got some; expected none, since region is photo")
        if self.boxes and len(self.image) > 1:
            raise ValueError(f"boxes: got {len(self.image)} photos with them; expected one photo")
        return self

    def editor_changes(self) -> dict[str, Any]:
        """What the request sets differently from the server's editor settings."""
        named = _EDITOR_OF.get(self.quality, {})
        own: dict[str, Any] = {
            "method": self.method,
            "start": self.strength,
            "steps": self.steps,
            "region": "boxes" if self.boxes else self.region,
            "faces": self.faces,
            "no_face": self.no_face,
            "prompt": next((s.target for s in self.named.values() if s.target is not None), None),
        }
        return {**named, **{name: value for name, value in own.items() if value is not None}}


class FacesRequest(Strict):
    """Find the faces of one photo."""

    image: Annotated[
        list[Photo],
        BeforeValidator(_several),
        Field(min_length=1, max_length=1),
        WithJsonSchema(_PHOTO),
    ]
    """A photo file: base64 or a data URL in JSON, a file in a form, or a URL of a host that the
    server allows."""


class GenerateRequest(_ImageRequest):
    """Generate pictures from a prompt, with sliders."""

    prompt: str = Field(min_length=1, max_length=4_000)
    guidance_scale: float = Field(4.0, ge=0, le=50)
    """Classifier-free guidance; 1 is none."""
    quality: Literal["auto", "standard"] = "auto"
    style: str | None = Field(None, max_length=20)
    """Accepted for compatibility."""

    @model_validator(mode="after")
    def _acts_on_the_prompt(self) -> Self:
        if any(slider.target is not None for slider in self.named.values()):
            raise ValueError("got a target; expected none: sliders act on the prompt's picture")
        return self


def _url_of(item: Any) -> Any:
    if isinstance(item, dict) and set(item) == {"image_url"}:
        return item["image_url"]
    raise ValueError('got an image that is no {"image_url": ...}; expected a data URL in it')


# --- replies ----------------------------------------------------------------------------------
class ImageReply(BaseModel):
    """One picture: in base64, or the URL to read it from."""

    b64_json: str | None = None
    url: str | None = None


class Meta(BaseModel):
    """How the reply came about."""

    request_id: str
    batch_rows: float
    """How many edits, of any caller, shared a step with this request's; the mean over its steps."""
    queue_seconds: float
    """From admission until the first step."""
    seconds: float
    """From the request's arrival to its reply."""
    sliders: dict[str, float]
    """name@version -> strength; words have a hash in place of the version."""
    sweep: list[float] = []
    """With a sweep: the scales, in the order of a photo's pictures."""
    base_id: str
    seed: int
    regions: list[list[RegionInfo] | None] = []
    """Of an edit: for each photo the squares of it that were edited, largest face first; null where
    it was edited as a whole."""
    notes: list[str] = []
    """Which strengths are beyond their slider's usable range, where no face was found, and what of
    a file was dropped."""


class ImagesReply(BaseModel):
    """OpenAI's reply, and `meta`."""

    created: int
    """Unix time, seconds."""
    data: list[ImageReply]
    """In the order of photos, then seeds, then scales."""
    meta: Meta


class SliderInfo(BaseModel):
    """A slider that requests may name."""

    name: str
    version: int
    base: str
    base_id: str
    prompts: Prompts | None
    rank: int
    range: tuple[float, float] | None
    """Calibrated range of scales, in units of effect; null where none was measured."""
    unit: str | None
    """The judge that measured the unit."""
    preview: str
    """Path of a strip that shows the slider at work."""


class SliderDetail(SliderInfo):
    """A slider with its card."""

    family: str
    subject: str
    """What it acts on: the target of its prompts, or what its pictures show."""
    eta: float | None
    """Of a slider of words: what the difference of its predictions is multiplied by."""
    calibration: dict[str, Any] | None
    """What was measured at which LoRA scale (docs/method.md, "Measuring")."""
    training: dict[str, Any]
    """What its training measured."""


class SliderList(BaseModel):
    """The sliders of this server that the key may use."""

    data: list[SliderInfo]
    max_strength: float
    """Largest |scale| that a request may ask for."""
    finds_faces: bool
    """Whether this server can find the faces of photos."""
    words: bool = False
    """Whether requests may bring sliders of words."""


class ModelInfo(BaseModel):
    """A base, as OpenAI's API describes a model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "bs_ray"
    base_id: str


class ModelList(BaseModel):
    """The bases of this server, of which there is one."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Status(BaseModel):
    """The reply to a health check."""

    status: str


# --- reading ----------------------------------------------------------------------------------
_Request = TypeVar("_Request", bound=Strict)
_FILES = ("image", "mask")
_TEXTS = {
    "prompt",
    "model",
    "method",
    "quality",
    "output_format",
    "response_format",
    "size",
    "background",
    "moderation",
    "user",
    "input_fidelity",
    "region",
    "no_face",
}


def parse_json(kind: type[_Request], body: bytes) -> _Request:
    """The request in a JSON body. Raises Problem 400 for text that is not JSON, 422 for wrong
    values."""
    try:
        values = from_json(body)
    except ValueError as error:
        raise Problem(400, "malformed-body", f"body: got no JSON ({error})") from None
    return _checked(kind, values)


def parse_form(kind: type[_Request], fields: list[tuple[str, str | bytes]]) -> _Request:
    """The request in a form's fields, files as bytes. Raises Problem as `parse_json` does.

    OpenAI's Python client turns `extra_body` into fields such as `sliders[][name]`; they count as
    the JSON that they stand for.
    """
    values: dict[str, Any] = {"image": []}
    for name, value in fields:
        root, _, path = name.partition("[")
        if root == "image":
            values["image"].append(value)
        elif path:
            _nest(values, root, path.rstrip("]").split("]["), value)
        elif name in values:
            raise Problem(400, "malformed-body", f"{name}: got it twice; expected one field")
        else:
            values[name] = value if name in _TEXTS or name in _FILES else _json(name, value)
    return _checked(kind, values)


def _nest(values: dict[str, Any], root: str, path: list[str], value: str | bytes) -> None:
    """One bracketed field: sliders[][name]=smile, sweep[name]=age, sweep[scales][]=1."""
    leaf = _json_or_text(value)
    if path == [""]:
        _rows(values, root, object).append(leaf)
    elif root == "boxes" and path == ["", ""]:
        corners = _rows(values, root, list)  # one after the other, four for each box
        if not corners or len(corners[-1]) == 4:
            corners.append([])
        corners[-1].append(leaf)
    elif len(path) == 2 and path[0] == "":
        rows = _rows(values, root, dict)
        # All names may come before all scales: a value is for the first row that lacks one.
        row = next((row for row in rows if path[1] not in row), None)
        if row is None:
            rows.append(row := {})
        row[path[1]] = leaf
    elif len(path) in (1, 2) and path[1:] in ([], [""]):
        members = values.setdefault(root, {})
        if not isinstance(members, dict):
            raise Problem(400, "malformed-body", f"{root}: got it in two forms; expected one")
        if path[1:]:
            _append(members, path[0], leaf, root)
        else:
            members[path[0]] = leaf
    else:
        detail = f"{root[:40]}: got a nested field; expected JSON, such as {_example(root)}"
        raise Problem(400, "malformed-body", detail)


def _rows(values: dict[str, Any], root: str, kind: type) -> list[Any]:
    """The list that a field's parts make, so far. Raises Problem 400 for another form of it."""
    rows = values.setdefault(root, [])
    if not isinstance(rows, list) or not all(isinstance(row, kind) for row in rows):
        raise Problem(400, "malformed-body", f"{root[:40]}: got it in two forms; expected one")
    return rows


def _append(members: dict[str, Any], name: str, leaf: Any, root: str) -> None:
    listed = members.setdefault(name, [])
    if not isinstance(listed, list):
        raise Problem(400, "malformed-body", f"{root}: got {name[:40]} in two forms; expected one")
    listed.append(leaf)


def _json_or_text(value: str | bytes) -> Any:
    try:
        return from_json(value)
    except ValueError:
        return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _json(name: str, value: str | bytes) -> Any:
    if name == "faces":  # a number, or a word
        return _json_or_text(value)
    try:
        return from_json(value)
    except ValueError as error:
        detail = f"{name[:40]}: got no JSON ({error}); expected JSON such as {_example(name)}"
        raise Problem(400, "malformed-body", detail) from None


def _example(name: str) -> str:
    return {
        "sliders": '[{"name": "smile", "scale": 1.5}]',
        "sweep": '{"name": "smile", "scales": [-1, 0, 1]}',
        "boxes": "[[120, 80, 260, 240]]",
        "stream": "true",
    }.get(name, "7")


def _checked(kind: type[_Request], values: object) -> _Request:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        findings = [_explain(kind, finding) for finding in error.errors()[:8]]
        raise Problem(422, "wrong-value", "; ".join(findings), errors=findings) from None


def _explain(kind: type[BaseModel], finding: Any) -> str:
    """One of pydantic's findings as `place: got ...; expected ...`."""
    place = ".".join(str(part)[:40] for part in finding["loc"]) or "body"
    if finding["type"] == "extra_forbidden":
        return f"{place}: got an unknown field; expected {', '.join(kind.model_fields)}"
    return explain(finding, place, _shown)


def _shown(value: object) -> str:
    """A value for a message: short, and never a whole photo."""
    return repr(value)[:60] if not isinstance(value, bytes | list | dict) else type(value).__name__
