"""The servers of the tests are real, and the store keeps its word on all of them: local folder, memory, and S3."""

import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from servers import MARK, RayCluster, S3Server, free_ports, marked, poll, running

from drivetrain.errors import StoreError
from drivetrain.fetch import Fetched, Fetcher
from drivetrain.images import ObjectInfo
from drivetrain.several import AT_ONCE, several_at_once
from drivetrain.store import Store

ODD_NAMES = (
    "with space.jpg",
    " leading and trailing ",
    "100%.jpg",
    "%20.jpg",
    "1+1=2.jpg",
    "a#b.jpg",
    "what?.jpg",
    "star*.jpg",
    "[x].jpg",
    "{a,b}.jpg",
    "~.jpg",
    "a&b;c,d'e.jpg",
    'say "cheese".jpg',
    "line\nbreak.jpg",
    "été-nfc.jpg",
    "e\u0301te\u0301-nfd.jpg",
    "日本/写真 1.jpg",
    "no-suffix",
    "x" * 200,
)


class Home:
    """An empty place on one kind of store: ``uri`` is its prefix, ``store`` reaches it."""

    def __init__(self, uri: str, store: Store) -> None:
        self.uri = uri
        self.store = store

    def __truediv__(self, key: str) -> str:
        return f"{self.uri}/{key}"


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest) -> Home:
    return make_home(request.param, request)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def exclusive_home(request: pytest.FixtureRequest) -> Home:
    """A place on a store that has conditional puts; memory has none, and says so."""
    return make_home(request.param, request)


def make_home(kind: str, request: pytest.FixtureRequest) -> Home:
    if kind == "local":
        # One level down: create may put its temporary file beside the place, and must tidy it up.
        return Home(str(request.getfixturevalue("tmp_path") / "home"), Store())
    if kind == "memory":
        return Home(f"memory://{secrets.token_hex(8)}", Store())
    server: S3Server = request.getfixturevalue("s3")
    return Home(server.bucket(), Store(server.storage))


def test_create_says_whether_the_object_holds_these_bytes(home: Home) -> None:
    uri = home / "runs/1/commit.json"
    assert home.store.create(uri, b"first") is True
    assert home.store.create(uri, b"first") is True, "a repeat of one's own write is done already"
    assert home.store.create(uri, b"second") is False
    assert home.store.create(uri, b"firs") is False
    assert home.store.read(uri) == b"first"


def test_what_is_missing_can_not_be_read(home: Home) -> None:
    home.store.create(home / "there", b"1")
    with pytest.raises(FileNotFoundError):
        home.store.read(home / "nowhere/absent")
    assert not home.store.exists(home / "nowhere/absent")
    assert home.store.exists(home / "there")


def test_replace_lets_the_last_writer_win(home: Home) -> None:
    uri = home / "runs/1/status.json"
    home.store.replace(uri, b"first, and the longer one")
    home.store.replace(uri, b"second")
    assert home.store.read(uri) == b"second"
    assert home.store.create(uri, b"first, and the longer one") is False
    with home.store.open(uri) as file:
        file.seek(3)
        assert file.read(2) == b"on"


def test_names_are_those_directly_inside(home: Home) -> None:
    for key in ("b.json", "a 1.json", "deep/er/c.json", ".hidden/d.json", ".e"):
        home.store.create(home / f"records/{key}", b"1")
    home.store.create(home / "records-of-another/f.json", b"1")
    assert home.store.names(home / "records") == ["a 1.json", "b.json", "deep"]
    assert home.store.names(home / "records/deep") == ["er"]
    assert home.store.names(home / "absent") == []


def test_a_listing_is_never_an_old_one(home: Home) -> None:
    for number in range(3):
        home.store.create(home / f"records/{number}", b"1")
        assert home.store.names(home / "records") == [str(other) for other in range(number + 1)]
        assert len(list(home.store.find(home / "records"))) == number + 1


