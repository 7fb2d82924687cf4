"""Where an actor's time goes: CPU time of each part, while one process scores a folder as an actor does.

Knows the names of functions inside drivetrain, and puts a clock around them: `scoring.py --profile` prints the shares.
Waiting costs no CPU, so that a busy machine changes the shares little. A part's time is without that of parts inside.
"""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

PARTS = ("decode", "network", "fetch", "hash", "properties", "predictions", "rows", "Parquet")


class Clock:
    """CPU seconds by part, over all threads."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._lock, self._inside = threading.Lock(), threading.local()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            outer, self._inside.seconds = getattr(self._inside, "seconds", 0.0), 0.0
            started = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                whole = time.thread_time() - started
                with self._lock:
                    self.seconds[part] += whole - self._inside.seconds
                self._inside.seconds = outer + whole

        return timed


def clocked(clock: Clock) -> None:
    """Put the clock around drivetrain's functions, in this process."""
    from drivetrain import fetch, run, shard
    from drivetrain.learner import eager, engines, scorer, stored

    places: list[tuple[Any, str, str]] = [
        (fetch.Fetcher, "read", "fetch"),
        *((each, "prepare", "decode") for each in (scorer.ExportedLearner, stored.StoredLearner)),
        *((each, "predict", "predictions") for each in (scorer.ExportedLearner, stored.StoredLearner)),
        (engines.OpenVinoEngine, "run", "network"),
        (eager.TorchEngine, "run", "network"),
        (shard, "properties_of", "properties"),
        (shard.ShardScorer, "_blank", "rows"),
        (shard, "outcome", "rows"),
        (shard.ShardScorer, "_save", "rows"),
        (run.Run, "save_part", "Parquet"),
    ]
    for owner, name, part in places:
        setattr(owner, name, clock.around(part, getattr(owner, name)))
    shard.hashlib = SimpleNamespace(sha256=clock.around("hash", shard.hashlib.sha256))  # type: ignore[attr-defined]


class Timed:
    """What an actor holds; its first shard, in which all is warmed up, is not counted."""

    def __init__(self, clock: Clock, worker: Any) -> None:
        self._clock, self._worker = clock, worker
        self.images, self._began = 0, 0.0

    def run(self, task: int, upcoming: int | None = None) -> Any:
        """Score a shard."""
        counts = self._worker.run(task, upcoming)
        if not self._began:
            self._began = time.process_time()
            self._clock.seconds.clear()
        else:
            self.images += counts.rows
        return counts

    @property
    def seconds(self) -> float:
        """CPU seconds of this process since the first shard."""
        return time.process_time() - self._began


def profile(learner: str, folder: str, engine: str) -> dict[str, Any]:
    """Images, CPU seconds, and those of each part; everything that has no part is the rest."""
    from drivetrain import Config, score, score_images
    from drivetrain.shard import ShardScorer

    clock = Clock()
    clocked(clock)
    made: list[Timed] = []

    def scorer(*about: Any, **how: Any) -> Timed:
        made.append(Timed(clock, ShardScorer(*about, **how | {"one_thread": True})))
        return made[0]

    score._scorer = scorer
    with tempfile.TemporaryDirectory() as root:
        config: Any = Config(
            root=root, learner=learner, images=folder, source="bench", name="b", actors=0, engine=engine
        )  # type: ignore[arg-type]
        score_images(config)
        whole = made[0].seconds
    parts = {part: clock.seconds[part] for part in PARTS}
    return {"images": made[0].images, "seconds": whole, "parts": parts | {"rest": whole - sum(parts.values())}}
