"""The board that workers report to, and what a driver shows of it."""

import io
import pickle
import time

from rich.console import Console
from rich.text import Text

from bs_ray.progress import Bars, ProgressBoard, Reported, counted, progress

NUMBERS = {
    "triplet": 0.12345,
    "perceptual": 0.0456,
    "adversarial": -0.123,
    "discriminator": 1.98,
    "w_triplet": 0.269,
    "w_perceptual": 0.731,
    "reach_up": 0.71,
    "reach_down": 0.65,
    "leak": 0.42,
    "clip": 3.14,
    "drift": 0.123,
    "identity": 0.88,
}


def test_a_console_that_is_no_terminal_gets_a_few_lines() -> None:
    screen, seconds = io.StringIO(), iter(range(0, 1000, 2))
    with Bars(Console(file=screen), "smile", lambda: next(seconds)) as bars:
        for step in range(1, 101):
            bars.show({"train": Reported(step, 100, {"triplet": 0.12345})})
    lines = screen.getvalue().splitlines()
    assert len(lines) == 11 and lines[0] == "smile: train 1/100  triplet 0.123"
    assert lines[5] == "smile: train 50/100  2.0 s each  ETA 0:01:40  triplet 0.123"
    assert lines[-1] == "smile: train 100/100  2.0 s each  ETA 0:00:00  triplet 0.123"


def test_a_terminal_gets_a_bar_per_stage() -> None:
    screen = io.StringIO()
    with Bars(Console(file=screen, force_terminal=True, width=100), "tiny") as bars:
        bars.show({"vae": Reported(10, 10, {}), "unet": Reported(3, 9, {"loss": 0.5})})
    shown = Text.from_ansi(screen.getvalue()).plain
    assert all(text in shown for text in ("tiny: vae", "10/10", "3/9", "ETA", "loss 0.5"))


def test_a_normal_terminal_shows_every_number_without_wrapping_one() -> None:
    screen = io.StringIO()
    with Bars(Console(file=screen, force_terminal=True, width=100), "smile-on-sdxl") as bars:
        bars.show({"train": Reported(123, 1000, NUMBERS)})
    lines = Text.from_ansi(screen.getvalue()).plain.splitlines()
    first = "  tri 0.123  perp 0.0456  adv -0.123  disc 1.98  w_tri 0.269  w_perp 0.731"
    assert any(line.startswith(first) for line in lines)
    assert any("drift 0.123  identity 0.88" in line for line in lines)
    assert "…" not in screen.getvalue() and max(len(line.rstrip()) for line in lines) <= 100


def test_without_a_console_reports_go_nowhere() -> None:
    with progress(None, "quiet") as board:
        pickle.loads(pickle.dumps(board)).report("train", 1, 2, {})
    assert isinstance(board, ProgressBoard)


def test_workers_report_to_the_driver(ray_cluster) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def work(board: ProgressBoard) -> None:
        for step in (1, 2):
            board.report("train", step, 2, {"loss": 0.25})
            time.sleep(0.1)

    screen = io.StringIO()
    with progress(Console(file=screen), "smile") as board:
        ray.get(work.remote(board))
    last = screen.getvalue().splitlines()[-1]
    assert last.startswith("smile: train 2/2") and last.endswith("loss 0.25")


def test_one_of_a_kind_is_no_plural() -> None:
    assert [counted(n, "worker") for n in (0, 1, 1000)] == [
        "0 workers",
        "1 worker",
        "1,000 workers",
    ]
