"""The page of a comparison in a real browser, wide and on a phone: it shows what it should, and asks nobody."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from browser import served, visit
from pairs import NEW, Said, behaves, judged, people_say, reference, scored
from PIL import Image
from sklearn.datasets import load_digits

from drivetrain.comparing import compare_and_publish
from drivetrain.comparison import Comparison
from drivetrain.images import ObjectInfo
from drivetrain.layout import Layout
from drivetrain.store import Store

pytestmark = pytest.mark.slow

HOSTILE = "eight & <b>nine</b>"
VOCAB = (*"01234567", HOSTILE, "9")
FOLDERS = ("camera-north", "camera-south", "a-folder-with-a-very-long-name-such-as-people-make-of-sites-and-cameras")


class Made(NamedTuple):
    page: Path
    comparison: Comparison


def digits(folder: Path, number: int) -> tuple[list[ObjectInfo], list[int]]:
    """Real digits in folders, and which each is."""
    found = load_digits()
    objects = []
    for place in range(number):
        path = folder / FOLDERS[place % 3] / f"d{place:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[place] * 255 / 16).astype(np.uint8)).resize((28, 28)).save(path)
        objects.append(ObjectInfo(str(path), path.stat().st_size, f"e{place}", datetime(2026, 1, 2, tzinfo=UTC)))
    return objects, found.target[:number].tolist()


def make(folder: Path, *, labels: bool) -> Made:
    """The new learner is better on the whole and has lost the sevens; some images failed, and one can't be shown."""
    store, layout = Store(), Layout(str(folder / "root"))
    objects, true = digits(folder / "images", 900)
    rng = np.random.default_rng(0)
    before: dict[str, Said] = {}
    now: dict[str, Said] = {}
    for each, digit in zip(objects, true, strict=True):
        old = int(rng.integers(0, 10)) if rng.random() < 0.25 else digit
        new = int(rng.integers(0, 10)) if rng.random() < 0.05 else digit
        new = 1 if digit == 7 and rng.random() < 0.6 else new
        before[each.uri] = (VOCAB[old], float(rng.uniform(0.4, 1)))
        now[each.uri] = (VOCAB[new], float(rng.uniform(0.5, 1)))
    before[objects[5].uri] = now[objects[6].uri] = None
    runs = [
        scored(store, layout, before, vocab=VOCAB, objects=objects, name="2026-11-22"),
        scored(store, layout, now, sha256=NEW, vocab=VOCAB, objects=objects, name="2026-11-22"),
    ]
    accuracy = {"reference": 0.96, "estimate": 0.78, "low": 0.7, "high": 0.83, "novel": 0.02, "why": ""}
    judged(store, layout, runs[0], "drift", accuracy=accuracy)
    if labels:
        people_say(store, layout, {each.uri: VOCAB[digit] for each, digit in zip(objects, true, strict=True)})
        splits = {f"/bucket/images/t{place}.jpg": "trained" for place in range(3)} | {objects[0].uri: "trained"}
        marked = [each for each in objects if each.uri in splits]
        marked += [ObjectInfo(uri, 10, "e", None) for uri in splits if uri.startswith("/bucket")]
        reference(store, layout, splits, sha256=NEW, objects=marked)
        behaves(store, layout, NEW[:12], passed=True)
    Path(objects[7].uri).unlink()
    found = compare_and_publish(store, layout, *runs)
    return Made(Path(layout.comparison(found.old, found.new)) / "index.html", found)


@pytest.fixture(scope="module")
def judged_page(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("labels"), labels=True)


@pytest.fixture(scope="module")
def unlabelled_page(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("none"), labels=False)


IMAGES = "[...document.querySelectorAll('img')].map(one => [one.alt, one.naturalWidth, one.src.slice(0, 22)])"


def test_the_page_shows_the_recommendation_and_asks_nobody(judged_page: Made) -> None:
    seen = visit(judged_page.page, IMAGES, after=300)
    assert seen.console == [] and seen.requests == []
    found = judged_page.comparison
    assert found.recommendation.do == "look", "better on the whole, and the sevens are lost"
    for said in (found.recommendation.sentence, "Who is right more often", "true class 7", "◆ drift", "not measured",
                 "was trained on and 1 of the new one are left out", "✔ passed", "78.0%", HOSTILE):  # fmt: skip
        assert said in seen.text, said
    assert len(seen.found) > 60
    assert {(width, source) for _, width, source in seen.found} == {(96, "data:image/jpeg;base64")}
    assert all(alt.startswith("d0") for alt, _, _ in seen.found)


def test_without_labels_it_says_what_changed_and_how_many_are_needed(unlabelled_page: Made) -> None:
    seen = visit(unlabelled_page.page, after=300)
    found = unlabelled_page.comparison
    assert found.recommendation.do == "label more"
    for said in ("Where the two differ most", "predicted class 7", "No labelled image", "Label more:", "None yet.",
                 f"{found.truth.needed:,} labelled images would show a difference of 2 points"):  # fmt: skip
        assert said in seen.text, said
    assert "got worse" not in seen.text


@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_is_never_wider_than_the_screen(judged_page: Made, width: int) -> None:
    frame = judged_page.page.with_name("frame.html")
    frame.write_text(f'<body style="margin:0"><iframe src="index.html" width="{width}" height="800"></iframe></body>')
    script = """(() => {
      const page = document.querySelector("iframe").contentDocument.documentElement;
      const right = [...page.querySelectorAll("body *")].map(one => one.getBoundingClientRect())
        .filter(box => box.width && box.right > 0).map(box => box.right);
      return [page.scrollWidth, Math.max(...right)];
    })()"""
    with served(frame.parent) as url:
        scroll, right = visit(frame, script, after=1000, url=url).found
    assert scroll <= width and right <= width + 1
