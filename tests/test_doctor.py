"""The doctor names the true cause and what mends it, on a real store and with real exports."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import hostile
import learners
import pytest
import torch
import zoo
from packaging.requirements import Requirement
from servers import free_ports
from torch import nn

from drivetrain import Config
from drivetrain import doctor as checks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return learners.write_photos(tmp_path_factory.mktemp("photos") / "all", 12)


@pytest.fixture(scope="module")
def exported(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> learners.Exported:
    return learners.exported(zoo.ZOO["squish"](photos), tmp_path_factory.mktemp("learner") / "export.pkl")


def doctor(*words: str, **env: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "drivetrain.cli", "doctor", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(each["mend"] for each in found["checks"] if each["state"] == "failed"), found
    return done.returncode, found, done.stdout


def looked(tmp_path: Path, learner: str, photos: list[Path], **other: Any) -> dict[str, Any]:
    """What the doctor finds in this process, which has imported torch: on a busy machine that takes its whole time."""
    paths = {"root": str(tmp_path / "root"), "learner": learner, "images": str(photos[0].parent.parent)}
    found = checks.check_setup(Config(**paths | other))
    assert all(each["mend"] for each in found["checks"] if each["state"] == "failed"), found
    return found


def check_of(found: dict[str, Any], name: str) -> dict[str, str]:
    """What one check found."""
    (check,) = (each for each in found["checks"] if each["name"] == name)
    return check


def given(tmp_path: Path, learner: str, photos: list[Path], **other: str) -> list[str]:
    flags = {"root": str(tmp_path / "root"), "learner": learner, "images": str(photos[0].parent.parent)} | other
    return [word for key, value in flags.items() for word in (f"--{key}", value)]


def test_a_sound_set_up_is_ok(tmp_path: Path, exported: learners.Exported, photos: list[Path]) -> None:
    code, found, said = doctor(*given(tmp_path, exported.path, photos))
    assert code == 0 and "FAILED" not in said and found["seconds"] < 15
    found = looked(tmp_path, exported.path, photos)
    assert found["ok"] and check_of(found, "score")["state"] == "ok"


def test_a_version_that_does_not_fit_is_named_with_the_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "misfits", lambda: [(Requirement("torch>=2.9,<3"), "2.1.0")])
    found = checks.check_packages()
    assert found.state == "failed" and "torch 2.1.0" in found.found and "pip install 'torch<3,>=2.9'" in found.mend


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, exported: learners.Exported, photos: list[Path]) -> None:
    words = [*given(tmp_path, exported.path, photos), "--gpus-per-actor", "1"]
    code, found, _ = doctor(*words, CUDA_VISIBLE_DEVICES="")
    check = check_of(found, "gpu")
    assert code == 1 and "finds no GPU" in check["found"] and "nvidia-smi" in check["mend"], check


def test_what_a_learner_says_in_one_line_has_something_to_type(
    tmp_path: Path, exported: learners.Exported, photos: list[Path]
) -> None:
    """Its error names what is wrong and ends there."""
    found = looked(tmp_path, exported.path, photos, embedding="9.9")
    check = check_of(found, "learner")
    assert "no layer '9.9'" in check["found"] and "learner inspect" in check["mend"], check


def test_a_bare_model_is_told_from_a_learner(tmp_path: Path, photos: list[Path]) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pkl")
    code, _, said = doctor(*given(tmp_path, str(tmp_path / "model.pkl"), photos))
    assert code == 1 and "learn.export()" in said


def test_a_bare_model_that_is_vouched_for_is_told_as_well(tmp_path: Path, photos: list[Path]) -> None:
    """In torch's older form, which is not read as data."""
    path = tmp_path / "model.pkl"
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=False)
    found = looked(tmp_path, str(path), photos, trust=(hashlib.sha256(path.read_bytes()).hexdigest(),))
    (check,) = (each for each in found["checks"] if each["name"] == "learner")
    assert not found["ok"] and "Expected a fastai Learner" in check["found"] and "learn.export()" in check["mend"], (
        check
    )


LINEAR = b"torch.nn.modules.linear\nLinear\n"


@pytest.mark.parametrize(
    ("there", "found", "mend"),
    [
        (b"cv2.dnn\nNet\n", "cv2 is not installed here", "pip install opencv-python-headless"),
        (b"shopnet.layers\nLinear\n", "shopnet is not installed here", "export PYTHONPATH=FOLDER_OF_THE_FILE"),
        (b"torch.nn.modules.linear\nLinearOfTomorrow\n", f"torch {torch.__version__.split('+')[0]}", "pip install"),
    ],
    ids=["a package", "a file of one's own", "a symbol"],
)
def test_what_a_vouched_learner_needs_and_is_not_here_is_named(
    there: bytes, found: str, mend: str, tmp_path: Path, exported: learners.Exported, photos: list[Path]
) -> None:
    export = Path(exported.path).read_bytes()
    pickled = hostile.pickled_in(export)
    assert LINEAR in pickled
    path = tmp_path / "export.pkl"
    path.write_bytes(hostile.rewritten(export, pickled.replace(LINEAR, there)))
    trust = (hashlib.sha256(path.read_bytes()).hexdigest(),)
    check = check_of(looked(tmp_path, str(path), photos, trust=trust), "learner")
    assert check["state"] == "failed" and found in check["found"] and mend in check["mend"], check


