"""A learner as actors on CPUs serve it: its network for OpenVINO, how an image becomes pixels, what outputs mean.

Made once, of a learner whose network proved itself in OpenVINO, and kept in one file beside the export. Who opens it
needs neither the export nor torch nor fastai, which is most of an actor's memory and of the time that its start takes.
The file holds images with what torch makes of them, which every processor must repeat. Nothing in it is code.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from drivetrain.errors import ImageError, LearnerError
from drivetrain.export import LearnerInfo
from drivetrain.learner.engines import CPU_BATCH, Engine, OpenVinoEngine, packed, unpacked
from drivetrain.learner.header import Header, short
from drivetrain.learner.int8 import Decision, Int8Engine, Quality, make_int8
from drivetrain.learner.outputs import Floats, Loss, Predictions, held, in_passes, predictions
from drivetrain.learner.pixels import CropPad, Decoder, RandomResizedCrop, Resize, Step

_STEPS: dict[str, type[Any]] = {each.__name__: each for each in (CropPad, RandomResizedCrop, Resize)}


class StoredLearner:
    """A learner that scores images, opened from what `store_learner` made. Raises LearnerError for anything else."""

    # Its own road from bytes to pixels keeps no state.
    decodes_in_threads = True

    def __init__(self, stored: bytes, info: LearnerInfo, threads: int | None = None, int8: bytes | None = None) -> None:
        Image.init()
        self.info = info
        model, arrays, about = unpacked(stored)
        try:
            self._decoder = _decoder(about["decoder"])
            self._loss = Loss(**about["loss"])
            self._kept = arrays["kept"]
            self._expected = self._said(arrays["raw"], arrays.get("embeddings"))
            self._exact = OpenVinoEngine(model, threads)
            self._engine: Engine = self._exact if int8 is None else self._quantised(int8, threads)
        except LearnerError:
            raise
        except Exception as error:
            raise LearnerError(f"OpenVINO can't take what was stored: {short(error)}") from error

    def _quantised(self, int8: bytes, threads: int | None) -> Int8Engine:
        return Int8Engine(int8, self._exact, self._decision, threads)

    def differs_here(self) -> str:
        """Why the engine does not give on this processor what it gave where it was made, or an empty text."""
        try:
            own = self._engine.differs() if isinstance(self._engine, Int8Engine) else ""
            return own or held(self._expected, self._said(*self._exact.run(self._kept))).reason
        except Exception as error:
            return f"OpenVINO can't compute it: {short(error)}"

    def prepare(self, data: bytes, max_pixels: int) -> tuple[Any, Header]:
        """Decode one image and run the learner's item transforms: (pixels, header).

        Raises ImageError with the reason why this image can't be scored.
        """
        return self._decoder.prepare(data, max_pixels)

    def predict(self, items: Sequence[Any]) -> list[Predictions | ImageError]:
        """Score prepared items: for each, its own Predictions (n = 1) or the ImageError that it caused."""
        return in_passes(items, CPU_BATCH, self.meant)

    def meant(self, items: Sequence[Any]) -> Predictions:
        """Score n prepared items in one pass. Whatever goes wrong with it is raised."""
        return self._said(*self._engine.run(np.stack(items)))

    def make_int8(self, stored: bytes, calibration: Sequence[Any], checks: Iterable[Any]) -> tuple[bytes, Quality]:
        """The network in int8, made of what this learner was opened from, and how far it is from float32.

        ``calibration`` and ``checks`` are prepared images. Raises LearnerError with the reason why it can't be.
        """
        if self.info.task == "regression":
            raise LearnerError("a regression has no labels that int8 could be held against")
        return make_int8(unpacked(stored)[0], calibration, checks, self._exact, self._decision)

    @property
    def _decision(self) -> Decision:
        return Decision(self.info.task == "multi_label", self._loss)

    def _said(self, raw: Floats, embeddings: Floats | None) -> Predictions:
        return predictions(raw, embeddings, self.info.task, self._loss)


def store_learner(model: Any, decoder: Decoder, loss: Loss, kept: Any, raw: Floats, embeddings: Floats | None) -> bytes:
    """A learner as one file for `StoredLearner`.

    ``model``: OpenVINO's; ``kept``: prepared images (n, height, width, channels), of which torch says ``raw`` (n, k)
    and ``embeddings`` (n, d). Raises OSError when the folder for temporary files can't take it.
    """
    steps = [{"kind": type(step).__name__} | asdict(step) for step in decoder.steps]  # type: ignore[call-overload]
    arrays = {"kept": kept, "raw": raw} | ({} if embeddings is None else {"embeddings": embeddings})
    return packed(model, arrays, {"decoder": {"mode": decoder.mode, "steps": steps}, "loss": asdict(loss)})


def _decoder(about: dict[str, Any]) -> Decoder:
    return Decoder(about["mode"], tuple(_step(dict(each)) for each in about["steps"]))


def _step(about: dict[str, Any]) -> Step:
    made: Step = _STEPS[about.pop("kind")](**{key: _size(value) for key, value in about.items()})
    return made


def _size(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
