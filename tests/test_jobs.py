"""`ray job submit -- python jobs/NAME.py` on a real cluster with token authentication, as the README says it.

Two users at once: one scores digits, one 400-pixel photos. The working directory is what a checkout holds.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import learners
import pandas as pd
import pytest
from servers import RayCluster, S3Server, fetch

from drivetrain.store import Store

pytestmark = pytest.mark.thorough

HERE = Path(__file__).parent.parent


@dataclass
class User:
    """Somebody with a working directory, a config in it, and a bucket."""

    name: str
    folder: Path
    cluster: RayCluster
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def submit(self, step: str, job: str, *flags: str, expect: int = 0) -> dict[str, Any]:
        """Submit a job and wait for it; ``expect`` is the driver's own exit code."""
        submission = f"{self.name}-{step}"
        command = ["ray", "job", "submit", "--working-dir", ".", "--submission-id", submission, "--"]
        command += ["python", f"jobs/{job}.py", "--config", "drivetrain.toml", *flags]
        done = subprocess.run(
            command, cwd=self.folder, env=self.cluster.env, capture_output=True, text=True, timeout=300, check=False
        )
        about = json.loads(
            fetch(f"{self.cluster.dashboard}/api/jobs/{submission}", {"Authorization": f"Bearer {self.cluster.token}"})
        )
        assert about["driver_exit_code"] == expect, done.stdout + done.stderr
        assert (done.returncode == 0) == (expect == 0)
        log = fetch(
            f"{self.cluster.dashboard}/api/jobs/{submission}/logs", {"Authorization": f"Bearer {self.cluster.token}"}
        )
        text = json.loads(log)["logs"]
        assert "\x1b[" not in text and "\r" not in text, "no colour and no carriage return in a job's log"
        self.results[step] = json.loads(text.strip().splitlines()[-1])
        return self.results[step]


