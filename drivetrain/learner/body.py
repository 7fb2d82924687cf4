"""What of a network lies before the embedding, what lies behind it, and whether two networks differ before it.

Knows layers and their tensors. Does not know an image or an engine. The body is all that computes the embedding, the
head what computes the last layer from it. Two bodies are equal when their layers are built alike and hold the same
tensors to the bit; what can't be compared is never called equal.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from drivetrain.errors import LearnerError
from drivetrain.learner.recipe import Recipe

# What every module has, and says nothing of what it computes in evaluation.
_COMMON = frozenset(nn.Module().__dict__)
_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Body:
    """A network up to its embedding: each layer in words, each parameter and buffer as shape and hash, by name.

    ``norms`` are the tensors that belong to batch norms. ``layer`` is the one that the embedding enters.
    """

    layer: str
    layers: Mapping[str, str]
    tensors: Mapping[str, str]
    norms: frozenset[str]

    @property
    def digest(self) -> str:
        """The sha256 of all that: the same digest, the same body."""
        about = [self.layer, dict(self.layers), dict(self.tensors)]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def body_of(model: nn.Module, name: str) -> Body:
    """The body of a network whose embedding enters the layer of that name.

    Raises LearnerError for a layer that holds something whose likeness nobody could tell.
    """
    behind = _names_behind(model, name)

    def before(path: str) -> bool:
        return not any(path == each or path.startswith(f"{each}.") for each in behind)

    modules = {path: each for path, each in model.named_modules(remove_duplicate=False) if before(path)}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return Body(
        layer=name,
        layers={path: _written(each, path) for path, each in modules.items()},
        tensors={path: _hashed(each) for path, each in tensors if before(path)},
        norms=frozenset(
            path for path, _ in tensors if before(path) and isinstance(modules.get(path.rpartition(".")[0]), _NORMS)
        ),
    )


def difference(old: Body, new: Body) -> str:
    """In what two bodies differ, in words, or an empty text when they are equal to the bit."""
    if old.layer != new.layer:
        return f"the embedding enters another layer: {old.layer} there, {new.layer} here"
    for path in sorted(old.layers.keys() | new.layers.keys()):
        there, here = old.layers.get(path, "nothing"), new.layers.get(path, "nothing")
        if there != here:
            return f"the body is built otherwise: {path or 'the network'} is {_short(there)} there, {_short(here)} here"
    names = old.tensors.keys() | new.tensors.keys()
    other = {name for name in names if old.tensors.get(name) != new.tensors.get(name)}
    if not other:
        return ""
    many = f"the body differs in {len(other):,} of {len(names):,} tensors"
    if other <= new.norms:
        return (
            f"{many}, all of batch norms: fastai trains batch norms of a frozen body by default; train with "
            "train_bn=False and the BnFreeze callback"
        )
    return f"{many}: it was trained too; train the head alone, with learn.freeze(), train_bn=False and BnFreeze"


def _short(text: str) -> str:
    return text if len(text) < 200 else f"{text[:200]}…"


def head_of(model: nn.Module, name: str, layer: nn.Module, run: Callable[[], Any]) -> nn.Module:
    """What computes the last layer from the embedding, alone. ``run`` runs the network on a few images.

    Raises LearnerError with the reason when that can't be known, or does not give what the network gives.
    """
    entered: list[torch.Tensor] = []
    left: list[Any] = []
    results: list[Any] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0])),
        layer.register_forward_hook(lambda module, inputs, output: left.append(output)),
        model.register_forward_hook(lambda module, inputs, output: results.append(output)),
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if len(entered) != 1 or len(results) != 1:
        raise LearnerError(f"the layer {name} is passed {len(entered)} times")
    if entered[0].ndim != 2 or entered[0].dtype != torch.float32:
        raise LearnerError(f"what enters the layer {name} is no vector of float32, and only its mean is stored")
    chain = _chain(model, name)
    # A layer whose output is the network's own: nothing comes behind it.
    head = nn.Sequential(*chain) if chain else layer if left[0] is results[0] else None
    if head is None:
        raise LearnerError(f"what the network does behind the layer {name} is known to its own code alone")
    with torch.inference_mode():
        try:
            same = torch.equal(head(entered[0]), results[0])
        except Exception:
            same = False
    if not same:
        raise LearnerError(f"the layers from {name} on give something else alone than in the network")
    return head


def _steps(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, str]]:
    """The way down to a layer: (path of a container, the container, the name of its child)."""
    at, path = model, ""
    for child in name.split("."):
        yield path, at, child
        at, path = at._modules[child], f"{path}.{child}" if path else child  # type: ignore[assignment]


def _one_after_the_other(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _chain(model: nn.Module, name: str) -> list[nn.Module]:
    """A layer and all that comes behind it, where every container on the way runs its children in their order."""
    behind: list[nn.Module] = []
    for _, container, child in reversed(list(_steps(model, name))):
        if not _one_after_the_other(container):
            return []
        names = list(container._modules)
        first = names.index(child) + (1 if behind else 0)
        behind += [each for key in names[first:] if (each := container._modules[key]) is not None]
    return behind


def _names_behind(model: nn.Module, name: str) -> list[str]:
    """The paths of a layer and of all that comes behind it; of the layer alone where the order is not known."""
    steps = list(_steps(model, name))
    if not all(_one_after_the_other(container) for _, container, _ in steps):
        return [name]
    behind = [name]
    for path, container, child in steps:
        names = list(container._modules)
        behind += [f"{path}.{key}" if path else key for key in names[names.index(child) + 1 :]]
    return behind


def _hashed(tensor: torch.Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(raw.data).hexdigest()}"


def _written(module: nn.Module, path: str) -> str:
    """A layer without its children and tensors: its class and its settings."""
    own = {key: value for key, value in module.__dict__.items() if key not in _COMMON}
    settings = ", ".join(f"{key}={_said(own[key], f'{path}.{key}')}" for key in sorted(own))
    return f"{_named(type(module))}({settings})"


def _said(value: Any, where: str) -> str:
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return _hashed(value)
    if isinstance(value, nn.Module):
        return f"[{_inside(value, where)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_said(key, where)}: {_said(each, where)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(_said(each, where) for each in value)})"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(_said(each, where) for each in value)) + "}"
    if isinstance(value, partial):
        return f"partial({_said([value.func, value.args, value.keywords], where)})"
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _named(value)
    raise LearnerError(f"{where} is a {_named(type(value))}, and nobody can tell whether two of them are alike")


def _inside(module: nn.Module, where: str) -> str:
    """A network that another one keeps as an attribute, as one text."""
    layers = [f"{path}: {_written(each, f'{where}.{path}')}" for path, each in module.named_modules()]
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return "; ".join([*layers, *(f"{path}: {_hashed(each)}" for path, each in tensors)])


def _named(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def road_of(recipe: Recipe) -> str:
    """The sha256 of how an image becomes what the network takes: each step from opening to normalisation.

    Raises LearnerError where fastai's own transforms do that.
    """
    if recipe.decoder is None or recipe.front is None:
        raise LearnerError("its images are prepared by transforms of fastai that can't be compared")
    numbers = [None if each is None else _hashed(each.float()) for each in (recipe.front.mean, recipe.front.std)]
    about = [recipe.decoder.mode, [repr(step) for step in recipe.decoder.steps], recipe.front.divisor, numbers]
    if recipe.front.steps:
        about.append([repr(step) for step in recipe.front.steps])
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
