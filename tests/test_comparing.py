"""A comparison from a root: what it reads beside the rows, what it writes, and when it has to be made again."""

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import PREFIX
from pairs import NEW, OLD, Said, behaves, judged, people_say, reference, scored
from PIL import Image

from drivetrain.compare import COLUMNS
from drivetrain.comparing import compare_and_publish, find_runs, said_of, up_to_date
from drivetrain.comparison import Comparison
from drivetrain.errors import SettingError
from drivetrain.layout import Layout
from drivetrain.lens import learn
from drivetrain.reference import scores_of
from drivetrain.run import Run
from drivetrain.store import Store
from drivetrain.told import lines_of

STORE = Store()


def uri(number: int) -> str:
    return f"{PREFIX}/{number:05d}.jpg"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "root"))


def two_runs(layout: Layout, n: int = 150, wrong_old: int = 30) -> tuple[Run, Run]:
    """All images are cats; the old learner takes the first ones for dogs, the new one is right."""
    before: dict[str, Said] = {uri(each): ("dog" if each < wrong_old else "cat", 0.8) for each in range(n)}
    hashes = {uri(each): f"hash-{each}" for each in range(n)}
    old = scored(STORE, layout, before, hashes=hashes)
    new = scored(STORE, layout, dict.fromkeys(before, ("cat", 0.9)), sha256=NEW, hashes=hashes)
    return old, new


def referenced(layout: Layout, trained: Sequence[str] = ()) -> None:
    """References of both learners; ``trained`` are images that the new one was trained on."""
    for sha256, names in ((OLD, ["/train/a.jpg"]), (NEW, trained or ["/train/b.jpg"])):
        splits = {f"{PREFIX}/{name.rsplit('/', 1)[-1]}": "trained" for name in names}
        splits[f"{PREFIX}/held.jpg"] = "held_out"
        reference(STORE, layout, splits, sha256=sha256, hashes={f"{PREFIX}/b.jpg": "hash-3"})


def published(layout: Layout, old: Run, new: Run) -> Comparison:
    found = compare_and_publish(STORE, layout, old, new)
    stored = json.loads(STORE.read(f"{layout.comparison(found.old, found.new)}/comparison.json"))
    assert stored == json.loads(json.dumps(found.record()))
    return found


def test_a_challenger_that_is_right_more_often_is_recommended_with_what_to_type(layout: Layout) -> None:
    old, new = two_runs(layout)
    people_say(STORE, layout, {uri(each): "cat" for each in range(150)})
    referenced(layout)
    found = published(layout, old, new)
    assert (found.truth.old, found.truth.new) == (pytest.approx(120 / 149), 1)
    assert found.recommendation.do == "promote"
    assert found.recommendation.next == f"drivetrain promote {NEW[:12]} --root {layout.root} --source shop"


def test_images_of_the_new_training_set_are_left_out_by_name_and_by_their_bytes(layout: Layout) -> None:
    old, new = two_runs(layout)
    people_say(STORE, layout, {uri(each): "cat" for each in range(10)})
    # b.jpg has the bytes of image 3.
    referenced(layout, trained=["/x/00001.jpg", "/x/b.jpg"])
    truth = published(layout, old, new).truth
    assert (truth.trained_new, truth.trained_old, truth.labelled) == (2, 0, 8)


def test_without_a_reference_of_the_new_learner_nobody_promotes(layout: Layout) -> None:
    old, new = two_runs(layout)
    people_say(STORE, layout, {uri(each): "cat" for each in range(150)})
    found = published(layout, old, new)
    assert not found.truth.known_training_new and found.recommendation.do == "look"
    assert "no reference" in found.recommendation.sentence + " ".join(found.recommendation.reasons)


def test_a_reference_of_held_out_images_alone_does_not_say_what_was_trained_on(layout: Layout) -> None:
    old, new = two_runs(layout)
    people_say(STORE, layout, {uri(each): "cat" for each in range(150)})
    for sha256 in (OLD, NEW):
        reference(STORE, layout, {f"{PREFIX}/held.jpg": "held_out"}, sha256=sha256)
    found = published(layout, old, new)
    assert (found.truth.known_training_old, found.truth.known_training_new) == (False, False)
    assert found.recommendation.do == "look" and "drivetrain reference" in found.recommendation.next


