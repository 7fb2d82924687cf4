"""A vouched file is unpickled behind a guard: genuine learners pass, and what no learner needs is refused by name."""

import hashlib
import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import hostile
import learners
import numpy as np
import pytest
import zoo
from fastai.vision.all import PILImage, load_learner

from drivetrain.errors import LearnerError
from drivetrain.learner import open_learner
from drivetrain.learner.own import _Unpickler, load_vouched

pytestmark = pytest.mark.slow

# One for each way in which an export names things; the networks beside are test_zoo's.
GENUINE = (
    "resnet18", "xresnet18", "timm convnext_atto", "label function", "lambda", "name function", "regex", "from_df",
    "multi-label", "regression", "grey", "fp16", "augmented and normalised", "focal loss",
)  # fmt: skip
# Those that `make test` takes.
SHARE = {"lambda", "multi-label", "grey"}
# Code of one's own is what vouching is for: the guard lets it run.
OWN_CODE = {
    "INST of a class of one's own", "NEWOBJ", "NEWOBJ_EX", "BUILD with __setstate__", "SETITEM with __setitem__",
    "APPEND with append", "ADDITEMS with add", "code by cloudpickle",
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return learners.write_photos(tmp_path_factory.mktemp("photos") / "all", 12)


@pytest.fixture(scope="module")
def export(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("learner") / "export.pkl"
    return Path(learners.exported(zoo.ZOO["squish"](photos), path).path).read_bytes()


def outputs(learn: Any, paths: list[Path]) -> np.ndarray[Any, Any]:
    items = learners.frame_of(paths) if "fname" in getattr(learn.dls.valid_ds.items, "columns", ()) else paths
    with warnings.catch_warnings(), learn.no_bar():
        warnings.simplefilter("ignore")
        found: np.ndarray[Any, Any] = learn.get_preds(dl=learn.dls.test_dl(items, num_workers=0))[0].numpy()
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHARE else pytest.mark.thorough) for name in GENUINE]
)
def test_a_genuine_learner_passes_the_guard(name: str, photos: list[Path], tmp_path: Path) -> None:
    path = Path(learners.exported(zoo.ZOO[name](photos), tmp_path / "export.pkl").path)
    np.testing.assert_array_equal(outputs(load_vouched(path.read_bytes()), photos), outputs(load_learner(path), photos))


