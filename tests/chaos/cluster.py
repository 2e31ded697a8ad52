"""Several Ray nodes on this machine, in a session of their own.

As a program: start them, print their address and the raylets' pids as JSON, live until stdin ends.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import psutil

from tests.chaos.command import end_session

_NODES = 2  # besides the head
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
        )
        self.session = self._process.pid
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster did not start"
        started = json.loads(line)
        self.address: str = started["address"]
        self._raylets: list[int] = started["raylets"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        end_session(self.session)

    def kill_raylet(self, index: int) -> None:
        """SIGKILL one that is not the head, and the workers of its node."""
        raylet = psutil.Process(self._raylets[index])
        workers = raylet.children(recursive=True)
        for process in (raylet, *workers):
            process.kill()
        psutil.wait_procs([raylet, *workers], timeout=10)


def _main() -> None:
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"object_store_memory": _OBJECT_STORE_BYTES}
    head = {"num_cpus": 1, "_system_config": _HEALTH, "include_dashboard": False, **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, **small) for _ in range(_NODES)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _main()
