"""The slider bank: exact against PEFT, in both forms, under torch.compile, with sliders coming and
going."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from bs_ray.bench.bank import bank as bench_bank
from bs_ray.bench.bank import load_adapter
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.bank import SliderBank, banded
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.resident import Resident
from bs_ray.sliders.slider import Slider
from bs_ray.testing import random_slider
from tests.models.random_bases import WRITERS

ROWS = 4


class Net(nn.Module):
    """A convolution with a stride, a linear layer over tokens, and one over whole rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.tokens = nn.Linear(8, 6)
        self.row = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(self.conv(x).flatten(2).transpose(1, 2))
        return self.row(tokens.mean(1))


LAYERS = ("conv", "tokens", "row")


def slider_of(
    net: nn.Module, name: str, rank: int, seed: int, layers: tuple[str, ...] = LAYERS
) -> Slider:
    bank = SliderBank.trainable([name], net, layers, rank, float(rank), seed)
    generator = torch.Generator().manual_seed(seed)
    for up in bank.up.values():
        up.data.normal_(std=0.3, generator=generator)
    return bank.to_slider(Card(name=name, base="net", base_id="net", rank=rank))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def pictures(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def mixes_of(rows: int, sliders: int, used: int, seed: int = 0) -> Tensor:
    """Strengths [rows, sliders] of which `used` a row are not 0."""
    generator = torch.Generator().manual_seed(seed)
    lora_scales = torch.zeros(rows, sliders)
    for row in lora_scales:
        row[torch.randperm(sliders, generator=generator)[:used]] = torch.randn(
            used, generator=generator
        )
    return lora_scales


def run(net: nn.Module, bank: SliderBank, lora_scales: Tensor, x: Tensor) -> Tensor:
    with bank.scaled(lora_scales):
        return net(x)


# --- exact ---------------------------------------------------------------------------------------
def predict(model: DiffusionModel, bank: SliderBank | None, lora_scales: Tensor) -> Tensor:
    """The rows' predictions, each at a timestep of its own."""
    rows = len(lora_scales)
    x = batch_noise(model.latent_shape, [0] * rows, [str(i) for i in range(rows)], 0)
    t, cond = torch.linspace(0, 999, rows).long(), model.embed(["a person"]).repeat(rows)
    with torch.no_grad():
        if bank is None:
            return model.predict(x, t, cond)
        with bank.scaled(lora_scales):
            return model.predict(x, t, cond)


@pytest.mark.parametrize(
    ("family", "convolutions"),
    [("sdxl", ("conv_in", "down_blocks.0.resnets.0.conv1", "conv_out")), ("sd3", ())],
)
@pytest.mark.parametrize("count", [2, 14], ids=["stacked", "gathered"])
def test_every_mix_is_that_of_peft_one_at_a_time(
    family: str, convolutions: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    WRITERS[family](tmp_path)
    model, peft = load_base(str(tmp_path)), load_base(str(tmp_path))
    layers = (*model.slider_targets()[::5], *convolutions)
    sliders = [slider_of(model.denoiser, f"s{i}", 2 + i % 3, i, layers) for i in range(count)]
    mixes = mixes_of(ROWS, count, used=2)
    bank = SliderBank.of(sliders)
    bank.attach(model.denoiser)
    ours = predict(model, bank, mixes)

    for slider in sliders:
        load_adapter(peft, slider)
    denoiser: Any = peft.denoiser
    theirs = []
    for row, lora_scales in enumerate(mixes.tolist()):
        mix = {f"s{i}": s for i, s in enumerate(lora_scales) if s}
        denoiser.set_adapters(list(mix), list(mix.values()))
        theirs.append(predict(peft, None, mixes)[row])
    moved = (ours - predict(model, None, mixes)).abs().amax((1, 2, 3))
    error = float((ours - torch.stack(theirs)).abs().max())
    print(f"error {error:.1e}, moves {moved.tolist()}")
    assert error < 1e-5 and float(moved.min()) > 1e-2


@pytest.mark.parametrize("count", [3, 40], ids=["stacked", "gathered"])
def test_a_row_does_not_depend_on_its_companions(net: Net, count: int) -> None:
    bank = SliderBank.of([slider_of(net, f"s{i}", 2, i) for i in range(count)])
    bank.attach(net)
    x, mixes = pictures(), mixes_of(ROWS, count, used=2)
    mixes[0] = 0
    together = run(net, bank, mixes, x)
    alone = [run(net, bank, mixes[i : i + 1], x[i : i + 1]) for i in range(ROWS)]
    torch.testing.assert_close(together, torch.cat(alone))
    bank.detach()
    assert torch.equal(together[0], net(x)[0])


@pytest.mark.parametrize("used", [1, 3, 6])
def test_gathered_equals_stacked_and_so_do_its_gradients(
    net: Net, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = [1, 3, 2, 4] * 10  # the shorter ones are filled up
    bank = SliderBank.of([slider_of(net, f"s{i}", rank, i) for i, rank in enumerate(ranks)])
    bank.attach(net)
    found, flops = [], []
    for sizes in ((4, 8), ()):
        monkeypatch.setattr("bs_ray.sliders.bank._GATHERED", sizes)
        x = pictures().requires_grad_()
        lora_scales = mixes_of(ROWS, len(ranks), used).requires_grad_()
        with bank.scaled(lora_scales), FlopCounterMode(display=False) as counter:
            y = net(x)
        flops.append(counter.get_total_flops())
        y.square().sum().backward()
        on = lora_scales.detach() != 0
        assert x.grad is not None and lora_scales.grad is not None
        found.append((y.detach(), x.grad, lora_scales.grad[on]))
    assert flops[0] < flops[1]
    for gathered, stacked in zip(*found, strict=True):
        torch.testing.assert_close(gathered, stacked, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in bank.parameters())


def test_the_form_follows_sliders_and_mix(net: Net) -> None:
    def form(count: int, used: int) -> int:
        """Ranks a row is multiplied by, read off the work that they are."""
        bank = SliderBank.of([slider_of(net, f"s{i}", 2, i, ("row",)) for i in range(count)])
        flops = []
        for attached in (False, True):
            if attached:
                bank.attach(net)
            with (
                bank.scaled(mixes_of(ROWS, count, used)),
                FlopCounterMode(display=False) as counter,
            ):
                net.row(torch.ones(ROWS, net.row.in_features))
            flops.append(counter.get_total_flops())
        bank.detach()
        return (flops[1] - flops[0]) // (2 * ROWS * (net.row.in_features + net.row.out_features))

    assert form(12, 1) == 24  # few sliders: one form, and so one graph, for every mix
    assert (form(13, 0), form(13, 4), form(13, 5)) == (8, 8, 26)
    assert (form(40, 4), form(40, 5), form(40, 8), form(40, 9)) == (8, 16, 16, 80)


def test_training_stays_stacked(net: Net) -> None:
    bank = SliderBank.trainable([f"s{i}" for i in range(40)], net, LAYERS, 2, 2.0, seed=0)
    bank.attach(net)
    run(net, bank, mixes_of(ROWS, 40, used=1), pictures()).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in bank.parameters())


def test_strengths_of_another_width_are_refused(net: Net) -> None:
    bank = SliderBank.of([slider_of(net, "a", 2, 0)])
    with pytest.raises(SliderError, match=r"got LoRA scales \[4, 2\]; expected a column .* of 1"):
        run(net, bank, torch.ones(ROWS, 2), pictures())


def test_a_slider_acts_within_its_band_of_timesteps() -> None:
    lora_scales = torch.tensor([[1.0, -2.0]]).repeat(4, 1)
    t = torch.tensor([0, 500, 501, 999])
    bands = torch.tensor([[0, 500], [501, 999]])  # the first as with start_noise 500
    expected = [[1.0, 0.0], [1.0, 0.0], [0.0, -2.0], [0.0, -2.0]]
    assert banded(lora_scales, t, bands).tolist() == expected


# --- attachment ----------------------------------------------------------------------------------
def test_attached_and_detached_the_base_is_bit_for_bit_itself(random_base: Path) -> None:
    model = load_base(str(random_base))
    before = {name: weight.clone() for name, weight in model.denoiser.state_dict().items()}
    zero, one = torch.zeros(ROWS, 1), torch.ones(ROWS, 1)
    bare = predict(model, None, zero)
    bank = SliderBank.of([random_slider(model, "a", seed=0)])
    for _ in range(3):
        bank.attach(model.denoiser)
        assert torch.equal(predict(model, bank, zero), bare)
        assert not torch.equal(predict(model, bank, one), bare)
        bank.detach()
        assert torch.equal(predict(model, bank, one), bare)
    after = model.denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_bank_is_attached_once_or_not_at_all(net: Net) -> None:
    bank = SliderBank.of([slider_of(net, "a", 2, 0)])
    bank.attach(net)
    once = run(net, bank, torch.ones(ROWS, 1), pictures())
    with pytest.raises(SliderError, match=r"got attach\(\) while attached; expected detach\(\)"):
        bank.attach(net)
    assert torch.equal(run(net, bank, torch.ones(ROWS, 1), pictures()), once)
    other = Net()
    other.row = nn.Linear(6, 7)  # the last layer looked at
    bare, foreign = other(pictures()), SliderBank.of([slider_of(net, "a", 2, 0)])
    with pytest.raises(SliderError, match=r"slider layer row: got a layer of shape \(7, 6\)"):
        foreign.attach(other)
    assert torch.equal(run(other, foreign, torch.ones(ROWS, 1), pictures()), bare)


# --- resident ------------------------------------------------------------------------------------
def resident_of(net: Net, slots: int, rank: int = 4) -> Resident:
    about = {"base_id": "net", "family": "sdxl", "former_ids": ()}
    model: Any = SimpleNamespace(**about, denoiser=net, slider_targets=lambda: list(LAYERS))
    resident = Resident(model, slots, rank)
    resident.bank.attach(net)
    return resident


def fresh(net: Net, sliders: list[Slider], lora_scales: Tensor) -> Tensor:
    """What a bank made for these sliders gives."""
    bank = SliderBank.of(sliders)
    bank.attach(net)
    y = run(net, bank, lora_scales, pictures())
    bank.detach()
    return y


def test_the_least_recently_used_slider_leaves(net: Net) -> None:
    a, b, c, d = (slider_of(net, name, 2, seed) for seed, name in enumerate("abcd"))
    resident = resident_of(net, slots=3)
    assert resident.use([a, b, c]) == [0, 1, 2]
    assert resident.use([a, a]) == [0, 0]
    assert resident.use([d]) == [1]  # b has waited longest
    assert resident.bank.names == ["a", "d", "c"]
    assert resident.use([b, c]) == [0, 2]  # c stays, as this batch needs it: a leaves
    assert resident.use([d, a, c]) == [1, 0, 2]


def test_more_sliders_than_slots_are_refused_and_nothing_moves(net: Net) -> None:
    sliders = [slider_of(net, name, 2, seed) for seed, name in enumerate("abc")]
    resident = resident_of(net, slots=2)
    resident.use(sliders[:2])
    with pytest.raises(SliderError, match=r"got 3 in one batch; expected at most 2\. Split"):
        resident.use(sliders)
    assert resident.use([sliders[1], sliders[0], sliders[1]]) == [1, 0, 1]


@pytest.mark.parametrize("slots", [2, 20], ids=["stacked", "gathered"])
def test_sliders_of_any_rank_take_each_others_slots(net: Net, slots: int) -> None:
    resident = resident_of(net, slots)
    first = [slider_of(net, f"first{i}", 4, i) for i in range(slots)]
    then = [slider_of(net, "short", 1, 90), slider_of(net, "partial", 3, 91, ("tokens",))]
    tensors = {name: tensor.data_ptr() for name, tensor in resident.bank.named_parameters()}
    for sliders in (first, then):
        columns = resident.use(sliders)
        mix = mixes_of(ROWS, len(sliders), used=2)
        lora_scales = torch.zeros(ROWS, slots)
        lora_scales[:, columns] = mix
        y = run(net, resident.bank, lora_scales, pictures())
        torch.testing.assert_close(y, fresh(net, sliders, mix))
    after = {name: tensor.data_ptr() for name, tensor in resident.bank.named_parameters()}
    assert tensors == after


def test_what_does_not_fit_is_named_and_takes_no_slot(net: Net) -> None:
    resident = resident_of(net, slots=1, rank=2)
    small = slider_of(net, "small", 2, 0)
    resident.use([small])
    wide = Net()
    wide.row = nn.Linear(6, 7)
    deeper = nn.ModuleDict({"extra": nn.Linear(3, 3)})
    cases = {
        "layer conv of rank 3; expected at most 2": slider_of(net, "b", 3, 0),
        r"layer row of factors \(2, 6\) and \(7, 2\); expected": slider_of(wide, "b", 2, 0),
        "layer extra; expected one of the 3 layers": slider_of(deeper, "b", 2, 0, ("extra",)),
        "got a base of the family sdxl; expected one of flux": Slider(
            Card(name="b", base="o", base_id="other", family="flux", rank=2), small.factors
        ),
    }
    for message, slider in cases.items():
        with pytest.raises(SliderError, match=message):
            resident.use([slider])
    lora_scales = torch.ones(ROWS, 1)
    y = run(net, resident.bank, lora_scales, pictures())
    torch.testing.assert_close(y, fresh(net, [small], lora_scales))


# --- torch.compile -------------------------------------------------------------------------------
@pytest.fixture
def graphs() -> Iterator[Callable[[], int]]:
    """How many graphs dynamo has made in this test."""
    torch.compiler.reset()
    counters.clear()
    yield lambda: int(counters["stats"]["unique_graphs"])
    torch.compiler.reset()


def eagerly(model: DiffusionModel, bank: SliderBank, lora_scales: Tensor) -> Tensor:
    """`predict` without the compiled denoiser."""
    with torch.compiler.set_stance("force_eager"):
        return predict(model, bank, lora_scales)


# aot_eager: what is counted are dynamo's graphs, the same for every backend, and Inductor takes two
# minutes over one of these networks on a CPU.
@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_one_graph_for_every_mix_and_every_slider(
    family: str, tmp_path: Path, graphs: Callable[[], int]
) -> None:
    WRITERS[family](tmp_path)
    model = load_base(str(tmp_path))
    sliders = [random_slider(model, f"s{i}", seed=i) for i in range(4)]
    resident = Resident(model, slots=3, rank=4)
    resident.bank.attach(model.denoiser)
    resident.use(sliders[:3])
    sweep = [
        torch.zeros(ROWS, 3),
        *(torch.full((ROWS, 3), s) for s in (-1000.0, -0.5, 1.0)),
        *(mixes_of(ROWS, 3, used, seed=used) for used in (1, 2, 3)),
    ]
    model.denoiser.compile(backend="aot_eager", fullgraph=True)
    first = predict(model, resident.bank, sweep[-1])
    assert graphs() == 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lora_scales in sweep:
            compiled = predict(model, resident.bank, lora_scales)
            torch.testing.assert_close(compiled, eagerly(model, resident.bank, lora_scales))
        assert resident.use([sliders[3]]) == [0]  # in the slot of another
        swapped = predict(model, resident.bank, sweep[-1])
    assert graphs() == 1
    torch.testing.assert_close(swapped, eagerly(model, resident.bank, sweep[-1]))
    assert not torch.allclose(swapped, first, atol=1e-3)


def test_many_sliders_have_a_graph_for_each_form(net: Net, graphs: Callable[[], int]) -> None:
    bank = SliderBank.of([slider_of(net, f"s{i}", 2, i) for i in range(40)])
    bank.attach(net)
    mixes = [mixes_of(ROWS, 40, used, seed) for used in (1, 4, 5, 8, 9, 40) for seed in range(3)]
    eager = [run(net, bank, lora_scales, pictures()) for lora_scales in mixes]
    net.compile(backend="aot_eager", fullgraph=True)
    for lora_scales in mixes:
        run(net, bank, lora_scales, pictures())
    assert graphs() == 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lora_scales, expected in zip(mixes, eager, strict=True):
            torch.testing.assert_close(run(net, bank, lora_scales, pictures()), expected)
    assert graphs() == 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on a CPU")
@pytest.mark.parametrize("count", [3, 40], ids=["stacked", "gathered"])
def test_inductor_agrees_with_eager(net: Net, count: int, graphs: Callable[[], int]) -> None:
    bank = SliderBank.of([slider_of(net, f"s{i}", 2, i) for i in range(count)])
    bank.attach(net)
    mixes = [mixes_of(ROWS, count, used=2, seed=seed) for seed in range(3)]
    eager = [run(net, bank, lora_scales, pictures()) for lora_scales in mixes]
    net.compile(fullgraph=True)
    for lora_scales, expected in zip(mixes, eager, strict=True):
        torch.testing.assert_close(
            run(net, bank, lora_scales, pictures()), expected, rtol=1e-4, atol=1e-5
        )
    assert graphs() == 1


def test_a_compiled_base_notices_banks_that_come_and_go(
    net: Net, graphs: Callable[[], int]
) -> None:
    """Dynamo does not watch hooks: without help, a bank attached later would do nothing."""
    x, one = pictures(), torch.ones(ROWS, 1)
    sliders = [slider_of(net, name, 2, seed) for seed, name in enumerate("ab")]
    expected = [fresh(net, [slider], one) for slider in sliders]
    bare = net(x)
    net.compile(backend="aot_eager")
    assert torch.equal(net(x), bare)
    for slider, wanted in zip(sliders, expected, strict=True):
        bank = SliderBank.of([slider])
        bank.attach(net)
        torch.testing.assert_close(run(net, bank, one, x), wanted)
        assert torch.equal(net(x), bare)
        bank.detach()
        assert torch.equal(run(net, bank, one, x), bare)
    assert graphs() > 1


# --- bench ---------------------------------------------------------------------------------------
def test_bench_measures_all_it_promises(random_base: Path) -> None:
    lines: list[str] = []
    figures = bench_bank(str(random_base), rows=3, repeats=1, report=lines.append, resident=(1, 4))
    assert figures["bank_max_error"] < 1e-4 < figures["bank_moves"]
    assert figures["mixed_over_uniform"] > 0 and figures["mixed_over_set_adapters"] > 0
    assert figures["row_seconds"].keys() == {
        "bare",
        "uniform",
        "mixed",
        "peft_uniform",
        "set_adapters",
    }
    assert all(found.keys() == {"1", "4"} for found in figures["row_seconds"].values())
    assert len(lines) == 2
