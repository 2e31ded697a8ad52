"""The shipped flow-matching base: plain diffusers loads it, and sliders on it move attributes."""

import pandas as pd
import pytest
import torch

from bs_ray.bench.train_bench import TrainBench, fresh_hooks
from bs_ray.evaluate.base import caption_figures, captioned
from bs_ray.models import EMBEDDED
from bs_ray.models.diffusion import FlowMatching
from bs_ray.train.loop import one_step

FLOW = EMBEDDED["tiny-flow"]


@pytest.fixture(scope="module")
def bench() -> TrainBench:
    return TrainBench.load("tiny-flow")


def test_it_is_small_and_holds_no_pickle() -> None:
    files = [path for path in FLOW.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30 << 20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_diffusers_loads_and_generates(bench) -> None:
    from diffusers import StableDiffusion3Pipeline

    # Without a T5, which is how diffusers documents running SD3 on less memory.
    pipe = StableDiffusion3Pipeline.from_pretrained(
        FLOW, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a photo of a woman, smiling, long hair",
        num_inference_steps=12,
        guidance_scale=4.0,
        height=64,
        width=64,
        max_sequence_length=0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    reader = bench.world.reader
    read = dict(zip(reader.names, reader.read(image * 2 - 1)[0].tolist(), strict=True))
    assert read["smile"] > 0.5 and read["hair_length"] > 0.5 and read["man"] < 0.5


def test_captions_come_out_true(bench) -> None:
    assert isinstance(bench.model.prediction, FlowMatching)
    rows = pd.DataFrame(captioned(bench.model, bench.world.reader, 0, 64, total=64))
    found = caption_figures(rows)["class_accuracy"]
    print(found)
    assert min(found.values()) >= 0.85, found


def test_a_slider_moves_its_attribute_both_ways(bench) -> None:
    losses = {"perceptual": 0, "adversarial": 0}
    job = bench.job("age", 0, batch_size=4, steps=25, losses=losses)
    with fresh_hooks(bench.model):
        state = bench.train_state(job)
        for step in range(job.steps):
            one_step(state, step)
        slider = bench.slider(state, "age")
    faces = bench.world.held_out(48)
    up, down = (bench.effect(slider, "age", faces, strength) for strength in (1.0, -1.0))
    print(up, down)
    assert up.effect > 0.3 and down.effect > 0.2
    assert up.drift < 0.15 * up.effect
