"""Images a second from the bucket to the committed run, beside what else scores a bucket with the same learner.

    python benchmarks/scoring.py --images FOLDER --few 512 resnet18.pkl:6 resnet50.pkl
    python benchmarks/scoring.py --images FOLDER --few 2048 --profile resnet18.pkl lite0.pkl

Each measurement has a process of its own; peers take turns, so that a machine that gets slower does so for all. The
time begins when the learner is loaded (get_preds, DataLoader) or when the command is called on a running Ray cluster
(drivetrain, Ray Data: the start of their actors counts). drivetrain scores the folder as many times over, in one
bucket, as the learner's :6 says; Ray Data, slower, once; the others, whose start does not count, a few. The table goes
to stdout and to scoring.md beside this file. With --profile it says where the time of one actor goes (`profiled`), and
writes that to profile.md.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tables import heading, in_own_process, publish, table

BATCH = 64
# Photos that make a learner known, and those that its network in int8 takes.
TO_KNOW, FOR_INT8 = 64, 1300
# As many images as this process scores; None for all.
FEW: int | None = None


def images_of(folder: str) -> list[Path]:
    """The images to score."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())[:FEW]


def load(learner: str) -> Any:
    """fastai's own way to load."""
    from fastai.vision.all import load_learner

    warnings.simplefilter("ignore")
    return load_learner(learner)


def get_preds(learner: str, folder: str, workers: int) -> tuple[int, float]:
    """fastai: `learn.get_preds` on a test_dl."""
    learn, images = load(learner), images_of(folder)
    with learn.no_bar():
        started = time.perf_counter()
        learn.get_preds(dl=learn.dls.test_dl(images, bs=BATCH, num_workers=workers))
        return len(images), time.perf_counter() - started


def loop(learner: str, folder: str) -> tuple[int, float]:
    """A plain DataLoader loop: torchvision's transforms, the network in channels_last, two workers."""
    import torch
    from PIL import Image
    from torchvision import transforms

    learn, images = load(learner), images_of(folder)
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    prepare = transforms.Compose([transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor(), normalise])

    class Images(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, place: int) -> Any:
            return prepare(Image.open(images[place]).convert("RGB"))

    model = learn.model.eval().to(memory_format=torch.channels_last)
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(Images(), BATCH, num_workers=2):
            torch.softmax(model(batch.to(memory_format=torch.channels_last)), 1)
    return len(images), time.perf_counter() - started


class RayDataScorer:
    """Ray Data's actor: fastai's own transforms and network, one thread."""

    def __init__(self, learner: str) -> None:
        import torch

        from drivetrain.learner import open_learner

        data = Path(learner).read_bytes()
        torch.set_num_threads(1)
        self._learner = open_learner(data, hashlib.sha256(data).hexdigest(), threads=1)

    def __call__(self, batch: Any) -> Any:
        """Score a batch of files."""
        items = [self._learner.prepare(data, 10**8)[0] for data in batch["bytes"]]
        found = self._learner.predict(items)
        return {"path": batch["path"], "label": [int(each.outputs[0].argmax()) for each in found]}  # type: ignore[union-attr]


