"""A night from end to end on a real S3 server with real Ray actors: reference, nights, drift, rescore, pages."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pandas as pd
import pytest
from browser import probed, see
from fastai.vision.all import Learner
from servers import S3Server, answers, fetch, free_ports, poll

from drivetrain import Config, build_reference, compare_runs, list_nights, measure_drift, rescore_run, run_night
from drivetrain.cluster import connected
from drivetrain.layout import Layout
from drivetrain.reference import label_of_folders
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.store import Store

pytestmark = pytest.mark.thorough

LOOKS = """({
  links: [...document.querySelectorAll("a[href]")].map(each => new URL(each.getAttribute("href"), location).href),
  pictures: document.querySelectorAll("image, img").length,
})"""
FIRST, SECOND, EMPTY = date(2026, 11, 20), date(2026, 11, 21), date(2026, 11, 23)


@dataclass(frozen=True)
class World:
    """One bucket after three nights: other digits, inverted digits, and a night without images."""

    config: Config
    store: Store
    layout: Layout
    reference: dict[str, Any]
    nights: dict[date, dict[str, Any]]
    new_learner: learners.Exported


def upload(store: Store, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*.*"):
        store.replace(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


def labels_csv(learn: Learner) -> bytes:
    """As the README says it: a test holds the two against each other."""
    dls = learn.dls
    frames = [
        pd.DataFrame({"fname": ds.items, "label": [dls.vocab[y] for y in ds.tls[1]], "is_valid": ds is dls.valid_ds})
        for ds in (dls.train_ds, dls.valid_ds)
    ]
    return pd.concat(frames).to_csv(index=False).encode()


@pytest.fixture(scope="module")
def world(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    store = Store(s3.storage)
    bucket, folder = s3.bucket(), tmp_path_factory.mktemp("night")
    learners.write_digits(folder / "train", 0, 1200, by_label=True)
    learners.write_digits(folder / "first", 1200, 1500)
    learners.write_digits(folder / "second", 1500, 1790, invert=True)
    upload(store, folder / "train", f"{bucket}/train")
    upload(store, folder / "first", f"{bucket}/incoming/{FIRST:%Y/%m/%d}")
    upload(store, folder / "second", f"{bucket}/incoming/{SECOND:%Y/%m/%d}")
    learn = learners.digits_learner(folder / "train", epochs=6)
    exported = learners.exported(learn, folder / "export.pkl")
    again = learners.exported(learners.digits_learner(folder / "train", epochs=1, seed=1), folder / "again.pkl")
    store.replace(f"{bucket}/labels.csv", labels_csv(learn))
    config = Config(
        root=f"{bucket}/drivetrain",
        learner=exported.path,
        trust=(exported.sha256, again.sha256),
        images=f"{bucket}/incoming/{{night:%Y/%m/%d}}",
        labels=f"{bucket}/labels.csv",
        source="digits",
        storage=s3.storage,
    )
    with connected(None, 2):
        reference = build_reference(config.model_copy(update={"images": f"{bucket}/train"}))
        nights = {night: run_night(config.model_copy(update={"night": night})) for night in (FIRST, SECOND, EMPTY)}
    store, layout = open_root(config)
    return World(config, store, layout, reference, nights, again)


def test_the_reference_knows_its_split_and_its_labels(world: World) -> None:
    assert world.reference["splits"] == {"trained": 600, "held_out": 600}
    assert world.reference["labelled"] == 1200
    rows = Run.find(world.store, world.layout, world.reference["run_id"]).rows(["uri", "split", "true_label", "label"])
    frame = rows.to_pandas()
    folders = [label_of_folders(uri, [str(i) for i in range(10)])[1] for uri in frame["uri"]]
    assert frame["true_label"].tolist() == folders
    assert (frame["label"] == frame["true_label"]).mean() > 0.8, "the learner is trained enough to mean something"


def test_verdicts(world: World) -> None:
    first, second, empty = (world.nights[night] for night in (FIRST, SECOND, EMPTY))
    assert (first["verdict"], first["lever"]) == ("ok", "nothing")
    assert (second["verdict"], second["lever"]) == ("drift", "label and retrain, then rescore")
    assert empty["verdict"] == "unknown" and "no new image" in empty["sentence"]
    assert (first["rows"], second["rows"], empty["rows"]) == (300, 290, 0)


def test_the_numbers_behind_a_verdict(world: World) -> None:
    folder = world.nights[SECOND]["report"].rsplit("/", 1)[0]
    found = json.loads(world.store.read(f"{folder}/drift.json"))
    decision = found["decision"]
    # Those of 600 held-out digits that are near-duplicates of others may be left out.
    assert 500 <= decision["n_reference"] <= 600 and decision["n_current"] == 290
    assert decision["n_tested"] == decision["n_reference"] // 5 and decision["grouped_by"] == "near-duplicates"
    assert decision["p_value"] <= decision["alpha"] == 1 / 365 and decision["effect"] > 0.9
    names = [statistic["name"] for statistic in decision["statistics"]]
    assert names == ["combined", "mmd", "bbsd", "confidence", "energy", "labels"]
    verdict = json.loads(world.store.read(f"{folder}/verdict.json"))
    assert verdict["inputs"]["run_id"] == world.nights[SECOND]["run_id"]
    assert verdict["inputs"]["reference"] == world.reference["run_id"]


def test_asked_again_a_night_does_nothing_and_says_the_same(world: World) -> None:
    before = {info.uri: info.mtime for info in world.store.find(world.layout.root)}
    for night in (SECOND, EMPTY):
        assert run_night(world.config.model_copy(update={"night": night})) == world.nights[night]
    again = measure_drift(world.config.model_copy(update={"run": world.nights[SECOND]["run_id"]}))
    assert again == world.nights[SECOND]
    after = {info.uri: info.mtime for info in world.store.find(world.layout.root)}
    assert after.keys() == before.keys()
    # Each job writes its probe before its work, to see that it may; nothing else is touched.
    assert {uri for uri in after if after[uri] != before[uri]} <= {world.layout.probe}


def test_every_parts_uri_opens_in_pandas(world: World, s3: S3Server) -> None:
    for result in (world.reference, *world.nights.values()):
        frame = pd.read_parquet(result["parts"], storage_options=s3.storage["s3"])
        assert len(frame) == result["rows"]


def test_the_review_queue_holds_the_images_that_moved_most(world: World) -> None:
    queue = world.store.read_table(world.nights[SECOND]["review"]).to_pandas()
    assert len(queue) == 100 and queue["rank"].tolist() == list(range(1, 101))
    assert queue["moved"].is_monotonic_decreasing and queue["moved"].iloc[0] > 1
    assert queue["uri"].is_unique


def test_the_table_of_nights_shows_the_one_that_did_not_run(world: World) -> None:
    nights = {night.night: night for night in list_nights(world.config)}
    assert nights["2026-11-20"].verdict == "ok" and nights["2026-11-21"].verdict == "drift"
    assert nights["2026-11-22"].state == "missing" and "--night 2026-11-22" in nights["2026-11-22"].lever
    assert nights["2026-11-23"].verdict == "unknown"


def test_evidently_holds_one_snapshot_a_night_with_panels(world: World) -> None:
    names = [info.uri.removeprefix(world.layout.workspace) for info in world.store.find(world.layout.workspace)]
    assert sum("/snapshots/" in name for name in names) == 3
    (dashboard,) = (name for name in names if name.endswith("/dashboard.json"))
    panels = json.loads(world.store.read(world.layout.workspace + dashboard))["panels"]
    assert len(panels) == 10


def test_measuring_with_other_settings_makes_a_new_record_and_keeps_the_old(world: World) -> None:
    run_id = world.nights[FIRST]["run_id"]
    again = measure_drift(world.config.model_copy(update={"run": run_id, "seed": 7}))
    assert again["report"].endswith("/0002/report.html") and again["verdict"] == "ok"
    assert world.store.exists(world.nights[FIRST]["report"])
    snapshots = [info for info in world.store.find(world.layout.workspace) if "/snapshots/" in info.uri]
    assert len(snapshots) == 3, "the new measurement replaces the old point of the dashboard"


def test_a_browser_shows_the_pages_from_the_bucket(world: World, s3: S3Server) -> None:
    """Without a content type it would save them."""
    for page in (world.nights[SECOND]["report"], f"{world.layout.site}/index.html"):
        assert s3.client().info(page)["ContentType"] == "text/html"


def test_pages_in_a_bucket_load_link_and_ask_nobody(world: World, s3: S3Server) -> None:
    """Report, index, and the link from one to the other, in a browser that reads them from S3 by itself."""
    bucket, root = s3.public_bucket(), str(world.config.root)
    for each in world.store.find(root):
        if each.uri.endswith((".html", ".jpg")):
            text = world.store.read(each.uri)
            page = probed(text.decode(), LOOKS).encode() if each.uri.endswith(".html") else text
            world.store.replace(f"{bucket}{each.uri.removeprefix(root)}", page)
    site = f"{s3.endpoint}{world.layout.site.replace(root, bucket).removeprefix('s3:/')}/index.html"
    index = see(site)
    (report,) = {link for link in index.found["links"] if link.endswith("/report.html") and f"/{SECOND}/" in link}
    found = see(report)
    assert "DRIFT" in found.text and found.found["pictures"] > 10
    assert site in found.found["links"], "and back"
    for each in (index, found):
        assert each.console == []
        assert {url.split("/")[2] for url in each.requests} <= {site.split("/")[2]}, each.requests


def is_up(url: str) -> bool:
    with suppress(OSError):
        return answers(url)
    return False


def test_ui_serves_the_workspace_from_the_bucket(world: World, s3: S3Server) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "drivetrain.cli", "ui", "--root", world.layout.root, "--port", str(port)]
    command += ["--storage", f"s3.endpoint_url={s3.endpoint}"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        poll(lambda: is_up(f"http://127.0.0.1:{port}/api/projects"), "the dashboard answers", 120)
        (project,) = json.loads(fetch(f"http://127.0.0.1:{port}/api/projects"))
        assert project["name"] == "drivetrain: digits"
        seen = see(f"http://127.0.0.1:{port}/projects/{project['id']}")
        assert seen.console == [] and "Drift score" in seen.text
        assert {url.split("/")[2] for url in seen.requests} == {f"127.0.0.1:{port}"}, seen.requests
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_rescore_and_compare(world: World) -> None:
    run_id = world.nights[FIRST]["run_id"]
    changed = world.config.model_copy(update={"learner": world.new_learner.path, "run": run_id, "actors": 0})
    result = rescore_run(changed)
    assert result["run_id"] != run_id and result["rows"] == 300
    old, new = (Run.find(world.store, world.layout, each).rows(["uri", "label"]) for each in (run_id, result["run_id"]))
    assert old["uri"].to_pylist() == new["uri"].to_pylist()
    same = np.mean(np.array(old["label"].to_pylist()) == np.array(new["label"].to_pylist()))
    assert result["agreement"] == pytest.approx(same) and 0 < same < 1
    assert result["flips"] == 300 - round(300 * same)
    folder = result["comparison"].rsplit("/", 1)[0]
    stored = json.loads(world.store.read(f"{folder}/comparison.json"))
    assert sum(number for _, _, number in stored["confusion"]) == result["flips"] == len(stored["flips"])
    assert rescore_run(changed) == result
    assert compare_runs(world.config, run_id, result["run_id"])["agreement"] == result["agreement"]


def test_late_images_go_into_the_next_night(world: World, tmp_path: Path, s3: S3Server) -> None:
    """Into a source of its own, so that the other tests' nights stay as they are."""
    prefix = f"{s3.bucket()}/late"
    learners.write_digits(tmp_path / "a", 0, 20)
    learners.write_digits(tmp_path / "b", 20, 25)
    learners.write_digits(tmp_path / "c", 25, 40)
    upload(world.store, tmp_path / "a", f"{prefix}/2026-11-20")
    config = world.config.model_copy(
        update={"source": "late", "images": f"{prefix}/{{night:%Y-%m-%d}}", "actors": 0, "night": FIRST}
    )
    assert run_night(config)["rows"] == 20
    upload(world.store, tmp_path / "b", f"{prefix}/2026-11-20")
    upload(world.store, tmp_path / "c", f"{prefix}/2026-11-21")
    assert run_night(config)["rows"] == 20, "a night that is done stays as it is"
    assert run_night(config.model_copy(update={"night": SECOND}))["rows"] == 20, "15 of the night and 5 late ones"


