"""What the driver costs for 0.1, 1 and 10 million images: listing, freezing, dispatch and commit, and its memory.

    python benchmarks/driver.py

Real: the listing, the plan, the run, Ray with two actors, every part, the commit. Simulated: an S3 that makes its
listing up page by page and keeps what is written in a temporary folder, and in place of ShardScorer a stub that reads
its shard and writes a part without scoring. Each measurement has a process of its own. The table goes to stdout and to
driver.md beside this file.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

REPEATS = {100_000: 3, 1_000_000: 3, 10_000_000: 1}
ACTORS = 2
PAGE = 1000
OBJECTS = "DRIVER_BENCHMARK_OBJECTS"
PHASES = ("listing", "freezing", "starting", "dispatch", "commit")


class SimulatedS3(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """As much of s3fs as the store uses: pages of keys in order, conditional puts, reads."""

    protocol = ("s3",)
    root_marker = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._disk = LocalFileSystem(auto_mkdir=True)

    def _at(self, path: str) -> str:
        return f"{os.environ[OBJECTS]}/{self._strip_protocol(path)}"

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Bucket and key."""
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, method: str, **request: Any) -> dict[str, Any]:
        """A page of a bucket whose name says how many images it holds. The keys are in order, as S3 gives them."""
        if method == "head_object":
            return self.info(f"{request['Bucket']}/{request['Key']}")
        assert method == "list_objects_v2", method
        if request["Bucket"] == "root":
            return self._folder(request.get("Prefix", ""))
        count, start = int(request["Bucket"].split("-")[-1]), int(request.get("ContinuationToken", 0))
        stop = min(start + PAGE, count)
        when = datetime(2026, 1, 2, tzinfo=UTC)
        contents = [
            {
                "Key": f"{request['Prefix']}camera-{i // 100_000:03d}/2026-01-02/frame-{i:08d}.jpg",
                "ETag": f'"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"',
                "Size": 90_000 + i * 7919 % 60_000,
                "LastModified": when.replace(microsecond=i % 1_000_000),
            }
            for i in range(start, stop)
        ]
        return {"Contents": contents, "IsTruncated": stop < count, "NextContinuationToken": str(stop)}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Put an object. With ``create`` only one that is not there; nobody sees half of it."""
        target = Path(self._at(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.environ[OBJECTS])
        with open(handle, "wb") as file:
            file.write(value)
        if mode == "create":
            os.link(temporary, target)
            os.unlink(temporary)
        else:
            os.replace(temporary, target)

    def cat_file(self, path: str, **_: Any) -> bytes:
        """All bytes of an object."""
        return Path(self._at(path)).read_bytes()

    def _folder(self, prefix: str) -> dict[str, Any]:
        """What is directly inside a folder of the root, in one page."""
        with suppress(FileNotFoundError), os.scandir(f"{os.environ[OBJECTS]}/root/{prefix}") as found:
            each = [(f"{prefix}{one.name}", one.is_dir()) for one in found]
            folders = [{"Prefix": f"{name}/"} for name, folder in each if folder]
            return {"CommonPrefixes": folders, "Contents": [{"Key": name} for name, folder in each if not folder]}
        return {}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Whether it is there, and its size."""
        return {**self._disk.info(self._at(path)), "name": path}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return self._disk.open(self._at(path), mode)


class StubScorer:
    """Stands in for ShardScorer: reads its shard and writes its part, and scores nothing."""

    def __init__(self, store: Any, root: str, run_id: str, *_: Any, **__: Any) -> None:
        fsspec.register_implementation("s3", SimulatedS3, clobber=True)
        from drivetrain.layout import Layout
        from drivetrain.run import Run

        self._run = Run.find(store, Layout(root), run_id)

    def run(self, task: int, upcoming: int | None) -> Any:
        """Write one part, of the columns that a part's footer counts."""
        rows = len(self._run.shard(task))
        empty = {"error": pa.string(), "flags": pa.list_(pa.string()), "verified": pa.bool_()}
        return self._run.save_part(task, pa.table({name: pa.nulls(rows, kind) for name, kind in empty.items()}))


def peak_mib() -> int:
    """The most memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Watch:
    """Seconds of each phase, and the peak of memory at its end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.peak[name] = peak_mib()


