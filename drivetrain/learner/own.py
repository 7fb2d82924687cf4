"""fastai's own way: an export that its owner vouched for is unpickled, and fastai's pipelines prepare the images.

The slow road, for learners that hold something which `recipe` does not know. Unpickling runs code, so nothing here is
called for a file whose sha256 nobody gave, and `guard` refuses what no learner needs. A function of the training script
that is not here (a label function) is of no use to inference: in its place stands a name that can't be called.
"""

import io
import pathlib
import pickle
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from fastai.basics import Pipeline
from fastai.learner import Learner, load_learner

from drivetrain.errors import ImageError, LearnerError
from drivetrain.learner.bytecode import foreign_code
from drivetrain.learner.guard import checked, standing
from drivetrain.learner.header import Header, look_at_header, short
from drivetrain.packages import how_to_change, how_to_install, versions
from drivetrain.pickled import PickledFile


class _Absent(type):
    """The class of what stands for something of the training script that is not here. Calling it says so.

    While the file is unpickled it makes objects, as the class did whose name it has.
    """

    loaded = False

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        if cls.loaded:
            raise _missing(cls)
        return super().__call__(*arguments, **keywords)


class _Missing(metaclass=_Absent):
    """An object whose class is not here."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        raise _missing(type(self))


def _missing(stub: type) -> LearnerError:
    return LearnerError(
        f"The learner calls {stub.__name__} of the script that trained it, which is not here. "
        "Move it into a module that is installed on every node, and export again."
    )


class _Unpickler(pickle.Unpickler):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._stubs: list[_Absent] = []

    def load(self) -> Any:
        found = super().load()
        for stub in self._stubs:
            stub.loaded = True
        return found

    def find_class(self, module: str, name: str) -> Any:
        module, name = standing(module, name)
        if (module, name) == ("pathlib", "WindowsPath"):
            return pathlib.PureWindowsPath
        try:
            return checked(super().find_class(module, name), module, name)
        except ImportError as error:
            raise LearnerError(how_to_install(f"{module}.{name}", error)) from error
        except AttributeError as error:
            if module == "__main__":
                self._stubs.append(_Absent(name, (_Missing,), {}))
                return self._stubs[-1]
            raise LearnerError(how_to_change(f"{module}.{name}")) from error


# What torch.load asks of a pickle module, for the zip form and for its older one.
_GUARDED = SimpleNamespace(
    __name__="drivetrain.learner.own",
    Unpickler=_Unpickler,
    load=lambda file, **options: _Unpickler(file, **options).load(),
)


def load_vouched(data: bytes) -> Learner:
    """fastai's load_learner, for bytes that somebody vouched for.

    Raises LearnerError with the true cause: fastai itself hides a missing module behind `UnboundLocalError: res`.
    """
    _check_bytecode(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load_learner(io.BytesIO(data), cpu=True, pickle_module=_GUARDED)
        except LearnerError:
            raise
        except AttributeError as error:
            if "no attribute 'dls'" in str(error):
                raise LearnerError(
                    f"Expected a fastai Learner: {error}.\nExport it with   learn.export()   not torch.save()."
                ) from error
            raise LearnerError(_unreadable(error)) from error
        except Exception as error:
            raise LearnerError(_unreadable(error)) from error


def _check_bytecode(data: bytes) -> None:
    try:
        foreign = foreign_code(PickledFile(data))
    except LearnerError:
        return  # no form that could be looked into
    if foreign:
        here = versions()["python"].rpartition(".")[0]
        raise LearnerError(
            f"The learner holds the function {foreign} as bytecode: expected that of Python {here}, found another's.\n"
            f"Export it again under Python {here}, or put the function into a module that is installed on every node "
            "and export again."
        )


def _unreadable(error: Exception) -> str:
    here = versions()
    return (
        f"The export can't be read: {short(error)}. "
        f"Here are Python {here['python']}, fastai {here['fastai']} and torch {here['torch']}.\n"
        "Was it written by learn.export()? Then install the versions of the machine that trained it: type there   "
        "pip freeze | grep -iE 'torch|fast'"
    )


class OwnTransforms:
    """The learner's item and batch transforms, run by fastai's pipelines as `get_preds` runs them."""

    def __init__(self, learn: Learner, device: torch.device) -> None:
        transforms = learn.dls.valid_ds.tls[0].tfms.fs
        opener = next(i for i, each in enumerate(transforms) if ".create" in getattr(each, "name", "") + repr(each))
        self._dl = learn.dls.test_dl([b""], rm_type_tfms=opener, num_workers=0, device=device)
        # Tells every transform that this is the valid set; without it augmentation stays on.
        self._dl.before_iter()
        self._open = Pipeline(transforms[opener:], split_idx=1)

    def prepare(self, data: bytes, max_pixels: int) -> tuple[Any, Header]:
        """What fastai's item transforms make of an image, and its header. Raises ImageError."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, header = look_at_header(data, max_pixels)
            try:
                image = self._open(data)
            except Exception as error:
                raise ImageError("undecodable", short(error)) from error
            try:
                (item,) = self._dl.after_item((image,))
            except Exception as error:
                raise ImageError("learner", short(error)) from error
        return item, header

    def batch(self, items: Sequence[Any]) -> torch.Tensor:
        """What fastai's batch transforms make of prepared items: (n, channels, height, width)."""
        batch = self._dl.create_batch(self._dl.before_batch([(item,) for item in items]))
        (pixels,) = self._dl.after_batch(tuple(part.to(self._dl.device) for part in batch))
        return torch.Tensor(pixels)
