"""Displacement as only a comparison has it, in the world of tests/editing/test_methods.py."""

import pytest
import torch
from torch import Tensor

from bs_ray.config.evaluate import ComparedSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.run import EditRun, run_alone
from bs_ray.evaluate.variants import WEIGHT_RULES, methods_of
from bs_ray.models.diffusion import Prediction
from tests.editing.test_methods import KINDS, MANY, moved, world


def compared(context: EditContext, **settings) -> Tensor:
    values = ComparedSettings(steps=MANY, start=0.7, **settings)
    steps = methods_of(values)["displacement"](context, values)
    return run_alone(EditRun(steps), context.predict) - context.x0[context.source_of]


def test_weight_rules() -> None:
    levels = [4.0, 2.0, 1.0, 0.0]
    rules = {name: rule(levels) for name, rule in WEIGHT_RULES.items()}
    assert rules["flowedit"] == [2, 1, 1] and rules["infedit"] == [4, 2, 1]
    assert rules["dds"] == pytest.approx([4 / 3] * 3)
    assert sum(rules["dds"]) == sum(rules["flowedit"])


def test_a_comparison_edits_by_the_rule_that_it_names() -> None:
    context = world(KINDS["eps"], [[0.4]], [0])
    plain = moved("displacement", context, steps=MANY, start=0.7)
    assert torch.equal(compared(context), plain)
    for rule in ("infedit", "dds"):
        assert float((compared(context, weights=rule) - plain).abs().max()) > 1e-3, rule


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("soft_mask", [0.0, 0.5])
def test_steering_scales_the_move(kind: Prediction, soft_mask: float) -> None:
    context = world(kind, [[0.4], [-0.2]], [0, 1])
    one, same, twice = (
        compared(context, steer=steer, soft_mask=soft_mask) for steer in (1.0, 1.0 + 1e-6, 2.0)
    )
    assert torch.allclose(one, same, atol=1e-4)
    # In this world a prediction is linear in the strength, so steering is strength.
    double = compared(world(kind, [[0.8], [-0.4]], [0, 1]), soft_mask=soft_mask)
    assert torch.allclose(twice, double, atol=1e-3)
