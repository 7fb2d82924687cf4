"""Two runs over the same images: agreement, flips, the paired change, and who is right more often."""

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from drivetrain.compare import COLUMNS, MOST_FLIPS, Comparison, compare
from drivetrain.errors import RunError
from drivetrain.schema import row_schema

Said = tuple[str, float]


def run_of(*said: Said | None, true: str = "") -> pa.Table:
    """Rows of a run: label and confidence of each image, None where it failed. ``true``: true labels by initial."""
    rows = []
    for number, each in enumerate(said):
        row: dict[str, object] = {"uri": f"/x/{number:04d}.jpg", "status": "ok" if each else "failed"}
        if each:
            row |= {"label": each[0], "confidence": each[1]}
        if true and true[number] != "?":
            row["true_label"] = {"c": "cat", "d": "dog"}[true[number]]
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=row_schema(0)).select(list(COLUMNS))


def regressed(*values: list[float] | None) -> pa.Table:
    rows = [
        {"uri": f"/x/{number:04d}.jpg", "status": "ok" if each else "failed", "values": each}
        for number, each in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema=row_schema(0)).select(list(COLUMNS))


def compared(old: pa.Table, new: pa.Table) -> Comparison:
    return compare("old", "new", old, new)


def test_agreement_and_confusion_are_counted() -> None:
    old = run_of(("cat", 0.9), ("cat", 0.8), ("cat", 0.7), ("dog", 0.6), ("dog", 0.9))
    new = run_of(("cat", 0.9), ("dog", 0.8), ("dog", 0.9), ("cat", 0.6), ("dog", 0.9))
    found = compared(old, new)
    assert (found.images, found.scored_by_both) == (5, 5)
    assert found.agreement == pytest.approx(0.4)
    assert found.confusion == (("cat", "dog", 2), ("dog", "cat", 1))


def test_flips_come_with_the_surest_new_label_first() -> None:
    old = run_of(("cat", 0.9), ("cat", 0.8), ("cat", 0.7))
    new = run_of(("dog", 0.6), ("cat", 0.8), ("dog", 0.95))
    flips = compared(old, new).flips
    assert [flip["uri"] for flip in flips] == ["/x/0002.jpg", "/x/0000.jpg"]
    assert (flips[0]["label"], flips[0]["label_new"]) == ("cat", "dog")
    assert flips[0]["confidence_new"] == pytest.approx(0.95)


def test_no_more_flips_are_kept_than_a_page_can_show_and_all_are_counted() -> None:
    number = MOST_FLIPS + 20
    found = compared(run_of(*[("cat", 0.9)] * number), run_of(*[("dog", 0.9)] * number))
    assert len(found.flips) == MOST_FLIPS
    assert found.confusion == (("cat", "dog", number),)


def test_rows_are_matched_by_uri_whatever_their_order() -> None:
    old = run_of(("cat", 0.9), ("dog", 0.8), ("cat", 0.7))
    new = old.take([2, 0, 1])
    found = compared(old, new)
    assert (found.images, found.agreement) == (3, 1)
    assert found.confidence_change == pytest.approx((0, 0, 0))


def test_images_of_only_one_run_are_left_out() -> None:
    old, new = run_of(("cat", 0.9), ("dog", 0.8), ("cat", 0.7)), run_of(("cat", 0.9), ("cat", 0.8))
    assert compared(old, new).images == 2
    assert compared(new, old).images == 2


def test_no_image_in_common_is_an_error_that_names_both_runs() -> None:
    old, new = run_of(("cat", 0.9), ("dog", 0.8)), run_of(("cat", 0.9), ("dog", 0.8))
    with pytest.raises(RunError, match="runs old and new have no image in common"):
        compared(old.slice(0, 1), new.slice(1))
    with pytest.raises(RunError, match="no image in common"):
        compared(old.slice(0, 0), new)