def checkout(folder: Path, config: dict[str, Any], s3: S3Server) -> None:
    """What a user's working directory holds: the package, the jobs, and a config."""
    for name in ("drivetrain", "jobs", "dashboards"):
        shutil.copytree(HERE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    lines += ["[storage.s3]", f'endpoint_url = "{s3.endpoint}"']
    (folder / "drivetrain.toml").write_text("\n".join(lines))


def put(store: Store, paths: Sequence[Path], folder: Path, prefix: str) -> None:
    for path in paths:
        store.replace(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


@pytest.fixture(scope="module")
def users(ray_cluster: RayCluster, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, User]:
    store = Store(s3.storage)
    users = {}
    for name in ("digits", "photos"):
        folder, bucket = tmp_path_factory.mktemp(name), s3.bucket()
        if name == "digits":
            train = learners.write_digits(folder / "train", 0, 600, by_label=True)
            nights = [
                learners.write_digits(folder / "2026-11-22", 600, 750),
                learners.write_digits(folder / "2026-11-23", 750, 900, invert=True),
            ]
            old, new = (learners.digits_learner(folder / "train", epochs=4, seed=seed) for seed in (0, 1))
            # The split travels as folders here; test_night has the labels file.
            held_out = [(path, f"valid/{path.parent.name}/{path.name}") for path in train[:300]]
            trained = [(path, f"train/{path.parent.name}/{path.name}") for path in train[300:]]
            for path, key in held_out + trained:
                store.replace(f"{bucket}/reference/{key}", path.read_bytes())
        else:
            nights = [learners.write_photos(folder / "2026-11-23", 60)]
            old, new = (learners.photos_learner(folder / "2026-11-23") for _ in range(2))
        for paths in nights:
            put(store, paths, folder, f"{bucket}/incoming")
        exports = [learners.exported(each, folder / f"{i}.pkl") for i, each in enumerate((old, new))]
        for i, export in enumerate(exports):
            store.replace(f"{bucket}/models/{i}.pkl", Path(export.path).read_bytes())
        config = {
            "root": f"{bucket}/drivetrain",
            "learner": f"{bucket}/models/0.pkl",
            "trust": [export.sha256 for export in exports],
            "images": f"{bucket}/incoming/{{night:%Y-%m-%d}}",
            "source": name,
            "actors": 1,
        }
        work = folder / "work"
        work.mkdir()
        checkout(work, config, s3)
        users[name] = User(name, work, ray_cluster)
        users[name].results["config"] = config

    def digits(user: User) -> None:
        bucket = user.results["config"]["root"].removesuffix("/drivetrain")
        user.submit("reference", "reference", "--images", f"{bucket}/reference")
        user.submit("first", "nightly", "--night", "2026-11-22")
        user.submit("second", "nightly", "--night", "2026-11-23", "--fail-on-drift", expect=4)
        user.submit("drift", "drift", "--run", user.results["second"]["run_id"])
        user.submit(
            "rescore", "rescore", "--learner", f"{bucket}/models/1.pkl", "--run", user.results["first"]["run_id"]
        )
        # The first night is known by now.
        user.submit("nights", "rescore", "--learner", f"{bucket}/models/1.pkl", "--nights", "2026-11-22..2026-11-23")

    def photos(user: User) -> None:
        bucket = user.results["config"]["root"].removesuffix("/drivetrain")
        user.submit("score", "score", "--images", f"{bucket}/incoming/2026-11-23", "--name", "all")
        user.submit("night", "nightly", "--night", "2026-11-23")
        user.submit(
            "rescore", "rescore", "--learner", f"{bucket}/models/1.pkl", "--run", user.results["night"]["run_id"]
        )

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(digits, users["digits"]), pool.submit(photos, users["photos"])]:
            done.result()
    return users


def test_nightly_on_digits(users: dict[str, User]) -> None:
    results = users["digits"].results
    assert results["reference"]["splits"] == {"held_out": 300, "trained": 300}
    assert (results["first"]["rows"], results["first"]["failed"], results["first"]["verdict"]) == (150, 0, "ok")
    assert results["second"]["verdict"] == "drift", "and its exit code was 4"


def test_drift_finds_the_night_measured(users: dict[str, User]) -> None:
    results = users["digits"].results
    assert results["drift"] == results["second"]


def test_photos(users: dict[str, User], s3: S3Server) -> None:
    results = users["photos"].results
    assert results["score"]["rows"] == results["night"]["rows"] == results["rescore"]["rows"] == 60
    assert results["night"]["verdict"] == "unknown"
    scored, of_night = (
        pd.read_parquet(results[step]["parts"], storage_options=s3.storage["s3"]).set_index("uri")
        for step in ("score", "night")
    )
    assert scored["label"].to_dict() == of_night["label"].to_dict()
    assert set(scored["width"]) == {500} and set(scored["height"]) == {400}


def test_rescoring_nights_is_one_job(users: dict[str, User]) -> None:
    results = users["digits"].results
    known, scored = results["nights"]["nights"]
    assert (known["night"], known["made"], known["run_id"]) == ("2026-11-22", "known", results["rescore"]["run_id"])
    assert (scored["night"], scored["made"], scored["failed"]) == ("2026-11-23", "scored", 0)
    assert results["nights"]["reference"] and scored["verdict"] and 0 <= scored["agreement"] <= 1


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_rescore(users: dict[str, User], name: str) -> None:
    result = users[name].results["rescore"]
    assert result["failed"] == 0 and 0 <= result["agreement"] <= 1
    assert result["comparison"].endswith("/index.html")


def test_a_wrong_setting_is_exit_code_2_and_a_plain_line(users: dict[str, User]) -> None:
    user = users["digits"]
    with pytest.raises(json.JSONDecodeError):
        user.submit("wrong", "score", "--learner", "s3://no-such-bucket/export.pkl", expect=1)
    with pytest.raises(json.JSONDecodeError):
        user.submit("usage", "score", "--max-failed", "7", expect=2)
