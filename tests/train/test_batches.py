"""What rows are taught: chance, several sliders, pairs, stored samples."""

import random

import pytest
import torch

from bs_ray.config import Prompts, TrainJob
from bs_ray.datasets.pairs import alone, pair_sets
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.words import PromptsDoNotSeparate
from bs_ray.train.batches import LiveBatches, PairBatches, draw
from bs_ray.train.targets.samples import PATH_SAMPLES, CachedBatches, SampleMaker, sample_number
from bs_ray.train.targets.teacher import Teacher, forwards_a_row
from tests.train.conftest import PROMPTS, make_job, photo_rows

AGE = {
    "target": "a photo of a person",
    "positive": "a photo of a person, old",
    "negative": "a photo of a person, young",
}
SHAPE = (4, 16, 16)


def text_job(**changes) -> TrainJob:
    return make_job(**changes)


def two_sliders(**changes) -> TrainJob:
    return make_job(prompts=None, sliders={"smile": PROMPTS, "age": AGE}, **changes)


def live(job: TrainJob, model: DiffusionModel, photos: PhotoPool) -> LiveBatches:
    return LiveBatches(job, model, photos, Teacher(model, job.concepts))


# --- chance --------------------------------------------------------------------------------------
def test_chance_depends_on_seed_step_and_global_row_only() -> None:
    job = text_job()
    whole, half = (draw(job, rows, 5, 6, 1000, SHAPE) for rows in (range(8), range(4, 8)))
    assert half.photo == whole.photo[4:]
    for name in ("t", "noise"):
        assert torch.equal(getattr(half, name), getattr(whole, name)[4:])
    assert torch.equal(half.strength, whole.strength[:, 4:])
    assert not torch.equal(draw(job, range(8), 6, 6, 1000, SHAPE).noise, whole.noise)


def test_half_of_the_rows_feed_the_image_losses() -> None:
    drawn = draw(text_job(), range(200), 0, 6, 1000, (1, 1, 1))
    assert bool((drawn.t[0::2] <= 400).all()) and bool((drawn.t[1::2] > 400).all())
    assert bool((drawn.strength.abs() <= 2).all()) and bool((drawn.strength < 0).any())
    everywhere = text_job(losses={"image_timestep_max": 1000})
    assert int(draw(everywhere, range(200), 0, 6, 1000, (1, 1, 1)).t.max()) < 1000


def test_the_first_slider_is_taught_the_same_in_company(model, photos) -> None:
    alone = live(text_job(), model, photos).at(3, range(4))
    together = live(two_sliders(), model, photos).at(3, range(4))
    assert together.x_t.shape[0] == 8 and together.lora_scales.shape == (8, 2)
    assert torch.equal(together.x_t[:4], alone.x_t) and torch.equal(together.t[:4], alone.t)
    assert torch.equal(together.lora_scales[:4, :1], alone.lora_scales)
    assert not together.lora_scales[:4, 1].any() and not together.lora_scales[4:, 0].any()
    assert torch.allclose(together.target[:4], alone.target, atol=1e-4)
    assert together.near == [0, 2, 4, 6] and together.near_total == 4 and together.rows_total == 8


# --- the teacher ---------------------------------------------------------------------------------
def test_target_by_hand(model, photos) -> None:
    job = text_job(losses={"soft_mask": 0.0})
    batch = live(job, model, photos).at(0, range(2))
    condition = [model.embed([text]).repeat(2) for text in PROMPTS.values()]
    neutral, positive, negative = (model.predict(batch.x_t, batch.t, c) for c in condition)
    expected = neutral + batch.lora_scales.view(-1, 1, 1, 1) * job.losses.eta * (
        positive - negative
    )
    assert torch.allclose(batch.target, expected, atol=1e-4)


def test_erase_is_enhance_backwards(model, photos) -> None:
    there = live(text_job(), model, photos).at(0, range(2))
    back = live(text_job(prompts=PROMPTS | {"action": "erase"}), model, photos).at(0, range(2))
    moved, other = there.target - there.neutral, back.target - back.neutral
    assert torch.allclose(moved, -other, atol=1e-5) and float(moved.abs().max()) > 1e-4


