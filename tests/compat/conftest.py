"""What an earlier version wrote; data/README.md says how."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

DATA = Path(__file__).parent / "data"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all of it, as the working folder; jobs name their places relative to it."""
    folder = tmp_path / "old"
    shutil.copytree(DATA, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def expected() -> dict[str, Any]:
    """What that version made of it."""
    return json.loads((DATA / "expected.json").read_text())


@pytest.fixture(scope="session")
def recorded() -> Any:
    """recorded(name) -> the arrays that it computed."""
    return lambda name: load_file(DATA / f"{name}.safetensors")
