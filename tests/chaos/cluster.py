"""Several Ray nodes on this machine, in a session of their own.

As a program: start them and print their address and the raylets' pids as JSON; add a node for each
line on stdin and print its raylet's pid; end with stdin.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import psutil

from tests.chaos.command import alive, end_session, session

_NODES = 2  # besides the head
_GONE_S = 60.0
_OBJECT_STORE_BYTES = 100 << 20
# The dead are found within a second or two.
_HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A head with one CPU and two nodes with two each, all with `env`."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env

    def __enter__(self) -> "Nodes":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.cluster"],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self.session = self._process.pid
        started = self._answer()
        self.address: str = started["address"]
        self._raylets: list[int] = started["raylets"]
        self._killed: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        end_session(self.session)

    def kill_raylet(self, index: int) -> None:
        """SIGKILL one that is not the head, and the workers of its node."""
        self._killed.add(index)
        raylet = psutil.Process(self._raylets[index])
        workers = raylet.children(recursive=True)
        for process in (raylet, *workers):
            process.kill()
        while any(map(alive, (raylet, *workers))):
            time.sleep(0.05)

    def settle(self) -> None:
        """Put a new node where one was killed; return when no job's editor is left."""
        for index in self._killed:
            assert self._process.stdin
            print("add", file=self._process.stdin, flush=True)
            self._raylets[index] = self._answer()
        self._killed.clear()
        deadline = time.monotonic() + _GONE_S
        while left := session(self.session, "EditShard"):
            assert time.monotonic() < deadline, f"{left} outlived their job by {_GONE_S:g} s"
            time.sleep(0.1)

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the cluster did not start"
        return json.loads(line)


def _main() -> None:
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"object_store_memory": _OBJECT_STORE_BYTES}
    head = {"num_cpus": 1, "_system_config": _HEALTH, "include_dashboard": False, **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)

    def add_node() -> int:
        node = cluster.add_node(num_cpus=2, **small)
        return node.all_processes["raylet"][0].process.pid

    raylets = [add_node() for _ in range(_NODES)]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    for _ in sys.stdin:
        print(add_node(), flush=True)


if __name__ == "__main__":
    _main()
