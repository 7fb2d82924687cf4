"""What an export is made of: network, classes, loss, and the transforms between an image and the network.

Knows fastai's names for them, in a file that was read as data and in a learner that fastai loaded: both look the same
from here. Does not run anything. `Recipe.unread` says in words what was assumed or left to fastai.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from drivetrain.errors import LearnerError
from drivetrain.export import Task
from drivetrain.learner.front import Front, Middle, Resample
from drivetrain.learner.outputs import Activation, Loss
from drivetrain.learner.pixels import CropPad, Decoder, Resize, Step, random_resized_crop
from drivetrain.learner.rebuild import Rebuilder, attributes, kind, plain, unlisted_in
from drivetrain.pickled import Call, Name, PickledFile, Refused, shown, walk

Made = TypeVar("Made")

_AUGMENT = "fastai.vision.augment."
_SOFTMAX = {
    "fastai.losses.CrossEntropyLossFlat", "fastai.losses.FocalLossFlat", "fastai.losses.LabelSmoothingCrossEntropy",
    "fastai.losses.LabelSmoothingCrossEntropyFlat", "torch.nn.modules.loss.CrossEntropyLoss",
}  # fmt: skip
_SIGMOID = {"fastai.losses.BCEWithLogitsLossFlat", "torch.nn.modules.loss.BCEWithLogitsLoss"}
# Batch transforms that turn nothing on the valid set, and resample it all the same where they have a size.
_AFFINE = {
    f"{_AUGMENT}{name}"
    for name in (
        "AffineCoordTfm", "Flip", "DeterministicFlip", "Dihedral", "DeterministicDihedral", "Rotate", "Zoom", "Warp",
    )
}  # fmt: skip
# Pixels of a side after resampling: more is no image for a network, and would fill all memory.
_MOST_PIXELS = 8192
_MULTI = {"fastai.data.transforms.MultiCategorize", "fastai.data.transforms.EncodedMultiCategorize"}


@dataclass(frozen=True)
class Recipe:
    """All that scoring needs of a learner.

    ``decoder`` and ``front`` are None when a transform is known to fastai only, which ``only_fastai`` names; ``learn``
    is then fastai's Learner. ``transforms`` names those of the valid set in their order.
    """

    model: nn.Module
    task: Task
    vocab: tuple[str, ...]
    loss: Loss
    decoder: Decoder | None
    front: Front | None
    transforms: tuple[str, ...]
    unread: tuple[str, ...]
    learn: Any = None
    only_fastai: str = ""


def recipe_from_data(data: bytes) -> Recipe:
    """Read an export without running anything of it.

    Raises Refused, naming what can't be read as data; LearnerError for a file that is damaged, or a learner that can't
    be served.
    """
    file = PickledFile(data)
    learn = file.root
    found = attributes(learn)
    if "dls" not in found:
        raise LearnerError(
            f"Expected a fastai Learner, found {kind(learn)}.\nExport it with   learn.export()   not torch.save()."
        )
    loader = attributes(found["dls"])["loaders"][-1]
    # First of all: what can't be served needs no vouching for.
    task, vocab = task_and_vocab(_targets(loader))
    openers = _openers(loader)
    builder, refusals = Rebuilder(file), Refusals()
    if kind(learn) not in ("fastai.learner.Learner", "fastai.vision.learner.Learner"):
        refusals.append(kind(learn))
    pixels = refusals.tried(lambda: _pixels(openers, loader, builder))
    loss, unread = _loss(found["loss_func"], task)
    refusals += unlisted_in(found["model"])
    model = refusals.tried(lambda: builder.module(found["model"]))
    if pixels is None or model is None or refusals:
        raise Refused(*dict.fromkeys(refusals), about=_in_words(task, vocab))
    decoder, front, names = pixels
    return Recipe(model, task, vocab, loss, decoder, front, names, (*unread, *_assumed(loader)))


class Refusals(list[str]):
    """Everything that a file was refused for: a person who mends one wants to know of the next as well."""

    def tried(self, make: Callable[[], Made]) -> Made | None:
        """What ``make`` gives, or None where it was refused."""
        try:
            return make()
        except Refused as error:
            self.extend(error.args)
            return None


def _in_words(task: Task, vocab: tuple[str, ...]) -> str:
    """What a learner predicts, for a person; the words are the file's."""
    some = ", ".join(shown(word[:40]) for word in vocab[:8])
    return f"{task.replace('_', '-')}" + (f", {len(vocab):,} classes: {some}" if vocab else "")