@pytest.mark.slow
def test_what_another_writer_put_is_listed_too(s3: S3Server) -> None:
    bucket, store, another = s3.bucket(), Store(s3.storage), s3.client()
    another.pipe_file(f"{bucket}/a/1", b"1")
    assert store.names(f"{bucket}/a") == ["1"]
    another.pipe_file(f"{bucket}/a/2", b"2")
    another.pipe_file(f"{bucket}/a/1", b"changed")
    assert store.names(f"{bucket}/a") == ["1", "2"]
    assert [info.size for info in store.find(f"{bucket}/a")] == [7, 1]


def test_find_gives_every_object_with_its_size_and_time(home: Home) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # S3 gives whole seconds
    keys = ["a/1", "a/2", "a/b/c/3", "a-1", "b"]
    for size, key in enumerate(keys, start=1):
        home.store.create(home / f"in/{key}", b"x" * size)
    home.store.create(home / "in-another/4", b"x")
    found = list(home.store.find(home / "in"))
    assert [(info.uri, info.size) for info in found] == [
        (home / "in/a-1", 4),  # in the order of the keys, as a bucket has it: - comes before /
        (home / "in/a/1", 1),
        (home / "in/a/2", 2),
        (home / "in/a/b/c/3", 3),
        (home / "in/b", 5),
    ]
    for info in found:
        assert info.mtime is not None and before <= info.mtime <= datetime.now(UTC) + timedelta(seconds=1), info
    assert list(home.store.find(home / "absent")) == []


def test_a_changed_object_has_another_etag(home: Home) -> None:
    uri = home / "in/1.jpg"
    home.store.replace(uri, b"one")
    first = one(home.store, home / "in")
    assert first.etag == one(home.store, home / "in").etag, "the same object, asked twice"
    home.store.replace(uri, b"two")
    assert first.etag != one(home.store, home / "in").etag


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_keys_are_found_and_read_and_kept_apart(home: Home, name: str) -> None:
    # What a careless reader would take the odd key for: a pattern's match, a decoded or a cut form, a twin in Unicode.
    decoys = ["starling.jpg", "x.jpg", "a.jpg", "b.jpg", "what", "a", " .jpg", "1 1=2.jpg", "100.jpg", "été-nfd.jpg"]
    for key in [name, *decoys]:
        assert home.store.create(home / f"in/{key}", key.encode())
    found = {info.uri: info for info in home.store.find(home / "in")}
    assert set(found) == {home / f"in/{key}" for key in [name, *decoys]}
    for uri, info in found.items():
        data = home.store.read(uri)
        assert data.decode() == uri.removeprefix(home / "in/")
        assert info.size == len(data)
    assert home.store.exists(home / f"in/{name}")
    assert home.store.create(home / f"in/{name}", b"other") is False
    home.store.replace(home / f"in/{name}", b"replaced")
    assert home.store.read(home / f"in/{name}") == b"replaced"
    assert len(list(home.store.find(home / "in"))) == 1 + len(decoys)
    assert name.split("/")[0] in home.store.names(home / "in")


def test_a_prefix_with_odd_letters_is_no_pattern(home: Home) -> None:
    for folder in ("in [x] 100%", "in x 100%", "in [x] 100", "in*"):
        home.store.create(home / f"{folder}/1", folder.encode())
    for folder in ("in [x] 100%", "in*"):
        assert [info.uri for info in home.store.find(home / folder)] == [home / f"{folder}/1"]
        assert home.store.names(home / folder) == ["1"]


@pytest.mark.slow
def test_a_key_that_seems_to_name_a_version_is_not_read_as_another(s3: S3Server) -> None:
    bucket, store = s3.bucket(), Store(s3.storage)
    for key in ("what", "what?versionId=1"):
        put_raw(s3, bucket, key, key.encode())
    try:
        data = store.read(f"{bucket}/what?versionId=1")
    except (StoreError, OSError):
        return  # refused: an error row, where the bytes of another image would be a lie
    assert data == b"what?versionId=1"


