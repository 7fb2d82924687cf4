"""A reference, its self-test, nights that are accepted, and a chat that can't be reached: with a real learner."""

import json
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import learners
import pytest
from builders import frozen, images
from chats import SECRET, hook
from pydantic import SecretStr

from drivetrain import (
    Config,
    accept_night,
    build_and_test_reference,
    build_reference,
    measure_drift,
    notify,
    run_night,
    score_images,
    self_test_drift,
)
from drivetrain.errors import SettingError
from drivetrain.nights import accepted_values
from drivetrain.plant import DAMAGES
from drivetrain.root import open_root

pytestmark = pytest.mark.slow

NIGHTS = ("2026-11-20", "2026-11-21", "2026-11-22")


@dataclass(frozen=True)
class World:
    """A folder after a reference and three nights, the last of inverted digits."""

    config: Config
    reference: dict[str, Any]
    nights: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, digits_export: learners.Exported) -> World:
    folder = tmp_path_factory.mktemp("nightly")
    learners.write_digits(folder / "reference" / "valid", 0, 400, by_label=True)
    for place, night in enumerate(NIGHTS):
        first = 400 + 120 * place
        learners.write_digits(folder / "in" / night, first, first + 120, invert=night == NIGHTS[2])
    config = Config(
        root=str(folder / "root"), learner=digits_export.path, trust=(digits_export.sha256,), actors=0,
        source="digits", images=f"{folder}/in/{{night}}", alarms_per_year=3.65,
    )  # fmt: skip
    reference = build_and_test_reference(config.model_copy(update={"images": f"{folder}/reference"}))
    nights = {night: run_night(Config(**config.model_dump() | {"night": night})) for night in NIGHTS}
    return World(config, reference, nights)


def of_run(world: World, night: str, **changes: Any) -> Config:
    return world.config.model_copy(update={"run": world.nights[night]["run_id"]} | changes)


def inputs(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(result["report"]).with_name("verdict.json").read_text())["inputs"]
    return found


# --- the self-test ---


def test_a_reference_is_tested_when_it_is_made_and_says_what_it_can_see(world: World) -> None:
    found = world.reference["self_test"]
    assert found["alpha"] == pytest.approx(0.01)
    assert {each["shift"] for each in found["seen"]} == {*DAMAGES, "more of one class"}
    assert 0 <= found["false_alarms"] <= 0.1 * found["trials"]


def test_every_later_report_shows_what_the_test_could_have_seen(world: World) -> None:
    for night in NIGHTS:
        drift = json.loads(Path(world.nights[night]["report"]).with_name("drift.json").read_text())
        assert drift["self_test"] == json.loads(json.dumps(world.reference["self_test"]))


def test_a_reference_that_was_tested_is_not_tested_again(world: World) -> None:
    store, layout = open_root(world.config)
    path = Path(layout.run(world.reference["run_id"]).self_test())
    before = path.stat().st_mtime_ns
    images = str(Path(str(world.config.images)).parent.parent / "reference")
    again = build_and_test_reference(world.config.model_copy(update={"images": images}))
    assert again["run_id"] == world.reference["run_id"] and path.stat().st_mtime_ns == before
    assert store.exists(str(path))


def test_a_night_is_no_reference_to_be_tested(world: World) -> None:
    with pytest.raises(SettingError, match=f"is no reference.*--run {world.reference['run_id']}"):
        self_test_drift(of_run(world, NIGHTS[0]))


# --- verdicts and accepted nights ---


def test_quiet_nights_are_ok_and_inverted_ones_are_drift(world: World) -> None:
    assert [world.nights[night]["verdict"] for night in NIGHTS] == ["ok", "ok", "drift"]


def test_a_run_that_was_not_measured_can_not_be_accepted(world: World) -> None:
    images = str(Path(str(world.config.images)).parent / NIGHTS[0])
    scored = score_images(world.config.model_copy(update={"images": images, "name": "by-hand"}))
    with pytest.raises(SettingError, match=r"has not been measured. First: drivetrain drift measure --run"):
        accept_night(world.config.model_copy(update={"run": scored["run_id"]}))
    with pytest.raises(SettingError, match="No run"):
        accept_night(world.config.model_copy(update={"run": "digits-nowhere"}))


