"""Which learner is a source's champion, and which its challenger: numbered records, of which the highest counts.

Knows records, and which images a challenger's scope holds. Does not know how a learner gets there. A record is created
once; going back is one more record, so that the history says all of it. A learner that an alias names is no learner
that anybody vouched for: trust lies in the config alone.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from drivetrain.errors import RunError, SettingError
from drivetrain.layout import Layout
from drivetrain.root import from_json, to_json
from drivetrain.several import several_at_once
from drivetrain.store import Store

Name = Literal["champion", "challenger"]
# Two people may promote at once; more than so many in a row is something else.
MOST_TRIES = 20


@dataclass(frozen=True)
class Alias:
    """One record of an alias. ``model_id`` None: nobody (a challenger that was taken away, or became champion).

    ``scope`` is the part of the bucket that a challenger scores for readers: a regular expression on the uri, or a
    share such as ``0.1``; None stands for no part. ``before`` is the number of the record that a rollback went back to.
    """

    source: str
    alias: Name
    number: int
    model_id: str | None
    sha256: str | None
    scope: str | None
    reason: str
    before: int | None
    made: str

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def history(store: Store, layout: Layout, source: str, alias: Name) -> tuple[Alias, ...]:
    """All records of an alias, oldest first."""
    folder = layout.aliases(source, alias)
    names = [name for name in store.names(folder) if name.removesuffix(".json").isdigit()]
    found = several_at_once(lambda name: from_json(store, f"{folder}/{name}"), sorted(names))
    return tuple(Alias(**record) for record in found if record)


def current(store: Store, layout: Layout, source: str, alias: Name) -> Alias | None:
    """The record that counts, or None if the alias never named a learner or names none now."""
    return latest(history(store, layout, source, alias))


def latest(records: Sequence[Alias]) -> Alias | None:
    """The record that counts of an alias's whole history, oldest first."""
    return records[-1] if records and records[-1].model_id else None


def champions(records: Sequence[Alias]) -> tuple[str, ...]:
    """The model_ids of a source's champion and of those before, the latest first, each once; of its whole history."""
    return tuple(dict.fromkeys(record.model_id for record in reversed(records) if record.model_id))


def name_next(
    store: Store,
    layout: Layout,
    source: str,
    alias: Name,
    *,
    model_id: str | None,
    sha256: str | None,
    reason: str,
    scope: str | None = None,
    before: int | None = None,
) -> Alias:
    """Create the next record of an alias. Of two writers at once both get a record, one after the other."""
    for _ in range(MOST_TRIES):
        known = history(store, layout, source, alias)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        number = known[-1].number + 1 if known else 1
        record = Alias(source, alias, number, model_id, sha256, scope, reason, before, now)
        if store.create(layout.alias(source, alias, number), to_json(record.record())):
            return record
    raise RunError(f"No record of the {alias} of {source} could be created: others were faster {MOST_TRIES} times.")


def name_first(store: Store, layout: Layout, source: str, *, model_id: str, sha256: str, reason: str) -> Alias:
    """The champion of a source: the one that there is, else this learner as record 1. Of two writers one is first."""
    if found := current(store, layout, source, "champion"):
        return found
    now = datetime.now(UTC).isoformat(timespec="seconds")
    first = Alias(source, "champion", 1, model_id, sha256, None, reason, None, now)
    store.create(layout.alias(source, "champion", 1), to_json(first.record()))
    found = current(store, layout, source, "champion")
    assert found is not None
    return found


def challenger_of(store: Store, layout: Layout, source: str) -> Alias | None:
    """The challenger of a source, or None. One that has become champion is none any more."""
    found = current(store, layout, source, "challenger")
    return unless_champion(found, current(store, layout, source, "champion"))


def unless_champion(challenger: Alias | None, champion: Alias | None) -> Alias | None:
    """The challenger, but None if it has become champion."""
    return None if challenger and champion and challenger.model_id == champion.model_id else challenger


def one_before(records: Sequence[Alias]) -> Alias | None:
    """The record that going back leads to: another learner's, the one that the current one took over from.

    ``records``: a whole history, oldest first. What was gone back from is left out, so that going back twice leads
    further back and not to and fro.
    """
    taken: list[Alias] = []
    for record in records:
        while record.before is not None and taken and taken[-1].number > record.before:
            taken.pop()
        if record.before is None:
            taken.append(record)
    return next((each for each in reversed(taken) if each.model_id != taken[-1].model_id), None)


def check_scope(scope: str) -> str:
    """The scope, if it is one: a share between 0 and 1, or a regular expression. Raises SettingError if not."""
    if not scope:
        raise SettingError("--scope: expected a share such as 0.1 or a regular expression, found nothing.")
    if _is_number(scope):
        if not 0 < _share(scope) < 1:
            raise SettingError(f"--scope {scope}: a share lies between 0 and 1, e.g. 0.1. For all images leave it out.")
        return scope
    try:
        re.compile(scope)
    except re.error as error:
        raise SettingError(f"--scope {scope}: expected a share such as 0.1 or a regular expression: {error}") from error
    return scope


def in_scope(uris: Iterable[str], scope: str) -> list[bool]:
    """Which images lie in a scope, by uri.

    A share is chosen by the hash of the uri alone: the same images fall in on every night and every machine, and a
    larger share holds the smaller one. Anything else is a regular expression that is searched for in the uri.
    """
    if _is_number(scope):
        below = _share(scope) * 2**64
        return [int.from_bytes(hashlib.sha256(uri.encode()).digest()[:8], "big") < below for uri in uris]
    wanted = re.compile(scope)
    return [wanted.search(uri) is not None for uri in uris]


def _is_number(scope: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9.]+\s*%?", scope) is not None


def _share(scope: str) -> float:
    try:
        return float(scope)
    except ValueError:
        # 10%, or two dots: out of every range.
        return -1.0
