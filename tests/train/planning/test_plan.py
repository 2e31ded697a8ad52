"""A plan says before a run what the run will take: read off the code that runs, and held to it."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bs_ray.cli import app
from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models import load_base
from bs_ray.models.folder import read_part
from bs_ray.models.published import PUBLISHED, published_name, write_architecture
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble, one_step
from bs_ray.train.planning.dry_run import DryRun, RowCount
from bs_ray.train.planning.memory import GIB, engine_bytes, sharded_bytes
from bs_ray.train.planning.plan import PlanDoesNotFit, plan
from bs_ray.train.targets.cache import to_parquet
from bs_ray.train.targets.samples import SampleMaker
from bs_ray.train.targets.teacher import Teacher
from tests.train.conftest import PROMPTS, make_job

GUIDED_ONLY = {"perceptual": 0, "adversarial": 0}


@pytest.mark.parametrize(
    ("base", "part", "expected"),
    [
        ("sdxl-base-1.0", "unet", 2_567_463_684),
        ("sdxl-base-1.0", "vae", 83_653_863),
        ("sdxl-base-1.0", "text_encoder", 123_060_480),
        ("sdxl-base-1.0", "text_encoder_2", 694_659_840),
        ("sd3.5-medium", "transformer", 2_243_171_520),
        ("sd3.5-medium", "text_encoder_3", 4_762_310_656),
        ("flux.1-dev", "transformer", 11_901_408_320),
        ("flux.1-dev", "vae", 83_819_683),
    ],
)
def test_published_architectures_have_the_published_sizes(
    tmp_path: Path, base: str, part: str, expected: int
) -> None:
    import diffusers
    import transformers

    write_architecture(base, tmp_path)
    library, kind, _ = PUBLISHED[base][part]
    part_class = getattr(diffusers if library == "diffusers" else transformers, kind)
    network = read_part(part_class, tmp_path / part, torch.bfloat16, "meta")
    assert sum(p.numel() for p in network.parameters()) == expected


def test_a_published_base_is_known_by_its_name() -> None:
    assert published_name("/models/stable-diffusion-xl-base-1.0/") == "sdxl-base-1.0"
    assert published_name("black-forest-labs/FLUX.1-dev") == "flux.1-dev"
    assert published_name("tiny") is None


def test_parameters_and_memory_are_those_of_a_real_step(base: Path) -> None:
    """The meta run counts as real tensors are counted: weights, slider, discriminator."""
    job = make_job(base=str(base), batch_size=4, engine="torch")
    made = plan(job)
    model = load_base(str(base))
    photos = PhotoPool(["a", "b"], torch.zeros(2, 3, 64, 64, dtype=torch.uint8), model)
    state = assemble(job, model, photos, load_features(base, "cpu"), PlainEngine)
    count = RowCount(model.denoiser)
    one_step(state, 0)
    assert made.slider_parameters == sum(p.numel() for p in state.bank.parameters())
    critic = state.adversary
    assert critic
    assert made.discriminator_parameters == sum(p.numel() for p in critic.critic.parameters())
    assert made.forwards_per_step == count.rows == 24
    held = {"denoiser weights": model.denoiser, "VAE weights": model.vae}
    for name, network in held.items():
        tensors = [*network.parameters(), *network.buffers()]
        assert made.memory[0][name] == sum(t.numel() * t.element_size() for t in tensors)
    moments = sum(
        t.numel() * 4 for s in state.student.optimizer.state.values() for t in s.values() if t.dim()
    )
    weights = made.slider_parameters * 4
    assert made.memory[0]["slider"] == 2 * weights + moments


def test_activations_are_those_that_autograd_keeps() -> None:
    """A network whose activations can be counted by hand."""
    layer = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(3)))
    with DryRun() as run:
        network = layer.to("meta")
        x = torch.zeros(1024, 64, device="meta")
        before = run.mark()
        assert before == 3 * 64 * 64 * 4 + 1024 * 64 * 4
        y = network(x)
        assert run.mark() - before == 3 * 1024 * 64 * 4
        with torch.no_grad():
            network(x)  # one output and one input at a time
        assert sum(run.peak.values()) - before == (3 + 2) * 1024 * 64 * 4
        assert float(y.detach().sum()) == 1.0  # what is read back reads as one
        del y
        assert run.mark() == before


@pytest.mark.parametrize(
    ("changes", "forwards"),
    [
        ({"algorithm": "concept_sliders"}, 62),
        ({}, 6),
        ({"teacher": {"mode": "cached"}}, 3),
        ({"teacher": {"mode": "cached"}, "gradient_checkpointing": True}, 4),
    ],
)
def test_forward_equivalents_are_those_of_the_table(
    base: Path, changes: dict, forwards: int
) -> None:
    """As docs/method.md says; gradient checkpointing adds the forward that it repeats."""
    made = plan(make_job(base=str(base), losses=GUIDED_ONLY, **changes))
    assert made.forwards_per_sample == forwards and made.decodes_per_step == 0


def test_several_sliders_share_one_cache(base: Path) -> None:
    three = {f"s{i}": PROMPTS | {"positive": f"a photo of a person, {i}"} for i in range(3)}
    changes = {"prompts": None, "sliders": three, "teacher": {"mode": "cached", "samples": 4}}
    job = make_job(base=str(base), losses=GUIDED_ONLY, **changes)
    made = plan(job)
    assert made.forwards_per_sample == 3 and made.cache
    model = load_base(str(base))
    photos = PhotoPool(["a", "b"], torch.zeros(2, 3, 64, 64, dtype=torch.uint8), model)
    rows = list(SampleMaker(job, model, photos, Teacher(model, job.concepts)).make(range(4)))
    payload = sum(len(row[k]) for row in rows for k in ("x_t", "neutral", "direction"))
    assert made.cache.bytes == payload == 4 * 2 * 4 * 16 * 16 * (1 + 2 * 3)
    assert payload < len(to_parquet(iter(rows))) < 1.25 * payload  # and its statistics


def test_zero_shards_what_it_shards() -> None:
    whole = engine_bytes(1000, 0, 4)
    assert whole == 16_000  # fp32 weights, gradients, two moments
    assert engine_bytes(1000, 1, 4) == 4000 + 4000 + 2000 + 1000
    assert engine_bytes(1000, 2, 4) == 4000 + 1000 + 2000 + 1000


def test_stage_3_gathers_a_block_and_the_next() -> None:
    class Block(torch.nn.Linear):
        pass

    class Net(torch.nn.Module):
        _no_split_modules = ["Block"]

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(1, 100, bias=False)
            self.blocks = torch.nn.ModuleList(Block(10, 100, bias=False) for _ in range(6))

    assert sharded_bytes(Net(), 4) == 4 * ((100 + 6 * 1000) // 4 + 100 + 2 * 1000)
    assert sharded_bytes(Net(), 1) == 4 * (100 + 6 * 1000)


def test_elastic_runs_are_planned_for_their_fewest_workers(base: Path) -> None:
    job = make_job(base=str(base), losses=GUIDED_ONLY, batch_size=12, workers=[2, 3])
    made = plan(job, 1)
    assert (made.workers, made.rows) == (2, 6) and made.forwards_per_step == 6 * 12
    # Every number of workers gets as many rows each.
    assert made.largest_batch_size and made.largest_batch_size % 6 == 0


def test_what_does_not_fit_is_refused_with_the_way_out(base: Path) -> None:
    job = make_job(base=str(base), losses=GUIDED_ONLY, batch_size=64, engine="torch")
    made = plan(job)
    with pytest.raises(
        PlanDoesNotFit,
        match=r"got 0\.\d+ GiB a worker; expected at most .*The largest part: denoiser "
        r"activations.*Set gradient_checkpointing=true, which takes 0\.",
    ):
        plan(job, 0.999 * made.total / GIB)
    with pytest.raises(PlanDoesNotFit, match=r"Nothing here makes it fit .*more memory"):
        plan(job, 0.001)
    assert plan(job, made.total / GIB).largest_batch_size == 64


def test_the_command_line_refuses_with_code_2(base: Path, tmp_path: Path) -> None:
    job = make_job(base=str(base), losses=GUIDED_ONLY)
    file = tmp_path / "job.yaml"
    file.write_text(job.model_dump_json())
    figures = tmp_path / "plan.json"
    runner = CliRunner()
    shown = runner.invoke(app, ["train", str(file), "--plan", "--json", str(figures)])
    assert shown.exit_code == 0 and "forward-equivalents: 6 a sample" in shown.output
    assert figures.is_file()
    refused = runner.invoke(app, ["train", str(file), "--plan", "--gpu-memory-gb", "0.01"])
    assert isinstance(refused.exception, ValueError)  # main() makes it exit code 2
    without = runner.invoke(app, ["train", str(file), "--gpu-memory-gb", "8"])
    assert "expected both" in str(without.exception)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["sdxl-base-1.0", "sd3.5-medium"])
def test_published_bases_can_be_planned_without_their_weights(base: str) -> None:
    job = TrainJob.model_validate(
        {
            "name": "age",
            "prompts": PROMPTS,
            "photos": "p",
            "base": base,
            "use_gpu": True,
            "batch_size": 8,
            "workers": 4,
            "resolution": 512,
            "teacher": {"mode": "cached", "samples": 1000},
        }
    )
    made = plan(job, 80)
    assert made.forwards_per_sample == 3 and made.cache and made.largest_batch_size
    if base == "sdxl-base-1.0":
        assert made.cache.bytes == 1000 * 98_304  # 98 KB a sample, as docs/method.md says
        assert made.slider_parameters == 10_465_280
    with pytest.raises(PlanDoesNotFit, match=r"The largest part: .*Set "):
        plan(job, 14 if base == "sdxl-base-1.0" else 26)
