"""The table of current scores: each image once, switched at once, cheap when nothing changed, whoever writes beside."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import learners
import pytest
import tables
from servers import S3Server
from tables import NEW, OLD, WIDE, World, all_rows, commit, truth

from drivetrain import Config, rescore_run, run_night, score_images, show_table, table
from drivetrain.aliases import name_next
from drivetrain.cli import main
from drivetrain.errors import SettingError, StoreError
from drivetrain.members import CURRENT
from drivetrain.planruns import scope_name
from drivetrain.run import Run
from drivetrain.store import Store
from drivetrain.table import keep_table_current, refresh_table


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(str(tmp_path / "root"))


def refresh(world: World, **how: int) -> list[str]:
    found = refresh_table(world.store, world.layout, "shop", **how)
    rewritten: list[str] = found["rewritten"]
    assert found["rows"] == len(world.rows()) and found["version"] == world.version()
    return rewritten


def promote(world: World, sha256: str | None, alias: str = "champion", scope: str | None = None) -> None:
    model = sha256 and sha256[:12]
    name_next(world.store, world.layout, "shop", alias, model_id=model, sha256=sha256, reason="a test", scope=scope)  # type: ignore[arg-type]


def refreshes(world: World) -> int:
    """How many commits changed rows: two that create a table at once may make two versions without any."""
    return sum(table.APP in entry for entry in world.table().history())


def files(world: World) -> set[str]:
    return {Path(path).name for path in world.table().file_uris()}


def test_the_rows_of_a_night_stand_in_the_table_failed_images_among_them(world: World) -> None:
    run = world.run(world.plan("2026-01-02", range(9)), failed=[4])
    assert refresh(world) == ["night/2026-01-02"]
    found = world.table().to_pyarrow_table().cast(CURRENT)
    assert found.equals(all_rows(run, "2026-01-02"))
    assert found.filter(found["status"].to_numpy(zero_copy_only=False) == "failed")["uri"].to_pylist() == [
        "/bucket/images/00004.jpg"
    ]


def test_a_table_that_is_up_to_date_gets_no_version_and_no_file(world: World) -> None:
    world.night("2026-01-02", range(9))
    refresh(world)
    before, there = world.version(), sorted(os.listdir(world.uri))
    assert refresh(world) == [] and refresh(world, compact=True) == []
    assert (world.version(), sorted(os.listdir(world.uri))) == (before, there)


def test_of_an_image_in_several_plans_the_newest_plan_counts_whatever_their_names_and_order(world: World) -> None:
    late = world.plan("2026-01-05", range(10, 30))
    early = world.plan("2026-01-02", range(20))
    backfill = world.plan("all", range(5, 25), kind="plan")
    runs = [world.run(backfill)]
    refresh(world)
    for plan, order in ((late, (1, 0)), (early, (1, 2, 0))):
        runs.append(world.run(plan))
        refresh(world)
        assert world.rows() == truth(*(runs[place] for place in order))


def test_only_what_changed_is_written_anew(world: World) -> None:
    for day in range(2, 6):
        world.night(f"2026-01-{day:02d}", range(10 * day, 10 * day + 10))
        refresh(world)
    before = files(world)
    assert len(before) == 4
    world.night("2026-01-06", range(45, 70))
    # Of the nights before, two share images with it: those of 2026-01-04 and of 2026-01-05.
    assert refresh(world) == ["night/2026-01-04", "night/2026-01-05", "night/2026-01-06"]
    assert len(before & files(world)) == 2 and len(world.rows()) == 50


def test_references_scopes_and_runs_without_commit_are_no_current_scores(world: World) -> None:
    run = world.night("2026-01-02", range(5))
    world.night("reference-5a5a5a5a", range(50, 60), kind="plan")
    world.night(scope_name("2026-01-02", "0.3"), range(2), sha256=NEW, kind="plan")
    tables.begun(world.store, world.layout, world.plan("2026-01-03", range(5, 9)))
    refresh(world)
    assert world.rows() == truth(run)


def test_failed_images_that_were_scored_again_switch_in_one_version(world: World) -> None:
    run = world.run(world.plan("2026-01-02", range(9)), failed=[4, 5])
    refresh(world)
    before = world.version()
    again = commit(run.successor())
    refresh(world)
    assert world.rows() == truth(again) and world.rows(before) == truth(run)
    assert world.version() == before + 1


def test_a_promotion_and_a_rollback_each_switch_all_nights_in_one_version(world: World) -> None:
    plans = [world.plan(f"2026-01-{day:02d}", range(10 * day, 10 * day + 10)) for day in range(2, 6)]
    olds = [world.run(plan) for plan in plans]
    promote(world, OLD)
    news = [world.run(plan, NEW) for plan in plans[:3]]
    refresh(world)
    first = world.version()
    assert world.rows() == truth(*olds)
    promote(world, NEW)
    refresh(world)
    # The last night was not scored by the new champion: what there is counts.
    assert world.rows() == truth(*news, olds[3])
    promote(world, OLD)
    refresh(world)
    assert world.rows() == truth(*olds)
    assert [world.rows(first), world.rows(first + 1)] == [truth(*olds), truth(*news, olds[3])]
    assert world.version() == first + 2


def test_a_learner_that_was_never_champion_has_no_rows_where_a_former_champion_has(world: World) -> None:
    """It was rescored, or ran as a shadow, and was rejected; then a third one is promoted."""
    plan = world.plan("2026-01-02", range(10))
    was, rejected = world.run(plan), world.run(plan, WIDE)
    promote(world, OLD)
    refresh(world)
    assert world.rows() == truth(was)
    promote(world, NEW)
    assert refresh(world) == [] and world.rows() == truth(was)
    # Where no champion ever scored, what there is counts.
    alone = world.night("2026-01-03", range(10, 12), WIDE)
    now = world.run(plan, NEW)
    refresh(world)
    assert world.rows() == truth(now, alone) and rejected.committed()


def test_in_its_scope_a_challenger_takes_the_place_of_the_champion_until_it_is_withdrawn(world: World) -> None:
    nights = [world.night("2026-01-02", range(10))]
    refresh(world)
    nights.append(world.night("2026-01-03", range(10, 20)))
    promote(world, OLD)
    scoped = world.night(scope_name("2026-01-02", "0.3"), range(3, 6), sha256=NEW, kind="plan")
    refresh(world)
    assert world.rows() == truth(*nights)
    promote(world, NEW, "challenger")
    assert refresh(world) == []
    promote(world, NEW, "challenger", scope="0.3")
    assert refresh(world) == ["night/2026-01-02"]
    assert world.rows() == truth(*nights, scoped)
    newer = world.night("2026-01-04", range(5, 8))
    refresh(world)
    # What is newer than the night is newer than the part of it that a challenger scored.
    assert world.rows() == truth(*nights, scoped, newer)
    promote(world, None, "challenger")
    refresh(world)
    assert world.rows() == truth(*nights, newer)


def test_a_scope_of_another_learner_than_the_challenger_counts_for_nothing(world: World) -> None:
    night = world.night("2026-01-02", range(10))
    world.night(scope_name("2026-01-02", "0.3"), range(3, 6), sha256=OLD, kind="plan")
    promote(world, NEW, "challenger", scope="0.3")
    refresh(world)
    assert world.rows() == truth(night)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_in_whatever_order_the_table_is_what_a_dictionary_would_be(world: World, seed: int) -> None:
    """Nights and plans that overlap at random, three learners, promotions, scopes, compactions, small files."""
    chance = random.Random(seed)
    plans, runs, scopes = {}, {}, {}
    champions: list[str] = []
    challenger = None
    for step in range(14):
        if step < 4 or chance.random() < 0.3:
            start = chance.randrange(60)
            kind = chance.choice(["night", "plan"])
            name = f"2026-01-{chance.randrange(10, 29)}"
            if (kind, name) not in plans:
                plans[kind, name] = world.plan(name, range(start, start + chance.randrange(25)), kind)
        key = chance.choice(sorted(plans))
        sha256 = chance.choice([OLD, NEW, WIDE])
        if sha256 not in runs.setdefault(key, {}) and plans[key].images:
            runs[key][sha256] = world.run(plans[key], sha256)
        if chance.random() < 0.3:
            champions.append(chance.choice([OLD, NEW, WIDE]))
            promote(world, champions[-1])
        if chance.random() < 0.3:
            challenger = chance.choice([OLD, NEW, None])
            promote(world, challenger, "challenger", scope=challenger and ".*")
        name = key[1]
        if chance.random() < 0.4 and name not in scopes and plans[key].images > 2:
            part = [
                int(Path(uri).stem)
                for uri in tables.begun(world.store, world.layout, plans[key]).manifest(["uri"])["uri"].to_pylist()
            ]
            scopes[name] = world.night(scope_name(name, ".*"), part[: len(part) // 2], sha256=NEW, kind="plan")
        refresh(world, file_bytes=chance.choice([20_000, 60_000]), compact=chance.random() < 0.2)
        layers = []
        for plan_key, by_learner in runs.items():
            if not by_learner:
                continue
            order = (plans[plan_key].created, "/".join(plan_key))
            of_champions = [by_learner[each] for each in champions if each in by_learner]
            layers.append((order, 0, (of_champions or list(by_learner.values()))[-1]))
            over = scopes.get(plan_key[1]) if challenger == NEW and champions[-1:] != [NEW] else None
            if over and (plan_key[0] == "night" or ("night", plan_key[1]) not in plans):
                layers.append((order, 1, over))
        assert world.rows() == truth(*(run for _, _, run in sorted(layers, key=lambda layer: layer[:2]))), step


def test_large_nights_are_cut_and_small_ones_share_a_file(world: World) -> None:
    wanted = 300_000
    world.night("2026-01-02", range(1500), WIDE)
    refresh(world, file_bytes=wanted)
    large = files(world)
    assert 4 < len(large) < 8
    for day in range(3, 11):
        world.night(f"2026-01-{day:02d}", range(10_000 * day, 10_000 * day + 50), WIDE)
        refresh(world, file_bytes=wanted)
    assert len(files(world)) == len(large) + 8
    refresh(world, file_bytes=wanted, compact=True)
    sizes = sorted(Path(world.uri, name).stat().st_size for name in files(world))
    assert large < files(world) and len(world.rows()) == 1900
    # Between half of it and twice of it, as 64 and 256 MB are of 128; what is left over is smaller.
    assert sizes[1] >= wanted / 2 and sizes[-1] <= wanted * 2, sizes
    before = world.version()
    refresh(world, file_bytes=wanted, compact=True)
    assert world.version() == before


def test_many_small_files_are_put_together_without_being_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MOST_SMALL_FILES", 3)
    for day in range(2, 9):
        world.night(f"2026-01-{day:02d}", range(10 * day, 10 * day + 10))
        refresh(world)
        assert len(files(world)) <= 4
    assert len(world.rows()) == 70


def test_a_small_night_does_not_share_a_file_with_a_large_one(world: World) -> None:
    """A retry of the small one would write the large one anew."""
    small, large = world.plan("2026-01-02", range(5)), world.plan("2026-01-03", range(1000, 1500))
    run, _ = world.run(small, failed=[3]), world.run(large, WIDE)
    refresh(world, file_bytes=300_000)
    commit(run.successor())
    assert refresh(world, file_bytes=300_000) == ["night/2026-01-02"]


def test_a_table_that_somebody_else_compacted_is_still_right(world: World) -> None:
    plan = world.plan("2026-01-02", range(10))
    runs = [world.run(plan, failed=[1]), world.night("2026-01-03", range(10, 20))]
    refresh(world)
    runs.append(world.night("2026-01-04", range(20, 30)))
    refresh(world)
    world.table().optimize.compact()
    assert len(files(world)) == 1
    runs[0] = commit(runs[0].successor())
    refresh(world)
    assert world.rows() == truth(*runs)


def test_files_that_no_version_of_a_week_needs_are_removed_and_no_other(world: World) -> None:
    run = world.night("2026-01-02", range(10))
    refresh(world)
    for name, age in (("part-old.parquet", 8), ("part-new.parquet", 6)):
        path = Path(world.uri, name)
        shutil.copy(next(Path(world.uri).glob("part-*")), path)
        os.utime(path, (time.time() - age * 86_400,) * 2)
    config = Config(root=world.layout.root, source="shop")
    assert show_table(config)["table"]["removed_files"] == 1
    assert not Path(world.uri, "part-old.parquet").exists() and Path(world.uri, "part-new.parquet").exists()
    assert world.rows() == truth(run)
    # The commits that Delta makes of it do not hide what the table holds.
    before = world.version()
    assert refresh(world) == [] and world.version() == before


STEPS = {"half a file": False, "a file of two": False, "before the commit": False, "after the commit": True}


@pytest.mark.parametrize("step", STEPS)
def test_a_writer_that_is_killed_leaves_readers_on_one_version_and_the_next_mends_it(world: World, step: str) -> None:
    plans = [world.plan(f"2026-01-{day:02d}", range(1000 * day, 1000 * day + 300)) for day in (2, 3)]
    olds = [world.run(plan) for plan in plans]
    refresh(world)
    before = world.version()
    news = [world.run(plan, NEW) for plan in plans]
    promote(world, NEW)
    done = subprocess.run(
        [sys.executable, tables.__file__, world.layout.root, step], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    there = len(list(Path(world.uri).glob("*.parquet")))
    assert there > len(files(world)) or STEPS[step], "it was killed before it wrote anything"
    assert world.rows() == truth(*(news if STEPS[step] else olds))
    refresh(world)
    assert world.rows() == truth(*news) and world.version() == before + 1


def test_a_reader_at_each_step_of_a_switch_sees_all_of_it_or_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [world.plan(f"2026-01-{day:02d}", range(1000 * day, 1000 * day + 300)) for day in (2, 3, 4)]
    olds = [world.run(plan) for plan in plans]
    refresh(world)
    news = [world.run(plan, NEW) for plan in plans]
    promote(world, NEW)
    looks: list[str] = []

    def look() -> None:
        rows = world.rows()
        looks.append("none" if rows == truth(*olds) else "all" if rows == truth(*news) else "a part")

    def watched(room: Any, name: str) -> None:
        real = getattr(room, name)

        def step(*given: Any, **named: Any) -> Any:
            look()
            found = real(*given, **named)
            look()
            return found

        monkeypatch.setattr(room, name, step)

    watched(table._Added, "_write_file")
    watched(table.pq.ParquetWriter, "write_table")
    watched(table.pq.ParquetWriter, "close")
    watched(table, "_bounds")
    watched(table, "_commit")
    refresh_table(world.store, world.layout, "shop")
    monkeypatch.undo()
    look()
    assert set(looks) == {"none", "all"} and looks == sorted(looks, reverse=True), looks
    assert len(looks) > 10
    print(
        f"a reader of the table at {len(looks)} moments of a switch: {looks.count('none')} saw none of it, the rest all"
    )


def test_what_all_nights_ask_for_alike_is_asked_for_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(2, 8):
        world.night(f"2026-01-{day:02d}", range(10 * day, 10 * day + 5))
    promote(world, NEW)
    promote(world, OLD)
    refresh(world)
    listed: Counter[str] = Counter()
    real = Store.names

    def names(store: Store, folder: str) -> list[str]:
        listed[folder] += 1
        return real(store, folder)

    monkeypatch.setattr(Store, "names", names)
    refresh_table(world.store, world.layout, "shop")
    # Before the nights and after them.
    assert listed[world.layout.aliases("shop", "champion")] == 2
    assert listed[world.layout.runs] == 1


def both_at_once(first: World, second: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two refreshes that meet right before their commits."""
    meeting = threading.Barrier(2, timeout=60)
    real: Callable[..., None] = table._commit
    seen = threading.local()

    def commit_together(*given: object) -> None:
        if not getattr(seen, "met", False):
            seen.met = True
            meeting.wait()
        return real(*given)

    monkeypatch.setattr(table, "_commit", commit_together)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: refresh_table(each.store, each.layout, "shop"), (first, second)))
    assert {each["rows"] for each in found} == {len(first.rows())}


