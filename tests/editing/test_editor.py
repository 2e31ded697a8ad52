"""The Editor: exact at zero, independent of companions, right at any size."""

import numpy as np
import pytest
import torch

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.editor import Edit, EditError, Editor, outputs_of, to_uint8
from bs_ray.editing.methods.displacement import displacement
from bs_ray.editing.run import EditRun, run_alone
from bs_ray.models import load_base
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.card import SliderError
from bs_ray.testing import edit_of, random_slider

SETTINGS = EditorSettings(steps=4)
FULL_SCALE = 255.0
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(random_base):
    return load_base(str(random_base))


@pytest.fixture
def editor(model):
    sliders = [random_slider(model, name, seed) for seed, name in enumerate(("smile", "age"))]
    editor = Editor(model, sliders, SETTINGS)
    yield editor
    editor.close()


def edited(editor: Editor, *edits: Edit) -> list[list[np.ndarray]]:
    return [[out.pixels for out in outputs_of(outcome)] for outcome in editor.edit(edits)]


def photo(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (90, 41), (33, 200), (1, 1)])
def test_zero_strength_returns_the_photo(editor: Editor, size: tuple[int, int]) -> None:
    pixels = photo(*size)
    [[same, other]] = edited(editor, edit_of(editor, "k", pixels, {"smile": 0.0}, {"smile": 1.0}))
    assert np.array_equal(to_uint8(same), pixels)
    assert other.shape == pixels.shape
    assert not np.array_equal(other, same)


def test_zero_strength_is_zero_without_the_shortcut_too(editor: Editor) -> None:
    """The editor skips rows at 0; the method itself leaves them in place as well."""
    x0, cond = torch.randn(2, *editor.model.latent_shape), editor.model.embed(["a", "a"])
    context = EditContext(
        predict=editor.predict,
        prediction=editor.model.prediction,
        x0=x0,
        condition=cond,
        empty=cond,
        lora_scales=editor.lora_scales([editor.mix({}), editor.mix({"smile@0": 1.0})]),
        source_of=torch.tensor([0, 1]),
        seeds=[0, 0],
        keys=["a", "b"],
    )
    d = run_alone(EditRun(displacement(context, SETTINGS)), editor.predict) - x0
    assert float(d[0].abs().max()) < 1e-5
    assert float(d[1].abs().max()) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        EditorSettings(steps=4, soft_mask=0.5),
        EditorSettings(steps=4, method="sdedit"),
        EditorSettings(steps=4, method="ddim_inversion"),
        EditorSettings(steps=4, method="edit_friendly"),
    ],
    ids=["displacement", "soft mask", "sdedit", "ddim_inversion", "edit_friendly"],
)
def test_a_row_does_not_depend_on_batch_companions_or_worker(
    editor: Editor, model, settings: EditorSettings
) -> None:
    """TOLERANCE is what the README states; workers differ in nothing but their threads."""
    editor.settings = settings
    one = edit_of(editor, "one", photo(), {"smile": 1.0, "age": -0.5})
    others = [
        edit_of(editor, f"o{i}", photo(64 + i, 64, seed=i), {"age": float(i)}, {"smile": -1.0}, {})
        for i in range(1, 12)
    ]
    [[alone]] = edited(editor, one)
    worker = Editor(model, list(editor.sliders.values())[::-1], settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        [[elsewhere]] = edited(worker, one)
    finally:
        torch.set_num_threads(threads)
        worker.close()
    apart = [
        np.abs(alone - edited(editor, *others[:count], one, *others[count:most])[count][0]).max()
        for count, most in ((0, 1), (2, 4), (5, 11))
    ]
    apart.append(np.abs(alone - elsewhere).max())
    assert max(apart) / FULL_SCALE < TOLERANCE


def test_photos_of_all_sizes_share_a_call(editor: Editor) -> None:
    sizes = [(64, 64), (100, 300), (300, 100), (64, 64), (17, 5)]
    edits = [
        edit_of(editor, str(i), photo(*s, seed=i), {"smile": 1.0}) for i, s in enumerate(sizes)
    ]
    assert [row[0].shape[:2] for row in edited(editor, *edits)] == sizes


def test_the_seed_and_the_key_fix_the_noise(editor: Editor) -> None:
    def run(key: str, seed: int) -> np.ndarray:
        return edited(editor, edit_of(editor, key, photo(), {"smile": 1.0}, seed=seed))[0][0]

    assert np.array_equal(run("k", 0), run("k", 0))
    assert not np.array_equal(run("k", 0), run("k", 1))
    assert not np.array_equal(run("k", 0), run("other", 0))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (photo()[..., :1], r"got uint8 \[64, 64, 1\]; expected uint8 RGB"),
        (photo()[:0], r"got uint8 \[0, 64, 3\]"),
        (photo() / 2, "got float64"),
    ],
)
def test_a_bad_edit_is_named_and_the_others_go_on(editor: Editor, pixels, message) -> None:
    good = edit_of(editor, "k", photo(), {"smile": 1.0})
    first, middle, last = editor.edit([good, edit_of(editor, "k", pixels, {}), good])
    assert len(outputs_of(first)) == len(outputs_of(last)) == 1
    with pytest.raises(EditError, match=message):
        outputs_of(middle)


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ({"beard": 1.0}, "got 'beard'; expected one of smile@0, age@0"),
        ({"smile@0": float("nan")}, "smile: got strength nan"),
    ],
)
def test_a_mix_of_what_is_not_there_is_refused(editor: Editor, strengths, message) -> None:
    with pytest.raises(SliderError, match=message):
        editor.mix(strengths)


