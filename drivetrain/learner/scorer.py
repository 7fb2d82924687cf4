"""An exported learner as a scorer of images: bytes in, predictions out.

Knows which way in a file takes (as data, or by fastai when it is vouched for), and how another engine proves itself
against eager torch, which computes here. Does not know where an image comes from or where its row goes.
"""

import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from drivetrain.errors import DrivetrainError, ImageError, LearnerError, TrustError
from drivetrain.export import LearnerInfo, how_to_trust
from drivetrain.learner.body import Body, body_of, head_of, road_of
from drivetrain.learner.eager import Served, TorchEngine, converted
from drivetrain.learner.engines import CPU_BATCH, KEPT_IMAGES, engine_version
from drivetrain.learner.header import Header, short
from drivetrain.learner.outputs import Predictions, Proof, held, in_passes, predictions
from drivetrain.learner.pixels import Decoder
from drivetrain.learner.recipe import Recipe, recipe_from_data, recipe_from_fastai
from drivetrain.learner.stored import StoredLearner, store_learner
from drivetrain.packages import absent_module
from drivetrain.pickled import MOST_REASONS, Refused, shown

# The gray image that a learner is tried on when it is opened, and others for one that takes a single size.
_SIDE = 256
_USUAL_SIDES = (28, 32, 64, 96, 128, 160, 192, 224, 299, 320, 384, 448, 480, 512)


