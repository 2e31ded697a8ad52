"""Sliders that were published before: listed, read byte for byte, and editing as they did."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bs_ray.batch.prepare import digest
from bs_ray.config.evaluate import ComparedSettings
from bs_ray.editing.editor import Editor, outputs_of
from bs_ray.evaluate.variants import methods_of
from bs_ray.images.decode import decode
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry
from bs_ray.testing import edit_of

NAMES = ("grin", "smile")


def test_a_registry_is_listed_and_read(old: Path, expected: dict[str, Any]) -> None:
    registry = Registry("sliders")
    assert registry.list() == {name: [1] for name in NAMES}
    for name in NAMES:
        slider, was = registry.resolve(name), expected["strengths"][name]
        assert slider.reference == f"{name}@1"
        assert slider.card.target == was["target"]
        # Jobs that have begun know their sliders by this hash.
        assert (
            digest(slider)
            == sha256(Path(f"sliders/{name}/0001.safetensors").read_bytes()).hexdigest()
        )
        scales = {strength: slider.card.lora_scale(float(strength)) for strength in was["scales"]}
        assert scales == pytest.approx(was["scales"], rel=1e-9)
        notes = [slider.card.note(float(strength)) for strength in was["scales"]]
        assert sum(map(bool, notes)) == len(was["notes"])
    assert registry.resolve("smile").card.calibration and not registry.resolve("grin").card.prompts


def test_its_sliders_edit_as_they_did(old: Path, expected: dict[str, Any], recorded: Any) -> None:
    torch.set_num_threads(1)
    photo = decode("photo", Path("photo.jpg").read_bytes(), max_pixels=10**6)
    sliders, model = [Registry("sliders").resolve(name) for name in NAMES[::-1]], load_base("tiny")
    for name, was in recorded("edits").items():
        settings = ComparedSettings.model_validate(expected["methods"][name])
        editor = Editor(model, sliders, settings, methods=methods_of(settings))
        edit = edit_of(editor, photo["sha256"], photo["pixels"], *expected["mixes"], seed=5)
        outputs = outputs_of(editor.edit([edit])[0])
        editor.close()
        found = np.stack([output.pixels[::4, ::4] for output in outputs])
        moved = np.abs(was - photo["pixels"][::4, ::4]).max()
        assert moved > 1, "the sliders must move the photo for this to mean anything"
        np.testing.assert_allclose(found / 255, was / 255, rtol=0, atol=1e-5, err_msg=name)
