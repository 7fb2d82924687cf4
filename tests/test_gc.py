"""What gc takes and what it leaves: a root in which every kind of thing lies, committed, resumable, lost and young."""

import os
import time
from pathlib import Path

import pytest
from builders import HALF_A_SHARD, begun, committed, frozen, images, part_of
from click.testing import CliRunner
from servers import S3Server

from drivetrain import collect_garbage
from drivetrain.cli import main
from drivetrain.config import Config
from drivetrain.errors import RunError, SettingError
from drivetrain.gc import KEPT_DAYS
from drivetrain.layout import Layout
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.score import finish_run
from drivetrain.store import Store

STORE = Store()
IMAGES = images(4, size=HALF_A_SHARD)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(root=str(tmp_path / "root"))
    open_root(config)
    return config


def layout_of(config: Config) -> Layout:
    return Layout(str(config.root))


def a_run(config: Config, name: str) -> Run:
    layout = layout_of(config)
    return begun(STORE, layout, frozen(STORE, layout, IMAGES, name=name, kind="plan"))


def half_done(config: Config, name: str) -> Run:
    run = a_run(config, name)
    run.save_part(0, part_of(run, 0))
    run.beat(2, "failed")
    return run


def orphaned(config: Config, name: str) -> Run:
    run = half_done(config, name)
    Path(layout_of(config).plan("shop", "plan", name).plan).unlink()
    return run


def aged(config: Config, days: float = KEPT_DAYS + 1) -> None:
    """As if nothing of the root was touched for that long."""
    when = time.time() - days * 86400
    for path in Path(str(config.root)).rglob("*"):
        os.utime(path, (when, when))


def files(config: Config) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(str(config.root)).rglob("*") if path.is_file()}


def test_it_takes_what_nobody_refers_to_and_nothing_else(config: Config) -> None:
    committed(a_run(config, "done"))
    waits, lost = half_done(config, "waits"), orphaned(config, "lost")
    layout = layout_of(config)
    loser = f"{layout.plan('shop', 'plan', 'done').folder}/manifest-0123456789ab"
    STORE.create(f"{loser}/00000.parquet", b"frozen by the second of two commands")
    unplanned = f"{layout.plan('shop', 'plan', 'coming').folder}/manifest-0123456789ab"
    STORE.create(f"{unplanned}/00000.parquet", b"its plan.json may still come")
    killed = Path(waits.paths.folder) / f".{'0af3' * 8}.tmp"
    killed.write_bytes(b"half of a part")
    aged(config)
    before = files(config)

    found = collect_garbage(config)
    assert files(config) == before, "a look changes nothing"
    assert {each["path"] for each in found["removable"]} == {lost.paths.folder, loser, str(killed)}
    assert [each["path"] for each in found["resumable"]] == [waits.paths.folder]

    removed = collect_garbage(config, delete=True)["removed"]
    assert removed == found["removable"]
    after = files(config)
    gone = {path for path in before if path not in after}
    expected = {path for path in before if path.startswith((f"{lost.paths.folder}/", loser))} - {lost.paths.record}
    assert gone == expected | {str(killed)}
    assert after == {path: data for path, data in before.items() if path in after} | {
        lost.paths.commit: after[lost.paths.commit]
    }
    print(f"{len(gone)} of {len(before)} objects removed, the others as they were")
    assert collect_garbage(config, delete=True)["removed"] == []


def test_what_was_touched_lately_stays(config: Config) -> None:
    run = orphaned(config, "lost")
    aged(config)
    os.utime(run.paths.part(0))
    assert collect_garbage(config, delete=True)["removed"] == []
    aged(config, KEPT_DAYS - 1)
    assert collect_garbage(config, delete=True)["removed"] == []
    aged(config)
    assert len(collect_garbage(config, delete=True)["removed"]) == 1


def test_a_named_run_is_removed_and_whoever_goes_on_with_it_is_told(config: Config) -> None:
    run = half_done(config, "waits")
    named = config.model_copy(update={"run": run.record.run_id})
    assert [each["what"] for each in collect_garbage(named, delete=True)["removed"]] == ["run"]
    assert run.committed() is None
    with pytest.raises(RunError, match=r"removed by drivetrain gc on 20.* under another --name"):
        finish_run(run, Config(actors=0))
    with pytest.raises(RunError, match="not committed"):
        run.rows(["uri"])
    with pytest.raises(RunError, match=r"parts are missing|removed by drivetrain gc"):
        run.commit({}, 0.01, 1.0, 0)

    a_late_part = run.paths.part(1)
    STORE.create(a_late_part, b"of an actor that was still at work")
    assert collect_garbage(config, delete=True)["removed"] == [], "it is young"
    aged(config)
    collect_garbage(config, delete=True)
    left = {path for path in files(config) if path.startswith(run.paths.folder)}
    assert left == {run.paths.commit, run.paths.record}
    aged(config)
    assert [each["what"] for each in collect_garbage(config, delete=True)["removed"]] == ["claim"]
    again = a_run(config, "waits")
    assert again.record.run_id == run.record.run_id and committed(again).rows == len(IMAGES), "begun afresh"


def test_a_committed_run_and_one_at_work_are_refused(config: Config) -> None:
    done, works = a_run(config, "done"), half_done(config, "works")
    committed(done)
    works.beat(1, host="another", pid=7)
    for run, said in ((done, "never removed"), (works, "by process 7 on another")):
        with pytest.raises(SettingError, match=said):
            collect_garbage(config.model_copy(update={"run": run.record.run_id}), delete=True)


@pytest.mark.slow
def test_one_object_of_a_bucket_is_removed_whatever_its_key(s3: S3Server) -> None:
    """A key is no pattern."""
    store, bucket = Store(s3.storage), s3.bucket()
    keys = ["a b", "a*", "a[x]", "ax", "a?b", "a%20b", "a#b"]
    for key in keys:
        store.create(f"{bucket}/{key}", key.encode())
    for key in ("a*", "a[x]", "a?b"):
        store.delete(f"{bucket}/{key}")
        store.delete(f"{bucket}/{key}")
    left = {each.uri.removeprefix(f"{bucket}/") for each in store.find(bucket)}
    assert left == {"a b", "ax", "a%20b", "a#b"}


def test_the_command_tells_what_it_would_do(config: Config) -> None:
    orphaned(config, "lost")
    half_done(config, "waits")
    aged(config)
    said = CliRunner().invoke(main, ["gc", "--root", str(config.root)])
    assert said.exit_code == 0, said.output
    assert (
        "may be removed: add --delete" in said.output
        and "Kept, its own command would finish it: shop-waits" in said.output
    )
