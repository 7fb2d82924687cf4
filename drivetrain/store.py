"""The only way to object storage: local folders, S3, and whatever else fsspec knows.

Knows uris and bytes. Does not know what a file means. A local uri is its absolute path.

create(uri, data)    conditional: the object holds ``data`` in full, or it holds what another writer put there first.
                     No reader sees a part of it. S3 and others: a conditional put. Locally: a hidden file in the folder
                     above, fsync, hard link. A store without conditional puts gets "look, then write", with a race.
replace(uri, data)   for derived files: the last writer wins, and no reader sees a part.

A conditional put whose reply was lost comes back as "exists already" on one's own write, so after every such answer
the object is read back and compared.
"""

import errno
import mimetypes
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError

from drivetrain.config import Options, without_secrets
from drivetrain.errors import StoreError
from drivetrain.images import ObjectInfo, batches_of, in_order
from drivetrain.listing import entries, inside, is_object, local_object, object_info
from drivetrain.obstore_reader import delta_options, reader_of

# Of an object that is written piece by piece.
WRITTEN_AT_ONCE = 16 * 1024**2
# A Prometheus takes a file for metrics only if it is sent as text. A map of our own: whoever calls mimetypes.init, as
# some library does, takes from the shared one what others added to it.
KINDS = mimetypes.MimeTypes()
KINDS.add_type("text/plain", ".prom")


