"""Sliders of words: what they add is a trained slider's target, each prediction made once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bs_ray.config import EditorSettings, Words
from bs_ray.editing.context import EditContext
from bs_ray.editing.editor import Edit, Editor, outputs_of, to_uint8
from bs_ray.editing.generate import generate
from bs_ray.editing.methods import METHODS
from bs_ray.editing.run import EditRun, run_alone
from bs_ray.editing.words import Words as Asked
from bs_ray.models import load_base
from bs_ray.models.base import Condition, DiffusionModel
from bs_ray.models.diffusion import Prediction
from bs_ray.models.prompts import unknown_words
from bs_ray.sliders.slider import Slider
from bs_ray.sliders.words import PromptsDoNotSeparate
from bs_ray.testing import random_slider
from tests.editing.test_methods import KINDS, SHAPE

MEANS = [0.0, 0.5, -0.3]
"""Of a world's pictures under the target prompt, the positive one and the negative one."""


def world(kind: Prediction, scales: list[list[float]], source_of: list[int]) -> EditContext:
    """Two photos; a prompt's only token is the mean of its pictures, and one trained slider moves
    that mean by its strength. scales: of the slider, then of the three prompts."""

    def predict(x_t: Tensor, t: Tensor, condition: Condition, lora_scales: Tensor) -> Tensor:
        assert lora_scales.shape == (len(x_t), 1)
        a, b = kind.coefficients(t)
        mean = (condition.tokens[:, 0] + lora_scales)[:, :, None, None].expand_as(x_t)
        away = (x_t - a * mean) / (a**2 + b**2)
        return kind.truth(mean + a * away, b * away, t)

    condition = Condition(torch.zeros(2, 1, 1))
    return EditContext(
        predict=predict,
        prediction=kind,
        x0=torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)),
        condition=condition,
        empty=condition,
        lora_scales=torch.tensor(scales),
        source_of=torch.tensor(source_of),
        seeds=[0, 0],
        keys=["a", "b"],
        words=Asked(Condition(torch.tensor(MEANS)[:, None, None]), target=0),
    )


def ran(context: EditContext, **settings) -> tuple[Tensor, int]:
    """(edited latents, rows that the denoiser has seen)."""
    seen = []

    def counted(x_t, t, condition, lora_scales):
        seen.append(len(x_t))
        return context.predict(x_t, t, condition, lora_scales)

    editor = EditorSettings(**{"steps": 6, "start": 0.7} | settings)
    return run_alone(EditRun(METHODS[editor.method](context, editor)), counted), sum(seen)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "settings",
    [{"soft_mask": 0.0}, {"soft_mask": 1.0}]
    + [{"method": m} for m in ("sdedit", "ddim_inversion", "edit_friendly", "null_text")],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_words_do_what_a_perfect_slider_does(kind: Prediction, settings: dict) -> None:
    """A slider that moves the mean by s eta (0.5 + 0.3) is the words' target, hit exactly."""
    trained, _ = ran(world(kind, [[2.4, 0, 0, 0], [-1.0, 0, 0, 0]], [1, 0]), **settings)
    words, _ = ran(world(kind, [[0, 0, 3, -3], [-0.2, 0, -1, 1]], [1, 0]), **settings)
    assert torch.allclose(words, trained, atol=2e-4)
    still, _ = ran(world(kind, [[0, 0, 0, 0], [0, 0, 0, 0]], [1, 0]), **settings)
    assert float((words - still).abs().amax((1, 2, 3)).min()) > 0.05


def test_each_prediction_is_made_once() -> None:
    kind = KINDS["eps"]

    def rows(scales: list[list[float]], source_of: list[int], **settings) -> int:
        return ran(world(kind, scales, source_of), **settings)[1]

    photo = [0]
    assert rows([[1.0, 0, 0, 0]], photo) == 6 * (2 + 1)  # two photos, one edit
    assert rows([[0, 0, 3, -3]], photo) == 6 * (2 + 1 + 2)
    # The target prompt's own prediction serves, but under a trained slider.
    assert rows([[0, -3, 3, 0]], photo) == 6 * (2 + 1 + 1)
    assert rows([[1, -3, 3, 0]], photo) == 6 * (2 + 1 + 2)
    # Before the first move, both strengths of a photo see the same latents.
    assert rows([[0, 0, 3, -3], [0, 0, -3, 3]], [0, 0]) == 6 * (2 + 2 + 4) - 2
    # The mask's probes, in two of the steps, are at the photo's latents.
    assert rows([[0, 0, 3, -3], [0, 0, -3, 3]], [0, 0], soft_mask=0.5) == 6 * 8 - 2 + 2 * (2 + 2)


# --- the editor ---------------------------------------------------------------------------------
SETTINGS = EditorSettings(steps=3)
SMILE = Words(positive="person, smiling", negative="person, frowning")
AGE = Words(positive="person, old", negative="person, frowning", eta=2.0)