def test_a_source_without_reference_is_unknown_and_says_what_to_build(world: World, tmp_path: Path) -> None:
    learners.write_digits(tmp_path / "images", 0, 120)
    config = world.config.model_copy(
        update={
            "learner": world.new_learner.path, "root": str(tmp_path / "root"), "actors": 0, "night": FIRST,
            "images": str(tmp_path / "images"), "source": "bare",
        }
    )  # fmt: skip
    assert datetime.now(UTC).date() > FIRST
    result = run_night(config)
    assert result["rows"] == 0, "a prefix that grows gives a night only what was there when the day ended"
    result = run_night(config.model_copy(update={"night": datetime.now(UTC).date()}))
    assert (result["rows"], result["verdict"]) == (120, "unknown")
    assert "no reference" in result["sentence"] and "drivetrain reference" in result["lever"]


def test_a_night_without_a_reference_is_judged_by_the_same_command_once_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = learners.write_digits(tmp_path / "train", 0, 300, by_label=True)
    learners.write_digits(tmp_path / "in" / "2026-11-20", 300, 420)
    exported = learners.exported(learners.digits_learner(tmp_path / "train", epochs=1), tmp_path / "export.pkl")
    lines = [f"{path},{path.parent.name if i else 'Foo'},1\n" for i, path in enumerate(train)]
    (tmp_path / "labels.csv").write_text("fname,label,is_valid\n" + "".join(lines))
    config = Config(
        root=str(tmp_path / "root"), learner=exported.path, trust=(exported.sha256,), actors=0, source="late",
        images=str(tmp_path / "in" / "{night}"), labels=str(tmp_path / "labels.csv"), night=FIRST,
    )  # fmt: skip
    assert run_night(config)["verdict"] == "unknown"
    build_reference(config.model_copy(update={"images": str(tmp_path / "train")}))
    assert "1 images have labels that the learner does not know ('Foo')" in capsys.readouterr().err
    judged = run_night(config)
    # Which verdict is not the point: half of these "held-out" digits were trained on.
    assert judged["verdict"] != "unknown" and judged["report"].endswith("/0002/report.html")
    assert run_night(config) == judged


