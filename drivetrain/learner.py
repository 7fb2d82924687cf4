"""The only room that imports fastai and torch: an exported learner, vouched for, as a scorer of images.

Knows tensors. Does not know where an image comes from or where its row goes. Results equal ``learn.get_preds`` on
``learn.dls.test_dl``: the same openers, the same valid-set transforms, the same activation.

`export.pkl` is a pickle, and a pickle runs code: nothing here opens one whose sha256 its owner did not give.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fastai.basics import Pipeline
from fastai.callback.hook import Hook
from fastai.learner import Learner, load_learner
from PIL import Image
from torch import nn

from drivetrain.errors import ImageError, LearnerError, TrustError
from drivetrain.export import LearnerInfo, Task

# Pillow opens more than photographs. EPS would call Ghostscript; the others are documents or run codecs of their own.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "AVIF", "JPEG2000", "DIB", "PCX")


@dataclass(frozen=True)
class Predictions:
    """What a learner says of n images.

    ``outputs`` (n, k): softmax, multi-label probabilities, or regression values, as ``get_preds`` gives them.
    ``energy`` (n,): logsumexp of the logits, None but for single_label. ``chosen`` (n, k): multi-label decisions, None
    otherwise. ``embeddings`` (n, d), None without them.
    """

    outputs: npt.NDArray[np.float32]
    energy: npt.NDArray[np.float32] | None
    chosen: npt.NDArray[np.bool_] | None
    embeddings: npt.NDArray[np.float32] | None


class ExportedLearner:
    """A fastai learner that scores images. Make one with `open_learner`."""

    def __init__(self, learn: Learner, sha256: str, embedding: str, gpu: bool) -> None:
        self._learn = learn
        self._device = torch.device("cuda" if gpu else "cpu")
        task, vocab = _task(learn)
        opener = _opener(learn)
        self._dl = learn.dls.test_dl([b""], rm_type_tfms=opener, num_workers=0, device=self._device)
        # Tells every transform that this is the valid set; without it augmentation stays on.
        self._dl.before_iter()
        self._open = Pipeline(learn.dls.valid_ds.tls[0].tfms.fs[opener:], split_idx=1)
        self._model = learn.model.to(self._device).eval()
        self._layer: nn.Module | None = None
        layer = ""
        if embedding == "head":
            layer, self._layer = embedding_layer(self._model)
        outputs, size = self._probe()
        self.info = LearnerInfo(sha256[:12], sha256, task, vocab, outputs, layer, size, type(self._model).__name__)
        if vocab and len(vocab) != outputs:
            raise LearnerError(f"The learner has {len(vocab)} classes and {outputs} outputs; they should be the same.")

    def prepare(self, data: bytes, max_pixels: int) -> tuple[Any, int, int]:
        """Decode one image and run the learner's item transforms: (item, width, height).

        Raises ImageError with the reason why this image can't be scored.
        """
        if not data:
            raise ImageError("empty", "the object has no bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = _header(data, max_pixels)
            try:
                image = self._open(data)
            except Exception as error:
                raise ImageError("undecodable", _short(error)) from error
            try:
                item = self._dl.after_item((image,))
            except Exception as error:
                raise ImageError("transform", _short(error)) from error
        return item, width, height

    def predict(self, items: Sequence[Any]) -> list["Predictions | ImageError"]:
        """Score prepared items: for each, its own Predictions (n = 1) or the ImageError that it caused."""
        results: list[Predictions | ImageError | None] = [None] * len(items)
        for same in _same_shapes(items):
            try:
                self._put(results, same, self._forward([items[i] for i in same]))
            except Exception:
                for i in same:
                    try:
                        self._put(results, [i], self._forward([items[i]]))
                    except Exception as error:
                        results[i] = ImageError("model", _short(error))
        return [result for result in results if result is not None]

    @staticmethod
    def _put(results: list[Any], where: Sequence[int], found: Predictions) -> None:
        def of(values: Any, i: int) -> Any:
            return None if values is None else values[i : i + 1]

        for i, place in enumerate(where):
            results[place] = Predictions(
                found.outputs[i : i + 1], of(found.energy, i), of(found.chosen, i), of(found.embeddings, i)
            )

    def _forward(self, items: Sequence[Any]) -> Predictions:
        batch = self._dl.create_batch(self._dl.before_batch(list(items)))
        if self._device.type == "cuda":
            batch = tuple(part.pin_memory().to(self._device, non_blocking=True) for part in batch)
        with torch.inference_mode(), self._watched() as seen:
            raw = self._model(*self._dl.after_batch(batch))
            raw = torch.as_tensor(raw).float()
            outputs = torch.as_tensor(_function(self._learn.loss_func, "activation")(raw)).float()
            single = self.info.task == "single_label"
            energy = torch.logsumexp(raw, dim=-1).cpu().numpy() if single else None
            multi = self.info.task == "multi_label"
            chosen = (
                torch.as_tensor(_function(self._learn.loss_func, "decodes")(outputs)).cpu().numpy() if multi else None
            )
        embeddings = seen[0].float().flatten(1).cpu().numpy() if seen else None
        return Predictions(outputs.reshape(len(items), -1).cpu().numpy(), energy, chosen, embeddings)

    @contextmanager
    def _watched(self) -> Iterator[list[torch.Tensor]]:
        """Collect what enters the embedding layer during one pass."""
        seen: list[torch.Tensor] = []
        if self._layer is None:
            yield seen
            return

        def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen.append(torch.as_tensor(inputs[0]).detach().clone())

        with Hook(self._layer, keep, detach=False):
            yield seen

    def _probe(self) -> tuple[int, int]:
        """The number of outputs and the embedding's size, from one gray image."""
        sink = io.BytesIO()
        Image.new("RGB", (256, 256), (128, 128, 128)).save(sink, "PNG")
        try:
            item = self._dl.after_item((self._open(sink.getvalue()),))
            batch = self._dl.after_batch(
                tuple(part.to(self._device) for part in self._dl.create_batch(self._dl.before_batch([item])))
            )
            with torch.inference_mode(), self._watched() as seen:
                raw = torch.as_tensor(self._model(*batch))
        except Exception as error:
            raise LearnerError(
                f"The learner fails on a plain gray image of 256 x 256 pixels: {_short(error)}"
            ) from error
        return raw.reshape(1, -1).shape[1], seen[0].flatten(1).shape[1] if seen else 0


