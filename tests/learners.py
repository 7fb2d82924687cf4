"""Learners and images for tests: small, real, and made from what packages ship.

Digits are scikit-learn's, photos are crops of its two sample photographs. Nothing is downloaded.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    BnFreeze,
    CategoryBlock,
    ColReader,
    ColSplitter,
    ConvLayer,
    DataBlock,
    ImageBlock,
    ImageDataLoaders,
    Learner,
    MSELossFlat,
    MultiCategoryBlock,
    Normalize,
    PILImageBW,
    RandomResizedCrop,
    RegressionBlock,
    Resize,
    aug_transforms,
    create_head,
    imagenet_stats,
    load_learner,
    params,
    resnet18,
    vision_learner,
)
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

SIZE = 28


@dataclass(frozen=True)
class Exported:
    """An export on disk, with the hash that its owner vouches for."""

    path: str
    sha256: str


def exported(learn: Learner, path: Path) -> Exported:
    path.parent.mkdir(parents=True, exist_ok=True)
    learn.export(path)
    return Exported(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def write_digits(folder: Path, first: int, last: int, *, by_label: bool = False, invert: bool = False) -> list[Path]:
    """Some of scikit-learn's 1,797 digits as PNG files of 28 x 28 pixels; inverted, they are another world."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))[first:last]
    paths = []
    for place, i in enumerate(order, start=first):
        pixels = (digits.images[i] * 255 / 16).astype(np.uint8)
        picture = Image.fromarray(255 - pixels if invert else pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        path = folder / (str(digits.target[i]) if by_label else "") / f"d{place:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        paths.append(path)
    return paths


def write_photos(folder: Path, count: int, *, seed: int = 0, dark: bool = False) -> list[Path]:
    """Crops of 400 x 500 pixels of two real photographs, in folders by label."""
    china, flower = (Image.fromarray(photo) for photo in load_sample_images().images)
    rng = np.random.default_rng(seed)
    paths = []
    for i in range(count):
        label, photo = (("china", china), ("flower", flower))[i % 2]
        left, top = int(rng.integers(0, 140)), int(rng.integers(0, 27))
        crop = photo.crop((left, top, left + 500, top + 400))
        if dark:
            crop = crop.point(lambda value: value // 3)
        path = folder / label / f"p{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, quality=90)
        paths.append(path)
    return paths


def small_model(outputs: int, channels: int = 3) -> nn.Module:
    """A body and a head as fastai's vision_learner makes them, small enough to train in seconds."""
    body = nn.Sequential(ConvLayer(channels, 16, stride=2), ConvLayer(16, 32, stride=2), ConvLayer(32, 64, stride=2))
    return nn.Sequential(body, create_head(64, outputs))


def train(learn: Learner, epochs: int = 1, rate: float = 5e-3) -> Learner:
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, rate)
    return learn


def digits_dataloaders(folder: Path, seed: int = 0) -> ImageDataLoaders:
    torch.manual_seed(seed)
    return ImageDataLoaders.from_folder(folder, valid_pct=0.5, seed=seed, bs=32, num_workers=0)


def digits_learner(folder: Path, epochs: int = 4, seed: int = 0) -> Learner:
    """Trained on a folder of digits by label until its labels mean something."""
    dls = digits_dataloaders(folder, seed)
    return train(Learner(dls, small_model(len(dls.vocab))), epochs, 1e-2)


def photos_learner(folder: Path) -> Learner:
    """resnet18 on photos, Resize by crop, augmented, normalised: what most users export."""
    torch.manual_seed(0)
    dls = ImageDataLoaders.from_folder(
        folder, valid_pct=0.3, seed=0, bs=8, num_workers=0, item_tfms=Resize(96), batch_tfms=aug_transforms()
    )
    dls.add_tfms([Normalize.from_stats(*imagenet_stats)], "after_batch")
    return vision_learner(dls, resnet18, pretrained=False, normalize=False)


def frame_of(paths: list[Path]) -> pd.DataFrame:
    """The images as a table: label, two tags, a number, and which are for validation."""
    labels = [path.parent.name for path in paths]
    return pd.DataFrame(
        {
            "fname": [str(path) for path in paths],
            "label": labels,
            "tags": [f"{label} {'even' if i % 2 else 'odd'}" for i, label in enumerate(labels)],
            "number": [float(len(label)) + i / 10 for i, label in enumerate(labels)],
            "is_valid": [i % 3 == 0 for i in range(len(paths))],
        }
    )


def from_df_learner(paths: list[Path]) -> Learner:
    """Labelled by a table; its images are opened after a column is read."""
    dls = ImageDataLoaders.from_df(
        frame_of(paths), path="/", fn_col="fname", label_col="label", valid_col="is_valid", bs=8, num_workers=0,
        item_tfms=RandomResizedCrop(64, min_scale=0.5),
    )  # fmt: skip
    return train(Learner(dls, small_model(dls.c)))


def multi_label_learner(paths: list[Path]) -> Learner:
    block = DataBlock(
        (ImageBlock, MultiCategoryBlock), get_x=ColReader("fname"), get_y=ColReader("tags", label_delim=" "),
        splitter=ColSplitter(), item_tfms=Resize(64, method="squish"), batch_tfms=Normalize.from_stats(*imagenet_stats),
    )  # fmt: skip
    dls = block.dataloaders(frame_of(paths), bs=8, num_workers=0)
    return train(Learner(dls, small_model(dls.c), loss_func=BCEWithLogitsLossFlat(thresh=0.4)))


def regression_learner(paths: list[Path]) -> Learner:
    block = DataBlock(
        (ImageBlock, RegressionBlock(n_out=1)), get_x=ColReader("fname"), get_y=ColReader("number"),
        splitter=ColSplitter(), item_tfms=Resize(64, method="pad"),
    )  # fmt: skip
    dls = block.dataloaders(frame_of(paths), bs=8, num_workers=0)
    return train(Learner(dls, small_model(1), loss_func=MSELossFlat()))


def grey_learner(paths: list[Path]) -> Learner:
    block = DataBlock(
        (ImageBlock(cls=PILImageBW), CategoryBlock), get_x=ColReader("fname"), get_y=ColReader("label"),
        splitter=ColSplitter(), item_tfms=Resize(64),
    )  # fmt: skip
    dls = block.dataloaders(frame_of(paths), bs=8, num_workers=0)
    return train(Learner(dls, small_model(dls.c, channels=1)))


def body_and_head(model: nn.Module) -> list[list[nn.Parameter]]:
    return [params(model[0]), params(model[1])]


def retrained_head(export: Exported, folder: Path, path: Path, *, frozen_norms: bool = True, size: int = 0) -> Exported:
    """A learner with another one's body, its head trained on a folder by label, batch norms of the body as well or not.

    ``size`` adds a Resize to its transforms.
    """
    torch.manual_seed(1)
    dls = ImageDataLoaders.from_folder(
        folder, valid_pct=0.5, seed=1, bs=32, num_workers=0, item_tfms=Resize(size) if size else None
    )
    model = load_learner(export.path).model
    learn = Learner(
        dls, model, splitter=body_and_head, train_bn=not frozen_norms,
        cbs=BnFreeze() if frozen_norms else None,
    )  # fmt: skip
    learn.freeze()
    train(learn, 8, 1e-2)
    return exported(learn, path)
