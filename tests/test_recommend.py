"""The recommendation, row by row of the table in docs/comparison.md: the first row that fits decides."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivetrain.comparison import Behaviour, OwnDrift, Slice, Truth
from drivetrain.recommend import ENOUGH_LABELLED, Facts, difference_of, recommend

TRUTH = Truth(
    measure="accuracy", labelled=1000, by_people=0, old=0.90, new=0.93, difference=0.03, low=0.01, high=0.05, lost=10,
    won=40, p_value=0.001, test="McNemar exact", margin=0.02, needed=1960, needed_flips=196, labelled_flips=100,
    trained_old=0, trained_new=0, known_training_old=True, known_training_new=True,
    only_old=0, only_new=0, foreign=0, unreadable=0,
)  # fmt: skip
OK, DRIFT = OwnDrift("ok", "As usual."), OwnDrift("drift", "Not alike.")
BROKEN = Behaviour("m", "2026-11-25", False, "3 of 12 tests failed.", "/r/behaviour/m/d/index.html")
PASSED = replace(BROKEN, passed=True, sentence="All 12 tests passed.")
SLICE = Slice("true class", "cat", "labels", 200, 0.9, 0.8, 25, 5, 0.2, 0.002, True, ())
# Significantly better; the other two are what each row changes.
WORSE = replace(TRUTH, new=0.87, difference=-0.03, low=-0.05, high=-0.01, lost=40, won=10)
SAME = replace(TRUTH, new=0.9, difference=0.0, low=-0.01, high=0.01, lost=20, won=20, p_value=1.0)
UNSURE = replace(SAME, low=-0.03, high=0.03)
FEW = replace(TRUTH, labelled=ENOUGH_LABELLED - 1)
NONE = replace(TRUTH, labelled=0, old=None, new=None, difference=None, low=None, high=None, p_value=None)


def facts(**changes: Any) -> Facts:
    about: dict[str, Any] = {
        "run_old": "shop-1-old", "run_new": "shop-1-new", "model_new": "abc123abc123", "source": "shop", "root": "/r",
        "images": 5000, "scored_by_both": 5000, "only_old": 0, "agreement": 0.9, "flipped": 500,
        "classes_removed": (), "truth": TRUTH, "drift_old": OK, "drift_new": OK, "slices": (), "behaviour": PASSED,
    }  # fmt: skip
    return Facts(**about | changes)


ROWS = [
    ({"scored_by_both": 0, "truth": NONE}, "look", "no image that both learners scored"),
    ({"truth": WORSE}, "keep", "right less often"),
    ({"truth": WORSE, "behaviour": None, "drift_new": DRIFT}, "keep", "right less often"),
    ({"truth": replace(WORSE, labelled=30)}, "keep", "right less often"),
    ({"behaviour": BROKEN}, "look", "fails its behaviour tests"),
    ({"behaviour": BROKEN, "truth": SAME}, "keep", "3 of 12 tests failed"),
    ({"behaviour": BROKEN, "truth": NONE}, "keep", "3 of 12 tests failed"),
    ({"slices": (SLICE,)}, "look", "better on the whole, and worse on true class 'cat'"),
    ({"slices": (SLICE, SLICE), "truth": SAME}, "keep", "worse on true class 'cat' and 1 more"),
    ({"truth": replace(UNSURE, labelled_flips=500)}, "keep", "all 500 images whose label changed have a true label"),
    ({"truth": replace(NONE, labelled_flips=0), "flipped": 0}, "keep", "no label changed"),
    ({"truth": replace(FEW, labelled_flips=500)}, "label more", "only 99 labelled images"),
    ({"truth": FEW}, "label more", "only 99 labelled images"),
    ({"truth": NONE, "agreement": 1.0}, "label more", "only 0 labelled images"),
    ({"truth": SAME}, "keep", "differ by less than 2 points"),
    ({"truth": UNSURE}, "label more", "don't say which is better; 1,960 labelled images show a difference of 2 points"),
    ({"truth": replace(TRUTH, known_training_new=False)}, "look", "has no reference"),
    ({"classes_removed": ("emu",)}, "look", "no longer knows 1 of the old classes ('emu')"),
    ({"only_old": 51}, "look", "failed on 51 images that the old one scored"),
    ({"drift_new": DRIFT}, "look", "not like those that it was validated on"),
    ({}, "promote", "nothing speaks against it"),
    ({"behaviour": None}, "promote", "nothing speaks against it"),
    ({"drift_old": DRIFT, "drift_new": DRIFT}, "promote", "nothing speaks against it"),
    ({"only_old": 50}, "promote", "nothing speaks against it"),
    ({"slices": (replace(SLICE, decides=False),)}, "promote", "nothing speaks against it"),
    ({"slices": (replace(SLICE, p_value=0.06),)}, "promote", "nothing speaks against it"),
]


@pytest.mark.parametrize(("changes", "do", "said"), ROWS)
def test_each_row_of_the_table(changes: dict[str, Any], do: str, said: str) -> None:
    found = recommend(facts(**changes))
    assert found.do == do
    assert said in found.sentence
    assert found.reasons


def test_agreement_alone_never_promotes() -> None:
    for agreement in (0.0, 0.5, 1.0):
        for truth in (NONE, FEW, SAME, UNSURE):
            assert recommend(facts(agreement=agreement, truth=truth)).do != "promote"


def test_what_to_type_next() -> None:
    assert recommend(facts()).next == "drivetrain promote abc123abc123 --root /r --source shop"
    flips = "drivetrain queue shop-1-new --flips shop-1-old --review-size"
    # 196 are needed, and 100 have labels.
    assert recommend(facts(truth=UNSURE)).next == f"{flips} 96 --root /r --to csv"
    assert recommend(facts(truth=UNSURE, flipped=150)).next == f"{flips} 50 --root /r --to csv", "there are no more"
    told = replace(UNSURE, labelled_flips=300)
    assert recommend(facts(truth=told)).next == f"{flips} 200 --root /r --to csv", "what is needed was not enough"
    error = replace(UNSURE, measure="error", needed_flips=None, labelled_flips=None)
    assert recommend(facts(truth=error)).next == "drivetrain queue shop-1-new --sample 1960 --root /r --to csv"
    assert recommend(facts(truth=WORSE)).next == ""
    assert recommend(facts(truth=replace(TRUTH, known_training_new=False))).next.startswith("drivetrain reference ")


def test_labels_of_images_that_changed_are_offered_where_they_are_fewer() -> None:
    assert "or about 196 of those that changed" in recommend(facts(truth=UNSURE)).sentence
    few = replace(UNSURE, labelled_flips=3)
    assert "or all 100 of those that changed" in recommend(facts(truth=few, flipped=100)).sentence
    assert "that changed" not in recommend(facts(truth=replace(UNSURE, needed_flips=None))).sentence


def test_reasons_tell_what_is_known_of_both() -> None:
    truth = replace(TRUTH, by_people=400, trained_old=3, trained_new=7)
    reasons = " ".join(recommend(facts(truth=truth, drift_old=DRIFT, slices=(SLICE,))).reasons)
    for said in (
        "90.0% (old) and 93.0% (new): +3.0 points (95 % interval +1.0 to +5.0), p = 0.001 (McNemar exact)",
        "400 of these labels are people's", "no random sample", "Worse on true class 'cat': 90.0% (old), 80.0% (new)",
        "3 labelled images that the old learner was trained on and 7 of the new one", "All 12 tests passed.",
        "Old learner against its own reference: drift. Not alike.", "says nothing of who is right",
    ):  # fmt: skip
        assert said in reasons, said


def test_an_error_is_better_when_it_is_smaller() -> None:
    error = replace(TRUTH, measure="error", old=2.0, new=1.5, difference=-0.5, low=-0.7, high=-0.3, margin=0.1)
    assert recommend(facts(truth=error)).do == "promote"
    assert error.gain_interval == pytest.approx((0.3, 0.7))
    assert difference_of(error) == "-0.5 (95 % interval -0.7 to -0.3)"
    grown = replace(error, new=2.5, difference=0.5, low=0.3, high=0.7)
    assert recommend(facts(truth=grown)).do == "keep"


def test_the_document_has_every_row() -> None:
    text = (Path(__file__).parent.parent / "docs" / "comparison.md").read_text()
    table = text[text.index("## The rule") : text.index("## The file")]
    said = re.findall(r"^\| \d+ \| [^|]+ \| ([a-z ]+?) \|$", table, re.MULTILINE)
    assert said == [
        "look", "keep", "look", "keep", "look", "keep", "keep", "label more", "keep", "label more", "look", "look",
        "look", "look", "promote",
    ]  # fmt: skip
