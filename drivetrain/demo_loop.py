"""The whole loop on real digits, with two sources, through the product's own front doors.

Knows a story: one learner scores a post office and a bank; the bank gets a second scanner, and its nights drift; people
label what the queue shows them; the learner's head is trained on; the new learner runs beside the champion for a night,
is compared, put to behaviour tests, promoted; the nights before are rescored, and the next one is usual again. Each
step prints the command that does the same. A story that comes out otherwise ends with an error.
"""

import io
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from drivetrain import cluster
from drivetrain.behaving import check_behaviour
from drivetrain.champion import promote
from drivetrain.comparing import compare_runs
from drivetrain.config import Config, Options
from drivetrain.console import busy, say
from drivetrain.demo import (
    SEED,
    Digits,
    accuracy,
    export_learner,
    fit,
    mnist_digits,
    put,
    scanner_digits,
    step,
    train_learner,
    write,
    write_config,
)
from drivetrain.errors import RunError
from drivetrain.labelling import export_queue, import_labels
from drivetrain.nightly import build_and_test_reference, run_night
from drivetrain.nights import list_nights
from drivetrain.rescore import rescore_runs
from drivetrain.store import Store
from drivetrain.table import show_table
from drivetrain.told import lines_of

POST, BANK = "post", "bank"
TRAIN, AT_POST, AT_BANK = 2400, 250, 600
# Of the drifted night: images that moved, to train on, and images drawn at random, to hold out: with a sixth of them
# near-duplicates, a test of the new learner's nights needs more than 300.
MOVED, DRAWN = 300, 360
NIGHTS = 4


@dataclass
class Loop:
    """What the steps share. ``truth``: each image's label by its name; ``seen``: images that a training saw."""

    store: Store
    base: str
    options: Options
    work: Path
    nights: tuple[date, ...]
    truth: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    trust: list[str] = field(default_factory=list)
    rows: list[tuple[str, str, float, str]] = field(default_factory=list)

    def config(self, name: str, source: str) -> Path:
        """A config of a source, with a learner that was exported."""
        images = f"{self.base}/bucket/{source}/{{night:%Y/%m/%d}}"
        return write_config(self.store, self.base, name, self.trust, self.options, source=source, images=images)

    def arrive(self, source: str, night: int, digits: Digits) -> None:
        """Images arrive in a source's bucket."""
        put(self.store, f"{self.base}/bucket/{source}/{self.nights[night]:%Y/%m/%d}", digits)
        self.truth |= digits.truth()

    def note(self, source: str, night: int, learner: str, result: Mapping[str, Any], verdict: str = "") -> None:
        """Keep what a night really came to, on images that no training saw."""
        unseen = {name: label for name, label in self.truth.items() if name not in self.seen}
        self.rows.append((f"{source} {self.nights[night]}", learner, accuracy(self.store, result, unseen), verdict))


def show_loop(root: str, options: Options) -> dict[str, Any]:
    """Go round the loop in a new folder below ``root`` (a folder or a bucket prefix).

    Returns the accuracies that were really reached on images that no training saw, and the page to open. Raises
    RunError when it came out otherwise than it is told.
    """
    started = time.monotonic()
    store = Store(options)
    base = f"{store.normalise(root)}/{datetime.now(UTC):%Y-%m-%d-%H%M%S}-loop"
    today = datetime.now(UTC).date()
    nights = tuple(today - timedelta(days=NIGHTS - each) for each in range(NIGHTS))
    with tempfile.TemporaryDirectory() as folder, cluster.connected(None, None):
        loop = Loop(store, base, options, Path(folder), nights)
        train = _fill(loop)
        learn, bank, post, drifted = _usual_then_drift(loop, train)
        queue = _label(loop, bank, drifted)
        new, again = _retrain(loop, learn, queue)
        _beside(loop, new, post, (drifted["run_id"], again))
        _promote(loop, new, post)
    _check_gain(loop)
    names = ("images", "learner", "accuracy", "verdict")
    return {
        "reached": [dict(zip(names, row, strict=True)) for row in loop.rows],
        "unseen": None,
        "page": f"{base}/drivetrain/site/index.html",
        "seconds": round(time.monotonic() - started, 1),
    }


