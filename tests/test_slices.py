"""Parts of the images: found where the new learner is worse in one, and none where the two are equally good."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from drivetrain.compare import COLUMNS, compare
from drivetrain.comparison import Comparison
from drivetrain.schema import row_schema
from drivetrain.slices import Part, parts_by_folder, parts_by_label, worse

WORDS = np.array(["cat", "dog", "emu", "fox"])
FOLDERS = np.array(["north", "south", "east/a", "east/b"])
N = 2000
Guess = Callable[[npt.NDArray[np.int64], np.random.Generator], npt.NDArray[np.int64]]


def guess(true: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A learner that takes 30 % of the cats for dogs, and 5 % of the others for the next class."""
    wrong = rng.random(len(true)) < np.where(true == 0, 0.3, 0.05)
    return np.where(wrong, (true + 1) % 4, true)


def rows(said: npt.NDArray[np.int64], true: npt.NDArray[np.int64] | None, where: npt.NDArray[np.int64]) -> pa.Table:
    n = len(said)
    columns = {name: pa.nulls(n, row_schema(0).field(name).type) for name in COLUMNS}
    columns |= {
        "uri": pa.array([f"/b/{FOLDERS[folder]}/{number:05d}.jpg" for number, folder in enumerate(where)]),
        "status": pa.array(["ok"] * n),
        "label": pa.array(WORDS[said]),
        "confidence": pa.array(np.full(n, 0.9), pa.float32()),
    }
    if true is not None:
        columns["true_label"] = pa.array(WORDS[true])
    return pa.table(columns)


def world(seed: int, *, new: Guess = guess, n: int = N) -> Comparison:
    rng = np.random.default_rng(seed)
    true, where = rng.integers(0, 4, n), rng.integers(0, 4, n)
    return compare("old", "new", rows(guess(true, rng), true, where), rows(new(true, rng), true, where))


def test_equally_good_learners_have_no_worse_slice() -> None:
    """Cats are missed often, which a cut by one learner's words would take for a fault of the other's."""
    alarms = [any(each.p_value <= 0.05 and each.decides for each in world(seed, n=1000).slices) for seed in range(200)]
    assert np.mean(alarms) <= 0.07
    assert world(0).slices_tested >= 12, "four classes twice, and folders"


