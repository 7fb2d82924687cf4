"""`drivetrain init`: the file holds every key once, is read again as what was given, and vouches for nothing."""

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import learners
import pytest
from click.testing import CliRunner

from drivetrain.cli import main
from drivetrain.config import NOT_IN_A_FILE, Config
from drivetrain.init import config_text

KEYS = list(Config.model_fields)
# A value of each key that a file may hold, none of them its default.
GIVEN: dict[str, Any] = {
    "root": "s3://b/r", "learner": "s3://b/e.pkl", "trust": ("a" * 64, "b" * 64), "images": "s3://b/{night:%Y/%m/%d}",
    "source": "shop", "name": "n", "night": "2026-11-23", "run": "r-1", "labels": "l.csv", "actors": 3,
    "gpus_per_actor": 0.5, "ray_address": "auto", "batch_size": 7, "embedding": "0.7", "engine": "torch",
    "precision": "float16", "max_pixels": 99, "max_failed": 0.5, "retry_failed": True, "lookback": 2,
    "alarms_per_year": 2.5, "group_by": r"(cam\d+)\"/'", "effect_floor": 0.6, "min_images": 5, "review_size": 6,
    "seed": 1, "evidently_embeddings": True, "price_per_hour": 1.25, "fail_on_drift": True,
    "nights": "2026-11-01..2026-11-23", "all": True, "reprocess": "failed", "full": True, "to": "fiftyone",
    "output": "q.csv", "sample": 9, "flips": "shop-r0", "behaviour_images": 50, "cases": "s3://b/cases", "shadow": "s3://b/new.pkl",
    "catch_up": True, "notify": "all", "site_url": "https://example.org/site",
    "storage": {"s3": {"endpoint_url": "http://h:1", "anon": True}, "gs": {"project": "x"}},
}  # fmt: skip


def keys_of(text: str) -> list[str]:
    """The keys that a file has a line of: set, shown behind a #, or told why it is not here."""
    told = re.findall(r"^(?:# )?(\w+) = |^# (webhook|dry_run|storage): ", text.split("[storage")[0], re.MULTILINE)
    return ["".join(each) for each in told]


def uncommented(text: str) -> str:
    """The file with every key set to the value that it shows."""
    return re.sub(r"^# (?=\w+ = |\[storage)", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("given", [{}, GIVEN, {"root": "/r"}])
def test_every_key_stands_there_exactly_once(given: dict[str, Any]) -> None:
    assert sorted(keys_of(config_text(Config(**given), "a" * 64, "about"))) == sorted(KEYS)


def test_what_was_given_is_read_again(tmp_path: Path) -> None:
    assert set(GIVEN) == set(KEYS) - set(NOT_IN_A_FILE), "each key that a file may hold is tried"
    (tmp_path / "c.toml").write_text(config_text(Config(**GIVEN), "a" * 64, "about"))
    assert Config.load(tmp_path / "c.toml", {}) == Config(**GIVEN)


def test_what_is_shown_as_default_or_example_is_a_value_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(uncommented(config_text(Config(), "a" * 64, "about")))
    config = Config.load(tmp_path / "c.toml", {})
    assert config.model_fields_set == set(KEYS) - set(NOT_IN_A_FILE)
    for key, field in Config.model_fields.items():
        if key not in ("trust", "storage") and field.default is not None:
            assert getattr(config, key) == field.default, key


def test_nothing_that_a_learner_is_called_ends_a_comment() -> None:
    text = config_text(Config(), "a" * 64, "10 classes: a\rroot = 1, b\x1b[31m\x00, c\u2028root = 2")
    assert all(each.isprintable() or each == "\n" for each in text)
    assert tomllib.loads(text) == {}


def drivetrain(*words: str) -> Any:
    return CliRunner().invoke(main, ["init", "--json", *words])


@pytest.mark.slow
def test_init_writes_what_nightly_takes_and_vouches_for_nothing(
    tmp_path: Path, digits_export: learners.Exported
) -> None:
    file = tmp_path / "shop.toml"
    words = ("--images", f"{tmp_path}/in/{{night}}", "--root", f"{tmp_path}/root", "--config", str(file))
    done = drivetrain("--learner", digits_export.path, *words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"config": str(file), "sha256": digits_export.sha256, "notes": []}
    text = file.read_text()
    assert f'# trust = ["{digits_export.sha256}"]' in text and "10 classes: 0, 1, 2" in text and "single-label" in text
    config = Config.load(file, {})
    assert config.trust == () and config.need("root", "learner", "images") == [
        f"{tmp_path}/root", digits_export.path, f"{tmp_path}/in/{{night}}"
    ]  # fmt: skip
    again = drivetrain("--learner", digits_export.path, *words, "--seed", "3")
    assert again.exit_code == 2 and str(file) in json.loads(again.stdout)["error"]["message"]
    assert file.read_text() == text, "never overwritten"
    vouched = drivetrain(
        "--learner", digits_export.path, *words[:-1], str(tmp_path / "v.toml"), "--trust", digits_export.sha256
    )
    assert vouched.exit_code == 0 and Config.load(tmp_path / "v.toml", {}).trust == (digits_export.sha256,)


@pytest.mark.slow
def test_a_learner_that_needs_trust_is_not_given_it(tmp_path: Path) -> None:
    export = tmp_path / "export.pkl"
    export.write_bytes(b"some pickle")
    done = drivetrain("--learner", str(export), "--images", str(tmp_path), "--config", str(tmp_path / "c.toml"))
    assert done.exit_code == 0, done.output
    assert Config.load(tmp_path / "c.toml", {}).trust == ()
    assert f'# trust = ["{hashlib.sha256(b"some pickle").hexdigest()}"]' in (tmp_path / "c.toml").read_text()
    assert "see trust" in " ".join(json.loads(done.stdout)["notes"])


def test_a_learner_that_is_not_there_leaves_no_file(tmp_path: Path) -> None:
    done = drivetrain("--learner", str(tmp_path / "none.pkl"), "--images", "/i", "--config", str(tmp_path / "c.toml"))
    assert done.exit_code == 1 and "No learner at" in json.loads(done.stdout)["error"]["message"]
    assert not (tmp_path / "c.toml").exists()
