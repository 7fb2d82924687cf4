"""Nothing of an export is run by reading it: hostile files in many forms, each of which would leave a mark if it were.

Each is made from a genuine export: its data.pkl is rewritten, or it is put in place of the network, and the file is
otherwise whole. Every trick here does leave its mark when plain pickle or torch opens the file (checked by a test).
"""

import hashlib
import io
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import cloudpickle
import learners
import pytest
import torch
from fastai.vision.all import Learner
from hostile import Calls, exported_with, pickled_in, rewritten
from torch import nn

from drivetrain.errors import DrivetrainError, TrustError
from drivetrain.learner import open_learner
from drivetrain.pickled import Call, Name, PickledFile, Refused, tree

pytestmark = pytest.mark.slow

MARK = "drivetrain_test_mark"


def leave_mark(*_: Any, **__: Any) -> Any:
    """What hostile files try to call."""
    setattr(sys, MARK, True)
    return nn.Identity()


class Layer(nn.Module):
    """A network's layer whose class is the attacker's."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        leave_mark()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        leave_mark()
        return x


def _with(module: nn.Module, **attributes: Any) -> nn.Module:
    module.__dict__.update(attributes)
    return module


def _hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(leave_mark)
    return layer


def _nested(depth: int) -> Any:
    bomb: Any = ("x",)
    for _ in range(depth):
        bomb = (bomb, bomb)
    return bomb


# What stands in the place of the network, or of one of its attributes.
NETWORKS: dict[str, Callable[[], Any]] = {
    "a call of exec": lambda: Calls(exec, f"import sys; sys.{MARK} = True"),
    "a call of eval": lambda: Calls(eval, f"setattr(__import__('sys'), {MARK!r}, True)"),
    "a call of a function": lambda: Calls(leave_mark),
    "a call through getattr": lambda: Calls(sys.modules[__name__].leave_mark),
    "a call through map and list": lambda: Calls(list, Calls(map, leave_mark, [1])),
    "a call through reduce": lambda: Calls(reduce, leave_mark, [1, 2]),
    "a call through partial": lambda: Calls(partial(leave_mark, 1)),
    "code by cloudpickle": lambda: Calls(cloudpickle.loads, cloudpickle.dumps(Calls(leave_mark))),
    "a layer of one's own": Layer,
    "a layer inside a genuine one": lambda: nn.Sequential(nn.Linear(2, 2), Layer()),
    "a hook": _hooked,
    "a method replaced": lambda: _with(nn.Identity(), forward=leave_mark),
    "a method replaced by a listed function": lambda: _with(nn.Identity(), forward=nn.functional.relu),
    "an attribute that is a function": lambda: _with(nn.ReLU(), act=leave_mark),
    "an attribute that is a call": lambda: _with(nn.ReLU(), act=Calls(leave_mark)),
    "a parameter that is a call": lambda: _with(nn.ReLU(), _parameters={"weight": Calls(leave_mark)}),
    "a buffer that is a call": lambda: _with(nn.ReLU(), _buffers=OrderedDict(x=Calls(leave_mark))),
    "a child that is a call": lambda: _with(nn.Sequential(), _modules={"0": Calls(leave_mark)}),
    "a partial of a function": lambda: _with(nn.ReLU(), make=partial(leave_mark, 1)),
    "a key that is a call": lambda: _with(nn.ReLU(), table={Calls(leave_mark): 1}),
    "torch.hub": lambda: Calls(torch.hub.load, "/nowhere", "model"),
    "torch.load": lambda: Calls(torch.load, "/nowhere"),
    "fastai's Lambda": lambda: _fastai_lambda(),
    "annotations to be evaluated": lambda: _with(nn.ReLU(), __annotations__={"x": Calls(leave_mark)}),
    "a bomb of tuples": lambda: _with(nn.ReLU(), bomb=_nested(60)),
}


def _fastai_lambda() -> nn.Module:
    from fastai.layers import Lambda

    return Lambda(leave_mark)


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    paths = learners.write_photos(tmp_path_factory.mktemp("photos"), 8)
    return learners.photos_learner(paths[0].parent.parent)


def refused(data: bytes) -> str:
    """What is said of a file that nobody vouched for; it left no mark."""
    sys.__dict__.pop(MARK, None)
    with pytest.raises(DrivetrainError) as error:
        open_learner(data, hashlib.sha256(data).hexdigest())
    assert MARK not in sys.__dict__, "it ran"
    said = str(error.value)
    assert len(said) < 1500 and "Traceback" not in said
    return said


@pytest.mark.parametrize(
    "trick", [pytest.param(name, marks=pytest.mark.thorough if "bomb" in name else ()) for name in NETWORKS]
)
def test_a_hostile_network_is_refused_and_nothing_runs(trick: str, learn: Learner) -> None:
    network = NETWORKS[trick]()
    if trick == "annotations to be evaluated":
        data = exported_with(learn, nn.Sequential(network, learn.model))
        sys.__dict__.pop(MARK, None)
        open_learner(data, hashlib.sha256(data).hexdigest())
        assert MARK not in sys.__dict__, "annotations are left out: nothing computes with them"
        return
    said = refused(exported_with(learn, network))
    assert "--trust" in said


@pytest.mark.parametrize(
    "trick", ["a call of exec", "a call through reduce", "code by cloudpickle", "a layer of one's own"]
)
def test_the_tricks_work_on_who_unpickles(trick: str, learn: Learner) -> None:
    """Else the tests above would prove nothing."""
    sys.__dict__.pop(MARK, None)
    torch.load(io.BytesIO(exported_with(learn, NETWORKS[trick]())), weights_only=False)
    assert sys.__dict__.pop(MARK, None)


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


PICKLES = {
    "a plain call": b"\x80\x02" + _global("os system") + b"X\x04\x00\x00\x00true\x85R.",
    "text form": b"cos\nsystem\n(S'true'\ntR.",
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id in text": b"Pos.system\n.",
    "dotted names": b"\x80\x04\x8c\x08builtins\x8c\x0fexec.__call__.x\x93\x8c\x04pass\x85R.",
    "a BUILD on a function": b"\x80\x02" + _global("os system") + b"}b.",
    "a loop": b"\x80\x02]q\x00h\x00a.",
    "an empty stack": b"\x80\x02.",
    "two objects": b"\x80\x02K\x01K\x02.",
    "cut off": b"\x80\x02]q\x00(K\x01",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a name that is a number": b"\x80\x04K\x01K\x02\x93.",
    "text that is longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "no pickle at all": b"\xff\xd8\xff\xe0 a picture",
}


@pytest.mark.parametrize("trick", PICKLES)
def test_a_hostile_pickle_is_refused(trick: str, learn: Learner) -> None:
    genuine = exported_with(learn, learn.model)
    refused(rewritten(genuine, PICKLES[trick]))
    refused(PICKLES[trick])  # without the zip around it, as before torch 1.6


def test_a_record_that_unpacks_to_more_than_the_file_is_refused(learn: Learner) -> None:
    genuine = exported_with(learn, learn.model)
    said = refused(rewritten(genuine, b"\x80\x02" + b"0" * 50_000_000, compress=True))
    assert "compressed" in said


def test_a_damaged_tensor_is_refused(learn: Learner) -> None:
    """A flipped bit in the weights would load silently."""
    data = bytearray(exported_with(learn, learn.model))
    data[len(data) // 2] ^= 1
    assert "damaged" in refused(bytes(data))


def test_a_tensor_that_reaches_beyond_its_bytes_is_refused(learn: Learner) -> None:
    genuine = exported_with(learn, learn.model)
    pickled = pickled_in(genuine)
    # The strides of the first convolution, 64 x 3 x 7 x 7.
    strides, wider = b"K\x93K1K\x07K\x01", b"J" + struct.pack("<i", 10**6) + b"K1K\x07K\x01"
    assert strides in pickled
    assert "outside its record" in refused(rewritten(genuine, pickled.replace(strides, wider)))


def test_a_tree_is_what_the_pickle_says() -> None:
    """Names stay names, calls stay calls, and what they hold is there."""
    found = tree(pickle.dumps([partial(len, "abc"), {"a": (1, 2.5, None, True, "x", b"y")}, {3, 4}], 2))
    call, table, some = found
    assert (
        isinstance(call, Call)
        and str(call.function) == "functools.partial"
        and call.state[0] == Name("__builtin__", "len")
    )
    assert table["a"][:5] == (1, 2.5, None, True, "x")
    assert isinstance(some, Call) and some.arguments == ([3, 4],)


def test_no_user_code_is_needed(tmp_path: Path, learn: Learner) -> None:
    """A label function of a script that is not here: fastai itself can't open it."""
    text = "import sys; sys.path.insert(0, sys.argv[1])\nimport zoo, learners, pickle\nfrom pathlib import Path\n"
    text += "def label_func(path): return path.parent.name\n"
    text += "paths = learners.write_photos(Path(sys.argv[2]) / 'photos', 12)\n"
    text += "zoo._labelled(label_func, paths).export(Path(sys.argv[2]) / 'export.pkl', pickle_module=pickle)\n"
    (tmp_path / "train.py").write_text(text)
    command = [sys.executable, tmp_path / "train.py", Path(__file__).parent, tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    data = (tmp_path / "export.pkl").read_bytes()
    with pytest.raises(AttributeError, match="label_func"):
        torch.load(io.BytesIO(data), weights_only=False)
    sha256 = hashlib.sha256(data).hexdigest()
    assert open_learner(data, sha256).info.vocab == ("china", "flower")


def test_refused_is_no_trust_error_by_itself() -> None:
    with pytest.raises(Refused, match="it uses STRING"):
        tree(PICKLES["INST"])
    assert not issubclass(Refused, TrustError)
    with pytest.raises(DrivetrainError):
        PickledFile(b"")


def test_no_package_is_recommended_by_a_file_that_nobody_vouched_for(learn: Learner) -> None:
    """Its author chooses the name, and could have put a package of that name where pip finds it."""
    genuine = exported_with(learn, learn.model)
    pickled = pickled_in(genuine)
    block = _global("torchvision.models.resnet BasicBlock")
    assert block in pickled
    said = refused(rewritten(genuine, pickled.replace(block, _global("a_package_of_mine BasicBlock"))))
    assert "a_package_of_mine" in said and "pip install" not in said
    assert "pip install" not in refused(b"no pickle at all")