def test_cut_by_what_one_learner_says_the_other_looks_worse() -> None:
    """Why a predicted class holds what either calls so: these two are equally good."""
    alarms = {1: 0, 2: 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        true = rng.integers(0, 4, N)
        old, new = guess(true, rng), guess(true, rng)
        words = [pa.chunked_array([WORDS[said].tolist()]) for said in (old, new)]
        uris = pa.chunked_array([[f"/x/{each}" for each in range(N)]])
        right, now = (old == true).astype(np.float64), (new == true).astype(np.float64)
        for cut_by in alarms:
            parts = list(parts_by_label("predicted class", *words[:cut_by]))
            alarms[cut_by] += any(each.p_value <= 0.05 for each in worse(parts, right, now, uris, None, 1.0)[0])
    assert alarms[1] == 20 and alarms[2] <= 3


def test_a_class_that_the_new_learner_lost_is_found_with_its_numbers() -> None:
    def loses_emus(true: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        said = guess(true, rng)
        return np.where((true == 2) & (rng.random(len(true)) < 0.2), 3, said)

    found = world(1, new=loses_emus)
    worst = next(each for each in found.slices if each.kind == "true class")
    assert (worst.name, worst.by, worst.decides) == ("emu", "labels", True)
    assert worst.p_value <= 0.001 and worst.old is not None and worst.new is not None
    assert worst.old - worst.new == pytest.approx(0.2, abs=0.06)
    assert worst.lost - worst.won == round((worst.old - worst.new) * worst.n)
    assert found.slices[0].name in ("emu", "fox"), "what are emus, or called foxes"
    assert found.recommendation.do == "keep"


def test_a_folder_that_the_new_learner_lost_is_found_with_images_that_broke() -> None:
    rng = np.random.default_rng(3)
    true, where = rng.integers(0, 4, N), rng.integers(0, 4, N)
    old = guess(true, rng)
    now = np.where((where == 2) & (rng.random(N) < 0.2), (true + 2) % 4, guess(true, rng))
    found = compare("old", "new", rows(old, true, where), rows(now, true, where))
    folders = [each for each in found.slices if each.kind == "folder"]
    assert folders[0].name in ("east/a/", "east/") and {"east/a/", "east/"} <= {each.name for each in folders}
    assert folders[0].n == (where == 2).sum() or folders[0].name == "east/"
    assert 1 <= len(folders[0].examples) <= 6
    for uri in folders[0].examples:
        number = int(uri.rsplit("/", 1)[1].split(".")[0])
        assert old[number] == true[number] != now[number], "an image that got worse"


def test_regions_are_shown_and_never_decide() -> None:
    """All of the loss lies in one region: it is significant, and no reason to keep."""
    numbers = np.repeat([0, 1, 2], [40, 40, 40])
    old, new = np.ones(120), np.ones(120)
    new[:12] = 0
    uris = pa.chunked_array([[f"/x/{each}" for each in range(120)]])
    parts = [Part("region", str(each), np.flatnonzero(numbers == each), decides=False) for each in range(3)]
    found, tested = worse(parts, old, new, uris, None, 1.0)
    assert tested == 1, "a part in which nothing differs can't be significant, and costs no power"
    assert found[0].name == "0" and found[0].p_value < 0.001 and not found[0].decides


def test_too_few_images_or_differences_are_not_tested() -> None:
    old, new = np.ones(100), np.ones(100)
    new[:19] = 0
    uris = pa.chunked_array([[f"/x/{each}" for each in range(100)]])
    parts = [Part("folder", "19 images", np.arange(19)), Part("folder", "4 differ", np.arange(15, 60))]
    assert worse(parts, old, new, uris, None, 1.0) == ([], 0)


def test_p_values_are_corrected_for_their_number() -> None:
    old, new = np.ones(100), np.ones(100)
    new[:6] = 0
    uris = pa.chunked_array([[f"/x/{each}" for each in range(100)]])
    alone = [Part("folder", "a", np.arange(50))]
    several = [*alone, *(Part("folder", str(each), np.arange(40 + each)) for each in range(3))]
    assert worse(alone, old, new, uris, None, 1.0)[0][0].p_value == pytest.approx(0.5**6)
    assert worse(several, old, new, uris, None, 1.0)[0][0].p_value == pytest.approx(4 * 0.5**6)


def test_folders_are_told_below_the_deepest_that_holds_all() -> None:
    uris = pa.chunked_array(
        [["s3://b/in/2026/a/x/1.jpg", "s3://b/in/2026/a/x/2.jpg"], ["s3://b/in/2026/ab/3.jpg", "s3://b/in/2026/4.jpg"]]
    )
    parts = {part.name: part.places.tolist() for part in parts_by_folder(uris)}
    # a/ holds nothing but a/x/: the same part.
    assert parts == {"a/": [0, 1], "ab/": [2]}
    assert not list(parts_by_folder(pa.chunked_array([["s3://b/1.jpg", "s3://b/2.jpg"]])))


def test_a_class_holds_what_either_calls_so() -> None:
    old, new = pa.chunked_array([["cat", "cat", "dog"]]), pa.chunked_array([["cat", "dog", "dog"]])
    parts = {part.name: part.places.tolist() for part in parts_by_label("predicted class", old, new)}
    assert parts == {"cat": [0, 1], "dog": [1, 2]}


def test_without_labels_the_part_that_changed_most_is_shown_and_decides_nothing() -> None:
    rng = np.random.default_rng(0)
    said, where = rng.integers(0, 4, N), rng.integers(0, 4, N)
    now = np.where((said == 2) & (rng.random(N) < 0.3), 3, said)
    found = compare("old", "new", rows(said, None, where), rows(now, None, where))
    assert found.truth.labelled == 0 and found.slices_by_disagreement
    assert [(each.kind, each.name, each.by) for each in found.slices] == [("predicted class", "emu", "disagreement")]
    (worst,) = found.slices
    assert worst.changed == pytest.approx(0.3, abs=0.05) and not worst.decides
    assert found.recommendation.do == "label more"


def test_without_labels_a_change_that_falls_anywhere_is_in_no_part() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        said, where = rng.integers(0, 4, 1000), rng.integers(0, 4, 1000)
        now = np.where(rng.random(1000) < 0.1, (said + rng.integers(1, 4, 1000)) % 4, said)
        alarms += bool(compare("old", "new", rows(said, None, where), rows(now, None, where)).slices)
    assert alarms / 200 <= 0.07
