"""Sliders: the file, the registry, the bank."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save
from torch import nn

from bs_ray.config import Prompts
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider

LAYERS = {"line": (6, 5), "conv": (4, 3)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.line = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(self.conv(x).flatten(2).transpose(1, 2))


def make(
    name: str, rank: int = 2, seed: int = 0, layers: tuple[str, ...] = ("line", "conv")
) -> Slider:
    net = Net()
    bank = SliderBank.trainable([name], net, layers, rank, alpha=1.0, seed=seed)
    for index, up in enumerate(bank.up.values()):
        up.data = torch.randn(up.shape, generator=torch.Generator().manual_seed(seed + index))
    prompts = Prompts(target="t", positive="p", negative="n")
    return bank.to_slider(Card(name=name, base="net", base_id="b" * 16, prompts=prompts, rank=rank))


def merged(net: Net, slider: Slider, strength: float) -> Net:
    """The textbook way: W0 + s B A written into the weights."""
    with torch.no_grad():
        for layer, (a, b) in slider.factors.items():
            update = torch.einsum("or,r...->o...", b.flatten(1), a)
            net.get_submodule(layer).weight += strength * update
    return net


MEASURED = Calibration(
    judge="j",
    strengths=[-1.0, 0.0, 1.0],
    effect=[-1.0, 0.0, 1.0],
    drift=[1.0, 0.0, 1.0],
    unit=1.0,
    low=-1.0,
    high=1.0,
)


def test_every_row_has_its_own_mix() -> None:
    torch.manual_seed(0)
    net = Net()
    first, second = make("first", 2, 1), make("second", 3, 7, layers=("line",))
    bank = SliderBank.of([first, second])
    bank.attach(net)
    x = torch.randn(4, 3, 8, 8)
    mixes = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, -2.0], [0.5, 0.7]])
    with torch.no_grad(), bank.scaled(mixes):
        rows = net(x)
    bank.detach()
    for row, (one, two) in enumerate(mixes.tolist()):
        copy = Net()
        copy.load_state_dict(net.state_dict())
        expected = merged(merged(copy, first, one), second, two)(x[row : row + 1])
        assert torch.allclose(rows[row : row + 1], expected, atol=1e-5)


def test_detached_base_is_bit_for_bit_itself() -> None:
    net, x = Net(), torch.randn(2, 3, 8, 8)
    before = net(x)
    bank = SliderBank.of([make("a")])
    bank.attach(net)
    assert torch.equal(net(x), before)  # attached, but no strengths given
    with bank.scaled(torch.zeros(2, 1)):
        assert torch.equal(net(x), before)
    with bank.scaled(torch.ones(2, 1)):
        assert not torch.equal(net(x), before)
    bank.detach()
    assert torch.equal(net(x), before)


def test_training_touches_the_slider_only() -> None:
    net = Net().requires_grad_(False)
    bank = SliderBank.trainable(["a"], net, ["line"], 2, alpha=4.0, seed=0)
    bank.attach(net)
    with bank.scaled(torch.ones(2, 1)):
        net(torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is None for p in net.parameters())
    assert bank.up["line"].grad.abs().sum() > 0


def test_alpha_is_folded_into_the_file() -> None:
    net = Net()
    bank = SliderBank.trainable(["a"], net, ["line"], 2, alpha=8.0, seed=0)
    bank.up["line"].data.normal_()
    card = Card(
        name="a",
        base="n",
        base_id="b",
        prompts=Prompts(target="t", positive="p", negative="n"),
        rank=2,
    )
    _, b = bank.to_slider(card).factors["line"]
    assert torch.allclose(b, bank.up["line"] * 4.0)


def test_another_base_is_refused_by_layer() -> None:
    slider = make("a")
    other = nn.ModuleDict({"line": nn.Linear(9, 6)})
    with pytest.raises(SliderError, match=r"slider layer .* got .* belongs to another base"):
        SliderBank.of([slider]).attach(other)


def test_file_round_trip_is_exact_and_stable() -> None:
    slider = make("a")
    data = slider.to_bytes()
    again = Slider.from_bytes(data, "memory")
    assert again.card == slider.card
    assert again.to_bytes() == data
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert "unet.line.lora_A.weight" in header


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x04pickle", save({"x": torch.zeros(1)}), make("a").to_bytes()[:100]],
    ids=["empty", "pickle", "no-card", "cut"],
)
def test_other_files_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(SliderError, match=r"slider some\.safetensors: got a file that is not"):
        Slider.from_bytes(data, "some.safetensors")


def test_weights_that_are_not_finite_are_refused() -> None:
    slider = make("a")
    slider.factors["line"][0][0, 0] = float("nan")
    with pytest.raises(SliderError, match="not finite"):
        Slider.from_bytes(slider.to_bytes(), "x")


def test_registry_numbers_versions_and_overwrites_none(tmp_path) -> None:
    registry = Registry(str(tmp_path))
    first = registry.publish(make("smile", seed=1))
    assert registry.publish(make("smile", seed=1)).reference == first.reference == "smile@1"
    assert registry.publish(make("smile", seed=2)).reference == "smile@2"
    registry.publish(make("smile2"))
    assert registry.list() == {"smile": [1, 2], "smile2": [1]}
    assert registry.versions("smile") == [1, 2] and registry.versions("age") == []
    assert registry.resolve("smile").reference == "smile@2"
    assert registry.resolve("smile@1").to_bytes() == first.to_bytes()


def test_a_version_is_read_without_a_listing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(str(tmp_path))
    published = registry.publish(make("smile"))

    def listed(prefix: str = "") -> None:
        raise AssertionError(f"listed {prefix!r}")

    monkeypatch.setattr(registry.store, "list", listed)
    assert registry.resolve("smile@1").to_bytes() == published.to_bytes()
    with pytest.raises(AssertionError, match="listed 'smile/'"):
        registry.resolve("smile")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("age", "got 'age'; expected one of smile"),
        ("age@1", "got 'age'; expected one of smile"),
        ("smile@9", r"expected a version of smile among \[1\]"),
        ("smile@x", "expected a version"),
        ("smile@", "expected a version"),
        ("smile@\u00b2", "expected a version"),
        ("smile@" + "1" * 5000, "expected a version"),
        ("../smile", "1-64 of a-z"),
        ("no/such.safetensors", "not a file"),
    ],
)
def test_registry_says_what_is_there(tmp_path, reference: str, message: str) -> None:
    registry = Registry(str(tmp_path))
    registry.publish(make("smile"))
    with pytest.raises(ValueError, match=message):
        registry.resolve(reference)


@pytest.mark.parametrize(
    ("expected", "about"),
    [
        (
            "48b459c653d3f7c40eff8dc8dd2f20ef7871d2d0d05cc9fd007f88897776e821",
            {"prompts": Prompts(target="a", positive="b", negative="c"), "calibration": MEASURED},
        ),
        (
            "d3b37deac36e62175991c03f4cdd9b03a7dbd9ecd8421c254314186e2bba7818",
            {"subject": "a face"},
        ),
    ],
)
def test_a_file_has_the_bytes_that_an_earlier_version_gave_it(expected: str, about: dict) -> None:
    card = Card(
        name="n", version=3, base="b", base_id="0" * 16, rank=2, training={"steps": 3}, **about
    )
    factors = {"x.y": (torch.arange(8.0).view(2, 4), torch.arange(6.0).view(3, 2))}
    data = Slider(card, factors).to_bytes()
    assert hashlib.sha256(data).hexdigest() == expected
    assert Slider.from_bytes(data, "n").card == card
