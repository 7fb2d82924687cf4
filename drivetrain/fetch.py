"""One image's bytes, held against what the manifest says of them; and the difference between a bad image and an outage.

Knows size, etag and MD5, and what a store answers. Does not know what an image is. A body that was cut or flipped on
its way is read again. An image that the store refuses is a row; a store that hands out nothing is no result: it raises,
and nothing of it is written.
"""

import hashlib
from dataclasses import dataclass
from threading import Lock
from typing import Any

from drivetrain.errors import ImageError, StoreError
from drivetrain.images import ObjectInfo
from drivetrain.store import Store, refusal

# Reads of one image whose bytes are not the listed ones.
MOST_READS = 3
# Refused images in a row, after which the store itself is asked for.
SUSPICIOUS = 8
# Images whose bytes came twice the same and are not what their etag says: etags are no MD5s here (SSE-KMS).
MOST_OTHER_DIGESTS = 8


class Outage(StoreError):
    """The store hands out nothing; what was asked for since is no result."""


@dataclass(frozen=True)
class Fetched:
    """One image's bytes, or the ImageError that came instead. ``verified``: the bytes match the store's MD5."""

    data: bytes
    verified: bool
    error: ImageError | None = None


class Fetcher:
    """Reads the images of one run. May be used by many threads.

    ``readable`` is the uri of an object that could be read a moment ago: it tells a closed prefix from an outage while
    no image has been read yet.
    """

    def __init__(self, store: Store, readable: str = "") -> None:
        self._readable = readable
        self._store, self._lock = store, Lock()
        self._refused, self._other_digests = 0, 0
        self._last_read = ""
        self._outage = ""

    def hope(self) -> None:
        """Ask the store again after an outage."""
        self._refused, self._outage = 0, ""

    def read(self, image: dict[str, Any]) -> Fetched:
        """Read one image of a manifest. Raises Outage when the store hands out nothing any more."""
        if self._outage:
            raise Outage(self._outage)
        try:
            fetched = self._checked(image)
        except FileNotFoundError as error:
            return _failed("vanished", f"{type(error).__name__}: it was there when listed")
        except PermissionError as error:
            return self._refuse(image["uri"], _failed("denied", f"{type(error).__name__}: {error}"[:300]))
        except (OSError, StoreError) as error:
            return self._refuse(image["uri"], _failed("unreachable", f"{type(error).__name__}: {error}"[:300]))
        self._refused, self._last_read = 0, image["uri"]
        return fetched

    def _checked(self, image: dict[str, Any]) -> Fetched:
        data, etag = self._store.fetch(image["uri"])
        if (not etag or etag == image["etag"]) and (verified := self._fits(image, data)) is not None:
            return Fetched(data, verified)
        return self._again(image, data)

    def _again(self, image: dict[str, Any], data: bytes) -> Fetched:
        """What came is not what was listed: is it another object now, or did the bytes suffer on their way?"""
        for _ in range(MOST_READS - 1):
            now = self._store.about(image["uri"])
            if change := _change(image, now):
                return Fetched(data, False, ImageError("changed", change))
            before = data
            try:
                data = self._store.read(image["uri"])
            except OSError as error:
                # botocore holds the bytes against a checksum where the store has one.
                if refusal(error) != "FlexibleChecksumError":
                    raise
                continue
            if (verified := self._fits(image, data)) is not None:
                return Fetched(data, verified)
            if data == before and len(data) == image["size"]:
                self._other_digests += 1
                return Fetched(data, False)
        text = f"read {MOST_READS} times, never the bytes that the store's size and etag tell of"
        return Fetched(data, False, ImageError("damaged", text))

    def _fits(self, image: dict[str, Any], data: bytes) -> bool | None:
        """Whether the bytes are proved to be the listed ones, or None when they can't be those."""
        if image["size"] is not None and len(data) != image["size"]:
            return None
        etag = image["etag"] or ""
        looks_like_md5 = len(etag) == 32 and not set(etag) - set("0123456789abcdef")
        if looks_like_md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
            return True
        return None if looks_like_md5 and self._other_digests < MOST_OTHER_DIGESTS else False

    def _refuse(self, uri: str, failed: Fetched) -> Fetched:
        """Count an image that the store did not hand out; after some in a row, ask it for one that it did."""
        with self._lock:
            if self._outage:
                raise Outage(self._outage)
            self._refused += 1
            if self._refused < SUSPICIOUS:
                return failed
            same_store = self._store.where(self._readable) == self._store.where(uri)
            known = self._last_read or (self._readable if self._readable and same_store else "")
            if known and self._answers(known):
                self._refused = 0
                return failed
            self._outage = f"The store hands out no image any more: {failed.error}"
            raise Outage(self._outage)

    def _answers(self, uri: str) -> bool:
        try:
            self._store.peek(uri, 1)
        except FileNotFoundError:
            return True
        except (OSError, StoreError):
            return False
        return True


def _failed(reason: str, text: str) -> Fetched:
    return Fetched(b"", False, ImageError(reason, text))


def _change(image: dict[str, Any], now: ObjectInfo) -> str:
    """What the store says of the object now that it did not say when it was listed, or an empty text."""
    if image["size"] is not None and now.size != image["size"]:
        return f"listed with {image['size']} bytes, now {now.size}"
    if image["etag"] and now.etag != image["etag"]:
        return f"listed with etag {image['etag']}, now {now.etag}"
    return ""
