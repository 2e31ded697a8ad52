"""Finding the judges that lie beside a base's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bs_ray.judges.attributes import AttributeReader
from bs_ray.judges.clip import ClipScore
from bs_ray.judges.identity import Identity
from bs_ray.judges.network import JudgeNet
from bs_ray.judges.perceptual import Perceptual
from bs_ray.models.base import BaseNotFound


@dataclass(frozen=True)
class JudgeSet:
    """The judges of a base, of any kind; each may be absent."""

    clip: ClipScore | None = None
    perceptual: Perceptual | None = None
    identity: Identity | None = None

    @property
    def absent(self) -> list[str]:
        """The names of the judges that the base has not."""
        return [name for name, judge in vars(self).items() if judge is None]


def find_judges(base: Path) -> JudgeSet:
    """The judges in `<base>/judges`: `clip/`, `perceptual.safetensors` and `identity.safetensors`.

    The tiny bases bring all three. Beside another base, any CLIP folder of transformers will do.
    """
    folder = base / "judges"

    def network(name: str) -> JudgeNet | None:
        file = folder / f"{name}.safetensors"
        return JudgeNet.load(file) if file.is_file() else None

    clip = ClipScore.load(folder / "clip") if (folder / "clip/config.json").is_file() else None
    perceptual, identity = network("perceptual"), network("identity")
    return JudgeSet(
        clip,
        Perceptual(perceptual) if perceptual else None,
        Identity(identity) if identity else None,
    )


@dataclass(frozen=True)
class WorldJudges:
    """The tiny world's judges, none of them absent."""

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
