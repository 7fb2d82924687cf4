"""A run's folder: who may write what, what adds up, and that nobody reads a run before it is closed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import HALF_A_SHARD, SETTINGS, SHA256, begun, committed, frozen, images, part_of

from drivetrain.config import Config
from drivetrain.errors import RunError, SettingError
from drivetrain.layout import Layout
from drivetrain.manifest import Plan
from drivetrain.run import FOOTER, PartCounts, Run, run_id_of
from drivetrain.score import settings_of
from drivetrain.store import Store

PLAN = Plan("shop", "night", "2026-01-02", "/in", "d" * 64, 9, 9, 1, 0, {}, "now")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "root"))


def a_run(layout: Layout, number: int = 6, **labels: tuple[str, str | None]) -> Run:
    """A run of ``number`` images, two to a shard, no part yet."""
    listed = images(number, size=HALF_A_SHARD)
    marks = {each.uri: labels[key] for each in listed if (key := f"i{each.uri[-9:-4]}") in labels}
    store = Store()
    return begun(store, layout, frozen(store, layout, listed, labels=marks))


def uris(run: Run) -> list[str]:
    return list(run.manifest(["uri"])["uri"].to_pylist())


# --- the id ---


def test_the_same_command_gives_the_same_run() -> None:
    assert run_id_of(PLAN, SHA256, SETTINGS) == run_id_of(PLAN, SHA256, dict(reversed(SETTINGS.items())))


def test_the_run_id_is_readable() -> None:
    assert run_id_of(PLAN, SHA256, SETTINGS).startswith(f"shop-2026-01-02-{SHA256[:8]}-")


@pytest.mark.parametrize("key", list(SETTINGS))
def test_the_run_id_depends_on_each_setting(key: str) -> None:
    assert run_id_of(PLAN, SHA256, SETTINGS | {key: "other"}) != run_id_of(PLAN, SHA256, SETTINGS)


@pytest.mark.parametrize("key", ["source", "kind", "name", "digest"])
def test_the_run_id_depends_on_the_plan(key: str) -> None:
    other = Plan(**{**PLAN.__dict__, key: "other"})
    assert run_id_of(other, SHA256, SETTINGS) != run_id_of(PLAN, SHA256, SETTINGS)


def test_the_run_id_depends_on_all_of_the_learners_hash() -> None:
    same_beginning = SHA256[:-1] + "0"
    assert run_id_of(PLAN, same_beginning, SETTINGS) != run_id_of(PLAN, SHA256, SETTINGS)


@pytest.mark.parametrize(
    "change", [{"embedding": "none"}, {"embedding": "0.7"}, {"max_pixels": 5}, {"precision": "float16"}]
)
def test_a_setting_that_changes_a_value_in_a_row_is_part_of_the_id(change: dict[str, object]) -> None:
    assert settings_of(Config.load(**change), "torch") != settings_of(Config(), "torch")


def test_the_engine_is_part_of_the_id() -> None:
    assert settings_of(Config(), "openvino") != settings_of(Config(), "torch")


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 3},
        {"actors": 0},
        {"alarms_per_year": 20},
        {"group_by": "x"},
        {"seed": 5},
        {"max_failed": 0.5},
        {"min_images": 1},
    ],
)
def test_a_setting_that_changes_no_row_is_not_part_of_the_id(change: dict[str, object]) -> None:
    assert settings_of(Config.load(**change), "torch") == settings_of(Config(), "torch")


# --- beginning and finding ---


def test_beginning_again_finds_the_run_that_was_begun_first(layout: Layout) -> None:
    first = a_run(layout)
    store = Store()
    other_time = {**first.record.__dict__, "created": "2030-01-01T00:00:00+00:00"}
    again = Run.begin(store, layout, first.paths.manifest, type(first.record)(**other_time))
    assert again.record == first.record
    assert Run.find(store, layout, first.record.run_id).record == first.record


def test_a_run_that_is_not_there_is_refused_with_those_that_are(layout: Layout) -> None:
    with pytest.raises(SettingError, match=r"No run 'x'[\s\S]*\(none\)"):
        Run.find(Store(), layout, "x")
    run = a_run(layout)
    with pytest.raises(SettingError, match=run.record.run_id):
        Run.find(Store(), layout, "x")


def test_a_run_has_its_own_copy_of_the_manifest(layout: Layout) -> None:
    run = a_run(layout)
    assert uris(run) == [each.uri for each in images(6)]
    assert run.shard(1)["uri"].to_pylist() == uris(run)[2:4]


# --- parts ---


def test_what_is_missing_are_the_shards_without_a_part(layout: Layout) -> None:
    run = a_run(layout)
    assert run.missing() == [0, 1, 2]
    run.save_part(1, part_of(run, 1))
    run.store.replace(f"{run.paths.parts}/notes.txt", b"not a part")
    assert run.missing() == [0, 2]


def test_a_part_counts_its_rows_and_its_failures_by_reason(layout: Layout) -> None:
    run = a_run(layout)
    first, second = uris(run)[:2]
    counts = run.save_part(0, part_of(run, 0, failed={first: "empty", second: "denied"}))
    assert counts == PartCounts(2, 2, {"empty": 1, "denied": 1})
    assert run.counts(0) == counts
    assert run.save_part(1, part_of(run, 1)) == PartCounts(2, 0, {}) == run.counts(1)


def test_of_two_writers_the_first_wins_and_the_second_gets_its_counts(layout: Layout) -> None:
    run = a_run(layout)
    run.save_part(0, part_of(run, 0, failed={uris(run)[0]: "unreachable"}))
    before = run.store.read(run.paths.part(0))
    counts = run.save_part(0, part_of(run, 0))
    assert counts == PartCounts(2, 1, {"unreachable": 1})
    assert run.store.read(run.paths.part(0)) == before


def test_a_part_says_in_its_footer_what_made_it(layout: Layout) -> None:
    run = a_run(layout)
    run.save_part(0, part_of(run, 0))
    about = json.loads(run.store.read_table(run.paths.part(0)).schema.metadata[FOOTER])
    assert (about["sha256"], about["vocab"], about["layer"], about["settings"], about["schema"]) == (
        SHA256,
        ["cat", "dog"],
        "head.0",
        SETTINGS,
        1,
    )


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(_: bytes) -> bytes:
    return b""


def another_file(_: bytes) -> bytes:
    return b"<html>502 Bad Gateway</html>" * 10


def footer_overwritten(data: bytes) -> bytes:
    length = int.from_bytes(data[-8:-4], "little")
    return data[: -8 - length] + b"\0" * length + data[-8:]


@pytest.mark.parametrize("damage", [cut_short, emptied, another_file, footer_overwritten])
def test_a_damaged_part_is_a_run_error_that_names_it_and_what_to_do(
    layout: Layout, damage: Callable[[bytes], bytes]
) -> None:
    run = a_run(layout)
    for shard in range(3):
        run.save_part(shard, part_of(run, shard))
    part = Path(run.paths.part(1))
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(RunError) as caught:
        run.commit({}, 0.01, 1.0, 6)
    assert str(part) in str(caught.value)
    assert "Delete it and run the same command" in str(caught.value)
    assert run.committed() is None


def test_a_parquet_file_of_somebody_else_is_no_part(layout: Layout) -> None:
    run = a_run(layout)
    run.store.create(run.paths.part(0), run.store.read(f"{run.paths.manifest}/00000.parquet"))
    with pytest.raises(RunError, match=r"part-00000\.parquet is damaged"):
        run.counts(0)


# --- the commit ---


def test_a_half_done_run_is_invisible(layout: Layout) -> None:
    run = a_run(layout)
    for shard in range(3):
        run.save_part(shard, part_of(run, shard))
        assert run.committed() is None
        for most in (None, 5):
            with pytest.raises(RunError, match="not committed yet"):
                run.rows(["uri"], most=most)
    run.commit({}, 0.01, 1.0, 6)
    assert len(run.rows(["uri"])) == 6


def test_a_commit_with_missing_parts_is_refused(layout: Layout) -> None:
    run = a_run(layout)
    counts = {0: run.save_part(0, part_of(run, 0))}
    with pytest.raises(RunError, match="2 of 3 parts are missing; run the same command"):
        run.commit(counts, 0.01, 1.0, 2)
    assert run.committed() is None


def test_a_part_that_was_only_promised_is_missing(layout: Layout) -> None:
    run = a_run(layout)
    with pytest.raises(RunError, match="3 of 3 parts are missing"):
        run.commit({shard: PartCounts(2, 0, {}) for shard in range(3)}, 0.01, 1.0, 6)


@pytest.mark.parametrize("rows", [slice(0, 1), [0, 1, 1]], ids=["one too few", "one twice"])
def test_rows_that_do_not_add_up_are_not_committed(layout: Layout, rows: slice | list[int]) -> None:
    run = a_run(layout)
    for shard in (0, 1):
        run.save_part(shard, part_of(run, shard))
    whole = part_of(run, 2)
    run.save_part(2, whole.slice(0, 1) if isinstance(rows, slice) else whole.take(rows))
    with pytest.raises(RunError, match=r"hold [57] rows and the manifest 6 images; not committed"):
        run.commit({}, 0.01, 1.0, 6)
    assert run.committed() is None


def test_a_commit_adds_up_rows_and_reasons(layout: Layout) -> None:
    run = a_run(layout)
    names = uris(run)
    failed = {names[0]: "empty", names[3]: "denied", names[4]: "empty"}
    commit = committed(run, failed=failed, max_failed=0.5)
    assert (commit.rows, commit.failed, commit.reasons) == (6, 3, {"empty": 2, "denied": 1})
    assert commit.parts == {f"part-{shard:05d}.parquet": 2 for shard in range(3)}
    assert not commit.too_many_failed
    assert run.committed() == commit


def test_on_resume_the_footers_of_earlier_parts_are_added(layout: Layout, tmp_path: Path) -> None:
    run = a_run(layout)
    names = uris(run)
    run.save_part(0, part_of(run, 0, failed={names[0]: "empty"}))
    run.save_part(2, part_of(run, 2, failed={names[5]: "denied"}))
    known = {1: run.save_part(1, part_of(run, 1, failed={names[2]: "empty"}))}
    commit = run.commit(known, 0.01, 1.0, 2)
    assert (commit.rows, commit.failed, commit.reasons, commit.scored) == (6, 3, {"empty": 2, "denied": 1}, 2)


def test_a_commit_reads_the_footers_of_the_parts_that_it_does_not_know_and_no_other(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(layout, 80)
    counts = {shard: run.save_part(shard, part_of(run, shard)) for shard in range(40)}
    read: list[int] = []
    counts_of = run.counts

    def noted(shard: int) -> PartCounts:
        read.append(shard)
        return counts_of(shard)

    monkeypatch.setattr(run, "counts", noted)
    commit = run.commit({shard: counts[shard] for shard in range(0, 40, 2)}, 0.01, 1.0, 40)
    assert sorted(read) == list(range(1, 40, 2))
    assert list(commit.parts) == [f"part-{shard:05d}.parquet" for shard in range(40)]
    assert commit.rows == 80


@pytest.mark.parametrize(
    ("failures", "most", "too_many"), [(0, 0.0, False), (1, 0.0, True), (3, 0.5, False), (4, 0.5, True)]
)
def test_more_than_the_share_that_may_fail_is_too_many(
    layout: Layout, failures: int, most: float, too_many: bool
) -> None:
    run = a_run(layout)
    failed = dict.fromkeys(uris(run)[:failures], "empty")
    assert committed(run, failed=failed, max_failed=most).too_many_failed is too_many


def test_a_commit_is_never_changed(layout: Layout) -> None:
    run = a_run(layout)
    first = committed(run, max_failed=0.01)
    assert run.commit({}, 0.99, 77.0, 0) == first


def test_a_run_without_images_is_committed_with_no_rows(layout: Layout) -> None:
    run = a_run(layout, 0)
    commit = committed(run)
    assert (commit.rows, commit.failed, commit.too_many_failed, commit.parts) == (
        0,
        0,
        False,
        {"part-00000.parquet": 0},
    )
    assert len(run.rows(["uri", "embedding"])) == 0
    assert len(run.rows(["uri", "embedding"], most=5)) == 0


def test_a_heartbeat_may_be_written_over(layout: Layout) -> None:
    run = a_run(layout)
    run.beat(2)
    run.beat(6, "committed")
    status = json.loads(run.store.read(run.paths.status))
    assert (status["state"], status["images_done"], status["of"]) == ("committed", 6, 6)


# --- reading ---


def test_all_rows_come_in_the_manifests_order_with_the_columns_asked_for(layout: Layout) -> None:
    run = a_run(layout)
    committed(run, failed={uris(run)[3]: "empty"}, max_failed=1)
    rows = run.rows(["uri", "status"])
    assert rows.column_names == ["uri", "status"]
    assert rows["uri"].to_pylist() == uris(run)
    assert rows["status"].to_pylist() == ["ok", "ok", "ok", "failed", "ok", "ok"]


def test_a_part_that_the_commit_does_not_name_is_not_read(layout: Layout) -> None:
    run = a_run(layout)
    committed(run)
    run.store.create(run.paths.part(9), run.store.read(run.paths.part(0)))
    assert len(run.rows(["uri"])) == len(run.rows(["uri"], most=100)) == 6


def test_a_draw_has_ok_rows_only_and_all_of_them_when_there_are_few(layout: Layout) -> None:
    run = a_run(layout)
    names = uris(run)
    committed(run, failed={names[0]: "empty", names[4]: "denied"}, max_failed=1)
    assert run.rows(["uri"], most=100)["uri"].to_pylist() == [names[i] for i in (1, 2, 3, 5)]


def test_a_draw_keeps_to_the_values_asked_for(layout: Layout) -> None:
    run = a_run(layout, i00001=("held_out", "cat"), i00002=("held_out", None), i00003=("trained", "cat"))
    names = uris(run)
    committed(run, failed={names[2]: "empty"}, max_failed=1)
    assert run.rows(["uri"], most=100, only={"split": "held_out"})["uri"].to_pylist() == [names[1]]
    assert run.rows(["true_label"], most=9, only={"split": "trained"})["true_label"].to_pylist() == ["cat"]
    assert len(run.rows(["uri"], most=100, only={"split": "unknown"})) == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A committed run of 1,500 images in 24 parts."""
    store, layout = Store(), Layout(str(tmp_path_factory.mktemp("large")))
    run = begun(store, layout, frozen(store, layout, images(1500)))
    assert run.record.shards > 10
    committed(run)
    return run