def recipe_from_fastai(learn: Any, refused: tuple[str, ...]) -> Recipe:
    """The same of a Learner that fastai loaded; transforms that only fastai knows are left to it.

    ``refused``: why it could not be read as data.
    """
    try:
        loader = learn.dls.loaders[-1]
    except AttributeError as error:
        raise LearnerError(
            f"Expected a fastai Learner: {error}.\nExport it with   learn.export()   not torch.save()."
        ) from error
    task, vocab = task_and_vocab(_targets(loader))
    openers = _openers(loader)
    loss, unread = _loss(learn.loss_func, task)
    unread = (*(f"{each} can't be read as data; its code was run" for each in refused), *unread)
    try:
        decoder, front, names = _pixels(openers, loader, None)
    except Refused as error:
        own = tuple(kind(each) for each in (*loader.after_item.fs, *loader.after_batch.fs))
        note = f"{error} is known to fastai only: its own transforms prepare the images, more slowly"
        return Recipe(learn.model, task, vocab, loss, None, None, own, (*unread, note), learn, str(error))
    return Recipe(learn.model, task, vocab, loss, decoder, front, names, unread, learn)


def _members(pipeline: Any) -> list[Any]:
    """The transforms of a Pipeline, in their order."""
    members = attributes(pipeline).get("fs")
    return list(attributes(members)["items"] if isinstance(members, Call) else members or [])


def _lists(loader: Any) -> list[Any]:
    datasets = attributes(loader).get("dataset")
    lists = attributes(datasets).get("tls")
    items = attributes(lists).get("items") if isinstance(lists, Call) else list(lists or [])
    if items is None or len(items) != 2 or attributes(datasets).get("n_inp", 1) not in (1, None):
        raise LearnerError("Only learners with one image in and one target out can be served.")
    return list(items)


def _targets(loader: Any) -> list[Any]:
    return _members(attributes(_lists(loader)[1])["tfms"])


def task_and_vocab(targets: list[Any]) -> tuple[Task, tuple[str, ...]]:
    """What the learner predicts, from the transforms of its targets. Raises LearnerError for what can't be served."""
    for each in targets:
        name = kind(each)
        if name in _MULTI or name == "fastai.data.transforms.Categorize":
            vocab = tuple(_written(str(word)) for word in plain(_words(attributes(each)["vocab"])))
            return ("multi_label" if name in _MULTI else "single_label"), vocab
        if name == "fastai.data.transforms.RegressionSetup":
            return "regression", ()
    raise LearnerError(
        "This learner predicts neither classes nor numbers (segmentation, text, keypoints can't be served). "
        f"Its targets go through: {', '.join(name_of(each) for each in targets)}"
    )


def _words(vocab: Any) -> Any:
    if kind(vocab) != "fastai.data.transforms.CategoryMap":
        return vocab
    return attributes(vocab)["items"]


def _written(word: str) -> str:
    """A class's name, if it can be written into a file. Raises LearnerError for half a character."""
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise LearnerError(f"The name of a class is no text that can be written: {shown(word)}") from error
    return word


def name_of(transform: Any) -> str:
    """A transform's name for people."""
    given = attributes(transform).get("_name")
    return shown(given) if isinstance(given, str) else kind(transform).rsplit(".", 1)[-1]


