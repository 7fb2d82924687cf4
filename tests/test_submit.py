"""`drivetrain submit` on real clusters: one asks for a token, one takes jobs from anyone.

The open one listens to loopback alone, or the tests would open this machine to its network; it is reached through
0.0.0.0, which leads there and is no address of loopback.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import learners
import pytest
from click.testing import CliRunner
from faulty import faulty_proxy
from servers import RayCluster, fetch, free_ports, poll, ray_head

from drivetrain.cli import main
from drivetrain.dashboard import is_loopback

pytestmark = pytest.mark.slow


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def open_cluster(aws_environment: None) -> Iterator[RayCluster]:
    with ray_head(cpus=2, asks_token=False) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, its learner and some images; every path in the config is absolute."""
    folder = tmp_path_factory.mktemp("world")
    learners.write_digits(folder / "train", 0, 64, by_label=True)
    learners.write_digits(folder / "images", 64, 104)
    export = learners.exported(learners.digits_learner(folder / "train", epochs=1), folder / "export.pkl")
    (folder / "conf").mkdir()
    (folder / "conf" / "shop.toml").write_text(
        f'root = "{folder}/root"\nlearner = "{export.path}"\ntrust = ["{export.sha256}"]\n'
        f'images = "{folder}/images"\nsource = "shop"\nactors = 1\n'
    )
    return folder


def start(world: Path, env: dict[str, str], *words: str, **other: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "drivetrain.cli", "submit", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=world, env=env | other, stdout=pipe, stderr=pipe, text=True)


def submit(world: Path, env: dict[str, str], *words: str, **other: str) -> Done:
    process = start(world, env, *words, **other)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return Done(process.returncode, out, err)


def jobs(cluster: RayCluster) -> list[dict[str, Any]]:
    header = {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}
    found: list[dict[str, Any]] = json.loads(fetch(f"{cluster.dashboard}/api/jobs/", header))
    return [each for each in found if each["submission_id"]]


def elsewhere(cluster: RayCluster) -> str:
    return cluster.dashboard.replace("127.0.0.1", "0.0.0.0")


def test_an_open_cluster_is_refused_and_no_job_is_made(open_cluster: RayCluster, world: Path) -> None:
    done = submit(world, open_cluster.env, "--address", elsewhere(open_cluster), "score", "--config", "conf/shop.toml")
    assert done.code == 2 and "asks for no token" in done.err and "--insecure" in done.err
    assert jobs(open_cluster) == []


def test_the_address_that_is_named_is_the_one_that_is_asked(open_cluster: RayCluster, world: Path) -> None:
    """Ray's own client would go to RAY_API_SERVER_ADDRESS, which here is loopback and fine."""
    assert open_cluster.env["RAY_API_SERVER_ADDRESS"] == open_cluster.dashboard
    (port,) = free_ports(1)
    done = submit(world, open_cluster.env, "--address", f"http://127.0.0.1:{port}", "doctor")
    assert done.code == 1 and f"127.0.0.1:{port}" in done.err and jobs(open_cluster) == []


@pytest.mark.thorough
@pytest.mark.parametrize("forced", [True, False], ids=["insecure", "loopback"])
def test_an_open_cluster_takes_a_job_that_is_forced_or_from_loopback(
    open_cluster: RayCluster, world: Path, forced: bool
) -> None:
    words = ["--insecure", "--address", elsewhere(open_cluster)] if forced else []
    done = submit(world, open_cluster.env, *words, "drift", "measure", "--config", "conf/shop.toml", "--run", "none")
    assert done.code == 0, done.err
    told = json.loads(done.out.splitlines()[-1])
    assert told["submission_id"] in {each["submission_id"] for each in jobs(open_cluster)}
    assert told["address"] == (elsewhere(open_cluster) if forced else open_cluster.dashboard)
    assert f"ray job stop --address {told['address']} {told['submission_id']}" in done.err


@pytest.mark.thorough
def test_a_driver_that_came_by_another_way_says_that_its_cluster_is_open(
    open_cluster: RayCluster, ray_cluster: RayCluster
) -> None:
    code = "from drivetrain import cluster\nwith cluster.connected(None, 1): print('connected')"
    command = ["ray", "job", "submit", "--", "python", "-c", code]

    def said(cluster: RayCluster) -> list[str]:
        done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=120, check=True)
        assert "connected" in done.stdout
        return [line for line in done.stdout.splitlines() if line.startswith("Warning: ")]

    with ThreadPoolExecutor(2) as pool:
        of_open, of_token = pool.map(said, (open_cluster, ray_cluster))
    assert of_token == []
    (warning,) = of_open
    assert elsewhere(open_cluster) in warning and "asks for no token" in warning
    print(f"\nAn open cluster: {warning}")


