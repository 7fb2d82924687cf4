"""Which names a vouched file may have unpickled: a help against accidents behind the hash, and no boundary.

The boundary is the hash that somebody vouched for. Whoever does so means to run what is inside: classes of its own,
also as the bytecode that cloudpickle made. So names of installed packages and of modules of one's own are let pass, but
for those listed here, which run or load whatever they are given; any installation has more of them than a list can
hold. Of the standard library only what learners are made of passes: a file that asks for ``os.system`` or
``builtins.eval`` is not what somebody exported, and is refused, wherever it says the name lies (``torch.os.system``).
Neither the code inside a function is looked at nor what a package's function does when it is called, and cloudpickle's
``subimport`` may import any module, since functions of one's own do.
"""

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from types import ModuleType
from typing import Any

from drivetrain.errors import LearnerError
from drivetrain.pickled import shown

# Modules of the standard library that do nothing to the world outside.
_MODULES = frozenset([
    "_codecs", "abc", "array", "bisect", "calendar", "cmath", "collections", "colorsys", "copy", "dataclasses",
    "datetime", "decimal", "enum", "fractions", "functools", "heapq", "itertools", "math", "numbers", "pathlib",
    "posixpath", "random", "re", "statistics", "string", "struct", "time", "types", "typing", "uuid", "zoneinfo",
])  # fmt: skip
# Single names of others.
_NAMES = frozenset([
    "copyreg._reconstructor", "copyreg.__newobj__", "inspect.Parameter", "inspect.Signature", "inspect._empty",
    "inspect._ParameterKind", "_operator.getitem", "_operator.or_", "_operator.itemgetter",
])  # fmt: skip
# Functions of Python itself, beside its types. (fastai's Learner keeps print.)
_BUILTIN_FUNCTIONS = frozenset([
    "abs", "all", "any", "bool", "callable", "chr", "divmod", "format", "hash", "id", "isinstance", "issubclass",
    "iter", "len", "max", "min", "next", "ord", "pow", "print", "repr", "round", "sorted", "sum",
])  # fmt: skip
# Corners of packages that load or run whatever they are given, and whole packages that no learner holds anything of.
_NEVER = (
    "torch.hub.", "torch.serialization.", "torch.utils.cpp_extension.", "torch.utils.collect_env.", "torch.package.",
    "torch.fx.", "numpy.f2py.", "numpy.testing.", "numpy.load", "fastcore.basics.exec_", "fastcore.xtras.run",
    "fastcore.xtras.load_pickle", "pandas.read_pickle", "pandas.eval", "typing.get_type_hints", "typing.ForwardRef",
    "IPython.", "jinja2.", "joblib.", "pip.", "pkg_resources.", "setuptools.", "sympy.",
)  # fmt: skip


def standing(module: str, name: str) -> tuple[str, str]:
    """Where a name of the file lies today: protocol 2 writes it as Python 2 did."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    module = IMPORT_MAPPING.get(module, module)
    # Where Python 3.13 has its paths.
    return ("pathlib" if module == "pathlib._local" else module), name


def checked(found: Any, module: str, name: str) -> Any:
    """What a vouched file's name led to, if it may; Python's getattr as one that looks as well.

    Raises LearnerError for what no learner needs.
    """
    home = getattr(found, "__module__", None)
    own_name = getattr(found, "__qualname__", None)
    where = f"{home}.{own_name}" if isinstance(home, str) and isinstance(own_name, str) else f"{module}.{name}"
    if isinstance(found, ModuleType) or not (_harmless(where, found) and _harmless(f"{module}.{name}", found)):
        raise LearnerError(
            f"Not opened, although it is vouched for: it names {shown(f'{module}.{name}')}, which no learner needs.\n"
            "Is it the file that you exported? If your own code calls that, do so in a function of yours, and export "
            "again."
        )
    return _getattr if found is getattr else found


def _harmless(where: str, found: Any) -> bool:
    top = where.split(".", 1)[0]
    if where.startswith(_NEVER):
        return False
    if top == "builtins":
        return isinstance(found, type) or found in (getattr, Ellipsis, NotImplemented) or _listed_builtin(where)
    if top in sys.stdlib_module_names and top != "__main__":
        # functools.reduce says of itself that it lies in _functools.
        return top in _MODULES or top.removeprefix("_") in _MODULES or where in _NAMES
    return True


def _listed_builtin(where: str) -> bool:
    return where.removeprefix("builtins.") in _BUILTIN_FUNCTIONS


def _getattr(thing: Any, name: str, *default: Any) -> Any:
    """The file's getattr: (PILImage, "create"). Nothing of a module, and no way into Python's insides."""
    owner = getattr(thing, "__qualname__", type(thing).__qualname__)
    if name == "__new__" and isinstance(thing, type):
        return thing.__new__  # as an enum of one's own has it
    if isinstance(thing, ModuleType) or name.startswith("__"):
        raise LearnerError(f"Not opened, although it is vouched for: it asks {shown(owner)} for {shown(name)}.")
    found = getattr(thing, name, *default)
    return checked(found, str(getattr(thing, "__module__", type(thing).__module__)), f"{owner}.{name}")
