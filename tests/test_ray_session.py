"""What a Ray session leaves on the terminal."""

import os

import pytest

from bs_ray.ray_session import filtered_stderr, ray_session


def test_only_rays_known_lines_are_kept_off_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    noise = b"[...] core_worker.cc:2465: Actor 'MapWorker' has constructor arguments in the object "
    noise += b"store and max_restarts > 0. If the arguments are lost, the restart will fail.\n"
    with filtered_stderr():
        os.write(2, b"before\n" + noise + b"after\nno end of line")
    os.write(2, b", and outside\n")
    assert capfd.readouterr().err == "before\nafter\nno end of line, and outside\n"


def test_stderr_is_itself_again_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), filtered_stderr():
        os.write(2, b"in time\n")
        raise KeyError
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "in time\nlater\n"


@pytest.mark.parametrize(
    ("said", "advised"), [("The current node timed out during startup.", True), ("no such", False)]
)
def test_advice_is_given_for_a_known_cause_alone(
    monkeypatch: pytest.MonkeyPatch, said: str, advised: bool
) -> None:
    def fails(**_: object) -> None:
        raise OSError(said)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", fails)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=f"OSError: {said}") as error, ray_session():
        pass
    assert ("Free some CPU and memory" in str(error.value)) is advised


def test_a_local_ray_has_our_environment_whatever_started_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `uv run` starts it, in a folder below the one with the pyproject.toml."""
    from ray._private import ray_constants, worker
    from ray._private.runtime_env import uv_runtime_env_hook

    def started(**options: object) -> None:
        assert worker._maybe_modify_runtime_env({}, False) == {}

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    monkeypatch.setattr(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)
    monkeypatch.setattr(uv_runtime_env_hook, "_get_uv_run_cmdline", lambda: ["uv", "run", "x"])
    monkeypatch.setattr("ray.init", started)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with ray_session():
        pass