def test_two_writers_at_once_leave_each_image_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [world.night("2026-01-02", range(10)), world.night("2026-01-03", range(5, 15))]
    both_at_once(world, world, monkeypatch)
    assert world.rows() == truth(*runs) and refreshes(world) == 1
    runs.append(world.night("2026-01-04", range(12, 30)))
    both_at_once(world, world, monkeypatch)
    assert world.rows() == truth(*runs) and refreshes(world) == 2


def test_one_that_began_before_a_promotion_does_not_undo_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked at the old champion's runs, and commits after the promotion has."""
    plan = world.plan("2026-01-02", range(10))
    world.run(plan)
    promote(world, OLD)
    refresh(world)
    new = world.run(plan, NEW)
    world.night("2026-01-03", range(10, 12))
    real: Callable[..., None] = table._commit

    def promoted_meanwhile(*given: object) -> None:
        monkeypatch.setattr(table, "_commit", real)
        promote(world, NEW)
        refresh(world)
        return real(*given)

    monkeypatch.setattr(table, "_commit", promoted_meanwhile)
    refresh(world)
    assert world.rows()["/bucket/images/00000.jpg"] == ("2026-01-02", new.record.run_id)


def test_one_that_finds_the_table_made_meanwhile_adds_no_second_row(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked when there was no table, and so knew of no file that it had to replace."""
    run = world.night("2026-01-02", range(10))
    real: Callable[..., Any] = table._create

    def made_meanwhile(*given: object) -> Any:
        monkeypatch.setattr(table, "_create", real)
        refresh(world)
        return real(*given)

    monkeypatch.setattr(table, "_create", made_meanwhile)
    refresh(world)
    assert world.rows() == truth(run) and refreshes(world) == 1


@pytest.mark.slow
def test_three_processes_at_once_leave_each_image_once(world: World) -> None:
    runs = [world.night(f"2026-01-{day:02d}", range(5 * day, 5 * day + 10)) for day in range(2, 6)]
    code = f"from drivetrain.table import *; refresh_table(Store(), Layout({world.layout.root!r}), 'shop')"
    writers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said.decode()
    assert world.rows() == truth(*runs)


def test_where_others_always_win_it_gives_up_in_plain_words(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltalake.exceptions import CommitFailedError

    world.night("2026-01-02", range(3))

    def beaten(*_: object) -> None:
        raise CommitFailedError("another writer")

    monkeypatch.setattr(table, "_commit", beaten)
    with pytest.raises(StoreError, match="changed by others 10 times"):
        refresh_table(world.store, world.layout, "shop")


def test_a_table_that_can_not_be_written_is_told_and_mended_by_the_next(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run = world.night("2026-01-02", range(3))
    world.store.replace(world.uri, b"a file where the table's folder would be")
    (note,) = keep_table_current(world.store, world.layout, "shop")
    assert "could not be written" in note and "drivetrain table" in note and note in capsys.readouterr().err
    os.unlink(world.uri)
    assert keep_table_current(world.store, world.layout, "shop") == []
    assert world.rows() == truth(run) and "3 images" in capsys.readouterr().err
    keep_table_current(world.store, world.layout, "shop")
    assert capsys.readouterr().err == ""


def test_a_run_that_is_gone_leaves_the_table_as_it_was(world: World) -> None:
    runs = [world.night("2026-01-02", range(3)), world.night("2026-01-03", range(3, 6))]
    refresh(world)
    again = commit(runs[1].successor())
    shutil.rmtree(again.paths.parts)
    with pytest.raises(StoreError, match="could not be written"):
        refresh_table(world.store, world.layout, "shop")
    assert world.rows() == truth(*runs)


def test_a_source_without_runs_has_no_table(world: World) -> None:
    assert refresh_table(world.store, world.layout, "shop") == {} and not Path(world.uri).exists()
    world.night("2026-01-02", range(3))
    with pytest.raises(SettingError, match="Sources here: shop"):
        show_table(Config(root=world.layout.root, source="shpo"))
    with pytest.raises(SettingError, match="memory://"):
        show_table(Config(root="memory://x/y", source="shop", actors=0))


def test_a_night_without_images_is_no_file(world: World) -> None:
    world.night("2026-01-02", [])
    assert refresh(world) == ["night/2026-01-02"] and files(world) == set()
    assert refresh(world) == []
    run = world.night("2026-01-03", range(3))
    refresh(world)
    assert world.rows() == truth(run)


@pytest.mark.slow
def test_on_s3_two_writers_at_once_leave_each_image_once(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is a conditional put, which a store that ignored the condition would let both make."""
    world = World(f"{s3.bucket()}/root", Store(s3.storage))
    runs = [world.night("2026-01-02", range(10)), world.night("2026-01-03", range(5, 15))]
    both_at_once(world, World(world.layout.root, Store(s3.storage)), monkeypatch)
    assert world.rows() == truth(*runs) and refreshes(world) == 1
    runs[0] = commit(runs[0].successor())
    runs.append(world.night("2026-01-04", range(12, 30)))
    both_at_once(world, World(world.layout.root, Store(s3.storage)), monkeypatch)
    assert world.rows() == truth(*runs) and refreshes(world) == 2
    assert refresh(world) == []


@pytest.mark.slow
def test_on_s3_a_file_that_broke_off_leaves_nothing(s3: S3Server) -> None:
    store, uri = Store(s3.storage), f"{s3.bucket()}/table/part-0.parquet"
    with pytest.raises(ZeroDivisionError), store.writing(uri) as file:
        file.write(b"x" * 20_000_000)
        raise ZeroDivisionError
    assert not store.exists(uri)
    with store.writing(uri) as file:
        file.write(b"x" * 20_000_000)
    assert store.about(uri).size == 20_000_000


@pytest.mark.slow
def test_the_command_shows_the_table_and_how_to_read_it_and_no_secret(
    s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(f"{s3.bucket()}/root", Store(s3.storage))
    world.night("2026-01-02", range(10))
    flags = ["--root", world.layout.root, "--source", "shop", "--storage", f"s3.endpoint_url={s3.endpoint}"]
    with pytest.raises(SystemExit) as end:
        main(["table", *flags])
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    *lines, last = printed.out.splitlines()
    result = json.loads(last)
    assert result["table"]["rows"] == 10 and result["table"]["uri"] == world.uri == lines[0]
    assert {"DuckDB", "Polars", "pandas", "Spark"} <= result["read_with"].keys()
    assert s3.endpoint in result["read_with"]["Polars"]
    assert s3.secret_key not in printed.out + printed.err and s3.access_key not in printed.out + printed.err
    with pytest.raises(SystemExit):
        main(["table", *flags, "--json"])
    assert json.loads(capsys.readouterr().out)["table"]["version"] == result["table"]["version"]
    shown = result["read_with"]
    names: dict[str, Any] = {}
    exec(shown["Polars"].replace("polars.scan", "found = polars.scan"), names)
    exec(shown["pandas"].replace("\nDeltaTable(", "\nframe = DeltaTable("), names)
    assert (
        names["found"]["uri"].sort().to_list() == names["frame"]["uri"].sort_values().to_list() == sorted(world.rows())
    )


@pytest.mark.slow
def test_score_nightly_and_rescore_each_bring_the_table_up_to_date(
    tmp_path: Path, digits_export: learners.Exported
) -> None:
    learners.write_digits(tmp_path / "in" / "2026-01-02", 0, 40)
    config = Config(
        root=str(tmp_path / "root"), learner=digits_export.path, trust=(digits_export.sha256,), actors=0,
        images=f"{tmp_path}/in/{{night}}", source="shop", night=date(2026, 1, 2), engine="torch",
    )  # fmt: skip
    world = World(str(tmp_path / "root"))

    def runs() -> set[str]:
        return {run_id for _, run_id in world.rows().values()}

    night = run_night(config)["run_id"]
    assert runs() == {night} and len(world.rows()) == 40
    again = rescore_run(config.model_copy(update={"run": night, "embedding": "none"}))["run_id"]
    assert runs() == {again} != {night}
    backfill = score_images(config.model_copy(update={"images": f"{tmp_path}/in", "name": "all"}))["run_id"]
    assert runs() == {backfill}
    # What a command could not do, the same command does when there is nothing else to do.
    shutil.rmtree(world.uri)
    assert run_night(config)["run_id"] == night and runs() == {backfill}


def test_a_run_is_found_by_each_row(world: World) -> None:
    """The classes of probs stand in the run's record, which each row names."""
    world.night("2026-01-02", range(5))
    world.night("2026-01-03", range(5, 9), sha256=NEW)
    refresh(world)
    for row in (
        world.table().to_pyarrow_table(columns=["run_id", "probs", "label", "label_index", "embedding"]).to_pylist()
    ):
        record = Run.find(world.store, world.layout, row["run_id"]).record
        assert len(row["probs"]) == len(record.vocab) and len(row["embedding"]) == record.embedding_size
        assert record.vocab[row["label_index"]] == row["label"]