class ExportedLearner:
    """A fastai learner that scores images. Make one with `open_learner`."""

    def __init__(self, recipe: Recipe, sha256: str, *, embedding: str, device: torch.device, half: bool) -> None:
        self._recipe, self._device, self._half = recipe, device, half
        model = recipe.model.eval()
        name, layer = ("", None) if embedding == "none" else named_layer(model, embedding)
        self._layer = layer
        self._own = None if recipe.decoder else _own_transforms(recipe.learn, device)
        self._front: Any = recipe.decoder or self._own
        self._side, outputs, size = self._probe()
        self.info = LearnerInfo(
            model_id=sha256[:12], sha256=sha256, task=recipe.task, vocab=recipe.vocab, outputs=outputs, layer=name,
            embedding_size=size, architecture=_architecture(model), loss=recipe.loss.name,
            transforms=recipe.transforms, unread=recipe.unread, read="fastai" if recipe.learn else "data",
        )  # fmt: skip

    @cached_property
    def eager(self) -> TorchEngine:
        """The network in eager torch, which every other engine is held against."""
        return TorchEngine(Served(self._recipe.model, self._recipe.front, self._layer), self._device, self._half)

    @property
    def decodes_in_threads(self) -> bool:
        """Whether `prepare` may run in several threads at once; fastai's own transforms keep state."""
        return self._own is None

    def stored(self, items: Sequence[Any]) -> bytes:
        """The learner for OpenVINO, as `StoredLearner` opens it. It keeps the first of the prepared items.

        Raises LearnerError with the reason why it can't be.
        """
        model, decoder = self._for_openvino()
        kept = np.stack(items[:KEPT_IMAGES])
        raw, embeddings = self.eager.run(kept)
        return store_learner(model, decoder, self._recipe.loss, kept, raw, embeddings)

    def _for_openvino(self) -> tuple[Any, Decoder]:
        """OpenVINO's model of the network, and what prepares its images."""
        decoder = self._recipe.decoder
        if decoder is None:
            raise LearnerError(f"only fastai can prepare its images, because of {self._recipe.only_fastai}")
        if decoder.shape is None:
            raise LearnerError("its transforms do not give all images one size")
        try:
            return converted(self.eager.served, decoder.shape), decoder
        except LearnerError:
            raise
        except Exception as error:
            raise LearnerError(f"OpenVINO can't convert it: {short(error)}") from error

    def as_stored(self, threads: int | None = None, int8: bytes | None = None) -> StoredLearner:
        """The learner for OpenVINO, opened, with a gray image to be repeated. Raises LearnerError as `stored` does."""
        gray = self.prepare(_png(_gray(_SIDE)), _SIDE * _SIDE)[0]
        return StoredLearner(self.stored([gray]), self.info, threads, int8)

    def prove(self, fast: StoredLearner, items: Sequence[Any]) -> Proof:
        """Hold a stored learner against eager torch on prepared items."""
        expected = self._forward(items)
        try:
            return held(expected, fast.meant(items))
        except Exception as error:
            return Proof(len(items), 0.0, 0.0, False, f"OpenVINO can't compute it: {short(error)}")

    def prepare(self, data: bytes, max_pixels: int) -> tuple[Any, Header]:
        """Decode one image and run the learner's item transforms: (item, header).

        Raises ImageError with the reason why this image can't be scored.
        """
        item, header = self._front.prepare(data, max_pixels)
        return item, header

    def predict(self, items: Sequence[Any]) -> list[Predictions | ImageError]:
        """Score prepared items: for each, its own Predictions (n = 1) or the ImageError that it caused."""
        most = len(items) if self._device.type == "cuda" else CPU_BATCH
        return in_passes(items, most, self._scored)

    def _scored(self, items: Sequence[Any]) -> Predictions:
        found = self._forward(items)
        if found.outputs.shape[1] != self.info.outputs:
            # A network without pooling, which says more of a larger image.
            raise LearnerError(
                f"expected {self.info.outputs} outputs, found {found.outputs.shape[1]}; the image does not have the "
                "size that the learner was trained at"
            )
        return found

    def _forward(self, items: Sequence[Any]) -> Predictions:
        batch = self._own.batch(items) if self._own else np.stack(items)
        return self._predictions(*self.eager.run(batch))

    def _predictions(self, found: npt.NDArray[np.float32], embeddings: npt.NDArray[np.float32] | None) -> Predictions:
        return predictions(found, embeddings, self._recipe.task, self._recipe.loss)

    def body(self) -> Body:
        """The network up to its embedding, to be held against another learner's.

        Raises LearnerError with the reason why no other learner's embeddings could go through this one's head.
        """
        try:
            self.head  # noqa: B018  # a body is of use to nobody whose head can't be run alone
            return body_of(self._recipe.model, self.info.layer)
        except LearnerError:
            raise
        except Exception as error:  # the network is the file's, and so is what goes wrong with it
            raise LearnerError(f"its layers can't be told apart: {shown(short(error))}") from error

    def road(self) -> str:
        """The sha256 of how an image becomes what the network takes. Raises LearnerError where only fastai knows."""
        return road_of(self._recipe)

    @cached_property
    def head(self) -> nn.Module:
        """What computes the last layer from an embedding. Raises LearnerError with the reason why it can't be alone."""
        if self._layer is None:
            raise LearnerError("no embedding is stored")
        road_of(self._recipe)
        side = self._side
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        items = [self.prepare(_png(image), side * side)[0] for image in (_gray(side), Image.fromarray(noise))]
        return head_of(self._recipe.model, self.info.layer, self._layer, lambda: self.eager.run(np.stack(items)))

    def predict_from(self, embeddings: npt.NDArray[np.float32]) -> Predictions:
        """What the head makes of stored embeddings (n, d), of a learner with the same body. No image is needed.

        They are stored with the mantissa rounded to 12 bits, so that probabilities differ a little from those of the
        images. Raises LearnerError when the head can't be run alone.
        """
        with torch.inference_mode():
            raw = self.head(torch.from_numpy(embeddings)).float()
        return self._predictions(raw.flatten(1).numpy() if raw.ndim > 1 else raw.reshape(-1, 1).numpy(), embeddings)

    def details(self) -> dict[str, Any]:
        """What a person wants to know beside `info`: parameters, activation, layers, and what computes it."""
        model = self._recipe.model
        try:
            # Not stored for this: to look at a learner writes nothing.
            self._for_openvino()
            fast = f"OpenVINO {engine_version()} takes it; a run holds it against torch first"
        except LearnerError as error:
            fast = f"torch only: {error}"
        try:
            body, no_body = self.body().digest, ""
        except LearnerError as error:
            body, no_body = "", str(error)
        return {
            "body": body,
            "no_body": no_body,
            "parameters": sum(each.numel() for each in model.parameters()),
            "activation": self._recipe.loss.activation,
            "threshold": self._recipe.loss.threshold if self._recipe.task == "multi_label" else None,
            "pixels": "drivetrain's own" if self._recipe.decoder else "fastai's, more slowly",
            "engine": fast,
            "layers": {
                name: type(each).__name__ for name, each in model.named_modules() if name and name.count(".") < 2
            },
        }

    def _probe(self) -> tuple[int, int, int]:
        """The side of a gray image that the learner takes, the number of outputs, and the embedding's size."""
        try:
            return self._probe_at(_SIDE)
        except LearnerError as error:
            decoder = self._recipe.decoder
            if decoder is not None and decoder.shape is not None:
                raise
            first = error
        # Without a Resize the network may take one size only, which stands nowhere in the file.
        for side in _USUAL_SIDES:
            try:
                return self._probe_at(side)
            except LearnerError:
                continue
        raise LearnerError(
            f"{first}\nIt has no Resize, so all images must have the size that it was trained at, which is none of "
            f"{', '.join(map(str, _USUAL_SIDES))} squared either.\n"
            "Add   item_tfms=Resize(SIZE)   to its DataLoaders, and export again."
        ) from first

    def _tried(self, items: Sequence[Any]) -> Predictions:
        try:
            return self._forward(items)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            # fastai's Flatten behind a convolution wants channels first in memory; others are faster with them last.
            self._recipe.model.register_forward_pre_hook(_channels_first)
            return self._forward(items)

    def _probe_at(self, side: int) -> tuple[int, int, int]:
        try:
            found = self._tried([self.prepare(_png(_gray(side)), side * side)[0]])
        except Exception as error:
            if isinstance(error.__cause__, LearnerError):
                raise error.__cause__ from error  # said of the learner, whatever the image
            raise LearnerError(
                f"The learner fails on a plain gray image of {side} x {side} pixels: {short(error)}"
            ) from error
        classes, outputs = len(self._recipe.vocab), found.outputs.shape[1]
        if classes and classes != outputs:
            raise LearnerError(
                f"The learner has {classes} classes and {outputs} outputs for an image of {side} x {side} pixels; they "
                "should be the same."
            )
        return side, outputs, 0 if found.embeddings is None else found.embeddings.shape[1]


