"""A reference made ready, and runs seen through it: small ones as they are, large ones by sketches of their parts."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from builders import begun, frozen, image
from worlds import DEPTH, VOCAB, scored, some

from drivetrain import bundle as room
from drivetrain.bundle import CANDIDATE, Bundle, Looked, groups_of, look, open_bundle
from drivetrain.config import Config
from drivetrain.errors import RunError, SettingError
from drivetrain.layout import Layout
from drivetrain.lens import Scores
from drivetrain.manifest import SHARD_BYTES
from drivetrain.reference import SCORE_COLUMNS, find_reference, register, scores_of
from drivetrain.run import Run
from drivetrain.schema import row_schema
from drivetrain.sketch import Totals, totals_of
from drivetrain.store import Store

# So many images fill a shard.
A_SHARD = 40
STORE = Store()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "root"))


def a_run(
    layout: Layout, scores: Scores, name: str, split: str = "unknown", failed: Mapping[int, str] | None = None
) -> Run:
    """A committed run whose images look as some scores say, in several shards."""
    listed = [image(f"{name}/camera-{i % 7}/{i:05d}.jpg", size=SHARD_BYTES // A_SHARD) for i in range(len(scores))]
    labels = {each.uri: (split, VOCAB[int(label)]) for each, label in zip(listed, scores.labels, strict=True)}
    plan = frozen(STORE, layout, listed, labels=labels, name=name)
    run = begun(STORE, layout, plan, embedding_size=DEPTH, vocab=VOCAB, task="single_label")
    place, counts = 0, {}
    for shard in range(run.record.shards):
        rows = []
        for about in run.shard(shard).to_pylist():
            row = {key: about[key] for key in ("uri", "etag", "size", "mtime", "split", "true_label")}
            reason = (failed or {}).get(place)
            row |= {"status": "failed", "error": reason} if reason else outcome(scores, place)
            rows.append(row)
            place += 1
        counts[shard] = run.save_part(shard, pa.Table.from_pylist(rows, schema=row_schema(DEPTH)))
    run.commit(counts, 1.0, 1.0, place)
    return run


def outcome(scores: Scores, place: int) -> dict[str, object]:
    return {
        "status": "ok",
        "embedding": scores.embeddings[place].tolist(),
        "probs": scores.outputs[place].tolist(),
        "confidence": float(scores.confidence[place]),
        "energy": float(scores.energy[place]),
        "label_index": int(scores.labels[place]),
        "label": VOCAB[int(scores.labels[place])],
        "width": 640,
        "height": 480,
        "brightness": 0.5 if place % 3 else None,
        "contrast": 0.2,
        "sharpness": place / 1000,
        "true_label": f"patient-{place % 5}",
        "content_hash": f"{place:064d}",
    }


def a_bundle(layout: Layout, config: Config | None = None, number: int = 300) -> Bundle:
    run = a_run(layout, some(number, 1), "reference", "held_out")
    found = open_bundle(STORE, layout, register(STORE, layout, run), config or settings(layout))
    assert found is not None
    return found


def settings(layout: Layout, **changes: object) -> Config:
    return Config.load(None, root=layout.root, actors=0, **changes)


def same(left: Totals | None, right: Totals | None) -> None:
    assert left is not None and right is not None
    for each in fields(Totals):
        np.testing.assert_allclose(getattr(left, each.name), getattr(right, each.name), atol=1e-6, err_msg=each.name)


# --- the bundle ---


def test_a_bundle_holds_the_held_out_images_with_lens_and_totals(layout: Layout) -> None:
    found = a_bundle(layout)
    assert (len(found.rows), len(found.scores), found.totals.images) == (300, 300, 300)
    assert found.uris == found.rows["uri"].to_pylist()
    assert found.grouped_by == "near-duplicates"
    assert found.self_test is None
    np.testing.assert_allclose(found.lens.whiten(found.scores).std(axis=0), 1, atol=0.01)


def test_trained_images_are_not_compared_with(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [image(f"x/{i:05d}.jpg", size=SHARD_BYTES // A_SHARD) for i in range(100)]
    marks = {each.uri: ("held_out" if i % 4 == 0 else "trained", None) for i, each in enumerate(listed)}
    run = begun(STORE, layout, frozen(STORE, layout, listed, labels=marks), embedding_size=DEPTH, vocab=VOCAB)
    scores = some(100, 1)
    counts, place = {}, 0
    for shard in range(run.record.shards):
        rows = [about | outcome(scores, place + i) for i, about in enumerate(run.shard(shard).to_pylist())]
        place += len(rows)
        counts[shard] = run.save_part(shard, pa.Table.from_pylist(rows, schema=row_schema(DEPTH)))
    run.commit(counts, 1.0, 1.0, 100)
    found = open_bundle(STORE, layout, register(STORE, layout, run), settings(layout))
    assert found and len(found.rows) == 25
    assert "very bytes" not in capsys.readouterr().err


def test_held_out_images_that_were_trained_on_are_told(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [image(f"x/{i:05d}.jpg", size=SHARD_BYTES // A_SHARD) for i in range(30)]
    marks = {each.uri: ("held_out" if i % 2 == 0 else "trained", None) for i, each in enumerate(listed)}
    run = begun(STORE, layout, frozen(STORE, layout, listed, labels=marks), embedding_size=DEPTH, vocab=VOCAB)
    scores, counts, place = some(30, 1), {}, 0
    for shard in range(run.record.shards):
        rows = [about | outcome(scores, place + i) for i, about in enumerate(run.shard(shard).to_pylist())]
        # Of three pairs of neighbours, one trained on and one held out, the bytes are the same.
        rows = [row | {"content_hash": f"{min((place + i) // 2, 3) if place + i < 6 else place + i:064d}"}
                for i, row in enumerate(rows)]  # fmt: skip
        place += len(rows)
        counts[shard] = run.save_part(shard, pa.Table.from_pylist(rows, schema=row_schema(DEPTH)))
    run.commit(counts, 1.0, 1.0, 30)
    assert register(STORE, layout, run).leaked == 3
    kept = find_reference(STORE, layout, run)
    assert kept and kept.leaked == 3, "the nights' reports tell it too"
    assert "3 held-out images have the very bytes of images that were trained on" in capsys.readouterr().err


def test_a_reference_of_another_learner_is_refused(layout: Layout) -> None:
    bundle = a_bundle(layout)
    plan = frozen(STORE, layout, [image("y/0.jpg")], source="shop", name="2026-01-05")
    other = begun(STORE, layout, plan, sha256="cd" * 32, embedding_size=DEPTH, vocab=VOCAB)
    with pytest.raises(RunError, match="embeddings of two learners can't be compared"):
        look(other, bundle, settings(layout))


def test_the_lens_is_made_once_and_another_reader_sees_through_the_very_same_one(layout: Layout) -> None:
    first = a_bundle(layout)
    path = first.run.paths.lens()
    before = (Path(path).read_bytes(), Path(path).stat().st_mtime_ns)
    reference = find_reference(Store(), layout, first.run)
    assert reference
    again = open_bundle(Store(), layout, reference, settings(layout))
    assert again
    for name, array in first.lens.arrays().items():
        np.testing.assert_array_equal(array, again.lens.arrays()[name])
    assert (Path(path).read_bytes(), Path(path).stat().st_mtime_ns) == before


def test_another_seed_has_a_lens_of_its_own(layout: Layout) -> None:
    first = a_bundle(layout)
    other = open_bundle(STORE, layout, first.reference, settings(layout, seed=5))
    assert other and not np.allclose(other.lens.weights, first.lens.weights)
    assert STORE.exists(first.run.paths.lens()) and STORE.exists(first.run.paths.lens("5"))


def test_a_reference_whose_images_all_failed_has_no_bundle(layout: Layout) -> None:
    run = a_run(layout, some(50, 1), "reference", "held_out", failed=dict.fromkeys(range(49), "denied"))
    assert open_bundle(STORE, layout, register(STORE, layout, run), settings(layout)) is None


# --- groups ---


def rows(number: int = 40) -> pa.Table:
    scores = some(number, 1)
    about = [{"uri": f"/x/camera-{i % 4}/{i}.jpg"} | outcome(scores, i) for i in range(number)]
    return pa.Table.from_pylist(about, schema=row_schema(DEPTH)).select(list(SCORE_COLUMNS))


def test_groups_are_found_by_a_column_a_pattern_or_the_images_themselves() -> None:
    table = rows()
    by_column, said = groups_of(table, None, "true_label")
    assert len(np.unique(by_column)) == 5 and (by_column[:5] == by_column[5:10]).all()
    assert said == "the column true_label"
    by_uri, said = groups_of(table, None, "(camera-[0-9])/")
    assert len(np.unique(by_uri)) == 4 and (by_uri[:4] == by_uri[4:8]).all()
    assert said == "group_by = '(camera-[0-9])/'"
    white = np.random.default_rng(0).standard_normal((40, 32))
    white[1] = white[0] + 0.01
    found, said = groups_of(table, white, None)
    assert len(np.unique(found)) == 39 and found[0] == found[1]
    assert said == "near-duplicates"


def test_images_without_a_value_in_the_column_are_groups_of_their_own() -> None:
    table = rows()
    place = table.schema.get_field_index("true_label")
    half = [value if i % 2 else None for i, value in enumerate(table["true_label"].to_pylist())]
    found, _ = groups_of(table.set_column(place, "true_label", pa.array(half, pa.string())), None, "true_label")
    assert len(np.unique(found)) == 5 + 20


def test_a_column_without_any_value_is_a_setting_error() -> None:
    table = rows()
    place = table.schema.get_field_index("true_label")
    with pytest.raises(SettingError, match="the column true_label is empty"):
        groups_of(table.set_column(place, "true_label", pa.nulls(40, pa.string())), None, "true_label")


@pytest.mark.parametrize("name", ["etag", "embedding", "probs", "split", "group"])
def test_a_column_that_names_no_group_is_a_setting_error(name: str) -> None:
    with pytest.raises(SettingError, match=f"group_by = '{name}'"):
        groups_of(rows(), None, name)


def test_group_by_reaches_the_reference_and_the_night(layout: Layout) -> None:
    config = settings(layout, group_by="(camera-[0-9])/")
    found = a_bundle(layout, config)
    assert len(np.unique(found.scores.groups)) == 7
    assert found.grouped_by == "group_by = '(camera-[0-9])/'"
    looked = look(a_run(layout, some(70, 2), "2026-01-05"), found, config)
    assert len(np.unique(looked.scores.groups)) == 7


def test_group_by_that_is_set_later_learns_from_as_many_groups_as_there_are(layout: Layout) -> None:
    """Axes that were learnt from more groups than there are see a drift on each usual night."""
    images = a_bundle(layout)
    config = settings(layout, group_by="(camera-[0-9])/")
    grouped = open_bundle(STORE, layout, images.reference, config)
    assert grouped and grouped.lens.axes.shape[1] < images.lens.axes.shape[1]
    again = open_bundle(STORE, layout, images.reference, settings(layout))
    assert again and again.lens.axes.shape[1] == images.lens.axes.shape[1]


def test_outputs_alone_find_no_near_duplicates(layout: Layout) -> None:
    """A sure learner says the same of all images of a class: those are no copies of each other."""
    listed = [image(f"r/{i:05d}.jpg", size=1000) for i in range(400)]
    marks = {each.uri: ("held_out", None) for each in listed}
    run = begun(STORE, layout, frozen(STORE, layout, listed, labels=marks), embedding_size=0, vocab=VOCAB)
    sure = scored(some(400, 1).embeddings * 6)
    made = [about | outcome(sure, i) | {"embedding": None} for i, about in enumerate(run.manifest().to_pylist())]
    counts, first = {}, 0
    for shard in range(run.record.shards):
        size = len(run.shard(shard))
        part = pa.Table.from_pylist(made[first : first + size], schema=row_schema(0))
        counts[shard] = run.save_part(shard, part)
        first += size
    run.commit(counts, 1.0, 1.0, 400)
    found = open_bundle(STORE, layout, register(STORE, layout, run), settings(layout))
    assert found and len(np.unique(found.scores.groups)) == 400


# --- looking at a run ---


def by_rows(run: Run, bundle: Bundle) -> Totals:
    """The totals of all rows, read at once."""
    table = run.rows(SCORE_COLUMNS, only={})
    return totals_of(bundle.lens, scores_of(table, VOCAB))


def test_a_small_run_is_read_as_it_is(layout: Layout) -> None:
    bundle, run = a_bundle(layout), a_run(layout, some(130, 2), "2026-01-05", failed={3: "empty", 80: "denied"})
    looked = look(run, bundle, settings(layout))
    assert (len(looked.rows), looked.drawn.tolist()) == (128, list(range(128)))
    same(looked.totals, by_rows(run, bundle))
    assert STORE.names(run.paths.sketches(bundle.reference.run_id)) == []


def test_without_a_reference_there_are_rows_and_nothing_is_counted(layout: Layout) -> None:
    looked = look(a_run(layout, some(30, 2), "2026-01-05"), None, settings(layout))
    assert (len(looked.rows), looked.totals) == (30, None)


def sketched(layout: Layout, bundle: Bundle, run: Run, monkeypatch: pytest.MonkeyPatch, most: int = 60) -> Looked:
    monkeypatch.setattr(room, "MOST_ROWS", most)
    return look(run, bundle, settings(layout))


def test_a_large_run_goes_by_sketches_and_counts_the_same(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = a_bundle(layout)
    scores = some(300, 2, shift=0.5)
    far = [5, 77, 290]
    embeddings = scores.embeddings.copy()
    embeddings[far] += 25
    run = a_run(layout, scored(embeddings), "2026-01-05", failed={3: "empty", 80: "denied"})
    assert run.record.shards >= 7
    looked = sketched(layout, bundle, run, monkeypatch)
    same(looked.totals, by_rows(run, bundle))
    assert STORE.names(run.paths.sketches(bundle.reference.run_id)) == STORE.names(run.paths.parts)
    # A fifth was asked for; the others are those furthest out, kept for the review queue and out of the test.
    assert 30 < len(looked.drawn) < 95
    marks = looked.rows[CANDIDATE].to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(np.flatnonzero(~marks), looked.drawn)
    uris = looked.rows["uri"].to_pylist()
    assert len(set(uris)) == len(uris)
    manifest = run.manifest()["uri"].to_pylist()
    assert {manifest[place] for place in far} <= set(uris)
    assert set(looked.rows.column_names) >= set(SCORE_COLUMNS)


def test_sketches_that_are_there_are_not_made_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, run = a_bundle(layout), a_run(layout, some(300, 2), "2026-01-05")
    first = sketched(layout, bundle, run, monkeypatch)
    folder = Path(run.paths.sketches(bundle.reference.run_id))
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    lost = sorted(times)[2]
    (folder / lost).unlink()
    again = sketched(layout, bundle, run, monkeypatch)
    same(first.totals, again.totals)
    assert first.rows["uri"] == again.rows["uri"]
    now = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in now if now[name] != times[name]} == {lost}


def test_another_reference_has_sketches_of_its_own(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, run = a_bundle(layout), a_run(layout, some(300, 2), "2026-01-05")
    sketched(layout, bundle, run, monkeypatch)
    second = a_run(layout, some(50, 9), "second", "held_out")
    other = open_bundle(STORE, layout, register(STORE, layout, second), settings(layout))
    assert other
    same(sketched(layout, other, run, monkeypatch).totals, by_rows(run, other))
    assert len(STORE.names(run.paths.sketches(second.record.run_id))) == run.record.shards


def test_another_seed_has_sketches_of_its_own(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, run = a_bundle(layout), a_run(layout, some(300, 2), "2026-01-05")
    sketched(layout, bundle, run, monkeypatch)
    other = open_bundle(STORE, layout, bundle.reference, settings(layout, seed=5))
    assert other
    same(look(run, other, settings(layout, seed=5)).totals, by_rows(run, other))
    same(sketched(layout, bundle, run, monkeypatch).totals, by_rows(run, bundle))


def test_a_part_whose_images_all_failed_is_sketched(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = a_bundle(layout)
    first = a_run(layout, some(300, 2), "2026-01-04").record.shards
    failed = dict.fromkeys(range(90), "denied")
    run = a_run(layout, some(300, 2), "2026-01-05", failed=failed)
    assert first == run.record.shards and run.counts(0).failed == run.counts(0).rows
    looked = sketched(layout, bundle, run, monkeypatch)
    same(looked.totals, by_rows(run, bundle))
    assert looked.totals and looked.totals.images == 210
    everything = a_run(layout, some(300, 2), "2026-01-06", failed=dict.fromkeys(range(300), "denied"))
    assert len(sketched(layout, bundle, everything, monkeypatch).rows) == 0


@pytest.mark.slow
def test_actors_of_a_cluster_sketch_the_same(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, run = a_bundle(layout), a_run(layout, some(300, 2), "2026-01-05")
    monkeypatch.setattr(room, "MOST_ROWS", 60)
    looked = look(run, bundle, settings(layout).model_copy(update={"actors": 1}))
    same(looked.totals, by_rows(run, bundle))
    assert STORE.names(run.paths.sketches(bundle.reference.run_id)) == STORE.names(run.paths.parts)
