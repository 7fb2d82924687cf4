"""What a night scores, and what the table of nights says of it. No learner: records are written by hand."""

import os
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from builders import SHA256, begun, committed, frozen, image, images, listed

from drivetrain import site
from drivetrain.aliases import name_next
from drivetrain.config import Config
from drivetrain.errors import SettingError
from drivetrain.exposition import exposition
from drivetrain.findings import Realised
from drivetrain.heartbeat import OLD
from drivetrain.images import Images
from drivetrain.layout import Layout
from drivetrain.manifest import Plan, read_manifest
from drivetrain.nights import (
    Night,
    _until,
    accepted_values,
    alpha_of,
    latest_record,
    learners_in_use,
    list_nights,
    nights_table,
    plan_night,
    records,
    trend_of,
)
from drivetrain.root import to_json
from drivetrain.run import Run
from drivetrain.store import Store
from drivetrain.told import night_line

SILENT = OLD.total_seconds() / 60
NIGHT = date(2026, 1, 10)
STORE = Store()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "root"))


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


def arrives(folder: Path, key: str, on: date = NIGHT, content: str = "pixels") -> None:
    """An image is written at noon of a day."""
    file = folder / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    noon = datetime(on.year, on.month, on.day, 12, tzinfo=UTC).timestamp()
    os.utime(file, (noon, noon))


def planned(layout: Layout, images_at: str, night: date = NIGHT, **settings: object) -> Plan:
    return plan_night(STORE, layout, Config.load(images=images_at, source="shop", night=night, **settings))


def keys(layout: Layout, plan: Plan) -> list[str]:
    """The last parts of the planned images' keys."""
    manifest = read_manifest(STORE, plan.paths(layout).manifest(plan.digest))
    return [uri.rsplit("/", 1)[-1] for uri in manifest["uri"].to_pylist()]


def test_days_that_share_a_folder_give_each_image_one_row_and_one_night(layout: Layout, incoming: Path) -> None:
    """{night:%Y-%m} is one folder for a month: its images were new and late at once, and new again two nights later."""
    template = f"{incoming}/{{night:%Y-%m}}"
    found = []
    for day in range(1, 5):
        night = date(2026, 1, day)
        arrives(incoming, f"2026-01/{day}.jpg", night)
        found.append(keys(layout, planned(layout, template, night)))
    assert found == [["1.jpg"], ["2.jpg"], ["3.jpg"], ["4.jpg"]]


def closed(
    layout: Layout,
    plan: Plan,
    number: int = 1,
    model: str = SHA256[:12],
    made: str = "2026-01-11T00:00:00+00:00",
    **said: object,
) -> None:
    """A record of a plan as a night writes it at its end."""
    numbers = {"rows": plan.images, "failed": 2, "p_value": 0.5, "effect": 0.51}
    record = {"verdict": "ok", "lever": "nothing", "numbers": numbers, "made": made, "inputs": {}, "run_id": "r"} | said
    assert STORE.create(plan.paths(layout).record(model, number).verdict, to_json(record))


def beaten(run: Run, minutes_ago: float, state: str = "running") -> None:
    """A heartbeat as a run wrote it some minutes ago."""
    at = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    record = {"state": state, "images_done": 1, "of": run.record.images, "at": at.isoformat(timespec="seconds")}
    STORE.replace(run.paths.status, to_json(record))


# --- a prefix that grows ---


def test_a_growing_prefix_gives_what_was_there_when_the_day_ended(layout: Layout, incoming: Path) -> None:
    arrives(incoming, "old.jpg", NIGHT - timedelta(days=30))
    arrives(incoming, "today.jpg")
    arrives(incoming, "tomorrow.jpg", NIGHT + timedelta(days=1))
    plan = planned(layout, str(incoming))
    assert keys(layout, plan) == ["old.jpg", "today.jpg"]
    assert (plan.kind, plan.name, plan.source, plan.late) == ("night", "2026-01-10", "shop", 0)


def test_the_day_ends_at_midnight_utc(layout: Layout, incoming: Path) -> None:
    midnight = datetime(2026, 1, 11, tzinfo=UTC).timestamp()
    for key, when in (("before.jpg", midnight - 1), ("at.jpg", midnight)):
        arrives(incoming, key)
        os.utime(incoming / key, (when, when))
    assert keys(layout, planned(layout, str(incoming))) == ["before.jpg"]


