"""What an actor holds at a time is bounded by bytes, whatever the images are; and the road of GPUs, on a CPU."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from weakref import WeakSet

import learners
import numpy as np
import pandas as pd
import pytest
import torch
from builders import SETTINGS, begun, frozen

from drivetrain import shard
from drivetrain.config import Config
from drivetrain.errors import ImageError
from drivetrain.export import LearnerInfo
from drivetrain.fetch import Fetched, Fetcher, most_bytes
from drivetrain.images import ObjectInfo
from drivetrain.layout import Layout
from drivetrain.learner.eager import Served, TorchEngine
from drivetrain.learner.header import Header
from drivetrain.learner.outputs import Predictions
from drivetrain.run import Run
from drivetrain.score import score_images
from drivetrain.shard import PIXEL_BYTES, Prepared, ShardScorer
from drivetrain.store import Store

IMAGES = 24
MOST = most_bytes(SETTINGS["max_pixels"])
FIT = -(-PIXEL_BYTES // (36 * 10**6))


class Item:
    """An image of 12 million pixels, without them."""

    nbytes = 36 * 10**6
    shape = (3000, 4000, 3)


class Large:
    """A learner without a Resize: its images stay as large as they are. Counts those that somebody holds."""

    decodes_in_threads = True
    info = LearnerInfo("5a5a", "5a" * 32, "single_label", ("cat", "dog"), 2, "1", 3, "Sequential")

    def __init__(self) -> None:
        self._lock, self._alive, self.most, self.passes = Lock(), WeakSet[Item](), 0, list[int]()

    def prepare(self, data: bytes, max_pixels: int) -> tuple[Item, Header]:
        item = Item()
        with self._lock:
            self._alive.add(item)
            self.most = max(self.most, len(self._alive))
        return item, Header(4000, 3000, "JPEG", ())

    def predict(self, items: Sequence[Item]) -> list[Predictions | ImageError]:
        self.passes.append(len(items))
        one = Predictions(np.array([[0.75, 0.25]], np.float32), None, None, np.ones((1, 3), np.float32))
        return [one for _ in items]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of small files, and of one that is listed with 10 GB."""
    paths = [tmp_path / "images" / f"{number:02d}.jpg" for number in range(IMAGES)]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"bytes of an image")
    store = Store()
    chosen = [store.about(str(path)) for path in paths]
    (tmp_path / "images" / "huge.tif").write_bytes(b"never read")
    huge = store.about(str(tmp_path / "images" / "huge.tif"))
    chosen.append(ObjectInfo(huge.uri, 10 * 10**9, huge.etag, huge.mtime))
    layout = Layout(str(tmp_path / "root"))
    return begun(store, layout, frozen(store, layout, chosen))


def scored(run: Run, learner: Any, monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[dict[str, Any]]:
    monkeypatch.setattr(shard, "open_as", lambda *_, **__: learner)
    scorer = ShardScorer(run.store, run.layout.root, run.record.run_id, 64, **how)
    assert run.record.shards == 2, "one of small images, one of the huge one"
    for each in range(run.record.shards):
        scorer.run(each)
    return [row for each in range(run.record.shards) for row in run.part(each).to_pylist()]


def test_images_that_stay_large_are_let_go_before_the_next_are_decoded(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Large()
    rows = scored(run, learner, monkeypatch)
    assert sum(row["status"] == "ok" for row in rows) == IMAGES
    assert FIT == 2 and learner.most <= FIT and max(learner.passes) == FIT


def test_with_a_gpu_what_is_decoded_ahead_has_a_bound_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "cores_of_actor", lambda: 4)
    learner = Large()
    rows = scored(run, learner, monkeypatch, gpu=True)
    assert sum(row["status"] == "ok" for row in rows) == IMAGES
    # Decoded and waiting, in the hands of four threads, in the network.
    assert learner.most <= FIT + 4 + FIT < IMAGES


def test_the_image_whose_turn_it_is_has_room_when_others_were_faster() -> None:
    """Else all of them would wait for it, and it for them."""
    room, item = shard._Room(), Prepared({}, Item())
    for turn in (1, 2):
        room.fill(turn, lambda: item)
    first = Thread(target=room.fill, args=(0, lambda: item), daemon=True)
    first.start()
    first.join(10)
    assert not first.is_alive()
    other = Thread(target=room.fill, args=(3, lambda: item), daemon=True)
    other.start()
    other.join(0.2)
    assert other.is_alive(), "there is no room for it"
    room.close()
    other.join(10)
    assert not other.is_alive()


def test_an_object_too_large_for_an_image_is_a_row_and_never_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: Any) -> Any:
        def read(self: Store, uri: str) -> Any:
            assert not uri.endswith("huge.tif"), "it was asked for"
            return wanted(self, uri)

        return read

    for name in ("read", "fetch"):
        monkeypatch.setattr(Store, name, refuse(getattr(Store, name)))
    (row,) = [row for row in scored(run, Large(), monkeypatch) if row["status"] == "failed"]
    assert row["uri"].endswith("huge.tif") and row["error"] == "too_large"
    assert row["error_text"] == f"10,000,000,000 bytes; images of max_pixels have at most {MOST:,}"


