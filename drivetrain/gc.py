"""What lies in a root and nobody refers to: found, told, and removed when asked to.

Knows what each file of a root is referred to by. Never touches what is committed, nor what somebody may still need: a
run that its own command would finish is only listed. A run is claimed before it is removed, by creating its commit.json
as a tombstone: a commit that comes late loses, and a command that goes on with it is told.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from drivetrain.config import Config
from drivetrain.errors import SettingError
from drivetrain.heartbeat import alive
from drivetrain.images import ObjectInfo
from drivetrain.layout import Layout
from drivetrain.manifest import find_plan
from drivetrain.root import from_json, open_root
from drivetrain.run import TOMBSTONE, Run
from drivetrain.several import several_at_once
from drivetrain.store import Store

KEPT_DAYS = 7


@dataclass(frozen=True)
class Waste:
    """Objects that nobody refers to. ``run``: the run that must be claimed first."""

    what: str
    path: str
    objects: tuple[ObjectInfo, ...]
    run: Run | None = None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        size = sum(each.size for each in self.objects)
        return {"what": self.what, "path": self.path, "objects": len(self.objects), "bytes": size}


def collect_garbage(config: Config, *, delete: bool = False) -> dict[str, Any]:
    """Find what nobody refers to and nobody touched for KEPT_DAYS days; remove it with ``delete``.

    Needs ``root``. Returns ``removable`` (or ``removed``), and ``resumable``: runs that their own command would finish.
    One of these is removed only if ``run`` names it. Raises SettingError when that run is committed or at work.
    """
    store, layout = open_root(config, existing=True)
    named = _named(store, layout, config.run) if config.run else None
    runs = list(_uncommitted(store, layout))
    kept = [run for run in runs if run.record.run_id != config.run and _resumes(store, layout, run)]
    found = [
        *(waste for run in runs if run not in kept for waste in _left_of(store, run)),
        *_manifests(store, layout),
        *_temporaries(store, layout),
    ]
    waste = [each for each in found if each.objects and (_old(each.objects) or _is(each, named))]
    resumable = [Waste("run", run.paths.folder, _objects(store, run.paths.folder)).record() for run in kept]
    removed = [each.record() for each in waste if not delete or _remove(store, each)]
    return {"removed" if delete else "removable": removed, "resumable": resumable, "root": layout.root}


def _named(store: Store, layout: Layout, run_id: str) -> Run:
    run = Run.find(store, layout, run_id)
    if run.committed():
        raise SettingError(f"Run {run_id} is committed; what is committed is never removed.")
    status = from_json(store, run.paths.status)
    if status and alive(status):
        raise SettingError(f"Run {run_id} is being scored by process {status.get('pid')} on {status.get('host')}.")
    return run


def _is(waste: Waste, run: Run | None) -> bool:
    return bool(run and waste.run and waste.run.record.run_id == run.record.run_id)


def _old(objects: tuple[ObjectInfo, ...]) -> bool:
    """Whether nothing of it was touched lately. What bears no date is never old."""
    before = datetime.now(UTC) - timedelta(days=KEPT_DAYS)
    return all(each.mtime is not None and each.mtime < before for each in objects)


def _objects(store: Store, folder: str) -> tuple[ObjectInfo, ...]:
    return tuple(store.find(folder))


def _uncommitted(store: Store, layout: Layout) -> Iterator[Run]:
    for run_id in store.names(layout.runs):
        if store.exists(layout.run(run_id).record) and not (run := Run.find(store, layout, run_id)).committed():
            yield run


def _resumes(store: Store, layout: Layout, run: Run) -> bool:
    """Whether the run's own command would go on with it: its plan is there, and nobody claimed it."""
    plan = find_plan(store, layout, run.record.source, run.record.kind, run.record.name)
    return run.removed() is None and plan is not None and plan.digest == run.record.manifest


def _left_of(store: Store, run: Run) -> Iterator[Waste]:
    """What is to go of a run that nothing leads to any more, or that was claimed already."""
    objects = _objects(store, run.paths.folder)
    rest = tuple(each for each in objects if each.uri not in (run.paths.record, run.paths.commit))
    if rest:
        yield Waste("run", run.paths.folder, rest, run)
    elif run.removed():
        # Claimed long enough ago that nobody comes late: the same command may begin it afresh.
        yield Waste("claim", run.paths.folder, objects)


def _manifests(store: Store, layout: Layout) -> Iterator[Waste]:
    """Manifests that lost to the one which their plan names. Where no plan is yet, one may still come."""
    for source in store.names(layout.sources):
        for kind in ("night", "plan"):
            for name in store.names(layout.plan(source, kind, "x").folder.rsplit("/", 1)[0]):
                paths, plan = layout.plan(source, kind, name), find_plan(store, layout, source, kind, name)
                if plan is None:
                    continue
                used = paths.manifest(plan.digest)
                for each in store.names(paths.folder):
                    folder = f"{paths.folder}/{each}"
                    if each.startswith("manifest-") and folder != used:
                        yield Waste("manifest", folder, _objects(store, folder))


def _temporaries(store: Store, layout: Layout) -> Iterator[Waste]:
    """What processes that were killed were writing to a local disk."""
    if store.is_local(layout.root):
        for each in store.find(layout.root):
            if re.search(r"/\.[0-9a-f]{32}\.tmp$", each.uri):
                yield Waste("temporary", each.uri, (each,))


def _remove(store: Store, waste: Waste) -> bool:
    """Remove it; False when it turned out to be somebody's after all."""
    if waste.run and not waste.run.remove():
        return False
    # run.json before the tombstone: a claimed run is never without it.
    several_at_once(store.delete, [each.uri for each in waste.objects if not each.uri.endswith(f"/{TOMBSTONE}")])
    several_at_once(store.delete, [each.uri for each in waste.objects if each.uri.endswith(f"/{TOMBSTONE}")])
    return True
