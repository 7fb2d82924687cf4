"""A file of `torch.save`, read as data: names, calls and values, of which nothing is imported, built or run.

Knows the zip container, the pickle opcodes that such files use, and where a tensor's bytes lie. Does not know what any
name means: `pickle` would import it and call it; here a call stays a `Call`, and whoever wants an object out of one
must build it from its parts. A file that is meant to harm is a strange tree and nothing else.
"""

import io
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from drivetrain.errors import LearnerError

# A genuine export holds 70 kB in 10,000 opcodes beside its tensors, and more for a vocab of many words.
MOST_PICKLE_BYTES = 64 * 1024**2
MOST_OPCODES = 3_000_000
# A record is a tensor; zipfile keeps ten times the bytes that its entry has in the file.
MOST_RECORDS = 100_000
# Longer names are no names, and would fill a person's screen.
MOST_NAME = 300
# Reasons that are shown of one file.
MOST_REASONS = 8
# What zipfile raises for bytes that are no zip file, or a damaged one.
_NO_ZIP = (zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error)
_ENTRY = b"PK\x01\x02"
_MARK = object()


class Refused(LearnerError):
    """Something in the file can't be read as data, and could only be run.

    ``args``: a text for each, which begins with its name. ``about``: what could be read all the same, in words.
    """

    def __init__(self, *reasons: str, about: str = "") -> None:
        super().__init__(*reasons)
        self.about = about

    def __str__(self) -> str:
        some = [each if len(each) <= MOST_NAME else f"{each[:MOST_NAME]}…" for each in self.args[:MOST_REASONS]]
        more = len(self.args) - len(some)
        return "; ".join(some) + (f"; and {more} more" if more else "")


def shown(text: str) -> str:
    """A text out of the file, for people: on one line, not long, and nothing in it that moves a terminal's cursor."""
    short = text if len(text) <= MOST_NAME else f"{text[:MOST_NAME]}…"
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in short)


@dataclass(frozen=True)
class Name:
    """A class or function that the file names, not imported. Dotted words; anything else is refused."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """An object that the file would make by calling something; ``state``, ``entries`` and ``members`` came after."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What is called, ``module.name``; empty if that is itself the result of a call."""
        return str(self.function) if isinstance(self.function, Name) else ""


@dataclass(frozen=True, eq=False)
class Storage:
    """A tensor's bytes inside the file. ``kind`` is torch's name of the storage, ``numel`` its number of elements."""

    kind: str
    key: str
    numel: int


