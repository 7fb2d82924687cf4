"""Secrets reach no output: planted ones are looked for in all that commands print and write, and in Ray's logs.

They are planted where people put them: in the environment, in uris, in flags, in the config file, in a webhook; right
and wrong ones.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote, quote_plus

import learners
import pyarrow.parquet as pq
import pytest
from servers import S3Server, free_ports, s3_server

pytestmark = pytest.mark.slow

ACCESS = "planted-access-key-id"
SECRET = "planted/Secret+2718281828459045"
OTHERS = {
    "session": "planted-session-token-1618033988",
    "ray": "planted-ray-token-1414213562",
    "wrong": "planted/Wrong+1732050807568877",
    "uri": "planted-in-a-uri-2236067977",
    "flag": "planted-in-a-flag-2449489742",
    "file": "planted-in-a-file-2645751311",
    "endpoint": "planted-in-an-endpoint-282842712",
    "webhook": "planted-in-a-webhook-3316624790",
}
SECONDS = 300


@dataclass
class Person:
    """Types commands, and keeps all that they print."""

    env: dict[str, str]
    said: list[tuple[str, str]] = field(default_factory=list)

    def types(self, words: str, code: int, **env: str) -> None:
        command = [sys.executable, "-m", "drivetrain.cli", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, env=self.env | env, timeout=SECONDS)
        self.said.append((words, done.stdout + done.stderr))
        assert done.returncode == code, (words, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr and 'File "' not in done.stderr, (words, done.stderr)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server whose right secret is one that can be looked for."""
    with s3_server(ACCESS, SECRET) as found:
        yield found


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its logs; its sockets allow for a short path only."""
    folder = Path(tempfile.mkdtemp(prefix="dtr-ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def person(ray_folder: Path) -> Person:
    foreign = ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "RAY_ADDRESS")
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    of_ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": OTHERS["ray"], "RAY_TMPDIR": str(ray_folder)}
    # Nobody listens on the port for discarding: each night's post fails, and is told without its address.
    webhook = {"DRIVETRAIN_WEBHOOK": f"http://127.0.0.1:9/services/{OTHERS['webhook']}"}
    return Person(env | keys | of_ray | webhook)


def leaks(texts: Iterator[tuple[str, bytes]]) -> tuple[list[tuple[str, str]], int]:
    """Which planted secret stands where, and how many texts were searched."""
    found, searched = [], 0
    planted = {"secret": SECRET, **OTHERS}
    for where, text in texts:
        searched += 1
        found += [(where, name) for name, secret in planted.items() if any(way in text for way in forms(secret))]
    return found, searched


def forms(secret: str) -> set[bytes]:
    """A text as it is, in a url, in a page, and in JSON."""
    return {each.encode() for each in (secret, quote(secret, safe=""), quote_plus(secret), escape(secret),
                                       json.dumps(secret)[1:-1])}  # fmt: skip


def readable(where: str, data: bytes) -> bytes:
    """What a file says: Parquet is compressed, and shows no word of its rows as it lies."""
    if not where.endswith(".parquet"):
        return data
    with pq.ParquetFile(io.BytesIO(data)) as file:
        return data + json.dumps(file.read().to_pylist(), default=str, ensure_ascii=False).encode()


def printed(person: Person) -> Iterator[tuple[str, bytes]]:
    return ((words, said.encode()) for words, said in person.said)


def files_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), readable(path.name, path.read_bytes())


def objects_in(server: S3Server, bucket: str) -> Iterator[tuple[str, bytes]]:
    client = server.client()
    for path in client.find(bucket):
        yield path, readable(path, client.cat_file(path))


@pytest.mark.thorough
def test_a_planted_secret_reaches_no_output(server: S3Server, person: Person, ray_folder: Path, tmp_path: Path) -> None:
    bucket = server.bucket()
    store = f"--storage s3.endpoint_url={server.endpoint}"
    learner = filled(server, bucket, tmp_path)
    common = f"--root {bucket}/root {store}"
    scoring = f"{common} --learner {learner} --source shop --engine torch"
    labels = f"--labels {tmp_path / 'labels.csv'}"
    good(person, common, scoring, labels, bucket, learner, store)
    wrong_settings(person, tmp_path)
    wrong_worlds(person, server, bucket, learner)
    # What an actor raises goes through Ray's own log.
    (export,) = (path for path in server.client().find(f"{bucket}/root/models") if path.endswith("export.pkl"))
    server.client().rm_file(export)
    person.types(f"score {scoring} --images {bucket}/in --name lost --actors 1", 1)
    found, texts = leaks(printed(person))
    assert not found, found
    found, objects = leaks(objects_in(server, bucket))
    assert not found and objects > 20, (found, objects)
    parts = [text for where, text in objects_in(server, bucket) if "/parts/" in where]
    assert parts and all(b"s3://" in text for text in parts), "the search sees the uris of rows"
    assert any("/alerts/answers/" in where for where, _ in objects_in(server, bucket)), "the chat did not answer"
    found, logs = leaks(files_in(ray_folder))
    assert not found and logs > 5, (found, logs)
    assert any("worker" in where for where, _ in files_in(ray_folder)), "an actor had a log"
    print(
        f"{1 + len(OTHERS)} planted secrets; output of {texts} commands, {objects} objects, {logs} files of Ray: 0 hits"
    )


def filled(server: S3Server, bucket: str, folder: Path) -> str:
    """Images, labels and a learner in the bucket; gives the learner's uri."""
    client = server.client()
    learners.write_digits(folder / "train", 1000, 1300, by_label=True)
    exported = learners.exported(learners.digits_learner(folder / "train", epochs=1), folder / "export.pkl")
    client.put_file(exported.path, f"{bucket}/models/export.pkl")
    lines = ["fname,label,is_valid"]
    for place, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        client.put_file(str(path), f"{bucket}/train/{path.parent.name}/{path.name}")
        lines.append(f"{path.parent.name}/{path.name},{path.parent.name},{place % 20 != 0}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    for path in learners.write_digits(folder / "night", 0, 120):
        client.put_file(str(path), f"{bucket}/in/2026-11-22/{path.name}")
    client.pipe_file(f"{bucket}/in/2026-11-22/broken.png", b"no image")
    return f"{bucket}/models/export.pkl"


def good(person: Person, common: str, scoring: str, labels: str, bucket: str, learner: str, store: str) -> None:
    """A person's day, with Ray and without."""
    person.types(f"reference {scoring} --images {bucket}/train {labels} --actors 0", 0)
    night = f"--images {bucket}/in/{{night}} --night 2026-11-22"
    person.types(f"nightly {scoring} {night} --actors 0 --site-url https://example.org", 0)
    night_run = next(word for word in person.said[-1][1].split('"') if word.startswith("shop-2026-"))
    person.types(f"score {scoring} --images {bucket}/in --name ray --actors 1 --max-failed 0.5", 0)
    run = next(word for word in person.said[-1][1].split('"') if word.startswith("shop-ray-"))
    person.types(f"drift measure {common} --run {run}", 0)
    person.types(f"notify {common} --run {night_run}", 1)
    person.types("notify --test", 1)
    person.types(f"nights {common}", 0)
    person.types(f"learner inspect {learner} {store}", 0)
    person.types(f"doctor {scoring} {night} --actors 0", 0)


def wrong_settings(person: Person, folder: Path) -> None:
    """Secrets where none may be."""
    uri, flag = OTHERS["uri"], OTHERS["flag"]
    signed = f"X-Amz-Algorithm=AWS4&X-Amz-Credential={ACCESS}&X-Amz-Security-Token={uri}&X-Amz-Signature={uri}"
    for secret in (f"s3://{ACCESS}:{uri}@bucket/x", f"https://host/x?{signed}", f"s3://bucket/x?sig={uri}&token={uri}"):
        for command in ("score", "reference", "nightly"):
            for key in ("root", "images", "learner"):
                person.types(f"{command} --{key} {secret}", 2)
        person.types(f"nights --root {secret}", 2)
        person.types(f"learner inspect {secret}", 2)
        person.types(f"doctor --root {secret}", 2)
        person.types(f"nights --root x --storage s3.endpoint_url={secret}", 2)
        person.types(f"notify --test --site-url {secret}", 2)
    for storage in (f"s3.secret={flag}", f"s3.key={flag}", f"s3.secret:{flag}", f"S3.Secret={flag}", flag, f"={flag}"):
        person.types(f"nights --root x --storage {storage}", 2)
    person.types(f"score --secret={flag}", 2)
    person.types(f"score --actors {flag} --night {flag} --embedding {flag}! --source {flag}! --trust {flag}", 2)
    file = OTHERS["file"]
    for number, text in enumerate((
        f'[storage.s3]\nsecret = "{file}"', f'[storage.s3]\nclient_kwargs = {{aws_secret_access_key = "{file}"}}',
        f'aws_secret_access_key = "{file}"', f'root = "s3://k:{file}@bucket"', f'storage = "{file}"', f"root = {file}",
        f'root = ["{file}"]', f'[storage.s3]\nsecret = "{file}', f'[storage]\ns3 = "{file}"',
    )):  # fmt: skip
        (folder / f"{number}.toml").write_text(text)
        person.types(f"nights --config {folder / f'{number}.toml'}", 2)


def wrong_worlds(person: Person, server: S3Server, bucket: str, learner: str) -> None:
    """Secrets in their place, and a store that does not take them, or is not there."""
    (port,) = free_ports(1)
    store = f"--storage s3.endpoint_url={server.endpoint}"
    everything = f"--root {bucket}/root --learner {learner} --images {bucket}/in --source shop"
    worlds = {
        "a wrong secret": (store, {"AWS_SECRET_ACCESS_KEY": OTHERS["wrong"]}),
        "an unknown key": (store, {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": OTHERS["wrong"]}),
        "another's session": (store, {"AWS_SESSION_TOKEN": OTHERS["session"]}),
        "nobody there": (f"--storage s3.endpoint_url=http://127.0.0.1:{port}", {}),
        "a secret in the endpoint": ("", {"AWS_ENDPOINT_URL": f"http://user:{OTHERS['endpoint']}@127.0.0.1:{port}"}),
    }  # fmt: skip
    for where, env in worlds.values():
        person.types(f"doctor {everything} {where} --actors 0", 1, **env)
        person.types(f"score {everything} {where} --actors 0", 1, **env)
        person.types(f"learner inspect {learner} {where}", 1, **env)
    person.types(f"nights --root s3://no-such-bucket/x {store}", 2)
    person.types(f"nights --root {bucket}/root {store}", 1, AWS_SECRET_ACCESS_KEY=OTHERS["wrong"])
