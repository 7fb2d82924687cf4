"""Raylets of a cluster on this machine, which come and go under what runs on them."""

from random import Random
from typing import Any

import psutil
from ray.cluster_utils import Cluster


class Nodes:
    """A head that works on nothing, and raylets of their own number of CPUs and GPUs."""

    def __init__(self, raylets: int = 0, **settings: Any) -> None:
        about = {"num_cpus": 0, "include_dashboard": False} | settings
        self._cluster = Cluster(initialize_head=True, head_node_args=about)
        self._nodes: dict[str, Any] = {}
        for _ in range(raylets):
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, cpus: int = 1, gpus: int = 0) -> str:
        node = self._cluster.add_node(num_cpus=cpus, num_gpus=gpus)
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def lose(self, name: str, *, told: bool = False) -> None:
        """Lose a node as a spot machine is lost: without a word, or told to go."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=told)

    def lose_one(self, drawn: Random) -> None:
        """Lose one that is drawn, without a word."""
        self.lose(drawn.choice(list(self._nodes)))

    def lose_all(self) -> None:
        """Lose all but the head."""
        for name in list(self._nodes):
            self.lose(name)

    def end(self) -> None:
        self._cluster.shutdown()


def actors() -> list[int]:
    """The processes below this one that score: Ray names them after the actor's class."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Actor"):
                found.append(process.pid)
        except psutil.Error:
            continue
    return sorted(found)
