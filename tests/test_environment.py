"""Settings of the environment: each key has its variable, a flag wins over it, and it wins over the file."""

from pathlib import Path

import pytest

from drivetrain.config import Config, parse_storage
from drivetrain.errors import SettingError


def of(**variables: str) -> Config:
    return Config.load(None, {f"DRIVETRAIN_{key}": value for key, value in variables.items()})


def refused(**variables: str) -> str:
    with pytest.raises(SettingError) as caught:
        of(**variables)
    return str(caught.value)


@pytest.mark.parametrize("key", [key for key in Config.model_fields if key != "webhook"])
def test_every_key_can_be_set_by_its_variable(key: str) -> None:
    field = Config.model_fields[key]
    text = "true" if field.annotation is bool else (field.examples or [""])[0].strip("'")
    if key == "trust":
        text = "a" * 64
    expected = parse_storage((text,)) if key == "storage" else text
    assert of(**{key.upper(): text}) == Config.load(None, {}, **{key: expected})
    assert of(**{key.upper(): text}).model_fields_set == {key}


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('root = "/file"\nbatch_size = 1\nsource = "file"\n')
    monkeypatch.setenv("DRIVETRAIN_ROOT", "/environment")
    monkeypatch.setenv("DRIVETRAIN_BATCH_SIZE", "2")
    config = Config.load(file, batch_size=3)
    assert (config.root, config.batch_size, config.source) == ("/environment", 3, "file")
    assert Config.load(file, {}).root == "/file", "another environment may be given"


def test_an_empty_variable_sets_nothing() -> None:
    assert of(ROOT="", TRUST=" ", STORAGE="", ACTORS="") == Config()


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("yes", True), ("0", False), ("off", False)])
def test_booleans(text: str, value: bool) -> None:
    assert of(FAIL_ON_DRIFT=text).fail_on_drift is value


def test_lists_are_words() -> None:
    one, two = "a" * 64, "b" * 64
    assert (
        of(TRUST=f"{one},{two}").trust
        == of(TRUST=f" {one} {two} ").trust
        == of(TRUST=f"{one}, {two}").trust
        == (one, two)
    )
    assert of(STORAGE="s3.endpoint_url=http://h:1/?a=b,c s3.anon=true").storage == {
        "s3": {"endpoint_url": "http://h:1/?a=b,c", "anon": True}
    }


@pytest.mark.parametrize(("wrong", "right"), [("ROOF", "ROOT"), ("BATCHSIZE", "BATCH_SIZE"), ("root", "ROOT")])
def test_an_unknown_variable_names_the_nearest(wrong: str, right: str) -> None:
    message = refused(**{wrong: "x"})
    assert f"DRIVETRAIN_{wrong} in the environment" in message and f"DRIVETRAIN_{right}" in message


def test_a_bad_value_names_its_variable_and_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("batch_size = 1\nlookback = -1\n")
    with pytest.raises(SettingError) as caught:
        Config.load(tmp_path / "c.toml", {"DRIVETRAIN_BATCH_SIZE": "many"})
    lines = sorted(str(caught.value).splitlines())
    assert lines[0].startswith("batch_size in DRIVETRAIN_BATCH_SIZE: ")
    assert lines[1].startswith(f"lookback in {tmp_path}/c.toml: ")
    with pytest.raises(SettingError, match=r"^batch_size: "):
        Config.load(tmp_path / "c.toml", {"DRIVETRAIN_LOOKBACK": "1"}, batch_size="many")


@pytest.mark.parametrize(
    ("name", "value"),
    [("STORAGE", "s3.secret=hunter2"), ("STORAGE", "hunter2"), ("ROOT", "s3://me:hunter2@b/x")],
)
def test_a_secret_is_refused_here_too_and_not_repeated(name: str, value: str) -> None:
    message = refused(**{name: value})
    assert "hunter2" not in message and f"DRIVETRAIN_{name}" in message


def test_the_webhook_stays_where_no_setting_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVETRAIN_WEBHOOK", "https://hooks.example.org/T0")
    config = Config.load(None)
    assert config.webhook is None, "a job's words would be refused for it"
    assert config.the_webhook() == "https://hooks.example.org/T0"