def test_images_that_were_named_as_trained_on_are_left_out_though_no_reference_holds_them(layout: Layout) -> None:
    old, new = two_runs(layout)
    people_say(STORE, layout, {uri(each): "cat" for each in range(150)})
    referenced(layout)
    compare_and_publish(STORE, layout, old, new)
    names = [f"/home/ann/labelled/{each:05d}.jpg" for each in range(145)]
    reference(STORE, layout, {f"{PREFIX}/held.jpg": "held_out"}, sha256=NEW, elsewhere=names, name="reference-late")
    assert not up_to_date(STORE, layout, old, new)
    found = published(layout, old, new)
    assert (found.truth.trained_new, found.truth.labelled) == (145, 5) and found.truth.known_training_new
    assert found.recommendation.do == "label more"


def test_the_newest_label_of_people_counts(layout: Layout) -> None:
    old, new = two_runs(layout)
    people_say(STORE, layout, {uri(0): "dog", uri(1): "cat"}, when="2026-01-05")
    people_say(STORE, layout, {uri(0): "cat"}, when="2026-01-06")
    truth = published(layout, old, new).truth
    assert (truth.labelled, truth.by_people, truth.old, truth.new) == (2, 2, 0, 1)


def test_each_learners_own_drift_is_that_of_the_latest_record_of_this_very_run(layout: Layout) -> None:
    old, new = two_runs(layout)
    accuracy = {"reference": 0.95, "estimate": 0.9, "low": 0.85, "high": 0.93, "novel": 0.01, "why": ""}
    judged(STORE, layout, old, "ok", number=1)
    folder = judged(STORE, layout, old, "drift", number=2, accuracy=accuracy)
    found = published(layout, old, new)
    assert (found.drift_old.verdict, found.drift_old.p_value, found.drift_old.score, found.drift_old.effect) == (
        "drift", 0.002, 1.7, 0.91,
    )  # fmt: skip
    assert (found.drift_old.estimate, found.drift_old.low, found.drift_old.high) == (0.9, 0.85, 0.93)
    assert found.drift_old.report == f"{folder}/report.html"
    assert found.drift_new.verdict is None
    assert found.drift_new.sentence.endswith(f"drivetrain drift measure --run {new.record.run_id}")
    assert "build a reference of this learner first" in found.drift_new.sentence


def test_the_newest_behaviour_tests_count_and_their_page_is_linked(layout: Layout) -> None:
    old, new = two_runs(layout)
    behaves(STORE, layout, new.record.model_id, passed=True, made="2026-01-05")
    page = behaves(STORE, layout, new.record.model_id, passed=False, made="2026-01-06")
    behaves(STORE, layout, old.record.model_id, passed=True, made="2026-01-07")
    found = published(layout, old, new)
    assert found.behaviour and found.behaviour.page == page and not found.behaviour.passed
    assert found.recommendation.do == "keep"
    folder = Path(layout.comparison(found.old, found.new))
    links = re.findall(r'href="([^"]+)"', (folder / "index.html").read_text())
    assert (folder / next(link for link in links if "behaviour" in link)).resolve() == Path(page)


def test_what_behaviour_tests_broke_is_shown_image_by_image(layout: Layout, tmp_path: Path) -> None:
    old, new = two_runs(layout)
    uris = []
    for number in range(9):
        Image.new("RGB", (40, 32), (200, 20 * number, 0)).save(tmp_path / f"p{number}.png")
        uris.append(str(tmp_path / f"p{number}.png"))
    stays, turns = ({"from": ["cat"], "to": [word], "stayed": word == "cat"} for word in ("cat", "<b>dog"))
    broke = [
        {"uri": uri, "perturbation": "20 % darker", "learner": turns, "champion": turns if number < 2 else stays}
        for number, uri in enumerate(uris)
    ]
    broke.append({"uri": uris[0], "perturbation": "turned left by 5 degrees", "learner": stays, "champion": turns})
    case = {"uri": uris[0], "expected": "emu", "got": ["cat"], "champion_got": ["emu"], "passed": False}
    changes = [
        {"perturbation": name, "passed": name != "20 % darker"} for name in ("20 % darker", "turned left by 5 degrees")
    ]
    about: dict[str, Any] = {"perturbations": changes, "cases": [case, case | {"passed": True}], "broke": broke}
    behaves(STORE, layout, new.record.model_id, passed=False, **about)
    found = published(layout, old, new)
    page = (Path(layout.comparison(found.old, found.new)) / "index.html").read_text()
    section = page[page.index("Behaviour tests of the new learner") :].split("<h2>")[0]
    assert section.count("<b>20 % darker</b>") == 6 and "turned left by 5 degrees" not in section, (
        "few of a change, its own alone"
    )
    assert section.count("<img ") == 6 * 2 + 1, "as it was and as it was changed, and the case"
    assert "champion: cat, stays" in section and "learner: cat → <b>&lt;b&gt;dog</b>" in section
    assert "p0.png<br>must be emu; got <b>cat</b><br>champion: emu" in section and "7 of 10" in section
    assert 'title="' + uris[2] in section and 'title="' + uris[1] not in section, "those first that the champion keeps"


