"""Behaviour tests of a learner: do its answers stay under changes that should not matter, and do own cases come right?

Knows which images are looked at, who stands beside, and what is written down. Does not know pixels (`perturbations`) or
the rule (`stability`). Nothing is kept until all is known: behaviour.json comes last, and the same command again finds
it by what went in.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain import cluster, pool, site, stability
from drivetrain.admit import admit_known
from drivetrain.aliases import current
from drivetrain.bundle import groups_of
from drivetrain.cases import Answer, Case, check_cases, read_cases
from drivetrain.config import Config
from drivetrain.console import Counting, busy, say
from drivetrain.doctor import check_first
from drivetrain.engine import choose_engine
from drivetrain.errors import SettingError
from drivetrain.export import LearnerInfo, Task
from drivetrain.groups import GROUPING
from drivetrain.layout import Layout
from drivetrain.named import known_id, named_learner
from drivetrain.perturbations import OF_ANOTHER_SIZE, PERTURBATIONS
from drivetrain.reference import newest_reference
from drivetrain.review import thumbnail
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Run
from drivetrain.score import settings_of
from drivetrain.several import several_at_once
from drivetrain.stability import FEWEST_IMAGES, Marks, Stability
from drivetrain.store import Store

BEHAVIOUR_SCHEMA = 1
RULE = {
    "alpha": stability.ALPHA, "least_difference": stability.LEAST_DIFFERENCE, "floor": stability.FLOOR,
    "fewest_images": FEWEST_IMAGES, "tolerance": stability.TOLERANCE,
}  # fmt: skip
# Pictures on the page: the rest is counted, and stands in behaviour.json.
SHOWN, SHOWN_OF_ONE = 60, 12
# The one reason for which a case fails its learner; for any other it can't be read by anybody.
LEARNERS_FAULT = "learner"


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

    ``errors``: why a case was not scored, by place.
    """

    before: list[Answer | None]
    after: dict[str, list[Answer | None]]
    cases: list[Answer | None]
    errors: dict[int, tuple[str, str]]


def check_behaviour(config: Config) -> dict[str, Any]:
    """Test the behaviour of the config's learner, with the champion beside it.

    Needs ``root``, ``learner``: an export, or the id of a learner in the root or of a run of it. Returns behaviour.json
    without the images that broke, and its uri as ``behaviour``. The same config again finds the record there, unless
    images, cases, champion or settings changed. Raises SettingError when there is no reference to take images from, or
    for a case that can't be used.
    """
    _, named = config.need("root", "learner")
    store, layout = open_root(config, existing=True)
    known = known_id(store, layout, named)
    check_first(config.model_copy(update={"images": None, "learner": layout.export(known) if known else named}))
    info = named_learner(store, layout, config, named)
    other = _champion(store, layout, config, info)
    cases = read_cases(store, store.normalise(config.cases)) if config.cases else ()
    check_cases(cases, [info, *([other] if other else [])])
    sample = _sample(store, layout, config, info, other)
    learner = _tested(store, layout, config, info, sample)
    champion = _tested(store, layout, config, other, sample) if other else None
    digest = _digest(learner, champion, sample, cases)
    record = from_json(store, layout.behaviour_record(info.model_id, digest))
    if record:
        say(f"These behaviour tests of {info.model_id} were made at {record['made']}; nothing to do.")
    else:
        answers, beside = _asked(store, layout, config, (learner, champion), sample, cases)
        _refuse_unreadable(cases, answers)
        record = _record(learner, champion, sample, cases, answers, beside)
        record["page"] = layout.behaviour_page(info.model_id, digest)
        _publish(store, record, layout.behaviour_record(info.model_id, digest))
    short = {key: value for key, value in record.items() if key != "broke"}
    return short | {"behaviour": layout.behaviour_record(info.model_id, digest)}


def _champion(store: Store, layout: Layout, config: Config, info: LearnerInfo) -> LearnerInfo | None:
    """The champion to stand beside a learner: that of the config's source, or the only one under the root.

    None where there is none, and beside the champion itself. Raises SettingError when sources have different ones.
    """
    named = config.source or config.images
    sources = [config.the_source()] if named else store.names(layout.sources)
    found = {source: alias.sha256 for source in sources if (alias := current(store, layout, source, "champion"))}
    if len(set(found.values())) > 1:
        raise SettingError(
            f"The sources have different champions ({', '.join(found)}). Say which source: --source {next(iter(found))}"
        )
    sha256 = next(iter(found.values()), None)
    return None if sha256 in (None, info.sha256) else admit_known(store, layout, config, sha256)


