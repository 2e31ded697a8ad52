"""What goes wrong, drawn from a seed: who is struck, at which requests, in what weather."""

import random
from dataclasses import dataclass

from tests.chaos.proxy import Step

LEDGER = "*/_bs_ray/shards/*.json"
PHOTOS, IMAGES, SHARDS = 24, 19, 6  # of the job in test_chaos.py

VICTIMS = ("driver", "worker", "raylet", "store", "weather", "stall", "store disk", "folder disk")
"""Seed k strikes victim k modulo their number, so that the first seeds meet them all."""

_REPORTS = ("*/manifest.parquet", "*/quarantine.jsonl", "*/summary.json")


SECOND_DAY = (
    "*/_bs_ray/0002/input.parquet",
    "*/images@2/*",
    "*/_bs_ray/0002/shards/*.json",
    "*/generations/0002/manifest.parquet",
    "*/generations/0002/summary.json",  # from here on it is whole
    "seed-*-daily/summary.json",
)
"""What a second generation writes, in order."""


@dataclass(frozen=True)
class Scenario:
    """One story: the steps are for the first runs of the command, one each."""

    seed: int
    victim: str
    steps: tuple[Step, ...]
    weather: dict[str, float]
    """Fault of the proxy -> share of requests."""

    def __str__(self) -> str:
        struck = "; then ".join(map(str, self.steps)) or "throughout"
        weather = ", ".join(f"{fault} {rate:.0%}" for fault, rate in self.weather.items())
        return f"seed {self.seed}: {self.victim}, {struck}; weather: {weather or 'fair'}"


def scenario(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng, victim = random.Random(seed), VICTIMS[seed % len(VICTIMS)]
    return Scenario(seed, victim, _steps(victim, rng), _weather(victim, rng))


def second_day(seed: int) -> Scenario:
    """The driver dies in the second generation, and so does its successor, a little later."""
    rng = random.Random(seed)
    first, later = sorted(rng.sample(range(len(SECOND_DAY)), 2))
    steps = (Step(rng.choice(["before", "after"]), "PUT", SECOND_DAY[at]) for at in (first, later))
    return Scenario(seed, "driver", tuple(steps), _weather("driver", rng))


def _steps(victim: str, rng: random.Random) -> tuple[Step, ...]:
    if victim == "weather":
        return ()
    if victim == "folder disk":  # the proxy stands before the input alone
        return (Step("before", "GET", "in/*", rng.randint(1, PHOTOS)),)
    when = rng.choice(["before", "after"])
    middle = [
        Step(when, "PUT", "*/images/*", rng.randint(1, IMAGES)),
        Step(when, "PUT", LEDGER, rng.randint(1, SHARDS - 1)),
    ]
    if victim in ("worker", "raylet"):  # who live only in the middle
        return (rng.choice([*middle, Step(when, "GET", "in/*", rng.randint(4, PHOTOS))]),)
    ends = [Step(when, "PUT", key) for key in ("*/_bs_ray/input.parquet", *_REPORTS)]
    first = rng.choice([*middle, *ends])
    if victim == "driver" and rng.random() < 0.5:  # and its successor too
        return (first, Step(when, "PUT", rng.choice(_REPORTS)))
    return (first,)


def _weather(victim: str, rng: random.Random) -> dict[str, float]:
    if victim == "weather":
        rates = dict.fromkeys(
            ["delay", "reset", "slow_down", "cut_request", "lose_reply", "cut_reply"], 0.03
        )
        hang = {"hang": 0.01} if rng.random() < 0.5 else {}  # each takes a silent read's patience
        return rates | {"reset_reply": 0.03, "flip_request": 0.1, "flip_reply": 0.1} | hang
    if victim == "folder disk" or rng.random() < 0.5:
        return {}
    return {fault: 0.03 for fault in rng.sample(["reset", "slow_down", "flip_reply", "delay"], 2)}
