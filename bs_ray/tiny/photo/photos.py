"""The photographs that a recipe trains on, as packed files of small size, and as tensors.

A pack is a folder of `part-NN.safetensors`, each below 45 MB: pictures as WebP files of 128 x 128,
laid end to end, and what is known of each. Held-out people are in no pack but as `held`.

Faces come in two framings: wide ones as a slider's region shows them, and tight ones, where the
source has no more to show. `tightened` makes a tight one of a wide one.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from bs_ray.tiny.photo.captions import LABELS

SIZE = 128
EYES = ((0.336, 0.359), (0.664, 0.359))
"""Where the eyes stand in a wide picture, as shares of its width and height."""
_TIGHT = (0.081, 0.108, 0.838)
"""Left, top and side of a tight picture in a wide one; its eyes stand at 0.3 and 0.69, 0.3."""
_PART_BYTES = 44_000_000
_THREADS = 16


@dataclass
class Photos:
    """Pictures uint8 [N, 3, 128, 128], labels float32 [N] by name (NaN: unknown), held-out rows."""

    pixels: Tensor
    labels: dict[str, Tensor]
    held: Tensor

    @classmethod
    def load(cls, pack: Path, device: str | torch.device = "cpu") -> Photos:
        """Read a pack's parts that lie in the folder. Raises FileNotFoundError where none does."""
        parts = [load_file(path) for path in sorted(pack.glob("part-*.safetensors"))]
        if not parts:
            raise FileNotFoundError(
                f"pack: got {pack}, which holds no part-*.safetensors; expected packed photos. "
                "Make them first: bs-ray tiny pack"
            )
        pixels = torch.cat([_decoded(part["bytes"], part["offsets"]) for part in parts])
        labels = {name: torch.cat([p[f"label/{name}"] for p in parts]) for name in LABELS}
        held = torch.cat([part["held"] for part in parts]).bool()
        return cls(pixels.to(device), {k: v.to(device) for k, v in labels.items()}, held.to(device))

    def rows(self, held: bool = False) -> Tensor:
        """int64 indices of the pictures to train on, or of those held out."""
        return (self.held if held else ~self.held).nonzero()[:, 0]


def tightened(x: Tensor) -> Tensor:
    """Wide pictures [B, 3, 128, 128] -> the same faces framed like tight ones."""
    left, top, side = _TIGHT
    across, down = 2 * (left + side / 2) - 1, 2 * (top + side / 2) - 1
    matrix = torch.tensor([[side, 0, across], [0, side, down]], device=x.device)
    places = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, places, mode="bicubic", padding_mode="border", align_corners=False)


def save_pack(
    pack: Path, pictures: list[bytes], labels: Mapping[str, np.ndarray], held: np.ndarray
) -> list[Path]:
    """Write encoded pictures and what is known of them, in parts of at most 44 MB of pictures.

    The folder has its name once all of them are written.
    """
    scratch = pack.with_name(f"{pack.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    bounds, size = [0], 0
    for index, picture in enumerate(pictures):
        if size + len(picture) > _PART_BYTES:
            bounds.append(index)
            size = 0
        size += len(picture)
    bounds.append(len(pictures))
    for number, (first, end) in enumerate(pairwise(bounds)):
        lengths = torch.tensor([0, *(len(p) for p in pictures[first:end])])
        flat = {
            "bytes": torch.frombuffer(bytearray(b"".join(pictures[first:end])), dtype=torch.uint8),
            "offsets": lengths.cumsum(0),
            "held": torch.from_numpy(held[first:end].astype(np.uint8)),
        }
        for name in LABELS:
            flat[f"label/{name}"] = torch.from_numpy(labels[name][first:end].astype(np.float32))
        save_file(flat, scratch / f"part-{number:02d}.safetensors")
    scratch.rename(pack)
    return sorted(pack.iterdir())


def encoded(picture: Image.Image, quality: int = 88) -> bytes:
    """A picture as a WebP file: about 2.6 kB at 41 dB for a face of 128 px."""
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=quality, method=6)
    return stream.getvalue()


def _decoded(blob: Tensor, offsets: Tensor) -> Tensor:
    """WebP files end to end -> uint8 [N, 3, 128, 128]."""
    data, places = blob.numpy(), offsets.tolist()
    found = np.empty((len(places) - 1, SIZE, SIZE, 3), np.uint8)

    def decode(index: int) -> None:
        stream = io.BytesIO(data[places[index] : places[index + 1]].tobytes())
        with Image.open(stream) as picture:
            found[index] = np.asarray(picture.convert("RGB"))

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(decode, range(len(found))))
    return torch.from_numpy(found).permute(0, 3, 1, 2).contiguous()