def _loss(loss: Any, task: Task) -> tuple[Loss, tuple[str, ...]]:
    name = str(loss) if isinstance(loss, Name) else kind(loss)
    own = attributes(loss)
    threshold = float(own.get("thresh", 0.5)) if isinstance(own.get("thresh", 0.5), int | float) else 0.5
    if name in _SOFTMAX and own.get("axis", -1) in (-1, 1):
        return Loss(name, "softmax", threshold), ()
    if name in _SIGMOID:
        return Loss(name, "sigmoid", threshold), ()
    if task == "regression" or name == "fastai.losses.BCELossFlat":
        return Loss(name, "none", threshold), ()
    activation: Activation = "softmax" if task == "single_label" else "sigmoid"
    return Loss(name, activation, threshold), (f"loss {name}: {activation} is taken for its activation",)


def _pixels(openers: list[Any], loader: Any, builder: Rebuilder | None) -> tuple[Decoder, Front, tuple[str, ...]]:
    """How an image becomes the network's input. Raises Refused, naming every transform that is not known."""
    parts = attributes(loader)
    refusals = Refusals()
    mode = refusals.tried(lambda: _mode(openers))
    refusals += [f"{kind(each)} (before_batch)" for each in _members(parts.get("before_batch"))]
    found = [refusals.tried(partial(_step, each)) for each in _members(parts["after_item"])]
    steps = [step for step in found if step is not None]
    shape = Decoder("RGB", tuple(steps)).shape
    batched = _members(parts["after_batch"])
    prepared = refusals.tried(lambda: _front(batched, builder, shape and shape[:2]))
    if mode is None or prepared is None or refusals:
        raise Refused(*refusals)
    front, names = prepared
    return Decoder(mode, tuple(steps)), front, (f"PILImage as {mode}", *map(str, steps), *names)


def _openers(loader: Any) -> list[Any]:
    """What opens an image, and what comes after; what stands before it finds a file, and is of no use here.

    Raises LearnerError for a learner that opens none.
    """
    found = _members(attributes(_lists(loader)[0])["tfms"])
    for place, transform in enumerate(found):
        if name_of(transform).endswith(".create"):
            return found[place:]
    raise LearnerError(
        "This learner opens no images (text and tables can't be served; what opens images must be PILImage's). "
        f"Its input goes through: {', '.join(name_of(each) for each in found) or 'nothing'}"
    )


def _mode(openers: list[Any]) -> Literal["RGB", "L"]:
    """RGB for PILImage, L for PILImageBW."""
    if len(openers) > 1:
        raise Refused(*(f"{kind(each)} (between opening and resizing)" for each in openers[1:]))
    classes = _classes_named(openers[0])
    if classes == {"fastai.vision.core.PILImage"}:
        return "RGB"
    if classes == {"fastai.vision.core.PILImageBW"}:
        return "L"
    raise Refused(" and ".join(sorted(classes)) or kind(openers[0]))


def _classes_named(opener: Any) -> set[str]:
    """The classes whose ``create`` an opener calls."""
    if not isinstance(opener, Call):
        return {f"{method.__self__.__module__}.{method.__self__.__qualname__}" for method in _methods(opener)}
    found = set()
    for value in walk(opener):
        if not isinstance(value, Call):
            continue
        makes = value.function
        bound = isinstance(makes, Call) and makes.name.endswith("._builtin_type") and makes.arguments == ("MethodType",)
        if bound and len(value.arguments) == 2:
            found.add(str(value.arguments[1]) if isinstance(value.arguments[1], Name) else kind(value.arguments[1]))
        if value.name.endswith(".getattr") and value.arguments[1:] == ("create",):
            found.add(str(value.arguments[0]))
    return found


def _methods(opener: Any) -> list[Any]:
    found = [method.implementation for method in opener.encodes.methods]
    return [method for method in found if isinstance(getattr(method, "__self__", None), type)]


def _only_augments(transform: Any) -> bool:
    """Whether a transform leaves the valid set as it is, which a ``split_idx`` of 0 says.

    Raises Refused where the 0 may be that of the last batch before export: fastai's AffineCoordTfm keeps that.
    """
    name, own = kind(transform), attributes(transform)
    if name in _AFFINE or own.get("split_idx") != 0:
        return False
    declared = isinstance(transform, Call) or type(transform).split_idx == 0
    if "aff_fs" in own or not (declared or name.startswith("fastai.")):
        raise Refused(name)
    return True


