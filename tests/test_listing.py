"""The pages of a bucket: read here, as botocore reads them, and left to it where they look odd."""

from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
from servers import S3Server

from drivetrain import listing
from drivetrain.images import ObjectInfo
from drivetrain.store import Store

ODD = (
    "a b+%.jpg",
    "<b>&amp;.png",
    "line\nbreak.png",
    "tab\t.png",
    "bell\x07.png",
    "日本/写真 1.png",
    " lead.png",
    "a//b",
)
PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>
<Contents><Key>a%20b</Key><Size>3</Size><ETag>&#34;e1&#34;</ETag><LastModified>2026-01-02T03:04:05.000Z</LastModified>
</Contents><NextContinuationToken>next</NextContinuationToken></ListBucketResult>"""


def listed(store: Store, prefix: str, *, by_botocore: bool = False) -> list[ObjectInfo]:
    fs, _ = store._fs(prefix)
    fs.connect()
    fs.s3.meta.events.unregister("before-parse.s3.ListObjectsV2", unique_id="drivetrain")
    if not by_botocore:
        return list(store._listed(prefix))
    with patch.object(listing, "_read_objects", lambda **_: None):
        found = list(store._listed(prefix))
    fs.s3.meta.events.unregister("before-parse.s3.ListObjectsV2", unique_id="drivetrain")
    return found


@pytest.mark.slow
def test_a_listing_of_several_pages_is_what_botocore_makes_of_it(s3: S3Server) -> None:
    store, bucket = Store(s3.storage), s3.bucket()
    keys = [f"in/{number:04d}.jpg" for number in range(2100)] + [f"in/{key}" for key in ODD]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.create(f"{bucket}/{key}", key.encode()), keys))
    ours, answers = [], []
    reads = listing._read_objects

    def counted(response_dict: dict[str, object], customized_response_dict: dict[str, object], **more: object) -> None:
        reads(response_dict, customized_response_dict, **more)
        answers.append(len(customized_response_dict.get("Contents", [])))  # type: ignore[arg-type]

    with patch.object(listing, "_read_objects", counted):
        ours = listed(store, f"{bucket}/in")
    assert ours == listed(store, f"{bucket}/in", by_botocore=True)
    assert len(ours) == len(keys) == sum(answers) and len(answers) == 3
    assert len(store.first(f"{bucket}/in", 5)) == 5


def test_the_objects_of_a_page_are_taken_out_of_it() -> None:
    answer, taken = {"status_code": 200, "body": PAGE.encode()}, dict[str, object]()
    listing._read_objects(answer, taken)
    (found,) = taken["Contents"]  # type: ignore[misc]
    assert (found["Key"], found["Size"], found["ETag"]) == ("a%20b", 3, '"e1"')
    assert found["LastModified"].isoformat() == "2026-01-02T03:04:05+00:00"
    assert b"next" in answer["body"] and b"Contents" not in answer["body"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("was", "now"),
    [("<Size>3</Size>", ""), ("<Size>3", "<Size>"), ("&#34;e1&#34;", ""), ("2026-01-02", "yesterday"), ("</Key>", "")],
    ids=["no size", "empty size", "no etag", "no date", "no XML"],
)
def test_a_page_that_looks_odd_is_left_to_botocore(was: str, now: str) -> None:
    body, taken = PAGE.replace(was, now).encode(), dict[str, object]()
    assert body != PAGE.encode()
    answer = {"status_code": 200, "body": body}
    listing._read_objects(answer, taken)
    assert not taken and answer["body"] == body
