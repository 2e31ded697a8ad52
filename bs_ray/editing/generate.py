"""Text-guided generation with sliders, the paper's first setting: one seed, several strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bs_ray.editing.editor import Editor
from bs_ray.editing.run import DenoiseRequest, EditRun, euler, run_alone
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.bank import LATE_ACTIVATION, banded
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.slider import Slider


@torch.no_grad()
def begin_generating(
    editor: Editor,
    prompts: Sequence[str],
    mixes: Sequence[Mix],
    *,
    keys: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    late: float = LATE_ACTIVATION,
    beside: Sequence[Slider] = (),
) -> EditRun:
    """One picture for each prompt, mix, key and seed, before its first step.

    late: sliders act below this share of the noise range; 1 is always. `beside` and what is raised
    are as in `Editor.lora_scales`.
    """
    model, count = editor.model, len(prompts)
    condition = model.embed([*prompts, *([""] * count)])
    scales, words = editor.scales(mixes, beside)
    scales = scales.repeat(2, 1)
    last = round(late * model.prediction.num_train_timesteps) - 1
    bands = torch.tensor([[0, last]] * scales.shape[1], device=scales.device)
    noise = batch_noise(model.latent_shape, seeds, keys, 0).to(model.device)
    same = torch.arange(count, device=model.device).repeat(2)

    def make_request(x: Tensor, now: int, estimate: Tensor | None) -> DenoiseRequest:
        """Rows with the prompt and rows with the empty prompt share a forward pass."""
        t = torch.full((2 * count,), now, device=x.device)
        acting = banded(scales, t, bands)
        return DenoiseRequest(x.repeat(2, 1, 1, 1), t, condition, acting, estimate, words, same)

    def guide(prediction: Tensor) -> Tensor:
        cond, uncond = prediction.chunk(2)
        return model.guide(cond, uncond, guidance_scale)

    times = model.prediction.timesteps(steps)
    generating = euler(model.prediction, noise, times, make_request, guide)
    return EditRun(generating, list(editor.moving(mixes).values()))


def pictures(editor: Editor, latents: Tensor) -> Tensor:
    """Latents -> pictures [B, 3, H, W] in [-1, 1], on the CPU."""
    with torch.no_grad():
        return editor.model.decode(latents).clamp(-1, 1).cpu()


def generate(
    editor: Editor,
    prompts: Sequence[str],
    mixes: Sequence[Sequence[Mapping[str, float]]],
    *,
    keys: Sequence[str],
    seed: int,
    steps: int,
    guidance_scale: float,
    late: float = LATE_ACTIVATION,
) -> Tensor:
    """Pictures [P, K, 3, H, W] in [-1, 1]: every prompt under each of its K mixes of strengths.

    A prompt's pictures share their noise, which its key and the seed fix. `late` is as in
    `begin_generating`. Raises SliderError as `Editor.mix` and `Editor.lora_scales` do.
    """
    count = len(mixes[0])
    run = begin_generating(
        editor,
        [prompt for prompt in prompts for _ in range(count)],
        [editor.mix(strengths) for row in mixes for strengths in row],
        keys=[key for key in keys for _ in range(count)],
        seeds=[seed] * (len(prompts) * count),
        steps=steps,
        guidance_scale=guidance_scale,
        late=late,
    )
    return pictures(editor, run_alone(run, editor.predict)).unflatten(0, (len(prompts), count))
