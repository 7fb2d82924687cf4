"""Images that obstore reads from a real S3 server are those that s3fs reads, and what it can't read s3fs does."""

import time
from typing import Any
from unittest.mock import patch

import pytest
import s3fs
from servers import S3Server

from drivetrain import obstore_reader
from drivetrain.obstore_reader import MOST_REFUSALS, ObstoreReader, reader_of
from drivetrain.store import Store

pytestmark = pytest.mark.slow

ODD = (
    "a b+%.jpg",
    "ü#?x[1]*.jpg",
    "e\u0301.jpg",
    "q//r.jpg",
    "new\nline.jpg",
    "%2e%2f.jpg",
    "/".join(["k" * 224] * 4),
    "a",
    "a?b",
    "a#b",
)


def test_odd_keys_give_the_bytes_that_lie_there(s3: S3Server) -> None:
    store, bucket = Store(s3.storage), s3.bucket()
    for key in ODD:
        assert store.create(f"{bucket}/{key}", key.encode())
    assert {key: store.fetch(f"{bucket}/{key}")[0] for key in ODD} == {key: key.encode() for key in ODD}


def test_s3fs_is_not_asked_for_a_plain_key(s3: S3Server) -> None:
    store, uri = Store(s3.storage), f"{s3.bucket()}/photo.jpg"
    store.create(uri, b"bytes")
    with patch.object(s3fs.S3FileSystem, "_cat_file", side_effect=AssertionError("s3fs was asked")):
        assert store.fetch(uri) == (b"bytes", store.about(uri).etag)


def test_credentials_are_not_asked_for_before_every_image(s3: S3Server) -> None:
    store, uri, asked = Store(s3.storage), f"{s3.bucket()}/photo.jpg", []
    store.create(uri, b"bytes")
    given = obstore_reader._credentials

    def counted(fs: Any) -> Any:
        current = given(fs)
        return lambda: asked.append(1) or current()

    reader_of.cache_clear()
    with patch.object(obstore_reader, "_credentials", counted):
        until = time.monotonic() + 1  # obstore asks at most every 100 ms, however short they last
        while time.monotonic() < until:
            store.fetch(uri)
    reader_of.cache_clear()
    assert len(asked) == 1


def test_what_is_not_there_is_s3fs_error(s3: S3Server) -> None:
    with pytest.raises(FileNotFoundError):
        Store(s3.storage).fetch(f"{s3.bucket()}/nothing.jpg")


def test_a_wrong_secret_is_denied(s3: S3Server) -> None:
    bucket = s3.bucket()
    Store(s3.storage).create(f"{bucket}/x", b"bytes")
    wrong = Store({"s3": {**s3.storage["s3"], "key": s3.access_key, "secret": "wrong"}})
    with pytest.raises(PermissionError):
        wrong.fetch(f"{bucket}/x")


@pytest.mark.parametrize("option", [{"requester_pays": True}, {"client_kwargs": {"verify": False}}, {"anon": True}])
def test_settings_that_obstore_would_not_heed_leave_it_to_s3fs(s3: S3Server, option: dict[str, Any]) -> None:
    assert reader_of(s3fs.S3FileSystem(endpoint_url=s3.endpoint), "b") is not None
    assert reader_of(s3fs.S3FileSystem(endpoint_url=s3.endpoint, **option), "b") is None


class _Refusing:
    """Counts how often it is asked, and reads nothing."""

    asked = 0

    def get(self, key: str) -> bytes:
        self.asked += 1
        raise OSError("no")


def test_a_server_that_obstore_can_not_read_is_left_to_s3fs() -> None:
    bucket = _Refusing()
    reader = ObstoreReader(bucket)
    assert {reader.read("k") for _ in range(50)} == {None}
    assert bucket.asked == 50, "nobody could read it: it may be the store"
    for _ in range(50):
        assert reader.read("k") is None
        reader.outdone()
    assert bucket.asked == 50 + MOST_REFUSALS
