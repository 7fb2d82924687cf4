"""Whose rows are a source's current scores: the counting run of each plan, and each image once.

Knows plans, runs and aliases, and lays manifests over each other. Does not know where the rows go. Every night and
every plan of `score` is there with the run that counts for it (`planruns`). Of an image in several plans the row of the
newest plan counts, since that read it last. Where a challenger has a scope, its run of a night's scope plan is newer
than the night and older than the next one: its rows take the place of the champion's, and of nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.aliases import Alias, Name, champions, history, latest, unless_champion
from drivetrain.errors import RunError
from drivetrain.images import merged, uris, without
from drivetrain.layout import Layout
from drivetrain.manifest import find_plan, manifest_images
from drivetrain.planruns import Known, counting_run, is_reference_name, is_scope_name, scope_run
from drivetrain.run import Run
from drivetrain.schema import row_schema
from drivetrain.several import in_turn, several_at_once
from drivetrain.store import Store

# Those of any learner, whatever the length of its embeddings.
CURRENT = row_schema(0).append(pa.field("night", pa.string()))
# All records of the champion, and of the challenger.
_Stand = tuple[tuple[Alias, ...], tuple[Alias, ...]]


@dataclass(frozen=True)
class Member:
    """A run with rows among the current scores.

    ``plan`` is its kind and name (``night/2026-01-02``), ``night`` the name alone; ``scoped`` marks a challenger's run
    that lies over that plan. ``first`` and ``last`` are uris, empty without an image.
    """

    plan: str
    night: str
    scoped: bool
    run_id: str
    manifest: str
    images: int
    created: str
    first: str
    last: str

    @property
    def key(self) -> str:
        """What it is, whichever run does it."""
        return f"{self.plan} scope" if self.scoped else self.plan

    @property
    def order(self) -> tuple[str, str, bool]:
        """Where it stands: the rows of a later one count."""
        return self.created, self.plan, self.scoped

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def may_share_with(self, other: "Member") -> bool:
        """Whether the uris of both lie in ranges that overlap."""
        return bool(self.images and other.images and self.first <= other.last and other.first <= self.last)


Members = Mapping[str, Member]


def members_of(store: Store, layout: Layout, source: str, before: Members) -> Members:
    """The members of a source's current scores by their keys. ``before``: those known, which saves reading manifests.

    A promotion in the middle would show half of the nights under one champion, half under the other: then it looks
    again.
    """
    while True:
        stand = _stand(store, layout, source)
        found = _members_of(store, layout, source, before, stand)
        if stand == _stand(store, layout, source):
            return found


def _stand(store: Store, layout: Layout, source: str) -> _Stand:
    aliases: tuple[Name, ...] = ("champion", "challenger")
    champion, challenger = several_at_once(partial(history, store, layout, source), aliases)
    return champion, challenger


def _members_of(store: Store, layout: Layout, source: str, before: Members, stand: _Stand) -> Members:
    folders = layout.runs, layout.nights(source), layout.plans(source, "plan")
    runs_there, nights, plans = several_at_once(store.names, folders)
    known = Known(runs_there, champions(stand[0]))
    challenger = unless_champion(latest(stand[1]), latest(stand[0]))
    streams = [name for name in plans if not is_scope_name(name) and not is_reference_name(name)]
    named = [("night", name) for name in nights] + [("plan", name) for name in streams]

    def of(plan: tuple[str, str]) -> list[Member]:
        run = counting_run(store, layout, source, *plan, known)
        frozen = find_plan(store, layout, source, *plan) if run else None
        if run is None or frozen is None:
            return []
        apart = challenger if plan[0] == "night" or plan[1] not in nights else None
        over = scope_run(store, layout, source, plan[1], apart, runs_there) if apart else None
        runs = [(run, False), (over, True)] if over else [(run, False)]
        return [_member("/".join(plan), each, scoped, frozen.created, before) for each, scoped in runs]

    return {member.key: member for found in several_at_once(of, named) for member in found}


def _member(plan: str, run: Run, scoped: bool, created: str, before: Members) -> Member:
    record = run.record
    night = plan.split("/", 1)[1]
    unread = Member(plan, night, scoped, record.run_id, record.manifest, record.images, created, "", "")
    known = before.get(unread.key)
    if known and known.manifest == record.manifest:
        ends = known.first, known.last
    else:
        ends = _ends(run) if record.images else ("", "")
    return Member(**{**asdict(unread), "first": ends[0], "last": ends[1]})


def _ends(run: Run) -> tuple[str, str]:
    """The first and the last uri of a manifest that has some."""
    first, last = several_at_once(run.shard, (0, run.record.shards - 1))
    return first["uri"][0].as_py(), last["uri"][-1].as_py()


def stale_plans(store: Store, layout: Layout, before: Members, now: Members) -> set[str]:
    """The plans whose rows among the current scores are others than before.

    Those whose run changed; and where a plan came, went or froze other images, the older plans that share images
    with it.
    """
    changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    stale = {key.removesuffix(" scope") for key in changed}
    for key in changed:
        old, new = before.get(key), now.get(key)
        if old and new and (old.manifest, old.order) == (new.manifest, new.order):
            continue
        for moved in filter(None, (old, new)):
            for other in now.values():
                below = other.plan not in stale and other.order < moved.order and other.may_share_with(moved)
                if below and _share(store, layout, other, moved):
                    stale.add(other.plan)
    return stale


def _share(store: Store, layout: Layout, one: Member, other: Member) -> bool:
    alone = without(_images(store, layout, one), _images(store, layout, other), uris)
    return sum(map(len, alone)) < one.images


def _images(store: Store, layout: Layout, member: Member) -> Iterator[pa.RecordBatch]:
    return manifest_images(store, layout.run(member.run_id).manifest)


def rows_of(store: Store, layout: Layout, plan: str, members: Members) -> Iterator[pa.RecordBatch]:
    """The rows that a plan has among the current scores, schema CURRENT, in the order of their uris run by run.

    In memory are some parts at a time, and of the newer plans' manifests what overlaps them.
    Raises RunError when one of its runs is no longer committed.
    """
    for member in sorted((each for each in members.values() if each.plan == plan), key=lambda each: each.order):
        newer = [each for each in members.values() if each.order > member.order and each.may_share_with(member)]
        batches = _parts(Run.find(store, layout, member.run_id), member.night)
        yield from without(batches, merged(_images(store, layout, each) for each in newer), uris) if newer else batches


def part_bytes(store: Store, layout: Layout, plan: str, members: Members) -> int:
    """About how large the rows of a plan are: the size of its run's parts."""
    run_id = members[plan].run_id
    return sum(sum(batch["size"].to_pylist()) for batch in store.listed(layout.run(run_id).parts))


def _parts(run: Run, night: str) -> Iterator[pa.RecordBatch]:
    """The parts of a committed run, one batch each, with the night's name beside."""
    commit = run.committed()
    if commit is None:
        raise RunError(f"The run {run.record.run_id} is no longer committed: it was removed.")
    read: Iterable[pa.Table] = in_turn(partial(_part, run), sorted(commit.parts))
    for rows in read:
        if len(rows):
            named = rows.append_column("night", pa.array([night] * len(rows), pa.string()))
            yield named.cast(CURRENT).combine_chunks().to_batches()[0]


def _part(run: Run, name: str) -> pa.Table:
    # In one request: nearly all columns are wanted.
    data, _ = run.store.fetch(f"{run.paths.parts}/{name}")
    rows = pq.read_table(pa.BufferReader(data), columns=row_schema(0).names)
    return rows.replace_schema_metadata(None)
