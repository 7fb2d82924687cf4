"""A source's nights under its champion, with another learner beside it, and those that were missed: real learners."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learners
import pytest
from builders import frozen, images
from chats import hook
from click.testing import CliRunner
from pydantic import SecretStr

from drivetrain import Config, list_nights, promote, roll_back, run_night
from drivetrain.aliases import challenger_of, current, history, in_scope
from drivetrain.cli import main
from drivetrain.errors import DrivetrainError, LearnerError, SettingError
from drivetrain.planruns import counting_run, scope_run
from drivetrain.root import open_root
from drivetrain.run import Run

pytestmark = pytest.mark.slow

DAYS = ("2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23")


@dataclass(frozen=True)
class World:
    """Four days of 12 digits each, and two learners. Each test takes a source of its own."""

    folder: Path
    old: learners.Exported
    new: learners.Exported

    def config(self, source: str, night: str = DAYS[0], **more: Any) -> Config:
        about = {"root": str(self.folder / "root"), "images": f"{self.folder}/in/{{night}}", "learner": self.old.path}
        return Config.load(**about | {"source": source, "night": night, "actors": 0} | more)

    def id(self, name: str) -> str:
        return str(getattr(self, name).sha256[:12])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, digits_export: learners.Exported) -> World:
    folder = tmp_path_factory.mktemp("shadow")
    for place, day in enumerate(DAYS):
        learners.write_digits(folder / "in" / day, 12 * place, 12 * place + 12)
    learners.write_digits(folder / "train", 1300, 1500, by_label=True)
    new = learners.exported(learners.digits_learner(folder / "train", epochs=1, seed=1), folder / "new.pkl")
    return World(folder, digits_export, new)


def model_of(config: Config, result: dict[str, Any], key: str = "run_id") -> str:
    return Run.find(*open_root(config), result[key]).record.model_id


# --- who scores ---


def test_the_first_night_makes_a_champion_which_scores_although_the_config_names_another(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_night(world.config("who"))
    store, layout = open_root(world.config("who"))
    (record,) = history(store, layout, "who", "champion")
    assert (record.model_id, record.sha256, record.reason) == (world.id("old"), world.old.sha256, "first night")

    other = world.config("who", DAYS[1], learner=world.new.path)
    assert model_of(other, run_night(other)) == world.id("old")
    said = capsys.readouterr().err
    assert f"drivetrain promote {world.new.path}" in said and world.id("new") in said

    promote(other, world.new.path)
    assert model_of(other, run_night(world.config("who", DAYS[2]))) == world.id("new")
    states = {night.night: night for night in list_nights(other)}
    assert [states[day].state for day in DAYS[:3]] == ["stale", "stale", "done"]
    # What the table says to type makes the night the champion's.
    words = shlex.split(states[DAYS[0]].command)
    assert words[:2] == ["drivetrain", "rescore"] and first["run_id"] in words
    done = CliRunner().invoke(main, [*words[1:], "--actors", "0"])
    assert done.exit_code == 0, done.output
    counting = counting_run(store, layout, "who", "night", DAYS[0])
    assert counting and counting.record.model_id == world.id("new")
    assert list_nights(other)[0].state == "done"
    roll_back(other)
    assert [night.state for night in list_nights(other)][:3] == ["done", "done", "stale"]


def test_a_night_needs_no_learner_once_there_is_a_champion(world: World) -> None:
    bare = world.config("bare", learner=None)
    with pytest.raises(SettingError, match="--learner"):
        run_night(bare)
    first = run_night(world.config("bare"))
    assert run_night(bare) == first
    second = world.config("bare", DAYS[1], learner=None)
    assert model_of(second, run_night(second)) == world.id("old")


def test_two_sources_under_one_root_are_scored_by_a_champion_each(world: World) -> None:
    one, two = world.config("one"), world.config("two", learner=world.new.path)
    assert model_of(one, run_night(one)) == world.id("old")
    assert model_of(two, run_night(two)) == world.id("new")


def test_a_champion_whose_export_was_written_over_scores_nothing(tmp_path: Path, world: World) -> None:
    config = world.config("tampered", root=str(tmp_path / "root"))
    run_night(config)
    store, layout = open_root(config)
    store.replace(layout.export(world.id("old")), Path(world.new.path).read_bytes())
    with pytest.raises(LearnerError, match=f"expected the sha256 {world.old.sha256}, found {world.new.sha256}"):
        run_night(world.config("tampered", DAYS[1], root=str(tmp_path / "root")))
    assert [night.night for night in list_nights(config) if night.verdict] == [DAYS[0]]


# --- beside the champion ---


def test_a_shadow_scores_the_same_images_and_is_compared(world: World) -> None:
    config = world.config("shadow", shadow=world.new.path)
    result = run_night(config)
    store, layout = open_root(config)
    assert model_of(config, result) == world.id("old")
    assert model_of(config, result, "shadow_run_id") == world.id("new")
    old, new = (Run.find(store, layout, result[key]).rows(["uri", "label"]) for key in ("run_id", "shadow_run_id"))
    assert old["uri"] == new["uri"] and len(old) == 12
    same = sum(a == b for a, b in zip(old["label"].to_pylist(), new["label"].to_pylist(), strict=True))
    assert result["agreement"] == pytest.approx(same / 12) and store.exists(result["comparison"])
    # Readers still get the champion's, and nobody was promoted.
    counting = counting_run(store, layout, "shadow", "night", DAYS[0])
    assert counting and counting.record.run_id == result["run_id"]
    assert len(history(store, layout, "shadow", "champion")) == 1
    assert run_night(config) == result


def test_a_shadow_that_fails_is_a_note_of_a_night_that_is_done(world: World) -> None:
    broken = world.folder / "broken.pkl"
    broken.write_bytes(b"no pickle at all")
    for shadow in (str(broken), str(world.folder / "nowhere.pkl"), "abcdefabcdef"):
        result = run_night(world.config("broken", shadow=shadow))
        (note,) = result["notes"]
        assert "Nothing was scored beside the champion" in note
        assert result["rows"] == 12 and "shadow_run_id" not in result
    assert list_nights(world.config("broken"))[0].state == "done"
    # Mended, the same command scores it.
    assert run_night(world.config("broken", shadow=world.new.path))["agreement"] is not None


def test_the_champion_is_no_shadow_of_itself(world: World) -> None:
    assert "shadow_run_id" not in run_night(world.config("self", shadow=world.old.path))


def test_a_challenger_scores_its_scope_of_each_night_and_no_other_image(world: World) -> None:
    config = world.config("scope")
    run_night(config)
    promote(config, world.new.path, scope="0.4")
    result = run_night(world.config("scope", DAYS[1]))
    store, layout = open_root(config)
    challenger = challenger_of(store, layout, "scope")
    assert challenger
    run = scope_run(store, layout, "scope", DAYS[1], challenger)
    assert run and run.record.run_id == result["shadow_run_id"] and result["scope"] == "0.4"
    night = Run.find(store, layout, result["run_id"])
    uris = night.rows(["uri"])["uri"].to_pylist()
    wanted = [uri for uri, inside in zip(uris, in_scope(uris, "0.4"), strict=True) if inside]
    assert run.rows(["uri"])["uri"].to_pylist() == wanted and 0 < len(wanted) < 12
    assert night.record.model_id == world.id("old") and len(uris) == 12
    assert run_night(world.config("scope", DAYS[1])) == result

    promote(config, world.new.path)
    last = run_night(world.config("scope", DAYS[2]))
    assert model_of(config, last) == world.id("new") and "shadow_run_id" not in last


def test_a_night_without_an_image_in_scope_is_a_night(world: World) -> None:
    config = world.config("none")
    run_night(config)
    promote(config, world.new.path, scope="no-such-camera/")
    result = run_night(world.config("none", DAYS[1]))
    assert result["rows"] == 12 and "shadow_run_id" not in result and result["notes"] == []


# --- nights that were missed ---


def test_missed_nights_are_caught_up_oldest_first_with_their_own_dates(world: World) -> None:
    run_night(world.config("catch", DAYS[0]))
    run_night(world.config("catch", DAYS[2]))
    result = run_night(world.config("catch", DAYS[3], catch_up=True))
    assert [each["night"] for each in result["caught_up"]] == [DAYS[1], DAYS[3]]
    store, layout = open_root(world.config("catch"))
    for each in result["caught_up"]:
        uris = Run.find(store, layout, each["run_id"]).rows(["uri"])["uri"].to_pylist()
        assert len(uris) == 12 and all(f"/{each['night']}/" in uri for uri in uris)
    finished = [Run.find(store, layout, each["run_id"]).committed() for each in result["caught_up"]]
    assert finished[0] and finished[1] and finished[0].finished <= finished[1].finished
    assert run_night(world.config("catch", DAYS[3], catch_up=True))["caught_up"] == []
    states = {night.night: night.state for night in list_nights(world.config("catch"))}
    assert {states[day] for day in DAYS} == {"done"}


def test_a_missed_night_without_images_is_a_night_and_does_not_stop_the_others(world: World) -> None:
    run_night(world.config("gap", DAYS[3]))
    result = run_night(world.config("gap", "2026-11-25", catch_up=True))
    assert [(each["night"], each["rows"]) for each in result["caught_up"]] == [("2026-11-24", 0), ("2026-11-25", 0)]


def test_catching_up_stops_at_the_first_error_with_what_to_type(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    more: dict[str, Any] = {"root": str(tmp_path / "root"), "catch_up": True}
    run_night(world.config("stops", DAYS[0], root=more["root"]))
    store, layout = open_root(world.config("stops", **more))
    export = layout.export(world.id("old"))
    good = store.read(export)
    store.replace(export, good + b"x")
    with pytest.raises(DrivetrainError):
        run_night(world.config("stops", DAYS[3], **more))
    assert "0 of 3 are" in (said := capsys.readouterr().err) and "drivetrain nightly --catch-up" in said
    assert store.names(layout.nights("stops")) == [DAYS[0]], "no later night was begun"
    store.replace(export, good)
    result = run_night(world.config("stops", DAYS[3], **more))
    assert [each["night"] for each in result["caught_up"]] == list(DAYS[1:])
    assert current(store, layout, "stops", "champion")


def test_the_chat_hears_of_a_catch_up_in_one_message_also_of_one_that_stops(tmp_path: Path, world: World) -> None:
    """Without a reference each night is unknown; one of them has a plan of another prefix, which stops it."""
    with hook([200]) as chat:
        more: dict[str, Any] = {"root": str(tmp_path / "root"), "webhook": SecretStr(chat.url)}
        run_night(world.config("told", DAYS[0], root=more["root"]))
        store, layout = open_root(world.config("told", **more))
        frozen(store, layout, images(1), source="told", name=DAYS[3])
        with pytest.raises(SettingError, match="froze the images"):
            run_night(world.config("told", DAYS[3], catch_up=True, **more))
        (message,) = chat.got
        assert f"told {DAYS[2]}: " in message["text"] and f"Not told before: unknown on {DAYS[1]}." in message["text"]
        result = run_night(world.config("told", DAYS[2], catch_up=True, **more))
        assert result["caught_up"] == [] and len(chat.got) == 1