def test_a_folder_without_images_is_named(tmp_path: Path, exported: learners.Exported, photos: list[Path]) -> None:
    (tmp_path / "empty").mkdir()
    code, _, said = doctor(*given(tmp_path, exported.path, photos, images=str(tmp_path / "empty")))
    assert code == 1 and str(tmp_path / "empty") in said


def test_a_store_that_does_not_answer_is_named(tmp_path: Path, exported: learners.Exported, photos: list[Path]) -> None:
    (port,) = free_ports(1)
    words = given(tmp_path, exported.path, photos, images="s3://bucket/photos")
    code, _, said = doctor(*words, "--storage", f"s3.endpoint_url=http://127.0.0.1:{port}")
    assert code == 1 and f"127.0.0.1:{port}" in said


@pytest.mark.parametrize("asked", ["root", "learner", "images"])
def test_a_web_server_is_told_from_a_store(
    asked: str, tmp_path: Path, exported: learners.Exported, photos: list[Path]
) -> None:
    """Its "not found" would pass for that of a store: there is no such object."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        there = {"learner": exported.path, asked: "s3://bucket/photos/export.pkl"}
        words = given(tmp_path, there.pop("learner"), photos, **there)
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}  # a letter of "images"
        endpoint = f"http://127.0.0.1:{server.server_port}"
        code, found, _ = doctor(*words, "--storage", f"s3.endpoint_url={endpoint}", **keys)
        server.shutdown()
    (check,) = (each for each in found["checks"] if each["name"] == asked)
    assert code == 1 and f"{endpoint} answers with a web page" in check["found"] and "endpoint" in check["mend"], check


def test_a_missing_bucket_is_named(tmp_path: Path, exported: learners.Exported, photos: list[Path], s3: Any) -> None:
    words = given(tmp_path, exported.path, photos, images="s3://no-such-bucket-here/photos")
    code, _, said = doctor(*words, "--storage", f"s3.endpoint_url={s3.endpoint}")
    assert code == 1 and "no-such-bucket-here" in said


def test_a_wrong_secret_is_named_and_not_shown(
    tmp_path: Path, exported: learners.Exported, photos: list[Path], s3: Any
) -> None:
    words = given(tmp_path, exported.path, photos, images=f"{s3.bucket()}/photos")
    secret = "no-such-secret-of-this-test"
    code, _, said = doctor(*words, "--storage", f"s3.endpoint_url={s3.endpoint}", AWS_SECRET_ACCESS_KEY=secret)
    assert code == 1 and "the secret key is not the one of the access key" in said and secret not in said


def test_an_unknown_access_key_is_named(
    tmp_path: Path, exported: learners.Exported, photos: list[Path], s3: Any
) -> None:
    words = given(tmp_path, exported.path, photos, images=f"{s3.bucket()}/photos")
    code, found, _ = doctor(*words, "--storage", f"s3.endpoint_url={s3.endpoint}", AWS_ACCESS_KEY_ID="nobody")
    check = check_of(found, "images")
    assert code == 1 and "does not know the access key" in check["found"] and "AWS_ACCESS_KEY_ID" in check["mend"], (
        check
    )


def test_a_wrong_key_of_the_learner_is_named(tmp_path: Path, photos: list[Path], s3: Any) -> None:
    words = given(tmp_path, f"{s3.bucket()}/models/exprot.pkl", photos)
    code, found, _ = doctor(*words, "--storage", f"s3.endpoint_url={s3.endpoint}")
    check = check_of(found, "learner")
    assert code == 1 and "there is no object" in check["found"] and "exprot.pkl" in check["found"], check
    assert "aws s3 ls" in check["mend"], check


def test_a_silent_endpoint_is_named(tmp_path: Path, exported: learners.Exported, photos: list[Path]) -> None:
    """It takes the connection and never answers: s3fs alone would wait for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = given(tmp_path, exported.path, photos, images="s3://bucket/photos")
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}  # a letter of "images"
        code, found, said = doctor(*words, "--storage", f"s3.endpoint_url=http://127.0.0.1:{port}", **keys)
    assert code == 1 and f"127.0.0.1:{port}" in said
    states = {check["name"]: check["state"] for check in found["checks"]}
    # On a busy machine opening the learner may take more than the time there is.
    assert (states["root"], states["images"]) == ("ok", "failed") and states["learner"] in ("ok", "not checked")
    assert found["seconds"] < 15, "s3fs alone would ask for minutes"


def test_an_image_that_is_a_web_page_is_named(tmp_path: Path, exported: learners.Exported, photos: list[Path]) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.jpg").write_text("<!doctype html><title>Sign in</title>")
    code, _, said = doctor(*given(tmp_path, exported.path, photos, images=str(tmp_path / "pages")))
    assert code == 1 and "a web page" in said