def _fill(loop: Loop) -> Digits:
    """Put what each night brings into the buckets: the bank has a second scanner from the second night on."""
    mnist, scanner = mnist_digits(), scanner_digits()
    half, at = AT_BANK // 2, TRAIN
    with busy(f"Putting the images of {NIGHTS} nights into {loop.base}/bucket"):
        train = mnist.part(0, TRAIN)
        put(loop.store, f"{loop.base}/bucket/train", train, by_label=True)
        for night in range(NIGHTS):
            loop.arrive(POST, night, mnist.part(at, at := at + AT_POST))
            loop.arrive(BANK, night, mnist.part(at, at := at + (half if night else AT_BANK)))
            if night:
                loop.arrive(BANK, night, scanner.part((night - 1) * half, night * half))
    return train


def _usual_then_drift(loop: Loop, train: Digits) -> tuple[Any, Path, Path, dict[str, Any]]:
    step(1, "Train a learner on MNIST digits; its held-out images are what the nights of both sources are held against")
    write(loop.work / "train", train)
    learn, labels = train_learner(loop.work / "train", None)
    loop.trust.append(export_learner(loop.store, loop.base, "first", learn, labels))
    bank, post = (loop.config("first", source) for source in (BANK, POST))
    do("reference", build_and_test_reference, bank, images=f"{loop.base}/bucket/train")
    step(2, "A usual night of both")
    for source, config in ((BANK, bank), (POST, post)):
        usual = do("nightly", run_night, config, night=loop.nights[0])
        _expect(f"the verdict of {source} on a usual night", "ok", usual["verdict"])
        loop.note(source, 0, "first", usual, usual["verdict"])
    step(3, "The bank gets a second scanner, whose digits the learner never saw; the post office does not")
    drifted = do("nightly", run_night, bank, night=loop.nights[1], review_size=MOVED)
    _expect("the verdict of the bank's night with a second scanner", "drift", drifted["verdict"])
    usual = do("nightly", run_night, post, night=loop.nights[1])
    _expect("the verdict of the post office's night without it", "ok", usual["verdict"])
    loop.note(POST, 1, "first", usual, usual["verdict"])
    return learn, bank, post, drifted


def _label(loop: Loop, bank: Path, drifted: Mapping[str, Any]) -> pd.DataFrame:
    """The queue goes out and comes back; its labels are known here."""
    step(4, f"People label {MOVED} images that moved, and {DRAWN} drawn at random, which tell the night's accuracy")
    file, labelled = f"{loop.base}/queue.csv", f"{loop.base}/labelled.csv"
    do("queue", export_queue, bank, run=drifted["run_id"], to="csv", output=file, sample=DRAWN, said=("run",))
    queue = pd.read_csv(io.BytesIO(loop.store.read(file)), dtype={"label": str})
    queue["label"] = [loop.truth[_name(uri)] for uri in queue["fname"]]
    loop.store.replace(labelled, queue.to_csv(index=False).encode())
    do(f"labels import {labelled}", lambda config: import_labels(config, labelled), bank)
    loop.seen |= {_name(uri) for uri in queue["fname"]}
    loop.note(BANK, 1, "first", drifted, drifted["verdict"])
    return queue


def _retrain(loop: Loop, learn: Any, queue: pd.DataFrame) -> tuple[Path, str]:
    step(5, "Train the learner's head on with them: its body stays the same to the bit (train_bn=False, BnFreeze)")
    frame = _frame(loop, learn, queue)
    new = train_head(loop.work, frame, learn)
    loop.trust.append(export_learner(loop.store, loop.base, "second", new, frame.to_csv(index=False)))
    config = loop.config("second", BANK)
    step(6, "Rescore the drifted night: the body is the same, so stored embeddings go through the new head")
    do("reference", build_and_test_reference, config, images=f"{loop.base}/bucket/bank-train")
    again = do("rescore", rescore_runs, config, nights=f"{loop.nights[1]}..{loop.nights[1]}")
    _expect("how the drifted night was rescored", "head only", again["nights"][0]["made"])
    return config, str(again["nights"][0]["run_id"])


def _frame(loop: Loop, learn: Any, queue: pd.DataFrame) -> pd.DataFrame:
    """What the new learner is trained on, as ``ImageDataLoaders.from_df`` takes it.

    It is validated by images drawn at random from the night, since those are what nights look like now.
    """
    new = queue.assign(is_valid=queue["chosen"] == "random")
    for uri in new["fname"]:
        data = loop.store.read(uri)
        (loop.work / _name(uri)).write_bytes(data)
        loop.store.replace(f"{loop.base}/bucket/bank-train/{_name(uri)}", data)
    new = new.assign(fname=[_name(uri) for uri in new["fname"]])
    files = [path.relative_to(loop.work) for path in learn.dls.train_ds.items]
    old = pd.DataFrame({"fname": files, "label": [path.parent.name for path in files], "is_valid": False})
    return pd.concat([old, new[["fname", "label", "is_valid"]]], ignore_index=True)


