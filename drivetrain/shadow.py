"""A learner beside the champion: the same images of a night, or a scope of them, scored with it too, and compared.

Knows the champion's run of a night. Nothing that happens here fails that night: it is done and reported.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from drivetrain import site
from drivetrain.admit import admit_known
from drivetrain.aliases import challenger_of, in_scope
from drivetrain.comparing import compare_and_publish, known_comparison, said_of
from drivetrain.config import Config
from drivetrain.console import say
from drivetrain.errors import DrivetrainError, Terminated, came_of
from drivetrain.export import LearnerInfo
from drivetrain.images import Images
from drivetrain.layout import Layout
from drivetrain.manifest import Plan, find_plan, freeze, manifest_images
from drivetrain.named import named_learner
from drivetrain.planruns import scope_name
from drivetrain.run import Run
from drivetrain.score import begin_run, finish_run
from drivetrain.store import Store
from drivetrain.table import keep_table_current

Found = TypeVar("Found")


def score_beside(store: Store, layout: Layout, plan: Plan, champion: Run, config: Config) -> dict[str, Any]:
    """Score a night with the source's challenger, in its scope, or else with the config's shadow; compare the two.

    Returns ``shadow``, ``shadow_run_id``, ``scope``, ``comparison`` and ``agreement``; nothing where there is nobody to
    score with; and ``notes``, the reason, when it went wrong. The same night again resumes.
    """
    result, notes = _or_notes(lambda: _scored(store, layout, plan, champion, config))
    return result or ({"notes": notes} if notes else {})


def begin_beside(
    store: Store, layout: Layout, plan: Plan, champion: Run, config: Config
) -> tuple[Run | None, list[str]]:
    """The run that `score_beside` would finish, for a forecast: begun over a store that writes nothing.

    None where there is nobody to score with, or where it went wrong, with notes that say why.
    """
    found, notes = _or_notes(lambda: _begun(store, layout, plan, champion, config))
    return (found[0] if found else None), notes


def _or_notes(story: Callable[[], Found]) -> tuple[Found | None, list[str]]:
    """What a story returns, or why it came to no end."""
    try:
        return story(), []
    except Exception as error:
        if came_of(error, Terminated, KeyboardInterrupt):
            raise
        told = isinstance(error, (DrivetrainError, OSError))
        why = str(error) if told else f"{type(error).__name__}: {error}"
        return None, [f"Nothing was scored beside the champion: {why}"]


def _begun(store: Store, layout: Layout, plan: Plan, champion: Run, config: Config) -> tuple[Run, str | None] | None:
    """The run beside the champion, and its scope; None where there is nobody or nothing to score."""
    found = _who(store, layout, plan, config)
    if found is None:
        return None
    info, scope = found
    if info.model_id == champion.record.model_id:
        say(f"The shadow {info.model_id} is the champion itself; nothing to compare.")
        return None
    part = scope_plan(store, layout, plan, scope) if scope else plan
    if not part.images:
        return None
    say(f"Beside the champion: {info.model_id}{f' in the scope {scope}' if scope else ''}, {part.images:,} images.")
    return begin_run(store, layout, part, info, config).newest(), scope


def _scored(store: Store, layout: Layout, plan: Plan, champion: Run, config: Config) -> dict[str, Any]:
    begun = _begun(store, layout, plan, champion, config)
    if begun is None:
        return {}
    run, scope = begun
    commit = finish_run(run, config)
    notes = keep_table_current(store, layout, plan.source) if scope else []
    about: dict[str, Any] = {"shadow": run.record.model_id, "shadow_run_id": run.record.run_id, "scope": scope}
    if commit.too_many_failed:
        notes.append(f"Beside the champion {commit.failed:,} of {commit.rows:,} images failed: {commit.reasons}.")
    about |= {"notes": notes} if notes else {}
    return about | _compared(store, layout, champion, run)


def _who(store: Store, layout: Layout, plan: Plan, config: Config) -> tuple[LearnerInfo, str | None] | None:
    """Who scores beside the champion, and which scope. One learner a night: a challenger goes before a shadow."""
    challenger = challenger_of(store, layout, plan.source)
    if challenger and challenger.sha256:
        info = admit_known(store, layout, config, challenger.sha256)
        if config.shadow and named_learner(store, layout, config, config.shadow).sha256 != challenger.sha256:
            say(
                f"The challenger {challenger.model_id} scores beside the champion, and not the shadow {config.shadow}. "
                f"To change that: drivetrain promote --withdraw --root {layout.root} --source {plan.source}"
            )
        return info, challenger.scope
    return (named_learner(store, layout, config, config.shadow), None) if config.shadow else None


def scope_plan(store: Store, layout: Layout, night: Plan, scope: str) -> Plan:
    """The plan of a night's images in a scope: found, or frozen from the night's manifest."""
    name = scope_name(night.name, scope)
    if found := find_plan(store, layout, night.source, "plan", name):
        return found
    batches = manifest_images(store, night.paths(layout).manifest(night.digest))
    inside = Images(batch.filter(pa.array(in_scope(batch["uri"].to_pylist(), scope), pa.bool_())) for batch in batches)
    about: dict[str, Any] = {"source": night.source, "kind": "plan", "name": name, "prefix": night.prefix}
    return freeze(store, layout, inside, **about, skipped={})


def _compared(store: Store, layout: Layout, champion: Run, beside: Run) -> dict[str, Any]:
    """Compare the two runs, unless they were, and nothing is known since."""
    if known := known_comparison(store, layout, champion, beside):
        return known
    comparison = compare_and_publish(store, layout, champion, beside)
    site.build(store, layout)
    return said_of(layout, comparison)