class Store:
    """Reads and writes objects by uri. Cheap to make and to pickle; holds no open connection of its own."""

    def __init__(self, options: Options | None = None, tries: int | None = None) -> None:
        self.options, self._tries = options or {}, tries

    def hasty(self, seconds: float) -> "Store":
        """The same store, for a look: S3 is asked once and given so many seconds. A job asks again for minutes."""
        patience: Any = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": 1}}
        bounded = {name: {"config_kwargs": patience} | self.options.get(name, {}) for name in ("s3", "s3a")}
        return Store({**self.options, **bounded})

    def once(self, seconds: float) -> "Store":
        """The same store for a caller who asks again by himself: each read of S3 is one request, of so much silence."""
        options = dict(self.hasty(seconds).options)
        for name in ("s3", "s3a"):
            config: Any = options[name]["config_kwargs"]
            options[name] = {**options[name], "config_kwargs": config | {"retries": {"total_max_attempts": 1}}}
        return Store(options, tries=1)

    def where(self, uri: str) -> str:
        """Who is asked for a uri, for messages: an endpoint, a protocol, or this machine."""
        protocol = "this machine" if self.is_local(uri) else uri.split("://", 1)[0]
        if protocol not in ("s3", "s3a"):
            return protocol
        set_here = self.options.get(protocol, {}).get("endpoint_url")
        by_environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return without_secrets(str(set_here or by_environment or "Amazon S3"))

    def _fs(self, uri: str) -> tuple[Any, str]:
        protocol = uri.split("://", 1)[0] if "://" in uri else "file"
        options: dict[str, Any] = dict(self.options.get(protocol, {}))
        if protocol in ("s3", "s3a"):
            options = {"use_listings_cache": False} | options
        try:
            fs = fsspec.filesystem(protocol, **options)
        except (ValueError, ImportError, TypeError) as error:
            raise StoreError(f"No way to read {uri}: {error}") from error
        if self._tries and protocol in ("s3", "s3a"):
            # s3fs asks again by itself, beside botocore, and knows no option for that.
            fs.retries = self._tries
        path = fs._strip_protocol(uri)
        if protocol in ("s3", "s3a") and "?versionId=" in path:
            raise StoreError(f"s3fs would read another object than {uri}: rename it, its key must not hold ?versionId=")
        return fs, path

    def normalise(self, uri: str) -> str:
        """The uri as drivetrain stores it: absolute, without a slash at its end."""
        if "://" not in uri or uri.startswith("file://"):
            return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
        return uri.rstrip("/")

    def is_local(self, uri: str) -> bool:
        """Whether the uri is a path on this machine's disk."""
        return "://" not in uri

    def read(self, uri: str) -> bytes:
        """All bytes of an object. Raises FileNotFoundError, PermissionError, or OSError as the store has it."""
        fs, path = self._fs(uri)
        # s3fs would ask for the size first, to read a large object in pieces: two requests for each small one.
        whole = {"max_concurrency": 1} if "s3" in fs.protocol else {}
        with _os_errors():
            data: bytes = fs.cat_file(path, **whole)
        return data

    def fetch(self, uri: str) -> tuple[bytes, str | None]:
        """All bytes of one object of very many, and its etag where that is told at no cost.

        As `read`, and raises as it does, for less CPU where the store is S3 or a disk.
        """
        if self.is_local(uri):
            return local_object(uri)
        fs, path = self._fs(uri)
        bucket, _, key = path.partition("/")
        reader = reader_of(fs, bucket) if "s3" in fs.protocol else None
        if reader and (found := reader.read(key)):
            return found
        data = self.read(uri)
        if reader:
            reader.outdone()
        return data, None

    def about(self, uri: str) -> ObjectInfo:
        """What the store says of an object now. Raises as `read` does."""
        fs, path = self._fs(uri)
        with self._reasons(uri), _os_errors():
            return object_info(uri, path, fs.info(path))

    def peek(self, uri: str, most: int) -> bytes:
        """The first bytes of an object. Raises as `read` does."""
        fs, path = self._fs(uri)
        with _os_errors():
            data: bytes = fs.cat_file(path, start=0, end=most)
        return data

    def exists(self, uri: str) -> bool:
        """Whether there is such an object."""
        fs, path = self._fs(uri)
        # Not fs.isfile: it takes every error for a no.
        with suppress(FileNotFoundError, NotADirectoryError), self._reasons(uri), _os_errors():
            return is_object(fs, path)
        return False

    @contextmanager
    def _reasons(self, uri: str) -> Iterator[None]:
        """Why S3 refuses a HEAD: that answer has no body to say so, as that of a GET has."""
        try:
            yield
        except OSError as error:
            if not self.is_local(uri) and (isinstance(error, PermissionError) or error.errno == errno.EINVAL):
                self.peek(uri, 1)
            raise

    def create(self, uri: str, data: bytes) -> bool:
        """Create the object unless it exists; True if it now holds exactly ``data``, whoever wrote it.

        Raises StoreError when the store refuses. ``data`` must not be empty: a store may not be exclusive then.
        """
        assert data, "an empty object can't be created exclusively on every store"
        try:
            if self.is_local(uri):
                return self._link(uri, data)
            fs, path = self._fs(uri)
            with _os_errors():
                if "s3" not in fs.protocol and fs.exists(path):
                    return bool(fs.cat_file(path) == data)
                fs.pipe_file(path, data, mode="create", **_content_type(fs, uri))
            return True
        except OSError as error:
            try:
                return self.read(uri) == data
            except OSError:
                raise StoreError(f"Could not write {uri}: {error}") from error

    def _link(self, uri: str, data: bytes) -> bool:
        folder = os.path.dirname(uri)
        os.makedirs(folder, exist_ok=True)
        temporary = self._temporary(uri, data)
        try:
            os.link(temporary, uri)
        finally:
            os.unlink(temporary)
        _sync_folder(folder)
        return True

    def _temporary(self, uri: str, data: bytes) -> str:
        # In the folder above: a glob over the folder itself must never meet a file that is half there.
        # But a volume's top folder has nothing above it on the same disk.
        folder = os.path.dirname(uri)
        above = os.path.dirname(folder)
        if os.stat(above).st_dev != os.stat(folder).st_dev or not os.access(above, os.W_OK):
            above = folder
        path = os.path.join(above, f".{uuid.uuid4().hex}.tmp")
        try:
            with open(path, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # On a full disk, what is half written takes the room that is left.
            with suppress(OSError):
                os.unlink(path)
            raise
        return path

    def replace(self, uri: str, data: bytes) -> None:
        """Write a derived object, over one that may be there. Raises StoreError when the store refuses."""
        try:
            if self.is_local(uri):
                os.makedirs(os.path.dirname(uri), exist_ok=True)
                os.replace(self._temporary(uri, data), uri)
            else:
                fs, path = self._fs(uri)
                with _os_errors():
                    fs.pipe_file(path, data, **_content_type(fs, uri))
        except OSError as error:
            raise StoreError(f"Could not write {uri}: {error}") from error

    def delete(self, uri: str) -> None:
        """Remove one object; one that is gone already is no error. Raises StoreError when the store refuses."""
        fs, path = self._fs(uri)
        try:
            with suppress(FileNotFoundError), _os_errors():
                fs.rm_file(path)
        except OSError as error:
            raise StoreError(f"Could not remove {uri}: {error}") from error

    def names(self, folder: str) -> list[str]:
        """The names directly inside a folder, sorted; empty if there is no such folder."""
        fs, path = self._fs(folder)
        try:
            with _os_errors():
                # The folder's own name among them: an empty object that a store's console made for it.
                found = (entry.rstrip("/") for entry in inside(fs, path) if entry.rstrip("/") != path)
                names = (entry.rsplit("/", 1)[-1] for entry in found)
                return sorted(name for name in names if name and not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            self._need_bucket(folder)
            return []
        except OSError as error:
            raise StoreError(f"Could not list {folder}: {error}") from error

    def _need_bucket(self, uri: str) -> None:
        """Nothing there is an answer; no bucket there is a mistake. Raises StoreError."""
        fs, path = self._fs(uri)
        bucket = path.split("/", 1)[0]
        if "s3" not in fs.protocol:
            return
        try:
            with _os_errors():
                fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except OSError as error:
            raise StoreError(f"Could not list {uri}: bucket {bucket}: {error}") from error

    def find(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below a prefix, in the order of their keys.

        Raises StoreError when the prefix can't be listed; yields nothing when nothing is there.
        """
        # Sorted here: S3 lists in this order, but servers that keep folders, and local disks, do not.
        return iter(in_order(self.listed(prefix)))

    def listed(self, prefix: str) -> Iterator[pa.RecordBatch]:
        """What `find` finds, in the order in which the store lists it, as batches of columns (schema IMAGE)."""
        return batches_of(self._listed(prefix))

    def first(self, prefix: str, most: int) -> list[ObjectInfo]:
        """Some objects below a prefix, the first ones that the store names: a look, where `listed` is all of them.

        Raises StoreError when the prefix can't be listed, with what the store said as its cause.
        """
        return list(islice(self._listed(prefix), most))

    def _listed(self, prefix: str) -> Iterator[ObjectInfo]:
        fs, path = self._fs(prefix)
        if self.is_local(prefix) and os.path.isfile(path):
            raise StoreError(f"Expected a folder of images, found a file: {prefix}")
        try:
            with _os_errors():
                for name, entry in entries(fs, path, self.is_local(prefix)):
                    if not name.endswith("/"):  # a console's empty folder
                        yield object_info(prefix, name, entry)
        except FileNotFoundError:
            self._need_bucket(prefix)
        except OSError as error:
            raise StoreError(f"Could not list {prefix}: {error}") from error

    @contextmanager
    def open(self, uri: str) -> Iterator[IO[bytes]]:
        """Open an object to read parts of it. Raises as `read` does."""
        fs, path = self._fs(uri)
        with self._reasons(uri), _os_errors():
            file = fs.open(path, "rb")
        with file:
            yield file

    @contextmanager
    def writing(self, uri: str) -> Iterator[IO[bytes]]:
        """Open a new object to write it piece by piece, under a name that nobody else uses or looks for yet.

        Not conditional, and locally a part of it can be seen: what names it must be written afterwards. It is on the
        disk when the block ends; after an error in the block S3 holds nothing of it.
        Raises OSError as the store has it.
        """
        fs, path = self._fs(uri)
        if self.is_local(uri):
            os.makedirs(os.path.dirname(uri), exist_ok=True)
            with open(uri, "xb") as local:
                yield local
                local.flush()
                os.fsync(local.fileno())
            return
        with _os_errors():
            file = fs.open(path, "wb", block_size=WRITTEN_AT_ONCE)
            try:
                yield file
            except BaseException:
                file.discard()
                file.closed = True
                raise
            file.close()

    def delta_options(self, uri: str) -> dict[str, str]:
        """What the Delta library must be told to reach a uri as this store does, with the credentials of the moment.

        They are secrets, to be shown nowhere. Empty for a local uri, and for stores that it knows by its environment.
        """
        fs, _ = self._fs(uri)
        with _os_errors():
            return delta_options(fs) if "s3" in fs.protocol else {}

    def read_table(self, uri: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file, or some of its columns."""
        if columns is None:
            return pq.read_table(pa.BufferReader(self.read(uri)))
        with self.open(uri) as file:
            return pq.read_table(file, columns=columns)


def refusal(error: BaseException | None) -> str:
    """The store's own word for why it refused (NoSuchBucket, NoCredentialsError), or an empty text.

    WebPage stands for an answer that no S3 server gives: one for a browser.
    """
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict) and "Error" in answer:
            headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            if str(headers.get("content-type", "")).startswith("text/html"):
                return "WebPage"
            return str(answer["Error"].get("Code", ""))
        if isinstance(error, BotoCoreError):
            return type(error).__name__
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def _os_errors() -> Iterator[None]:
    """Errors of botocore (no connection, no credentials) and aiohttp (a body that breaks off) are no OSErrors.

    Callers know only these.
    """
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(without_secrets(str(error))) from error
    except (BotoCoreError, ClientError) as error:
        raise ConnectionError(without_secrets(str(error))) from error


def _content_type(fs: Any, uri: str) -> dict[str, str]:
    """What S3 must be told for a browser to show a page instead of saving it."""
    kind = KINDS.guess_type(uri)[0] if "s3" in fs.protocol else None
    return {"ContentType": kind} if kind else {}


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
