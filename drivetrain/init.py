"""A config file to begin with: every key with its meaning, those that were given set, and what the learner is.

Knows how a setting is written in TOML. Does not vouch for anything: the learner's hash is written as a comment unless
its owner gave it, since whoever writes a hash into ``trust`` lets that file's code run.
"""

import json
import textwrap
from datetime import date
from pathlib import Path
from typing import Any

from drivetrain.admit import inspect_learner
from drivetrain.config import NOT_IN_A_FILE, Config
from drivetrain.errors import SettingError, TrustError
from drivetrain.export import read_export
from drivetrain.store import Store

WIDTH = 100
HEAD = (
    "drivetrain's settings for one source. A key behind a # is not set, and shows its default or an example. Flags win "
    "over the environment (DRIVETRAIN_ROOT and so on), and that over this file."
)
VOUCHING = (
    "Vouching for an export means that fastai may unpickle it, which runs the code inside it. drivetrain reads an "
    "export as data and needs that only for one that holds code of its owner's. Once a hash stands here, no other "
    "export is opened. If the line below names the file that you exported (sha256sum export.pkl), take away its #."
)


def write_config(config: Config, file: str) -> dict[str, Any]:
    """Write a commented config file for the config's learner and images.

    Needs ``learner``, ``images``. Returns ``config`` (the file), ``sha256`` of the learner, and ``notes``: what is to
    be done before the file serves `drivetrain nightly`. Raises SettingError when the file is there already or can't be
    written, LearnerError when there is no such learner or it can't be served.
    """
    config.need("learner", "images")
    path = Path(file).expanduser()
    if path.exists():
        raise SettingError(f"{file} is there already, and is left as it is. Remove it, or give another: --config FILE")
    sha256, about, notes = _learner(config)
    if config.root is None:
        notes.append(f"set root in {file} before anything is scored")
    text = config_text(config, sha256, about)
    try:
        with path.open("x", encoding="utf-8") as written:
            written.write(text)
    except OSError as error:
        raise SettingError(f"{file} can't be written: {error.strerror}. Give another: --config FILE") from error
    return {"config": str(path), "sha256": sha256, "notes": notes}


def config_text(config: Config, sha256: str, about: str) -> str:
    """The file: every key exactly once, those that were given set, the others as comments."""
    keys = [key for key in Config.model_fields if key != "storage"]
    # A table of TOML ends what stands on its own, so storage comes last.
    blocks = [_comment(HEAD), *(_block(config, key, sha256, about) for key in keys), _storage(config)]
    return "\n\n".join(blocks) + "\n"


def _learner(config: Config) -> tuple[str, str, list[str]]:
    """The learner's hash, what it is in a few lines, and what its owner is to be told."""
    store = Store(config.storage)
    (uri,) = config.need("learner")
    _, sha256 = read_export(store, store.normalise(uri), config.trust)
    try:
        found = inspect_learner(config)
    except TrustError as error:
        why = str(error).splitlines()[0]
        return sha256, f"sha256 {sha256}\nIt can't be read as data, and needs trust (below).\n{why}", [
            f"the learner can't be read as data: see trust in the file. {why}"
        ]  # fmt: skip
    words = found["vocab"]
    classes = f"{len(words)} classes: {', '.join(words)}" if words else f"{found['outputs']} numbers"
    lines = [
        f"sha256 {sha256}, {found['bytes']:,} bytes",
        f"{found['architecture']}, {found['parameters']:,} parameters, {found['task'].replace('_', '-')}",
        classes,
    ]
    return sha256, "\n".join(lines), []


def _block(config: Config, key: str, sha256: str, about: str) -> str:
    """A key with its meaning."""
    field = Config.model_fields[key]
    text = [field.description or ""]
    if key in NOT_IN_A_FILE:
        return _comment("\n".join([*text, f"{key}: {NOT_IN_A_FILE[key]}"]))
    if key == "learner":
        text += about.splitlines()
    if key == "trust" and not config.trust:
        return "\n".join([_comment("\n".join([*text, VOUCHING])), f'# trust = ["{sha256}"]'])
    if key in config.model_fields_set:
        line = f"{key} = {_toml(getattr(config, key))}"
    elif field.default is not None:
        line = f"# {key} = {_toml(field.default)}"
    else:
        text.append("For example:")
        line = f"# {key} = {_toml(_typed(key, (field.examples or [''])[0]))}"
    return "\n".join([_comment("\n".join(text)), line])


def _storage(config: Config) -> str:
    """The options of the stores, as tables."""
    text = _comment(f"storage: {Config.model_fields['storage'].description}")
    tables = [
        "\n".join([f"[storage.{protocol}]", *(f"{key} = {_toml(value)}" for key, value in options.items())])
        for protocol, options in config.storage.items()
    ]
    example = '# [storage.s3]\n# endpoint_url = "https://s3.eu-central-1.amazonaws.com"'
    return "\n".join([text, *(tables or [example])])


def _typed(key: str, example: str) -> Any:
    """An example, which is what a shell is given, as the value that it becomes."""
    return getattr(Config.load(None, {}, **{key: example.strip("'")}), key)


def _toml(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    # TOML's texts, numbers, booleans and lists of them are JSON's; one letter more must be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    """A text as lines of comments. Names in a learner may hold any letter, and none of them ends a comment."""
    lines = [line for each in text.split("\n") for line in textwrap.wrap(_plain(each), WIDTH - 2) or [""]]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
