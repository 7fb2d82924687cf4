"""The webhook's address is a secret: where it may come from, and that no setting shows it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from drivetrain import Config
from drivetrain.cli import main
from drivetrain.config import without_secrets
from drivetrain.errors import SettingError
from drivetrain.submit import submit_command

SECRET = "planted-webhook-3141592653"
URL = f"https://hooks.example.org/services/T0/B0/{SECRET}"


def test_the_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Config().the_webhook() is None
    monkeypatch.setenv("DRIVETRAIN_WEBHOOK", "https://other.example.org/x")
    assert Config().the_webhook() == "https://other.example.org/x"
    assert Config(webhook=URL).the_webhook() == URL
    monkeypatch.setenv("DRIVETRAIN_WEBHOOK", "")
    assert Config().the_webhook() is None


def test_no_form_of_the_settings_shows_it() -> None:
    config = Config(webhook=URL)
    shown = [repr(config), str(config), config.model_dump_json(), str(config.model_dump()), *config.need("webhook")]
    assert all(SECRET not in each for each in shown)
    assert Config(**config.model_dump() | {"night": "2026-11-23"}).the_webhook() == URL


@pytest.mark.parametrize("text", [f'webhook = "{URL}"', f'[webhook]\nurl = "{URL}"', f'webhook = ["{URL}"]'])
def test_the_config_file_must_not_hold_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "drivetrain.toml"
    file.write_text(text)
    with pytest.raises(SettingError, match="DRIVETRAIN_WEBHOOK") as refused:
        Config.load(file)
    assert SECRET not in str(refused.value) and str(file) in str(refused.value)


@pytest.mark.parametrize("value", [SECRET, f"ftp://host/{SECRET}", f"s3://{SECRET}"])
@pytest.mark.parametrize("command", ["nightly", "notify"])
def test_a_flag_that_is_no_web_address_is_refused_and_not_repeated(value: str, command: str) -> None:
    done = CliRunner().invoke(main, [command, "--webhook", value])
    assert done.exit_code == 2
    assert SECRET not in done.output and "must begin with https://" in done.output


def test_it_does_not_travel_in_the_words_of_a_job() -> None:
    with pytest.raises(SettingError, match="DRIVETRAIN_WEBHOOK") as refused:
        submit_command(
            ["nightly", "--webhook", URL], Config(webhook=URL), None, address="http://127.0.0.1:9", insecure=False
        )
    assert SECRET not in str(refused.value)


def test_what_others_say_is_cleared_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVETRAIN_WEBHOOK", URL)
    assert SECRET not in without_secrets(f"Max retries exceeded with url: {URL}")