def test_disentangled_attributes_are_summed_and_take_turns(model) -> None:
    words = ["male", "female"]
    prompts = Prompts(**PROMPTS, disentangle=words)
    teacher, x_t = Teacher(model, {"smile": prompts}), torch.randn(2, *SHAPE)
    t, turn = torch.tensor([100, 700]), torch.tensor([4, 7])
    said = teacher(x_t, t, turn)

    def predict(text: str, row: slice = slice(None)) -> torch.Tensor:
        return model.predict(x_t[row], t[row], model.embed([text]).repeat(len(x_t[row])))

    ends = [predict(f"{w} {prompts.positive}") - predict(f"{w} {prompts.negative}") for w in words]
    assert torch.allclose(said.direction[0], ends[0] + ends[1], atol=1e-4)
    for row, word in enumerate(words):
        expected = predict(f"{word} {prompts.target}", slice(row, row + 1))
        assert torch.allclose(said.neutral[0, row : row + 1], expected, atol=1e-4)
    condition = teacher.targets(torch.tensor([0, 0]), turn)
    assert torch.equal(condition.tokens[1], model.embed(["female a photo of a person"]).tokens[0])


def test_frozen_cost_is_shared() -> None:
    assert forwards_a_row(text_job().concepts) == 3
    assert forwards_a_row(two_sliders().concepts) == 5  # one neutral prompt for both
    apart = {"a": Prompts(**PROMPTS), "b": Prompts(**AGE | {"neutral": "a man"})}
    assert forwards_a_row(apart) == 6
    assert forwards_a_row({"a": Prompts(**PROMPTS, disentangle=["male", "female"])}) == 5


def test_the_slider_that_does_not_separate_is_named(model, photos) -> None:
    same = AGE | {"negative": AGE["positive"]}
    job = make_job(prompts=None, sliders={"smile": PROMPTS, "age": same})
    teacher = Teacher(model, job.concepts)
    with pytest.raises(PromptsDoNotSeparate, match=r"slider age: got 'a photo of a person, old'"):
        teacher.check_gap(torch.randn(2, *SHAPE), torch.tensor([100, 700]))


# --- image pairs ---------------------------------------------------------------------------------
def pair_job(**changes) -> TrainJob:
    losses = {"perceptual": 0, "adversarial": 0}
    pairs = {"images": "x", "target": "a face"}
    return make_job(prompts=None, pairs=pairs, losses=losses, **changes)


def pair_pool(model: DiffusionModel, strengths: list[str]) -> PhotoPool:
    rows = photo_rows(2 * len(strengths))
    for row, key in zip(rows, [f"{s}/{n}.jpg" for s in strengths for n in "ab"], strict=True):
        row["key"] = key
    return PhotoPool.load(rows, model)


def test_pairs_share_noise_and_timestep_and_differ_in_strength(model) -> None:
    pool = pair_pool(model, ["-2", "-1", "1", "2"])
    job = pair_job()
    batch = PairBatches(job, model, pool, model.embed(["a face"])).at(1, range(4))
    assert torch.equal(batch.t[0::2], batch.t[1::2])
    strength = batch.lora_scales[:, 0]
    assert bool((strength[0::2] < strength[1::2]).all())
    keys = [pool.keys[number] for number in batch.photos]
    assert len(batch.photos) == len(batch.near) == 2 and batch.near_total == 2
    assert len({key.partition("/")[2] for key in keys}) == 1  # one person, two strengths
    for gate, key in zip(strength[batch.near].tolist(), keys, strict=True):
        assert gate == pytest.approx(float(key.partition("/")[0]), rel=job.pairs.jitter + 1e-6)
    # What is to be predicted is the noise in the picture itself.
    x0 = model.prediction.to_x0(batch.x_t, batch.target, batch.t)
    near = torch.tensor(batch.near)
    assert torch.allclose(x0[near], pool.latents(batch.photos), atol=1e-4)


def test_pairs_without_order_are_refused() -> None:
    assert pair_sets(["-1/a.png", "1/a.jpg", "1/b.png"]) == [{-1.0: 0, 1.0: 1}]
    assert alone(["-1/a.png", "1/a.jpg", "1/b.png"]) == ["1/b.png"]
    with pytest.raises(ValueError, match=r"got picture old/a.png, whose folder is no number"):
        pair_sets(["old/a.png"])
    with pytest.raises(ValueError, match="no two have the same name in different folders"):
        pair_sets(["1/a.png", "-1/b.png"])


