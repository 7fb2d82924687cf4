"""How long a bucket's listing takes, and how much CPU, beside botocore reading each page by itself and obstore.

    python benchmarks/listing.py --objects 20000

SeaweedFS on this machine, without a delay: what counts is CPU, for a listing of ten million objects is 10,000 pages.
The three are asked in turns. obstore is here for its speed alone: it takes the slash from a key's end and other letters
for some. The table goes to stdout and to listing.md beside this file.
"""

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from unittest.mock import patch

import obstore
from tables import heading, publish, table

from drivetrain import listing
from drivetrain.obstore_reader import reader_of
from drivetrain.store import Store

# At the end: tests have a module `tables` too.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from servers import s3_server


def ways(store: Store, bucket: str) -> dict[str, Callable[[], int]]:
    """How to count the objects below photos/, by name."""
    fs, _ = store._fs(f"{bucket}/photos")
    reader = reader_of(fs, bucket.removeprefix("s3://"))
    assert reader is not None

    def ours() -> int:
        return sum(len(batch) for batch in store.listed(f"{bucket}/photos"))

    def by_botocore() -> int:
        fs.s3.meta.events.unregister("before-parse.s3.ListObjectsV2", unique_id="drivetrain")
        with patch.object(listing, "_read_objects", lambda **_: None):
            found = ours()
        fs.s3.meta.events.unregister("before-parse.s3.ListObjectsV2", unique_id="drivetrain")
        return found

    def by_obstore() -> int:
        return sum(map(len, obstore.list(reader._bucket, "photos", chunk_size=1000)))

    return {"drivetrain": ours, "botocore reads the pages": by_botocore, "obstore": by_obstore}


def measure(objects: int, repeats: int) -> list[list[object]]:
    """Rows of the table: medians of seconds, and of CPU seconds of this process."""
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = "benchmark", secrets.token_hex(16)
    with s3_server("benchmark", os.environ["AWS_SECRET_ACCESS_KEY"]) as server:
        store, bucket = Store(server.storage), server.bucket()
        with ThreadPoolExecutor(16) as pool:
            uris = (f"{bucket}/photos/{number % 7}/{number:08d}.jpg" for number in range(objects))
            list(pool.map(lambda uri: store.create(uri, b"x"), uris))
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(repeats):
            for name, count in ways(store, bucket).items():
                started, busy = time.perf_counter(), time.process_time()
                assert count() == objects, name
                taken = time.perf_counter() - started, time.process_time() - busy
                found.setdefault(name, []).append(taken)
    rows: list[list[object]] = []
    for name, each in found.items():
        seconds, cpu = (1e6 * median(column) / objects for column in zip(*each, strict=True))
        rows.append([name, f"{seconds:.0f}", f"{cpu:.0f}"])
    return rows


def main() -> None:
    """Fill a bucket and list it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    rows = measure(given.objects, given.repeats)
    lines = heading("Listing a bucket", "python benchmarks/listing.py", "s3fs", "aiobotocore", "obstore")
    lines += [f"{given.objects:,} objects in pages of 1,000; medians of {given.repeats}.", ""]
    heads = ["who reads", "µs an object", "µs of CPU an object, without the server's"]
    publish(__file__, [*lines, *table(heads, rows)])


if __name__ == "__main__":
    main()
