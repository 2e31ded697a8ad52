"""Where a base says that faces stand in its square."""

import json
from pathlib import Path

import pytest

from bs_ray.models import EMBEDDED, framing_of, load_base
from bs_ray.models.base import BaseNotFound


def test_a_base_has_the_framing_of_its_card(random_base: Path) -> None:
    assert load_base("tiny-photo").framing == framing_of(EMBEDDED["tiny-photo"])
    (left, top), (right, level) = load_base("tiny-photo").framing
    assert 0.3 < left < 0.4 and 0.6 < right < 0.7 and top == level
    assert load_base(str(random_base)).framing is None


@pytest.mark.parametrize("card", ["{}", '{"framing": null}', '{"name": "tiny"}'])
def test_a_card_may_say_nothing(tmp_path: Path, card: str) -> None:
    (tmp_path / "card.json").write_text(card)
    assert framing_of(tmp_path) is None


@pytest.mark.parametrize(
    "framing",
    [1, {}, {"eyes": None}, {"eyes": [[0.3, 0.4]]}, {"eyes": [[0.7, 0.4], [0.3, 0.4]]},
     {"eyes": [["a", 0.4], [0.7, 0.4]]}, {"eyes": [[30, 40], [70, 40]]}],
)  # fmt: skip
def test_a_card_of_another_form_is_refused(tmp_path: Path, framing: object) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"framing": framing}))
    with pytest.raises(BaseNotFound, match=r"framing cannot be read .* expected .*eyes"):
        framing_of(tmp_path)