def test_a_strength_counts_units_and_says_when_it_goes_too_far(model) -> None:
    slider = random_slider(model, "smile", 0)
    scales, effect = [-4.0, -2, -1, 0, 1, 2, 4], [-0.8, -0.6, -0.4, 0, 0.4, 0.6, 0.8]
    slider.card.calibration = Calibration(
        judge="points", strengths=scales, effect=effect, drift=[0.0] * 7, unit=0.5, low=-2, high=2
    )
    editor = Editor(model, [slider], SETTINGS)
    # One unit is the effect of scale 0.5, 0.2; scale 1 has two of them, scale 2 three.
    wanted = [editor.mix({"smile@0": u}) for u in (-1.0, 1.0, 2.0, 2.5, 3.0, 4.0)]
    assert editor.lora_scales(wanted)[:, 0].tolist() == pytest.approx([-0.5, 0.5, 1, 1.5, 2, 2.5])
    [outcome] = editor.edit([edit_of(editor, "k", photo(), {"smile": 3.0}, {"smile": 4.0})])
    within, beyond = outputs_of(outcome)
    assert within.notes == ()
    assert beyond.notes == ("smile 4 is beyond its usable range, -3 to 3",)
    with pytest.raises(SliderError, match=r"got strength 8, a LoRA scale of 4.5; expected .* 4,"):
        editor.mix({"smile@0": 8.0})
    editor.close()
    raw = Editor(model, [slider], EditorSettings(calibrated=False))
    mix = raw.mix({"smile@0": 2.5})
    assert raw.lora_scales([mix])[0, 0] == 2.5
    assert mix.notes == ("smile 2.5 is beyond its usable range, -2 to 2",)
    raw.close()


def test_more_sliders_than_the_bank_holds_take_turns(model) -> None:
    sliders = [random_slider(model, name, seed) for seed, name in enumerate("abcd")]
    few = Editor(model, sliders, EditorSettings(steps=2, resident_sliders=2))
    wanted = [{"a": 1.0}, {"b": -1.0, "c": 0.5}, {"d": 1.0, "a": 0.0}, {"a": 0.5, "d": 0.5}]
    edits = [edit_of(few, str(i), photo(seed=i), one) for i, one in enumerate(wanted)]
    found = edited(few, *edits)
    [crowded] = few.edit([edit_of(few, "k", photo(), {"a": 1.0, "b": 1.0, "c": 1.0})])
    few.close()
    with pytest.raises(EditError, match="got 3 sliders; expected at most 2 at once"):
        outputs_of(crowded)
    all_of_them = Editor(model, sliders, EditorSettings(steps=2))
    expected = edited(all_of_them, *edits)
    all_of_them.close()
    for [one], [other] in zip(found, expected, strict=True):
        assert np.abs(one - other).max() / FULL_SCALE < 1e-4


def test_closing_restores_the_base(model) -> None:
    x, t = torch.randn(1, *model.latent_shape), torch.tensor([500])
    cond = model.embed(["a"])
    with torch.no_grad():
        before = model.predict(x, t, cond)
        editor = Editor(model, [random_slider(model, "a", 0)], SETTINGS)
        moved = editor.predict(x, t, cond, editor.lora_scales([editor.mix({"a@0": 1.0})]))
        assert not torch.equal(moved, before)
        editor.close()
        assert torch.equal(model.predict(x, t, cond), before)


def test_a_mask_keeps_the_rest_bit_for_bit(editor: Editor) -> None:
    mask = np.zeros((90, 60), np.float32)
    mask[:, :20] = 1
    [[found]] = edited(editor, edit_of(editor, "k", photo(90, 60), {"smile": 2.0}, mask=mask))
    changed = found != photo(90, 60)
    assert changed[:, :20].any() and not changed[:, 20:].any()
    with pytest.raises(EditError, match=r"mask \[3, 3\]; expected the photo's size \[90, 60\]"):
        edited(editor, edit_of(editor, "k", photo(90, 60), {}, mask=mask[:3, :3]))
