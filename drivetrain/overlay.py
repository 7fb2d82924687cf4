"""A store that writes nothing: what is written stays in memory and is read back from there, all else is the real one's.

Knows uris and bytes. A command that only says what it would do goes the same road as one that does it, over this store:
it can't leave anything behind, because there is no way from here to a write. What was written goes with the object; an
actor that gets the store gets a copy of it.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from drivetrain.config import Options
from drivetrain.errors import StoreError
from drivetrain.store import Store


class Overlay(Store):
    """Reads as the real store does, and keeps what is written to itself."""

    def __init__(
        self, options: Options | None = None, tries: int | None = None, written: dict[str, bytes] | None = None
    ) -> None:
        super().__init__(options, tries)
        self._written = {} if written is None else written

    def only(self, *folders: str) -> "Overlay":
        """The same store with what was written below some folders alone: what is sent to actors."""
        kept = {
            uri: data for uri, data in self._written.items() if uri.startswith(tuple(f"{each}/" for each in folders))
        }
        return Overlay(self.options, self._tries, kept)

    def hasty(self, seconds: float) -> "Overlay":
        """As `Store.hasty`; what is written through it is there for the first one too."""
        return Overlay(super().hasty(seconds).options, None, self._written)

    def once(self, seconds: float) -> "Overlay":
        """As `Store.once`; what is written through it is there for the first one too."""
        plain = super().once(seconds)
        return Overlay(plain.options, plain._tries, self._written)

    def read(self, uri: str) -> bytes:
        """All bytes of an object, written here or real. Raises as `Store.read` does."""
        return self._written[uri] if uri in self._written else super().read(uri)

    def fetch(self, uri: str) -> tuple[bytes, str | None]:
        """All bytes of an object, written here or real. Raises as `Store.fetch` does."""
        return (self._written[uri], None) if uri in self._written else super().fetch(uri)

    def exists(self, uri: str) -> bool:
        """Whether there is such an object, written here or real."""
        return uri in self._written or super().exists(uri)

    @contextmanager
    def open(self, uri: str) -> Iterator[IO[bytes]]:
        """Open an object, written here or real, to read parts of it."""
        if uri in self._written:
            yield io.BytesIO(self._written[uri])
            return
        with super().open(uri) as file:
            yield file

    def names(self, folder: str) -> list[str]:
        """The names directly inside a folder, those written here and the real ones, sorted."""
        inside = folder.rstrip("/") + "/"
        here = {uri.removeprefix(inside).split("/", 1)[0] for uri in list(self._written) if uri.startswith(inside)}
        return sorted({*here, *super().names(folder)})

    def create(self, uri: str, data: bytes) -> bool:
        """Keep the object unless it exists; True if it now holds exactly ``data``. The real store is only read."""
        assert data, "an empty object can't be created exclusively on every store"
        if uri in self._written or super().exists(uri):
            return self.read(uri) == data
        return self._written.setdefault(uri, data) == data

    def replace(self, uri: str, data: bytes) -> None:
        """Keep the object; the real store is not asked."""
        self._written[uri] = data

    def delete(self, uri: str) -> None:
        """Never done. Raises StoreError."""
        raise StoreError(f"Not removed, since nothing is written here: {uri}")
