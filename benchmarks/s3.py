"""Images a second from S3 with a delay added to each request, beside the same from this machine's disk.

    python benchmarks/s3.py --images FOLDER --copies 3 --delay 30 resnet18.pkl

The server is SeaweedFS on this machine, behind a proxy that waits before it passes a request on; root and images lie in
it. Both cost CPU that a real S3 would not, on the cores that the actors need. So the photos are scored from disk a
second time, with a process beside that is as busy as these two were: what S3 itself costs is the ratio to that.
The learner is known. Each photo is scored under as many names as there are copies. The table goes to stdout
and to s3.md beside this file.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import uvloop  # comes with Evidently; half of asyncio's CPU, which the actors have then
from tables import heading, in_own_process, publish, table

# At the end: tests have a module `tables` too.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from servers import free_ports, s3_server

ABOUT = """\
Server and proxy run on the two cores that the actors need, where a real S3 does not. "Disk, as busy" is the same from
disk beside a process that takes as much CPU as the two took in the round of S3 before it."""
# Seconds within which that process is busy for its share.
PERIOD = 0.02


async def _serve(port: int, target: str, delay: float) -> None:
    host, _, at = target.removeprefix("http://").partition(":")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(at))
        answered = True

        async def up() -> None:
            nonlocal answered
            while data := await reader.read(2**16):
                if answered:
                    await asyncio.sleep(delay)
                    answered = False
                back.write(data)
                await back.drain()
            back.close()

        async def down() -> None:
            nonlocal answered
            while data := await there.read(2**18):
                answered = True
                writer.write(data)
                await writer.drain()
            writer.close()

        await asyncio.gather(up(), down(), return_exceptions=True)

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    await server.serve_forever()


def proxy(port: int, target: str, delay: float) -> None:
    """Pass connections on to a server, each request after a delay in seconds."""
    uvloop.run(_serve(port, target, delay))


def be_busy(share: float) -> None:
    """Take a share of one core for good, a little at a time as a server does."""
    busy = 0.0
    started = time.monotonic()
    while True:
        busy += share * PERIOD
        while time.process_time() < busy:
            pass
        time.sleep(max(0.0, started + busy / share - time.monotonic()))


def score(learner: str, images: str, root: str, endpoint: str, beside: list[int]) -> dict[str, Any]:
    """Seconds to score the images on two actors of a running cluster, and CPU seconds of some processes meanwhile.

    The learner is known.
    """
    from drivetrain import Config, cluster, score_images

    storage: Any = {"s3": {"endpoint_url": endpoint}} if endpoint else {}
    with cluster.connected(None, 2):
        config = Config(root=root, learner=learner, source="bench", actors=2, storage=storage)
        some = f"{images.rstrip('/')}-some"
        score_images(config.model_copy(update={"images": some, "name": "known"}))
        before, started = [used(psutil.Process(pid)) for pid in beside], time.perf_counter()
        score_images(config.model_copy(update={"images": images, "name": "measured"}))
        seconds = time.perf_counter() - started
        cpu = [used(psutil.Process(pid)) - was for pid, was in zip(beside, before, strict=True)]
        return {"seconds": seconds, "cpu": cpu}


def used(process: psutil.Process) -> float:
    """CPU seconds of a process and its children."""
    each = [process, *process.children(recursive=True)]
    return float(sum(one.cpu_times().user + one.cpu_times().system for one in each))


@contextmanager
def busy(share: float) -> Iterator[psutil.Process]:
    """A process that takes a share of one core until the block ends."""
    process = multiprocessing.get_context("spawn").Process(target=be_busy, args=(share,), daemon=True)
    process.start()
    yield psutil.Process(process.pid)
    process.terminate()


def fill(put: Any, folder: Path, copies: int) -> int:
    """Put the photos, and a few of them for the learner to be known, by ``put(name, data)``."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    todo = [(f"photos/{copy}/{path.name}", path) for copy in range(copies) for path in paths] + [
        (f"photos-some/{path.name}", path) for path in paths[:64]
    ]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: put(one[0], one[1].read_bytes()), todo))
    return copies * len(paths)


