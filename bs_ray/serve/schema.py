"""What goes over the wire: the request, the reply, and errors as problems (RFC 9457)."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic_core import from_json

from bs_ray.config import Prompts

MAX_IMAGES = 16
"""Photos in one request, as in OpenAI's API."""
OutputFormat = Literal["png", "jpeg", "npy"]


class Problem(Exception):
    """A request that gets an error reply. `kind` is for programs, `detail` for people."""

    def __init__(self, status: int, kind: str, detail: str, **members: Any):
        super().__init__(detail)
        self.status, self.kind, self.detail, self.members = status, kind, detail, members

    def body(self) -> dict[str, Any]:
        """The members of RFC 9457, and the problem's own ones."""
        title = self.kind.replace("-", " ").capitalize()
        known = {"type": f"urn:bs-ray:problem:{self.kind}", "title": title, "status": self.status}
        return {**known, "detail": self.detail, **self.members}


class _Strict(BaseModel):
    # Strict, because a `false` for a number is a mistake and not 0.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SliderScale(_Strict):
    """How far to move one slider."""

    name: str
    scale: float
    """Signed strength: 0 leaves the photo as it is, 1 is what the slider was trained for."""


def _photo_bytes(value: object) -> object:
    """Base64, plain or as a data URL, to bytes; what came as a file is bytes already."""
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        raise ValueError("got a URL; expected the photo itself, as base64 or a data URL")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("got text that is not base64; expected base64 or a data URL") from None


def _several(value: object) -> object:
    return value if isinstance(value, list) else [value]


class EditRequest(_Strict):
    """Edit one photo, or several in the same way."""

    image: Annotated[
        list[Annotated[bytes, BeforeValidator(_photo_bytes, json_schema_input_type=str)]],
        BeforeValidator(_several),
        Field(min_length=1, max_length=MAX_IMAGES),
    ]
    """Photo files: base64 or data URLs in JSON, files in a form."""
    sliders: list[SliderScale] = []
    """None leaves the photo as it is."""
    seed: int = 0
    """With the photo's bytes it names the noise: the same request gives the same reply."""
    prompt: str | None = None
    """OpenAI's clients send one; the server has one of its own and refuses others."""
    output_format: OutputFormat = "png"
    """`npy` is float32 [H, W, 3] in [0, 255], for callers that measure or chain edits."""
    response_format: Literal["b64_json"] = "b64_json"

    @field_validator("sliders")
    @classmethod
    def _each_once(cls, sliders: list[SliderScale]) -> list[SliderScale]:
        twice = [name for name, n in Counter(s.name for s in sliders).items() if n > 1]
        if twice:
            raise ValueError(f"got {', '.join(twice)} more than once; expected each name once")
        return sliders

    def mix(self) -> dict[str, float]:
        """Slider name -> signed strength."""
        return {slider.name: slider.scale for slider in self.sliders}


class EditedImage(BaseModel):
    """One edited photo."""

    b64_json: str
    """The file, in base64."""


class Meta(BaseModel):
    """How the reply came about."""

    batch_rows: int
    """Edits that were computed together; with several photos, the largest such number."""
    seconds: float
    """From the request's arrival to its reply."""
    sliders: dict[str, float]
    """name@version -> strength."""
    base_id: str
    seed: int
    notes: list[str] = []
    """Which strengths are beyond their slider's usable range."""


class EditReply(BaseModel):
    """OpenAI's shape, and `meta`."""

    created: int
    """Unix time, seconds."""
    data: list[EditedImage]
    """In the order of the request's photos."""
    meta: Meta


class SliderInfo(BaseModel):
    """A slider that requests may name."""

    name: str
    version: int
    base: str
    base_id: str
    prompts: Prompts
    rank: int
    training: dict[str, Any]
    """What its training measured."""


class SliderList(BaseModel):
    """The sliders of this server."""

    data: list[SliderInfo]
    max_strength: float
    """Largest |scale| that a request may ask for."""


def parse_json(body: bytes) -> EditRequest:
    """A JSON body. Raises Problem 400 for text that is not JSON, 422 for wrong values."""
    try:
        values = from_json(body)
    except ValueError as error:
        raise Problem(400, "malformed-body", f"body: got no JSON ({error})") from None
    return _checked(values)


def parse_form(fields: list[tuple[str, str | bytes]]) -> EditRequest:
    """A form's fields in order, files as bytes. Raises Problem like `parse_json`."""
    values: dict[str, Any] = {"image": []}
    for name, value in fields:
        if name in ("image", "image[]"):
            values["image"].append(value)
        elif name in values:
            raise Problem(400, "malformed-body", f"{name}: got it twice; expected one field")
        elif name in ("sliders", "seed"):
            values[name] = _json_field(name, value)
        else:
            values[name] = value
    return _checked(values)


def _json_field(name: str, value: str | bytes) -> Any:
    try:
        return from_json(value)
    except ValueError as error:
        example = '[{"name": "smile", "scale": 1.5}]' if name == "sliders" else "7"
        detail = f"{name}: got no JSON ({error}); expected JSON such as {example}"
        raise Problem(400, "malformed-body", detail) from None


def _checked(values: object) -> EditRequest:
    try:
        return EditRequest.model_validate(values)
    except ValidationError as error:
        findings = [_explain(finding) for finding in error.errors()]
        raise Problem(422, "wrong-value", "; ".join(findings), errors=findings) from None


def _explain(finding: Any) -> str:
    """One of pydantic's findings: where, got, expected."""
    place = ".".join(str(part) for part in finding["loc"]) or "body"
    if finding["type"] == "extra_forbidden":
        return f"{place}: got an unknown field; expected {', '.join(EditRequest.model_fields)}"
    if finding["type"] == "missing":
        return f"{place}: got nothing; expected a value"
    message = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: got {_shown(finding['input'])}; {message[0].lower()}{message[1:]}"


def _shown(value: object) -> str:
    """A value in a message: short, and never a whole photo."""
    return repr(value)[:60] if not isinstance(value, bytes | list | dict) else type(value).__name__
