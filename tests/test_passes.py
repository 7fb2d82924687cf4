"""What comes of the images of a pass when something goes wrong in the network or in the device below it."""

from pathlib import Path
from typing import Any

import learners
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import ImageDataLoaders, Learner, Resize
from PIL import Image
from torch import nn

from drivetrain.config import Config
from drivetrain.errors import DeviceError, ImageError
from drivetrain.export import Task
from drivetrain.learner.outputs import Activation, Loss, Predictions, in_passes, predictions
from drivetrain.score import score_images

ITEMS = [np.full((2, 2, 3), number, np.uint8) for number in range(5)]


def said(items: list[Any]) -> Predictions:
    """One output an item: its first pixel and its opposite."""
    raw = np.array([[item[0, 0, 0], -float(item[0, 0, 0])] for item in items], np.float32)
    return predictions(raw, raw.copy(), "single_label", Loss("ce", "softmax", 0.5))


def raising(error: Exception) -> Any:
    def forward(items: list[Any]) -> Predictions:
        if any(item[0, 0, 0] == 3 for item in items):
            raise error
        return said(items)

    return forward


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"),
        torch.AcceleratorError("uncorrectable ECC error encountered"),
    ],
)
def test_a_device_that_failed_is_no_failed_image(error: Exception) -> None:
    with pytest.raises(DeviceError, match=r"The GPU failed: .*(illegal memory access|ECC error)"):
        in_passes(ITEMS, 4, raising(error))


def test_a_device_that_fails_when_an_image_is_tried_alone_is_none_either() -> None:
    """The pass ran out of memory, and the device broke only then."""

    def forward(items: list[Any]) -> Predictions:
        if len(items) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(DeviceError, match="unspecified launch failure"):
        in_passes(ITEMS, 4, forward)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_an_image_that_breaks_its_pass_fails_alone(error: Exception) -> None:
    found = in_passes(ITEMS, 4, raising(error))
    assert [isinstance(each, ImageError) for each in found] == [False, False, False, True, False]
    assert isinstance(found[3], ImageError) and found[3].reason == "learner" and str(error) in str(found[3])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("task", "activation"), [("single_label", "softmax"), ("multi_label", "none"), ("regression", "none")]
)
def test_what_is_not_finite_is_a_failed_image(value: float, task: Task, activation: Activation) -> None:
    def forward(items: list[Any]) -> Predictions:
        raw = np.array([[value if item[0, 0, 0] == 3 else 1.0, 2.0] for item in items], np.float32)
        return predictions(raw, None, task, Loss("loss", activation, 0.5))

    found = in_passes(ITEMS, 4, forward)
    failed = [(place, each.reason, str(each)) for place, each in enumerate(found) if isinstance(each, ImageError)]
    # The softmax of one that is infinitely unlikely is a plain 0.
    finite = value == -np.inf and activation == "softmax"
    assert failed == ([] if finite else [(3, "learner", "what the network gives is not finite: NaN or infinity")])


def test_an_embedding_that_is_not_finite_is_a_failed_image_too() -> None:
    """Half precision ends at 65,504."""

    def forward(items: list[Any]) -> Predictions:
        found = said(items)
        assert found.embeddings is not None
        found.embeddings[0] = np.inf
        return found

    assert [isinstance(each, ImageError) for each in in_passes(ITEMS, 5, forward)] == [True, *[False] * 4]


@pytest.mark.slow
def test_an_image_of_which_the_network_makes_nan_is_a_failed_row(tmp_path: Path) -> None:
    """A layer that divides by the spread of an image, which one of a single colour has not."""
    world = tmp_path / "world"
    learners.write_digits(world, 0, 64, by_label=True)
    dls = ImageDataLoaders.from_folder(world, valid_pct=0.5, seed=0, bs=32, num_workers=0, item_tfms=Resize(28))
    body, head = learners.small_model(len(dls.vocab))
    learn = Learner(dls, nn.Sequential(nn.Sequential(nn.GroupNorm(1, 3, eps=0.0), body), head))
    exported = learners.exported(learn, tmp_path / "export.pkl")
    night = tmp_path / "night"
    learners.write_digits(night, 64, 76)
    Image.new("RGB", (28, 28)).save(night / "plain.png")
    config = Config(root=str(tmp_path / "root"), learner=exported.path, images=str(night), source="d", actors=0)
    result = score_images(config.model_copy(update={"engine": "torch", "max_failed": 0.5}))
    assert (result["rows"], result["reasons"]) == (13, {"learner": 1})
    rows = pd.read_parquet(result["parts"])
    failed = rows[rows["status"] == "failed"].iloc[0]
    assert failed["uri"].endswith("plain.png") and "not finite" in failed["error_text"] and failed["probs"] is None
    assert np.isfinite(np.stack(rows.loc[rows["status"] == "ok", "probs"].to_list())).all()
