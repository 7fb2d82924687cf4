"""Which learner is a source's champion, and which its challenger: numbered records, of which the highest counts.

Knows records. Does not know how a learner gets there. A record is created once; going back is one more record, so that
the history says all of it. A learner that an alias names is no learner that anybody vouched for: trust lies in the
config alone.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from drivetrain.errors import RunError
from drivetrain.layout import Layout
from drivetrain.root import from_json, to_json
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
    names = [name for name in store.names(layout.aliases(source, alias)) if name.removesuffix(".json").isdigit()]
    found = [from_json(store, f"{layout.aliases(source, alias)}/{name}") for name in sorted(names)]
    return tuple(Alias(**record) for record in found if record)


def current(store: Store, layout: Layout, source: str, alias: Name) -> Alias | None:
    """The record that counts, or None if the alias never named a learner or names none now."""
    found = history(store, layout, source, alias)
    return found[-1] if found and found[-1].model_id else None


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