def test_a_night_accepted_twice_counts_once_and_changes_what_others_are_measured_with(world: World) -> None:
    store, layout = open_root(world.config)
    first, second = (world.nights[night] for night in NIGHTS[:2])
    assert accept_night(of_run(world, NIGHTS[0])) == {"accepted": first["run_id"], "accepted_nights": 1}
    assert accept_night(of_run(world, NIGHTS[0])) == {"accepted": first["run_id"], "accepted_nights": 1}
    values = accepted_values(store, layout, "digits", world.reference["run_id"])
    drift = json.loads(Path(first["report"]).with_name("drift.json").read_text())
    assert values == {first["run_id"]: drift["decision"]["statistics"][0]["value"]}

    # No night is measured with itself.
    assert measure_drift(of_run(world, NIGHTS[0])) == first
    again = measure_drift(of_run(world, NIGHTS[1]))
    assert again["report"].endswith("/0002/report.html") and second["report"].endswith("/0001/report.html")
    assert inputs(again) == inputs(second) | {"accepted": [first["run_id"]]}
    assert measure_drift(of_run(world, NIGHTS[1])) == again, "nothing has changed since"
    assert accept_night(of_run(world, NIGHTS[1]))["accepted_nights"] == 2
    assert run_night(Config(**world.config.model_dump() | {"night": NIGHTS[1]})) == again


def test_what_belongs_together_is_part_of_the_question(world: World) -> None:
    grouped = measure_drift(of_run(world, NIGHTS[0], group_by="(d[0-9]{3})[0-9]"))
    decision = json.loads(Path(grouped["report"]).with_name("drift.json").read_text())["decision"]
    # The names of 120 digits have 12 beginnings, and 12 groups are no night to judge by.
    assert decision["groups_tested"] <= 13 and "group_by" in decision["grouped_by"]
    assert grouped["verdict"] == "unknown" and "groups" in grouped["sentence"]
    with pytest.raises(SettingError, match="finds nothing in any uri"):
        measure_drift(of_run(world, NIGHTS[0], group_by="camera"))


@pytest.mark.parametrize(("group_by", "said"), [("camera", "finds nothing in any uri"), ("error", "no column to")])
def test_what_says_nothing_of_any_image_is_refused_before_they_are_scored(
    world: World, group_by: str, said: str
) -> None:
    changed = world.config.model_dump() | {"group_by": group_by, "root": world.config.root + "-other"}
    for command in (run_night, build_reference):
        with pytest.raises(SettingError, match=said):
            command(Config(**changed | {"night": NIGHTS[0]}))
    assert not list(Path(changed["root"]).rglob("run.json"))


# --- the chat ---


def test_a_shift_that_lasts_is_told_once_and_a_chat_that_does_not_answer_is_a_note_on_the_page(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a root of its own: nights of one source, of inverted digits and of usual ones again."""
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.01)
    for day, (first, invert) in enumerate([(400, True), (520, True), (640, False)], start=1):
        learners.write_digits(tmp_path / "in" / f"2026-11-{day:02d}", first, first + 120, invert=invert)
    shutil.copytree(world.config.root or "", tmp_path / "root")
    config = world.config.model_copy(
        update={"root": str(tmp_path / "root"), "images": f"{tmp_path}/in/{{night}}", "source": "calm"}
    )
    results = []
    with hook([500, 500, 500, 200]) as chat:
        for day in (1, 1, 2, 3):
            update = {"night": date(2026, 11, day), "webhook": SecretStr(chat.url)}
            results.append(run_night(config.model_copy(update=update)))
        measure_drift(
            config.model_copy(update={"run": results[0]["run_id"], "seed": 3, "webhook": SecretStr(chat.url)})
        )
    assert [result["verdict"] for result in results] == ["drift", "drift", "drift", "ok"]
    assert [each["text"].split(": calm")[0] for each in chat.got] == [
        *["◆ DRIFT"] * 4, "◆ still drifting, night 2", "✔ RECOVERED after 2 nights of drift",
    ]  # fmt: skip
    assert "120 images, drift score " in chat.got[0]["text"] and "Lever to pull: label" in chat.got[0]["text"]
    (note,) = results[0]["notes"]
    assert note == "The webhook did not take the message: it answered 500." and results[1] == results[0]
    page = Path(results[0]["report"]).read_text()
    assert "did not take the message" in page and results[2]["notes"] == []
    assert SECRET not in page + json.dumps(results)
    written = [path.read_text() for path in (tmp_path / "root/sources/calm").rglob("*.json")]
    assert len(written) > 10 and all(SECRET not in each for each in written)


def test_a_second_source_makes_alarms_of_each_rarer(world: World) -> None:
    store, layout = open_root(world.config)
    assert inputs(world.nights[NIGHTS[2]])["settings"]["alpha"] == pytest.approx(0.01)
    frozen(store, layout, images(1), source="second", name=NIGHTS[2])
    later = measure_drift(of_run(world, NIGHTS[2]))
    assert inputs(later)["settings"]["alpha"] == pytest.approx(0.005)
    assert later["verdict"] == "drift"