def ray_data(learner: str, folder: str) -> tuple[int, float]:
    """Ray Data: read_binary_files, an actor pool with drivetrain's decoding and eager torch, write_parquet."""
    import ray

    images = images_of(folder)
    # Reading needs a CPU of its own: with two whole ones taken by actors, nothing would ever be read.
    ray.init(log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        files = ray.data.read_binary_files([str(path) for path in images], include_paths=True)
        scored = files.map_batches(
            RayDataScorer,
            fn_constructor_args=(learner,),
            batch_size=BATCH,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        scored.write_parquet(out)
        return len(images), time.perf_counter() - started


def drivetrain(learner: str, folder: str, engine: str) -> tuple[int, float]:
    """drivetrain: list, freeze, start actors, score on two of them, write Parquet, commit; on a cluster that runs.

    The learner is known, its engine proved and int8 made: these are done once for a learner (start.py measures them).
    """
    from drivetrain import Config, cluster, score_images

    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as some, cluster.connected(None, 2):
        config = Config(root=root, learner=learner, source="bench", actors=2, engine=engine)  # type: ignore[arg-type]
        for path in images_of(folder)[: FOR_INT8 if engine == "int8" else TO_KNOW]:
            shutil.copy(path, some)
        score_images(config.model_copy(update={"images": some, "name": "known"}))
        started = time.perf_counter()
        result = score_images(config.model_copy(update={"images": folder, "name": "measured"}))
        return int(result["rows"]), time.perf_counter() - started


def bound(learner: str, folder: str) -> tuple[int, float]:
    """What two cores allow: decoding alone and the fast network alone, one after the other, on each."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(2) as pool:
        found = pool.starmap(alone, [(learner, folder), (learner, folder)])
    return 2 * found[0][0], max(seconds for _, seconds in found)


def alone(learner: str, folder: str) -> tuple[int, float]:
    """Seconds to decode some images and to put them through the fast network, in one thread."""
    import numpy as np

    from drivetrain.learner import StoredLearner, open_learner
    from drivetrain.learner.engines import OpenVinoEngine, unpacked

    data = Path(learner).read_bytes()
    exported = open_learner(data, hashlib.sha256(data).hexdigest(), threads=1)
    some = [path.read_bytes() for path in images_of(folder)[:256]]
    made = exported.stored([exported.prepare(each, 10**8)[0] for each in some[:8]])
    scorer, network = StoredLearner(made, exported.info, 1), OpenVinoEngine(unpacked(made)[0], 1)
    started = time.perf_counter()
    items = [scorer.prepare(each, 10**8)[0] for each in some]
    seconds = time.perf_counter() - started
    batches = [np.stack(items[i : i + 8]) for i in range(0, len(items), 8)]
    network.run(batches[0])
    started = time.perf_counter()
    for batch in batches:
        network.run(batch)
    return len(some), seconds + time.perf_counter() - started


PEERS: dict[str, Callable[[str, str], tuple[int, float]]] = {
    "get_preds, 0 workers": lambda learner, folder: get_preds(learner, folder, 0),
    "get_preds, 2 workers": lambda learner, folder: get_preds(learner, folder, 2),
    "DataLoader loop, channels_last": loop,
    "Ray Data, 2 actors": ray_data,
    "drivetrain, torch": lambda learner, folder: drivetrain(learner, folder, "torch"),
    "drivetrain": lambda learner, folder: drivetrain(learner, folder, "auto"),
    "drivetrain, int8": lambda learner, folder: drivetrain(learner, folder, "int8"),
    "bound: decoding + fast network alone": bound,
}
ABOUT = """\
Medians. drivetrain's and Ray Data's time includes the start of their actors; the others begin loaded. drivetrain's
learner is known, as on every night but the first. "of get_preds" is against the better of its two. "of the bound" is
against decoding alone and the fast network (float32) alone on the same cores, without fetching, Ray, rows or Parquet.
Ray Data's actors use drivetrain's decoding and eager torch in passes of 8, not fastai's own pipelines."""


def rates(learner: str, folders: dict[str, str], repeats: int, few: int, peers: list[str]) -> dict[str, list[float]]:
    """Photos and images a second of each peer: medians, measured in turns."""
    found: dict[str, list[float]] = {peer: [] for peer in peers}
    photos = {}
    for _ in range(repeats):
        for peer in peers:
            own = peer.startswith("drivetrain")
            limit = [] if own or peer.startswith("Ray Data") else ["--few", str(few)]
            folder = folders["copies" if own else "once"]
            one = in_own_process(__file__, "--peer", peer, "--images", folder, *limit, learner)
            if "refused" in one:  # int8 does not take every learner
                print(f"{learner}: {peer}: {one['refused']}")
                continue
            found[peer].append(one["images"] / one["seconds"])
            photos[peer] = one["images"]
    return {peer: [photos[peer], median(each)] for peer, each in found.items() if each}


def rows_of(learner: str, found: dict[str, list[float]]) -> list[list[str]]:
    """A learner's lines of the table."""
    best = max((rate for peer, (_, rate) in found.items() if peer.startswith("get_preds")), default=0.0)
    most = found.get("bound: decoding + fast network alone", [0, 0.0])[1]
    name = Path(learner).stem
    return [
        [
            f"{name}: {peer}", f"{photos:,}", f"{rate:.1f}", f"{rate / best:.2f}" if best else "",
            f"{rate / most:.2f}" if most and "int8" not in peer else "",
        ]
        for peer, (photos, rate) in found.items()
    ]  # fmt: skip


def copied(folder: str, copies: int, where: str) -> str:
    """The folder's images so many times, under other names."""
    for copy in range(copies):
        for path in images_of(folder):
            target = Path(where, f"{copy}", path.name)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    return where


PROFILED = """\
CPU time of one process that does what an actor does, its first shard left out; a part's time is without that of others.
Fetch: read from disk and held against its etag. Properties: light, contrast, sharpness. Predictions: from the network's
outputs to softmax, energy, labels.
Rest: threads, shards' manifests, Python between the parts. What an actor has to do beside decoding and the network is
what stands between drivetrain and the bound, with the start of the actors and the driver's share of the same cores."""


def profiles(learners: list[str], folder: str, few: int) -> None:
    """Write where the time of an actor goes, a column a learner and engine."""
    from profiled import PARTS

    columns = {}
    for learner in learners:
        for engine in ("auto", "int8"):
            chosen = ["--profile", "--peer", engine, "--images", folder, "--few", str(few), learner]
            one = in_own_process(__file__, *chosen)
            if "refused" not in one:
                columns[f"{Path(learner).stem}{', int8' if engine == 'int8' else ''}"] = one
    rows = [
        [part, *(f"{each['parts'][part] / each['seconds']:.1%}" for each in columns.values())]
        for part in (*PARTS, "rest")
    ]
    rows.append(["ms an image", *(f"{each['seconds'] / each['images'] * 1000:.2f}" for each in columns.values())])
    lines = heading("Where the time goes", "python benchmarks/scoring.py --profile", "torch", "openvino", "pyarrow")
    page = [*lines, *table(["part", *columns], rows), "", PROFILED]
    publish(str(Path(__file__).with_name("profile.py")), page)


def one_of(given: argparse.Namespace) -> None:
    """Print what one measurement in this process gave, or why the engine does not take the learner."""
    from drivetrain.errors import DrivetrainError

    global FEW
    FEW = given.few
    try:
        if given.profile:
            from profiled import profile

            with tempfile.TemporaryDirectory() as where:
                print(json.dumps(profile(given.learners[0], copied(given.images, 1, where), given.peer)))
            return
        images, seconds = PEERS[given.peer](given.learners[0], given.images)
        print(json.dumps({"images": images, "seconds": seconds}))
    except DrivetrainError as error:
        if "int8" not in given.peer:
            raise
        print(json.dumps({"refused": str(error)}))


def main() -> None:
    """Measure every learner with every peer, or, with --peer, one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("learners", nargs="+")
    parser.add_argument("--images", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--few", type=int, default=None)
    parser.add_argument("--peer")
    parser.add_argument("--only", action="append", choices=PEERS)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.profile and not given.peer:
        profiles(given.learners, given.images, given.few or 2048)
        return
    if given.peer:
        one_of(given)
        return
    rows: list[list[str]] = []
    for each in given.learners:
        learner, _, copies = each.partition(":")
        with tempfile.TemporaryDirectory() as where:
            folders = {"once": given.images, "copies": copied(given.images, int(copies or 1), where)}
            found = rates(learner, folders, given.repeats, given.few or 512, given.only or list(PEERS))
        rows += rows_of(learner, found)
        # After each learner: an hour's figures do not go with a run that is cut short.
        lines = heading("Scoring", "python benchmarks/scoring.py", "torch", "fastai", "ray", "openvino")
        count = len(images_of(given.images))
        lines += [f"Medians of {given.repeats}. {count:,} photos; where there are more, the same ones again.", ""]
        heads = ["learner and way", "photos", "images/s", "of get_preds", "of the bound"]
        publish(__file__, [*lines, *table(heads, rows), "", ABOUT])


if __name__ == "__main__":
    main()