def _sample(store: Store, layout: Layout, config: Config, info: LearnerInfo, champion: LearnerInfo | None) -> Sample:
    """Images of the learner's newest reference, else of the champion's, chosen by the hash of their uris.

    Held-out ones where there are any; each content once; none that the champion was trained on, whose answers it knows
    by heart, and one of each group, as long as enough are left.
    """
    references = [newest_reference(store, layout, each.model_id) for each in (info, champion) if each]
    reference = next((each for each in references if each), None)
    if reference is None:
        raise SettingError(
            f"The learner {info.model_id} has no reference{' and its champion neither' if champion else ''}: there are "
            "no images to test it on. Type   drivetrain reference --learner … --images …   first."
        )
    run, notes = Run.find(store, layout, reference.run_id), []
    only = {"split": "held_out"} if reference.held_out else {}
    rows = run.rows(("uri", *GROUPING), only=only)
    order = np.argsort([hashlib.sha256(f"{config.seed} {uri}".encode()).digest() for uri in rows["uri"].to_pylist()])
    rows = rows.take(pa.array(order))
    every = tuple(rows["uri"].to_pylist())
    rows = rows.take(pa.array(_firsts(rows["content_hash"].to_pylist())))
    if champion and (known := _trained_on(store, layout, champion)):
        strange = rows.filter(pa.array([each not in known for each in rows["content_hash"].to_pylist()], pa.bool_()))
        if len(strange) < min(FEWEST_IMAGES, len(rows)):
            notes.append("The champion was trained on most of these images, which makes it look more stable.")
        else:
            rows = strange
    if config.group_by:
        firsts = _firsts(groups_of(rows, None, config.group_by)[0].tolist())
        if len(firsts) < min(FEWEST_IMAGES, len(rows)):
            notes.append(
                f"The images belong to {len(firsts)} groups, too few to take one of each: p-values are too small."
            )
        else:
            rows = rows.take(pa.array(firsts))
    if not reference.held_out:
        notes.append("No image of the reference is marked as held out: the learner may know them by heart.")
    rows = rows.slice(0, config.behaviour_images)
    uris, hashes = (tuple(rows[name].to_pylist()) for name in ("uri", "content_hash"))
    changes = tuple(PERTURBATIONS)
    if not all(_resizes(each) for each in (info, champion) if each):
        changes = tuple(name for name in changes if name != OF_ANOTHER_SIZE)
        notes.append("Images are not enlarged: without a Resize in its transforms a learner takes size for content.")
    return Sample(reference.run_id, reference.held_out, uris, hashes, every, changes, tuple(notes))


def _resizes(info: LearnerInfo) -> bool:
    """Whether a learner brings images of any size to its own: fastai's Resize or RandomResizedCrop."""
    return any("Resize" in each for each in info.transforms)


def _firsts(values: Sequence[Any]) -> list[int]:
    """The places at which a value comes up for the first time; what is None is like no other."""
    seen: dict[Any, int] = {}
    for place, value in enumerate(values):
        seen.setdefault(object() if value is None else value, place)
    return list(seen.values())


def _trained_on(store: Store, layout: Layout, champion: LearnerInfo) -> set[str]:
    """The hashes of the images that the champion's newest reference marks as trained on."""
    reference = newest_reference(store, layout, champion.model_id)
    if reference is None:
        return set()
    rows = Run.find(store, layout, reference.run_id).rows(("content_hash",), only={"split": "trained"})
    return set(rows["content_hash"].drop_null().to_pylist())


def _tested(store: Store, layout: Layout, config: Config, info: LearnerInfo, sample: Sample) -> Tested:
    engine, _ = choose_engine(store, layout, config, info, partial(iter, sample.every))
    return Tested(info, settings_of(config, engine))