def test_images_that_failed_on_one_side_are_counted_and_not_compared() -> None:
    old = run_of(("cat", 0.9), None, None, ("cat", 0.5), ("cat", 0.5), ("cat", 0.9))
    new = run_of(("cat", 0.9), ("dog", 0.9), None, None, None, ("dog", 0.9))
    found = compared(old, new)
    assert (found.images, found.scored_by_both, found.only_old, found.only_new) == (6, 2, 2, 1)
    assert found.agreement == 0.5
    assert found.confusion == (("cat", "dog", 1),)


def test_when_every_image_failed_on_one_side_nothing_is_claimed() -> None:
    found = compared(run_of(("cat", 0.9), ("dog", 0.9)), run_of(None, None))
    assert (found.images, found.scored_by_both, found.only_old, found.only_new) == (2, 0, 2, 0)
    assert (found.agreement, found.confidence_change, found.accuracy, found.mcnemar_p, found.value_change) == (
        None,
    ) * 5


def test_the_change_of_confidence_is_paired() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(0.2, 0.6, 200)
    change = rng.normal(0.1, 0.01, 200)
    old = run_of(*[("cat", float(each)) for each in before])
    new = run_of(*[("cat", float(each)) for each in before + change])
    mean, low, high = compared(old, new).confidence_change or (0, 0, 0)
    half = 1.96 * change.std(ddof=1) / np.sqrt(200)
    assert (mean, low, high) == pytest.approx((change.mean(), change.mean() - half, change.mean() + half), abs=1e-6)


def test_one_image_has_a_change_without_an_interval() -> None:
    found = compared(run_of(("cat", 0.5)), run_of(("cat", 0.75)))
    assert found.confidence_change == (0.25, 0.25, 0.25)


def test_accuracy_counts_the_images_whose_true_label_is_known() -> None:
    old = run_of(("cat", 0.9), ("cat", 0.9), ("cat", 0.9), ("dog", 0.9), ("dog", 0.9), true="ccdd?")
    new = run_of(("cat", 0.9), ("dog", 0.9), ("dog", 0.9), ("dog", 0.9), ("cat", 0.9), true="ccdd?")
    found = compared(old, new)
    assert found.labelled == 4
    assert found.accuracy == (0.75, 0.75)
    assert found.mcnemar_p == 1


def test_mcnemar_is_the_exact_binomial_one() -> None:
    # 10 images turned right and 2 turned wrong: twice the chance of 2 or fewer heads of 12.
    said_old: list[Said] = [("dog", 0.9)] * 10 + [("cat", 0.9)] * 2 + [("cat", 0.9)] * 20
    said_new: list[Said] = [("cat", 0.9)] * 10 + [("dog", 0.9)] * 2 + [("cat", 0.9)] * 20
    found = compared(run_of(*said_old, true="c" * 32), run_of(*said_new, true="c" * 32))
    assert found.accuracy == (22 / 32, 30 / 32)
    assert found.mcnemar_p == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert found.mcnemar_p == pytest.approx(0.03857421875)


def test_without_true_labels_no_accuracy_is_claimed() -> None:
    found = compared(run_of(("cat", 0.9)), run_of(("dog", 0.9)))
    assert (found.accuracy, found.labelled, found.mcnemar_p) == (None, 0, None)


def test_a_regression_is_compared_by_its_values() -> None:
    found = compared(regressed([1, 2], [3, 4], None), regressed([1.5, 2], [3, 3], [0, 0]))
    assert found.value_change == pytest.approx((0.5 + 0 + 0 + 1) / 4)
    assert (found.agreement, found.confidence_change, found.accuracy) == (None, None, None)
    assert (found.scored_by_both, found.only_new) == (2, 1)


def test_regressions_of_different_width_have_no_common_change() -> None:
    assert compared(regressed([1, 2]), regressed([1])).value_change is None


def test_the_record_is_json() -> None:
    found = compared(run_of(("cat", 0.9), true="c"), run_of(("dog", 0.9), true="c"))
    record = json.loads(json.dumps(found.record()))
    assert (record["old"], record["new"], record["confusion"]) == ("old", "new", [["cat", "dog", 1]])
