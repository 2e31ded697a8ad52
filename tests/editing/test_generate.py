"""Text-guided generation: one noise for all strengths, sliders that act late."""

from pathlib import Path

import pytest
import torch

from bs_ray.config import EditorSettings
from bs_ray.editing.editor import Editor
from bs_ray.editing.generate import generate
from bs_ray.models import load_base
from bs_ray.models.diffusion import sample_euler
from bs_ray.testing import random_slider

PROMPTS = ["a photo", "a photo of a person, smiling"]


@pytest.fixture
def editor(random_base: Path):
    model = load_base(str(random_base))
    editor = Editor(model, [random_slider(model, "smile", 0)], EditorSettings())
    yield editor
    editor.close()


def draw(editor: Editor, strengths: list[float], late: float) -> torch.Tensor:
    mixes = [[{"smile@0": s} for s in strengths]] * len(PROMPTS)
    return generate(
        editor, PROMPTS, mixes, keys=["a", "b"], seed=3, steps=4, guidance_scale=2.0, late=late
    )


def test_strength_0_is_the_base_and_the_others_share_its_noise(editor: Editor) -> None:
    found = draw(editor, [0.0, 40.0, -40.0], late=0.75)
    plain = sample_euler(editor.model, PROMPTS, ["a", "b"], seed=3, steps=4, guidance_scale=2.0)
    with torch.no_grad():
        expected = editor.model.decode(plain).clamp(-1, 1)
    assert found.shape[:2] == (2, 3)
    assert torch.allclose(found[:, 0], expected, atol=1e-5)
    assert float((found[:, 1] - found[:, 0]).abs().max()) > 1e-2


def test_a_slider_acts_below_its_share_of_the_noise_only(editor: Editor) -> None:
    # Steps at 999, 749, 499, 249: from 0.75 on the first is the base's, below 0.2 all are.
    whole, late, never = (draw(editor, [0.0, 40.0], late=late) for late in (1.0, 0.75, 0.2))
    moved = [float((one[:, 1] - one[:, 0]).abs().mean()) for one in (whole, late, never)]
    assert moved[0] > moved[1] > 0 and moved[2] < 1e-6
