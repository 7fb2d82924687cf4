"""Values, tensors and networks out of a file that was read as data.

Knows which names may become an object: modules of listed packages and a few functions that they hold. Whatever else
the file names is refused by its name. A network is put together from its parts, without calling anything that the file
asks for: the class is looked up in an installed package, an empty object of it is made, and plain values, tensors and
other such modules become its attributes. Hooks, and anything in the place of a method, are refused.
"""

import importlib
import math
from collections import ChainMap, OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from drivetrain.errors import LearnerError
from drivetrain.packages import how_to_change, how_to_install
from drivetrain.pickled import Call, Name, PickledFile, Refused, Storage, shown, simple_keys, walk

# Packages whose modules hold layers and networks, and nothing that turns an attribute into code.
PACKAGES = (
    "torch.nn.modules.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.", "fastai.layers",
    "fastai.vision.models.", "fastai.vision.learner", "efficientnet_lite_pytorch.",
)  # fmt: skip
# Layers that call what they are given, or are compiled code.
NEVER = (
    "fastai.layers.Lambda", "fastai.layers.PartialLambda", "fastai.layers.Debugger", "torch.nn.modules.lazy.",
    "torchvision.models.feature_extraction.", "timm.models._features_fx.",
)  # fmt: skip
# Functions that genuine networks keep as attributes.
FUNCTIONS = frozenset([
    *(f"torch.nn.functional.{name}" for name in (
        "relu", "relu6", "gelu", "silu", "elu", "selu", "leaky_relu", "mish", "hardswish", "hardsigmoid", "sigmoid",
        "tanh", "softplus", "softmax", "log_softmax", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate",
    )),
    "torch.relu", "torch.sigmoid", "torch.tanh", "torch.nn.init.kaiming_normal_", "torch.nn.init.kaiming_uniform_",
    "torch._C._nn.gelu", "torch._C._nn.silu",
    "fastai.torch_core.Module", "fastai.layers.swish", "fastai.imports.noop", "fastai.imports.noops",
])  # fmt: skip
# A vocab of two million words, or 16 million letters.
MOST_VALUES = 2_000_000
LETTERS_A_VALUE = 8
MOST_DIMENSIONS = 64
# Networks that one network holds, shared ones counted each time: so often they are asked for each image.
MOST_MODULES = 100_000
# Enums and named tuples: values, made by calling the class with plain ones.
VALUES = frozenset([
    "timm.layers.format.Format", "efficientnet_lite_pytorch.utils.BlockArgs",
    "efficientnet_lite_pytorch.utils.GlobalParams",
])  # fmt: skip
_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_TENSORS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
_PLAIN = str | bytes | int | float | bool | None
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def attributes(thing: Any) -> Mapping[str, Any]:
    """The attributes of an object of the file, or of a real one."""
    if isinstance(thing, Call):
        state = thing.state
        if isinstance(state, tuple) and len(state) == 2:  # (dict, slots)
            return ChainMap(state[1] or {}, state[0] or {})
        return state if isinstance(state, dict) else {}
    return getattr(thing, "__dict__", {})


def kind(thing: Any) -> str:
    """The class of an object of the file, or of a real one: ``module.name``."""
    if isinstance(thing, Call):
        # copyreg's way to say object.__new__(cls)
        named = thing.arguments[0] if thing.name == "copyreg._reconstructor" else thing.function
        return str(named) if isinstance(named, Name) else "an object that a call makes"
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


class _Counted:
    """Counts the values that are taken out of a file.

    Whoever walks the tree meets what is shared each time: a few hundred bytes can unfold to more than there are atoms.
    """

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def count(self, value: Any) -> None:
        """Count one more value, a text by its length. Raises Refused for more than anything genuine has."""
        self._left -= 1 + (len(value) // LETTERS_A_VALUE if isinstance(value, str | bytes) else 0)
        if self._left < 0:
            raise Refused("its pickle: it unfolds to more values than any export has.")


def plain(thing: Any) -> Any:
    """A value without behaviour: numbers, text, tuples, lists and dicts of them; fastcore's L is a list, an enum its
    value. Raises Refused for anything else.
    """
    return _plain(thing, _Counted())


def _plain(thing: Any, counted: _Counted) -> Any:
    counted.count(thing)
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, _PLAIN) and not isinstance(thing, Call):
        # An IntEnum of a real learner is an int with a class of its own.
        return int(thing) if isinstance(thing, int) and type(thing) not in (int, bool) else thing
    what = kind(thing)
    if what == "fastcore.foundation.L":
        return _plain(attributes(thing)["items"] if isinstance(thing, Call) else list(thing), counted)
    if what == "PIL.Image.Resampling" and isinstance(thing, Call):
        return thing.arguments[0]
    if what == "fastcore.basics.fastuple" and isinstance(thing, Call):
        return _plain(tuple(thing.arguments[0]), counted)
    if what.endswith("multiarray.scalar") and isinstance(thing, Call):
        return _scalar(thing)
    if isinstance(thing, tuple):
        return tuple(_plain(each, counted) for each in thing)
    if isinstance(thing, list | set | frozenset):
        return [_plain(each, counted) for each in thing]
    if isinstance(thing, dict):
        return {_plain(key, counted): _plain(value, counted) for key, value in thing.items()}
    raise Refused(f"{thing if isinstance(thing, Name) else what}")