@pytest.mark.slow
def test_a_folder_that_the_console_of_a_store_made_is_no_object(s3: S3Server) -> None:
    bucket, store = s3.bucket(), Store(s3.storage)
    put_raw(s3, bucket, "in/", b"")
    put_raw(s3, bucket, "in/1", b"1")
    put_raw(s3, bucket, "in/deep/", b"")
    assert [info.uri for info in store.find(f"{bucket}/in")] == [f"{bucket}/in/1"]
    assert store.names(f"{bucket}/in") == ["1", "deep"]
    assert store.names(f"{bucket}/in/deep") == []


@pytest.mark.slow
def test_a_listing_of_many_pages_is_whole_and_in_order(s3: S3Server) -> None:
    bucket, three_a_page = s3.bucket(), {"s3": {**s3.storage["s3"], "s3_additional_kwargs": {"MaxKeys": 3}}}
    keys = ["a/1", "a/2", "a/b/3", "a-1", "a-2", "a", "b", "c/1", "c.1", "été"]
    for key in keys:
        put_raw(s3, bucket, f"in/{key}x", b"x")  # SeaweedFS has no object a beside a/
    found = list(Store(three_a_page).find(f"{bucket}/in"))
    assert [info.uri for info in found] == sorted(f"{bucket}/in/{key}x" for key in keys)
    assert list(Store(s3.storage).find(f"{bucket}/in")) == found


@pytest.mark.slow
def test_a_prefix_that_is_an_object_itself_is_found_alone(s3: S3Server) -> None:
    bucket, store = s3.bucket(), Store(s3.storage)
    for key in ("in/1", "in/10"):
        put_raw(s3, bucket, key, b"x")
    assert [(info.uri, info.size) for info in store.find(f"{bucket}/in/1")] == [(f"{bucket}/in/1", 1)]


