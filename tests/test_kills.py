"""Drivers, actors and raylets that are killed: the rows are those of an unharmed run, and little is done twice.

Minutes long: `make thorough`.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import learners
import numpy as np
import pandas as pd
import pytest
from commands import Command, command, parts, whole
from faulty import faulty_proxy
from nodes import Nodes, actors
from servers import S3Server, poll

from drivetrain.store import Store

pytestmark = pytest.mark.thorough

IMAGES, SHARD, RUNS, KILLS_A_RUN = 640, 64, 5, 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    learners.write_photos(folder, IMAGES)
    return folder


# --- resume ---


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_resuming_repeats_only_the_shards_in_flight(
    share: float, s3: S3Server, digits_export: learners.Exported, photos: Path, tmp_path: Path
) -> None:
    """What was fetched twice is counted at the store."""
    wanted, bucket = 2, s3.bucket()
    for path in photos.rglob("*.jpg"):
        Store(s3.storage).replace(f"{bucket}/images/{path.relative_to(photos)}", path.read_bytes())
    root = tmp_path / "root"
    with faulty_proxy(s3.endpoint, lambda method, path, nth: None) as proxy:
        flags = ["--root", str(root), "--learner", digits_export.path, "--images", f"{bucket}/images"]
        flags += ["--actors", str(wanted), "--storage", f"s3.endpoint_url={proxy.endpoint}", "--engine", "torch"]
        with command(tmp_path / "log", *flags) as made:
            made.start()
            poll(lambda: len(parts(root)) >= share * IMAGES / SHARD, "its share of the parts", 120)
            made.kill()
            kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in parts(root)}
            made.start()
            poll(lambda: made.code() is not None, "the end", 120)
            assert made.code() == 0, made.said()
        reads = sum(count for (how, path), count in proxy.asked.items() if how == "GET" and "/images/" in path)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} == kept
    assert whole(root, IMAGES)
    # One image is read by the look before the work, of each of the two commands.
    again = reads - IMAGES - 2
    print(
        f"killed with {len(kept)} of {IMAGES // SHARD} parts: {again} images read again, {wanted * SHARD * 2} allowed"
    )
    assert 0 <= again <= wanted * SHARD * 2


# --- kills ---


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes(3)
    try:
        yield made
    finally:
        made.end()


def test_twenty_kills_leave_the_rows_as_they_would_have_been(
    nodes: Nodes, digits_export: learners.Exported, photos: Path, tmp_path: Path
) -> None:
    flags = ["--learner", digits_export.path, "--images", str(photos), "--engine", "torch"]
    with command(tmp_path / "unharmed", "--root", str(tmp_path / "expected"), "--actors", "0", *flags) as made:
        made.start()
        poll(lambda: made.code() == 0, "the unharmed run", 120)
    expected = rows_of(tmp_path / "expected")
    killed: dict[str, int] = {"driver": 0, "actor": 0, "raylet": 0}
    starts = 0
    for seed in range(RUNS):
        root = tmp_path / f"root{seed}"
        about = ["--root", str(root), "--actors", "3", "--ray-address", nodes.address, *flags]
        with command(tmp_path / f"log{seed}", *about) as made:
            harm(made, root, nodes, Random(seed), killed)
            poll(lambda: ended(made), "the end", 240)
            assert whole(root, IMAGES), made.said()
            starts += made.starts
        found = rows_of(root)
        assert (found.index == expected.index).all() and (found["label"] == expected["label"]).all()
        for column in ("probs", "embedding"):
            np.testing.assert_allclose(np.stack(found[column]), np.stack(expected[column]), atol=1e-6)
        # All else to the letter, but for what depends on the run, and on how often an image was begun.
        same = [name for name in found.columns if name not in OF_A_RUN]
        pd.testing.assert_frame_equal(found[same], expected[same], rtol=0, atol=1e-6)
    assert sum(killed.values()) == RUNS * KILLS_A_RUN and min(killed.values()) > 0
    print(f"{killed} killed in {RUNS} runs, {starts} commands: each time the rows of the unharmed run")


def harm(made: Command, root: Path, nodes: Nodes, drawn: Random, killed: dict[str, int]) -> None:
    """Kill something at four drawn moments of the run."""
    made.start()
    for at in sorted(drawn.sample(range(IMAGES // SHARD - 1), KILLS_A_RUN)):
        poll(lambda at=at: ended(made) or (len(parts(root)) >= at and actors()), "a moment to kill", 240)  # type: ignore[misc]
        what = drawn.choice(["driver", "actor", "raylet"])
        assert not (root / "runs").exists() or not list(root.glob("runs/*/commit.json")), "it must not be done before"
        if what == "driver":
            made.kill()
            made.start()
        elif what == "actor":
            os.kill(drawn.choice(actors()), signal.SIGKILL)
        else:
            nodes.lose_one(drawn)
            nodes.add()
        killed[what] += 1


def ended(made: Command) -> bool:
    """Whether the command is done. One that stopped and says that it can be resumed is resumed."""
    if made.code() not in (None, 0):
        assert "run the same command" in made.said(), made.said()
        made.start()
    return made.code() == 0


OF_A_RUN = ("run_id", "attempts", "probs", "embedding")


def rows_of(root: Path) -> Any:
    (folder,) = root.glob("runs/*")
    assert json.loads((folder / "commit.json").read_text())["rows"] == IMAGES
    return pd.read_parquet(folder / "parts").set_index("uri")


# --- nodes that join and leave ---

COPIES = 8


def test_images_a_second_follow_the_nodes(digits_export: learners.Exported, photos: Path, tmp_path: Path) -> None:
    """No node at first, then one, two, and one again, which is lost without a word: no row is missing."""
    folder, root, nodes = many(photos, tmp_path / "many"), tmp_path / "root", Nodes(0)
    about = ["--root", str(root), "--learner", digits_export.path, "--images", str(folder), "--engine", "torch"]
    try:
        with command(tmp_path / "log", *about, "--ray-address", nodes.address) as made:
            made.start()
            poll(lambda: "Waiting for a node: an actor needs 1 CPU" in made.said(), "what it waits for", 120)
            nodes.add()
            poll(lambda: len(parts(root)) >= 12, "work on one node", 240)
            nodes.add()
            poll(lambda: len(parts(root)) >= 38, "work on two nodes", 240)
            nodes.lose_one(Random(0))
            poll(lambda: made.code() is not None, "the end", 240)
            assert made.code() == 0 and whole(root, IMAGES * COPIES), made.said()
        assert "The cluster has grown: 2 actors now, 1 before." in made.said()
        assert "is gone; another one does it" in made.said()
    finally:
        nodes.end()
    rates = [rate(root, first, first + 8) for first in (3, 29, 55)]
    print("images a second on one node, on two, and on one again: {:.0f}, {:.0f}, {:.0f}".format(*rates))


def many(photos: Path, folder: Path) -> Path:
    """Each photo several times, under other names."""
    folder.mkdir()
    for path in photos.rglob("*.jpg"):
        for copy in range(COPIES):
            (folder / f"{path.stem}-{copy}.jpg").hardlink_to(path)
    return folder


def rate(root: Path, first: int, last: int) -> float:
    """Images a second while some of the parts were written, in the order of their writing."""
    written = sorted(path.stat().st_mtime for path in parts(root))
    return (last - first) * IMAGES * COPIES / len(written) / (written[last] - written[first])
