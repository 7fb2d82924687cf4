"""A reference, its self-test, nights that are accepted, and a chat that can't be reached: with a real learner."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import learners
import pytest
from builders import frozen, images
from pydantic import SecretStr

from drivetrain import (
    Config,
    accept_night,
    build_and_test_reference,
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
    path = Path(layout.run(world.reference["run_id"]).self_test)
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


# --- the chat ---


@contextmanager
def chat(status: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers each post with a status, and what it was sent."""
    said: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hooks/T0PS3CRET", said
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_chat_that_does_not_answer_is_a_note_on_the_page_and_in_the_result(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.01)
    with chat(500) as (url, said):
        result = measure_drift(of_run(world, NIGHTS[0], seed=3, webhook=SecretStr(url)))
    assert len(said) == notify.TRIES
    assert result["verdict"] == "ok", "a night never fails on its chat"
    (note,) = result["notes"]
    assert "did not take the message: it answered 500" in note
    page = Path(result["report"]).read_text()
    assert "did not take the message" in page
    assert "T0PS3CRET" not in page + json.dumps(result)


def test_a_chat_is_told_verdict_and_numbers_once(world: World) -> None:
    with chat(200) as (url, said):
        result = measure_drift(of_run(world, NIGHTS[2], seed=4, webhook=SecretStr(url)))
        assert measure_drift(of_run(world, NIGHTS[2], seed=4, webhook=SecretStr(url))) == result
    (line,) = said
    assert "drift" in line["text"].lower() and "120 images" in line["text"] and result["notes"] == []


def test_a_second_source_makes_alarms_of_each_rarer(world: World) -> None:
    store, layout = open_root(world.config)
    assert inputs(world.nights[NIGHTS[2]])["settings"]["alpha"] == pytest.approx(0.01)
    frozen(store, layout, images(1), source="second", name=NIGHTS[2])
    later = measure_drift(of_run(world, NIGHTS[2]))
    assert inputs(later)["settings"]["alpha"] == pytest.approx(0.005)
    assert later["verdict"] == "drift"