def _channels_first(model: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return inputs[0].contiguous()


def _gray(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (128, 128, 128))


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def open_learner(
    data: bytes,
    sha256: str,
    embedding: str = "head",
    *,
    vouched: bool = False,
    threads: int | None = None,
    gpu: bool = False,
    half: bool = False,
) -> ExportedLearner:
    """Open an export: read as data, or, when its owner vouched for it and that is not possible, by fastai.

    ``embedding`` is ``head``, ``none``, or the name of a layer; ``threads`` limits torch in this process (an actor has
    one CPU); ``gpu`` puts the network on the GPU that Ray gave this process (written with care, never run: we have no
    GPU), where ``half`` means autocast to float16.
    Raises TrustError when ``data`` is not what ``sha256`` names, or can be opened only by running what is inside;
    LearnerError when it can't be loaded or served.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise TrustError(f"Not opened: the learner's bytes are not the ones with sha256 {sha256}; the copy is damaged.")
    if threads:
        torch.set_num_threads(threads)
    Image.init()
    if gpu and not torch.cuda.is_available():
        raise LearnerError("--gpus-per-actor is set, and torch finds no GPU on this node.")
    device = torch.device("cuda" if gpu else "cpu")
    recipe = _recipe(data, sha256, vouched)
    try:
        return ExportedLearner(recipe, sha256, embedding=embedding, device=device, half=half)
    except DrivetrainError:
        raise
    except Exception as error:  # the network is the file's, and so is what goes wrong with it
        raise LearnerError(f"The learner can't be served: {shown(short(error))}") from error


def _recipe(data: bytes, sha256: str, vouched: bool) -> Recipe:
    try:
        return _recipe_from_data(data)
    except Refused as error:
        if vouched:
            from drivetrain.learner.own import load_vouched

            return recipe_from_fastai(load_vouched(data), error.args)
        # Said at once: vouching for it would only lead to the next error.
        absent = dict.fromkeys(absent_module(reason.split(" ", 1)[0]) for reason in error.args[:MOST_REASONS])
        first = "".join(
            f"No module {each} is here either; if it is yours, it must be on every node.\n" for each in absent if each
        )
        about = f" ({error.about})" if error.about else ""
        raise TrustError(
            f"Not opened: the learner{about} can't be read as data, because of {error}\n"
            f"{first}Opening it in fastai's way runs the code inside it. " + how_to_trust(sha256)
        ) from error


def _recipe_from_data(data: bytes) -> Recipe:
    try:
        return recipe_from_data(data)
    except DrivetrainError:
        raise
    except RecursionError as error:
        raise Refused("its pickle: its values lie in each other without end") from error
    except Exception as error:  # whoever wrote the file chose what goes wrong with it
        raise Refused(f"its pickle: not laid out as fastai 2 does it ({short(error)})") from error


def _own_transforms(learn: Any, device: torch.device) -> Any:
    # Most learners need fastai's layers and nothing else of it; its import is paid for by those that do.
    from drivetrain.learner.own import OwnTransforms

    return OwnTransforms(learn, device)


def named_layer(model: nn.Module, embedding: str) -> tuple[str, nn.Module]:
    """The layer whose input is the embedding: ``head`` by the rule of `embedding_layer`, else the one of that name."""
    if embedding == "head":
        return embedding_layer(model)
    layers = dict(model.named_modules())
    if embedding not in layers or not embedding:
        some = ", ".join([name for name in layers if name][-12:])
        raise LearnerError(f"The network has no layer {embedding!r}. Its last ones: {some}")
    return embedding, layers[embedding]


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


def _architecture(model: nn.Module) -> str:
    """The network's class, or in a fastai model (body, head) that of the body and its blocks."""
    names = [type(each).__name__ for each in model.modules() if type(each).__module__.split(".")[0] != "torch"]
    blocks = dict.fromkeys(name for name in names if name != "Sequential")
    return ", ".join([type(model).__name__, *list(blocks)[:3]])
