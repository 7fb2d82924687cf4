"""A learner of the root, opened to compute as its runs are computed.

Knows which file an engine opens. Does not choose an engine, or know what is scored.
"""

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drivetrain.admit import known_learner
from drivetrain.engine import network_if_stored, read_int8
from drivetrain.errors import LearnerError
from drivetrain.layout import Layout
from drivetrain.learner import StoredLearner
from drivetrain.store import Store

if TYPE_CHECKING:
    from drivetrain.learner import ExportedLearner


def open_as(
    store: Store,
    layout: Layout,
    sha256: str,
    settings: Mapping[str, Any],
    *,
    vouched: bool,
    one_thread: bool,
    gpu: bool,
) -> "ExportedLearner | StoredLearner":
    """Open a learner of the root under the settings of its runs. Raises LearnerError.

    On a CPU that is the stored one, which has to give on this processor what torch gave where it was proved.
    """
    model_id, embedding, engine = sha256[:12], settings["embedding"], settings["engine"]
    threads = 1 if one_thread else None
    if engine == "torch":
        from drivetrain.learner import open_learner

        half = settings["precision"] == "float16"
        data = store.read(layout.export(model_id))
        return open_learner(data, sha256, embedding, vouched=vouched, half=half, threads=threads, gpu=gpu)
    int8 = read_int8(store, layout, model_id, embedding) if engine == "int8" else None
    info = known_learner(store, layout, model_id, embedding)
    network = network_if_stored(store, layout, model_id, embedding) if info is not None else None
    if info is not None and network is not None:
        learner = StoredLearner(network, info, threads, int8)
    else:
        # A root from before networks were stored.
        from drivetrain.learner import open_learner

        export = store.read(layout.export(model_id))
        learner = open_learner(export, sha256, embedding, vouched=vouched, threads=threads).as_stored(threads, int8)
    if reason := learner.differs_here():
        raise LearnerError(
            f"On {platform.node()} the engine {engine} does not give what it gave where it was proved: {reason}. "
            "Use   --engine torch   for clusters of different machines."
        )
    return learner
