"""The table of the design, row by row, and each unknown with what is missing and the lever that mends it."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from drivetrain.drift import splits_for
from drivetrain.findings import Accuracy, Cause, ClassShift, Decision, Findings
from drivetrain.verdict import Evidence, Verdict, decide

DECISION = Decision(
    n_current=1000,
    n_reference=5000,
    n_tested=1000,
    groups_tested=1000,
    groups_reference=5000,
    grouped_by="near-duplicates",
    splits=1000,
    alpha=0.01,
    seed=0,
    p_value=1 / 1001,
    effect=0.8,
    statistics=(),
)


def shares(*before_and_now: tuple[float, float], vocab: tuple[str, ...] = ("cat", "dog")) -> tuple[ClassShift, ...]:
    """Classes of which only the shares are known."""
    return tuple(
        ClassShift(word, 1000, 1000, before, now, None, None, 1.0, None, None)
        for word, (before, now) in zip(vocab, before_and_now, strict=True)
    )


FINDINGS = Findings(DECISION, classes=shares((0.5, 0.3), (0.5, 0.7)))
EVIDENCE = Evidence(
    images=1000,
    failed=0,
    reasons={},
    reference="shop-reference-1",
    held_out=True,
    findings=FINDINGS,
    mean_confidence=(0.9, 0.7),
    vocab=("cat", "dog"),
)


def judged(
    *, floor: float = 0.55, min_images: int = 100, drift: dict[str, Any] | None = None, **changes: Any
) -> Verdict:
    """The verdict about a night that has clearly drifted, but for some changes of what was found."""
    own = {each.name for each in fields(Decision)}
    decision = replace(DECISION, **{name: value for name, value in (drift or {}).items() if name in own})
    others = {name: value for name, value in (drift or {}).items() if name not in own}
    evidence = replace(EVIDENCE, findings=replace(FINDINGS, decision=decision, **others))
    return decide(replace(evidence, **changes), effect_floor=floor, min_images=min_images)


def said(verdict: Verdict) -> str:
    return " ".join((verdict.sentence, *verdict.reasons))


def test_held_out_images_that_were_trained_on_are_told_with_each_verdict() -> None:
    assert "3 of the reference's held-out images have the very bytes" in said(judged(leaked=3))
    assert "very bytes" not in said(judged())


@pytest.mark.parametrize(
    ("p_value", "effect", "word", "lever"),
    [
        (0.5, 0.5, "ok", "nothing"),
        (0.5, 0.9, "ok", "nothing"),
        (0.0101, 0.9, "ok", "nothing"),
        (0.001, 0.5, "warn", "look"),
        (0.001, 0.5499, "warn", "look"),
        (0.001, 0.55, "drift", "label and retrain, then rescore"),
        (0.01, 0.9, "drift", "label and retrain, then rescore"),
        (0.001, 1.0, "drift", "label and retrain, then rescore"),
    ],
)
def test_two_gates_make_the_verdict(p_value: float, effect: float, word: str, lever: str) -> None:
    verdict = judged(drift={"p_value": p_value, "effect": effect})
    assert (verdict.verdict, verdict.lever) == (word, lever)


def test_the_floor_and_alpha_that_were_asked_for_are_the_gates() -> None:
    assert judged(floor=0.9).verdict == "warn"
    assert judged(floor=0.5).verdict == "drift"
    assert judged(drift={"p_value": 0.04, "alpha": 0.05}).verdict == "drift"
    assert judged(drift={"p_value": 0.04, "alpha": 0.01}).verdict == "ok"


@pytest.mark.parametrize(
    ("changes", "why", "lever"),
    [
        ({"images": 0, "findings": None}, "no new image arrived", "look: should images have come?"),
        ({"images": 99}, "99 scored images are too few to say anything; min_images is 100", "look"),
        ({"images": 1000, "failed": 950}, "50 scored images are too few", "look"),
        ({"reference": None, "findings": None}, "there is no reference", "build one: drivetrain reference --help"),
        ({"findings": None}, "the reference has too few images", "build a larger reference"),
    ],
)
def test_nothing_is_said_of_a_night_when_something_is_missing(changes: dict[str, Any], why: str, lever: str) -> None:
    verdict = decide(replace(EVIDENCE, **changes), effect_floor=0.55, min_images=100)
    assert (verdict.verdict, verdict.lever) == ("unknown", lever)
    assert verdict.sentence.startswith("Unknown: ")
    assert why in verdict.sentence
    assert why in verdict.reasons[-1]


def test_a_small_reference_is_unknown_and_says_how_many_images_it_needs() -> None:
    verdict = judged(drift={"n_reference": 249, "n_tested": 49, "groups_reference": 249, "groups_tested": 49})
    assert (verdict.verdict, verdict.lever) == ("unknown", "build a larger reference")
    assert "the reference has 249 images to compare with; 250 are needed" in verdict.sentence
    assert (
        judged(drift={"n_reference": 250, "n_tested": 50, "groups_reference": 250, "groups_tested": 50}).verdict
        == "drift"
    )


def test_a_small_night_against_a_large_reference_does_not_blame_the_reference() -> None:
    verdict = judged(images=30, min_images=10, drift={"n_current": 30, "n_tested": 30, "groups_tested": 30})
    assert (verdict.verdict, verdict.lever) == ("unknown", "look")
    assert "30 scored images" in verdict.sentence
    assert "5000 images" not in verdict.sentence


def test_a_null_too_coarse_for_alpha_is_unknown_and_not_ok() -> None:
    # The smallest p-value of 1000 splits is 1 / 1001: below that alpha no night could ever alarm.
    verdict = judged(drift={"alpha": 0.0005, "splits": 1000})
    assert verdict.verdict == "unknown"
    assert "alpha" in verdict.sentence and verdict.lever == "raise alarms_per_year 20.0 times"


@pytest.mark.parametrize(("sources", "word"), [(13, "ok"), (14, "unknown")])
def test_ten_splits_must_lie_beyond_the_threshold(sources: int, word: str) -> None:
    """With an alarm a year of all sources together, the most splits are enough for 13 of them."""
    alpha = 1 / 365 / sources
    assert judged(drift={"alpha": alpha, "splits": splits_for(alpha), "p_value": 0.5}).verdict == word


@pytest.mark.parametrize(("p_value", "effect", "word"), [(0.5, 0.9, "ok"), (0.001, 0.5, "warn"), (0.001, 0.9, "warn")])
def test_without_held_out_images_nothing_worse_than_warn_is_said(p_value: float, effect: float, word: str) -> None:
    verdict = judged(held_out=False, drift={"p_value": p_value, "effect": effect})
    assert verdict.verdict == word
    assert any("no held-out images" in reason for reason in verdict.reasons)


def test_a_drift_against_trained_images_says_what_to_type() -> None:
    verdict = judged(held_out=False)
    assert (verdict.verdict, verdict.lever) == ("warn", "look")
    assert "may be a false alarm" in verdict.sentence
    assert "--labels" in verdict.sentence


def test_failed_images_are_counted_with_their_reasons_first() -> None:
    verdict = judged(failed=3, reasons={"empty": 1, "undecodable": 2})
    assert verdict.reasons[0] == "3 of 1000 images (0.3%) could not be scored (1 empty, 2 undecodable)."
    assert "could not be scored" not in said(judged())


def test_too_many_failed_images_are_said_in_every_verdict() -> None:
    for changes in ({"p_value": 0.5}, {"effect": 0.5}, {}, {"n_tested": 10, "groups_tested": 10}):
        verdict = judged(failed=200, reasons={"denied": 200}, too_many_failed=True, drift=changes)
        assert verdict.reasons[0].endswith("(200 denied): more than max_failed allows."), verdict.verdict


def test_an_ok_night_with_too_many_failed_images_pulls_the_lever_look() -> None:
    verdict = judged(failed=200, reasons={"denied": 200}, too_many_failed=True, drift={"p_value": 0.5})
    assert (verdict.verdict, verdict.lever) == ("ok", "look")


def test_a_night_whose_images_all_failed_is_unknown() -> None:
    verdict = judged(images=500, failed=500, reasons={"denied": 500}, too_many_failed=True)
    assert verdict.verdict == "unknown"
    assert "0 scored images" in verdict.sentence


def test_the_numbers_are_said_in_plain_words() -> None:
    text = said(judged())
    assert (
        "p = 0.001, and 0.01 or less is an alarm: 1,000 of 1,000 images held against 5,000 held-out reference images"
        in text
    )
    assert "Effect 0.80: of 100 pairs" in text and "which is which in 80; 50 is chance" in text
    assert "Mean confidence fell from 0.90 to 0.70." in text
    assert "Most changed label: 'cat' went from 50% of the images to 30%." in text or "'dog' went from" in text


def test_the_label_that_changed_most_is_named_with_both_shares() -> None:
    text = said(judged(drift={"classes": shares((0.6, 0.4), (0.3, 0.35), (0.1, 0.25), vocab=("cat", "dog", "emu"))}))
    assert "Most changed label: 'cat' went from 60% of the images to 40%." in text
    found = shares((0.2, 0.3), (0.3, 0.3), (0.5, 0.4), vocab=("emu", "dog", "cat"))
    text = said(judged(drift={"classes": found}))
    assert "Most changed label: 'emu' went from 20% of the images to 30%." in text


def test_small_changes_are_not_worth_a_sentence() -> None:
    text = said(
        judged(mean_confidence=(0.9, 0.885), drift={"classes": shares((0.5, 0.54), (0.5, 0.46)), "effect": 0.51})
    )
    assert "Mean confidence" not in text
    assert "Most changed label" not in text


def test_an_ok_night_blames_no_label() -> None:
    assert "Most changed label" not in said(judged(drift={"p_value": 0.5}))


def test_a_regression_has_no_confidence_and_no_class_to_speak_of() -> None:
    verdict = judged(mean_confidence=None, vocab=(), drift={"classes": ()})
    assert verdict.verdict == "drift"
    assert "confidence" not in said(verdict)
    assert "label" not in said(verdict)


# --- a shift without harm ---


def expected(low: float, estimate: float | None = None, reference: float = 0.9) -> Accuracy:
    middle = low + 0.02 if estimate is None else estimate
    return Accuracy(reference, middle, low, middle + 0.03, novel=0.01)


@pytest.mark.parametrize(
    ("accuracy", "word"),
    [
        (expected(low=0.9), "warn"),
        (expected(low=0.8701), "warn"),
        (expected(low=0.8699), "drift"),
        (expected(low=0.5, estimate=0.7), "drift"),
        (Accuracy(0.9, None, None, None, 0.4, "40% of the images look like nothing in the reference"), "drift"),
        (None, "drift"),
    ],
)
def test_only_a_shift_that_may_cost_labels_is_drift(accuracy: Accuracy | None, word: str) -> None:
    assert judged(drift={"accuracy": accuracy}).verdict == word


def test_a_shift_without_harm_is_said_to_be_one_and_may_be_accepted() -> None:
    verdict = judged(drift={"accuracy": expected(low=0.9)})
    assert "a shift without harm" in verdict.sentence
    assert verdict.lever.startswith("look") and verdict.lever.endswith("drivetrain drift accept")


def test_harm_is_said_in_points() -> None:
    verdict = judged(drift={"accuracy": expected(low=0.5, estimate=0.7)})
    assert verdict.lever == "label and retrain, then rescore"
    assert "about 20 points fewer of them right" in verdict.sentence
    assert "perhaps fewer of them right" in judged(drift={"accuracy": expected(low=0.8, estimate=0.91)}).sentence


def test_an_accuracy_that_cannot_be_told_is_unknown_and_no_comfort() -> None:
    verdict = judged(drift={"accuracy": Accuracy(0.9, None, None, None, 0.4, "40% look new")})
    assert "whether it still gets them right is unknown" in verdict.sentence
    assert "Accuracy can't be estimated: 40% look new." in verdict.reasons


def test_the_estimate_is_a_reason_with_its_range_and_what_was_measured() -> None:
    text = said(judged(drift={"accuracy": Accuracy(0.9, 0.7, 0.65, 0.75, 0.01), "p_value": 0.5}))
    assert "Estimated accuracy 70% (between 65% and 75%); on the reference's held-out images it is 90%." in text


def test_no_estimate_makes_a_quiet_night_worse_or_a_small_one_known() -> None:
    bad = {"accuracy": expected(low=0.1, estimate=0.2)}
    assert judged(drift=bad | {"p_value": 0.5}).verdict == "ok"
    assert judged(drift=bad | {"effect": 0.5}).verdict == "warn"
    assert judged(drift=bad | {"n_tested": 49, "groups_tested": 49}).verdict == "unknown"
    assert judged(drift=bad, held_out=False).verdict == "warn"


# --- groups ---


def test_a_night_of_too_few_groups_is_unknown_and_names_what_made_them() -> None:
    few = {"groups_tested": 19, "grouped_by": "group_by = '(camera-[0-9]+)/'"}
    verdict = judged(drift=few)
    assert (verdict.verdict, verdict.lever) == ("unknown", "look; a finer group_by")
    assert "come in 19 groups (group_by = '(camera-[0-9]+)/'); 20 are needed" in verdict.sentence
    assert judged(drift=few | {"groups_tested": 20}).verdict == "drift"


def test_a_reference_of_too_few_groups_is_unknown_and_asks_for_more() -> None:
    verdict = judged(drift={"groups_tested": 200, "groups_reference": 99, "grouped_by": "the column group"})
    assert verdict.verdict == "unknown"
    assert "come in 99 groups (the column group); 100 are needed" in verdict.sentence
    assert "finer group_by" in verdict.lever
    assert judged(drift={"groups_tested": 200, "groups_reference": 100}).verdict == "drift"


def test_the_groups_of_a_night_are_said_where_there_are_any() -> None:
    assert "in 300 groups by near-duplicates" in said(judged(drift={"groups_tested": 300}))
    assert "groups by" not in said(judged())


# --- what else is said ---


def test_causes_are_said_when_it_alarms_and_at_most_three() -> None:
    words = ["darker by 1.4 sd", "smaller by 0.6 sd", "blurrier by 0.5 sd", "wider by 0.3 sd"]
    causes = tuple(Cause(word, word, 1.0, 0.5, 0.3, "", 0.001) for word in words)
    assert (
        "The images are darker by 1.4 sd, smaller by 0.6 sd, blurrier by 0.5 sd."
        in judged(drift={"causes": causes}).reasons
    )
    assert "darker" not in said(judged(drift={"causes": causes, "p_value": 0.5}))


def test_accepted_nights_that_widened_the_threshold_are_said() -> None:
    assert (
        "25 accepted nights made the threshold 2.3 times as wide."
        in judged(drift={"accepted": 25, "widened": 2.3}).reasons
    )
    assert "accepted nights" not in said(judged(drift={"accepted": 25, "widened": 1.0}))


def test_the_record_is_json() -> None:
    record = json.loads(json.dumps(judged().record()))
    assert set(record) == {"verdict", "lever", "sentence", "reasons"}
    assert record["verdict"] == "drift"
