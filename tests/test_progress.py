"""The board that workers post to, and what a driver shows of it."""

import io
import pickle
import time

from rich.console import Console

from bs_ray.progress import Board, Posted, _Bars, progress


def test_a_console_that_is_no_terminal_gets_a_few_lines() -> None:
    screen = io.StringIO()
    with _Bars(Console(file=screen), "smile") as bars:
        for step in range(1, 101):
            bars.show({"train": Posted(step, 100, {"triplet": 0.12345})})
    lines = screen.getvalue().splitlines()
    assert len(lines) == 11 and lines[-1] == "smile: train 100/100  triplet 0.123"


def test_a_terminal_gets_a_bar_per_stage() -> None:
    screen = io.StringIO()
    with _Bars(Console(file=screen, force_terminal=True, width=160), "tiny") as bars:
        bars.show({"vae": Posted(10, 10, {}), "unet": Posted(3, 9, {"loss": 0.5})})
    assert all(text in screen.getvalue() for text in ("tiny: vae", "10/10", "3/9", "loss 0.5"))


def test_without_a_console_posts_go_nowhere() -> None:
    with progress(None, "quiet") as board:
        pickle.loads(pickle.dumps(board)).post("train", 1, 2, {})
    assert isinstance(board, Board)


def test_workers_post_to_the_driver(ray_cluster) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def work(board: Board) -> None:
        for step in (1, 2):
            board.post("train", step, 2, {"loss": 0.25})
            time.sleep(0.1)

    screen = io.StringIO()
    with progress(Console(file=screen), "smile") as board:
        ray.get(work.remote(board))
    assert screen.getvalue().splitlines()[-1] == "smile: train 2/2  loss 0.25"
