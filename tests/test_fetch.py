"""Bytes that suffer between a real S3 server and us are noticed, and an outage is told from a bad image."""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faulty import Proxy, Rule, faulty_proxy
from servers import S3Server

from drivetrain.fetch import MOST_OTHER_DIGESTS, SUSPICIOUS, Fetcher, Outage
from drivetrain.store import Store

pytestmark = pytest.mark.slow

DATA = b"an image's bytes " * 100


@contextmanager
def listed(s3: S3Server, number: int, rule: Rule) -> Iterator[tuple[Fetcher, list[dict[str, Any]], Proxy]]:
    """Objects on a real server, as its listing has them, and a fetcher that reads them through a proxy."""
    bucket, store = s3.bucket(), Store(s3.storage)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: store.create(f"{bucket}/{i:04}.jpg", DATA + bytes([i % 256])), range(number)))
    images = [each._asdict() for each in store.find(bucket)]
    with faulty_proxy(s3.endpoint, rule) as proxy:
        yield Fetcher(Store({"s3": {"endpoint_url": proxy.endpoint}}).hasty(3)), images, proxy


def gets(fault: str, times: int) -> Rule:
    """Spoil the first so many GETs of each object."""
    return lambda method, path, nth: fault if method == "GET" and nth <= times else None


@pytest.mark.parametrize("fault", ["cut", "flip", "crc", "html", "reset", "503"])
def test_an_answer_that_is_spoilt_once_is_read_again(s3: S3Server, fault: str) -> None:
    with listed(s3, 4, gets(fault, 1)) as (fetcher, images, proxy):
        found = [fetcher.read(image) for image in images]
    assert [(each.data, each.verified, each.error) for each in found] == [
        (DATA + bytes([i]), True, None) for i in range(4)
    ]
    assert sum(number for (method, _), number in proxy.asked.items() if method == "GET") == 8


@pytest.mark.parametrize(
    ("fault", "reason"), [("cut", "damaged"), ("crc", "damaged"), ("html", "damaged"), ("403", "denied")]
)
def test_an_answer_that_is_always_spoilt_is_a_row(s3: S3Server, fault: str, reason: str) -> None:
    with listed(s3, 1, gets(fault, 99)) as (fetcher, images, proxy):
        error = fetcher.read(images[0]).error
    assert error is not None
    assert error.reason == reason, error
    assert proxy.asked["GET", next(path for method, path in proxy.asked if method == "GET")] <= 4


def test_etags_that_are_no_md5_are_unverified_and_soon_not_read_twice(s3: S3Server) -> None:
    """Behind a proxy that flips a bit of every body, all reads agree, and none with the etag: as with SSE-KMS."""
    number = MOST_OTHER_DIGESTS + 4
    with listed(s3, number, gets("flip", 99)) as (fetcher, images, proxy):
        found = [fetcher.read(image) for image in images]
    assert all(each.error is None and not each.verified and len(each.data) == len(DATA) + 1 for each in found)
    assert sum(count for (method, _), count in proxy.asked.items() if method == "GET") == number + MOST_OTHER_DIGESTS


def test_an_object_replaced_since_the_listing_is_changed(s3: S3Server) -> None:
    bucket, store = s3.bucket(), Store(s3.storage)
    store.create(f"{bucket}/a.jpg", b"first")
    (image,) = [each._asdict() for each in store.find(bucket)]
    store.replace(f"{bucket}/a.jpg", b"other")
    error = Fetcher(store).read(image).error
    assert error is not None
    assert error.reason == "changed"


def test_a_local_file_replaced_by_one_of_the_same_size_is_changed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"first")
    (image,) = [each._asdict() for each in Store().find(str(tmp_path))]
    assert Fetcher(Store()).read(image).error is None
    (tmp_path / "a.jpg").write_bytes(b"other")
    os.utime(tmp_path / "a.jpg", (1, 1))
    error = Fetcher(Store()).read(image).error
    assert error is not None
    assert error.reason == "changed"


@pytest.mark.parametrize("fault", ["403", "reset"])
def test_a_store_that_hands_out_nothing_is_an_outage_and_comes_back(s3: S3Server, fault: str) -> None:
    with listed(s3, 20, gets(fault, 99)) as (fetcher, images, proxy):
        with ThreadPoolExecutor(SUSPICIOUS) as pool:
            asked = [pool.submit(fetcher.read, image) for image in images[:SUSPICIOUS]]
        assert sum(isinstance(each.exception(), Outage) for each in asked) == 1
        assert all(each.exception() or each.result().error for each in asked)
        before = proxy.asked.total()
        with pytest.raises(Outage):
            fetcher.read(images[-1])
        assert proxy.asked.total() == before, "an outage is known; nobody asks on"
        proxy.rule = lambda method, path, nth: None
        fetcher.hope()
        assert all(fetcher.read(image).verified for image in images)


def test_a_closed_prefix_in_an_open_bucket_is_rows(s3: S3Server) -> None:
    with listed(s3, 30, lambda method, path, nth: "403" if path[-8:] > "0000.jpg" else None) as (fetcher, images, _):
        found = [fetcher.read(image) for image in images]
    assert found[0].verified
    assert [each.error.reason for each in found[1:] if each.error] == ["denied"] * 29


def test_a_closed_prefix_that_comes_first_is_rows_too(s3: S3Server) -> None:
    """An actor whose first shard was closed once took that for an outage, and the run could never end."""
    readable = f"{s3.bucket()}/run.json"
    Store(s3.storage).create(readable, b"{}")
    with listed(s3, 20, lambda method, path, nth: "403" if path.endswith(".jpg") else None) as (_, images, proxy):
        fetcher = Fetcher(Store({"s3": {"endpoint_url": proxy.endpoint}}), readable)
        found = [fetcher.read(image) for image in images]
    assert [each.error.reason for each in found if each.error] == ["denied"] * 20


@pytest.mark.thorough
def test_throttling_loses_nothing_and_costs_few_requests(s3: S3Server) -> None:
    """30 % of all requests get 503, over 2,000 objects."""

    def rule(method: str, path: str, nth: int) -> str | None:
        return "503" if method == "GET" and zlib.crc32(f"{path[-8:]} {nth}".encode()) % 10 < 3 else None

    with listed(s3, 2000, rule) as (_, images, proxy), ThreadPoolExecutor(16) as pool:
        # Not hasty: a job's own patience, which asks many more times than a look does.
        fetcher = Fetcher(Store({"s3": {"endpoint_url": proxy.endpoint}}))
        found = list(pool.map(fetcher.read, images))
        requests = sum(count for (method, _), count in proxy.asked.items() if method == "GET")
    print(f"{requests / len(images):.2f} requests an object, {sum(each.error is not None for each in found)} lost")
    assert all(each.verified for each in found)
    assert requests <= 2 * len(images)
