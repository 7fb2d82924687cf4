"""Bytes that suffer between a real S3 server and us are noticed, and an outage is told from a bad image."""

import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faulty import Proxy, Rule, faulty_proxy
from servers import S3Server

from drivetrain.fetch import MOST_OTHER_DIGESTS, MOST_SECONDS, PATIENCE, PAUSES, SUSPICIOUS, Fetcher, Outage
from drivetrain.store import Store

pytestmark = pytest.mark.slow

DATA = b"an image's bytes " * 100
READERS = 16
# obstore's, then s3fs's, then s3fs's after each pause.
REQUESTS_IN_SILENCE = 2 + len(PAUSES)


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
        # Not hasty: a job's own patience.
        fetcher = Fetcher(Store({"s3": {"endpoint_url": proxy.endpoint}}))
        found = list(pool.map(fetcher.read, images))
        requests = sum(count for (method, _), count in proxy.asked.items() if method == "GET")
    print(f"{requests / len(images):.2f} requests an object, {sum(each.error is not None for each in found)} lost")
    assert all(each.verified for each in found)
    assert requests <= 2 * len(images)


def gets_of(proxy: Proxy) -> int:
    return sum(count for (method, _), count in proxy.asked.items() if method == "GET")


def test_a_store_that_throttles_is_left_alone_by_all_readers_together(s3: S3Server) -> None:
    """It refuses 40 requests in a row, of whichever reader. What is on its way when the gate closes still arrives."""
    fetcher: Fetcher | None = None
    lock, refused, at_closed_gate = threading.Lock(), 0, 0

    def rule(method: str, path: str, nth: int) -> str | None:
        nonlocal refused, at_closed_gate
        with lock:
            if method != "GET" or fetcher is None or refused == 40:
                return None
            refused += 1
            at_closed_gate += fetcher.gate.left > 0
            return "503"

    with listed(s3, 200, rule) as (reading, images, proxy), ThreadPoolExecutor(READERS) as pool:
        fetcher = reading
        found = list(pool.map(fetcher.read, images))
        requests, closings = gets_of(proxy), fetcher.gate.closings
    assert all(each.verified for each in found)
    # Each reader could have two requests on their way: a first try is obstore's and s3fs's.
    assert 0 < closings <= 40 // 2 and at_closed_gate <= 2 * READERS * closings
    assert requests == len(images) + 40
    print(f"40 refusals closed the gate of {READERS} readers {closings} times; {at_closed_gate} came to a closed gate")


@pytest.mark.thorough
def test_a_store_that_takes_so_many_requests_a_second_loses_nothing(s3: S3Server) -> None:
    """50 a second, as a prefix of S3 takes 5,500: the others get 503."""
    lock, seconds = threading.Lock(), Counter[int]()

    def rule(method: str, path: str, nth: int) -> str | None:
        now = int(time.monotonic())
        with lock:
            seconds[now] += method == "GET"
            return "503" if method == "GET" and seconds[now] > 50 else None

    with listed(s3, 1000, rule) as (_, images, proxy), ThreadPoolExecutor(READERS) as pool:
        fetcher = Fetcher(Store({"s3": {"endpoint_url": proxy.endpoint}}))
        found = list(pool.map(fetcher.read, images))
        requests = gets_of(proxy)
    lost = sum(each.error is not None for each in found)
    print(f"50 requests a second: {requests / len(images):.2f} requests an object, {lost} of {len(images)} lost")
    assert lost == 0


def test_requests_that_never_are_answered_are_asked_again(s3: S3Server) -> None:
    with listed(s3, 40, gets("hang", 1)) as (_, images, proxy), ThreadPoolExecutor(READERS) as pool:
        fetcher = Fetcher(Store({"s3": {"endpoint_url": proxy.endpoint}}).hasty(1))
        found = list(pool.map(fetcher.read, images))
        requests = gets_of(proxy)
    assert all(each.verified for each in found)
    assert requests == 2 * len(images)
    print(f"the first request of each of {len(images)} objects hung: {requests} requests, 0 lost")


def test_an_object_that_is_never_answered_is_one_row_and_holds_up_no_other(s3: S3Server) -> None:
    def rule(method: str, path: str, nth: int) -> str | None:
        return "hang" if path.endswith("0007.jpg") else None

    with listed(s3, 40, rule) as (_, images, proxy), ThreadPoolExecutor(READERS) as pool:
        fetcher = Fetcher(Store({"s3": {"endpoint_url": proxy.endpoint}}).hasty(1))
        found = list(pool.map(fetcher.read, images))
        asked = sum(count for (_, path), count in proxy.asked.items() if path.endswith("0007.jpg"))
    assert [each.error.reason for each in found if each.error] == ["unreachable"]
    assert asked == REQUESTS_IN_SILENCE


def test_an_object_that_is_never_answered_costs_less_than_a_minute() -> None:
    assert REQUESTS_IN_SILENCE * PATIENCE + sum(PAUSES) <= MOST_SECONDS == 60


ALWAYS = dict.fromkeys(["hang", "503", "500", "reset", "short"], "unreachable") | {
    "403": "denied", "cut": "damaged", "html": "damaged",
}  # fmt: skip
# With a pause after each that adds up to a minute (503 is answered at once).
MOST_REQUESTS = 16


@pytest.mark.thorough
@pytest.mark.parametrize("fault", ALWAYS)
def test_an_object_that_always_fails_costs_one_row(s3: S3Server, fault: str) -> None:
    """With a job's own patience; the other objects beside it are well."""

    def rule(method: str, path: str, nth: int) -> str | None:
        return fault if path.endswith("0007.jpg") and method == "GET" else None

    with listed(s3, 40, rule) as (_, images, proxy), ThreadPoolExecutor(READERS) as pool:
        fetcher = Fetcher(Store({"s3": {"endpoint_url": proxy.endpoint}}))
        began = time.monotonic()
        found = list(pool.map(fetcher.read, images))
        seconds = time.monotonic() - began
        asked = next(count for (_, path), count in proxy.asked.items() if path.endswith("0007.jpg"))
    (row,) = [each.error for each in found if each.error]
    # The time is bounded by these: each waits as long as test_an_object_that_is_never_answered… adds up, or less.
    assert row.reason == ALWAYS[fault] and asked <= MOST_REQUESTS
    print(f"{fault}: {seconds:.1f} s and {asked} requests until the row says {row.reason}: {row}")
