"""The door to a Ray cluster: the connection, the places it has for actors, metrics. It knows no actor and no image.

`pool` has the actors and their tasks, `submit` the jobs.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util import metrics

from drivetrain.console import say
from drivetrain.dashboard import OPEN_MEANS, open_to_others
from drivetrain.errors import RunError

DASHBOARD_SECONDS = 2.0
MEND_OPEN = "Start every node under RAY_AUTH_MODE=token (cluster.yaml shows it)."
# Between two looks at what the cluster has.
LOOK_SECONDS = 2.0
# Ray starts an actor in a second or two, on a busy machine in many.
START_SECONDS = 30.0


@contextmanager
def connected(address: str | None, actors: int | None) -> Iterator[None]:
    """Be connected to a Ray cluster: the one named, RAY_ADDRESS, or a new one on this machine.

    0 actors need no cluster. A connection that was there before stays.
    """
    if actors == 0 or ray.is_initialized():
        yield
        return
    own = address is None and not os.environ.get("RAY_ADDRESS")
    # Without an address Ray would join whatever cluster another program started on this machine last.
    extra: dict[str, Any] = {"address": "local", "include_dashboard": False} if own else {"address": address or "auto"}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    where = address or os.environ.get("RAY_ADDRESS") or "this machine"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        found = ray.init(log_to_driver=False, logging_level=logging.ERROR, **extra)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise RunError(
            f"No Ray cluster at {where}: {str(error).splitlines()[0]}\n"
            "If the cluster asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from None
    if on_sigterm is not None and threading.current_thread() is threading.main_thread():
        # Ray put its own in place, which ends the process without a word.
        signal.signal(signal.SIGTERM, on_sigterm)
    if found.dashboard_url and not own:
        _say_if_open(f"http://{found.dashboard_url}")
    try:
        yield
    finally:
        ray.shutdown()


def _say_if_open(url: str) -> None:
    """Warn of a cluster that takes jobs from anyone. A dashboard that hangs does not hold up the work."""

    def ask() -> None:
        if open_to_others(url, DASHBOARD_SECONDS):
            say(f"Warning: the Ray cluster's dashboard at {url} asks for no token: {OPEN_MEANS}. {MEND_OPEN}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(DASHBOARD_SECONDS)


def cores_of_actor() -> int:
    """The cores of this node that an actor with GPUs may use: as large a share of them as it has of the node's GPUs.

    All of them outside of an actor.
    """
    cores = os.cpu_count() or 1
    if not ray.is_initialized():
        return cores
    context = ray.get_runtime_context()
    own = context.get_assigned_resources().get("GPU", 0)
    gpus = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return max(1, int(cores * own / gpus)) if own and gpus else cores


def look(address: str, seconds: float) -> str:
    """What a cluster has, asked by a process of its own: a connection that hangs can be ended only with its process.

    Raises RunError when there is no such cluster or it does not answer in time.
    """
    code = "import sys; from drivetrain.cluster import _tell; _tell(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"No answer within {seconds:.0f} s from the Ray cluster at {address}\n"
            "Correct --ray-address; on the cluster's head, type   ray status"
        ) from None
    if done.returncode:
        raise RunError(done.stderr.strip() or f"No Ray cluster at {address}")
    return done.stdout.strip()


def _tell(address: str) -> None:
    try:
        with connected(address, None):
            found = ray.cluster_resources()
    except RunError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{found.get('CPU', 0):.0f} CPUs, {found.get('GPU', 0):.0f} GPUs, Ray {ray.__version__}")


class Places:
    """How many actors are wanted, how many the cluster's nodes hold, and what to say while none of them has a place.

    Without a number from the user as many are wanted as the cluster ever had places for since the work began: a node
    that joins gets actors, and for one that was lost actors wait, which is what an autoscaler goes by.
    """

    def __init__(self, actors: int | None, gpus_per_actor: float) -> None:
        self.gpus_per_actor, self._given = gpus_per_actor, actors
        self.wanted = actors or 0
        self._there = 0
        self._looked, self._none_since = float("-inf"), time.monotonic()
        self._said = ""

    def look(self) -> None:
        """See which nodes there are, unless that was seen a moment ago."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self._there = sum(_places_of(node["Resources"], self.gpus_per_actor) for node in ray.nodes() if node["Alive"])
        if self._given is None and (more := max(1, self._there)) > self.wanted:
            if self.wanted:
                say(f"The cluster has grown: {more:,} actors now, {self.wanted:,} before.")
            self.wanted = more

    def tell(self, somebody_works: bool) -> None:
        """Say what is waited for while no actor has a place: once, and again when it is something else."""
        if somebody_works:
            self._none_since, self._said = time.monotonic(), ""
            return
        text = self._no_place() if not self._there else self._no_start()
        if text and text != self._said:
            say(text)
            self._said = text

    def _no_place(self) -> str:
        address = ray.get_runtime_context().gcs_address
        return (
            f"Waiting for a node: an actor needs {self._need()}, and no node has that ({_what_there_is()}).\n"
            f"An autoscaler starts nodes for {_counted(self.wanted, 'actor')}; --actors N asks for more. Without one, "
            f"type on a machine that has drivetrain:   ray start --address={address}"
            + ("\nTo score without GPUs, leave out --gpus-per-actor." if self.gpus_per_actor else "")
        )

    def _no_start(self) -> str:
        if time.monotonic() - self._none_since < START_SECONDS:
            return ""
        return (
            f"Waiting for a place: no actor has started for {START_SECONDS:.0f} s. Each needs {self._need()}; the "
            f"cluster has room for {self._there:,} ({_what_there_is()}), if nobody else works on it.\n"
            "To see who does, type on the cluster's head:   ray status"
        )

    def _need(self) -> str:
        return "1 CPU" + (f" and {self.gpus_per_actor:g} GPU" if self.gpus_per_actor else "")