class PickledFile:
    """The tree of a file of `torch.save` (``root``), and its storages.

    Raises Refused for a file of another form (torch's before 1.6) or one that uses what exports don't; LearnerError for
    a file that is damaged.
    """

    def __init__(self, data: bytes) -> None:
        if data.count(_ENTRY) > MOST_RECORDS:
            raise LearnerError(f"It has more than {MOST_RECORDS:,} records; an export has one for each tensor.")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            entries = self._zip.infolist()
        except _NO_ZIP as error:
            raise Refused(
                f"its form: not the zip file that torch.save writes since 1.6, or damaged ({shown(str(error))}). "
                "Copy it again, or export again with fastai 2.8."
            ) from error
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise LearnerError("Its records are compressed or encrypted, which torch.save never does.")
        if sum(entry.file_size for entry in entries) > len(data):
            raise LearnerError("Its records claim more bytes than the file has.")
        names = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(names) != 1:
            raise LearnerError(f"Expected one record data.pkl inside, found {len(names)}.")
        self._folder = names[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in self._zip.namelist() and self._record("byteorder") != b"little":
            raise LearnerError("Its tensors were written by a big-endian machine.")
        pickled = self._record("data.pkl")
        if len(pickled) > MOST_PICKLE_BYTES:
            raise LearnerError(f"Its pickle has {len(pickled):,} bytes; an export's has less than a megabyte.")
        self.root = tree(pickled)

    def bytes_of(self, storage: Storage) -> bytes:
        """The bytes of a storage, held against the file's own checksum. Raises LearnerError if they are damaged."""
        return self._record(f"data/{storage.key}")

    def _record(self, name: str) -> bytes:
        try:
            return self._zip.read(self._folder + name)
        except (KeyError, EOFError, *_NO_ZIP) as error:
            said = f"Its record {shown(name)} is damaged: {shown(str(error))}. Copy the file again."
            raise LearnerError(said) from error


def tree(pickled: bytes) -> Any:
    """What a pickle describes, as data. Raises Refused for an opcode that no genuine export has."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count > MOST_OPCODES:
                raise LearnerError(f"Its pickle has more than {MOST_OPCODES:,} steps; an export's has some thousands.")
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise Refused(f"its pickle: it uses {opcode.name}, which exports do not.")
            action(machine, argument)
    except LearnerError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise LearnerError(f"Its pickle is damaged: {type(error).__name__}: {shown(str(error))}") from error
    if len(machine.stack) != 1:
        raise LearnerError("Its pickle is damaged: it does not end with one object.")
    return machine.stack[0]


def walk(root: Any) -> Iterator[Any]:
    """Every value of a tree once, parents first."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, Call):
            waiting += [value.function, value.arguments, value.keywords, value.state, value.entries, value.members]
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value


class _Machine:
    """The pickle machine of Python's pickletools, with inert results."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("the stack is too short")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def take_to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                taken = self.stack[place + 1 :]
                del self.stack[place:]
                return taken
        raise IndexError("no mark")

    def push(self, value: Any) -> None:
        self.stack.append(value)


def _plain(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(tuple(machine.take(count)))


def _get(machine: _Machine, argument: Any) -> None:
    machine.push(machine.memo[int(argument)])


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[int(argument)] = machine.stack[-1]


def _memoize(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _global(machine: _Machine, argument: Any) -> None:
    module, name = argument.split(" ", 1)
    machine.push(_name(module, name))


def _name(module: str, name: str) -> Name:
    # What people are shown and asked to vouch for must not be able to pass for something else.
    if len(module) + len(name) > MOST_NAME or not all(word.isidentifier() for word in f"{module}.{name}".split(".")):
        raise Refused(f"its pickle: it names {f'{module}.{name}'[:MOST_NAME]!a}, which can't be a name.")
    return Name(module, name)


def _stack_global(machine: _Machine, argument: Any) -> None:
    module, name = machine.take(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a name is no text")
    machine.push(_name(module, name))


def _call(machine: _Machine, argument: Any) -> None:
    function, arguments = machine.take(2)
    if not isinstance(arguments, tuple):
        raise TypeError("a call without arguments")
    machine.push(Call(function, arguments))


def _call_with_keywords(machine: _Machine, argument: Any) -> None:
    function, arguments, keywords = machine.take(3)
    if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
        raise TypeError("a call without arguments")
    machine.push(Call(function, arguments, keywords))


def _build(machine: _Machine, argument: Any) -> None:
    (state,) = machine.take(1)
    target = machine.stack[-1]
    if not isinstance(target, Call):
        what = target if isinstance(target, Name) else f"a {type(target).__name__}"
        raise Refused(f"its pickle: it changes {what}, which exports do not.")
    target.state = state


def _append(machine: _Machine, members: list[Any]) -> None:
    target = machine.stack[-1]
    (target.members if isinstance(target, Call) else target).extend(members)


def _set(machine: _Machine, pairs: list[Any]) -> None:
    target = machine.stack[-1]
    entries = target.entries if isinstance(target, Call) else target
    entries.update(zip(simple_keys(pairs[::2]), pairs[1::2], strict=True))


def _add(machine: _Machine, members: list[Any]) -> None:
    machine.stack[-1].update(simple_keys(members))


def _persistent(machine: _Machine, argument: Any) -> None:
    (about,) = machine.take(1)
    word, kind, key, _, numel = about if isinstance(about, tuple) and len(about) == 5 else (None,) * 5
    if word != "storage" or not isinstance(kind, Name) or not isinstance(key, str) or not isinstance(numel, int):
        raise TypeError("an unknown kind of record")
    machine.push(Storage(kind.name, key, numel))


def _dict(machine: _Machine, argument: Any) -> None:
    pairs = machine.take_to_mark()
    machine.push(dict(zip(simple_keys(pairs[::2]), pairs[1::2], strict=True)))


def simple_keys(values: Sequence[Any]) -> Sequence[Any]:
    """The keys of a table or the members of a set, if all of them are simple.

    Python hashes a tuple anew each time, with all that lies in it, and without a bound to how deep that is.
    """
    for value in values:
        if not all(_simple(part) for part in (value if isinstance(value, tuple) else (value,))):
            raise Refused(f"its pickle: it has a key of the kind {type(value).__name__}, as no export has it.")
    return values


def _simple(value: Any) -> bool:
    # Of whole numbers only those whose hashes differ.
    if isinstance(value, int):
        return abs(value) < sys.hash_info.modulus
    return value is None or isinstance(value, str | bytes | float | Name | Call)


_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "BINFLOAT", "FLOAT"), _plain),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"), _plain),
    **dict.fromkeys(("BINBYTES8", "BINSTRING", "SHORT_BINSTRING"), _plain),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "MARK": _constant(lambda: _MARK),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "POP": lambda machine, _: machine.take(1),
    "POP_MARK": lambda machine, _: machine.take_to_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "LIST": lambda machine, _: machine.push(machine.take_to_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.take_to_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "DICT": _dict,
    "FROZENSET": lambda machine, _: machine.push(frozenset(simple_keys(machine.take_to_mark()))),
    "APPEND": lambda machine, _: _append(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.take_to_mark()),
    "SETITEM": lambda machine, _: _set(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set(machine, machine.take_to_mark()),
    "ADDITEMS": lambda machine, _: _add(machine, machine.take_to_mark()),
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GET": _get,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "PUT": _put,
    "MEMOIZE": _memoize,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "NEWOBJ_EX": _call_with_keywords,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