@pytest.mark.thorough
def test_a_job_with_the_token_gives_its_result_and_its_code(ray_cluster: RayCluster, world: Path) -> None:
    """From a folder that is not the config's: what travels is the file, and nothing beside it."""
    (world / "work").mkdir()
    done = submit(world / "work", ray_cluster.env, "--wait", "score", "--config", "../conf/shop.toml", "--name", "all")
    assert done.code == 0, done.err
    (line,) = done.out.splitlines()
    assert "INFO dashboard" not in done.err and "INFO packaging" not in done.err
    assert json.loads(line)["rows"] == 40 and "Scoring shop all" in done.err
    (job,) = (each for each in jobs(ray_cluster) if each["submission_id"] in done.err)
    assert job["entrypoint"].endswith("score --name all --config config/shop.toml")
    assert ray_cluster.token not in json.dumps(job) and "env_vars" not in job["runtime_env"]
    assert ray_cluster.token not in done.out + done.err

    wrong = submit(
        world, ray_cluster.env, "--wait", "drift", "measure", "--config=conf/shop.toml", "--run", "it's none"
    )
    assert wrong.code == 2 and 'No run "it\'s none"' in wrong.err and wrong.out == ""
    print(f"\nexit codes with --wait: done {done.code}, wrong setting {wrong.code}")


@pytest.mark.thorough
def test_a_job_that_is_stopped_is_not_done(ray_cluster: RayCluster, world: Path) -> None:
    with waiting(ray_cluster, world, "stopped") as (process, job):
        subprocess.run(["ray", "job", "stop", job], env=ray_cluster.env, capture_output=True, check=True)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "was stopped" in err and out == ""
    print(f"\nexit code of a stopped job: {process.returncode}")


@pytest.mark.thorough
def test_ctrl_c_leaves_the_job_alone_and_says_so(ray_cluster: RayCluster, world: Path) -> None:
    with waiting(ray_cluster, world, "left") as (process, job):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        (there,) = (each for each in jobs(ray_cluster) if each["submission_id"] == job)
        assert there["status"] in ("PENDING", "RUNNING", "SUCCEEDED")
    assert process.returncode == 1 and f"The job {job} goes on" in err and "ray job stop" in err


