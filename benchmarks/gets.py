"""CPU and time of a GET from S3, by client: what reading an image costs beside scoring it.

    python benchmarks/gets.py --images FOLDER

The server is SeaweedFS on this machine; sixteen threads read, as an actor does. The table goes to stdout and to gets.md
beside this file: medians of the turns, clients in turns.
"""

import argparse
import os
import resource
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pyarrow.fs
from tables import heading, publish, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import S3Server, s3_server

from drivetrain.store import Store

Read = Callable[[str], bytes]


def clients(server: S3Server, store: Store) -> dict[str, Read]:
    """Who reads an object by its uri."""
    arrow = pyarrow.fs.S3FileSystem(endpoint_override=server.endpoint)

    def by_arrow(uri: str) -> bytes:
        with arrow.open_input_stream(uri.removeprefix("s3://")) as stream:
            return bytes(stream.read())

    return {"s3fs": store.read, "pyarrow (a HEAD, then a GET)": by_arrow, "drivetrain (obstore)": store.fetch}


def measured(read: Read, uris: list[str]) -> tuple[float, float]:
    """Milliseconds of this process's CPU, and of time, for each object."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, uris[:64]))
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        list(pool.map(read, uris))
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * cpu / len(uris), 1000 * seconds / len(uris)


def main() -> None:
    """Measure every client in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = "benchmark", secrets.token_hex(16)
    with s3_server("benchmark", os.environ["AWS_SECRET_ACCESS_KEY"]) as server:
        store, bucket = Store(server.storage), server.bucket()
        paths = sorted(path for path in Path(given.images).rglob("*") if path.is_file())[:2000]
        uris = [f"{bucket}/{path.name}" for path in paths]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda uri, path: store.create(uri, path.read_bytes()), uris, paths))
        readers = clients(server, store)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for _ in range(given.repeats):
            for name, read in readers.items():
                found[name].append(measured(read, uris))
    base = median(cpu for cpu, _ in found["s3fs"])
    rows = []
    for name, turns in found.items():
        cpu = median(cpu for cpu, _ in turns)
        rows.append([name, f"{cpu:.2f}", f"{cpu / base:.2f}", f"{median(wall for _, wall in turns):.2f}"])
    lines = heading("A GET from S3", "python benchmarks/gets.py", "s3fs", "aiobotocore", "obstore", "pyarrow")
    lines += [f"{len(uris):,} objects, 16 threads, no delay; medians of {given.repeats}.", ""]
    publish(__file__, [*lines, *table(["client", "CPU, ms", "of s3fs", "time, ms"], rows)])


if __name__ == "__main__":
    main()
