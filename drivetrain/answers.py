"""What learners say of images: as they are, after each change, and of a user's own cases.

Knows how a learner is asked, on Ray like any scoring. Does not know what an answer should be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from drivetrain import cluster, pool
from drivetrain.cases import Answer, Case
from drivetrain.config import Config
from drivetrain.console import Counting
from drivetrain.engine import choose_engine
from drivetrain.export import LearnerInfo, Task
from drivetrain.layout import Layout
from drivetrain.perturbations import PERTURBATIONS
from drivetrain.score import settings_of
from drivetrain.store import Store


@dataclass(frozen=True)
class Tested:
    """A learner, and the settings of its runs."""

    info: LearnerInfo
    settings: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """The images that are changed, scored ones of a reference, and the names of the changes.

    ``every``: all images of the reference, to prove an engine on.
    """

    reference: str
    held_out: bool
    uris: tuple[str, ...]
    hashes: tuple[str, ...]
    every: tuple[str, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """What a learner says of each image as it is, of each after each change, and of each case; None: not scored.

    ``errors``: why a case was not scored, by place; ``unscored``: why an image as it is was not.
    """

    before: list[Answer | None]
    after: dict[str, list[Answer | None]]
    cases: list[Answer | None]
    errors: dict[int, tuple[str, str]]
    unscored: dict[int, tuple[str, str]] = field(default_factory=dict)


def tested_as(store: Store, layout: Layout, config: Config, info: LearnerInfo, sample: Sample) -> Tested:
    """A learner with the settings of its runs; its engine is proved on the sample's images if it is not yet."""
    engine, _ = choose_engine(store, layout, config, info, partial(iter, sample.every))
    return Tested(info, settings_of(config, engine))


def asked(
    store: Store,
    layout: Layout,
    config: Config,
    both: tuple[Tested, Tested | None],
    sample: Sample,
    cases: Sequence[Case],
) -> tuple[Answers, Answers | None]:
    """What the learner says, and the champion where there is one."""
    learners = [each for each in both if each]
    total = len(learners) * (len(sample.uris) * (1 + len(sample.changes)) + len(cases))
    with Counting("Behaviour tests", total) as progress, cluster.connected(config.ray_address, config.actors):
        learner, *champion = [_answers(store, layout, config, each, sample, cases, progress) for each in learners]
    return learner, champion[0] if champion else None


def _answers(
    store: Store,
    layout: Layout,
    config: Config,
    tested: Tested,
    sample: Sample,
    cases: Sequence[Case],
    progress: Counting,
) -> Answers:
    """Score the images as they are, the cases, and the images after each change: each of these is a task."""
    from drivetrain.plant import Planter, Planting, PlantSettings

    info = tested.info
    changes = [Planting(sample.uris, PERTURBATIONS[name]) for name in sample.changes]
    plantings = (Planting(sample.uris, None), Planting(tuple(case.uri for case in cases), None), *changes)
    settings = PlantSettings(
        store.options, layout.root, info.sha256, tested.settings, info.embedding_size, plantings,
        vouched=info.sha256 in config.trust, one_thread=config.actors != 0, gpu=config.gpus_per_actor > 0,
    )  # fmt: skip
    found: dict[int, pa.Table] = {}
    for task, rows in pool.run_tasks(
        partial(Planter, settings), range(len(plantings)), actors=config.actors, gpus_per_actor=config.gpus_per_actor
    ):
        found[task] = rows.select(["label", "labels", "values", "status", "error", "error_text"])
        progress.add(len(rows), rows["error"].length() - rows["error"].null_count)
    before, own, *after = [found[task] for task in range(len(plantings))]
    return Answers(
        _said(before, info.task),
        {name: _said(rows, info.task) for name, rows in zip(sample.changes, after, strict=True)},
        _said(own, info.task),
        _errors(own),
        _errors(before),
    )


def _errors(rows: pa.Table) -> dict[int, tuple[str, str]]:
    """Reason and text of each row that was not scored, by place."""
    return {i: (row["error"], row["error_text"]) for i, row in enumerate(rows.to_pylist()) if row["status"] != "ok"}


def _said(rows: pa.Table, task: Task) -> list[Answer | None]:
    """What each row says; None for one that was not scored."""
    said: list[Answer | None] = []
    for row in rows.to_pylist():
        if row["status"] != "ok":
            said.append(None)
        elif task == "regression":
            said.append(tuple(row["values"]))
        else:
            said.append(tuple(sorted(row["labels"])) if task == "multi_label" else (row["label"],))
    return said