def test_a_reference_that_can_judge_no_night_says_so_when_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learners.write_digits(tmp_path / "valid", 0, 100, by_label=True)
    exported = learners.exported(learners.digits_learner(tmp_path / "valid", epochs=1), tmp_path / "export.pkl")
    config = Config(
        root=str(tmp_path / "root"), learner=exported.path, trust=(exported.sha256,), actors=0, images=str(tmp_path)
    )
    build_reference(config)
    assert "it has 100 images to compare with; 250 are needed" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_a_night_of_other_learners(kind: str, tmp_path: Path) -> None:
    """No label and no confidence, or several labels: the statistics, the verdict and the page do without."""
    train = learners.write_photos(tmp_path / "train", 260, seed=1)
    learners.write_photos(tmp_path / "in" / "2026-11-20", 60, seed=2)
    learners.write_photos(tmp_path / "in" / "2026-11-21", 60, seed=3, dark=True)
    make = {"multi_label": learners.multi_label_learner, "regression": learners.regression_learner}[kind]
    exported = learners.exported(make(train), tmp_path / "export.pkl")
    (tmp_path / "labels.csv").write_text("fname,is_valid\n" + "".join(f"{path},1\n" for path in train))
    config = Config(
        root=str(tmp_path / "root"), learner=exported.path, trust=(exported.sha256,), actors=0, source=kind,
        images=str(tmp_path / "in" / "{night}"), labels=str(tmp_path / "labels.csv"), min_images=50,
        # Crops of two photographs are near-duplicates by looks; here each counts as an image of its own.
        group_by="p[0-9]{4}",
    )  # fmt: skip
    build_reference(config.model_copy(update={"images": str(tmp_path / "train")}))
    same, dark = (run_night(config.model_copy(update={"night": night})) for night in (FIRST, SECOND))
    assert (same["verdict"], dark["verdict"]) == ("ok", "drift")
    decision = json.loads(Path(dark["report"]).with_name("drift.json").read_text())["decision"]
    names = [each["name"] for each in decision["statistics"]]
    assert names == ["combined", "mmd", "bbsd", *(["confidence", "labels"] if kind == "multi_label" else [])]
