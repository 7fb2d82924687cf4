"""What a learner's predictions are as columns of rows: as arrays for many images, and as the values of one row.

Knows the columns that come from a learner, as `schema` has them. Does not know how an image was predicted.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from drivetrain.export import LearnerInfo
from drivetrain.learner import Predictions
from drivetrain.schema import round_mantissa


def numbers_of(info: LearnerInfo, found: Predictions) -> dict[str, npt.NDArray[Any]]:
    """The columns of n rows that are numbers, each (n,) or (n, k), without those that stay null."""
    outputs = found.outputs
    if info.task == "regression":
        return {"values": outputs}
    top, rows = outputs.argmax(1), np.arange(len(outputs))
    confidence = outputs[rows, top]
    columns = {"label_index": top.astype(np.int32), "confidence": confidence, "probs": outputs}
    if found.chosen is not None:
        return columns
    second = np.partition(outputs, -2, 1)[:, -2] if outputs.shape[1] > 1 else np.zeros_like(confidence)
    logs = np.log(outputs, out=np.zeros_like(outputs), where=outputs > 0)
    margin = (confidence.astype(np.float64) - second).astype(np.float32)
    columns |= {"margin": margin, "entropy": -(outputs * logs).sum(1)}
    return columns | ({} if found.energy is None else {"energy": found.energy})


def outcome(info: LearnerInfo, found: Predictions) -> dict[str, Any]:
    """The columns of a row that come from the learner, for one image.

    Long ones stay arrays, which Arrow takes as they are: a thousand Python floats cost more than all else in a row.
    """
    columns: dict[str, Any] = {
        name: values[0] if values.ndim > 1 else values[0].item() for name, values in numbers_of(info, found).items()
    }
    columns["embedding"] = None if found.embeddings is None else round_mantissa(found.embeddings[0])
    if "label_index" in columns:
        label = info.vocab[columns["label_index"]]
        columns |= {"label": label, "labels": [label]}
    if found.chosen is not None:
        columns["labels"] = [word for word, yes in zip(info.vocab, found.chosen[0], strict=True) if yes]
    return columns
