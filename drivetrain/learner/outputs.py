"""What a network's last layer says of an image, and how near two engines come to each other.

Knows numbers. Does not know what computed them; needs neither torch nor fastai.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp, softmax

from drivetrain.errors import DeviceError, ImageError
from drivetrain.export import Task
from drivetrain.learner.header import short
from drivetrain.learner.pixels import same_shapes

Activation = Literal["softmax", "sigmoid", "none"]
Floats = npt.NDArray[np.float32]

# What the fast engine may differ by from eager torch: in a probability, and in the cosine of embeddings.
TOLERANCE = 1e-4
LEAST_COSINE = 0.9999


@dataclass(frozen=True)
class Loss:
    """The name of the loss, what makes outputs of the network's last layer, and the threshold of multi-label."""

    name: str
    activation: Activation
    threshold: float


@dataclass(frozen=True)
class Predictions:
    """What a learner says of n images.

    ``outputs`` (n, k): softmax, multi-label probabilities, or regression values, as ``get_preds`` gives them.
    ``energy`` (n,): logsumexp of the logits, None but for single_label. ``chosen`` (n, k): multi-label decisions, None
    otherwise. ``embeddings`` (n, d), None without them.
    """

    outputs: Floats
    energy: Floats | None
    chosen: npt.NDArray[np.bool_] | None
    embeddings: Floats | None


@dataclass(frozen=True)
class Proof:
    """How far an engine is from eager torch on some images. ``reason`` is empty when it may be used."""

    images: int
    difference: float
    cosine: float
    same_labels: bool
    reason: str


def predictions(raw: Floats, embeddings: Floats | None, task: Task, loss: Loss) -> Predictions:
    """What the last layer (n, k) says, as ``get_preds`` gives it."""
    outputs: Floats = raw
    if loss.activation == "softmax":
        outputs = softmax(raw, axis=1)
    elif loss.activation == "sigmoid":
        outputs = expit(raw)
    return Predictions(
        outputs,
        logsumexp(raw, axis=1).astype(np.float32) if task == "single_label" else None,
        outputs > loss.threshold if task == "multi_label" else None,
        embeddings,
    )


def held(expected: Predictions, found: Predictions) -> Proof:
    """Hold what an engine found against what eager torch says of the same images."""
    difference = float(np.abs(expected.outputs - found.outputs).max())
    one, other = expected.embeddings, found.embeddings
    cosine = 1.0 if one is None or other is None else float(cosines(one, other).min())
    same = bool((expected.outputs.argmax(1) == found.outputs.argmax(1)).all())
    # A regression's values have no scale of their own.
    scale = max(1.0, float(np.abs(expected.outputs).max()))
    near = difference <= TOLERANCE * scale and cosine >= LEAST_COSINE and same
    reason = "" if near else f"OpenVINO differs by {difference:.1e}, least cosine {cosine:.6f}"
    return Proof(len(expected.outputs), difference, cosine, same, reason)


def cosines(one: Floats, other: Floats) -> Floats:
    """The cosine (n,) between the rows of two (n, d) arrays."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: Floats = (one * other).sum(1) / np.maximum(lengths, 1e-12)
    return found


def in_passes(
    items: Sequence[Any], most: int, forward: Callable[[list[Any]], Predictions]
) -> list[Predictions | ImageError]:
    """Score prepared items, at most that many of one shape a pass: for each its own Predictions (n = 1).

    Where a pass fails, each of its items is scored alone, and those that fail again get an ImageError, as do those of
    which the network says something that is not finite.
    Raises DeviceError when it was the device that failed, which says nothing of the items.
    """
    results: list[Predictions | ImageError | None] = [None] * len(items)
    for same in same_shapes(items):
        for first in range(0, len(same), most):
            _one_pass(results, items, same[first : first + most], forward)
    return [result for result in results if result is not None]


def _one_pass(results: list[Any], items: Sequence[Any], places: Sequence[int], forward: Any) -> None:
    try:
        _put(results, places, forward([items[i] for i in places]))
    except Exception as error:
        _raise_of_device(error)
        for i in places:
            try:
                _put(results, [i], forward([items[i]]))
            except Exception as again:
                _raise_of_device(again)
                results[i] = ImageError("learner", short(again))


def _raise_of_device(error: Exception) -> None:
    """Raise DeviceError for an error after which a GPU computes nothing more for this process.

    Told by its name and text: torch need not be here. Out of memory is none; the next image may fit.
    """
    named = any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__)
    if named or (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        raise DeviceError(
            f"The GPU failed: {short(error)}\nIf the same command fails again, look for the GPU's errors: nvidia-smi -q"
        ) from error


def _put(results: list[Any], where: Sequence[int], found: Predictions) -> None:
    def of(values: Any, i: int) -> Any:
        return None if values is None else values[i : i + 1]

    numbers = [each for each in (found.outputs, found.energy, found.embeddings) if each is not None]
    finite = np.logical_and.reduce([np.isfinite(each).reshape(len(where), -1).all(1) for each in numbers])
    for i, place in enumerate(where):
        # As a scored row it would look like an answer, and turn every mean over the run into NaN.
        if not finite[i]:
            results[place] = ImageError("learner", "what the network gives is not finite: NaN or infinity")
            continue
        results[place] = Predictions(
            found.outputs[i : i + 1], of(found.energy, i), of(found.chosen, i), of(found.embeddings, i)
        )