def test_it_is_up_to_date_until_something_new_is_known(layout: Layout) -> None:
    old, new = two_runs(layout)
    assert not up_to_date(STORE, layout, old, new)

    def learnt(do: Callable[[], object]) -> None:
        assert up_to_date(STORE, layout, old, new), "what was looked at before is known"
        do()
        assert not up_to_date(STORE, layout, old, new)
        compare_and_publish(STORE, layout, old, new)

    compare_and_publish(STORE, layout, old, new)
    learnt(lambda: people_say(STORE, layout, {uri(0): "cat"}))
    learnt(lambda: judged(STORE, layout, new, "ok"))
    learnt(lambda: behaves(STORE, layout, new.record.model_id, passed=True))
    learnt(lambda: behaves(STORE, layout, new.record.model_id, passed=False))
    learnt(lambda: referenced(layout))
    assert up_to_date(STORE, layout, old, new)
    # Of the old learner alone nothing is known that would be shown.
    behaves(STORE, layout, old.record.model_id, passed=True)
    assert up_to_date(STORE, layout, old, new)


def test_regions_are_those_of_the_old_learners_reference(layout: Layout) -> None:
    """Two clouds of embeddings, and a new learner that errs in one of them."""
    rng = np.random.default_rng(0)
    said: dict[str, Said] = {
        uri(each): ("cat", 0.9, list(rng.normal(0, 0.1, 3) + (5 if each % 2 else -5))) for each in range(200)
    }
    old = scored(STORE, layout, said)
    broken = {name: ("dog", 0.9) if place % 2 and place < 80 else ("cat", 0.9) for place, name in enumerate(said)}
    new = scored(STORE, layout, broken, sha256=NEW)
    people_say(STORE, layout, dict.fromkeys(said, "cat"))
    note = published(layout, old, new).slices_note
    assert note.startswith("Regions are not looked at: no night has been held against a reference")
    referenced(layout)
    (run_id,) = (name[:-5] for name in STORE.names(layout.references(old.record.model_id)))
    sink = io.BytesIO()
    rows = old.rows(["uri", "embedding", "probs", "values", "confidence", "energy", "label_index", "true_label",
                     "size", "width", "height", "brightness", "contrast", "sharpness"])  # fmt: skip
    np.savez(sink, **learn(scores_of(rows, old.record.vocab), 0).arrays())
    STORE.create(layout.run(run_id).lens(), sink.getvalue())
    assert not up_to_date(STORE, layout, old, new)
    found = published(layout, old, new)
    regions = [each for each in found.slices if each.kind == "region"]
    assert found.slices_note == "" and regions
    assert all(int(name.rsplit("/", 1)[1][:5]) % 2 for each in regions for name in each.examples), "of one cloud"
    assert regions[0].name.endswith(", mostly cat") and regions[0].p_value < 0.05
    assert not any(each.decides for each in regions)