def _assumed(loader: Any) -> tuple[str, ...]:
    """What is believed of transforms of the owner's own, whose code is not run."""
    parts = attributes(loader)
    transforms = (*_members(parts["after_item"]), *_members(parts["after_batch"]))
    foreign = [each for each in transforms if not kind(each).startswith("fastai.")]
    return tuple(f"{kind(each)}: it is left out, as its split_idx says that only training runs it" for each in foreign)


def _step(transform: Any) -> Step | None:
    """The step that an item transform is on the valid set; None if it does nothing there."""
    name, own = kind(transform), attributes(transform)
    if name == "fastai.data.transforms.ToTensor" or _only_augments(transform):
        return None
    if name == f"{_AUGMENT}Resize":
        method = plain(own["method"])
        return Resize(plain(own["size"]), method, plain(own["pad_mode"]), plain(own["mode"]))
    if name == f"{_AUGMENT}RandomResizedCrop":
        return random_resized_crop(plain(own["size"]), plain(own["val_xtra"]), plain(own["mode"]))
    if name == f"{_AUGMENT}CropPad":
        return CropPad(plain(own["size"]), plain(own["pad_mode"]))
    if name == f"{_AUGMENT}RandomCrop":
        return CropPad(plain(own["size"]), "zeros")
    raise Refused(name)


def _front(transforms: list[Any], builder: Rebuilder | None, size: tuple[int, int] | None) -> tuple[Front, list[str]]:
    """What happens to a batch of images of that height and width, or of any where it is None."""
    divisor: float | None = None
    mean = std = None
    steps: list[Resample] = []
    names = []
    refusals = Refusals()
    for each in transforms:
        name, own = kind(each), attributes(each)
        if name == "fastai.data.transforms.IntToFloatTensor" and divisor is None:
            divisor = float(plain(own["div"]))
            names.append(f"IntToFloatTensor(div={divisor:g})")
        elif name == "fastai.data.transforms.Normalize" and mean is None:
            mean, std = (builder.tensor(own[key]) if builder else own[key].cpu() for key in ("mean", "std"))
            names.append(f"Normalize(mean={_listed(mean)}, std={_listed(std)})")
        elif step := refusals.tried(partial(_resample, each)):
            if divisor is None or mean is not None:
                refusals.append(f"{name} (in an unusual place)")
            if size is None or step.acts_on(*size):
                steps.append(step)
                names.append(str(step))
                size = step.size or size
    if divisor is None or refusals:
        raise Refused(*(refusals or ["a learner without IntToFloatTensor"]))
    return Front(divisor, mean, std, tuple(steps)), names


def _resample(transform: Any) -> Resample | None:
    """What a batch transform does to the size of the valid set's images; None if it does nothing there.

    Raises Refused for one that is not known.
    """
    if _only_augments(transform):
        return None
    name, own = kind(transform), attributes(transform)
    if name in _AFFINE:
        size, pad_mode, corners = _size(plain(own["size"])), plain(own["pad_mode"]), bool(plain(own["align_corners"]))
        return Resample(size, plain(own["mode"]), pad_mode, corners)
    if name == f"{_AUGMENT}RandomResizedCropGPU":
        least, greatest = plain(own["ratio"])
        middle = Middle((float(least), float(greatest)), float(plain(own["valid_scale"])))
        return Resample(_size(plain(own["size"])), plain(own["mode"]), "reflection", True, middle)
    raise Refused(name)


def _size(given: Any) -> tuple[int, int] | None:
    """A batch transform's size: (height, width), one number for both, or None."""
    if given is None:
        return None
    height, width = (given, given) if isinstance(given, int) else given
    if not 0 < min(height, width) <= max(height, width) <= _MOST_PIXELS:
        raise LearnerError(
            f"Its images would be resampled to {height} x {width} pixels; expected 1 to {_MOST_PIXELS:,}."
        )
    return int(height), int(width)


def _listed(tensor: torch.Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in tensor.flatten().tolist()) + "]"