def test_an_image_without_a_time_was_there_when_the_day_ended() -> None:
    timeless = image("a.jpg")._replace(mtime=None)
    assert list(Images(_until(listed([timeless, image("b.jpg")]), date(2026, 1, 1)))) == [timeless]


def test_what_a_night_that_is_done_scored_is_not_new(layout: Layout, incoming: Path) -> None:
    arrives(incoming, "a.jpg")
    closed(layout, planned(layout, str(incoming)))
    arrives(incoming, "b.jpg", NIGHT + timedelta(days=1))
    assert keys(layout, planned(layout, str(incoming), NIGHT + timedelta(days=1))) == ["b.jpg"]


def test_what_a_night_long_ago_scored_is_not_new_in_a_growing_prefix(layout: Layout, incoming: Path) -> None:
    arrives(incoming, "a.jpg")
    closed(layout, planned(layout, str(incoming)))
    assert planned(layout, str(incoming), NIGHT + timedelta(days=200)).images == 0


def test_whichever_learner_scored_it_is_not_new(layout: Layout, incoming: Path) -> None:
    arrives(incoming, "a.jpg")
    closed(layout, planned(layout, str(incoming)), model="another-model")
    assert planned(layout, str(incoming), NIGHT + timedelta(days=1)).images == 0


def test_another_source_has_seen_nothing(layout: Layout, incoming: Path) -> None:
    arrives(incoming, "a.jpg")
    closed(layout, planned(layout, str(incoming)))
    other = Config(images=str(incoming), source="mill", night=NIGHT + timedelta(days=1))
    assert plan_night(STORE, layout, other).images == 1


def test_an_image_that_was_written_over_is_new(layout: Layout, incoming: Path) -> None:
    arrives(incoming, "a.jpg")
    arrives(incoming, "b.jpg")
    closed(layout, planned(layout, str(incoming)))
    arrives(incoming, "a.jpg", NIGHT + timedelta(days=1), content="other pixels")
    assert keys(layout, planned(layout, str(incoming), NIGHT + timedelta(days=1))) == ["a.jpg"]


def test_no_image_is_in_the_plans_of_two_nights_also_when_the_first_is_resumed_later(
    layout: Layout, incoming: Path
) -> None:
    arrives(incoming, "a.jpg")
    first = planned(layout, str(incoming))
    arrives(incoming, "b.jpg")
    assert keys(layout, planned(layout, str(incoming), NIGHT + timedelta(days=1))) == ["b.jpg"]
    assert planned(layout, str(incoming)) == first


