"""A store in memory that dies, loses replies, or hands the turn to another writer, at any of its calls.

It is a filesystem of fsspec (`model://`), so that all of drivetrain's own store code works on it, and it keeps S3's
rules: a put is whole or not there, a conditional put has one winner, and a retry after a lost reply meets one's own
write as a 412. Each writer has a filesystem of its own over the same objects: `store("a")` and `store("b")`.

    world = World()
    with world.faults({3: "lost"}):      # the fourth call of the commands in this block
        command(world.store("a"))        # may raise Died
"""

import errno
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from random import Random
from threading import Condition, Lock
from types import SimpleNamespace
from typing import Any, Literal

import fsspec
from fsspec.spec import AbstractFileSystem

from drivetrain.store import Store

# before, after: the process is killed before or after the call took effect. lost: the call took effect, its reply was
# lost, and the client tried again. dropped: the call took effect, and all that comes back is an error.
Fault = Literal["before", "after", "lost", "dropped"]
FAULTS: tuple[Fault, ...] = ("before", "after", "lost", "dropped")

READER = "reader"

_worlds: dict[str, "World"] = {}
_names = count()


class Died(BaseException):
    """The process was killed here. No handler of errors may catch it."""


class World:
    """The objects of one store, and what happens at its calls."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.calls = 0
        self.watch: Callable[[], None] | None = None
        self.turns: Turns | None = None
        self._faults: Mapping[int, Fault] = {}
        self._lock = Lock()
        self._dead = False
        self._name = f"world{next(_names)}"
        _worlds[self._name] = self

    def store(self, writer: str) -> Store:
        """A store over these objects, with its calls counted."""
        return Store({"model": {"world": self._name, "writer": writer}})

    @contextmanager
    def faults(self, faults: Mapping[int, Fault]) -> Iterator[None]:
        """Let calls of the block fail, counted from 0 at its start. What died stays dead until its end."""
        self.calls, self._faults, self._dead = 0, faults, False
        try:
            yield
        finally:
            self._faults, self._dead = {}, False

    def call(self, writer: str, effect: Callable[[], Any], *, creates: bool = False) -> Any:
        """Do one call of a writer, as the world's faults and turns have it. The reader looks between two calls."""
        if writer == READER:
            return effect()
        with self.turns.of(writer) if self.turns else self._lock:
            fault = self._faults.get(self.calls)
            self.calls += 1
            if self._dead or fault == "before":
                self._die()
            try:
                result = effect()
            finally:
                if self.watch:
                    self.watch()
            if fault == "after":
                self._die()
            if fault == "dropped":
                raise ConnectionError("the connection broke before the reply")
            if fault == "lost" and creates:
                raise _exists_already()
            return result

    def _die(self) -> None:
        # Threads of the killed process are killed as well.
        self._dead = True
        raise Died


class Turns:
    """Whose call is next, drawn with a seed: the same seed gives the same interleaving."""

    def __init__(self, writers: list[str], seed: int) -> None:
        self._random, self._here, self._next = Random(seed), list(writers), ""
        self._changed = Condition()
        self._draw()

    def _draw(self) -> None:
        self._next = self._random.choice(self._here) if self._here else ""

    @contextmanager
    def of(self, writer: str) -> Iterator[None]:
        """Wait for a turn of this writer; hold it for one call."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._next == writer, 60), f"{writer} waits for {self._next} for ever"
            try:
                yield
            finally:
                self._draw()
                self._changed.notify_all()

    def done(self, writer: str) -> None:
        """A writer makes no more calls."""
        with self._changed:
            self._here.remove(writer)
            self._draw()
            self._changed.notify_all()


class ModelFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """One writer's way to a world."""

    # Store takes whatever knows "s3" for a store with conditional puts.
    protocol = ("model", "s3")
    cachable = False

    def __init__(self, world: str, writer: str, **options: Any) -> None:
        super().__init__(**options)
        self._world, self._writer = _worlds[world], writer

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("model://").rstrip("/")

    def _call(self, effect: Callable[[], Any], *, creates: bool = False) -> Any:
        return self._world.call(self._writer, effect, creates=creates)

    def _get(self, path: str) -> bytes:
        try:
            return self._world.objects[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        data: bytes = self._call(lambda: self._get(path))
        return data[start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        def put() -> None:
            if mode == "create" and path in self._world.objects:
                raise _exists_already()
            self._world.objects[path] = value

        self._call(put, creates=mode == "create")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            size = len(self._get(path))
            return {"name": path, "size": size, "type": "file", "LastModified": datetime(2026, 1, 2, tzinfo=UTC)}

        found: dict[str, Any] = self._call(look)
        return found

    def rm_file(self, path: str) -> None:
        self._call(lambda: self._world.objects.pop(path, None))

    def connect(self) -> None:
        """There is nobody to connect to, and no answer to read."""
        no_events = SimpleNamespace(register=lambda *_, **__: None)
        self.s3 = SimpleNamespace(meta=SimpleNamespace(events=no_events))

    def call_s3(self, method: str, **asked: Any) -> dict[str, Any]:
        """A HEAD, or a listing in one page; its bucket is always there."""
        if method == "head_object":
            return {"ContentLength": len(self._call(lambda: self._get(f"{asked['Bucket']}/{asked['Key']}")))}
        assert method == "list_objects_v2"
        prefix, delimiter = asked.get("Prefix", ""), asked.get("Delimiter")
        below = f"{asked['Bucket']}/{prefix}"

        def page() -> dict[str, Any]:
            objects = {key: data for key, data in sorted(self._world.objects.items()) if key.startswith(below)}
            folders = dict.fromkeys(
                key.removeprefix(below).split("/", 1)[0] for key in objects if delimiter and "/" in key[len(below) :]
            )
            contents = [
                {"Key": key.split("/", 1)[1], "Size": len(data), "LastModified": datetime(2026, 1, 2, tzinfo=UTC)}
                for key, data in objects.items()
                if key[len(below) :].split("/", 1)[0] not in folders
            ]
            return {"Contents": contents, "CommonPrefixes": [{"Prefix": f"{prefix}{each}/"} for each in folders]}

        found: dict[str, Any] = self._call(page)
        return found

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self.cat_file(path))


def _exists_already() -> OSError:
    return OSError(errno.EINVAL, "An error occurred (PreconditionFailed) when calling the PutObject operation")


fsspec.register_implementation("model", ModelFileSystem, clobber=True)
