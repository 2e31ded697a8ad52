"""What a Ray session leaves on the terminal."""

import os

import pytest

from bs_ray.ray_session import filtered_stderr


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