def test_learners_stand_for_their_newest_runs_over_the_same_images(layout: Layout) -> None:
    old, new = two_runs(layout)
    later = scored(STORE, layout, {uri(900): ("cat", 0.9)}, name="2026-01-03")
    for one, other in ((OLD[:12], NEW[:12]), (old.record.run_id, NEW[:8]), (OLD[:8], new.record.run_id)):
        before, now = find_runs(STORE, layout, one, other)
        assert (before.record.run_id, now.record.run_id) == (old.record.run_id, new.record.run_id)
    with pytest.raises(SettingError, match="no two runs over the same images"):
        find_runs(STORE, layout, later.record.run_id, NEW[:12])
    with pytest.raises(SettingError, match="No run 'nobody'"):
        find_runs(STORE, layout, "nobody", new.record.run_id)


def test_a_learner_does_not_stand_for_its_reference_whose_images_it_was_trained_on(layout: Layout) -> None:
    """Both begun within a second, over the same images as an older learner's; "reference-" sorts after "2026-"."""
    old, new = two_runs(layout)
    marks = {uri(each): "trained" for each in range(20)}
    references = [reference(STORE, layout, marks, sha256=each, name="reference-5a5a") for each in (OLD, NEW)]
    assert references[0].record.manifest == references[1].record.manifest
    before, now = find_runs(STORE, layout, OLD[:12], NEW[:12])
    assert (before.record.run_id, now.record.run_id) == (old.record.run_id, new.record.run_id)
    third = reference(STORE, layout, marks, sha256="9d" * 32, name="reference-5a5a")
    with pytest.raises(SettingError, match="no two runs over the same images"):
        find_runs(STORE, layout, OLD[:12], third.record.model_id)
    named = find_runs(STORE, layout, references[0].record.run_id, references[1].record.run_id)
    assert [run.record.run_id for run in named] == [run.record.run_id for run in references]


def test_learners_of_different_tasks_are_refused(layout: Layout) -> None:
    old, _ = two_runs(layout)
    other = Run(STORE, layout, old.record.__class__(**old.record.__dict__ | {"task": "regression", "run_id": "r"}))
    with pytest.raises(SettingError, match="a regression one say things that can't be compared"):
        compare_and_publish(STORE, layout, old, other)


HOSTILE = '<img src=x onerror="alert(1)">'


def test_labels_and_names_are_shown_to_the_letter(layout: Layout) -> None:
    vocab = ("cat", HOSTILE)
    said: dict[str, Said] = {uri(each): ("cat", 0.9) for each in range(60)}
    old = scored(STORE, layout, said, vocab=vocab)
    now: dict[str, Said] = {name: (HOSTILE if name < uri(30) else "cat", 0.9) for name in said}
    new = scored(STORE, layout, now, sha256=NEW, vocab=vocab)
    people_say(STORE, layout, dict.fromkeys(said, HOSTILE))
    found = published(layout, old, new)
    page = STORE.read(f"{layout.comparison(found.old, found.new)}/index.html").decode()
    assert HOSTILE not in page and 'onerror="' not in page
    assert page.count("&lt;img src=x") >= 3


def test_what_is_said_of_it_is_what_a_person_reads(layout: Layout) -> None:
    old, new = two_runs(layout)
    people_say(STORE, layout, {uri(each): "cat" for each in range(150)})
    referenced(layout)
    said = said_of(layout, compare_and_publish(STORE, layout, old, new))
    assert json.loads(json.dumps(said)) and said["flips"] == 30
    lines = lines_of(said)
    assert lines[0] == "80.0% of the labels are the same, 30 changed."
    assert lines[1].startswith("Accuracy on 149 labelled images: 80.5 % (old), 100.0 % (new); difference +19.5, 95 % ")
    assert "Promote the new learner" in lines[-3] and lines[-2].startswith("Next: drivetrain promote ")
    assert lines[-1].startswith("Comparison: ") and lines[-1].endswith("/index.html")


def test_the_worst_part_is_said(layout: Layout) -> None:
    old, new = two_runs(layout)
    people_say(STORE, layout, {uri(each): "cat" for each in range(150)})
    lines = lines_of(said_of(layout, compare_and_publish(STORE, layout, new, old)))
    worst = next(line for line in lines if line.startswith("Worst part: "))
    assert "accuracy 100.0% -> 0.0% on 30 labelled images" in worst or "100.0% -> 80.0% on 150" in worst


def test_the_columns_are_those_of_a_row(layout: Layout) -> None:
    old, _ = two_runs(layout, 3, 1)
    assert old.rows(COLUMNS).column_names == list(COLUMNS)