def test_an_object_listed_without_its_size_is_asked_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 101)
    image = {"uri": str(path), "size": None, "etag": None}
    assert Fetcher(Store(), most=101).read(image) == Fetched(b"x" * 101, False)
    error = Fetcher(Store(), most=100).read(image).error
    assert error is not None and error.reason == "too_large"


def test_images_of_the_next_shard_are_read_while_the_network_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard's last pass ends only when an image of the next one was read."""
    store, layout = Store(), Layout(str(tmp_path / "root"))
    for number in range(70):
        store.replace(f"{tmp_path}/images/{number:02d}.jpg", b"bytes of an image")
    run = begun(store, layout, frozen(store, layout, list(store.first(f"{tmp_path}/images", 100))))
    following, arrived, fetch = set(run.shard(1)["uri"].to_pylist()), Event(), Store.fetch
    assert run.record.shards == 2

    def noted(self: Store, uri: str) -> Any:
        if uri in following:
            arrived.set()
        return fetch(self, uri)

    class Slow(Large):
        def predict(self, items: Sequence[Item]) -> list[Predictions | ImageError]:
            if sum(self.passes) + len(items) == 64:
                assert arrived.wait(20), "nothing of the next shard was read"
            return super().predict(items)

    monkeypatch.setattr(Store, "fetch", noted)
    monkeypatch.setattr(shard, "open_as", lambda *_, **__: Slow())
    assert ShardScorer(store, layout.root, run.record.run_id, 64).run(0, 1).rows == 64


@pytest.mark.slow
def test_the_road_of_gpus_gives_the_rows_of_cpus(
    digits_export: learners.Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded in threads ahead, in a network that is told to be on a CPU: no GPU is here."""
    learners.write_digits(tmp_path / "images", 0, 100)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    about = {"learner": digits_export.path, "images": str(tmp_path / "images"), "source": "d", "actors": 0}
    found, opened = [], shard.open_as
    for road in ("cpu", "gpu"):
        if road == "gpu":
            monkeypatch.setattr(shard, "open_as", lambda *given, **how: opened(*given, **how | {"gpu": False}))
            monkeypatch.setattr("drivetrain.score._scorer", on_gpu)
        config = Config(root=str(tmp_path / road), engine="torch", max_failed=0.5, batch_size=16, **about)
        found.append(pd.read_parquet(score_images(config)["parts"]).sort_values("uri").drop(columns="run_id"))
    cpu, gpu = found
    assert len(cpu) == 101 and cpu["error"].dropna().tolist() == ["undecodable"]
    pd.testing.assert_frame_equal(cpu.reset_index(drop=True), gpu.reset_index(drop=True), rtol=1e-4)


def on_gpu(*given: Any, **how: Any) -> ShardScorer:
    scorer = ShardScorer(*given, **how | {"gpu": True})
    assert scorer._decoders is not None
    return scorer


class Anywhere(Served):
    """A network that says it went to any device and stays on the CPU."""

    def to(self, *_: Any, **__: Any) -> Any:
        return self


@pytest.mark.parametrize("half", [False, True])
def test_float32_is_float32_in_a_gpus_convolutions_too(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are TF32 by torch's default, and CPUs compute under the same key of the run."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    TorchEngine(Anywhere(torch.nn.Identity(), None, None), torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32
    TorchEngine(Anywhere(torch.nn.Identity(), None, None), torch.device("cuda"), half)
    assert torch.backends.cudnn.allow_tf32 is half


@pytest.mark.slow
def test_an_actor_with_a_gpu_has_its_share_of_the_nodes_cores() -> None:
    """GPUs that Ray is told of and that nobody uses."""
    code = """
import ray
from unittest.mock import patch
from drivetrain import cluster
assert cluster.cores_of_actor() >= 1
ray.init(address="local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False)
@ray.remote(num_cpus=1)
def cores():
    with patch("os.cpu_count", lambda: 16):
        return cluster.cores_of_actor()
print([ray.get(cores.options(num_gpus=gpus).remote()) for gpus in (0, 0.1, 1, 2, 4)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[16, 1, 4, 8, 16]", done.stderr[-2000:]