@pytest.fixture(scope="module")
def model(random_base: Path) -> DiffusionModel:
    return load_base(str(random_base))


@pytest.fixture
def editor(model: DiffusionModel) -> Iterator[Editor]:
    editor = Editor(
        model, [random_slider(model, "hair", 1), of(model, SMILE), of(model, AGE)], SETTINGS
    )
    yield editor
    editor.close()


def of(model: DiffusionModel, words: Words) -> Slider:
    return Slider.of_words(words, "random", model.base_id)


def photo(seed: int = 0, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def names(editor: Editor) -> list[str]:
    return list(editor.sliders)


def test_strength_0_is_the_photo_and_company_changes_nothing(editor: Editor) -> None:
    hair, smile, age = names(editor)
    assert smile == "smiling@w" + smile[-8:] and age.startswith("old@w")
    wanted = [{smile: 0.0}, {smile: 1.5, hair: 4.0}, {smile: -1.0, age: 1.0}]
    edits = [Edit(f"k{i}", photo(i, 64 + i), [editor.mix(mix)]) for i, mix in enumerate(wanted)]
    together = [outputs_of(outcome)[0].pixels for outcome in editor.edit(edits)]
    assert np.array_equal(to_uint8(together[0]), edits[0].pixels)
    for edit, found in zip(edits[1:], together[1:], strict=True):
        [[alone]] = [outputs_of(outcome) for outcome in editor.edit([edit])]
        assert np.abs(alone.pixels - found).max() < 255e-5
        assert np.abs(found - edit.pixels).max() > 0.5


def test_words_need_no_room_in_the_bank(model: DiffusionModel) -> None:
    editor = Editor(model, [of(model, SMILE), of(model, AGE)], SETTINGS)
    assert not editor.bank.down
    mix = editor.mix(dict.fromkeys(names(editor), 1.0))
    [[out]] = [outputs_of(outcome) for outcome in editor.edit([Edit("k", photo(), [mix])])]
    editor.close()
    assert np.abs(out.pixels - photo()).max() > 0.5


def test_the_prompt_of_an_edit_is_its_settings(editor: Editor) -> None:
    [_, smile, _] = names(editor)
    edit = Edit("k", photo(), [editor.mix({smile: 1.0})])
    other = replace(edit, settings=SETTINGS.model_copy(update={"prompt": "a cat"}))
    first, second = (outputs_of(outcome)[0].pixels for outcome in editor.edit([edit, other]))
    assert np.abs(first - second).max() > 1e-2


def test_words_that_mean_the_same_to_the_base_are_refused(editor: Editor, model) -> None:
    same = of(model, Words(positive="person, SMILING", negative="person, smiling"))
    with pytest.raises(PromptsDoNotSeparate, match="'person, SMILING' and 'person, smiling', for"):
        Editor(model, [same], SETTINGS)
    editor.sliders[same.reference] = same
    with pytest.raises(PromptsDoNotSeparate):
        editor.begin([Edit("k", photo(), [editor.mix({same.reference: 1.0})])])


def test_words_that_the_base_never_learnt_are_refused(editor: Editor, model) -> None:
    """Their predictions do differ: each letter has an embedding, which no training touched."""
    for ends in [("person, zorg", "person, blarg"), ("person", "person, zorg")]:
        nonsense = of(model, Words(positive=ends[0], negative=ends[1]))
        with pytest.raises(PromptsDoNotSeparate, match=r"differ by (blarg, )?zorg, and the base"):
            Editor(model, [nonsense], SETTINGS)
    one_known = of(model, Words(positive="person, zorg", negative="person, frowning"))
    Editor(model, [one_known], SETTINGS).close()


def test_a_base_of_published_size_spells_any_word() -> None:
    class Published:
        def __len__(self) -> int:
            return 49_408

        def tokenize(self, text: str) -> list[str]:
            return [*text[:-1], f"{text[-1]}</w>"]

    class Small(Published):
        def __len__(self) -> int:
            return 600

    assert unknown_words(["zorg", "a"], [(Small(), 77)]) == {"zorg"}
    assert unknown_words(["zorg"], [(Published(), 77)]) == set()
    assert unknown_words(["zorg"], [(Small(), 77), (Published(), 77)]) == set()


def test_generated_pictures_move_with_words(editor: Editor) -> None:
    _, smile, _ = names(editor)

    def draw(late: float) -> Tensor:
        before = editor.evaluations
        mixes = [[{smile: s} for s in (0.0, 2.0)]]
        options = {"keys": ["a"], "seed": 1, "steps": 4, "guidance_scale": 2.0, "late": late}
        found = generate(editor, ["person"], mixes, **options)[0]
        # Two pictures with guidance, and two prompts at one of them in the steps that are late.
        assert editor.evaluations - before == 4 * 4 + 2 * {0.2: 0, 0.75: 3}[late]
        return (found[1] - found[0]).abs().max()

    assert float(draw(0.2)) == 0 and float(draw(0.75)) > 1e-3
