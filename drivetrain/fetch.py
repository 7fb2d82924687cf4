"""One image's bytes, held against what the manifest says of them; and the difference between a bad image and an outage.

Knows size, etag and MD5, and what a store answers. Does not know what an image is. A body that was cut or flipped on
its way is read again. An image that the store refuses is a row; a store that hands out nothing is no result: it raises,
and nothing of it is written.

Nobody below tries again: each request is counted here. A store that throttles is asked more slowly by all readers of a
Fetcher together, and as long as an image may take; what else passes (silence, a broken line, an internal error) is
asked for a few times more.
"""

import hashlib
import time
from dataclasses import dataclass
from random import uniform
from threading import Lock
from typing import Any

from drivetrain.errors import ImageError, StoreError
from drivetrain.images import ObjectInfo
from drivetrain.store import Store, refusal

# Reads of one image whose bytes are not the listed ones.
MOST_READS = 3
# Seconds that one image may take; then it is a row.
MOST_SECONDS = 60.0
# Seconds of silence after which a request is given up.
PATIENCE = 10.0
# Seconds before an image is tried again for which the line broke. A first try is two requests, obstore's and s3fs's.
PAUSES = (0.5, 1.0, 2.0)
# Seconds for which a store that throttles is left alone, first and most.
FIRST_PAUSE, MOST_PAUSE = 0.1, 5.0
THROTTLES = frozenset(
    ["SlowDown", "ServiceUnavailable", "503", "429", "TooManyRequests", "RequestLimitExceeded", "ThrottlingException"]
)
PASSING = frozenset(["InternalError", "RequestTimeout", "500", "502", "504"])
# Refused images in a row, after which the store itself is asked for.
SUSPICIOUS = 8
# Bytes of an uncompressed pixel, four channels of 16 bits; and what a small image may have beside them (frames, EXIF).
PIXEL_SIZE, BESIDE = 8, 64 * 1024**2
# Images whose bytes came twice the same and are not what their etag says: etags are no MD5s here (SSE-KMS).
MOST_OTHER_DIGESTS = 8


def most_bytes(max_pixels: int) -> int:
    """The bytes of the largest object that can be an image of so many pixels."""
    return PIXEL_SIZE * max_pixels + BESIDE


class Outage(StoreError):
    """The store hands out nothing; what was asked for since is no result."""


@dataclass(frozen=True)
class Fetched:
    """One image's bytes, or the ImageError that came instead. ``verified``: the bytes match the store's MD5."""

    data: bytes
    verified: bool
    error: ImageError | None = None


class Gate:
    """One back-off for many readers: while a store throttles one of them, none of them asks."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pause = FIRST_PAUSE
        self._closed = self._opens = float("-inf")
        self.closings = 0

    @property
    def left(self) -> float:
        """Seconds until it opens."""
        return max(0.0, self._opens - time.monotonic())

    def passed(self, until: float) -> bool:
        """Wait until it is open; False if that would be later than ``until``."""
        while left := self.left:
            if time.monotonic() + left > until:
                return False
            # Not all at once when it opens.
            time.sleep(left + uniform(0, self._pause))
        return True

    def close(self, asked: float) -> None:
        """The store throttled a request. One that was on its way when the gate closed last says nothing new."""
        with self._lock:
            if asked > self._closed:
                self._closed = time.monotonic()
                self._opens = self._closed + self._pause
                self._pause = min(MOST_PAUSE, 2 * self._pause)
                self.closings += 1

    def ease(self) -> None:
        """The store answered: trust it a little more."""
        with self._lock:
            self._pause = max(FIRST_PAUSE, 0.9 * self._pause)


class Fetcher:
    """Reads the images of one run. May be used by many threads.

    ``readable`` is the uri of an object that could be read a moment ago: it tells a closed prefix from an outage while
    no image has been read yet. Objects of more than ``most`` bytes are not read: they would fill the memory before
    anybody could look at their pixels.
    """

    def __init__(self, store: Store, readable: str = "", most: int | None = None) -> None:
        self._readable, self._most = readable, most
        self._store, self._lock = store.once(PATIENCE), Lock()
        self.gate = Gate()
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
            if self._most is not None and (size := self._size(image)) > self._most:
                return _failed("too_large", f"{size:,} bytes; images of max_pixels have at most {self._most:,}")
            fetched = self._patiently(image)
        except FileNotFoundError as error:
            return _failed("vanished", f"{type(error).__name__}: it was there when listed")
        except PermissionError as error:
            return self._refuse(image["uri"], _failed("denied", f"{type(error).__name__}: {error}"[:300]))
        except (OSError, StoreError) as error:
            return self._refuse(image["uri"], _failed("unreachable", f"{type(error).__name__}: {error}"[:300]))
        self._refused, self._last_read = 0, image["uri"]
        return fetched

    def _size(self, image: dict[str, Any]) -> int:
        """The bytes of an image as listed; asked for where the listing did not tell, since only the store knows."""
        size = image["size"] if image["size"] is not None else self._store.about(image["uri"]).size
        return size or 0

    def _patiently(self, image: dict[str, Any]) -> Fetched:
        """Read an image, again where that may help. Raises what it met last."""
        last_start = time.monotonic() + MOST_SECONDS - PATIENCE
        error: OSError = TimeoutError(f"the store throttled for {MOST_SECONDS:.0f} s")
        pauses, first = list(PAUSES), True
        while not self._outage and self.gate.passed(last_start):
            asked = time.monotonic()
            try:
                fetched = self._checked(image, first)
            except OSError as met:
                error, first = met, False
            else:
                self.gate.ease()
                return fetched
            if refusal(error) in THROTTLES:
                self.gate.close(asked)
            elif not pauses or not _passes(error):
                break
            else:
                time.sleep(pauses.pop(0))
        raise error

    def _checked(self, image: dict[str, Any], first: bool) -> Fetched:
        uri = image["uri"]
        data, etag = self._store.fetch(uri) if first else (self._store.read(uri), None)
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


def _passes(error: OSError) -> bool:
    """Whether the same request may be answered a moment later."""
    return isinstance(error, ConnectionError | TimeoutError) or refusal(error) in PASSING


def _failed(reason: str, text: str) -> Fetched:
    return Fetched(b"", False, ImageError(reason, text))


def _change(image: dict[str, Any], now: ObjectInfo) -> str:
    """What the store says of the object now that it did not say when it was listed, or an empty text."""
    if image["size"] is not None and now.size != image["size"]:
        return f"listed with {image['size']} bytes, now {now.size}"
    if image["etag"] and now.etag != image["etag"]:
        return f"listed with etag {image['etag']}, now {now.etag}"
    return ""
