"""A run over odd keys: each key's row bears the very key, and what was scored is the object that lies there."""

import hashlib
import io
import os
import unicodedata
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
from flat_s3 import flat_s3
from PIL import Image
from servers import S3Server

from drivetrain import Config, score_images
from drivetrain.root import open_root
from drivetrain.run import Run

pytestmark = pytest.mark.slow

# Each looks like another to a careless reader: decoded, cut, matched as a pattern, or normalised.
FILES = (
    "a b.png", "a+b.png", "a%20b.png", "a%2Bb.png", "100%.png", "%", "%zz.png", "%2e%2e%2fup.png", "a#b.png", "a",
    "a?b.png", "a?b", "?", "a&b=c;d,e.png", "a'b\"c.png", "line\nbreak.png", "tab\there.png", "\r", "star*.png",
    "star-1.png", "[x].png", "x.png", "{a,b}.png", "{night}.png", "${HOME}.png", "~", "~root.png", "a:b.png", "s3:",
    "@at.png", "a=b/c=d.png", "Upper.png", "upper.png", " leading.png", "trailing.png ", "trailing.png", "dot.",
    "no-suffix", unicodedata.normalize("NFC", "été.png"), unicodedata.normalize("NFD", "été.png"), "日本/写真 1.png",
    "\U0001f600.png", "\u202egnp.png", "\ufeffbom.png", "\x1b[2J.png", "\x7f.png", "<b>&amp;.png", "$(touch x).png",
    "-rf", "nul\u2400.png", "a.../b.. .png", "/".join(["k" * 224] * 4) + ".png", "deep/" * 60 + "a.png",
)  # fmt: skip
# What a disk can't have, and SeaweedFS makes something else of: to S3 a key is a row of letters, and a slash is one.
FLAT = (
    "e//b.png", "e/b.png", "//c.png", "c.png", "d///e//f.png", "y.png", "x/y.png", "back\\slash.png", "back/slash.png",
    "p", "p/q.png",
)  # fmt: skip
# Hidden like all that begins with a dot, so that no key leads out of the prefix.
UPWARDS = ("x/../y.png", "x/./y.png", "../z.png", "é/../é.png")
# By design no image: counted, and left where they are.
HIDDEN = (".hidden.png", "..a/b.png", "_thumbs/1.png", "h/.cache/1.png")
VERSION = "what?versionId=1"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> learners.Exported:
    folder = tmp_path_factory.mktemp("train")
    learners.write_digits(folder, 1000, 1300, by_label=True)
    return learners.exported(learners.digits_learner(folder, epochs=1), folder.parent / "export.pkl")


def picture(key: bytes) -> bytes:
    """An image that no other key has."""
    seed = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (28, 28, 3), np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def rows_of(config: Config) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A run's result, and its rows by uri."""
    result = score_images(config)
    rows = Run.find(*open_root(config), result["run_id"]).rows(["uri", "status", "error", "error_text", "content_hash"])
    found = {row["uri"]: row for row in rows.to_pylist()}
    assert len(found) == len(rows) == result["rows"]
    return result, found


def of_its_own(found: dict[str, dict[str, Any]], uri: str, key: str) -> bool:
    return bool(found[uri]["content_hash"] == hashlib.sha256(picture(key.encode())).hexdigest())


def test_odd_keys_of_a_bucket(s3: S3Server, exported: learners.Exported) -> None:
    bucket, client = s3.bucket(), s3.client()
    client.connect()
    for key in (*FILES, *HIDDEN, VERSION):
        about = {"Bucket": bucket.removeprefix("s3://"), "Key": f"in/{key}", "Body": picture(key.encode())}
        client.call_s3("put_object", **about)
    result, found = rows_of(config_of(exported, f"{bucket}/root", f"{bucket}/in", s3.storage))
    assert result["skipped"] == {"hidden": len(HIDDEN)}
    # s3fs would read another version of the object `what` in its place: a row that says so, and the run goes on.
    failed = found.pop(f"{bucket}/in/{VERSION}")
    assert failed["status"] == "failed" and "versionId" in failed["error_text"], failed
    assert set(found) == {f"{bucket}/in/{key}" for key in FILES}
    for uri, row in found.items():
        assert row["status"] == "ok" and of_its_own(found, uri, uri.removeprefix(f"{bucket}/in/")), row
    print(
        f"SeaweedFS: {len(found)} odd keys, uris byte-equal, each its own bytes; one with ?versionId= is a failed row"
    )


def test_keys_of_a_store_that_keeps_them_as_they_are(
    aws_environment: None, tmp_path: Path, exported: learners.Exported
) -> None:
    keys = (*FILES, *FLAT)
    with flat_s3({f"in/{key}": picture(key.encode()) for key in (*keys, *UPWARDS)}) as endpoint:
        storage = {"s3": {"endpoint_url": endpoint}}
        result, found = rows_of(config_of(exported, str(tmp_path / "root"), "s3://flat/in", storage))
    assert result["skipped"] == {"hidden": len(UPWARDS)}
    assert set(found) == {f"s3://flat/in/{key}" for key in keys}
    for uri, row in found.items():
        assert row["status"] == "ok" and of_its_own(found, uri, uri.removeprefix("s3://flat/in/")), row
    print(f"a store that keeps keys as they are: {len(found)} odd keys, uris byte-equal, each its own bytes")


def config_of(exported: learners.Exported, root: str, images: str, storage: Any = None) -> Config:
    about = {"root": root, "images": images, "storage": storage or {}, "source": "odd", "name": "odd"}
    return Config(learner=exported.path, actors=0, max_failed=1.0, engine="torch", **about)


def test_odd_names_on_a_disk(tmp_path: Path, exported: learners.Exported) -> None:
    folder = tmp_path / "in"
    for key in (*FILES, *HIDDEN, VERSION):
        put(folder, key.encode())
    # Bytes that are no text in any encoding of ours.
    put(folder, b"latin-\xe9.png")
    result, found = rows_of(config_of(exported, str(tmp_path / "root"), str(folder)))
    assert result["skipped"] == {"hidden": len(HIDDEN)}
    (unnamed,) = (row for uri, row in found.items() if "latin" in uri)
    assert unnamed["status"] == "failed" and unnamed["uri"] == f"{folder}/latin-\\xe9.png", unnamed
    found.pop(unnamed["uri"])
    assert set(found) == {f"{folder}/{key}" for key in (*FILES, VERSION)}
    for uri, row in found.items():
        assert row["status"] == "ok" and of_its_own(found, uri, uri.removeprefix(f"{folder}/")), row
    print(
        f"disk: {len(found)} odd names, uris byte-equal, each its own bytes; a name that is no Unicode is a failed row"
    )


def put(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(picture(name))


@pytest.mark.parametrize("prefix", ["in [x] 100%", "in*", "in?a", "in#a", "été", "e\u0301te\u0301", "in+a b"])
def test_an_odd_prefix(prefix: str, s3: S3Server, exported: learners.Exported) -> None:
    bucket, client = s3.bucket(), s3.client()
    client.connect()
    for key in (f"{prefix}/1.png", "in x 100%/2.png", "in/3.png", "ina/4.png", "in a b/5.png"):
        about = {"Bucket": bucket.removeprefix("s3://"), "Key": key, "Body": picture(key.encode())}
        client.call_s3("put_object", **about)
    _, found = rows_of(config_of(exported, f"{bucket}/root", f"{bucket}/{prefix}", s3.storage))
    assert set(found) == {f"{bucket}/{prefix}/1.png"}
    assert of_its_own(found, f"{bucket}/{prefix}/1.png", f"{prefix}/1.png")
