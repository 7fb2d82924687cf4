"""What comes of the images of a pass when something goes wrong in the network or in the device below it."""

from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.errors import DeviceError, ImageError
from drivetrain.learner.outputs import Loss, Predictions, in_passes, predictions

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
