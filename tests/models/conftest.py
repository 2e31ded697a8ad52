"""Every family as a random base on disk, loaded here and in plain diffusers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from bs_ray.models import load_base
from bs_ray.models.diffusion import batch_noise
from tests.models.random_bases import WRITERS

PROMPTS = ["a photo", "a photo of a person, smiling"]  # of different lengths
KEYS = ["first", "second"]
HEIGHT, WIDTH = 32, 48  # neither square nor the base's own size
STEPS, GUIDANCE = 4, 2.5  # DDIM rounds its steps alike only where they divide 1000
EMBEDDED = ("flux", "schnell")  # guided, if at all, by what the network is told


@dataclass
class Family:
    """One family's base, here and in diffusers."""

    name: str
    folder: Path
    model: Any
    pipe: Any
    outputs: list[Tensor] = field(default_factory=list)
    """What the pipeline's last run handed its scheduler at each step, as latents of ours."""
    samples: list[Tensor] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)

    @property
    def guidance(self) -> float:
        """Classifier-free guidance as we count it; 1 is none."""
        return 1.0 if self.name in EMBEDDED else GUIDANCE

    def noise(self) -> Tensor:
        """What `sample_euler` begins with, for KEYS and seed 0."""
        return batch_noise(self.model.latent_shape, [0] * len(KEYS), KEYS, 0)

    @torch.no_grad()
    def draw(self) -> Tensor:
        """PROMPTS drawn by the pipeline from `noise`, at our timesteps: [2, 3, H, W] in [0, 1]."""
        self.outputs, self.samples = [], []
        self.timesteps = self.model.prediction.timesteps(STEPS)
        settings: dict[str, Any] = {"num_inference_steps": STEPS}
        if not self.name.startswith("sdxl"):
            settings["sigmas"] = [(t + 1) / 1000 for t in self.timesteps]
        images: Tensor = self.pipe(
            prompt=list(PROMPTS),
            height=HEIGHT,
            width=WIDTH,
            latents=self.to_pipe(self.noise()),
            output_type="pt",
            **settings,
            **self._guidance_settings(),
        ).images
        return images

    def _guidance_settings(self) -> dict[str, Any]:
        empty = [""] * len(PROMPTS)
        if self.name in EMBEDDED or self.name == "flux2-klein":
            return {} if self.name in EMBEDDED else {"guidance_scale": GUIDANCE}
        if self.name == "z-image":  # cond + g (cond - uncond)
            return {"guidance_scale": GUIDANCE - 1}
        name = "true_cfg_scale" if self.name == "qwen-image" else "guidance_scale"
        return {name: GUIDANCE, "negative_prompt": empty}

    # --- the pipeline's own form of latents ------------------------------------------------------
    def to_pipe(self, x: Tensor) -> Tensor:
        if self.name in (*EMBEDDED, "qwen-image"):
            packed: Tensor = self.pipe._pack_latents(x, *x.shape)
            return packed
        return x

    def from_pipe(self, x: Tensor) -> Tensor:
        if self.name in (*EMBEDDED, "qwen-image"):
            plain = self.pipe._unpack_latents(x, HEIGHT, WIDTH, self.pipe.vae_scale_factor)
            return plain.squeeze(2) if plain.dim() == 5 else plain
        if self.name == "flux2-klein":
            ids = self.pipe._prepare_latent_ids(self.noise())
            plain = self.pipe._unpack_latents_with_ids(x, ids)
            assert isinstance(plain, Tensor)
            return plain
        return x


def open_pipe(folder: Path, name: str) -> Any:
    """The folder in plain diffusers, with a scheduler that takes the timesteps it is given."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if name.startswith("sdxl"):
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
            steps_offset=0,
        )
    else:
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return pipe


def record(family: Family) -> None:
    """Let the pipeline's scheduler note what it is given."""
    step: Callable[..., Any] = family.pipe.scheduler.step

    def noted(output: Tensor, t: Any, sample: Tensor, *rest: Any, **more: Any) -> Any:
        family.outputs.append(family.from_pipe(output))
        family.samples.append(family.from_pipe(sample))
        return step(output, t, sample, *rest, **more)

    family.pipe.scheduler.step = noted


@pytest.fixture(scope="session", params=WRITERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder)
    found = Family(request.param, folder, load_base(str(folder)), open_pipe(folder, request.param))
    channels, side, _ = found.model.latent_shape
    px = found.model.native_px // side
    found.model.latent_shape = (channels, HEIGHT // px, WIDTH // px)
    record(found)
    return found
