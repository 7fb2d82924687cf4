"""The only room that imports fastai, torch and OpenVINO: an exported learner as a scorer of images.

    rebuild   which values and networks may come out of a file that was read as data
    header    what an image file says of itself, and what decoding it will lose
    pixels    from an image's bytes to pixels, as fastai's valid-set transforms do
    front     from pixels to what the network takes, as fastai's batch transforms do on the valid set
    recipe    what a learner is made of
    guard     which names may be unpickled of a learner that is vouched for
    bytecode  which Python compiled the code inside a learner that is vouched for
    own       fastai's own way, for learners that are vouched for and hold what nobody knows
    outputs   what the network's last layer says of an image, and how near two engines come to each other
    engines   OpenVINO, and a network of its in one file
    int8      what computes the network nearly, and faster
    stored    a learner as actors on CPUs serve it, without torch
    eager     the network in torch, which every other engine is held against
    body      what of the network lies before the embedding, and how two differ there
    scorer    an exported learner: images in, predictions out

Knows tensors. Does not know where an image comes from or where its row goes. Results equal ``learn.get_preds`` on
``learn.dls.test_dl``.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# torchvision has torch import triton, a compiler for GPUs, wherever it is installed: 75 MB of each actor.
if not any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd")):
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from drivetrain.learner.body import Body, difference
    from drivetrain.learner.engines import engine_version
    from drivetrain.learner.header import flags_of
    from drivetrain.learner.outputs import Predictions, Proof
    from drivetrain.learner.scorer import ExportedLearner, embedding_layer, open_learner
    from drivetrain.learner.stored import StoredLearner

__all__ = [
    "Body",
    "ExportedLearner",
    "Predictions",
    "Proof",
    "StoredLearner",
    "difference",
    "embedding_layer",
    "engine_version",
    "flags_of",
    "open_learner",
]

# At first use: who serves a stored learner loads no torch.
_ROOMS = {
    "Body": "body",
    "ExportedLearner": "scorer",
    "Predictions": "outputs",
    "Proof": "outputs",
    "StoredLearner": "stored",
    "difference": "body",
    "embedding_layer": "scorer",
    "engine_version": "engines",
    "flags_of": "header",
    "open_learner": "scorer",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"drivetrain.learner.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'drivetrain.learner' has no attribute {name!r}")
