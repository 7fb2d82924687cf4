"""Which Python compiled the code inside a vouched file, as far as it can be told before anything of it runs.

Knows how cloudpickle takes a function along. Bytecode holds nothing of the version that wrote it, and another Python
crashes on it; but the instructions that a version has, and the room that it leaves behind each of them, are its own.
"""

import opcode
from typing import Any

from drivetrain.pickled import Call, PickledFile, shown, walk

_CODE = {"types.CodeType", "__builtin__.code", "builtins.code"}
# How many values 3.11 makes a code object of, and which of them is the bytecode.
_ARGUMENTS, _BYTECODE = 18, 6


def foreign_code(file: PickledFile) -> str:
    """The name of a function in the file that another Python's minor version compiled, or an empty text."""
    for value in walk(file.root):
        if isinstance(value, Call) and _makes_code(value) and not _is_ours(value.arguments):
            # Every version has the file's name first, and the function's behind it.
            words = [each for each in value.arguments if isinstance(each, str)]
            return shown(words[1] if len(words) > 1 else "a function")
    return ""


def _makes_code(call: Call) -> bool:
    makes = call.function
    if isinstance(makes, Call) and makes.name.endswith("._builtin_type"):
        return makes.arguments == ("CodeType",)
    return call.name in _CODE


def _is_ours(arguments: tuple[Any, ...]) -> bool:
    if len(arguments) != _ARGUMENTS:
        return False
    code = arguments[_BYTECODE]
    # Protocol 2 has no bytes, and writes them as text.
    if isinstance(code, Call) and code.name == "_codecs.encode" and isinstance(code.arguments[0], str):
        code = code.arguments[0].encode("latin1", "replace")
    return isinstance(code, bytes) and _is_bytecode(code)


def _is_bytecode(code: bytes) -> bool:
    """Whether this Python could have compiled it: known instructions, each with its own number of empty caches."""
    place, resumes = 0, False
    while place < len(code):
        name = opcode.opname[code[place]]
        caches: int = opcode._inline_cache_entries[code[place]]  # type: ignore[attr-defined]
        behind = place + 2 * (1 + caches)
        if name.startswith("<") or name == "CACHE" or any(code[place + 2 : behind]):
            return False
        place, resumes = behind, resumes or name == "RESUME"
    return resumes and place == len(code)
