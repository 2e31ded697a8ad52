"""Frozen judges: small networks that look at pictures. A loss to train/, a metric to evaluate/.

Offline judges of the tiny world live beside its weights; each is a `JudgeNet` or a CLIP model in
transformers' layout. Images are float32 RGB in [-1, 1], shape [B, 3, H, W]; they are resized to
the judge's own size (64 px) first.
"""

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
    """The judges at hand for any base; each may be absent."""

    clip: ClipScore | None = None
    perceptual: Perceptual | None = None
    identity: Identity | None = None

    @property
    def absent(self) -> list[str]:
        """Names of those that are not at hand."""
        return [name for name, judge in vars(self).items() if judge is None]


def find_judges(base: Path) -> JudgeSet:
    """Those in `<base>/judges`: a CLIP folder `clip`, `perceptual` and `identity` .safetensors.

    The tiny bases bring all three. Beside another base, put any transformers CLIP there.
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
    """The tiny world's judges."""

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