def test_a_night_without_a_new_image_is_a_plan_and_is_said(
    layout: Layout, incoming: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(layout, str(incoming))
    assert (plan.images, plan.shards) == (0, 1)
    assert "No new image for night 2026-01-10" in capsys.readouterr().err


def test_a_plan_is_found_again_and_what_came_since_is_not_in_it(layout: Layout, incoming: Path) -> None:
    arrives(incoming, "a.jpg")
    first = planned(layout, str(incoming))
    arrives(incoming, "b.jpg")
    assert planned(layout, str(incoming)) == first
    closed(layout, first)
    assert planned(layout, str(incoming)) == first
    assert keys(layout, planned(layout, str(incoming), NIGHT + timedelta(days=1))) == ["b.jpg"]


def test_a_night_planned_with_another_prefix_is_refused(layout: Layout, incoming: Path) -> None:
    planned(layout, str(incoming))
    with pytest.raises(SettingError, match="froze the images of"):
        planned(layout, f"{incoming}/other")


def test_what_was_skipped_stands_in_the_plan(layout: Layout, incoming: Path) -> None:
    for key in ("a.jpg", "labels.csv", ".hidden.jpg"):
        arrives(incoming, key)
    assert planned(layout, str(incoming)).skipped == {"csv": 1, "hidden": 1}


# --- a dated prefix ---


def dated(incoming: Path) -> str:
    return f"{incoming}/{{night:%Y/%m/%d}}"


def arrives_in(incoming: Path, day: date, key: str) -> None:
    """An image lands in a day's folder; when it was written plays no part."""
    arrives(incoming, f"{day:%Y/%m/%d}/{key}", NIGHT + timedelta(days=99))


def test_a_dated_prefix_gives_the_images_of_the_nights_folder(layout: Layout, incoming: Path) -> None:
    arrives_in(incoming, NIGHT, "a.jpg")
    arrives_in(incoming, NIGHT + timedelta(days=1), "tomorrow.jpg")
    arrives_in(incoming, NIGHT - timedelta(days=2), "long-ago.jpg")
    plan = planned(layout, dated(incoming))
    assert keys(layout, plan) == ["a.jpg"]
    assert plan.prefix == f"{incoming}/2026/01/10"


def test_what_arrives_late_goes_into_the_next_night_and_is_counted(
    layout: Layout, incoming: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrives_in(incoming, NIGHT, "in-time.jpg")
    closed(layout, planned(layout, dated(incoming)))
    arrives_in(incoming, NIGHT, "late.jpg")
    arrives_in(incoming, NIGHT + timedelta(days=1), "next.jpg")
    plan = planned(layout, dated(incoming), NIGHT + timedelta(days=1))
    assert keys(layout, plan) == ["late.jpg", "next.jpg"]
    assert plan.late == 1
    assert "1 images of the 1 day(s) before arrived late" in capsys.readouterr().err


def test_a_late_image_is_scored_by_one_night_only(layout: Layout, incoming: Path) -> None:
    days = [NIGHT + timedelta(days=away) for away in range(4)]
    arrives_in(incoming, days[0], "in-time.jpg")
    closed(layout, planned(layout, dated(incoming), days[0], lookback=2))
    arrives_in(incoming, days[0], "late.jpg")
    found = []
    for day in days[1:]:
        plan = planned(layout, dated(incoming), day, lookback=2)
        closed(layout, plan)
        found.append(keys(layout, plan))
    assert found == [["late.jpg"], [], []]


@pytest.mark.parametrize(("lookback", "expected"), [(0, []), (1, ["1.jpg"]), (2, ["2.jpg", "1.jpg"])])
def test_the_lookback_says_how_many_days_back_late_images_are_looked_for(
    layout: Layout, incoming: Path, lookback: int, expected: list[str]
) -> None:
    for away in (1, 2, 3):
        day = NIGHT - timedelta(days=away)
        closed(layout, planned(layout, dated(incoming), day, lookback=0))
        arrives_in(incoming, day, f"{away}.jpg")
    assert keys(layout, planned(layout, dated(incoming), lookback=lookback)) == expected


# --- records ---


def a_plan(layout: Layout, night: date = NIGHT, number: int = 3) -> Plan:
    return frozen(STORE, layout, images(number), name=night.isoformat())


def test_records_are_those_that_are_closed_oldest_first_of_every_model(layout: Layout) -> None:
    plan = a_plan(layout)
    closed(layout, plan, 1, model="a")
    closed(layout, plan, 2, model="a")
    closed(layout, plan, 1, model="b")
    STORE.create(plan.paths(layout).record("b", 2).drift, b"{}")
    found = [(model, record.folder[-4:]) for model, record in records(STORE, layout, "shop", "night", plan.name)]
    assert found == [("a", "0001"), ("a", "0002"), ("b", "0001")]


def test_a_file_that_is_no_record_is_passed_over(layout: Layout) -> None:
    plan = a_plan(layout)
    closed(layout, plan)
    STORE.create(f"{plan.paths(layout).model(SHA256[:12])}/notes.txt", b"x")
    STORE.create(f"{plan.paths(layout).folder}/read-me.txt", b"x")
    assert len(list(records(STORE, layout, "shop", "night", plan.name))) == 1


def test_the_highest_record_of_the_runs_own_model_counts(layout: Layout) -> None:
    plan = a_plan(layout)
    run = begun(STORE, layout, plan)
    assert latest_record(STORE, layout, run) is None
    for number, verdict in ((1, "ok"), (2, "warn")):
        closed(layout, plan, number, verdict=verdict)
    closed(layout, plan, 3, model="another-model", verdict="drift")
    record, found = latest_record(STORE, layout, run) or (None, {})
    assert record == plan.paths(layout).record(SHA256[:12], 2)
    assert found["verdict"] == "warn"


# --- the table of nights ---


def table(layout: Layout) -> dict[str, Night]:
    return {night.night: night for night in nights_table(STORE, layout, "shop")}


def yesterday(back: int = 0) -> date:
    return datetime.now(UTC).date() - timedelta(days=1 + back)


def test_a_source_without_nights_has_an_empty_table(layout: Layout) -> None:
    assert nights_table(STORE, layout) == []
    assert nights_table(STORE, layout, "shop") == []


def test_a_night_that_is_done_shows_its_record(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    closed(layout, plan, verdict="drift", lever="label and retrain, then rescore")
    report = plan.paths(layout).record(SHA256[:12], 1).report
    assert nights_table(STORE, layout) == [
        Night(
            "shop",
            plan.name,
            "done",
            "drift",
            3,
            2,
            "label and retrain, then rescore",
            report,
            p_value=0.5,
            effect=0.51,
            made="2026-01-11T00:00:00+00:00",
        )
    ]
    measured = {"rows": 3, "failed": 0, "p_value": 0.2, "effect": 0.6, "score": 0.7, "accuracy": 0.9}
    closed(layout, plan, 2, made="2026-01-12T00:00:00+00:00", numbers=measured)
    night = table(layout)[plan.name]
    assert (night.score, night.accuracy, night.made) == (0.7, 0.9, "2026-01-12T00:00:00+00:00")


def test_a_night_shows_score_and_estimated_accuracy_where_its_record_has_them(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    numbers = {"rows": 3, "failed": 0, "p_value": 0.5, "effect": 0.51, "score": 0.4, "accuracy": 0.9}
    closed(layout, plan, numbers=numbers)
    night = table(layout)[plan.name]
    assert (night.score, night.accuracy) == (0.4, 0.9)
    assert {"score", "accuracy", "made"} <= set(night.record())


def test_the_record_made_last_is_shown_whichever_learner_made_it(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    closed(layout, plan, 1, model="b", verdict="drift", made="2026-01-11T00:00:00+00:00")
    closed(layout, plan, 1, model="a", verdict="ok", made="2026-01-12T00:00:00+00:00")
    assert table(layout)[plan.name].verdict == "ok"


def test_a_learner_that_cannot_judge_does_not_hide_an_alarm(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    closed(layout, plan, 1, model="b", verdict="drift", made="2026-01-11T00:00:00+00:00")
    closed(layout, plan, 1, model="a", verdict="unknown", made="2026-01-12T00:00:00+00:00")
    assert table(layout)[plan.name].verdict == "drift"


def test_a_night_that_has_not_begun_is_refused_and_not_frozen(layout: Layout, incoming: Path) -> None:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    with pytest.raises(SettingError, match="has not begun"):
        planned(layout, str(incoming), tomorrow)
    assert table(layout) == {}


def test_of_two_records_of_the_same_second_the_higher_number_is_shown(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    closed(layout, plan, 1, verdict="drift")
    closed(layout, plan, 2, verdict="ok")
    assert table(layout)[plan.name].verdict == "ok"


def test_nights_between_and_since_that_did_not_run_are_missing_and_say_what_to_type(layout: Layout) -> None:
    for back in (5, 2):
        closed(layout, a_plan(layout, yesterday(back)))
    found = table(layout)
    states = {back: found[yesterday(back).isoformat()].state for back in range(5, -1, -1)}
    assert states == {5: "done", 4: "missing", 3: "missing", 2: "done", 1: "missing", 0: "missing"}
    missing = found[yesterday(3).isoformat()]
    assert missing.lever == f"drivetrain nightly --night {yesterday(3)} --root {layout.root} --source shop"
    assert list(found) == sorted(found)
    assert yesterday(6).isoformat() not in found, "nothing is missing before the first night"


def test_a_night_ahead_of_yesterday_is_shown_too(layout: Layout) -> None:
    closed(layout, a_plan(layout, yesterday(-1)))
    assert list(table(layout)) == [yesterday(-1).isoformat()]


def test_a_night_that_was_only_planned_says_so(layout: Layout) -> None:
    plan = a_plan(layout, yesterday(), number=7)
    found = table(layout)[plan.name]
    assert (found.state, found.images, found.verdict) == ("planned", 7, "")
    about = f"--root {layout.root} --source shop --images {plan.prefix}"
    assert found.lever == f"drivetrain nightly --night {plan.name} {about}"


@pytest.mark.parametrize(
    ("minutes", "state"),
    [(0, "running"), (SILENT - 1, "running"), (SILENT + 1, "dead"), (9999, "dead")],
)
def test_a_night_whose_run_fell_silent_is_dead(layout: Layout, minutes: float, state: str) -> None:
    plan = a_plan(layout, yesterday())
    beaten(begun(STORE, layout, plan), minutes)
    assert table(layout)[plan.name].state == state


def test_the_heartbeat_of_another_source_or_night_is_not_this_nights(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    for other in ({"source": "shop2", "name": plan.name}, {"name": yesterday(1).isoformat()}):
        beaten(begun(STORE, layout, frozen(STORE, layout, images(1), **other)), 0)
    assert table(layout)[plan.name].state == "planned"


@pytest.mark.parametrize("alive", ["00" * 32, "ff" * 32])
def test_a_night_is_running_when_one_of_its_runs_beats_whichever_was_listed_first(layout: Layout, alive: str) -> None:
    plan = a_plan(layout, yesterday())
    beaten(begun(STORE, layout, plan), 9999)
    beaten(begun(STORE, layout, plan, sha256=alive), 0)
    assert table(layout)[plan.name].state == "running"


def test_a_committed_run_without_a_record_is_not_done(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    run = begun(STORE, layout, plan)
    committed(run)
    beaten(run, 60, "committed")
    assert table(layout)[plan.name].state == "dead"


def test_the_nights_of_all_sources_are_listed_and_a_folder_that_is_no_date_is_not(layout: Layout) -> None:
    for source, name in (
        ("b", yesterday().isoformat()),
        ("a", yesterday().isoformat()),
        ("a", "00-notes"),
        ("a", "backfill"),
    ):
        closed(layout, frozen(STORE, layout, [image("x.jpg")], source=source, name=name))
    closed(layout, frozen(STORE, layout, [image("x.jpg")], source="a", kind="plan", name="2020-01-01"))
    found = [(night.source, night.night) for night in nights_table(STORE, layout)]
    assert found == [("a", yesterday().isoformat()), ("b", yesterday().isoformat())]


def test_nights_are_listed_from_a_config(layout: Layout) -> None:
    STORE.create(layout.marker, to_json({"schema": 1}))
    closed(layout, a_plan(layout, yesterday()))
    assert [night.state for night in list_nights(Config(root=layout.root))] == ["done"]
    assert list_nights(Config(root=layout.root, source="mill")) == []
    with pytest.raises(SettingError, match="--root"):
        list_nights(Config())


# --- nights whose learner is no longer champion ---

OTHER = "6b" * 32


def crowned(layout: Layout, sha256: str, source: str = "shop") -> None:
    name_next(STORE, layout, source, "champion", model_id=sha256[:12], sha256=sha256, reason="promoted")


def scored(layout: Layout, plan: Plan, sha256: str = SHA256, **said: object) -> Run:
    """A run of a night, committed and judged."""
    run = begun(STORE, layout, plan, sha256=sha256)
    committed(run)
    closed(layout, plan, model=sha256[:12], **said)
    return run


def test_a_night_is_stale_when_its_learner_is_no_longer_champion_and_says_what_to_type(layout: Layout) -> None:
    crowned(layout, SHA256)
    plan = a_plan(layout, yesterday())
    run = scored(layout, plan, verdict="drift", lever="label and retrain, then rescore")
    assert (table(layout)[plan.name].state, table(layout)[plan.name].command) == ("done", "")
    crowned(layout, OTHER)
    night = table(layout)[plan.name]
    assert (night.state, night.verdict, night.lever) == ("stale", "drift", "rescore")
    export, about = layout.export(OTHER[:12]), f"--root {layout.root} --source shop"
    assert night.command == f"drivetrain rescore --learner {export} --run {run.record.run_id} {about}"


def test_a_stale_night_that_was_rescored_is_done_and_shows_the_champions_verdict(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    scored(layout, plan, verdict="drift", made="2026-01-12T00:00:00+00:00")
    crowned(layout, OTHER)
    # Judged before the other record was closed, and it counts all the same.
    scored(layout, plan, OTHER, verdict="ok", made="2026-01-11T00:00:00+00:00")
    night = table(layout)[plan.name]
    assert (night.state, night.verdict) == ("done", "ok")
    crowned(layout, SHA256)
    assert (table(layout)[plan.name].state, table(layout)[plan.name].verdict) == ("done", "drift")


def test_a_learner_that_was_never_champion_does_not_speak_for_a_former_one(layout: Layout) -> None:
    """It was tried on the night, judged later, and rejected; the third one has not scored it yet."""
    plan = a_plan(layout, yesterday())
    crowned(layout, SHA256)
    run = scored(layout, plan, verdict="drift", made="2026-01-11T00:00:00+00:00")
    scored(layout, plan, "7c" * 32, verdict="ok", made="2026-01-12T00:00:00+00:00")
    crowned(layout, OTHER)
    night = table(layout)[plan.name]
    assert (night.state, night.verdict) == ("stale", "drift")
    assert f"--run {run.record.run_id} " in night.command


def test_a_champion_that_cannot_judge_does_not_hide_an_alarm(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    scored(layout, plan, verdict="drift")
    crowned(layout, OTHER)
    scored(layout, plan, OTHER, verdict="unknown")
    assert (table(layout)[plan.name].state, table(layout)[plan.name].verdict) == ("done", "drift")


def test_a_night_that_the_champion_scored_beside_another_is_not_stale(layout: Layout) -> None:
    """It was the shadow then, and was promoted since."""
    plan = a_plan(layout, yesterday())
    scored(layout, plan)
    committed(begun(STORE, layout, plan, sha256=OTHER))
    crowned(layout, OTHER)
    assert table(layout)[plan.name].state == "done"


def test_without_a_champion_no_night_is_stale_and_another_sources_is_none_here(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    scored(layout, plan)
    crowned(layout, OTHER, source="mill")
    assert table(layout)[plan.name].state == "done"


def test_a_stale_night_still_counts_in_trend_metrics_and_index(layout: Layout) -> None:
    crowned(layout, SHA256)
    plan = a_plan(layout, yesterday(3))
    scored(layout, plan, verdict="drift")
    crowned(layout, OTHER)
    night = table(layout)[plan.name]
    assert night.state == "stale"
    found = trend_of(STORE, layout, "shop", "night", tonight(yesterday(2).isoformat()))
    assert [point.verdict for point in found] == ["drift", "drift"]
    assert 'drivetrain_verdict{source="shop"} 2' in exposition([night])
    page = STORE.read(site.build(STORE, layout)).decode()
    assert "stale" in page and night.command in page and night.report.removeprefix(layout.root) in page


def test_the_heartbeat_of_a_scope_is_not_the_nights(layout: Layout) -> None:
    plan = a_plan(layout, yesterday())
    beaten(begun(STORE, layout, frozen(STORE, layout, images(1), kind="plan", name=f"{plan.name}-scope-0a1b2c3d")), 0)
    assert table(layout)[plan.name].state == "planned"


def test_the_learners_in_use_are_listed_by_source(layout: Layout) -> None:
    STORE.create(layout.marker, to_json({"schema": 1}))
    frozen(STORE, layout, images(1), source="mill")
    crowned(layout, OTHER)
    found = learners_in_use(Config(root=layout.root))
    assert found["mill"] == {"champion": None, "challenger": None}
    assert found["shop"]["champion"]["model_id"] == OTHER[:12]


# --- what a source's nights say together ---


def test_the_years_alarms_are_spread_over_the_sources_that_have_nights(layout: Layout) -> None:
    config = Config(root=layout.root, alarms_per_year=2)
    assert alpha_of(STORE, layout, config) == 2 / 365, "the first night is one of one source"
    frozen(STORE, layout, images(1), source="shop", name="2026-01-02")
    frozen(STORE, layout, images(1), source="shop", name="2026-01-03")
    assert alpha_of(STORE, layout, config) == 2 / 365
    frozen(STORE, layout, images(1), source="second", name="2026-01-02")
    frozen(STORE, layout, images(1), source="third", name="2026-01-02")
    frozen(STORE, layout, images(1), source="no-nights", kind="plan", name="backfill")
    assert alpha_of(STORE, layout, config) == pytest.approx(2 / 365 / 3)


def accepted(layout: Layout, run_id: str, value: float, reference: str = "reference-1") -> None:
    record = {"run_id": run_id, "model_id": "m", "value": value, "reference": reference}
    assert STORE.create(layout.acceptance("shop", run_id, reference), to_json(record))


def test_accepted_nights_are_those_of_the_source_and_the_reference(layout: Layout) -> None:
    accepted(layout, "shop-1", 1.5)
    accepted(layout, "shop-2", -0.5)
    accepted(layout, "shop-3", 9.0, reference="another")
    # The same night under a new reference has a new value, and keeps the old one.
    accepted(layout, "shop-1", 4.0, reference="another")
    assert accepted_values(STORE, layout, "shop", "reference-1") == {"shop-1": 1.5, "shop-2": -0.5}
    assert accepted_values(STORE, layout, "shop", "another") == {"shop-1": 4.0, "shop-3": 9.0}
    assert accepted_values(STORE, layout, "other", "reference-1") == {}
    assert accepted_values(STORE, layout, "shop", None) == {}


def tonight(night: str) -> dict[str, Any]:
    numbers = {"rows": 7, "failed": 0, "p_value": 0.001, "effect": 0.8, "score": 2.5, "accuracy": 0.7}
    return {"verdict": "drift", "numbers": numbers, "report": "/tonight.html", "night": night}


def test_a_trend_ends_with_tonight_and_holds_the_nights_before_that_are_done(layout: Layout) -> None:
    done, running, later = (yesterday(back) for back in (5, 4, 1))
    for night in (done, later):
        closed(layout, a_plan(layout, night))
    a_plan(layout, running)
    found = trend_of(STORE, layout, "shop", "night", tonight(yesterday(2).isoformat()))
    assert [(point.night, point.verdict, point.score) for point in found] == [
        (done.isoformat(), "ok", None),
        (yesterday(2).isoformat(), "drift", 2.5),
    ]
    assert (found[-1].images, found[-1].effect, found[-1].accuracy, found[-1].report) == (7, 0.8, 0.7, "/tonight.html")


def test_a_trend_holds_what_people_s_labels_said_of_a_night_and_not_of_its_oddest_images(layout: Layout) -> None:
    drawn = Realised("random", 100, 97, 88, 88 / 97, 0.80, 0.95)
    odd = Realised("moved", 40, 40, 25, 0.625, 0.458, 0.773)
    for back, said in ((5, (odd, drawn)), (4, (odd,))):
        numbers = {
            "rows": 10,
            "failed": 2,
            "p_value": 0.5,
            "effect": 0.5,
            "realised_accuracy": [asdict(each) for each in said],
        }
        closed(layout, a_plan(layout, yesterday(back)), numbers=numbers)
    last = tonight(yesterday(2).isoformat())
    last["numbers"] |= {"realised_accuracy": [asdict(replace(drawn, chosen="all", accuracy=0.9))]}
    found = trend_of(STORE, layout, "shop", "night", last)
    assert [point.realised for point in found] == [88 / 97, None, 0.9]


def test_a_trend_has_at_most_30_nights_the_newest_ones(layout: Layout) -> None:
    for back in range(2, 36):
        closed(layout, a_plan(layout, yesterday(back), number=1))
    found = trend_of(STORE, layout, "shop", "night", tonight(yesterday().isoformat()))
    assert [point.night for point in found] == [yesterday(back).isoformat() for back in (*range(30, 1, -1), 0)]


def test_a_named_plan_is_a_trend_of_its_own(layout: Layout) -> None:
    closed(layout, a_plan(layout, yesterday(3)))
    assert len(trend_of(STORE, layout, "shop", "plan", tonight("backfill"))) == 1


def test_a_line_of_a_night_says_how_many_labelled_images_are_right_where_they_speak_for_the_night() -> None:
    def line(*realised: dict[str, Any]) -> str:
        night = Night("shop", "2026-01-10", "done", "drift", 600, 0, "label and retrain", "r", realised=realised)
        return night_line(night.record())

    moved = {"chosen": "moved", "labelled": 50, "accuracy": 0.2}
    drawn = {"chosen": "random", "labelled": 1200, "accuracy": 0.875}
    assert "right" not in line() + line(moved)
    assert line(moved, drawn).endswith("600 images  88% of 1,200 labelled right  label and retrain")