def open_learner(
    data: bytes, sha256: str, embedding: str = "head", *, threads: int | None = None, gpu: bool = False
) -> ExportedLearner:
    """Unpickle an export whose hash somebody vouched for.

    ``embedding`` is ``head`` or ``none``; ``threads`` limits torch in this process (an actor has one CPU); ``gpu`` puts
    the model on the GPU that Ray gave this process (written with care, never run: we have no GPU).
    Raises TrustError when ``data`` is not what ``sha256`` names, LearnerError when it can't be loaded or served.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise TrustError(f"Not opened: the learner's bytes are not the ones with sha256 {sha256}; the copy is damaged.")
    if threads:
        torch.set_num_threads(threads)
    Image.init()
    if gpu and not torch.cuda.is_available():
        raise LearnerError("--gpus-per-actor is set, and torch finds no GPU on this node.")
    return ExportedLearner(_unpickle(data), sha256, embedding, gpu)


def _unpickle(data: bytes) -> Learner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load_learner(io.BytesIO(data), cpu=True)
        except UnboundLocalError:
            # fastai's load_learner hides the ImportError that matters; without it the error names the missing module.
            try:
                torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
            except ImportError as error:
                raise LearnerError(
                    f"The export needs a module that is not installed here: {error}. Install it on every node."
                ) from error
            raise
        except AttributeError as error:
            if "no attribute 'dls'" in str(error):
                raise LearnerError(
                    f"Expected a fastai Learner: {error}. Export it with learn.export(), not torch.save()."
                ) from error
            raise LearnerError(
                f"The export names code that is not here: {error.args[0]}\n"
                "Export again with fastai 2.8 (learn.export() takes such functions along), or label by folder or regex."
            ) from error
        except Exception as error:
            raise LearnerError(
                f"The export can't be read: {_short(error)}. Was it written by learn.export()?"
            ) from error


def _task(learn: Learner) -> tuple[Task, tuple[str, ...]]:
    """What the learner predicts, from the transforms of its targets. Raises LearnerError for what can't be served."""
    datasets: Any = getattr(learn.dls, "valid_ds", None)
    if not hasattr(datasets, "tls") or getattr(datasets, "n_inp", 1) != 1 or len(datasets.tls) != 2:
        raise LearnerError("Only learners with one image in and one target out can be served.")
    names = {base.__name__ for each in datasets.tls[1].tfms.fs for base in type(each).__mro__}
    if names & {"MultiCategorize", "EncodedMultiCategorize"}:
        return "multi_label", tuple(str(word) for word in learn.dls.vocab)
    if "Categorize" in names:
        return "single_label", tuple(str(word) for word in learn.dls.vocab)
    if "RegressionSetup" in names:
        return "regression", ()
    raise LearnerError(
        "This learner predicts neither classes nor numbers (segmentation, text, keypoints can't be served). "
        f"Its targets go through: {', '.join(str(each) for each in datasets.tls[1].tfms.fs)}"
    )


def _opener(learn: Learner) -> int:
    """Where in the input's transforms the image is opened; what comes before finds a file and is of no use here."""
    transforms = learn.dls.valid_ds.tls[0].tfms.fs
    for i, transform in enumerate(transforms):
        if ".create" in getattr(transform, "name", "") or ".create" in repr(transform):
            return i
    raise LearnerError(
        "Expected a learner that opens images (PILImage.create); its input goes through: "
        f"{', '.join(str(each) for each in transforms)}"
    )


def embedding_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """The layer whose input is the embedding, and its name.

    In a fastai model (body, head): the head's first layer with parameters, which pooling and flattening feed. In any
    other: the last Linear. That is all that a new head needs to score the same images again.
    """
    if isinstance(model, nn.Sequential) and len(model) == 2:
        for name, module in model[1].named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                return f"1.{name}", module
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise LearnerError('The model has no Linear layer to take embeddings from; use   embedding = "none".')
    return linear[-1]


def _header(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height from the header alone: a file of 400 kB can ask for a gigabyte."""
    try:
        # A format that this build of Pillow lacks makes Image.open fail on every file.
        with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", _short(error)) from error
    except Exception as error:
        raise ImageError("undecodable", _short(error)) from error
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels; max_pixels is {max_pixels}")
    return width, height


def _same_shapes(items: Sequence[Any]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(getattr(item[0], "shape", None), []).append(i)
    return list(groups.values())


def _function(loss: Any, name: str) -> Any:
    return getattr(loss, name, lambda values: values)


def _short(error: Exception) -> str:
    # A memory address in the text would make two runs over the same images differ.
    text = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "the file", str(error).strip())
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0][:300]}"
