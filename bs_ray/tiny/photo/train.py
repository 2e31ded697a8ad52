"""The recipe of tiny-photo, stage after stage, where torch and diffusers are at hand but no Ray.

Elsewhere `bs-ray tiny build --world photos` does the same, from the archives on. Here the photos
come packed, by `bs-ray tiny pack`, and the time of all stages may be given. Reader, text, vae and
unet make the base; perceptual and clip are judges of its own, for training losses and previews:
what measures the base are public judges, trained elsewhere.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from bs_ray.tiny.loop import finished, fit, mark_finished
from bs_ray.tiny.photo.album import Album, PhotoStage
from bs_ray.tiny.photo.autoencoder import VaeStage
from bs_ray.tiny.photo.denoiser import UnetStage
from bs_ray.tiny.photo.photos import Photos
from bs_ray.tiny.photo.readers import PerceptualStage, ReaderStage
from bs_ray.tiny.photo.text import ClipStage, TextStage

SHARES: dict[type[PhotoStage], float] = {
    ReaderStage: 0.05,
    TextStage: 0.03,
    VaeStage: 0.28,
    PerceptualStage: 0.025,
    ClipStage: 0.025,
    UnetStage: 1.0,
}
"""Stage -> its share of the whole time; the last takes what is left."""
STAGES = tuple(kind.name for kind in SHARES)
_MARGIN_S = 12.0


def train(
    pack: Path,
    out: Path,
    work: Path,
    *,
    device: str,
    seconds: float | None,
    steps: int | None,
    stages: str = "",
) -> None:
    """All stages into the diffusers folder `out`; what is finished in `work` is not done again.

    seconds: for all of it together, start included; steps: of every stage instead, for a try.
    stages: a comma list of those to train; all by default.
    """
    began = time.monotonic()
    album = open_album(pack, torch.device(device))
    print(f"{len(album.rows)} photos, {len(album.held)} held out", flush=True)
    work.mkdir(parents=True, exist_ok=True)

    def report(name: str, step: int, of: int, numbers: dict[str, float]) -> None:
        if step % max(10, of // 20 // 10 * 10) == 0 or step == of:
            shown = ", ".join(f"{k} {v:.4f}" for k, v in numbers.items())
            print(f"{time.monotonic() - began:6.0f} s  {name} {step}/{of}: {shown}", flush=True)

    for kind, share in SHARES.items():
        if finished(kind.name, work) or (stages and kind.name not in stages.split(",")):
            continue
        stage = kind(album, out)
        left = None
        if seconds:
            left = seconds - (time.monotonic() - began) - _MARGIN_S
            left = min(left, share * seconds)
        fit(stage, work, report, steps, left)
        mark_finished(kind.name, work)
    print(f"{time.monotonic() - began:6.0f} s  done: {out}", flush=True)


def open_album(pack: Path, device: torch.device) -> Album:
    """The packed photos on the device, which is set up for these networks."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return Album(Photos.load(pack, device), device)


def build_stage(name: str, album: Album, base: Path) -> PhotoStage:
    """The stage of that name, one of STAGES."""
    kind = next(kind for kind in SHARES if kind.name == name)
    return kind(album, base)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bs_ray.tiny.photo.train", description=__doc__)
    parser.add_argument("--pack", type=Path, required=True, help="folder of part-*.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="the base's diffusers folder")
    parser.add_argument("--work", type=Path, required=True, help="states and sample sheets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, help="time for all stages together")
    parser.add_argument("--steps", type=int, help="steps of every stage, for a try")
    parser.add_argument("--stages", default="", help="only these, comma between them")
    chosen = parser.parse_args()
    train(
        chosen.pack,
        chosen.out,
        chosen.work,
        device=chosen.device,
        seconds=chosen.seconds,
        steps=chosen.steps,
        stages=chosen.stages,
    )


if __name__ == "__main__":
    main()
