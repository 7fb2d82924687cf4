"""What disks, keys and buckets do to a run: a clear line, the right exit code, no commit, and then it goes on."""

import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import learners
import pandas as pd
import pytest
from faulty import faulty_proxy
from servers import S3Server

from drivetrain.store import Store

pytestmark = pytest.mark.slow
IMAGES = 130


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    learners.write_digits(folder, 0, IMAGES)
    return folder


def score(
    digits_export: learners.Exported, images: object, root: object, *more: str, before: Callable[[], None] | None = None
) -> tuple[int, str]:
    """The exit code of `drivetrain score` and all that it said."""
    command = [
        sys.executable,
        "-m",
        "drivetrain.cli",
        "score",
        "--learner",
        digits_export.path,
        "--images",
        str(images),
    ]
    command += ["--root", str(root), "--source", "s", "--name", "n", "--actors", "0", "--engine", "torch", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=before)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    return done.returncode, said


def no_large_file() -> None:
    """As on a disk with a little room: small files fit, a part does not."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.thorough
def test_a_disk_without_room_for_a_part(digits_export: learners.Exported, digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert score(digits_export, digits, root, "--name", "other")[0] == 0, "the learner is known from here on"
    code, said = score(digits_export, digits, root, before=no_large_file)
    assert code == 1 and "Could not write" in said and "part-00000.parquet" in said
    assert "What is finished is kept; the same command goes on." in said
    (run,) = root.glob("runs/s-n-*")
    assert not (run / "commit.json").exists() and not list(run.glob("parts/*"))
    assert not list(root.rglob("*.tmp")), "what is half written takes no room"
    code, said = score(digits_export, digits, root)
    assert code == 0 and len(pd.read_parquet(run / "parts")) == IMAGES


@pytest.mark.thorough
def test_keys_that_expire_in_the_middle_of_a_run(
    s3: S3Server, digits_export: learners.Exported, digits: Path, tmp_path: Path
) -> None:
    """For reads and writes alike, as a session's end is."""
    bucket, store = s3.bucket(), Store(s3.storage)
    for path in digits.iterdir():
        store.create(f"{bucket}/images/{path.name}", path.read_bytes())
    with faulty_proxy(s3.endpoint, lambda method, path, nth: None) as proxy:

        def expires(method: str, path: str, nth: int) -> str | None:
            # 70 images: the first shard is done by then, and the second is not.
            read = sum(count for (how, which), count in proxy.asked.items() if how == "GET" and "/images/" in which)
            return "expired" if read > 70 else None

        proxy.rule = expires
        about = ("--storage", f"s3.endpoint_url={proxy.endpoint}")
        code, said = score(digits_export, f"{bucket}/images", f"{bucket}/root", *about)
        # Whatever is asked for first: the first part is written, or the next shard's images are read.
        first = r"^Error: (Could not write|the store refused|The store hands out no image)"
        assert code == 1 and re.search(first, said, re.MULTILINE), said
        assert "token has expired" in said
        assert "What is finished is kept; the same command goes on." in said and "Traceback" not in said
        names = [each.uri for each in store.find(f"{bucket}/root")]
        assert not [name for name in names if name.endswith("commit.json")]
        proxy.rule = lambda method, path, nth: None
        code, said = score(digits_export, f"{bucket}/images", f"{bucket}/root", *about)
    assert code == 0 and f"{IMAGES:,} images, 0 failed" in said


def test_a_head_that_is_refused_says_why(s3: S3Server) -> None:
    """Its own answer has no body, so that all of `Bad Request` was known."""
    uri, store = f"{s3.bucket()}/there", Store(s3.storage)
    store.create(uri, b"something")
    with faulty_proxy(s3.endpoint, lambda method, path, nth: "expired") as proxy:
        refused = Store({"s3": {**s3.storage["s3"], "endpoint_url": proxy.endpoint}})
        for ask in (refused.exists, refused.about, lambda uri: refused.open(uri).__enter__()):
            with pytest.raises(OSError, match="token has expired"):
                ask(uri)
        proxy.rule = lambda method, path, nth: None
        assert refused.exists(uri) and not refused.exists(f"{uri}-not")


@pytest.mark.parametrize(
    ("images", "root", "code", "line"),
    [
        ("{tmp}/nothing", "{tmp}/root", 2, "No image below"),
        ("{tmp}/one.png", "{tmp}/root", 1, "Expected a folder of images, found a file"),
        ("{digits}", "/proc/root-of-a-run", 1, "Correct --root"),
        ("s3://no-such-bucket-here/x", "{tmp}/root", 1, "there is no bucket no-such-bucket-here"),
    ],
    ids=["empty prefix", "one object", "read-only output", "missing bucket"],
)
def test_what_cannot_work_says_so_and_leaves_no_commit(
    images: str, root: str, code: int, line: str, s3: S3Server, digits_export: learners.Exported, digits: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "nothing").mkdir()
    (tmp_path / "one.png").write_bytes(next(digits.iterdir()).read_bytes())
    filled = {"tmp": tmp_path, "digits": digits}
    found, said = score(
        digits_export, images.format(**filled), root.format(**filled), "--storage", f"s3.endpoint_url={s3.endpoint}"
    )
    assert (found, line in said) == (code, True), said
    assert not list(tmp_path.rglob("commit.json"))
