"""The runs of a plan, and which of them counts: the latest champion's, else the newest; and those of a scope.

Knows plans, runs, the champion and the challenger. Does not know what rows say.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from drivetrain.aliases import Alias, champions, history
from drivetrain.layout import Layout
from drivetrain.run import Run
from drivetrain.store import Store


@dataclass(frozen=True)
class Known:
    """What each plan of a source asks for: the names of all runs, and the learners that were champion, latest first."""

    runs: Sequence[str]
    champions: Sequence[str]


def known_of(store: Store, layout: Layout, source: str) -> Known:
    """What is known now, for callers that ask for many plans."""
    return Known(store.names(layout.runs), champions(history(store, layout, source, "champion")))


def committed_runs(
    store: Store, layout: Layout, source: str, kind: str, name: str, among: Iterable[str] | None = None
) -> list[Run]:
    """The committed runs of a plan, oldest first; of a run whose failed images were scored again only the newest.

    ``among``: the names of all runs, for callers that ask for many plans.
    """
    names = store.names(layout.runs) if among is None else among
    runs = []
    for run_id in names:
        if run_id.startswith(f"{source}-{name}-"):
            run = Run.find(store, layout, run_id)
            record = run.record
            if (record.source, record.kind, record.name) == (source, kind, name) and not record.retry_of:
                runs.append(run.newest())
    return sorted((run for run in runs if run.committed()), key=lambda run: (run.record.created, run.record.run_id))


def counting_run(
    store: Store,
    layout: Layout,
    source: str,
    kind: str,
    name: str,
    known: Known | None = None,
    *,
    but: str | None = None,
) -> Run | None:
    """The run of a plan that readers should take: the champion's newest.

    Else the newest of the champion before, and so on: a run that another learner made beside a champion was made to be
    looked at. The newest of any learner where no champion, of now or of before, has one.

    ``but``: a model_id whose runs are left out, for who asks what it is to be compared with.
    """
    known = known or known_of(store, layout, source)
    found = committed_runs(store, layout, source, kind, name, known.runs)
    runs = [run for run in found if run.record.model_id != but]
    newest = {run.record.model_id: run for run in runs}
    of_champions = (newest[each] for each in known.champions if each in newest)
    return next(of_champions, runs[-1] if runs else None)


def scope_name(night: str, scope: str) -> str:
    """The name of the plan that holds a night's images in a scope. Its kind is ``plan``, its manifest the night's."""
    return f"{night}-scope-{hashlib.sha256(scope.encode()).hexdigest()[:8]}"


def is_scope_name(name: str) -> bool:
    """Whether a plan's name is one that `scope_name` makes."""
    return re.fullmatch(r".+-scope-[0-9a-f]{8}", name) is not None


def reference_name(digest: str) -> str:
    """The name of the plan that holds a training set, by the digest of its images. Its kind is ``plan``."""
    return f"reference-{digest[:8]}"


def is_reference_name(name: str) -> bool:
    """Whether a plan's name is one that `reference_name` makes: its images are no stream of a source."""
    return name.startswith("reference-")


def scope_run(
    store: Store, layout: Layout, source: str, night: str, challenger: Alias, among: Iterable[str] | None = None
) -> Run | None:
    """The committed run of a challenger over its scope of a night, or None. Its rows are what readers get there."""
    if challenger.scope is None:
        return None
    runs = committed_runs(store, layout, source, "plan", scope_name(night, challenger.scope), among)
    return next((run for run in reversed(runs) if run.record.model_id == challenger.model_id), None)
