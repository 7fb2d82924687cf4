"""Settings: one strict object from a file, flags or keywords, with plain messages, and never a secret in it."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from drivetrain.cli import _settings, main
from drivetrain.config import Config, nearest, parse_storage
from drivetrain.errors import SettingError

SECRET = "hunter2"
NIGHT = date(2026, 11, 23)


def written(folder: Path, text: str) -> Path:
    file = folder / "drivetrain.toml"
    file.write_text(text)
    return file


def refused(folder: Path, text: str) -> str:
    """The message about a file that must not be taken."""
    with pytest.raises(SettingError) as caught:
        Config.load(written(folder, text))
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("imgaes", "images"), ("max-failed", "max_failed"), ("effect", "effect_floor"), ("Root", "root")],
)
def test_an_unknown_key_names_the_nearest_one(tmp_path: Path, wrong: str, right: str) -> None:
    message = refused(tmp_path, f"{wrong} = 1")
    assert f"Unknown key {wrong!r}" in message
    assert f"Did you mean {right!r}?" in message
    assert "drivetrain.toml" in message


def test_an_unknown_key_like_no_other_gets_all_known_ones(tmp_path: Path) -> None:
    message = refused(tmp_path, "zzzzzz = 1")
    assert all(key in message for key in Config.model_fields)


def test_an_unknown_flag_is_refused_as_an_unknown_key_is() -> None:
    with pytest.raises(SettingError, match=r"Unknown key 'batchsize'\. Did you mean 'batch_size'\?"):
        Config.load(batchsize=3)


def test_a_flag_wins_over_the_file_and_an_absent_flag_does_not(tmp_path: Path) -> None:
    file = written(tmp_path, 'root = "/from/file"\nbatch_size = 7\nfail_on_drift = true')
    config = Config.load(file, root="/from/flag", batch_size=None, fail_on_drift=None)
    assert (config.root, config.batch_size, config.fail_on_drift) == ("/from/flag", 7, True)


def test_a_flag_that_is_zero_or_false_still_wins(tmp_path: Path) -> None:
    file = written(tmp_path, "actors = 8\nlookback = 3\nfail_on_drift = true")
    config = Config.load(file, actors=0, lookback=0, fail_on_drift=False)
    assert (config.actors, config.lookback, config.fail_on_drift) == (0, 0, False)


def test_bad_toml_names_the_file_and_the_line(tmp_path: Path) -> None:
    message = refused(tmp_path, 'root = "/x"\nimages = \n')
    assert "drivetrain.toml can't be read" in message
    assert "line 2" in message


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_a_setting_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match="can't be read"):
        Config.load(tmp_path / name)


def test_bytes_that_are_no_text_are_a_setting_error(tmp_path: Path) -> None:
    file = tmp_path / "drivetrain.toml"
    file.write_bytes(b'root = "\xff\xfe"')
    with pytest.raises(SettingError, match="can't be read"):
        Config.load(file)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("alarms_per_year = 366", "more than 0 and at most 365, found 366"),
        ("alarms_per_year = 0", "can never alarm"),
        ("alarms_per_year = -1", "more than 0 and at most 365, found -1"),
        ("alarms_per_year = nan", "more than 0 and at most 365, found nan"),
        ("group_by = '(camera'", "is no regular expression: missing ), unterminated subpattern"),
        ("max_failed = -0.1", "between 0 and 1, found -0.1"),
        ("effect_floor = 55", "between 0 and 1, found 55"),
        ("actors = -1", "0 or more, found -1"),
        ("lookback = -2", "0 or more, found -2"),
        ("lookback = 1.5", "valid integer"),
        ("gpus_per_actor = -0.5", "0 or more, found -0.5"),
        ("batch_size = 0", "1 or more, found 0"),
        ('batch_size = "many"', "valid integer"),
        ("max_pixels = 0", "1 or more, found 0"),
        ("min_images = 0", "1 or more, found 0"),
        ("review_size = 0", "1 or more, found 0"),
        ('engine = "fast"', "'auto', 'torch', 'openvino' or 'int8'"),
        ('night = "tomorrow"', "valid date"),
        ('night = "2026-13-01"', "month value is outside expected range"),
        ('name = "-x"', "letters, digits, dots, hyphens or underscores"),
        ('name = "a b"', "letters, digits, dots, hyphens or underscores"),
        ('source = "../x"', "letters, digits, dots, hyphens or underscores"),
        (f'source = "{"x" * 65}"', "1 to 64"),
        ('images = " "', "is empty"),
        ('root = ""', "is empty"),
        ('fail_on_drift = "perhaps"', "valid boolean"),
        ('trust = ["9f86d08"]', "64 characters 0-9 a-f, the output of `sha256sum export.pkl`"),
        (f'trust = ["{"A" * 64}"]', "64 characters 0-9 a-f"),
        (f'trust = ["{"a" * 64}", "{"a" * 65}"]', "64 characters 0-9 a-f"),
    ],
)
def test_a_bad_value_gets_one_plain_line_that_names_its_key(tmp_path: Path, line: str, expected: str) -> None:
    message = refused(tmp_path, line)
    key = line.split(" = ")[0]
    assert message.startswith(f"{key} in {tmp_path}/drivetrain.toml: ")
    assert expected in message
    assert "\n" not in message
    assert "Value error" not in message
    assert "pydantic" not in message


def test_every_bad_value_is_named_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "effect_floor = 2\nbatch_size = 0\n")
    assert [line.split(" ")[0] for line in message.splitlines()] == ["batch_size", "effect_floor"]


def test_one_trusted_hash_may_stand_without_brackets(tmp_path: Path) -> None:
    assert Config.load(written(tmp_path, f'trust = "{"a" * 64}"')).trust == ("a" * 64,)


@pytest.mark.parametrize("key", ["root", "learner", "images", "labels"])
@pytest.mark.parametrize(
    "uri",
    [
        f"s3://user:{SECRET}@bucket/x",
        f"s3://{SECRET}@bucket/x",
        f"https://host/x?X-Amz-Algorithm=AWS4&X-Amz-Signature={SECRET}",
        f"https://host/x?sv=2024&sig={SECRET}",
        f"https://host/x?token={SECRET}",
        f"gs://bucket/x?Signature={SECRET}",
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(tmp_path: Path, key: str, uri: str) -> None:
    message = refused(tmp_path, f'{key} = "{uri}"')
    assert message.startswith(key)
    assert "environment" in message
    assert SECRET not in message


@pytest.mark.parametrize("uri", ["s3://bucket/me@example.org/x", "/data/a@b/c", "s3://bucket/sig=1/x", "C:\\x@y"])
def test_a_uri_that_only_looks_odd_is_taken(uri: str) -> None:
    assert Config.load(images=uri).images == uri


@pytest.mark.parametrize(
    "option",
    [
        "s3.key",
        "s3.secret",
        "s3.token",
        "s3.aws_secret_access_key",
        "s3.aws_access_key_id",
        "s3.password",
        "az.account_key",
        "az.sas_token",
        "az.credential",
        "az.connection_string",
    ],
)
def test_a_secret_in_storage_is_refused_and_not_repeated(tmp_path: Path, option: str) -> None:
    protocol, key = option.split(".")
    message = refused(tmp_path, f'[storage.{protocol}]\n{key} = "{SECRET}"')
    assert option in message
    assert "instance profile" in message
    assert SECRET not in message


def test_a_secret_in_an_endpoint_is_refused_and_not_repeated(tmp_path: Path) -> None:
    message = refused(tmp_path, f'[storage.s3]\nendpoint_url = "http://user:{SECRET}@host:9000"')
    assert "s3.endpoint_url" in message
    assert SECRET not in message


def test_the_python_api_does_not_repeat_a_secret_either() -> None:
    with pytest.raises(ValidationError) as caught:
        Config(root=f"s3://user:{SECRET}@bucket/x")
    assert SECRET not in str(caught.value)


def test_harmless_storage_options_are_taken(tmp_path: Path) -> None:
    text = '[storage.s3]\nendpoint_url = "http://127.0.0.1:8333"\nanon = true\nmax_concurrency = 4'
    options = {"endpoint_url": "http://127.0.0.1:8333", "anon": True, "max_concurrency": 4}
    assert Config.load(written(tmp_path, text)).storage == {"s3": options}


def test_storage_flags_become_options_by_protocol() -> None:
    pairs = ("s3.endpoint_url=http://127.0.0.1:8333/?a=b", "s3.anon=true", "s3.use_ssl=false", "gs.project=x")
    assert parse_storage(pairs) == {
        "s3": {"endpoint_url": "http://127.0.0.1:8333/?a=b", "anon": True, "use_ssl": False},
        "gs": {"project": "x"},
    }
    assert parse_storage(()) is None


@pytest.mark.parametrize("pair", ["endpoint_url=x", "s3.endpoint_url", "s3=x", "", "s3.a.b=x"])
def test_a_storage_flag_of_another_form_is_refused_with_an_example(pair: str) -> None:
    with pytest.raises(SettingError, match=r"expected PROTOCOL\.OPTION=VALUE, e\.g\. s3\.endpoint_url="):
        parse_storage((pair,))


@pytest.mark.parametrize("pair", [f"secret={SECRET}", f"s3.SECRET={SECRET}", f"S3.secret={SECRET}"])
def test_a_storage_flag_of_another_form_does_not_repeat_its_value(pair: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_storage((pair,))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "prefix"),
    [
        ("s3://b/in/{night:%Y/%m/%d}", "s3://b/in/2026/11/23"),
        ("s3://b/in/day={night}", "s3://b/in/day=2026-11-23"),
        ("/in/{night:%Y}/x/{night:%m%d}/y", "/in/2026/x/1123/y"),
    ],
)
def test_a_night_template_is_filled_with_the_date(images: str, prefix: str) -> None:
    config = Config(images=images)
    assert config.dated
    assert config.images_of(NIGHT) == prefix


@pytest.mark.parametrize("images", ["s3://b/in", "/in/{weird}/x", "/in/night"])
def test_a_prefix_without_a_night_is_one_that_grows_and_stays_as_it_is(images: str) -> None:
    config = Config(images=images)
    assert not config.dated
    assert config.images_of(NIGHT) == images


@pytest.mark.parametrize("images", ["/in/{night:%Y}/{shop}", "/in/{night:%Y}/{", "/in/{night:%Y}/{}"])
def test_a_template_that_cannot_be_filled_is_a_setting_error(images: str) -> None:
    with pytest.raises(SettingError, match="can't be filled in for 2026-11-23"):
        Config(images=images).images_of(NIGHT)


@pytest.mark.parametrize(
    ("images", "source"),
    [
        ("s3://my-bucket/incoming/{night:%Y/%m/%d}", "bucket-incoming"),
        ("s3://shop", "shop"),
        ("/data/photos/", "data-photos"),
        ("photos", "photos"),
        ("s3://b/2026/{night}/x", "2026-x"),
        ("/日本", "images"),
        ("/" + "x" * 100, "x" * 64),
    ],
)
def test_a_source_without_a_name_is_named_after_its_prefix(images: str, source: str) -> None:
    made = Config(images=images).the_source()
    assert made == source
    assert Config(source=made).the_source() == source, "the name that is made is one that may be given"


def test_a_given_source_is_the_name() -> None:
    assert Config(images="/a/b", source="shop").the_source() == "shop"


def test_the_default_night_is_yesterday_in_utc() -> None:
    before = datetime.now(UTC).date()
    night = Config().the_night()
    after = datetime.now(UTC).date()
    assert night in {before - timedelta(days=1), after - timedelta(days=1)}
    assert Config(night=NIGHT).the_night() == NIGHT


def test_a_toml_date_and_a_quoted_one_are_the_same_night(tmp_path: Path) -> None:
    assert Config.load(written(tmp_path, "night = 2026-11-23")).night == NIGHT
    assert Config.load(written(tmp_path, 'night = "2026-11-23"')).night == NIGHT


def test_what_is_needed_and_missing_is_asked_for_with_flag_key_and_example() -> None:
    with pytest.raises(SettingError) as caught:
        Config(root="/x").need("root", "images", "learner")
    message = str(caught.value)
    assert "Prefix of the images" in message
    assert "--images s3://my-bucket/incoming/{night:%Y/%m/%d}" in message
    assert "images = 's3://my-bucket/incoming/{night:%Y/%m/%d}'" in message
    assert Config(root="/x", run="r").need("run", "root") == ["r", "/x"]


def test_nearest_says_nothing_wild() -> None:
    assert nearest("nght", {"night": 1, "root": 2}) == "Did you mean 'night'?"
    assert nearest("qq", {"night": 1, "root": 2}) == "Known: night, root."


@pytest.mark.parametrize("key", list(Config.model_fields))
def test_every_key_has_a_description_and_an_example(key: str) -> None:
    field = Config.model_fields[key]
    assert field.description and field.description[0].isalnum() and field.description.endswith((".", ")"))
    assert field.examples and len(field.examples) == 1
    assert field.examples[0] or field.annotation is bool, "only a flag without a value needs no example"


@pytest.mark.parametrize(
    "key", [key for key, field in Config.model_fields.items() if key != "trust" and field.annotation is not bool]
)
def test_every_example_is_a_value_that_is_taken(key: str) -> None:
    (example,) = Config.model_fields[key].examples or ()
    value = parse_storage((example,)) if key == "storage" else example
    assert getattr(Config.load(None, **{key: value}), key) not in (None, {}, ())


@pytest.mark.parametrize(
    "images", ["in/{nite:%Y/%m/%d}", "in/{nights:%Y}", "in/{night.year}", "in/{night:%Y}/{day:%d}"]
)
def test_a_misspelt_night_is_not_taken_for_a_folder(images: str) -> None:
    with pytest.raises(SettingError, match="no template"):
        Config.load(None, images=images)
    assert Config.load(None, images="in/{a}/x").images == "in/{a}/x", "braces alone may stand in a key"


def test_a_flag_switches_off_what_the_file_switched_on(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("full = true\n")
    said = {}
    for flag in ("", "--full", "--no-full"):
        words = ["--config", str(tmp_path / "c.toml"), *flag.split()]
        said[flag] = _settings(main.commands["rescore"].make_context("rescore", words).params, (), {}).full
    assert said == {"": True, "--full": True, "--no-full": False}
