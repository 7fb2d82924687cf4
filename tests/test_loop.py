"""Each step of the loop on a real S3 server and two raylets, its driver killed at the write that closes it.

The same command again ends the step, and what is there at the end is what a root without any kill holds. Minutes long:
`make thorough`.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import learners
import numpy as np
import pandas as pd
import pytest
from deltalake import DeltaTable
from faulty import faulty_proxy
from nodes import Nodes
from servers import S3Server

from drivetrain.cli import main
from drivetrain.layout import Layout
from drivetrain.store import Store

pytestmark = pytest.mark.thorough

NIGHTS = ("2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23", "2026-11-24")
A_NIGHT, TRAIN = 120, 700
SETTINGS = ("--source", "shop", "--engine", "torch", "--min-images", "50")


@dataclass
class Killer:
    """Kills a driver at the first write of a path that holds a word. A rule of the proxy."""

    at: str = ""
    process: "subprocess.Popen[str] | None" = None
    killed: list[str] = field(default_factory=list)

    def __call__(self, method: str, path: str, nth: int) -> str | None:
        if self.process and self.at and method == "PUT" and self.at in path and "/root/" in path:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.killed.append(path)
            self.process = None
            return "reset"
        return None


@dataclass(frozen=True)
class World:
    """A bucket with five nights, a folder with two learners, and a way to the server that kills."""

    bucket: str
    folder: Path
    learners: dict[str, learners.Exported]
    killer: Killer
    endpoint: str
    store: Store

    def drivetrain(self, root: str, words: tuple[str, ...], where: tuple[str, ...], kill: str = "") -> dict[str, Any]:
        """Type a command; with ``kill`` its driver is killed at that write, and the command typed again."""
        command = [sys.executable, "-m", "drivetrain.cli", *words, "--root", f"{self.bucket}/{root}"]
        command += ["--storage", f"s3.endpoint_url={self.endpoint}"]
        flags = {flag for option in command_of(words).params for flag in option.opts}
        command += [each for pair in pairs(SETTINGS + where) if pair[0] in flags for each in pair]
        for at in [kill, ""] if kill else [""]:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder
            )
            self.killer.at, self.killer.process = at, process
            out, err = process.communicate(timeout=240)
            self.killer.process = None
            assert process.returncode == (-signal.SIGKILL if at else 0), f"{words}, killed at {at!r}:\n{err}"
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found


def command_of(words: tuple[str, ...]) -> click.Command:
    found = main.commands[words[0]]
    return found.commands[words[1]] if isinstance(found, click.Group) else found


def pairs(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [words[place : place + 2] for place in range(0, len(words), 2)]


@pytest.fixture(scope="module")
def world(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, bucket, store = tmp_path_factory.mktemp("loop"), s3.bucket(), Store(s3.storage)
    train = learners.write_digits(folder / "train", 0, TRAIN, by_label=True)
    first = learners.exported(learners.digits_learner(folder / "train"), folder / "first.pkl")
    second = learners.retrained_head(first, folder / "train", folder / "second.pkl")
    dls = learners.digits_dataloaders(folder / "train")
    held_out = {str(path) for path in dls.valid_ds.items}
    lines = [f"{path.relative_to(folder)},{path.parent.name},{str(path) in held_out}" for path in train]
    (folder / "labels.csv").write_text("\n".join(["fname,label,is_valid", *lines]) + "\n")
    put(store, train, folder, bucket)
    for place, night in enumerate(NIGHTS):
        start = TRAIN + place * A_NIGHT
        new = learners.write_digits(folder / "in" / night, start, start + A_NIGHT, invert=place == 1)
        put(store, new, folder, bucket)
    killer = Killer()
    with faulty_proxy(s3.endpoint, killer) as proxy:
        exports = {"first": first, "second": second}
        yield World(bucket, folder, exports, killer, proxy.endpoint, Store({"s3": {"endpoint_url": proxy.endpoint}}))


def put(store: Store, paths: list[Path], folder: Path, bucket: str) -> None:
    for path in paths:
        store.replace(f"{bucket}/{path.relative_to(folder)}", path.read_bytes())


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes(2)
    try:
        yield made
    finally:
        made.end()


def go_round(world: World, root: str, where: tuple[str, ...], kills: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The loop's commands. ``kills``: the write at which the driver of each step is killed."""
    first, second = (world.learners[name].path for name in ("first", "second"))
    night = ("--images", f"{world.bucket}/in/{{night}}", "--learner", first)
    found: dict[str, dict[str, Any]] = {}

    def do(step: str, *words: str) -> dict[str, Any]:
        found[step] = world.drivetrain(root, words, where, kills.get(step, ""))
        return found[step]

    train = f"{world.bucket}/train"
    do("reference", "reference", "--images", train, "--learner", first, "--labels", str(world.folder / "labels.csv"))
    do("nightly", "nightly", "--night", NIGHTS[0], *night)
    drifted = do("drifted", "nightly", "--night", NIGHTS[1], *night)
    queue = world.folder / f"{root}.csv"
    do("queue", "queue", drifted["run_id"], "--output", str(queue), "--sample", "40")
    do("labels", "labels", "import", str(labelled(queue)))
    # Of one run first: the reference of a new head is made with it, from stored embeddings.
    do("new head", "rescore", "--learner", second, "--run", drifted["run_id"])
    again = do("rescore", "rescore", "--learner", second, "--nights", f"{NIGHTS[0]}..{NIGHTS[1]}")
    do("shadow", "nightly", "--night", NIGHTS[2], *night, "--shadow", second)
    do("compare", "compare", drifted["run_id"], again["nights"][1]["run_id"])
    do("behave", "behave", second, "--behaviour-images", "40")
    do("scope", "promote", second, "--scope", "0.5", "--despite-behaviour")
    do("catch-up", "nightly", "--catch-up", "--night", NIGHTS[4], *night)
    do("withdraw", "promote", "--withdraw")
    do("promote", "promote", second, "--despite-behaviour")
    found["promoted table"] = rows_of(world, root)["model_id"].value_counts().to_dict()
    do("rollback", "promote", "--rollback")
    # A table that somebody removed is made anew.
    for each in list(world.store.find(Layout(f"{world.bucket}/{root}").table("shop"))):
        world.store.delete(each.uri)
    do("table", "table")
    do("nights", "nights")
    return found


