"""Hand a drivetrain command to a Ray cluster as a job, and stay with the job to its end. The one door to Ray's job API.

Knows clusters' addresses, tokens, a job's log and its exit code. Does not know what a job does. Of the machine that
submits only the files that the command names travel, and the words of the command, which whoever may use the cluster
can read: Config refuses secrets in both.
"""

import json
import logging
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from drivetrain.config import WEBHOOK, Config
from drivetrain.console import duration, say
from drivetrain.dashboard import OPEN_MEANS, door, is_loopback
from drivetrain.errors import RunError, SettingError
from drivetrain.layout import is_model_id

ANSWER_SECONDS = 10.0
# A cluster that does not answer may be one whose line is down: a job goes on without us.
PATIENCE_SECONDS = 300.0
# The job's whole log is read each time: soon at first, then as often as a job says how far it is.
MOST_BETWEEN_LOOKS = 10.0
# What a job reads from the machine that submits it, by the flag that names it.
TRAVELLING = ("config", "labels")
_TOKEN = "export RAY_AUTH_MODE=token   here, with the head's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"


class _Client(JobSubmissionClient):
    """Ray's client, which without this waits for ever for a cluster that has fallen silent."""

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=ANSWER_SECONDS, **kwargs)


@dataclass(frozen=True)
class Cluster:
    """A cluster that takes our jobs: the dashboard's url, and Ray's client for it."""

    url: str
    client: JobSubmissionClient

    def job(self, submission_id: str) -> "Job":
        """A job that was submitted before."""
        return Job(self, submission_id)


def reach(address: str | None, *, insecure: bool) -> Cluster:
    """The cluster at an address, by default the one that `ray job submit` would take.

    Raises SettingError when it is open to anyone (not with ``insecure``), when it does not take our token, or when it
    is no Ray dashboard; RunError when it does not answer.
    """
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    url = address_of(address)
    found, said = door(url, ANSWER_SECONDS)
    if found == "silent":
        raise RunError(f"No answer from a Ray dashboard at {url}: {said}\nOn the cluster's head, type   ray status")
    if found == "other":
        raise SettingError(f"{url} is no Ray dashboard: it answers with {said}.\nGive --address http://HEAD:8265")
    if found == "open" and not insecure and not is_loopback(url):
        raise SettingError(
            f"The Ray cluster at {url} asks for no token: {OPEN_MEANS}.\n"
            f"Start its nodes under RAY_AUTH_MODE=token and type   {_TOKEN}\n"
            "Where only you reach that port, --insecure submits all the same."
        )
    # Ray's client prefers this variable to the address that it is given, and must not go where nobody has looked.
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        return Cluster(url, _Client(url))
    except AuthenticationError as error:
        wrong = "Authentication failed" in str(error)
        what = "does not take the token that was sent" if wrong else "asks for a token, and none was sent"
        raise SettingError(f"The Ray cluster at {url} {what}.\nType   {_TOKEN}") from None
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise RunError(f"The Ray dashboard at {url} is not usable: {_line(error)}") from None


def address_of(address: str | None) -> str:
    """The dashboard's url: of the address given, RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or a cluster on this machine."""
    if address:
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        url = str(get_address_for_submission_client(None)).rstrip("/")
    except (OSError, RuntimeError, ValueError, RayError) as error:
        where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
        if isinstance(error, AuthenticationError) or "InvalidAuthToken" in str(error):
            raise SettingError(
                f"The Ray cluster at {where} does not take our token, or we have none.\nType   {_TOKEN}"
            ) from None
        raise RunError(f"No Ray cluster at {where}: {_line(error)}\nGive --address http://HEAD:8265") from None
    if not url.startswith(("http://", "https://")):
        raise SettingError(f"{url} is no address of a Ray dashboard.\nGive --address http://HEAD:8265")
    return url


def submit_command(
    words: Sequence[str], config: Config, config_file: str | None, *, address: str | None, insecure: bool
) -> "Job":
    """Start `drivetrain WORDS` as a job of a cluster. ``config`` is what the words and the config file amount to.

    Raises SettingError for paths that would mean another folder there, RunError when the cluster refuses, and whatever
    `reach` raises.
    """
    _same_everywhere(config)
    if config.webhook:
        raise SettingError(
            "--webhook: the words of a job can be read by whoever may use the cluster, and that address is a secret.\n"
            f"Put it into the environment in which the cluster's nodes start: export {WEBHOOK}=…"
        )
    labels = None if config.labels is None or "://" in config.labels else config.labels
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as folder:
        words = [*_without_files(words), *_packed(Path(folder), {"config": config_file, "labels": labels})]
        # An empty folder can't travel.
        runtime_env = {"working_dir": folder} if any(Path(folder).iterdir()) else {}
        cluster = reach(address, insecure=insecure)
        job = cluster.job(f"{words[0]}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}")
        entrypoint = shlex.join(["python", "-m", "drivetrain.cli", *words])
        try:
            cluster.client.submit_job(entrypoint=entrypoint, submission_id=job.id, runtime_env=runtime_env)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise RunError(f"The cluster did not say that it took the job: {_line(error)}\n{job.hint()}") from None
    say(f"Submitted {job.id} to {cluster.url}\n{job.hint()}")
    return job