def drive(count: int) -> dict[str, Any]:
    """List, freeze, dispatch and commit so many images in this process."""
    fsspec.register_implementation("s3", SimulatedS3, clobber=True)
    from drivetrain import Config, cluster, pool, score
    from drivetrain.layout import Layout
    from drivetrain.manifest import freeze, list_images
    from drivetrain.run import Run
    from drivetrain.store import Store

    imports, watch = peak_mib(), Watch()
    store, layout, config = Store(), Layout("s3://root/drivetrain"), Config(actors=ACTORS, engine="torch")
    with watch.phase("listing"):
        listing = list_images(store, f"s3://images-{count}/in")
    with watch.phase("freezing"):
        plan = freeze(
            store, layout, listing.images, source="all", kind="plan", name="one", prefix="in", skipped=listing.skipped
        )
    score._scorer = StubScorer
    commit, run_tasks = Run.commit, pool.run_tasks

    def committed(*args: Any) -> Any:
        with watch.phase("commit"):
            return commit(*args)

    def dispatched(*args: Any, **settings: Any) -> Iterator[Any]:
        # Actors take seconds to start, however many images there are: counted apart, up to the first result.
        results = run_tasks(*args, **settings)
        with watch.phase("starting"):
            first = next(results)
        yield first
        with watch.phase("dispatch"):
            yield from results

    Run.commit, pool.run_tasks = committed, dispatched  # type: ignore[method-assign, assignment]
    # What a run's record takes from a learner; there is none here.
    info: Any = SimpleNamespace(
        model_id="stub", sha256="0" * 64, task="single_label", vocab=("cat",), layer="", embedding_size=0
    )
    with cluster.connected(None, ACTORS):
        with watch.phase("begin"):
            run = score.begin_run(store, layout, plan, info, config)
        closed = score.finish_run(run, config)
    assert (closed.rows, len(closed.parts)) == (count, plan.shards)
    watch.seconds["freezing"] += watch.seconds["begin"]
    return {"imports": imports, "peak": peak_mib(), "shards": plan.shards, "seconds": watch.seconds, "at": watch.peak}


def measured(count: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(__file__).resolve().parent
        # Ray's actors import this file by its name, and drivetrain from this checkout.
        paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {OBJECTS: folder, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-c", f"import driver, json; print(json.dumps(driver.drive({count})))"]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def per_image(count: int, found: list[dict[str, Any]]) -> float:
    """Microseconds of work for one image, without the start of the actors."""
    work: float = median(sum(each["seconds"][phase] for phase in PHASES if phase != "starting") for each in found)
    return work / count * 1e6


def line(count: int, found: list[dict[str, Any]]) -> list[str]:
    """A size's cells: medians over its measurements."""
    seconds = {phase: median(each["seconds"][phase] for each in found) for phase in PHASES}
    rate = (found[0]["shards"] - 1) / seconds["dispatch"]
    peak, imports = (median(each[key] for each in found) for key in ("peak", "imports"))
    cells = [f"{count:,}", f"{found[0]['shards']:,}", str(len(found))]
    cells += [f"{seconds[phase]:.2f}" for phase in PHASES]
    return [*cells, f"{rate:,.0f}", f"{peak:,.0f}", f"{imports:,.0f}", f"{per_image(count, found):.1f}"]


ABOUT = """\
The store is simulated: it makes up a listing in pages of 1,000 keys, each at once, and keeps what is written in a
temporary folder. The scorer is a stub that reads its shard and writes a part of three empty columns. Freezing holds
the plan and the run's own copy of the manifest. The first result waits for Ray's actors to start, and is in no other
column, nor in the time per image. Peak is the driver's resident memory at its highest, imports included. Where there
are several measurements their medians are shown. A driver that opens a learner for the first time imports torch
beside.
"""


def page(found: dict[int, list[dict[str, Any]]]) -> str:
    """All of it as Markdown."""
    heads = ["images", "shards", "measured", "listing s", "freezing s", "first result s", "dispatch s", "commit s"]
    heads += ["shards/s", "peak MiB", "of it imports MiB", "µs per image"]
    table = [heads, ["---:"] * len(heads), *(line(count, each) for count, each in found.items())]
    small, large = min(found), max(found)
    ratio = per_image(large, found[large]) / per_image(small, found[small])
    where = f"{os.cpu_count()} CPUs ({platform.machine()}), {ACTORS} Ray actors on the same CPUs"
    software = f"Python {platform.python_version()}, pyarrow {pa.__version__}"
    return "\n".join(
        [
            "# The driver",
            "",
            f"`python benchmarks/driver.py` on {datetime.now(UTC).date()}: {where}, {software}.",
            "",
            *("| " + " | ".join(cells) + " |" for cells in table),
            "",
            f"Time per image at {large:,} images against {small:,}: {ratio:.2f} (1 is linear).",
            "",
            ABOUT,
        ]
    )


def main() -> None:
    """Measure every size, and write the table."""
    text = page({count: [measured(count) for _ in range(times)] for count, times in REPEATS.items()})
    Path(__file__).with_suffix(".md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