def labelled(queue: Path) -> Path:
    """The queue with true labels: a digit's file is known by the order that it was drawn in."""
    truth = {
        path.name: path.parent.name for path in learners.write_digits(queue.parent / "truth", 0, 1797, by_label=True)
    }
    frame = pd.read_csv(queue, dtype={"label": str})
    frame["label"] = [truth[Path(uri).name] for uri in frame["fname"]]
    out = queue.with_suffix(".labelled.csv")
    frame.to_csv(out, index=False)
    return out


KILLS = {
    "reference": "commit.json",
    "nightly": "verdict.json",
    "drifted": "commit.json",
    "queue": "/drawn/",
    "labels": "/labels/",
    "new head": "/references/",
    "rescore": "verdict.json",
    "shadow": "comparison.json",
    "compare": "comparison.json",
    "behave": "behaviour.json",
    "scope": "/site/",
    "catch-up": "comparison.json",
    "withdraw": "/site/",
    "promote": "/_delta_log/",
    "rollback": ".shown",
    "table": "/_delta_log/",
}
# Of a result what says when, where or in which of two starts.
PASSING = {
    "seconds",
    "asked",
    "made",
    "uri",
    "kept",
    "queue",
    "page",
    "report",
    "comparison",
    "version",
    "bytes",
    "files",
    "inputs",
}


def told(value: Any, bucket: str) -> Any:
    """A result without what two roots may say otherwise."""
    if isinstance(value, dict):
        return {key: told(each, bucket) for key, each in value.items() if key not in PASSING}
    if isinstance(value, list):
        return [told(each, bucket) for each in value]
    if isinstance(value, float):
        return round(value, 4)
    return value.replace("/killed", "/calm") if isinstance(value, str) else value


def rows_of(world: World, root: str) -> pd.DataFrame:
    uri = Layout(f"{world.bucket}/{root}").table("shop")
    table = DeltaTable(uri, storage_options=world.store.delta_options(uri)).to_pandas()
    return table.set_index("uri").sort_index()


def test_a_step_whose_driver_is_killed_at_its_last_write_is_ended_by_the_same_command(
    world: World, nodes: Nodes
) -> None:
    calm = go_round(world, "root/calm", ("--actors", "0"), {})
    killed = go_round(world, "root/killed", ("--actors", "2", "--ray-address", nodes.address), KILLS)
    assert len(world.killer.killed) == len(KILLS), world.killer.killed
    named = ("scope", "withdraw", "promote", "promoted table", "rollback")
    for step in ("drifted", "labels", "new head", "compare", "behave", *named, "nights"):
        assert told(killed[step], world.bucket) == told(calm[step], world.bucket), step
    assert calm["drifted"]["verdict"] == "drift" and calm["rescore"]["nights"][0]["made"] == "head only"
    first, second = (world.learners[name].sha256[:12] for name in ("first", "second"))
    assert calm["promote"]["champion"]["model_id"] == second and calm["rollback"]["champion"]["model_id"] == first
    assert [each["night"] for each in calm["catch-up"]["caught_up"]] == [*NIGHTS[3:]]
    assert {each["shadow"] for each in calm["catch-up"]["caught_up"]} == {second}
    assert calm["withdraw"]["challenger"] is None and calm["scope"]["challenger"]["model_id"] == second
    expected, found = rows_of(world, "root/calm"), rows_of(world, "root/killed")
    assert list(found.index) == list(expected.index) and found.index.is_unique and len(found) == len(NIGHTS) * A_NIGHT
    for column in ("status", "label", "model_id", "night"):
        assert (found[column] == expected[column]).all(), column
    np.testing.assert_allclose(np.stack(found["probs"]), np.stack(expected["probs"]), atol=1e-6)
    print(f"{len(KILLS)} drivers killed at {', '.join(KILLS)}: rows, verdicts, labels and champion as in a calm root")