def test_links_are_files_and_those_in_a_circle_end_no_listing(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"12345")
    (tmp_path / "in/deep/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "outside")
    (tmp_path / "in/nowhere.jpg").symlink_to(tmp_path / "absent")
    found = {info.uri.removeprefix(f"{tmp_path}/in/"): info.size for info in Store().find(str(tmp_path / "in"))}
    assert list(found) == ["deep/circle", "link.jpg", "nowhere.jpg"]
    assert (found["link.jpg"], found["nowhere.jpg"]) == (5, 0)


def test_a_link_is_read_as_listed_until_what_it_leads_to_changes(tmp_path: Path) -> None:
    """Links are often made long after the photos that they lead to."""
    photo, link = tmp_path / "photo.jpg", tmp_path / "in/link.jpg"
    photo.write_bytes(b"12345")
    os.utime(photo, (1e9, 1e9))
    link.parent.mkdir()
    link.symlink_to(photo)
    (image,) = [each._asdict() for each in Store().find(str(link.parent))]
    fetcher = Fetcher(Store())
    assert fetcher.read(image) == Fetched(b"12345", False, None)
    photo.write_bytes(b"54321")
    error = fetcher.read(image).error
    assert error is not None and error.reason == "changed"


def test_several_at_once_keeps_the_order_draws_no_more_than_it_works_on_and_raises() -> None:
    drawn, done = [], []

    def items() -> Iterator[int]:
        for number in range(5 * AT_ONCE):
            drawn.append(number)
            assert len(drawn) - len(done) <= 2 * AT_ONCE
            yield number

    def double(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        done.append(number)
        return 2 * number

    assert several_at_once(double, items()) == [2 * number for number in range(5 * AT_ONCE)]
    with pytest.raises(ZeroDivisionError):
        several_at_once(lambda number: 1 // (3 - number), range(9))
    assert several_at_once(double, []) == []


READS: dict[str, Callable[[Store, str], object]] = {
    "find": lambda store, folder: list(store.find(folder)),
    "names": lambda store, folder: store.names(folder),
    "exists": lambda store, folder: store.exists(f"{folder}/1"),
    "read": lambda store, folder: store.read(f"{folder}/1"),
}
WRITES: dict[str, Callable[[Store, str], object]] = {
    "create": lambda store, folder: store.create(f"{folder}/2", b"2"),
    "replace": lambda store, folder: store.replace(f"{folder}/2", b"2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("act", READS | WRITES)
def test_a_wrong_secret_is_an_error_and_no_empty_store(s3: S3Server, act: str) -> None:
    bucket = s3.bucket()
    Store(s3.storage).create(f"{bucket}/in/1", b"1")
    wrong = Store({"s3": {**s3.storage["s3"], "key": s3.access_key, "secret": "wrong"}})
    with pytest.raises((StoreError, OSError)) as error:
        (READS | WRITES)[act](wrong, f"{bucket}/in")
    assert not isinstance(error.value, FileNotFoundError), "denied is not absent"
    assert [info.uri for info in Store(s3.storage).find(bucket)] == [f"{bucket}/in/1"]


@pytest.mark.slow
@pytest.mark.parametrize("act", ["find", "names"])  # SeaweedFS makes a missing bucket for a write; S3 does not
def test_a_missing_bucket_is_an_error_and_no_empty_listing(s3: S3Server, act: str) -> None:
    with pytest.raises(StoreError, match="no-such-bucket"):
        (READS | WRITES)[act](Store(s3.storage), "s3://no-such-bucket/in")


@pytest.mark.slow
@pytest.mark.parametrize("act", READS | WRITES)
def test_a_server_that_is_not_there_is_an_error_and_no_empty_store(
    aws_environment: None, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # nobody will answer the second time either
    (port,) = free_ports(1)
    nowhere = Store({"s3": {"endpoint_url": f"http://127.0.0.1:{port}"}})
    with pytest.raises((StoreError, OSError)) as error:
        (READS | WRITES)[act](nowhere, "s3://bucket/in")
    assert not isinstance(error.value, FileNotFoundError), "unreachable is not absent"


def test_sixteen_racing_writers_have_one_winner(exclusive_home: Home) -> None:
    home = exclusive_home
    for lap in range(20 if home.store.is_local(home.uri) else 2):  # SeaweedFS takes up to 3 s for a lap
        uri = home / f"runs/{lap}/commit.json"
        told = race(home.store, uri, [f"writer {number} ".encode() * 5000 for number in range(16)])
        winner = home.store.read(uri)
        assert [data for data, mine in told.items() if mine] == [winner]
        assert len(told) == 16, "every writer got an answer, and no error"
    assert leftovers(home) == []


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a folder that is a file system of its own")
def test_a_root_may_be_a_mounted_volume() -> None:
    # A volume's top folder has nothing above it on the same disk where a temporary file could be linked from.
    uri, store = f"/dev/shm/drivetrain-{secrets.token_hex(8)}.json", Store()
    try:
        assert store.create(uri, b"first") is True
        assert store.create(uri, b"second") is False
        store.replace(uri, b"third")
        assert store.read(uri) == b"third"
    finally:
        Path(uri).unlink(missing_ok=True)


def test_racing_writers_of_the_same_bytes_are_all_told_true(exclusive_home: Home) -> None:
    uri = exclusive_home / "runs/commit.json"
    barrier, told = threading.Barrier(8), []

    def write() -> None:
        barrier.wait()
        told.append(exclusive_home.store.create(uri, b"the same"))

    in_threads([write] * 8)
    assert told == [True] * 8


def put_raw(s3: S3Server, bucket: str, key: str, data: bytes) -> None:
    """Put an object with the very key, which s3fs would change."""
    client = s3.client()
    client.connect()
    client.call_s3("put_object", Bucket=bucket.removeprefix("s3://"), Key=key, Body=data)


def race(store: Store, uri: str, contents: list[bytes]) -> dict[bytes, bool]:
    """What each of the writers is told, who all begin at once."""
    barrier, told = threading.Barrier(len(contents)), {}

    def write(data: bytes) -> None:
        barrier.wait()
        told[data] = store.create(uri, data)

    in_threads([partial(write, data) for data in contents])
    return told


def in_threads(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def leftovers(home: Home) -> list[str]:
    """Local files in or beside the place that nobody asked for."""
    if not home.store.is_local(home.uri):
        return []
    return [str(path) for path in Path(home.uri).parent.rglob("*") if path.is_file() and path.name != "commit.json"]


def one(store: Store, folder: str) -> ObjectInfo:
    (info,) = store.find(folder)
    return info


def test_a_killed_server_takes_its_children_along(tmp_path: Path) -> None:
    # The grandchild has a session of its own, as the driver of a Ray job has.
    command = [sys.executable, "-c", "import subprocess; subprocess.run(['setsid', 'sleep', '600'])"]
    mark = ""
    with running(command, tmp_path / "log") as process:
        poll(lambda: len(marked(process.mark)) >= 2, "the grandchild runs")
        mark = process.mark
    assert mark and marked(mark) == []
    assert MARK not in os.environ


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such option: --fast')"]
    with running(command, tmp_path / "log") as process, pytest.raises(AssertionError, match="no such option: --fast"):
        process.wait_until(lambda: False, "is ready")


@pytest.mark.thorough
def test_the_cluster_refuses_who_has_no_token(ray_cluster: RayCluster) -> None:
    submit = [f"{Path(sys.executable).parent}/ray", "job", "list"]
    known = subprocess.run(submit, env=ray_cluster.env, capture_output=True, text=True, timeout=60)
    assert known.returncode == 0, known.stderr
    for change in ({"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_MODE": "disabled"}):
        stranger = subprocess.run(submit, env=ray_cluster.env | change, capture_output=True, text=True, timeout=60)
        assert stranger.returncode != 0
        assert "AuthenticationError" in stranger.stderr


@pytest.mark.thorough
def test_a_job_runs_with_the_tests_python_and_keys(ray_cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os, sys, ray\n"
        "ray.init(log_to_driver=False)\n"
        "key = ray.get(ray.remote(lambda: os.environ['AWS_ACCESS_KEY_ID']).remote())\n"
        "print('SEEN', sys.prefix, key, ray.cluster_resources()['CPU'])\n"
    )
    submit = [f"{Path(sys.executable).parent}/ray", "job", "submit", "--working-dir", str(tmp_path)]
    done = subprocess.run(
        [*submit, "--", "python", "job.py"], env=ray_cluster.env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SEEN {sys.prefix} {os.environ['AWS_ACCESS_KEY_ID']} 2.0" in done.stdout


# --- killed while it writes to a local disk ---

PART = b"PAR1" + bytes(range(48)) + b"PAR1"


class Byte:
    """A moment to die at: when the file has so many bytes, or before or after it gets its name."""

    def __init__(self, most: int | None = None, link: str = "") -> None:
        self.most, self.link = most, link

    def dies(self, uri: str) -> int:
        """Create an object in a process that ends at this moment; gives the signal that ended it."""
        child = os.fork()
        if child == 0:
            try:
                self._end_here()
                Store().create(uri, PART)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _end_here(self) -> None:
        real = os.link

        def link(source: str, target: str) -> None:
            if self.link == "after":
                real(source, target)
            os.kill(os.getpid(), signal.SIGKILL)

        if self.link:
            os.link = link  # type: ignore[assignment]
        if self.most is not None:
            # The kernel lets so many bytes into the file, and ends whoever writes one more.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.most))


def test_a_local_part_is_never_seen_half_written_whatever_byte_its_writer_is_killed_at(tmp_path: Path) -> None:
    moments = [*(Byte(most) for most in range(len(PART))), Byte(link="before"), Byte(link="after")]
    for place, moment in enumerate(moments):
        folder = tmp_path / f"{place}" / "parts"
        part, store = folder / "part-00000.parquet", Store()
        assert moment.dies(str(part)) == -(signal.SIGKILL if moment.link else signal.SIGXFSZ)
        seen = [path.read_bytes() for path in folder.glob("*")]
        assert seen == ([PART] if moment.link == "after" else []), "what a bare glob finds is whole"
        assert store.names(str(folder)) == [path.name for path in folder.glob("*")]
        left = [path.stat().st_size for path in folder.parent.glob(".*.tmp")]
        assert left == [len(PART) if moment.most is None else moment.most], "it was killed when it should be"
        assert store.create(str(part), PART) and part.read_bytes() == PART
    print(f"a writer killed at each of {len(moments)} moments: 0 parts seen half-written")