# --- stored samples ------------------------------------------------------------------------------
def cached(**changes) -> TrainJob:
    teacher = {"mode": "cached", "samples": 32} | changes.pop("teacher", {})
    return two_sliders(teacher=teacher, **changes)


def maker(job: TrainJob, model: DiffusionModel, photos: PhotoPool) -> SampleMaker:
    return SampleMaker(job, model, photos, Teacher(model, job.concepts))


def batches(job: TrainJob, model: DiffusionModel, photos: PhotoPool, rows: list) -> CachedBatches:
    bank = SliderBank.trainable(
        job.slider_names, model.denoiser, model.slider_targets(), 4, 4.0, seed=0
    )
    return CachedBatches.load(
        rows, job=job, model=model, photos=photos, teacher=Teacher(model, job.concepts), bank=bank
    )


def test_a_stored_sample_teaches_what_the_live_teacher_does(model, photos) -> None:
    job = cached(losses={"soft_mask": 0.0})
    rows = list(maker(job, model, photos).make(range(8)))
    random.Random(0).shuffle(rows)
    stored = batches(job, model, photos, rows)
    stored.samples = {n: stored.samples[n % 8] for n in range(32)}
    batch = stored.at(0, range(4))
    teacher = Teacher(model, job.concepts)
    said = teacher(batch.x_t[:4], batch.t[:4], torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(batch.neutral[:4], said.neutral[0], atol=2e-3)
    move = batch.lora_scales.sum(1).view(-1, 1, 1, 1) * job.losses.eta
    expected = said.neutral.flatten(0, 1) + move * said.direction.flatten(0, 1)
    assert torch.allclose(batch.target, expected, atol=1e-2)
    assert bool((batch.t[batch.near] <= 400).all())


def test_samples_do_not_depend_on_who_makes_them(model, photos) -> None:
    job = cached(teacher={"trajectory_share": 0.5})
    whole = list(maker(job, model, photos).make(range(32)))
    again = list(maker(job, model, photos).make(range(16, 32)))
    assert again == whole[16:]
    near = [row["t"] <= 400 for row in whole]
    assert near == [n % 2 == 0 for n in range(32)]
    assert len({row["t"] for row in whole[:PATH_SAMPLES]}) == PATH_SAMPLES  # along one run


@pytest.mark.parametrize(("batch", "samples"), [(4, 32), (3, 10), (1, 7)])
def test_every_sample_is_taken_once_before_any_twice(batch: int, samples: int) -> None:
    job = make_job(batch_size=batch, losses={"perceptual": 0, "adversarial": 0})
    taken = [sample_number(job, samples, step, row) for step in range(200) for row in range(batch)]
    for parity in (0, 1):
        mine = [n for n in taken if n % 2 == parity]
        pool = (samples + 1 - parity) // 2
        if mine:
            assert sorted(mine[:pool]) == list(range(parity, samples, 2))
            assert sorted(mine[pool : 2 * pool]) == list(range(parity, samples, 2))
    assert all(0 <= n < samples for n in taken)


def test_on_policy_rows_change_with_the_weights_and_only_at_a_refresh(model, photos) -> None:
    job = cached(teacher={"on_policy_fraction": 0.5}, checkpoint_every=2)
    rows = list(maker(job, model, photos).make(range(32)))
    stored = batches(job, model, photos, rows)
    stored.bank.attach(model.denoiser)
    stored.refresh(0, range(4))
    first = stored.at(0, range(4))
    with torch.no_grad():
        for up in stored.bank.up.values():
            up.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stored.at(0, range(4)).x_t, first.x_t)
    stored.refresh(0, range(4))
    second = stored.at(0, range(4))
    stored.bank.detach()
    assert torch.equal(second.x_t[:2], first.x_t[:2])
    assert not torch.allclose(second.x_t[2:4], first.x_t[2:4], atol=1e-3)
    assert bool((second.t[2::4] <= 400).all()) and bool((second.t[3::4] > 400).all())