def _digest(learner: Tested, champion: Tested | None, sample: Sample, cases: Sequence[Case]) -> str:
    """What went in: the same gives the same record."""
    key = [
        BEHAVIOUR_SCHEMA, sorted(zip(sample.uris, sample.hashes, strict=True)), sample.changes, RULE,
        [asdict(case) for case in cases], learner.settings, champion and [champion.info.sha256, champion.settings],
        sample.notes,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _asked(
    store: Store,
    layout: Layout,
    config: Config,
    both: tuple[Tested, Tested | None],
    sample: Sample,
    cases: Sequence[Case],
) -> tuple[Answers, Answers | None]:
    """What the learner says, and the champion where there is one."""
    asked = [each for each in both if each]
    total = len(asked) * (len(sample.uris) * (1 + len(sample.changes)) + len(cases))
    with Counting("Behaviour tests", total) as progress, cluster.connected(config.ray_address, config.actors):
        learner, *champion = [_answers(store, layout, config, each, sample, cases, progress) for each in asked]
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
    errors = {i: (row["error"], row["error_text"]) for i, row in enumerate(own.to_pylist()) if row["status"] != "ok"}
    return Answers(
        _said(before, info.task),
        {name: _said(rows, info.task) for name, rows in zip(sample.changes, after, strict=True)},
        _said(own, info.task),
        errors,
    )


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


def _refuse_unreadable(cases: Sequence[Case], answers: Answers) -> None:
    for place, (reason, text) in answers.errors.items():
        if reason != LEARNERS_FAULT:
            raise SettingError(
                f"The case {cases[place].uri} can't be read: {reason}, {text}. Mend it, or take it out of the folder."
            )


def _record(
    learner: Tested,
    champion: Tested | None,
    sample: Sample,
    cases: Sequence[Case],
    answers: Answers,
    beside: Answers | None,
) -> dict[str, Any]:
    """behaviour.json, but for the uri of its page."""
    both = [answers, *([beside] if beside else [])]
    scored = [i for i in range(len(sample.uris)) if all(each.before[i] is not None for each in both)]
    if not scored:
        raise SettingError(
            f"None of {len(sample.uris)} images of the reference {sample.reference} can be read any more: there is "
            "nothing to test on. Build a reference of images that are there."
        )
    stayed = _stayed(answers, learner.info.task, scored)
    champion_stayed = _stayed(beside, champion.info.task, scored) if champion and beside else None
    found = stability.judged(stayed, champion_stayed)
    own = _own(cases, answers, beside, learner.info.task)
    passed = all(each.passed for each in found) and all(case["passed"] for case in own)
    return {
        "schema": BEHAVIOUR_SCHEMA,
        "model_id": learner.info.model_id,
        "against": champion.info.model_id if champion else None,
        "made": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "passed": passed,
        "sentence": _sentence(found, own, len(scored), champion),
        "notes": list(sample.notes),
        "images": {
            "reference": sample.reference, "held_out": sample.held_out, "n": len(scored),
            "unreadable": len(sample.uris) - len(scored),
        },
        "rule": RULE,
        "settings": {"learner": learner.settings, "champion": champion.settings if champion else None},
        "perturbations": [asdict(each) for each in found],
        "cases": own,
        "broke": _broke(sample, scored, answers, stayed, beside, champion_stayed),
    }  # fmt: skip


def _stayed(answers: Answers, task: Task, places: Sequence[int]) -> dict[str, Marks]:
    """By change, whether the answer to each of these images stayed. A changed image that can't be scored did not."""
    before = [answers.before[i] for i in places]
    return {name: _same([after[i] for i in places], before, task) for name, after in answers.after.items()}


def _same(said: Sequence[Answer | None], expected: Sequence[Answer | None], task: Task) -> Marks:
    """Whether each answer is the expected one: the same labels, or near values."""
    if task != "regression" or not expected:
        return np.array([one == other for one, other in zip(said, expected, strict=True)], bool)
    wanted = np.array(expected, np.float64)
    missing = (np.nan,) * wanted.shape[1]
    return stability.near(np.array([missing if each is None else each for each in said], np.float64), wanted)


def _own(cases: Sequence[Case], answers: Answers, beside: Answers | None, task: Task) -> list[dict[str, Any]]:
    passed = _same(answers.cases, [case.answer(task) for case in cases], task)
    return [
        {
            "uri": case.uri,
            "expected": case.expected,
            "got": answers.cases[place],
            "champion_got": beside.cases[place] if beside else None,
            "passed": bool(passed[place]),
        }
        for place, case in enumerate(cases)
    ]


def _broke(
    sample: Sample,
    scored: Sequence[int],
    answers: Answers,
    stayed: Mapping[str, Marks],
    beside: Answers | None,
    champion_stayed: Mapping[str, Marks] | None,
) -> list[dict[str, Any]]:
    """The images on which the answer of either learner turned, change by change."""
    broke = []
    for name in sample.changes:
        for row, place in enumerate(scored):
            mine = _turn(answers, name, place, stayed[name][row])
            other = _turn(beside, name, place, champion_stayed[name][row]) if beside and champion_stayed else None
            if not mine["stayed"] or (other and not other["stayed"]):
                broke.append({"uri": sample.uris[place], "perturbation": name, "learner": mine, "champion": other})
    return broke


def _turn(answers: Answers, name: str, place: int, stayed: np.bool_) -> dict[str, Any]:
    return {"from": answers.before[place], "to": answers.after[name][place], "stayed": bool(stayed)}


def _sentence(found: Sequence[Stability], own: Sequence[Mapping[str, Any]], n: int, champion: Tested | None) -> str:
    """The outcome in plain words."""
    said = []
    if n < FEWEST_IMAGES:
        said.append(f"only {n} images to test on, which says nothing; {FEWEST_IMAGES} are needed")
    elif failed := sorted((each for each in found if not each.passed), key=_how_far):
        said.append(_turns(failed[0]) + (f"; {len(failed) - 1} more changes fail" if len(failed) > 1 else ""))
    if wrong := [case for case in own if not case["passed"]]:
        first = wrong[0]
        got = "; ".join(f"{each:.4g}" if isinstance(each, float) else each for each in first["got"] or ()) or "nothing"
        said.append(
            f"{len(wrong)} of {len(own)} own cases come out wrong, first {first['uri'].rsplit('/', 1)[-1]}: "
            f"it must be {first['expected']}, got {got}"
        )
    if said:
        return "Failed: " + ". And ".join(said) + "."
    cases = f", and all {len(own)} own cases come right" if own else ""
    if champion:
        beside = f"held against the champion {champion.info.model_id} on {n} images"
        return f"Passed: {beside}, it is nowhere clearly less stable{cases}."
    least = min(each.stable / n for each in found)
    return f"Passed: with no champion beside it, at least {least:.1%} of {n} answers stay under each change{cases}."


def _how_far(failed: Stability) -> float:
    return failed.stable / failed.n if failed.difference is None else failed.difference


def _turns(failed: Stability) -> str:
    beside = f", the champion's {failed.n - failed.champion_stable}" if failed.champion_stable is not None else ""
    return f"{failed.n - failed.stable} of {failed.n} answers turn once the image is {failed.perturbation}{beside}"


def _publish(store: Store, record: Mapping[str, Any], where: str) -> None:
    """Write the page, then the record: who finds the record finds its page."""
    with busy("Writing the page"):
        broke = several_at_once(partial(_pictured, store), _shown(record))
        wrong_first = sorted(record["cases"], key=lambda case: case["passed"])[:SHOWN]
        cases = several_at_once(partial(_pictured, store), wrong_first)
        store.replace(record["page"], site.behaviour_page(record, broke, cases))
        store.replace(where, to_json(dict(record)))


def _shown(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images for the page: of changes that fail first, and where the champion holds; a few of each change."""
    passed = {each["perturbation"]: each["passed"] for each in record["perturbations"]}
    mine = [each for each in record["broke"] if not each["learner"]["stayed"]]
    mine.sort(
        key=lambda each: (passed[each["perturbation"]], bool(each["champion"] and not each["champion"]["stayed"]))
    )
    shown, so_far = [], dict.fromkeys(passed, 0)
    for each in mine:
        so_far[each["perturbation"]] += 1
        if so_far[each["perturbation"]] <= SHOWN_OF_ONE:
            shown.append(each)
    return shown[:SHOWN]


def _pictured(store: Store, each: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a small picture of the image, and one of it changed; None for what can't be shown."""
    from drivetrain.plant import damaged

    pictures: dict[str, str | None] = {"picture": None, "changed": None}
    # Whatever goes wrong with a picture, the page must not fail on it.
    with suppress(Exception):
        data = store.read(each["uri"])
        pictures["picture"] = thumbnail(data)
        if "perturbation" in each:
            pictures["changed"] = thumbnail(damaged(data, PERTURBATIONS[each["perturbation"]]))
    return {**each, **pictures}
