"""The Editor: exact at zero, independent of companions, right at any size."""

import numpy as np
import pytest
import torch

from bs_ray.bench.bank import random_slider
from bs_ray.config import EditorSettings
from bs_ray.editing.displacement import displace
from bs_ray.editing.editor import Edit, Editor, to_uint8
from bs_ray.models import load_base
from bs_ray.sliders.artifact import SliderError

SETTINGS = EditorSettings(steps=4)
FULL_SCALE = 255.0


@pytest.fixture(scope="module")
def model(random_base):
    return load_base(str(random_base))


@pytest.fixture
def editor(model):
    sliders = [random_slider(model, name, seed) for seed, name in enumerate(("smile", "age"))]
    editor = Editor(model, sliders, SETTINGS)
    yield editor
    editor.close()


def photo(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (90, 41), (33, 200), (1, 1)])
def test_zero_strength_returns_the_photo(editor: Editor, size: tuple[int, int]) -> None:
    pixels = photo(*size)
    [[same, other]] = editor.edit([Edit("k", pixels, [{"smile": 0.0}, {"smile": 1.0}])])
    assert np.array_equal(to_uint8(same), pixels)
    assert other.shape == pixels.shape
    assert not np.array_equal(other, same)


def test_zero_strength_is_zero_without_the_shortcut_too(editor: Editor) -> None:
    """The editor skips rows at 0; the method itself leaves them in place as well."""
    x0 = torch.randn(2, *editor.model.latent_shape)
    strengths = editor.strengths([{}, {"smile": 1.0}])
    d = displace(
        editor.predict, editor.model.prediction, x0, editor._condition.repeat(2), strengths,
        torch.tensor([0, 1]), seeds=[0, 0], keys=["a", "b"], steps=4, strength=0.6,
    )  # fmt: skip
    assert float(d[0].abs().max()) < 1e-5
    assert float(d[1].abs().max()) > 1e-3


def test_a_row_does_not_depend_on_its_companions(editor: Editor) -> None:
    one = Edit("one", photo(), [{"smile": 1.0, "age": -0.5}])
    others = [
        Edit(f"o{i}", photo(seed=i), [{"age": float(i)}, {"smile": -1.0}]) for i in range(1, 6)
    ]
    [[alone]] = editor.edit([one])
    together = editor.edit([*others[:3], one, *others[3:]])[3][0]
    assert np.abs(alone - together).max() / FULL_SCALE < 1e-4


def test_photos_of_all_sizes_share_a_call(editor: Editor) -> None:
    sizes = [(64, 64), (100, 300), (300, 100), (64, 64), (17, 5)]
    edits = [Edit(str(i), photo(*s, seed=i), [{"smile": 1.0}]) for i, s in enumerate(sizes)]
    assert [row[0].shape[:2] for row in editor.edit(edits)] == sizes


def test_the_seed_and_the_key_fix_the_noise(editor: Editor) -> None:
    def run(key: str, seed: int) -> np.ndarray:
        return editor.edit([Edit(key, photo(), [{"smile": 1.0}], seed)])[0][0]

    assert np.array_equal(run("k", 0), run("k", 0))
    assert not np.array_equal(run("k", 0), run("k", 1))
    assert not np.array_equal(run("k", 0), run("other", 0))


def test_bad_strengths_are_named(editor: Editor) -> None:
    with pytest.raises(SliderError, match="got 'beard'; expected one of smile, age"):
        editor.edit([Edit("k", photo(), [{"beard": 1.0}])])
    with pytest.raises(SliderError, match="smile: got strength nan"):
        editor.edit([Edit("k", photo(), [{"smile": float("nan")}])])


def test_closing_restores_the_base(model) -> None:
    x, t = torch.randn(1, *model.latent_shape), torch.tensor([500])
    told = model.embed(["a"])
    with torch.no_grad():
        before = model.predict(x, t, told)
        editor = Editor(model, [random_slider(model, "a", 0)], SETTINGS)
        with editor.bank.strengths(torch.ones(1, 1)):
            assert not torch.equal(model.predict(x, t, told), before)
        editor.close()
        assert torch.equal(model.predict(x, t, told), before)
