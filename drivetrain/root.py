"""A root: where drivetrain keeps everything, and the JSON records in it.

Knows that a folder or a bucket prefix is a root, and of which schema. Does not know what its records mean.
"""

import json
import math
from typing import Any

from drivetrain.config import Config
from drivetrain.errors import SettingError
from drivetrain.layout import Layout
from drivetrain.overlay import Overlay
from drivetrain.schema import SCHEMA_MAJOR
from drivetrain.store import Store


def store_of(config: Config) -> Store:
    """The store that the config's command works on: under ``dry_run`` one that writes nothing."""
    return Overlay(config.storage) if config.dry_run else Store(config.storage)


def open_root(config: Config, *, existing: bool = False, dry_runs: bool = False) -> tuple[Store, Layout]:
    """The store and the layout of the config's root, marked as a root of this schema at first use.

    With ``existing`` nothing is written, for commands that only make sense on a root that is there. ``dry_runs``: the
    caller knows what to do under ``dry_run``, when whatever is written stays in memory.
    Raises SettingError when that is missing, when the root was written by another major version of the schema, or when
    a dry run is asked for of who knows none.
    """
    if config.dry_run and not dry_runs:
        raise SettingError(
            "dry_run: only score, rescore and nightly can say beforehand what they would do. Take it out of the config "
            "file or the environment for this command."
        )
    store = store_of(config)
    (root,) = config.need("root")
    layout = Layout(store.normalise(root))
    if layout.root.startswith("memory://") and config.actors != 0:
        raise SettingError("memory:// lives in one process: use --actors 0, or another --root.")
    found = from_json(store, layout.marker)
    if found is None and existing:
        raise SettingError(f"No drivetrain root at {layout.root}: nothing was scored there yet, or --root is mistyped.")
    if found is None:
        store.create(layout.marker, to_json({"drivetrain": "root", "schema": SCHEMA_MAJOR}))
    elif found.get("schema") != SCHEMA_MAJOR:
        raise SettingError(
            f"{layout.root} holds schema {found.get('schema')} and this drivetrain writes schema {SCHEMA_MAJOR}. "
            "Give another --root, or install the drivetrain that wrote it."
        )
    return store, layout


def to_json(record: dict[str, Any]) -> bytes:
    """A record as the bytes of a JSON file, keys in the record's order; a number that is not finite is null."""
    return (json.dumps(finite(record), indent=1, ensure_ascii=False, default=str, allow_nan=False) + "\n").encode()


def finite(value: Any) -> Any:
    """A record for JSON, which knows neither NaN nor infinity: with null in their place, at any depth."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(store: Store, uri: str) -> dict[str, Any] | None:
    """A JSON file as a record, or None if there is none."""
    try:
        record: dict[str, Any] = json.loads(store.read(uri))
    except FileNotFoundError:
        return None
    return record
