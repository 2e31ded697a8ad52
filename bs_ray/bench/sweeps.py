"""Sweeps of sliders: kept in a file as they come, and compared at equal moves of the attribute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bs_ray.bench.train_bench import mean_sd

NEITHER = "neither"
"""The arm that the others are compared with."""


@dataclass(frozen=True)
class Run:
    """One slider of one arm, seed and attribute."""

    attribute: str
    seed: int
    arm: str
    settings: dict[str, Any]
    """Of the arm."""
    seconds: float
    """Of the processor, to train it."""
    sweep: dict[str, dict[str, list[float]]]
    """Sign -> `effect` and the harms at strength 0 and at the sweep's."""
    numbers: dict[str, float]
    """What training said at its last step."""

    def at(self, goal: float) -> dict[str, float] | None:
        """The harms where the attribute has moved by `goal`, mean of both signs; None where it
        never has."""
        found = []
        for swept in self.sweep.values():
            effect = np.maximum.accumulate(swept["effect"])
            if effect[-1] < goal:
                return None
            harms = {name: np.interp(goal, effect, swept[name]) for name in harms_of(swept)}
            found.append(harms)
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    @property
    def far(self) -> dict[str, float]:
        """Effect and harms at the last strength, mean of both signs."""
        sides = list(self.sweep.values())
        return {name: float(np.mean([side[name][-1] for side in sides])) for name in sides[0]}


def harms_of(measures: dict[str, Any]) -> list[str]:
    """Names of what is measured besides the effect."""
    return [name for name in measures if name != "effect"]


@dataclass
class Notebook:
    """The runs so far, in a file where there is one, so that none is lost or done again."""

    about: dict[str, Any]
    """What all runs have in common; runs of anything else are not taken up."""
    goals: Mapping[str, Sequence[float]]
    """Attribute -> moves of each sign at which its runs are compared."""
    file: Path | None
    runs: list[Run]

    @classmethod
    def open(
        cls, file: Path | None, about: dict[str, Any], goals: Mapping[str, Sequence[float]]
    ) -> Notebook:
        """Go on with a file. Raises ValueError where it holds something else."""
        if file is None or not file.is_file():
            return cls(about, goals, file, [])
        held = json.loads(file.read_text())
        if {name: held.get(name) for name in about} != about:
            raise ValueError(
                f"json: got {file}, whose runs are not of {about}; expected them, or no file yet. "
                "Give it another name"
            )
        return cls(about, goals, file, [Run(**run) for run in held["runs"]])

    def holds(self, attribute: str, seed: int, arm: str, settings: dict[str, Any]) -> bool:
        """Whether this run is done."""
        wanted = (attribute, seed, arm, settings)
        return any((r.attribute, r.seed, r.arm, r.settings) == wanted for r in self.runs)

    def figures(self) -> dict[str, Any]:
        """All runs, and for each attribute what they say."""
        attributes = dict.fromkeys(run.attribute for run in self.runs)
        found = {name: compared(self.runs, name, self.goals[name]) for name in attributes}
        return {**self.about, "attributes": found, "runs": [asdict(run) for run in self.runs]}

    def add(self, run: Run) -> None:
        """Keep a run; the file is whole at every moment."""
        self.runs.append(run)
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.file.with_name(self.file.name + ".part")
            scratch.write_text(json.dumps(self.figures(), indent=1) + "\n")
            scratch.replace(self.file)


def compared(runs: Sequence[Run], attribute: str, goals: Sequence[float]) -> dict[str, Any]:
    """Arm -> how its harms differ from those of "neither" of the same seed, as mean and sd.

    drift: mean absolute move of the other readings. identity: the judge's distance. distance: of
    features that no loss saw. truth: RMSE to the true picture, where somebody knows it. These are
    changes in percent at the same effect; kid is a difference, times 1,000. `absolute`: the harms
    themselves there. `far`: the same changes at the last strength, whose `effect` is as it is.
    `reached`: seeds in which both arms reached all goals.
    """
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.attribute == attribute:
            by_arm.setdefault(run.arm, {})[run.seed] = run
    plain = by_arm.get(NEITHER, {})
    found: dict[str, Any] = {}
    for arm, own in by_arm.items():
        pairs = [(own[seed], plain[seed]) for seed in own if seed in plain]
        if pairs:
            found[arm] = _against(pairs, goals)
    return found


def _against(pairs: Sequence[tuple[Run, Run]], goals: Sequence[float]) -> dict[str, Any]:
    """What `compared` says of one arm; pairs: its run and that of "neither", seed by seed."""
    changes, absolute, far = [], [], []
    reached = 0
    for mine, theirs in pairs:
        both = [(mine.at(goal), theirs.at(goal)) for goal in goals]
        there = [(a, b) for a, b in both if a and b]
        reached += len(there) == len(both)
        if there:
            changes.append(_mean([_change(a, b) for a, b in there]))
            absolute.append(_mean([a for a, _ in there]))
        far.append(_change(mine.far, theirs.far) | {"effect": mine.far["effect"]})
    own = [mine for mine, _ in pairs]
    said = [name for name in ("accuracy", "w_adversarial") if name in own[0].numbers]
    return {
        **_spread(changes),
        "absolute": _spread(absolute),
        "far": _spread(far),
        "reached": reached,
        "seconds": mean_sd([run.seconds for run in own]),
        **{name: mean_sd([run.numbers[name] for run in own]) for name in said},
    }


def _change(mine: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """By name of the harm: percent more or less; for `kid`, which may be 0, 1,000 times the
    difference."""
    return {
        name: 1000 * (mine[name] - theirs[name])
        if name == "kid"
        else 100 * (mine[name] / theirs[name] - 1)
        for name in harms_of(mine)
    }


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _spread(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {name: mean_sd([row[name] for row in rows]) for name in rows[0]} if rows else {}
