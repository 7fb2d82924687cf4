"""Files that pass for an export.pkl and are meant to harm, and two ways to open them.

`harmful` gives those that run code in whoever unpickles them: each would make a folder, its mark. `bombs` gives those
that are damaged, lie about their sizes, or want all memory or time. Both are made from a genuine export.

    python tests/hostile.py unpickle FOLDER    opens FOLDER/*.pkl with pickle and torch, as a careless program would
    python tests/hostile.py read FOLDER        opens them with drivetrain, and says of each what came of it

`read` prints a line of JSON for each file: what was said, what the interpreter's audit hooks saw meanwhile (calls of
the system, sockets, code that no file of the installation holds, names that pickle imports), seconds, and memory.
"""

import io
import json
import os
import pickle
import re
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# What any of the two ways may take: torch and fastai alone map 4 GiB.
MOST_ADDRESSES = 12 * 1024**3
PROTOCOL = b"\x80\x04"


# --- what hostile files name ---


class Made:
    """Makes a folder in whichever way pickle makes or fills an object."""

    def __new__(cls, mark: str = "", *, also: str = "") -> Any:
        for path in filter(None, (mark, also)):
            os.mkdir(path)
        return super().__new__(cls)

    def __setstate__(self, mark: str) -> None:
        os.mkdir(mark)

    def __setitem__(self, key: str, mark: str) -> None:
        os.mkdir(mark)

    def append(self, mark: str) -> None:
        os.mkdir(mark)

    def add(self, mark: str) -> None:
        os.mkdir(mark)


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made_by = function, arguments

    def __reduce__(self) -> Any:
        return self.made_by


