"""Which packages are installed here, whether they fit, and what to type when one is missing.

Knows names and versions, from the packages' own records. Imports none of them: a package that can't be imported is
what this room is asked about.
"""

import platform
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec

from packaging.requirements import InvalidRequirement, Requirement

# What a job's result depends on, and what people are asked for first.
SHOWN = ("drivetrain", "torch", "torchvision", "fastai", "openvino", "ray", "s3fs")
# Modules that are installed under another name.
PIP_NAMES = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn", "skimage": "scikit-image",
    "yaml": "PyYAML", "bs4": "beautifulsoup4",
}  # fmt: skip


def versions() -> dict[str, str]:
    """Python's version and those of the packages that matter most; ``missing`` for one that isn't installed."""
    return {"python": platform.python_version()} | {name: version_of(name) or "missing" for name in SHOWN}


def version_of(package: str) -> str | None:
    """The version of an installed package by its pip name, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def misfits() -> list[tuple[Requirement, str]]:
    """What drivetrain requires and does not find here: the requirement, and the version found or ``none``."""
    found = []
    for line in requires("drivetrain") or []:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        here = version_of(wanted.name)
        if here is None or not wanted.specifier.contains(here, prereleases=True):
            found.append((wanted, here or "none"))
    return found


def pip_name(module: str) -> str:
    """What pip calls the package of a module: from what is installed, else the module's own first name."""
    top = module.split(".", 1)[0]
    return PIP_NAMES.get(top) or next(iter(packages_distributions().get(top, ())), top)


def how_to_install(name: str, error: ImportError) -> str:
    """What to say when importing ``name`` (module.symbol) failed: the cause, and on its own line what to type."""
    # The module that is missing may be one that the wanted one imports.
    absent = error.name or name.rpartition(".")[0]
    package = pip_name(absent)
    if here := version_of(package):
        return f"The export needs {name}, which {package} {here} lacks ({error}).\n{_other_version(package)}"
    return (
        f"The export needs {name}, and {absent.split('.', 1)[0]} is not installed here ({error}).\n"
        "Is it a file of your own? Copy it to every node and type   export PYTHONPATH=FOLDER_OF_THE_FILE\n"
        f"Is it a package? Type   pip install {package}   on every node."
    )


def how_to_change(name: str) -> str:
    """What to say when the module is there and its symbol ``name`` is not: the cause, and what to type."""
    package = pip_name(name)
    here = f"{package} {version_of(package) or 'here'}"
    return f"The export needs {name}, which {here} lacks.\n{_other_version(package)}"


def absent_module(name: str) -> str | None:
    """The first name of ``name`` (module.symbol) if no such module is here, else None. Imports nothing.

    No command goes with it: the name may come out of a file that nobody vouched for, and whoever wrote that could have
    put a package of this name where pip finds it.
    """
    top, dot, _ = name.partition(".")
    try:
        return top if dot and top.isidentifier() and find_spec(top) is None else None
    except (ValueError, ImportError):
        return None  # __main__ has no spec


def _other_version(package: str) -> str:
    return (
        f"Type   pip install {package}==VERSION   on every node, with the version of the machine that trained it "
        f"(type there   pip show {package})."
    )
