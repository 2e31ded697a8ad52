"""Arms: what is swept. A slider by itself, or one of several that are compared at equal effect."""

from __future__ import annotations

from dataclasses import dataclass, field

from bs_ray.config import EditorSettings, EvalJob, Words
from bs_ray.config.base import OtherBases
from bs_ray.models import absolute_base, identify_base
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider

COMPARED = "compared"
"""The group of a job's `compare`."""


@dataclass(frozen=True)
class Arm:
    """One slider on one base, edited in one way."""

    name: str
    """Unique within its group: the slider's, the method's or the arm's own."""
    group: str
    """Arms of one group are compared with each other."""
    slider: str
    """How the registry knows it: name, name@version or a file. The name of words."""
    measure: str
    """What it should move, as the job says; "" leaves that to the judges."""
    base: str
    registry: str
    editor: EditorSettings
    words: Words | None = field(default=None, compare=False)
    """What stands in place of a slider of the registry."""
    other_bases: OtherBases = "warn"

    @property
    def label(self) -> str:
        """How figures and tables name it: a slider with the method that it is edited by, or its own
        name alone."""
        alone = self.name == self.group or self.group == COMPARED
        return self.name if alone else f"{self.group}, {self.name}"

    def resolved(self) -> Slider:
        """The slider as its base uses it. Raises BaseNotFound, SliderError and StorageError."""
        base = identify_base(self.base)
        if self.words:
            return Slider.of_words(self.words, self.base, base.id, self.slider)
        return Registry(self.registry).resolve_on(self.slider, base, self.other_bases)


def arms_of(job: EvalJob) -> list[Arm]:
    """All arms of a job, with absolute places, since workers have folders of their own."""
    registry, base = absolute_registry(job.registry), absolute_base(job.base)
    if job.compare:
        return _compared(job, base, registry)
    methods = {
        name: compared.model_copy(update={"calibrated": False})
        for name, compared in job.methods.items()
    }
    words = job.words
    return [
        Arm(
            name or slider,
            slider,
            _place(slider),
            measure,
            base,
            registry,
            editor,
            words.get(slider),
            job.other_bases,
        )
        for slider, measure in job.moves.items()
        for name, editor in (dict[str, EditorSettings](methods) or {"": job.editor}).items()
    ]


def _compared(job: EvalJob, base: str, registry: str) -> list[Arm]:
    found: list[Arm] = []
    for name, arm in job.compare.items():
        if isinstance(arm.slider, str):
            words, slider = job.words.get(arm.slider), _place(arm.slider)
            measure = _measure(job, arm.slider)
        else:
            words, slider = arm.slider, arm.slider.label
            measure = words.moves or (found[0].measure if found else "")
        found.append(
            Arm(
                name,
                COMPARED,
                slider,
                measure,
                absolute_base(arm.base) if arm.base else base,
                absolute_registry(arm.registry) if arm.registry else registry,
                arm.editor or job.editor,
                words,
                job.other_bases,
            )
        )
    return found


def absolute_registry(registry: str) -> str:
    """The registry's URI, for workers elsewhere."""
    return Registry(registry).store.uri


def _place(slider: str) -> str:
    """A file of a relative path, for workers elsewhere."""
    if slider.endswith(".safetensors") and "://" not in slider:
        return absolute_base(slider)
    return slider


def _measure(job: EvalJob, slider: str) -> str:
    """What the job says of a compared slider, under its own name or without its version."""
    return job.moves.get(slider) or job.moves.get(slider.partition("@")[0]) or ""