# --- pickle, put together by hand ---


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def dotted(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def several(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def called(function: bytes, *values: bytes) -> bytes:
    return function + several(*values) + b"R"


def listed(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def put(place: int) -> bytes:
    return b"r" + struct.pack("<I", place)


def got(place: int) -> bytes:
    return b"j" + struct.pack("<I", place)


MKDIR = named("os", "mkdir")
IMPORT = named("builtins", "__import__")
NEW = named("hostile", "Made") + b")\x81"


def _code(mark: str) -> bytes:
    return text(f"import os; os.mkdir({mark!r})")


def _expression(mark: str) -> bytes:
    return text(f"__import__('os').mkdir({mark!r})")


def _dynamic(mark: str) -> bytes:
    import cloudpickle

    makes = eval(f"lambda: __import__('os').mkdir({mark!r})", {"__name__": "__main__"})
    return bytes(cloudpickle.dumps(Calls(makes), protocol=2)[:-1])


def _hints(mark: str) -> bytes:
    thing = called(named("types", "SimpleNamespace")) + b"}" + text("__annotations__") + b"}" + text("x")
    return called(named("typing", "get_type_hints"), thing + _expression(mark) + b"ssb")


def _traced(mark: str) -> bytes:
    source = f"import os; os.mkdir({mark!r})\ndef forward(self): pass\n"
    body = b"}" + text("_code") + text(source) + b"s"
    return called(named("torch.fx.graph_module", "reduce_graph_module"), body, text(""))


def _hub(mark: str) -> bytes:
    folder = Path(f"{mark}-hub")
    folder.mkdir()
    (folder / "hubconf.py").write_text(f"import os\ndef model():\n    os.mkdir({mark!r})\n")
    keywords = b"}" + text("source") + text("local") + b"s"
    loads = named("functools", "partial") + several(named("torch.hub", "load")) + keywords + b"\x92"
    return called(loads, text(str(folder)), text("model"))


def _another(mark: str, module: str = "pandas", loads: str = "read_pickle", more: Sequence[bytes] = ()) -> bytes:
    path = Path(f"{mark}-another-{module}")
    path.write_bytes(PROTOCOL + called(MKDIR, text(mark)) + b".")
    return called(named(module, loads), text(str(path)), *more)


def _template(mark: str) -> bytes:
    template = called(named("jinja2", "Template"), text(f"{{{{ cycler.__init__.__globals__.os.mkdir({mark!r}) }}}}"))
    return called(called(named("builtins", "getattr"), template, text("render")))


# Each leaves its mark in whoever runs it: opcodes that push one value.
PAYLOADS: dict[str, Callable[[str], bytes]] = {
    "REDUCE os.mkdir": lambda mark: called(MKDIR, text(mark)),
    "REDUCE os.system": lambda mark: called(named("os", "system"), text(f"mkdir '{mark}'")),
    "REDUCE subprocess.check_output": lambda mark: called(
        named("subprocess", "check_output"), listed(text("mkdir"), text(mark))
    ),
    "exec": lambda mark: called(named("builtins", "exec"), _code(mark)),
    "exec by its old name": lambda mark: b"\x80\x02" + called(named("__builtin__", "eval"), _expression(mark)),
    "INST": lambda mark: b"(" + text(mark) + b"ios\nmkdir\n",
    "INST of a class of one's own": lambda mark: b"(" + text(mark) + b"ihostile\nMade\n",
    "OBJ": lambda mark: b"(" + MKDIR + text(mark) + b"o",
    "NEWOBJ": lambda mark: named("hostile", "Made") + several(text(mark)) + b"\x81",
    "NEWOBJ_EX": lambda mark: named("hostile", "Made") + b")" + b"}" + text("also") + text(mark) + b"s\x92",
    "BUILD with __setstate__": lambda mark: NEW + text(mark) + b"b",
    "SETITEM with __setitem__": lambda mark: NEW + text("key") + text(mark) + b"s",
    "APPEND with append": lambda mark: NEW + text(mark) + b"a",
    "ADDITEMS with add": lambda mark: NEW + b"(" + text(mark) + b"\x90",
    "an extension code": lambda mark: called(b"\x82\x4d", text(mark)),
    "getattr of an import": lambda mark: called(
        called(named("builtins", "getattr"), called(IMPORT, text("os")), text("mkdir")), text(mark)
    ),
    "operator.attrgetter": lambda mark: called(
        called(called(named("operator", "attrgetter"), text("mkdir")), called(IMPORT, text("os"))), text(mark)
    ),
    "operator.methodcaller": lambda mark: called(
        called(named("operator", "methodcaller"), text("mkdir"), text(mark)), called(IMPORT, text("os"))
    ),
    "functools.partial": lambda mark: called(called(named("functools", "partial"), MKDIR, text(mark))),
    "functools.reduce": lambda mark: called(named("functools", "reduce"), MKDIR, listed(text(mark), b"M\xff\x01")),
    "map, drained by list": lambda mark: called(
        named("builtins", "list"), called(named("builtins", "map"), MKDIR, listed(text(mark)))
    ),
    "a dotted name into torch": lambda mark: called(dotted("torch", "serialization.os.mkdir"), text(mark)),
    "a dotted name into a listed module": lambda mark: called(dotted("timm.models._hub", "os.mkdir"), text(mark)),
    "a dotted name into fastai's layers": lambda mark: called(dotted("fastai.layers", "os.mkdir"), text(mark)),
    "a dotted name to a method": lambda mark: called(dotted("builtins", "exec.__call__"), _code(mark)),
    "numpy's runstring": lambda mark: called(named("numpy.testing._private.utils", "runstring"), _code(mark), b"}"),
    "timeit": lambda mark: called(
        named("timeit", "timeit"), _code(mark), text("pass"), named("time", "time"), b"K\x01"
    ),
    "cProfile": lambda mark: called(named("cProfile", "runctx"), _code(mark), b"}", b"}"),
    "pydoc's pager": lambda mark: called(named("pydoc", "pipepager"), text(""), text(f"mkdir '{mark}'")),
    "runpy": lambda mark: called(
        named("runpy", "_run_code"), called(named("builtins", "compile"), _code(mark), text("x"), text("exec")), b"}"
    ),
    "torch.fx's graphs": _traced,
    "torch.hub": _hub,
    "another pickle": _another,
    "type hints": _hints,
    "code by cloudpickle": _dynamic,
    "fastcore's exec_new": lambda mark: called(named("fastcore.basics", "exec_new"), _code(mark)),
    "fastcore's exec_local": lambda mark: called(named("fastcore.basics", "exec_local"), _code(mark), text("os")),
    "torch's collect_env": lambda mark: called(
        named("torch.utils.collect_env", "run"), listed(text("mkdir"), text(mark))
    ),
    "another pickle by joblib": partial(_another, module="joblib", loads="load"),
    "another pickle by numpy": partial(_another, module="numpy", loads="load", more=(b"N", b"\x88")),
    "sympy's sympify": lambda mark: called(named("sympy", "sympify"), _expression(mark)),
    "a template of jinja2": _template,
    "pip": lambda mark: called(
        named("pip._internal.cli.main", "main"), listed(text("list"), text("--log"), text(mark))
    ),
}


# --- files ---


def pickled_in(export: bytes) -> bytes:
    """The data.pkl of an export."""
    with zipfile.ZipFile(io.BytesIO(export)) as file:
        return file.read(next(name for name in file.namelist() if name.endswith("/data.pkl")))


def rewritten(export: bytes, pickled: bytes, *, compress: bool = False) -> bytes:
    """An export with another data.pkl, otherwise whole."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(export)) as old, zipfile.ZipFile(sink, "w") as new:
        for entry in old.infolist():
            body = pickled if entry.filename.endswith("/data.pkl") else old.read(entry)
            new.writestr(entry.filename, body, zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED)
    return sink.getvalue()


def harmful(export: bytes, marks: Path) -> Iterator[tuple[str, bytes]]:
    """Files by name. Each payload alone in a whole file, without the zip around it, and hidden in a good learner."""
    genuine = pickled_in(export)
    for name, payload in PAYLOADS.items():
        for form, file in FORMS.items():
            full = f"{name}, {form}"
            yield full, file(export, genuine, payload(str(marks / slug(full))))


FORMS: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "alone": lambda export, genuine, payload: rewritten(export, PROTOCOL + payload + b"."),
    "without zip": lambda export, genuine, payload: PROTOCOL + payload + b".",
    # What it gives is thrown away, and a learner follows that opens.
    "before a good learner": lambda export, genuine, payload: rewritten(export, PROTOCOL + payload + b"0" + genuine),
}


def slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def bombs(learn: Any) -> Iterator[tuple[str, bytes]]:
    """Files by name that are no learner, or a learner that nobody can want."""
    export = exported_with(learn, learn.model)
    genuine = pickled_in(export)
    for name, pickled in _pickles(genuine):
        yield name, rewritten(export, PROTOCOL + pickled)
    yield from _zips(export)
    for name, network in _networks():
        yield name, exported_with(learn, network)


def _pickles(genuine: bytes) -> Iterator[tuple[str, bytes]]:
    rest, word = genuine[2:], text("flower")
    attribute = re.compile(re.escape(text("training")) + rb"(q.|r....)[\x88\x89]", re.DOTALL)
    a_class = re.compile(re.escape(word) + rb"(q.|r....)", re.DOTALL)
    assert attribute.search(rest) and a_class.search(rest)

    def attributed(place: int) -> bytes:
        return attribute.sub(lambda found: found[0][:-1] + got(place), rest)

    def worded(place: int) -> bytes:
        # The word itself is kept for those who ask the memo for it.
        return a_class.sub(lambda found: found[0] + b"0" + got(place), rest)

    top = 10**6
    # Each list is empty when it is put into the one above: it grows afterwards.
    late = b"".join(b"]" + put(top + i) + b"0" for i in range(60))
    late += b"".join(got(top + i) + b"(" + 2 * got(top + i + 1) + b"e0" for i in range(59))
    tuples = b")" + put(top) + b"0" + b"".join(2 * got(top + i) + b"\x86" + put(top + i + 1) + b"0" for i in range(60))
    lines = text("x" * 10**6) + put(top) + b"0" + b"(" + got(top) * 50_000 + b"t" + put(top + 1) + b"0"
    circle = b"]" + put(top) + got(top) + b"a0"
    yield "lists that unfold, as an attribute", late + attributed(top)
    yield "lists that unfold, as a class", late + worded(top)
    yield "tuples that unfold, as an attribute", tuples + attributed(top + 60)
    yield "tuples that unfold, alone", tuples + got(top + 60) + b"."
    yield "tuples that unfold, changed", tuples + got(top + 60) + b"}b."
    yield "a text of fifty gigabytes, as a class", lines + worded(top + 1)
    yield "a text of fifty gigabytes, alone", lines + MKDIR + got(top + 1) + b"}" + b"\x86b."
    yield "a text of fifty gigabytes, changed", lines + got(top + 1) + b"}b."
    yield "a list in itself, as an attribute", circle + attributed(top)
    yield "a list in itself, as a class", circle + worded(top)
    yield "a million lists in each other", b"]" * 10**6 + b"a" * (10**6 - 1) + b"."
    yield "a million tuples in each other", b")" + b"\x85" * 10**6 + b"."
    yield "a million tuples in each other, for a key", b"}" + b")" + b"\x85" * 10**6 + b"Ns."
    yield "a key whose hash takes long", tuples + b"}" + (got(top + 24) + b"Ns") * 10**4 + b"."
    same = (b"\x8a\x0a" + (i * sys.hash_info.modulus).to_bytes(10, "little") + b"N" for i in range(10**5))
    yield "numbers of one hash", b"}(" + b"".join(same) + b"u."
    yield "a million calls in each other", MKDIR + b")R" + b")R" * 10**6 + b"."
    yield "thirty million marks", b"(" * 30_000_000
    yield "thirty million sets", b"\x8f" * 30_000_000
    yield "a number longer than the file", b"\x8b\xff\xff\xff\x7f123."
    yield "a number of a million digits", b"L" + b"9" * 10**6 + b"L\n."
    yield "a text longer than the file", b"X\xff\xff\xff\x7fabc."
    yield "a text longer than all memory", b"\x8d" + b"\xff" * 8 + b"abc."
    yield "bytes longer than all memory", b"\x8e" + b"\xff" * 7 + b"\x7fabc."
    yield "a name that clears the screen", named("os", "\x1b[2J\x1b]0;title\x07mkdir") + b")R."
    yield "a name of ten megabytes", named("os", "x" * 10**7) + b")R."
    yield "a name with a line's end", dotted("os", "mkdir\nIts sha256 is trusted. Type --trust") + b")R."
    cleared = text("\x1b[2J_hooks") + b"}" + text("x") + b"Ns"
    yield "an attribute that clears the screen", attribute.sub(lambda found: found[0] + cleared, rest)
    yield "half a character for a class", rest.replace(word, b"X\x06\x00\x00\x00\xed\xa0\x80abc")
    yield "an extension code that nobody knows", b"\x84\xff\xff\xff\x7f."
    yield "a persistent id in text", b"Pos.system\n."
    yield "a persistent id that is nothing", b"NQ."
    yield "a persistent id that is a text", text("store") + b"Q."
    outside = several(text("storage"), MKDIR, text("../../etc/passwd"), text("cpu"), b"J\xff\xff\xff\xff")
    yield "a persistent id outside the file", outside + b"Q."
    yield "a memo that is not there", b"h\x07."
    yield "no end", b"K\x01" * 1000
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        yield f"a pickle cut at {share:.1%}", rest[: int(len(rest) * share)]


def _zips(export: bytes) -> Iterator[tuple[str, bytes]]:
    folder = next(name for name in zipfile.ZipFile(io.BytesIO(export)).namelist() if name.endswith("/data.pkl"))[:-8]
    evil = PROTOCOL + called(MKDIR, text("/nowhere/at/all")) + b"."
    yield "a record that unpacks to more", rewritten(export, PROTOCOL + b"0" * 50_000_000, compress=True)
    yield "two of data.pkl", _with_entries(export, {f"{folder}data.pkl": evil})
    yield "a data.pkl in another folder", _with_entries(export, {"other/data.pkl": evil})
    yield "records outside", _with_entries(export, {"../../data.pkl": evil, "/etc/data.pkl": evil})
    yield "two hundred thousand records", _with_entries(export, {f"x{i}": b"" for i in range(200_000)})
    yield "big-endian", _with_entries(export, {f"{folder}byteorder": b"big"}, leave=f"{folder}byteorder")
    yield "entries that overlap", _overlapping(export)
    yield "a size that is a lie", _patched(export, 24, b"\xff\xff\xff\x7f")
    yield "an offset that is a lie", _patched(export, 42, b"\xff\xff\xff\x7f")
    yield "encrypted", _patched(export, 8, b"\x01\x00")
    yield "patched records", _patched(export, 8, b"\x20\x00")
    yield "packed in an unknown way", _patched(export, 10, b"\x63\x00")
    yield "a Torch script", _script()
    yield "a tar of old torch", b"./0000755" + bytes(2000)
    yield "an empty zip", b"PK\x05\x06" + bytes(18)
    for share in (0.001, 0.3, 0.7, 0.99):
        yield f"cut at {share:.1%}", export[: int(len(export) * share)]


def _with_entries(export: bytes, more: dict[str, bytes], leave: str = "") -> bytes:
    import warnings

    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(export)) as old, zipfile.ZipFile(sink, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in old.infolist():
            if entry.filename != leave:
                new.writestr(entry.filename, old.read(entry))
        for name, body in more.items():
            new.writestr(name, body)
    return sink.getvalue()


def _patched(export: bytes, place: int, value: bytes) -> bytes:
    """The export with other bytes in each entry of its directory."""
    data, start = bytearray(export), export.index(b"PK\x01\x02")
    while (start := export.find(b"PK\x01\x02", start)) >= 0:
        data[start + place : start + place + len(value)] = value
        start += 4
    return bytes(data)


def _overlapping(export: bytes) -> bytes:
    """All entries point at the first record."""
    return _patched(export, 42, bytes(4))


def _script() -> bytes:
    import torch

    sink = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), sink)
    return sink.getvalue()


def exported_with(learn: Any, network: Any) -> bytes:
    """The learner's export with something else in the place of its network."""
    import cloudpickle
    import torch

    sink, genuine = io.BytesIO(), learn.model
    most = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(20_000)
        learn.model = network
        learn.dls = learn.dls.new_empty()
        torch.save(learn, sink, pickle_module=cloudpickle)
    finally:
        sys.setrecursionlimit(most)
        learn.model = genuine
    return sink.getvalue()


def _networks() -> Iterator[tuple[str, Any]]:
    from torch import nn

    inside: nn.Module = nn.Identity()
    for _ in range(40):
        inside = nn.Sequential(inside, inside)
    yield "a network of a million million layers", inside
    deep: nn.Module = nn.Identity()
    for _ in range(400):
        deep = nn.Sequential(deep)
    yield "a network of many floors", nn.Sequential(deep, nn.Conv2d(3, 1, 1))
    circle = nn.Sequential(nn.Identity())
    circle.append(circle)
    yield "a network in itself", circle
    yield (
        "a network that asks for terabytes",
        nn.Sequential(nn.ConstantPad2d(10**6, 0.0), nn.Flatten(), nn.Linear(3, 2)),
    )
    yield "a network that asks for more than is there", nn.Sequential(nn.ConstantPad2d(20_000, 0.0), nn.Conv2d(3, 2, 1))
    yield (
        "a network that gives one number",
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(0), nn.Linear(3, 2), nn.Flatten(0)),
    )
    yield "a network that computes nothing", nn.Sequential()
    yield "a network that fails", nn.Sequential(nn.Linear(7, 7))


# --- the two ways to open them, each in a process of its own ---


def _unpickle(folder: Path) -> None:
    import copyreg

    import torch

    copyreg.add_extension("os", "mkdir", 0x4D)  # type: ignore[no-untyped-call]
    for path in sorted(folder.glob("*.pkl")):
        for opened in (partial(torch.load, path, weights_only=False), partial(_plainly, path)):
            try:
                opened()
            except BaseException as error:
                print(path.name, type(error).__name__, str(error)[:200], file=sys.stderr)


def _plainly(path: Path) -> None:
    pickle.loads(path.read_bytes())


class Watch:
    """What the interpreter's audit hooks see while it is on. They can't be taken out again."""

    # The installation's own code runs at its first import; what a file brings has no file.
    OUTSIDE = (
        "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename", "subprocess.Popen",
        "socket.connect", "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen", "webbrowser.open", "pty.spawn",
        "shutil.rmtree", "urllib.Request",
    )  # fmt: skip

    def __init__(self) -> None:
        self.on, self.seen = False, set[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, about: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in self.OUTSIDE:
            self.seen.add(f"{event} {about!r}"[:200])
        elif event in ("exec", "compile"):
            file = about[0].co_filename if event == "exec" else about[1]
            if not Path(str(file)).exists() and not str(file).startswith("<frozen "):
                self.seen.add(f"{event} {file}")


def _read(folder: Path) -> None:
    from drivetrain import Config, inspect_learner
    from drivetrain.admit import admit_learner
    from drivetrain.errors import DrivetrainError
    from drivetrain.layout import Layout
    from drivetrain.store import Store

    # What is imported at the first learner, and the first compilation of its network, is not the files' doing.
    inspect_learner(Config(learner=str(folder / "good")))
    watch, root = Watch(), Layout(str(folder / "root"))
    watch.on = True
    exec(compile("0", "brought by a file", "exec"))
    pickle.loads(PROTOCOL + MKDIR + b".")
    assert len(watch.seen) == 3, f"the watch must see what it is for: {watch.seen}"
    watch.seen = set()
    for path in sorted(folder.glob("*.pkl")):
        config = Config(learner=str(path))
        ways = {"inspect": partial(inspect_learner, config), "admit": partial(admit_learner, Store(), root, config)}
        for way, opened in ways.items():
            begun, before = time.monotonic(), _forget_peak()
            watch.on, said = way == "inspect", ""
            try:
                opened()
            except DrivetrainError as error:
                said = f"{type(error).__name__}: {error}"
            except BaseException as error:
                said = f"not plain: {type(error).__name__}: {error}"[:500]
            watch.on = False
            seen, watch.seen = sorted(watch.seen), set()
            told = {"file": path.stem, "way": way, "said": said, "seen": seen}
            print(json.dumps(told | {"seconds": time.monotonic() - begun, "more_bytes": _peak() - before}), flush=True)


def _forget_peak() -> int:
    """Bytes resident now, from which `_peak` goes on: what was opened before may have taken more (man 5 proc)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    {"unpickle": _unpickle, "read": _read}[sys.argv[1]](Path(sys.argv[2]))