def _scalar(call: Call) -> Any:
    """A NumPy scalar: its dtype's short name and its bytes, which protocol 2 writes as text."""
    dtype, raw = call.arguments
    code = plain(dtype.arguments[0])
    if isinstance(raw, Call) and raw.name == "_codecs.encode":
        raw = plain(raw.arguments[0]).encode("latin1")
    if not isinstance(raw, bytes) or not isinstance(code, str) or code[0] not in "fiubU":
        raise Refused(f"numpy scalar {shown(str(code))}")
    return np.frombuffer(raw, dtype=np.dtype(code))[0].item()


class Rebuilder:
    """Builds tensors and modules of one file. Raises Refused, by name, for what isn't on the list."""

    def __init__(self, file: PickledFile) -> None:
        self._file = file
        self._storages: dict[tuple[str, str], torch.Tensor] = {}
        self._built: dict[int, Any] = {}
        self._modules_in: dict[int, int] = {}
        self._counted = _Counted()

    def tensor(self, thing: Any) -> torch.Tensor:
        """A tensor or parameter, on the CPU."""
        if not isinstance(thing, Call):
            raise Refused(str(thing))
        if id(thing) not in self._built:
            self._built[id(thing)] = self._tensor(thing)
        built: torch.Tensor = self._built[id(thing)]
        return built

    def _tensor(self, call: Call) -> torch.Tensor:
        if call.name in _TENSORS:
            storage, offset, size, stride = call.arguments[:4]
            return self._view(storage, _number(offset), _numbers(size), _numbers(stride))
        if call.name == "torch._utils._rebuild_parameter":
            return nn.Parameter(self.tensor(call.arguments[0]), requires_grad=False)
        if call.name == "torch._tensor._rebuild_from_type_v2" and str(call.arguments[0]) in _TENSORS:
            # A subclass such as TensorImage; its values are those of the tensor inside.
            return self._tensor(Call(call.arguments[0], call.arguments[2]))
        raise Refused(call.name or "an unknown kind of tensor")

    def _view(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        if not isinstance(storage, Storage) or storage.kind not in _STORAGES:
            raise Refused(f"torch.{storage.kind}" if isinstance(storage, Storage) else "a tensor without a storage")
        about = storage.key, storage.kind
        if about not in self._storages:
            raw = bytearray(self._file.bytes_of(storage))
            flat = torch.frombuffer(raw, dtype=_STORAGES[storage.kind]) if raw else torch.empty(0)
            self._storages[about] = flat
        flat = self._storages[about]
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if min((offset, *size, *stride), default=0) < 0 or (count and last >= len(flat)) or count > len(flat):
            raise LearnerError("Its pickle is damaged: a tensor lies outside its record.")
        return flat.as_strided(size, stride, offset)

    def module(self, thing: Any) -> nn.Module:
        """A network, with everything inside it."""
        if not isinstance(thing, Call):
            raise Refused(str(thing))
        if id(thing) not in self._built:
            cls = _listed_class(kind(thing))
            module: nn.Module = object.__new__(cls)
            nn.Module.__init__(module)
            self._built[id(thing)] = module
            for key, value in attributes(thing).items():
                self._set(module, key, value)
            inside = (self._modules_in[id(each)] for each in module._modules.values() if each is not None)
            self._modules_in[id(module)] = 1 + sum(inside)
        built: nn.Module = self._built[id(thing)]
        if self._modules_in.get(id(built), MOST_MODULES + 1) > MOST_MODULES:
            raise Refused(f"{kind(thing)}, which lies in itself or holds more than {MOST_MODULES:,} networks.")
        return built

    def _set(self, module: nn.Module, key: str, value: Any) -> None:
        cls = type(module)
        where = f"{cls.__module__}.{cls.__qualname__}.{shown(key)}"
        if key == "__annotations__" or (key.startswith("__") and key != "__constants__"):
            return  # nothing that a network computes with
        if key.endswith(_HOOKS):
            if attributes(value) or getattr(value, "entries", value):
                raise Refused(f"{where} (a hook)")
        elif key in ("_parameters", "_buffers"):
            values = self._pairs(value)
            filled = {name: None if each is None else self.tensor(each) for name, each in values.items()}
            module.__dict__[key] = type(module.__dict__[key])(filled)
        elif key == "_modules":
            filled_modules = {
                name: None if each is None else self.module(each) for name, each in self._pairs(value).items()
            }
            module.__dict__[key] = type(module.__dict__[key])(filled_modules)
        elif callable(getattr(cls, key, None)):
            raise Refused(f"{where} (in the place of a method)")
        else:
            module.__dict__[key] = self._attribute(value, where)

    def _pairs(self, value: Any) -> dict[str, Any]:
        pairs = value.entries if isinstance(value, Call) and value.name == "collections.OrderedDict" else value
        if not isinstance(pairs, dict) or not all(isinstance(name, str) for name in pairs):
            raise Refused(kind(value))
        return pairs

    def _attribute(self, value: Any, where: str) -> Any:
        self._counted.count(value)
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, list | tuple | set | frozenset):
            return type(value)(self._attribute(each, where) for each in value)
        if isinstance(value, dict):
            return {plain(key): self._attribute(each, where) for key, each in value.items()}
        if isinstance(value, Name):
            return _listed(value)
        if isinstance(value, Call):
            return self._object(value, where)
        raise Refused(where)

    def _object(self, call: Call, where: str) -> Any:
        name = call.name
        if name == "collections.OrderedDict":
            return OrderedDict((plain(key), self._attribute(each, where)) for key, each in call.entries.items())
        if name in ("__builtin__.set", "builtins.set"):
            return {self._attribute(each, where) for each in simple_keys(call.arguments[0])}
        if name == "torch.Size":
            return torch.Size(plain(call.arguments[0]))
        if name == "torch.device":
            return torch.device("cpu")
        if name in VALUES:
            return _look_up(name)(*(self._attribute(each, where) for each in call.arguments))
        if name == "functools.partial":
            return self._partial(call, where)
        if name in _TENSORS or name.startswith(("torch._utils._rebuild", "torch._tensor._rebuild")):
            return self.tensor(call)
        if name.endswith("multiarray.scalar") or name in ("fastcore.foundation.L", "fastcore.basics.fastuple"):
            return plain(call)
        return self.module(call)

    def _partial(self, call: Call, where: str) -> Any:
        """functools.partial of a listed class or function: (function, arguments, keywords, attributes)."""
        function, arguments, keywords, _ = call.state
        if not isinstance(function, Name):
            raise Refused(where)
        return partial(
            _listed(function),
            *self._attribute(arguments, where),
            **{str(key): self._attribute(each, where) for key, each in (keywords or {}).items()},
        )