def _without_files(words: Sequence[str]) -> list[str]:
    """The words of a command without the flags whose files travel: these have other names where the job runs."""
    flags = {f"--{name}" for name in TRAVELLING}
    kept, given = [], iter(words)
    for word in given:
        flag, has_value, _ = word.partition("=")
        if flag not in flags:
            kept.append(word)
        elif not has_value:
            next(given, None)
    return kept


def _packed(folder: Path, files: Mapping[str, str | None]) -> list[str]:
    """Copy the files that a job needs into a folder; the flags that name them there."""
    flags = []
    for flag, path in files.items():
        if path is None:
            continue
        there = f"{flag}/{os.path.basename(path)}"
        try:
            (folder / flag).mkdir()
            shutil.copyfile(os.path.expanduser(path), folder / there)
        except OSError as error:
            raise SettingError(f"--{flag} {path} can't be read: {error.strerror}") from None
        flags += [f"--{flag}", there]
    return flags


def _same_everywhere(config: Config) -> None:
    for key in ("root", "learner", "images", "shadow", "cases"):
        value = getattr(config, key)
        # A model id means the same everywhere.
        if not value or (key in ("learner", "shadow") and is_model_id(value)):
            continue
        if "://" not in value and not os.path.isabs(value):
            raise SettingError(
                f"{key} = {value!r}: a job runs in a folder of its own, where this path means another place.\n"
                f"Give a uri (s3://…), or a path from / on that every node of the cluster sees."
            )


def _to_stdout(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Job:
    """A job that the cluster was given."""

    cluster: Cluster
    id: str

    def hint(self) -> str:
        """What to type to look at the job, and to stop it."""
        flags = f"--address {self.cluster.url} {self.id}"
        return f"To follow it:  ray job logs --follow {flags}\nTo stop it:    ray job stop {flags}"

    def wait(self, patience: float = PATIENCE_SECONDS, tell: Callable[[str], object] = _to_stdout) -> int:
        """Show the job's log until the job is over; returns its own exit code, 1 for one that was stopped or has none.

        The log goes to stderr; its last line, if it is the job's result, to ``tell``. Raises RunError when the cluster
        has been silent for ``patience`` seconds, no longer knows the job, or Ctrl-C was pressed: the job goes on.
        """
        log, followed = _Log(), None
        with suppress(KeyboardInterrupt):
            try:
                followed = self._followed(log, patience)
            except AuthenticationError:
                raise RunError(f"The cluster no longer takes our token. The job {self.id} may go on.") from None
        if followed is None:
            # Not raised inside the handler: an error that came of Ctrl-C is told as "Stopped", and the job is not.
            raise RunError(f"The job {self.id} goes on.\n{self.hint()}")
        status, code, message = followed
        log.end(tell)
        if status == JobStatus.STOPPED:
            say(f"The job {self.id} was stopped. What is finished is kept; the same command goes on.")
            return 1
        if code is None and status == JobStatus.FAILED:
            say(f"Error: the job {self.id} failed before it had an exit code: {message}")
            return 1
        # A driver that a signal ended has a negative code: as shells say it.
        return 128 - code if code is not None and code < 0 else code or 0

    def _followed(self, log: "_Log", patience: float) -> tuple[JobStatus, int | None, str]:
        started = answered = time.monotonic()
        silent = False
        while True:
            try:
                about = self.cluster.client.get_job_info(self.id)
                text = self._log(over=about.status.is_terminal())
            except (OSError, RuntimeError, ValueError) as error:
                if "status code 404" in str(error):
                    raise RunError(
                        f"The cluster does not know the job {self.id} any more: was it started anew?"
                    ) from None
                if time.monotonic() - answered > patience:
                    raise RunError(
                        f"No answer from {self.cluster.url} for {duration(patience)}: {_line(error)}\n"
                        f"The job {self.id} may go on.\n{self.hint()}"
                    ) from None
                if not silent:
                    say(f"No answer from {self.cluster.url}; asking again for {duration(patience)}. The job goes on.")
                silent = True
            else:
                answered, silent = time.monotonic(), False
                log.show(text)
                if about.status.is_terminal():
                    return about.status, about.driver_exit_code, about.message or ""
            time.sleep(min(MOST_BETWEEN_LOOKS, 1 + (time.monotonic() - started) / 30))

    def _log(self, *, over: bool) -> str:
        try:
            return str(self.cluster.client.get_job_logs(self.id))
        except RuntimeError as error:
            if not over:
                raise
            say(f"The job's log can't be read: {_line(error)}")
            return ""


class _Log:
    """A job's log, shown as it grows. The last line is kept back: it may be the job's result."""

    def __init__(self) -> None:
        self._shown = 0
        self._last = ""

    def show(self, text: str) -> None:
        """Show what is new in the log so far."""
        *lines, last = text.rstrip("\n").split("\n")
        for line in lines[self._shown :]:
            say(line)
        if len(lines) >= self._shown:
            self._shown, self._last = len(lines), last

    def end(self, tell: Callable[[str], object]) -> None:
        """Show the last line, a result through ``tell``."""
        if _is_result(self._last):
            tell(self._last)
        elif self._last:
            say(self._last)


def _is_result(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
