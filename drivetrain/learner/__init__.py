"""The only room that imports fastai, torch and OpenVINO: an exported learner as a scorer of images.

    rebuild   which values and networks may come out of a file that was read as data
    header    what an image file says of itself, and what decoding it will lose
    pixels    from an image's bytes to pixels, as fastai's valid-set transforms do
    recipe    what a learner is made of
    guard     which names may be unpickled of a learner that is vouched for
    own       fastai's own way, for learners that are vouched for and hold what nobody knows
    engines   what computes the network exactly
    body      what of the network lies before the embedding, and how two differ there
    int8      what computes it nearly, and faster
    scorer    all of it together: images in, predictions out

Knows tensors. Does not know where an image comes from or where its row goes. Results equal ``learn.get_preds`` on
``learn.dls.test_dl``.
"""

import os
import sys

# torchvision has torch import triton, a compiler for GPUs, wherever it is installed: 75 MB of each actor.
if not any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd")):
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

from drivetrain.learner.body import Body, difference
from drivetrain.learner.engines import engine_version
from drivetrain.learner.header import flags_of
from drivetrain.learner.scorer import ExportedLearner, Predictions, embedding_layer, open_learner

__all__ = [
    "Body",
    "ExportedLearner",
    "Predictions",
    "difference",
    "embedding_layer",
    "engine_version",
    "flags_of",
    "open_learner",
]