def measure(learner: str, images: str, copies: int, delay: float, repeats: int) -> dict[str, Any]:
    """Score from disk and from S3 in turns."""
    from drivetrain.store import Store

    found: dict[str, Any] = {"disk": [], "s3": [], "busy": [], "server": [], "proxy": [], "beside": []}
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = "benchmark", secrets.token_hex(16)
    with s3_server("benchmark", os.environ["AWS_SECRET_ACCESS_KEY"]) as server, tempfile.TemporaryDirectory() as disk:
        (port,) = free_ports(1)
        passing = multiprocessing.get_context("spawn").Process(
            target=proxy, args=(port, server.endpoint, delay / 1000), daemon=True
        )
        passing.start()
        store, bucket = Store(server.storage), server.bucket()
        found["images"] = fill(lambda name, data: store.create(f"{bucket}/{name}", data), Path(images), copies)
        fill(lambda name, data: Store().create(f"{disk}/{name}", data), Path(images), copies)
        weed = next(one for one in psutil.Process().children(recursive=True) if "weed" in one.name())
        ours = ["--endpoint", f"http://127.0.0.1:{port}", "--beside", f"{weed.pid}", "--beside", f"{passing.pid}"]

        def one(kind: str, turn: int) -> dict[str, Any]:
            base = bucket if kind == "s3" else disk
            about = ["--one", "--images", f"{base}/photos", "--root", f"{base}/root-{kind}-{turn}", learner]
            return in_own_process(__file__, *about, *(ours if kind == "s3" else []))

        for turn in range(repeats):
            # Each goes first in its turn, should the machine grow slower or faster; S3 before what is as busy.
            for kind in (("disk", "s3", "busy"), ("s3", "busy", "disk"))[turn % 2]:
                if kind == "busy":
                    share = (found["server"][-1] + found["proxy"][-1]) / found["s3"][-1]
                    with busy(share) as process:
                        found[kind].append(one(kind, turn)["seconds"])
                        found["beside"].append(used(process))
                    continue
                scored = one(kind, turn)
                found[kind].append(scored["seconds"])
                if kind == "s3":
                    for name, seconds in zip(("server", "proxy"), scored["cpu"], strict=True):
                        found[name].append(seconds)
        print({kind: found[kind] for kind in ("disk", "s3", "busy")}, file=sys.stderr)
        passing.terminate()
    return found


def main() -> None:
    """Measure every learner, or, with --one, score once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("learners", nargs="+")
    parser.add_argument("--images", required=True)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--delay", type=float, default=30.0, help="milliseconds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true")
    parser.add_argument("--root")
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--beside", type=int, action="append", default=[])
    given = parser.parse_args()
    if given.one:
        print(json.dumps(score(given.learners[0], given.images, given.root, given.endpoint, given.beside)))
        return
    rows = []
    for learner in given.learners:
        found = measure(learner, given.images, given.copies, given.delay, given.repeats)
        seconds = {kind: median(times) for kind, times in found.items() if kind != "images"}
        disk, s3, as_busy = (found["images"] / seconds[kind] for kind in ("disk", "s3", "busy"))
        ratios = [f"{s3 / disk:.3f}", f"{s3 / as_busy:.3f}"]
        others = [f"{seconds[kind]:.1f}" for kind in ("server", "proxy", "beside")]
        rows.append([Path(learner).stem, *(f"{rate:.1f}" for rate in (disk, as_busy, s3)), *ratios, *others])
        photos = found["images"]
    lines = heading("From S3", "python benchmarks/s3.py", "torch", "ray", "openvino", "s3fs", "aiobotocore")
    lines += [f"{photos:,} photos, {given.delay:.0f} ms a request; medians of {given.repeats}.", ""]
    heads = ["learner", "disk, images/s", "disk, as busy", "S3", "S3 of disk", "S3 of disk, as busy"]
    heads += ["server's CPU, s", "proxy's", "the busy process's"]
    publish(__file__, [*lines, *table(heads, rows), "", ABOUT])


if __name__ == "__main__":
    main()