def unlisted_in(thing: Any) -> tuple[str, ...]:
    """The classes of the networks inside a network of the file that are on no list, each once."""
    kinds = dict.fromkeys(
        kind(each) for each in walk(thing) if isinstance(each, Call) and "_modules" in attributes(each)
    )
    return tuple(name for name in kinds if not _is_listed(name))


def _is_listed(name: str) -> bool:
    try:
        _listed_class(name)
    except Refused:
        return False
    except LearnerError:
        pass  # a listed package that lacks it, which is an error of its own
    return True


def _number(thing: Any) -> int:
    if not isinstance(thing, int) or abs(thing) >= 2**63:
        raise LearnerError("Its pickle is damaged: a tensor's size or place is no number.")
    return thing


def _numbers(thing: Any) -> tuple[int, ...]:
    """A tensor's size or strides: a tuple, or a torch.Size of one."""
    if isinstance(thing, Call) and thing.name == "torch.Size":
        (thing,) = thing.arguments
    if not isinstance(thing, tuple) or len(thing) > MOST_DIMENSIONS:
        raise LearnerError("Its pickle is damaged: a tensor's size is no list of a few numbers.")
    return tuple(_number(each) for each in thing)


def _listed(name: Name) -> Any:
    """A listed function, type of numbers, or class of modules."""
    if name.module == "torch" and isinstance(getattr(torch, name.name, None), torch.dtype):
        return getattr(torch, name.name)
    if str(name) in FUNCTIONS:
        return _look_up(str(name))
    return _listed_class(str(name))


def _listed_class(name: str) -> type[nn.Module]:
    if not name.startswith(PACKAGES) or name.startswith(NEVER):
        raise Refused(name)
    found = _look_up(name)
    # The package's own class: a name that it merely imported may be anything.
    if not (isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(PACKAGES)):
        raise Refused(name)
    if f"{found.__module__}.{found.__qualname__}".startswith(NEVER):
        raise Refused(name)
    return found


def _look_up(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise LearnerError(how_to_install(name, error)) from error
    except AttributeError as error:
        raise LearnerError(how_to_change(name)) from error
