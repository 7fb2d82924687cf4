"""What lies below a prefix, as each kind of store lists it.

Knows the entries of fsspec's filesystems and the pages of S3. Does not know what is done with an object.

Three quarters of the CPU that botocore alone takes for a page of S3 go into reading the answer as Python objects
(benchmarks/listing.md). So the objects of a page are read here, in the form that botocore gives them, and botocore
reads the rest; a page that looks odd is left to it as a whole.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from drivetrain.images import ObjectInfo

Entry = Mapping[str, Any]


def entries(fs: Any, path: str, local: bool) -> Iterable[tuple[str, Entry]]:
    """Each object below a path, with what the store says of it. Raises what the store's filesystem raises."""
    if local:
        return _local_entries(fs, path)
    return _s3_entries(fs, path) if "s3" in fs.protocol else _entries(fs, path)


def _entries(fs: Any, path: str) -> Iterable[tuple[str, Entry]]:
    """Whatever fsspec finds below a path, all of it in memory."""
    entries: dict[str, Entry] = fs.find(path, detail=True)
    return entries.items()


def _s3_entries(fs: Any, path: str) -> Iterator[tuple[str, Entry]]:
    """The objects below a path page by page: fs.find would hold all of them, several times over."""
    bucket, key, _ = fs.split_path(path)
    found = False
    for page in _s3_pages(fs, bucket, key):
        for entry in page.get("Contents", []):
            found = True
            yield f"{bucket}/{entry['Key']}", {"size": entry["Size"], **entry}
    if not found and key:
        info = fs.info(path)  # the prefix may be an object itself
        if info["type"] == "file":
            yield path, info


def _s3_pages(fs: Any, bucket: str, key: str, **more: str) -> Iterator[Mapping[str, Any]]:
    request = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", **more}
    fs.connect()
    # Once for a client, however often: botocore knows it by its id.
    fs.s3.meta.events.register("before-parse.s3.ListObjectsV2", _read_objects, unique_id="drivetrain")
    page = fs.call_s3("list_objects_v2", **request)
    with ThreadPoolExecutor(1) as ahead:
        coming: Future[Mapping[str, Any]] | None = None
        while True:
            yield page
            if not page.get("IsTruncated"):
                return
            page = coming.result() if coming else fs.call_s3("list_objects_v2", **_after(page, request))
            if page.get("IsTruncated"):
                # The third page and all others are on their way while the one before is gone through. Who takes a look
                # needs the first alone.
                coming = ahead.submit(fs.call_s3, "list_objects_v2", **_after(page, request))


def _after(page: Mapping[str, Any], request: dict[str, str]) -> dict[str, str]:
    return request | {"ContinuationToken": page["NextContinuationToken"]}


def _read_objects(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Take the objects out of a page's answer before botocore reads that.

    What it is called with, and that the second dictionary is laid over what it reads, is botocore's event before-parse.
    """
    with suppress(ElementTree.ParseError, KeyError, ValueError, TypeError):
        if response_dict["status_code"] != 200:
            return
        page = ElementTree.fromstring(response_dict["body"])
        objects = [each for each in page if _name(each) == "Contents"]
        told = [{_name(about): about.text for about in each} for each in objects]
        found = [
            {
                "Key": each["Key"],
                "Size": int(each["Size"] or ""),
                "ETag": each["ETag"],
                "LastModified": datetime.fromisoformat(each["LastModified"] or ""),
            }
            for each in told
        ]
        if found and all(each["Key"] and each["ETag"] for each in found):
            page[:] = [each for each in page if _name(each) != "Contents"]
            response_dict["body"] = ElementTree.tostring(page)
            customized_response_dict["Contents"] = found


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def inside(fs: Any, path: str) -> Iterator[str]:
    """The paths directly inside a folder. Raises what the store's filesystem raises; no such folder may be none."""
    if "s3" not in fs.protocol:
        yield from fs.ls(path, detail=False)
        return
    # s3fs's ls lists the folder above as well when it finds nothing.
    bucket, key, _ = fs.split_path(path)
    for page in _s3_pages(fs, bucket, key, Delimiter="/"):
        yield from (f"{bucket}/{entry['Prefix']}" for entry in page.get("CommonPrefixes", []))
        yield from (f"{bucket}/{entry['Key']}" for entry in page.get("Contents", []))


def is_object(fs: Any, path: str) -> bool:
    """Whether a path is an object, and no folder. Raises what the store's filesystem raises, which may be a no."""
    if "s3" not in fs.protocol:
        return bool(fs.info(path)["type"] == "file")
    # s3fs's info looks for a folder of that name when it finds nothing.
    bucket, key, _ = fs.split_path(path)
    fs.call_s3("head_object", Bucket=bucket, Key=key)
    return True


def _local_entries(fs: Any, path: str) -> Iterator[tuple[str, Entry]]:
    """The files below a folder. A link is a file, wherever it leads: links in a circle end no listing."""
    folders = [path]
    while folders:
        folder = folders.pop()
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
            for each in found:
                if each.is_dir(follow_symlinks=False):
                    folders.append(each.path)
                    continue
                with suppress(FileNotFoundError):
                    info = fs.info(each)
                    if each.is_symlink():
                        with suppress(OSError):  # it may lead nowhere
                            info = fs.info(each.path)  # with the time of what it leads to, not its own
                    yield _as_text(info["name"]), info


def _as_text(name: str) -> str:
    """A file's name as text. One whose bytes are no Unicode is spelt out, so that it is a row, and can't be read."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def local_object(path: str) -> tuple[bytes, str | None]:
    """All bytes of a file, and its etag as a listing tells it."""
    with open(path, "rb", buffering=0) as file:
        data, found = file.read(), os.fstat(file.fileno())
    return data, object_info(path, path, {"size": found.st_size, "mtime": found.st_mtime}).etag


def object_info(prefix: str, name: str, entry: Entry) -> ObjectInfo:
    """An object as one of its listing's entries, or what the store says of it alone, tells."""
    size = int(entry.get("size") or 0)
    when = entry.get("mtime") or entry.get("LastModified") or entry.get("created") or entry.get("last_modified")
    mtime = datetime.fromtimestamp(when, UTC) if isinstance(when, int | float) else when
    if "://" not in prefix:
        return ObjectInfo(name, size, f"{int(float(when or 0) * 1e9)}-{size}", mtime)
    etag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash") or (str(mtime) if mtime else "")
    return ObjectInfo(f"{prefix.split('://', 1)[0]}://{name.lstrip('/')}", size, str(etag).strip('"'), mtime)