def places(actors: int | None, gpus_per_actor: float) -> int:
    """How many actors would work at this moment; 0 actors are this process, which counts as one."""
    if actors == 0:
        return 1
    found = Places(actors, gpus_per_actor)
    found.look()
    return found.wanted


def _places_of(resources: Mapping[str, float], gpus_per_actor: float) -> int:
    """How many actors one node holds. Several share a GPU only if it holds each of them whole."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if not gpus_per_actor:
        return cpus
    # A third of a GPU is written as 0.33 or 0.3333.
    on_gpus = gpus * int(1 / gpus_per_actor + 1e-9) if gpus_per_actor <= 1 else int(gpus / gpus_per_actor)
    return min(cpus, on_gpus)


def _what_there_is() -> str:
    found = ray.cluster_resources()
    return f"{_counted(int(found.get('CPU', 0)), 'CPU')} and {_counted(int(found.get('GPU', 0)), 'GPU')} in all"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


class RunMetrics:
    """What a job tells Prometheus through Ray while it works, labelled by source and run.

    ray_drivetrain_images_scored_total, ray_drivetrain_images_failed_total, ray_drivetrain_runs_committed_total,
    ray_drivetrain_images_per_second, ray_drivetrain_shards_waiting. They vanish with the job's node; commit.json keeps
    the totals. The verdict is not among them: a night is judged when the cluster has been left, and Ray forgets a gauge
    seconds after its job. It stands in site/metrics.prom (`exposition`).
    """

    def __init__(self, source: str, run_id: str) -> None:
        self._started = time.monotonic()
        self._done = 0
        self._active = ray.is_initialized()
        if not self._active:
            return
        tags = {"tag_keys": ("source", "run")}
        self._scored = metrics.Counter("drivetrain_images_scored", "Images scored.", **tags)
        self._failed = metrics.Counter("drivetrain_images_failed", "Images that got an error row.", **tags)
        self._committed = metrics.Counter("drivetrain_runs_committed", "Runs committed.", **tags)
        self._rate = metrics.Gauge("drivetrain_images_per_second", "Images a second since the job's start.", **tags)
        self._waiting = metrics.Gauge("drivetrain_shards_waiting", "Shards without a part yet.", **tags)
        for metric in (self._scored, self._failed, self._committed, self._rate, self._waiting):
            metric.set_default_tags({"source": source, "run": run_id})

    def add(self, images: int, failed: int, waiting: int) -> None:
        """Count a finished shard."""
        if not self._active:
            return
        self._done += images
        if images > failed:
            self._scored.inc(images - failed)
        if failed:
            self._failed.inc(failed)
        self._rate.set(self._done / max(time.monotonic() - self._started, 1e-9))
        self._waiting.set(waiting)

    def committed(self) -> None:
        """Count the run as done: an alert on its absence sees a night that did not end."""
        if self._active:
            self._committed.inc()