@pytest.mark.parametrize("most", [1, 40, 400])
def test_a_draw_is_about_as_large_as_asked_for_and_spread_over_the_parts(large: Run, most: int) -> None:
    drawn = large.rows(["uri"], most=most, seed=3)["uri"].to_pylist()
    assert abs(len(drawn) - most) <= 4 * np.sqrt(most)
    assert len(set(drawn)) == len(drawn)
    if most == 400:
        of_part = [
            sum(uri in drawn for uri in large.shard(shard)["uri"].to_pylist())
            for shard in range(large.record.shards - 1)
        ]
        assert min(of_part) > 0


def test_the_same_seed_draws_the_same_rows_whatever_the_columns_and_another_seed_others(large: Run) -> None:
    first = large.rows(["uri"], most=100, seed=3)["uri"].to_pylist()
    assert large.rows(["label", "uri"], most=100, seed=3)["uri"].to_pylist() == first
    other = large.rows(["uri"], most=100, seed=4)["uri"].to_pylist()
    assert len(set(first) & set(other)) < 30


def test_a_draw_is_not_the_same_places_of_every_part(large: Run) -> None:
    drawn = set(large.rows(["uri"], most=400, seed=0)["uri"].to_pylist())
    places = [[i for i, uri in enumerate(large.shard(shard)["uri"].to_pylist()) if uri in drawn] for shard in (0, 1, 2)]
    assert places[0] != places[1] != places[2]
