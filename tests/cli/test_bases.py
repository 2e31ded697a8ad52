"""`bs-ray bases`: what is here, what one is, and fetching one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from bs_ray.cli import app
from bs_ray.cli.shared import console
from bs_ray.models.describe import described
from tests.models import layouts
from tests.models.hub_server import COMMIT, Hub, serving


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BS_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "_width", 200)  # it reads COLUMNS once, when it is made
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def bases(*words: str) -> str:
    done = CliRunner().invoke(app, ["bases", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_show_tells_what_a_base_is() -> None:
    found = json.loads(bases("show", "tiny", "--json"))
    assert found["id"] == "b12a6176fa730a1f" and found["family"] == "sdxl"
    assert found["dtype"] == "float16" and found["source"] == "embedded"
    assert set(found["parts"]) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert found["bytes"] == sum(part["bytes"] for part in found["parts"].values())
    assert found["parts"]["unet"]["files"] == ["diffusion_pytorch_model.safetensors"]
    table = bases("show", "tiny")
    assert "sdxl, float16, 16.2 MB, id b12a6176fa730a1f" in table


def test_fetch_takes_what_is_used_and_list_then_has_it(
    whole_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Hub({layouts.REPO: whole_base})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert "float32" in bases("fetch", layouts.REPO)
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    layouts.snapshot(tmp_path / "video", tmp_path / "hub", "someone/no-base")
    listed = bases("list")
    assert f"{layouts.REPO}@{COMMIT[:8]}" in listed and "tiny-flow" in listed
    assert "no-base" not in listed
    assert described(layouts.REPO)["id"] == described(str(whole_base))["id"]