@pytest.mark.thorough
def test_code_of_the_training_script_passes_and_what_is_missing_of_it_is_a_name(
    photos: list[Path], tmp_path: Path
) -> None:
    """A transform of __main__, carried by cloudpickle with its imports, and a label function that is not carried."""
    text = "import sys; sys.path.insert(0, sys.argv[1])\nimport enum, os, math, pickle, zoo, cloudpickle\n"
    text += "from dataclasses import dataclass\nfrom pathlib import Path\nfrom fastai.vision.all import *\n"
    text += "class Kind(enum.Enum):\n    HALF = 2\n@dataclass\nclass By:\n    kind: Kind\n    path: Path\n"
    text += "class Darker(Transform):\n    order = 3\n    by = By(Kind.HALF, Path('x'))\n"
    text += "    def encodes(self, image: PILImage):\n        assert os.sep and math.pi\n"
    text += "        return PILImage(image.point(lambda value: value // self.by.kind.value))\n"
    text += "def label_func(path): return path.parent.name\n"
    text += "paths = sorted(Path(sys.argv[2]).rglob('*.jpg'))\nout = Path(sys.argv[3])\n"
    text += "zoo._small(paths, item_tfms=[Resize(64), Darker()]).export(out / 'own.pkl')\n"
    text += "zoo._labelled(label_func, paths).export(out / 'labelled.pkl', pickle_module=pickle)\n"
    (tmp_path / "train.py").write_text(text)
    command = [sys.executable, tmp_path / "train.py", Path(__file__).parent, photos[0].parent.parent, tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    own = tmp_path / "own.pkl"
    np.testing.assert_array_equal(outputs(load_vouched(own.read_bytes()), photos), outputs(load_learner(own), photos))
    with pytest.raises(AttributeError, match="label_func"):
        load_learner(tmp_path / "labelled.pkl")
    assert load_vouched((tmp_path / "labelled.pkl").read_bytes()).dls.vocab == ["china", "flower"]


def test_a_learner_exported_on_windows_opens(export: bytes, photos: list[Path], tmp_path: Path) -> None:
    """pathlib refuses to make a WindowsPath here."""
    pickled = hostile.pickled_in(export).replace(b"pathlib\nPosixPath\n", b"pathlib\nWindowsPath\n")
    (tmp_path / "windows.pkl").write_bytes(hostile.rewritten(export, pickled))
    with pytest.raises(NotImplementedError, match="WindowsPath"):
        load_learner(tmp_path / "windows.pkl")
    (tmp_path / "export.pkl").write_bytes(export)
    found = outputs(load_vouched((tmp_path / "windows.pkl").read_bytes()), photos)
    np.testing.assert_array_equal(found, outputs(load_learner(tmp_path / "export.pkl"), photos))


def darker(image: PILImage) -> PILImage:
    return PILImage(image.point(lambda value: value // 2))


def test_a_function_of_the_training_script_that_is_not_here_is_named_when_it_is_called(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is called it is of no use, and its absence nobody's trouble."""
    script = sys.modules["__main__"]
    for function in (darker, zoo.label_func):
        monkeypatch.setattr(function, "__module__", "__main__")
        monkeypatch.setattr(script, function.__name__, function, raising=False)
    zoo._labelled(zoo.label_func, photos).export(tmp_path / "labelled.pkl", pickle_module=pickle)
    zoo._small(photos, item_tfms=[zoo.Resize(64), darker]).export(tmp_path / "darker.pkl", pickle_module=pickle)
    for function in (darker, zoo.label_func):
        monkeypatch.delattr(script, function.__name__)
    labels = load_vouched((tmp_path / "labelled.pkl").read_bytes()).dls.loaders[-1].dataset.tls[1].tfms[0]
    with pytest.raises(LearnerError, match="calls label_func of the script that trained it"):
        labels(photos[0])
    data = (tmp_path / "darker.pkl").read_bytes()
    with pytest.raises(LearnerError, match=r"^The learner calls darker of the script that trained it"):
        open_learner(data, hashlib.sha256(data).hexdigest(), vouched=True)


@pytest.mark.parametrize("makes", [b")\x81", b")R"])
def test_a_class_that_is_not_here_still_makes_objects_while_they_are_unpickled(makes: bytes) -> None:
    found = _Unpickler(io.BytesIO(hostile.PROTOCOL + hostile.named("__main__", "NotHere") + makes + b".")).load()
    with pytest.raises(LearnerError, match="calls NotHere"):
        found()


@pytest.mark.parametrize("name", [name for name in hostile.PAYLOADS if name != "an extension code"])
def test_what_no_learner_needs_is_refused_though_vouched_for(name: str, export: bytes, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    payload = hostile.PAYLOADS[name](str(mark))
    data = hostile.FORMS["before a good learner"](export, hostile.pickled_in(export), payload)
    if name in OWN_CODE:
        load_vouched(data)
        assert mark.exists(), "it is no boundary, and the others below prove something"
        return
    with pytest.raises(LearnerError, match="although it is vouched for") as refused:
        load_vouched(data)
    assert not mark.exists(), "it ran"
    assert len(str(refused.value)) < 600


def with_other_bytecode(data: bytes, code: bytes) -> bytes:
    """An export whose lambda, the only function that it holds, has other bytecode."""
    genuine = hostile.pickled_in(data)
    old = hostile.text((lambda path: path.parent.name).__code__.co_code.decode("latin1"))
    assert genuine.count(old) == 1
    return hostile.rewritten(data, genuine.replace(old, hostile.text(code.decode("latin1"))))


# What Python 3.12 makes of the lambda, and what no Python does.
OTHER_BYTECODE = {
    "3.12": bytes([151, 0, 124, 0, 106, 0, *[0] * 18, 106, 2, *[0] * 18, 83, 0]),
    "garbage": bytes([9, 0, 1, 7, 254, 250]),
}


@pytest.mark.parametrize("python", OTHER_BYTECODE)
def test_code_by_another_python_is_no_matter_as_data_and_is_refused_before_it_runs(
    python: str, photos: list[Path], tmp_path: Path
) -> None:
    data = Path(learners.exported(zoo.ZOO["lambda"](photos), tmp_path / "export.pkl").path).read_bytes()
    load_vouched(data)
    other = with_other_bytecode(data, OTHER_BYTECODE[python])
    items, found = [], []
    for each in (data, other):
        learner = open_learner(each, hashlib.sha256(each).hexdigest())
        items = [learner.prepare(path.read_bytes(), 10_000_000)[0] for path in photos[:4]]
        found.append(np.concatenate([each.outputs for each in learner.predict(items)]))  # type: ignore[union-attr]
    np.testing.assert_array_equal(*found)
    with pytest.raises(LearnerError, match=r"<lambda> as bytecode: expected that of Python 3\.11, found another's"):
        load_vouched(other)


def test_the_older_form_of_a_file_is_guarded_as_well(export: bytes, tmp_path: Path) -> None:
    """Without the zip around it torch calls another function."""
    payload = hostile.PAYLOADS["REDUCE os.mkdir"](str(tmp_path / "mark"))
    with pytest.raises(LearnerError, match=r"os\.mkdir"):
        load_vouched(hostile.PROTOCOL + payload + b".")
    assert not (tmp_path / "mark").exists()


def test_nothing_of_a_module_is_reached_by_getattr(export: bytes, tmp_path: Path) -> None:
    """cloudpickle's own way to name a module, which genuine learners use."""
    mark = tmp_path / "mark"
    module = hostile.called(hostile.named("cloudpickle.cloudpickle", "subimport"), hostile.text("os"))
    makes = hostile.called(hostile.named("builtins", "getattr"), module, hostile.text("mkdir"))
    payload = hostile.called(makes, hostile.text(str(mark)))
    with pytest.raises(LearnerError, match="although it is vouched for"):
        load_vouched(hostile.FORMS["before a good learner"](export, hostile.pickled_in(export), payload))
    assert not mark.exists()
    with pytest.raises(Exception, match=r"magic number|stack|could not"):
        load_learner(io.BytesIO(hostile.PROTOCOL + payload + b"."))
    assert mark.exists(), "it does run in who unpickles it"