def train_head(folder: Path, frame: pd.DataFrame, before: Any) -> Any:
    """Go on from a learner and train its head alone. The body's batch norms are kept from learning as well."""
    import torch
    from fastai.vision.all import BnFreeze, ImageDataLoaders, resnet18, vision_learner

    torch.manual_seed(SEED)
    dls = ImageDataLoaders.from_df(frame, path=folder, valid_col="is_valid", bs=64, num_workers=0, seed=SEED)
    learn = vision_learner(dls, resnet18, pretrained=False, train_bn=False, cbs=BnFreeze)
    learn.model.load_state_dict(before.model.state_dict())
    learn.freeze()
    fit(learn, 6, 3e-3)
    return learn


def _beside(loop: Loop, new: Path, post: Path, labelled: tuple[str, str]) -> None:
    step(7, "The next night: the champion scores it, the new learner beside it, and the two are compared")
    shadow = Config.load(new, {}).learner
    night = do("nightly", run_night, new, night=loop.nights[2], shadow=shadow)
    loop.note(BANK, 2, "first", night, night["verdict"])
    usual = do("nightly", run_night, post, night=loop.nights[2])
    loop.note(POST, 2, "first", usual, usual["verdict"])
    step(8, "Put it to behaviour tests, and compare the two on the night that was labelled: what is recommended?")
    do("behave", check_behaviour, new, learner=shadow, said=("learner",))
    do(f"compare {' '.join(labelled)}", lambda config: compare_runs(config, *labelled), new)


def _promote(loop: Loop, new: Path, post: Path) -> None:
    step(9, "Promote it at the bank; the post office keeps its own champion. Rescore the bank's nights")
    learner = str(Config.load(new, {}).learner)
    named = do(f"promote {learner}", lambda config: promote(config, learner), new)
    _expect("the bank's champion", loop.trust[-1][:12], named["champion"]["model_id"])
    again = do("rescore", rescore_runs, new, nights=f"{loop.nights[0]}..{loop.nights[2]}")
    for each, found in enumerate(again["nights"]):
        loop.note(BANK, each, "second", {"parts": _parts(loop, found["run_id"])}, found.get("verdict") or "")
    step(10, "The next night of both, under their champions")
    for source, config, name in ((BANK, new, "second"), (POST, post, "first")):
        night = do("nightly", run_night, config, night=loop.nights[3])
        _expect(f"the verdict of {source} on the night after the promotion", "ok", night["verdict"])
        loop.note(source, 3, name, night, night["verdict"])
    do("table", show_table, new)
    do("nights", lambda config: {"nights": [each.record() for each in list_nights(config)], "learners": {}}, new)


def _expect(what: str, expected: str, found: str) -> None:
    """Raise RunError when the story does not come out as it is told."""
    if found != expected:
        raise RunError(f"The demo came out otherwise than it is told: {what}: expected {expected}, found {found}.")


def _check_gain(loop: Loop) -> None:
    """The new learner must be right more often on the drifted night, on images that no training saw."""
    night = f"{BANK} {loop.nights[1]}"
    reached = {learner: accuracy for where, learner, accuracy, _ in loop.rows if where == night}
    better = "second" if reached["second"] > reached["first"] else f"first, {reached}"
    _expect("who is right more often on the drifted night", "second", better)


def do(
    words: str, story: Callable[[Config], dict[str, Any]], file: Path, *, said: tuple[str, ...] = (), **flags: Any
) -> dict[str, Any]:
    """Do what a command does, saying the command and what came out. ``said``: flags typed without their name."""
    bare = "".join(f" {flags[key]}" for key in said)
    typed = "".join(f" --{key.replace('_', '-')} {value}" for key, value in flags.items() if key not in said)
    say(f"$ drivetrain {words}{bare} --config {file}{typed}")
    result = story(Config.load(file, {}, **flags))
    for line in lines_of(result):
        say(line)
    return result


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def _parts(loop: Loop, run_id: str) -> str:
    return f"{loop.base}/drivetrain/runs/{run_id}/parts"
