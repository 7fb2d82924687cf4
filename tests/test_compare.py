"""Two runs over the same images: agreement, flips, the paired change, and who is right more often."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom, wilcoxon

from drivetrain.compare import COLUMNS, MOST_FLIPS, Known, compare
from drivetrain.comparison import Comparison
from drivetrain.errors import RunError
from drivetrain.labelfiles import delimiter_of
from drivetrain.layout import Layout
from drivetrain.paired import newcombe
from drivetrain.schema import row_schema
from drivetrain.site import comparison_page
from drivetrain.truth import Joined, Training

Said = tuple[str, float]
NO_TRAINING = Training(pa.array([], pa.string()), pa.array([], pa.string()))


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


def tagged(*said: list[str] | None, true: tuple[str | None, ...] = ()) -> pa.Table:
    """Rows of a multi-label run."""
    rows = []
    for number, each in enumerate(said):
        row: dict[str, object] = {"uri": f"/x/{number:04d}.jpg", "status": "ok" if each is not None else "failed"}
        if each is not None:
            row |= {"labels": each, "label": (each or ["cat"])[0], "confidence": 0.75}
        rows.append(row | ({"true_label": true[number]} if true else {}))
    return pa.Table.from_pylist(rows, schema=row_schema(0)).select(list(COLUMNS))


def compared(old: pa.Table, new: pa.Table, **known: Any) -> Comparison:
    return compare("old", "new", old, new, Known(**known))


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
    assert (found.agreement, found.confidence_change, found.truth.old, found.truth.p_value, found.value_change) == (
        None,
    ) * 5
    assert found.recommendation.do == "look"


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


def test_the_agreement_has_wilsons_interval() -> None:
    found = compared(run_of(*[("cat", 0.9)] * 10), run_of(*[("cat", 0.9)] * 8, *[("dog", 0.9)] * 2))
    assert found.agreement == 0.8
    assert found.agreement_interval == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_accuracy_counts_the_images_whose_true_label_is_known() -> None:
    old = run_of(("cat", 0.9), ("cat", 0.9), ("cat", 0.9), ("dog", 0.9), ("dog", 0.9), true="ccdd?")
    new = run_of(("cat", 0.9), ("dog", 0.9), ("dog", 0.9), ("dog", 0.9), ("cat", 0.9), true="ccdd?")
    truth = compared(old, new).truth
    assert (truth.labelled, truth.measure, truth.test) == (4, "accuracy", "McNemar exact")
    assert (truth.old, truth.new, truth.difference, truth.p_value) == (0.75, 0.75, 0, 1)
    assert (truth.lost, truth.won) == (1, 1)


def test_mcnemar_is_the_exact_binomial_one() -> None:
    # 10 images turned right and 2 turned wrong: twice the chance of 2 or fewer heads of 12.
    said_old: list[Said] = [("dog", 0.9)] * 10 + [("cat", 0.9)] * 2 + [("cat", 0.9)] * 20
    said_new: list[Said] = [("cat", 0.9)] * 10 + [("dog", 0.9)] * 2 + [("cat", 0.9)] * 20
    truth = compared(run_of(*said_old, true="c" * 32), run_of(*said_new, true="c" * 32)).truth
    assert (truth.old, truth.new) == (22 / 32, 30 / 32)
    assert truth.p_value == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert truth.p_value == pytest.approx(0.03857421875)
    assert (truth.low, truth.high) == pytest.approx(newcombe(20, 2, 10, 0))


def test_without_true_labels_no_accuracy_is_claimed() -> None:
    truth = compared(run_of(("cat", 0.9)), run_of(("dog", 0.9))).truth
    assert (truth.old, truth.new, truth.difference, truth.low, truth.high, truth.p_value) == (None,) * 6
    assert truth.labelled == 0


def test_labels_of_people_win_over_the_column() -> None:
    old, new = run_of(("cat", 0.9), ("cat", 0.9), true="cc"), run_of(("dog", 0.9), ("cat", 0.9), true="cc")
    assert compared(old, new).truth.new == 0.5
    found = compared(old, new, people={"/x/0000.jpg": "dog", "/other.jpg": "cat"})
    assert (found.truth.old, found.truth.new) == (0.5, 1)
    assert (found.truth.labelled, found.truth.by_people) == (2, 1)
    assert found.flips[0]["true_label"] == "dog"
    assert any("no random sample" in reason for reason in found.recommendation.reasons)


def test_an_empty_label_of_people_is_none() -> None:
    found = compared(run_of(("cat", 0.9)), run_of(("dog", 0.9)), people={"/x/0000.jpg": ""})
    assert found.truth.labelled == 0


def test_images_that_either_learner_was_trained_on_are_left_out_by_name_and_by_bytes() -> None:
    old = run_of(*[("cat", 0.9)] * 5, true="ccccc")
    new = run_of(*[("dog", 0.9)] * 5, true="ccccc")
    hashes = pa.array(["h0", "h1", "h2", None, "h4"], pa.string())
    old, new = (table.set_column(table.column_names.index("content_hash"), "content_hash", hashes)
                for table in (old, new))  # fmt: skip
    trained = Training(pa.array(["/x/0001.jpg"], pa.string()), pa.array(["h4"], pa.string()))
    before = Training(pa.array(["/x/0001.jpg", "/x/0002.jpg"], pa.string()), pa.array([], pa.string()))
    truth = compared(old, new, training=(before, trained)).truth
    assert (truth.labelled, truth.trained_old, truth.trained_new) == (2, 2, 2)
    assert (truth.known_training_old, truth.known_training_new) == (True, True)
    found = compared(old, new, training=(None, trained))
    assert (found.truth.labelled, found.truth.known_training_old) == (3, False)
    assert any("Accuracy told only on images that no training saw" in each for each in found.recommendation.reasons)


def test_labelled_images_that_only_one_scored_are_counted() -> None:
    old = run_of(("cat", 0.9), None, ("cat", 0.9), ("cat", 0.9), true="ccc?")
    new = run_of(("cat", 0.9), ("cat", 0.9), None, None, true="ccc?")
    truth = compared(old, new).truth
    assert (truth.labelled, truth.only_old, truth.only_new) == (1, 1, 1)


def test_classes_that_came_and_went_are_listed_and_labels_of_neither_are_counted() -> None:
    found = compared(
        run_of(("cat", 0.9), ("cat", 0.9)),
        run_of(("emu", 0.9), ("dog", 0.9)),
        vocabs=(("cat", "dog", "fox"), ("dog", "emu")),
        people={"/x/0000.jpg": "gnu", "/x/0001.jpg": "dog"},
    )
    assert (found.classes_added, found.classes_removed) == (("emu",), ("cat", "fox"))
    assert (found.truth.foreign, found.truth.old, found.truth.new) == (1, 0, 0.5)


def test_sets_of_labels_agree_when_they_are_equal() -> None:
    found = compared(
        tagged(["cat", "dog"], ["cat"], [], None),
        tagged(["dog", "cat"], ["cat", "dog"], [], ["cat"]),
        task="multi_label",
    )
    assert found.agreement == pytest.approx(2 / 3)
    assert found.overlap == pytest.approx((1 + 0.5 + 1) / 3)
    assert found.confusion == (("cat", "cat, dog", 1),)
    assert found.flips[0]["label_new"] == "cat, dog"


def test_sets_of_labels_are_right_by_what_they_share_with_the_true_set() -> None:
    true = ("cat;dog", "cat dog", "cat", "")
    old = tagged(["cat"], ["cat"], ["cat"], ["cat"], true=true)
    new = tagged(["cat", "dog"], ["cat", "dog"], ["dog"], [], true=true)
    truth = compared(old, new, task="multi_label").truth
    assert (truth.measure, truth.labelled) == ("jaccard", 4)
    assert (truth.old, truth.new) == pytest.approx(((0.5 + 0.5 + 1 + 0) / 4, (1 + 1 + 0 + 1) / 4))
    assert (truth.lost, truth.won, truth.test) == (1, 3, "Wilcoxon signed-rank")


def test_a_class_of_a_set_may_hold_a_space() -> None:
    assert Joined({"polar bear"}).classes_of("polar bear") == {"polar bear"}
    assert Joined({"polar bear", "cat"}).classes_of("polar bear; cat") == {"polar bear", "cat"}
    assert Joined(()).classes_of("cat dog") == {"cat", "dog"}


def test_a_class_of_a_set_may_hold_what_joins_others() -> None:
    """With a class `a;b` labels are joined by the next mark that no class has, as labels files do."""
    vocab = ("a;b", "cat")
    assert Joined(vocab).classes_of(delimiter_of(vocab).join(vocab)) == set(vocab)
    old, new = tagged(["cat"], true=("a;b|cat",)), tagged(["a;b", "cat"], true=("a;b|cat",))
    truth = compared(old, new, task="multi_label", vocabs=(vocab, vocab)).truth
    assert (truth.old, truth.new) == (0.5, 1.0)


def test_the_true_set_of_a_flip_is_written_as_what_was_said() -> None:
    old, new = tagged(["cat"], ["cat"], ["dog"]), tagged(["dog", "cat"], [], ["cat"])
    people = {"/x/0000.jpg": "dog;cat", "/x/0001.jpg": ""}
    flips = {flip["uri"]: flip for flip in compared(old, new, task="multi_label", people=people).flips}
    assert flips["/x/0000.jpg"]["true_label"] == flips["/x/0000.jpg"]["label_new"] == "cat, dog"
    assert flips["/x/0001.jpg"]["true_label"] == flips["/x/0001.jpg"]["label_new"] == "(none)"
    assert flips["/x/0002.jpg"]["true_label"] is None


def test_the_page_marks_which_set_is_right() -> None:
    old, new = tagged(["cat"], ["cat"], ["dog"]), tagged(["dog", "cat"], ["dog"], ["cat"])
    people = {"/x/0000.jpg": "dog;cat", "/x/0001.jpg": "cat", "/x/0002.jpg": "emu"}
    found = compared(old, new, task="multi_label", people=people)
    page = comparison_page(Layout("/r"), found, found.flips, {}).decode()
    assert "true label: cat, dog ✔ new" in page and "true label: cat ✘ new" in page
    assert (page.count("✔ new"), page.count("✘ new")) == (1, 1), "of emu neither is right"


def test_a_regression_is_compared_by_its_values() -> None:
    found = compared(
        regressed([1, 2], [3, 4], None), regressed([1.5, 2], [3, 3], [0, 0]), task="regression"
    )  # fmt: skip
    assert found.value_change == pytest.approx((0.5 + 0 + 0 + 1) / 4)
    assert (found.agreement, found.confidence_change, found.truth.old) == (None, None, None)
    assert (found.scored_by_both, found.only_new, found.flipped) == (2, 1, 0)


def test_regressions_of_different_width_have_no_common_change() -> None:
    assert compared(regressed([1, 2]), regressed([1]), task="regression").value_change is None


def test_a_regression_that_errs_less_is_better_and_the_difference_says_so() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 10, 200)
    off_old, off_new = rng.normal(0, 1, 200), rng.normal(0, 0.5, 200)
    people = {f"/x/{number:04d}.jpg": f"{value}" for number, value in enumerate(true)} | {"/x/0007.jpg": "seven"}
    found = compared(
        regressed(*([float(each)] for each in true + off_old)),
        regressed(*([float(each)] for each in true + off_new)),
        task="regression",
        people=people,
        training=(NO_TRAINING, NO_TRAINING),
    )
    truth, kept = found.truth, np.arange(200) != 7
    assert (truth.measure, truth.labelled, truth.unreadable) == ("error", 199, 1)
    assert truth.old == pytest.approx(np.abs(off_old[kept]).mean(), abs=1e-5)
    assert truth.difference == pytest.approx((np.abs(off_new) - np.abs(off_old))[kept].mean(), abs=1e-5)
    assert truth.low is not None and truth.high is not None and truth.low < truth.difference < truth.high < 0
    expected = wilcoxon(np.abs(off_new[kept]) - np.abs(off_old[kept])).pvalue
    assert truth.p_value == pytest.approx(expected, rel=1e-3) and truth.gain > 0
    assert found.recommendation.do == "promote"


def test_rows_in_another_order_give_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    words = ("cat", "dog")
    old, new = (run_of(*[(words[each], 0.5) for each in rng.integers(0, 2, 300)], true="cd" * 150) for _ in range(2))
    one, other = compared(old, new), compared(old, new.take(rng.permutation(300)))
    assert (one.truth, one.agreement, one.confusion) == (other.truth, other.agreement, other.confusion)


def test_the_record_is_json() -> None:
    found = compared(run_of(("cat", 0.9), true="c"), run_of(("dog", 0.9), true="c"))
    record = json.loads(json.dumps(found.record()))
    assert (record["old"], record["new"], record["confusion"]) == ("old", "new", [["cat", "dog", 1]])
