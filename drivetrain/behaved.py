"""What behaviour.json says of a learner's answers, with the champion's beside them.

Knows what is written down. Does not know how learners are asked (`answers`) or the rule (`stability`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from drivetrain import stability
from drivetrain.answers import Answers, Sample, Tested
from drivetrain.cases import Answer, Case
from drivetrain.errors import SettingError
from drivetrain.export import Task
from drivetrain.stability import FEWEST_IMAGES, Marks, Stability

BEHAVIOUR_SCHEMA = 1
RULE = {
    "alpha": stability.ALPHA, "least_difference": stability.LEAST_DIFFERENCE, "floor": stability.FLOOR,
    "fewest_images": FEWEST_IMAGES, "tolerance": stability.TOLERANCE,
}  # fmt: skip
# The one reason for which an image or a case fails its learner; for any other it can't be read by anybody.
LEARNERS_FAULT = "learner"


def digest_of(learner: Tested, champion: Tested | None, sample: Sample, cases: Sequence[Case]) -> str:
    """What went in: the same gives the same record."""
    key = [
        BEHAVIOUR_SCHEMA, sorted(zip(sample.uris, sample.hashes, strict=True)), sample.changes, RULE,
        [asdict(case) for case in cases], learner.settings, champion and [champion.info.sha256, champion.settings],
        sample.notes,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def now() -> str:
    """The time in UTC as records have it, which sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def refuse_unreadable(cases: Sequence[Case], answers: Answers) -> None:
    """Raise SettingError for a case that nobody can read: no learner can fail it."""
    for place, (reason, text) in answers.errors.items():
        if reason != LEARNERS_FAULT:
            raise SettingError(
                f"The case {cases[place].uri} can't be read: {reason}, {text}. Mend it, or take it out of the folder."
            )


def record_of(
    learner: Tested,
    champion: Tested | None,
    sample: Sample,
    cases: Sequence[Case],
    answers: Answers,
    beside: Answers | None,
) -> dict[str, Any]:
    """behaviour.json, but for the uri of its page."""
    both = [answers, *([beside] if beside else [])]
    scored = [i for i in range(len(sample.uris)) if not any(_unreadable(each, i) for each in both)]
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
    made = now()
    return {
        "schema": BEHAVIOUR_SCHEMA,
        "model_id": learner.info.model_id,
        "against": champion.info.model_id if champion else None,
        "made": made,
        "asked": made,
        "passed": passed,
        "sentence": _sentence(found, own, len(scored), champion),
        "notes": [*sample.notes, *_fails(learner, answers, scored), *_fails(champion, beside, scored)],
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


def _unreadable(answers: Answers, place: int) -> bool:
    """Whether an image, as it is, can't be read by anybody; one that the learner fails on counts against it."""
    return place in answers.unscored and answers.unscored[place][0] != LEARNERS_FAULT


def _fails(tested: Tested | None, answers: Answers | None, places: Sequence[int]) -> list[str]:
    """That a learner gives no answer at all of some images, in a sentence."""
    failed = [answers.unscored[i][1] for i in places if i in answers.unscored] if answers else []
    if not tested or not failed:
        return []
    return [
        f"{tested.info.model_id} fails on {len(failed)} of {len(places)} images as they are, which counts as answers "
        f"that turn; e.g. {failed[0]}."
    ]


def _stayed(answers: Answers, task: Task, places: Sequence[int]) -> dict[str, Marks]:
    """By change, whether the answer to each of these images stayed; one that is missing, before or after, did not."""
    before = [answers.before[i] for i in places]
    return {name: _same([after[i] for i in places], before, task) for name, after in answers.after.items()}


def _same(said: Sequence[Answer | None], expected: Sequence[Answer | None], task: Task) -> Marks:
    """Whether each answer is the expected one: the same labels, or near values. None is like nothing."""
    if task != "regression":
        return np.array([one is not None and one == other for one, other in zip(said, expected, strict=True)], bool)
    pairs = [(one, other) for one, other in zip(said, expected, strict=True) if other is not None]
    same = np.array([other is not None for other in expected], bool)
    if pairs:
        wanted = np.array([other for _, other in pairs], np.float64)
        missing = (np.nan,) * wanted.shape[1]
        same[same] = stability.near(np.array([one or missing for one, _ in pairs], np.float64), wanted)
    return same


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
