"""Edits of many callers in one batch: equal to each alone, gone at the next step, never late."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from bs_ray.config import EditorSettings, Words
from bs_ray.editing.editor import Edit, EditError, Editor, outputs_of
from bs_ray.editing.generate import generate
from bs_ray.editing.methods import METHODS
from bs_ray.images.regions import Region, crop, pasted
from bs_ray.images.scaling import moved
from bs_ray.models import load_base
from bs_ray.serve.engine.admission import Load, StepTime, finish_times
from bs_ray.serve.engine.batcher import Batcher
from bs_ray.serve.engine.tasks import Busy, Changes, EditTask, GenerateTask, Partial, Result, Step
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.mix import Mix
from bs_ray.sliders.slider import Slider
from bs_ray.testing import random_slider

TOLERANCE = 1e-5
"""Of full scale."""
SETTINGS = EditorSettings(steps=4, prompt="a photo of a person")
NAMES = [f"s{i}" for i in range(6)]


class Recorder:
    """A Watcher that remembers."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.outcomes: Counter[str] = Counter()

    def stepped(self, rows: int, seconds: float) -> None:
        self.rows.append(rows)

    def queued(self, seconds: float) -> None:
        assert seconds >= 0

    def finished(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def occupancy(self, running: int, waiting: int) -> None:
        assert running >= 0 and waiting >= 0


class Held:
    """In place of the forward pass: counts passes, and holds them until `go` is set."""

    def __init__(self, editor: Editor):
        self.editor, self.predict = editor, editor.predict
        self.passes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.fail = False

    def __call__(self, x_t, t, condition, scales):
        self.passes.append(len(x_t))
        assert self.go.wait(30)
        if self.fail:
            raise RuntimeError("out of memory")
        return self.predict(x_t, t, condition, scales)


@pytest.fixture(scope="module")
def model(random_base):
    return load_base(str(random_base))


@pytest.fixture(scope="module")
def sliders(model) -> dict[str, Slider]:
    found = {}
    for seed, name in enumerate(NAMES):
        slider = random_slider(model, name, seed)
        strong = {layer: (a, 20 * b) for layer, (a, b) in slider.factors.items()}
        found[f"{name}@1"] = Slider(slider.card, strong)
    return found


@pytest.fixture
def editor(model) -> Iterator[Editor]:
    editor = Editor(model, [], SETTINGS, slots=3, rank=4)
    yield editor
    editor.close()


@pytest.fixture
def held(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held(editor)
    monkeypatch.setattr(editor, "predict", held)
    return held


def photo(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def task(seed: int, size=(64, 64), within_s: float = 60.0, partials: int = 0, **mix: float):
    edit = Edit(f"k{seed}", photo(seed, *size), [mix_of(**mix)], seed)
    return edit_task(edit, within_s=within_s, partials=partials)


def mix_of(**strengths: float) -> Mix:
    """A mix of sliders that no measurement has calibrated, by their names without a version."""
    named = {f"{name}@1": strength for name, strength in strengths.items()}
    return Mix(named, {name: strength for name, strength in named.items() if strength})


def edit_task(edit: Edit, **options) -> EditTask:
    names = {name: name for mix in edit.mixes for name in mix.strengths}
    return EditTask(edits=[edit], sliders=names, **options)


def pictures_of(task: EditTask, changes: list[Changes]) -> list[np.ndarray]:
    """The photo of a task with one view under each mix, float32."""
    [edit] = task.edits
    return [
        edit.pixels.astype(np.float32) if one is None else moved(edit.pixels, one, edit.mask)
        for (one,) in changes
    ]


async def result(batcher: Batcher, task, sliders) -> Result:
    async for event in batcher.submit(task, {name: sliders[name] for name in task.sliders}):
        if isinstance(event, Result):
            return event
    raise AssertionError("no result")


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max()) / 255


# --- the same as alone ------------------------------------------------------------------------
CHANGES = [
    {},
    {"steps": 7, "start": 0.8},
    {"method": "sdedit"},
    {"method": "ddim_inversion", "fixed_point": 1},
    {"method": "edit_friendly"},
    {"soft_mask": 0.5},
]


def test_any_company_gives_what_the_editor_gives_alone(model, editor, sliders) -> None:
    """Different steps, methods, sliders, strengths, sizes and arrivals, more sliders than slots."""
    tasks = []
    for i in range(12):
        changes = CHANGES[i % len(CHANGES)]
        settings = EditorSettings.model_validate({**SETTINGS.model_dump(), **changes})
        size = [(64, 64), (48, 90), (90, 48)][i % 3]
        mixes = [mix_of(**{NAMES[i % 6]: 1.0 - i / 4, NAMES[(i + 1) % 6]: 0.5})]
        if i % 4 == 0:
            mixes = [*mixes, mix_of(), mix_of(**{NAMES[i % 6]: 2.0})]  # a sweep
        edit = Edit(f"k{i}", photo(i, *size), mixes, seed=i, settings=settings)
        tasks.append(edit_task(edit, within_s=300))
    generation = GenerateTask(
        sliders={"s0@1": "s0@1"},
        prompt="a woman",
        mixes=[mix_of(s0=1.0), mix_of()],
        seed=3,
        steps=5,
        guidance_scale=3.0,
        floats=True,
        within_s=300,
    )
    watcher = Recorder()

    async def main() -> list[Result]:
        batcher = Batcher(editor, watcher, max_rows=6, max_waiting=50)

        async def later(i: int, one) -> Result:
            await asyncio.sleep(0.03 * i)
            return await result(batcher, one, sliders)

        return await asyncio.gather(*(later(i, one) for i, one in enumerate([*tasks, generation])))

    *found, generated = asyncio.run(main())
    assert max(watcher.rows) > 3 and watcher.outcomes == {"done": 13}
    assert max(one.batch_rows for one in found) > 1.5

    alone = Editor(model, [], SETTINGS, slots=6, rank=4)
    alone.sliders = dict(sliders)
    for one, done in zip(tasks, found, strict=True):
        [expected] = alone.edit(one.edits)
        shown = pictures_of(one, done.changes)
        for a, b in zip(outputs_of(expected), shown, strict=True):
            assert far(a.pixels, b) < TOLERANCE
        assert far(shown[0], one.edits[0].pixels) > 50 * TOLERANCE
    [pictures] = generate(
        alone,
        ["a woman"],
        [[{"s0@1": 1.0}, {}]],
        keys=["a woman"],
        seed=3,
        steps=5,
        guidance_scale=3.0,
    )
    for picture, drawn in zip(pictures, generated.pictures, strict=True):
        expected_pixels = ((picture + 1) * 127.5).permute(1, 2, 0).numpy()
        assert far(expected_pixels, drawn) < TOLERANCE
    alone.close()


REGIONS = (Region(60, 40, 40, 0.3), Region(30, 30, 50))


def test_the_regions_of_a_photo_are_rows_of_their_own(editor, sliders) -> None:
    """In company they give what the Editor gives for the photo alone."""
    mixes = [mix_of(s0=2.0), mix_of()]
    whole = Edit("k", photo(0, 80, 100), mixes, seed=1, regions=REGIONS)
    views = [crop(whole.pixels, region, 64) for region in REGIONS]
    edits = [
        Edit(key, view, mixes, seed=1, cut=True)
        for key, view in zip(("k", "k#1"), views, strict=True)
    ]
    tasks = [EditTask(edits=edits, sliders={"s0@1": "s0@1"}), task(1, (70, 120), s1=1.0)]
    watcher = Recorder()

    async def main() -> list[Result]:
        batcher = Batcher(editor, watcher, max_rows=8, max_waiting=8)
        return list(await asyncio.gather(*(result(batcher, one, sliders) for one in tasks)))

    both, _ = asyncio.run(main())
    assert max(watcher.rows) == 5  # two regions under two mixes, and the other photo
    assert both.changes[1] == [None, None]
    editor.sliders = dict(sliders)
    expected, same = outputs_of(editor.edit([whole])[0])
    found = pasted(whole.pixels, list(zip(REGIONS, both.changes[0], strict=True)))
    assert far(expected.pixels, found) < TOLERANCE
    assert far(found, whole.pixels) > 50 * TOLERANCE
    assert np.array_equal(same.pixels, whole.pixels)


def test_a_view_is_seen_at_its_own_size(editor, sliders) -> None:
    """Though a photo of that size would be seen at another one."""
    assert editor.working_size(64, 72) == (64, 64)
    edit = Edit("k", photo(0, 64, 72), [mix_of(s0=2.0)], cut=True)

    async def main() -> Result:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        return await result(batcher, edit_task(edit), sliders)

    [[change]] = asyncio.run(main()).changes
    assert change is not None and change.shape == (64, 72, 3)


def test_rows_join_between_steps_and_share_the_pass(editor, held, sliders) -> None:
    async def main() -> None:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        held.go.clear()
        first = asyncio.create_task(result(batcher, task(0, s0=1.0), sliders))
        await until(lambda: len(held.passes) == 1)
        second = asyncio.create_task(result(batcher, task(1, s1=1.0), sliders))
        await asyncio.sleep(0.05)
        held.go.set()
        done = await asyncio.gather(first, second)
        # A photo's step is two rows: alone once, together three times, the later one alone once.
        assert held.passes == [2, 4, 4, 4, 2]
        assert [round(one.batch_rows, 2) for one in done] == [1.75, 1.75]

    asyncio.run(main())


def test_progress_and_partial_pictures(editor, sliders) -> None:
    one = task(0, s0=2.0, partials=2)

    async def main() -> list:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        return [event async for event in batcher.submit(one, {"s0@1": sliders["s0@1"]})]

    *events, last = asyncio.run(main())
    assert [e.step for e in events if isinstance(e, Step)] == [1, 2, 3]
    assert {e.steps for e in events if isinstance(e, Step)} == {4}
    partials = [e for e in events if isinstance(e, Partial)]
    assert [p.index for p in partials] == [0, 1] and isinstance(last, Result)
    final, *found = (pictures_of(one, event.changes)[0] for event in (last, *partials))
    gaps = [np.abs(picture - final).mean() for picture in found]
    assert gaps[1] < gaps[0] < np.abs(photo(0) - final).mean()  # they come nearer


# --- who leaves, who is refused -----------------------------------------------------------------
def test_an_edit_called_off_leaves_at_the_next_step(editor, held, sliders) -> None:
    watcher = Recorder()

    async def main() -> None:
        batcher = Batcher(editor, watcher, max_rows=8, max_waiting=8)
        held.go.clear()
        leaver, stayer = (
            asyncio.create_task(result(batcher, task(i, s0=1.0), sliders)) for i in range(2)
        )
        await until(lambda: len(held.passes) == 1)
        leaver.cancel()
        await asyncio.sleep(0.02)
        held.go.set()
        await stayer
        assert held.passes == [4, 2, 2, 2]

    asyncio.run(main())
    assert watcher.outcomes == {"done": 1, "cancelled": 1}


def test_words_share_steps_with_trained_sliders(model, editor, held, sliders) -> None:
    """One request's words, under a prompt of their own, beside others' sliders, in one pass."""
    said = Slider.of_words(
        Words(positive="a man", negative="a woman", target="a"), "", model.base_id
    )
    name, known = said.reference, sliders | {said.reference: said}
    own = SETTINGS.model_copy(update={"prompt": "a"})
    mixes = [Mix({name: s, "s1@1": 0.5}, {name: s, "s1@1": 0.5}) for s in (2.0, -2.0)]
    edit = Edit("k9", photo(9), mixes, settings=own)
    options = {"sliders": {"s1@1": "s1@1"}, "words": {name: said.card}, "within_s": 60.0}
    words = EditTask(edits=[edit], **options)  # type: ignore[arg-type]
    assert (words.rows, words.weight) == (2, 6)

    async def one(batcher: Batcher) -> Result:
        async for event in batcher.submit(words, {n: known[n] for n in ("s1@1", name)}):
            if isinstance(event, Result):
                return event
        raise AssertionError

    async def main() -> list[Result]:
        batcher = Batcher(editor, Recorder(), max_rows=7, max_waiting=8)
        first = asyncio.create_task(result(batcher, task(0, s0=1.0), sliders))
        second = asyncio.create_task(one(batcher))
        third = asyncio.create_task(result(batcher, task(2, s2=1.0), sliders))
        return await asyncio.gather(first, second, third)

    found = asyncio.run(main())
    # A source and an edit of the first; a source, two edits and their prompts, which they share
    # before the first move. The third does not fit beside them.
    assert held.passes == [2 + 3 + 2, *[2 + 3 + 4] * 3, 2, 2, 2, 2]
    alone = Editor(model, [], SETTINGS, slots=3, rank=4)
    alone.sliders = dict(known)
    [expected] = alone.edit([edit])
    for a, b in zip(outputs_of(expected), pictures_of(words, found[1].changes), strict=True):
        assert far(a.pixels, b) < TOLERANCE
        assert far(a.pixels, edit.pixels) > 50 * TOLERANCE
    trained = task(0, s0=1.0)
    [expected] = alone.edit(trained.edits)
    alone.close()
    [picture] = pictures_of(trained, found[0].changes)
    assert far(outputs_of(expected)[0].pixels, picture) < TOLERANCE


def test_one_that_waits_may_leave_too(editor, held, sliders) -> None:
    async def main() -> None:
        batcher = Batcher(editor, Recorder(), max_rows=1, max_waiting=8)
        held.go.clear()
        first = asyncio.create_task(result(batcher, task(0, s0=1.0), sliders))
        await until(lambda: len(held.passes) == 1)
        waiting = asyncio.create_task(result(batcher, task(1, s0=1.0), sliders))
        await asyncio.sleep(0.02)
        waiting.cancel()
        held.go.set()
        await first
        assert held.passes == [2, 2, 2, 2]

    asyncio.run(main())


def test_a_full_queue_refuses(editor, held, sliders) -> None:
    watcher = Recorder()

    async def main() -> None:
        batcher = Batcher(editor, watcher, max_rows=1, max_waiting=1)
        held.go.clear()
        kept = [asyncio.create_task(result(batcher, task(0, s0=1.0), sliders))]
        await until(lambda: len(held.passes) == 1)
        kept.append(asyncio.create_task(result(batcher, task(1, s0=1.0), sliders)))
        await asyncio.sleep(0.02)
        with pytest.raises(Busy, match="1 edits are waiting"):
            await result(batcher, task(2, s0=1.0), sliders)
        held.go.set()
        await asyncio.gather(*kept)

    asyncio.run(main())
    assert watcher.outcomes == {"done": 2, "refused": 1}


@pytest.fixture
def steps_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batchers expect a step to take a second for each edit in it, whatever it took."""
    step_time = StepTime()
    step_time.learn(1, 1.0)
    monkeypatch.setattr(step_time, "learn", lambda rows, seconds: None)
    monkeypatch.setattr("bs_ray.serve.engine.batcher.StepTime", lambda: step_time)


def test_what_would_be_late_or_make_others_late_is_refused_at_once(
    editor, sliders, steps_of_a_second
) -> None:
    """Four steps take four seconds alone, eight for two."""

    async def main() -> None:
        batcher = Batcher(editor, Recorder(), max_rows=16, max_waiting=16)
        first = asyncio.create_task(result(batcher, task(0, s0=1.0, within_s=6.0), sliders))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refused:  # it has time, but the first one would be late
            await result(batcher, task(1, s1=1.0, within_s=60.0), sliders)
        assert 0 < refused.value.retry_after_s < 3
        await first
        only = await result(batcher, task(2, s0=1.0, within_s=1.0), sliders)  # idle: it tries
        assert only.batch_rows == 1

    asyncio.run(main())


def test_one_that_is_late_anyway_keeps_nobody_out(editor, sliders, steps_of_a_second) -> None:
    async def main() -> None:
        batcher = Batcher(editor, Recorder(), max_rows=16, max_waiting=16)
        hopeless = asyncio.create_task(result(batcher, task(0, s0=1.0, within_s=0.5), sliders))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await result(batcher, task(1, s1=1.0, within_s=60.0), sliders)
        await hopeless

    asyncio.run(main())


def test_finish_times() -> None:
    step_time = StepTime()
    assert finish_times([Load(10, 1)], [], 8, step_time) == [0.0]  # nothing is known yet
    step_time.learn(1, 1.0)
    assert finish_times([Load(4, 1)], [], 8, step_time) == [4.0]
    assert finish_times([Load(4, 1)], [Load(4, 1)], 8, step_time) == [8.0, 8.0]
    assert finish_times([Load(4, 1)], [Load(4, 1)], 1, step_time) == [4.0, 8.0]
    step_time.learn(2, 1.5)  # two share a step well
    assert finish_times([Load(2, 1)], [Load(4, 1)], 8, step_time) == [3.0, 5.0]
    step_time.learn(1, 2.0)
    assert step_time.expected_s(1) == pytest.approx(1.2)


def test_a_queue_that_cannot_move_in_time_tells_those_who_wait(editor, held, sliders) -> None:
    async def main() -> None:
        batcher = Batcher(editor, Recorder(), max_rows=1, max_waiting=8)
        held.go.clear()
        first = asyncio.create_task(result(batcher, task(0, s0=1.0), sliders))
        await until(lambda: len(held.passes) == 1)
        late = asyncio.create_task(result(batcher, task(1, s0=1.0, within_s=0.05), sliders))
        await asyncio.sleep(0.1)
        held.go.set()
        with pytest.raises(Busy, match="waited for its whole time"):
            await late
        await first

    asyncio.run(main())


# --- what goes wrong ----------------------------------------------------------------------------
def test_one_bad_edit_fails_alone(editor, sliders) -> None:
    async def main() -> list:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        wrong = EditTask(edits=[Edit("k", photo(0)[..., :2], [mix_of()])])
        too_high = edit_task(Edit("k", photo(1), [mix_of(high=1.0)]))
        factors = sliders["s1@1"].factors.items()
        high = {k: (a.repeat(9, 1), b.repeat(1, 9)) for k, (a, b) in factors}
        return await asyncio.gather(
            result(batcher, task(0, s0=1.0), sliders),
            result(batcher, wrong, sliders),
            result(batcher, too_high, sliders | {"high@1": Slider(sliders["s1@1"].card, high)}),
            result(batcher, task(2, s1=1.0), sliders),
            return_exceptions=True,
        )

    good, wrong, high, also_good = asyncio.run(main())
    assert isinstance(good, Result) and isinstance(also_good, Result)
    assert isinstance(wrong, EditError)
    assert isinstance(high, SliderError) and "expected at most 4" in str(high)


def test_a_forward_that_fails_together_is_tried_alone(editor, held, sliders) -> None:
    async def main() -> list:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        plain = held.predict
        held.predict = lambda x, t, c, s: plain(x, t, c, s) if len(x) == 2 else 1 / 0
        return await asyncio.gather(*(result(batcher, task(i, s0=1.0), sliders) for i in range(3)))

    assert len(asyncio.run(main())) == 3 and sorted(set(held.passes)) == [2, 6]


def test_a_method_that_breaks_between_steps_leaves_the_others_where_they_are(
    editor, sliders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The good one shares its passes, and still takes each step once."""

    def broken(context, settings):
        yield context.edited(context.x0[context.source_of], 100)
        raise ValueError("a bug of the method")

    monkeypatch.setitem(METHODS, "sdedit", broken)
    settings = EditorSettings.model_validate({**SETTINGS.model_dump(), "method": "sdedit"})
    bad = edit_task(Edit("b", photo(1), [mix_of(s1=1.0)], settings=settings))

    async def main() -> list:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        good = result(batcher, task(0, s0=1.0), sliders)
        return await asyncio.gather(good, result(batcher, bad, sliders), return_exceptions=True)

    good, failed = asyncio.run(main())
    assert isinstance(failed, ValueError) and isinstance(good, Result)
    editor.sliders = dict(sliders)
    one = task(0, s0=1.0)
    [expected] = editor.edit(one.edits)
    assert far(outputs_of(expected)[0].pixels, *pictures_of(one, good.changes)) < TOLERANCE


def test_a_batcher_that_fails_says_so(editor, held, sliders) -> None:
    async def main() -> None:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        batcher.check()
        held.fail = True
        for _ in range(3):
            with pytest.raises(RuntimeError, match="out of memory"):
                await result(batcher, task(0, s0=1.0), sliders)
        with pytest.raises(RuntimeError, match="last 3 steps failed"):
            batcher.check()
        held.fail = False
        await result(batcher, task(0, s0=1.0), sliders)
        batcher.check()

    asyncio.run(main())


def test_a_batcher_that_hangs_says_so(editor, held, sliders) -> None:
    async def main() -> None:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8, step_timeout_s=0.05)
        held.go.clear()
        hanging = asyncio.create_task(result(batcher, task(0, s0=1.0), sliders))
        await until(lambda: held.passes)
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="not ended for 0"):
            batcher.check()
        held.go.set()
        await hanging
        batcher.check()

    asyncio.run(main())


def test_a_photo_that_nothing_moves_comes_back_at_once(editor, held, sliders) -> None:
    async def main() -> Result:
        batcher = Batcher(editor, Recorder(), max_rows=8, max_waiting=8)
        return await result(batcher, task(0, s0=0.0), sliders)

    done = asyncio.run(main())
    assert done.changes == [[None]]
    assert held.passes == [] and done.batch_rows == 1