@pytest.mark.thorough
def test_a_line_that_breaks_is_waited_for(
    ray_cluster: RayCluster, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question about the job is refused twice, reset, or not answered as JSON, and then answered."""
    faults = {1: "reset", 2: "503", 3: "html"}

    def rule(method: str, path: str, asked: int) -> str | None:
        return faults.get(asked) if "/drift-" in path else None

    with faulty_proxy(ray_cluster.dashboard, rule) as proxy:
        words = [
            "--wait",
            "--address",
            proxy.endpoint,
            "drift",
            "measure",
            "--config",
            "conf/shop.toml",
            "--run",
            "none",
        ]
        done = submit(world, ray_cluster.env, *words)
    assert done.code == 2 and "asking again" in done.err and "No run 'none'" in done.err


@pytest.mark.thorough
def test_a_cluster_that_is_gone_ends_the_wait(ray_cluster: RayCluster) -> None:
    """One that hangs is given up, and one that answers and has no such job is not asked again."""
    with faulty_proxy(ray_cluster.dashboard, lambda method, path, _: "hang" if "/job-1" in path else None) as proxy:
        said = [waited(ray_cluster, url, job) for url, job in ((proxy.endpoint, "job-1"), (proxy.endpoint, "job-2"))]
    assert "No answer" in said[0] and "The job job-1 may go on" in said[0]
    assert "does not know the job job-2" in said[1] and "asking again" not in said[1]


def waited(cluster: RayCluster, url: str, job: str) -> str:
    """What is said by a wait that loses patience after 3 s. Ray reads its token once a process."""
    code = (
        "import sys\nfrom drivetrain import submit\nfrom drivetrain.errors import RunError\n"
        "submit.ANSWER_SECONDS = 2.0\n"
        "try: submit.reach(sys.argv[1], insecure=False).job(sys.argv[2]).wait(patience=3.0)\n"
        "except RunError as error: print(error)"
    )
    command = [sys.executable, "-c", code, url, job]
    done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout + done.stderr


def test_a_wrong_token_and_a_missing_one_are_told_apart(ray_cluster: RayCluster, world: Path, tmp_path: Path) -> None:
    words = ["score", "--config", "conf/shop.toml"]
    before = len(jobs(ray_cluster))
    wrong = submit(world, ray_cluster.env, *words, RAY_AUTH_TOKEN="5e1f" * 16)
    unset = submit(world, ray_cluster.env, *words, RAY_AUTH_MODE="disabled")
    bare = {name: value for name, value in ray_cluster.env.items() if name != "RAY_AUTH_TOKEN"}
    none = submit(world, bare, *words, HOME=str(tmp_path))
    assert wrong.code == 2 and "does not take the token" in wrong.err and "5e1f" not in wrong.err
    of_gcs = submit(world, ray_cluster.env, *words, RAY_API_SERVER_ADDRESS="", RAY_AUTH_TOKEN="5e1f" * 16)
    assert of_gcs.code == 2 and "does not take our token" in of_gcs.err and "5e1f" not in of_gcs.err
    for each in (unset, none):
        assert each.code == 2 and "none was sent" in each.err and "RAY_AUTH_MODE=token" in each.err
    assert len(jobs(ray_cluster)) == before


@pytest.mark.thorough
def test_the_token_may_lie_in_a_file_and_the_labels_travel(
    ray_cluster: RayCluster, world: Path, tmp_path: Path
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(ray_cluster.token)
    (world / "labels.csv").write_text("fname,label,is_valid\n")
    bare = {name: value for name, value in ray_cluster.env.items() if name != "RAY_AUTH_TOKEN"}
    words = ["reference", "--config", "conf/shop.toml", "--labels", "labels.csv", "--learner", "/no/such.pkl"]
    done = submit(world, bare, *words, HOME=str(tmp_path))
    assert done.code == 0, done.err
    (job,) = (each for each in jobs(ray_cluster) if each["submission_id"] in done.out)
    assert job["entrypoint"].endswith("--learner /no/such.pkl --config config/shop.toml --labels labels/labels.csv")


def test_a_web_server_and_nobody_are_told_apart(world: Path, tmp_path: Path) -> None:
    (tmp_path / "api" / "jobs").mkdir(parents=True)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *about: object) -> None:
            asked.append(str(self.headers))

    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e1f" * 16}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = submit(world, env, "--address", f"http://127.0.0.1:{server.server_port}", "doctor")
        server.shutdown()
    assert page.code == 2 and "is no Ray dashboard" in page.err and "text/html" in page.err
    assert asked and "5e1f" not in "".join(asked), "a stranger is not sent the token"
    (port,) = free_ports(1)
    nobody = submit(world, env, "--address", f"http://127.0.0.1:{port}", "doctor")
    assert nobody.code == 1 and "No answer" in nobody.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ui"], "'ui' can't be submitted"),
        (["nightly", "--no-such-flag"], "--no-such-flag"),
        (["--wiat", "doctor"], "--wait"),
        (["score", "--config", "missing.toml"], "missing.toml"),
        (["doctor", "--root", "relative/root"], "a path from / on"),
        (["nightly", "--root", "/r", "--images", "/i", "--shadow", "new.pkl"], "a path from / on"),
        (["doctor", "--labels", "x"], "--labels"),
        (["doctor", "--storage", "s3.secret=abc"], "looks like a secret"),
    ],
)
def test_what_can_be_seen_here_is_not_sent(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    done = CliRunner().invoke(main, ["submit", *words])
    assert done.exit_code == 2 and said in done.output


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.8.7", True), ("[::1]", True), ("localhost", True),
        ("0.0.0.0", False), ("10.0.0.1", False), ("[2001:db8::1]", False), ("[fe80::1%25lo]", False),
        ("no-such-host.invalid", False),
    ],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(f"http://{host}:8265") is loopback


@contextmanager
def waiting(cluster: RayCluster, world: Path, name: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A job that somebody waits for, and that has begun; it is stopped at the end."""
    known = {each["submission_id"] for each in jobs(cluster)}

    def begun() -> list[str]:
        return [
            each["submission_id"]
            for each in jobs(cluster)
            if each["submission_id"] not in known and each["status"] == "RUNNING"
        ]

    process = start(world, cluster.env, "--wait", "score", "--config", "conf/shop.toml", "--name", name)
    try:
        poll(begun, "the job runs", 60)
        (job,) = begun()
        yield process, job
    finally:
        process.kill()
        for job in begun():
            subprocess.run(["ray", "job", "stop", job], env=cluster.env, capture_output=True, check=False)
