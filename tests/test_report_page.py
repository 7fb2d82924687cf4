"""The report's page in a real browser: all of it is there, its pictures load, its rows open, and it asks nobody."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import findings_builder as build
import pytest
from browser import Visit, served, visit

from drivetrain import report
from drivetrain.figures import trend_figure
from drivetrain.findings import Findings, Realised
from drivetrain.report import Page
from drivetrain.store import Store
from drivetrain.widgets import accuracy_text

pytestmark = pytest.mark.slow

MOST_BYTES = 6_000_000
# Every picture of the page, each loaded anew: how many there are, and how many have pixels.
PICTURES = """(async () => {
  const all = [...document.querySelectorAll("image")].map(one => one.href.baseVal);
  const widths = await Promise.all(all.map(source => new Promise(done => {
    const picture = new Image();
    picture.onload = () => done(picture.naturalWidth);
    picture.onerror = () => done(0);
    picture.src = source;
  })));
  return widths;
})()"""
# Opens the first row of each table, and counts the pictures that came with it.
OPENS = """(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  const counts = [];
  for (const at of AT) {
    const before = document.querySelectorAll("image").length;
    document.querySelectorAll("tbody td button")[at].click();
    await wait(3000);
    counts.push(document.querySelectorAll("image").length - before);
  }
  return counts;
})()"""
LINKS = "[...document.querySelectorAll('a[href]')].map(one => one.getAttribute('href'))"


def written(folder: Path, page: Page, **options: bool) -> Path:
    """A page in its place below a root, with its neighbours."""
    place = folder / "root" / "sources" / page.source / "nights" / page.name / page.model_id / "0001"
    place.mkdir(parents=True, exist_ok=True)
    made = report.make(page, build.scored(300, shift=1.0), build.scored(400), Store(), **options)
    (place / "report.html").write_bytes(made.html)
    return place / "report.html"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return build.findings(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def drift(found: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    note = "The webhook did not take the message: it answered 500."
    return written(tmp_path_factory.mktemp("drift"), build.page(found, notes=(note,)))


@pytest.fixture(scope="module")
def seen(drift: Path) -> Visit:
    return visit(drift, PICTURES)


def in_order(text: str, words: Sequence[str]) -> None:
    at = 0
    for word in words:
        place = text.find(word, at)
        assert place >= 0, f"{word!r} is missing after {text[max(0, at - 80) : at]!r}"
        at = place


def test_the_page_shows_everything_from_top_to_bottom(seen: Visit) -> None:
    in_order(
        seen.text,
        (
            "shop, 2026-11-23",
            "◆ DRIFT",
            "The images are not like the ones",
            "Lever to pull: label and retrain, then rescore",
            "Note: The webhook did not take the message",
            "Why",
            "7 of 1207 images (0.6%) could not be scored",
            "p-value",
            "What decides: its null, and tonight",
            "Tonight against what no drift looks like",
            "1,000 of 1,200 images were held against 5,000 images of the reference",
            "What this test could have seen",
            "alarmed on 3 of 400 nights",
            "not seen",
            "The last 30 nights",
            "Estimated accuracy",
            "83.0% (between 79.0% and 86.5%)",
            "Labels, share of the images",
            "Classes as the learner sees them",
            "class 0002",
            "Regions of the reference",
            "The images that moved most",
            "review.parquet beside this page holds 70 more",
            "A map of the images",
            "lie outside the map",
            "Confidence against the reference",
            "Energy against the reference",
            "darker by 1.4 sd",
            "Images that could not be scored",
            "2 empty, 5 undecodable",
            "another format than its name says",
        ),
    )


def test_the_trend_shows_accuracy_by_labels_beside_the_estimate() -> None:
    nights = build.trend(10)
    drawn = {trace.name: list(trace.y) for trace in trend_figure(nights, nights[-1].night, None).data}
    assert drawn["accuracy, by labels"] == [None] * 7 + [0.88, 0.88, None]
    unlabelled = [replace(each, realised=None) for each in nights]
    names = [trace.name for trace in trend_figure(unlabelled, nights[-1].night, None).data]
    assert "accuracy, estimated" in names and "accuracy, by labels" not in names
    only = [replace(each, accuracy=None) for each in nights]
    assert "accuracy, by labels" in [trace.name for trace in trend_figure(only, nights[-1].night, None).data]


def test_no_card_is_wider_than_the_window(drift: Path) -> None:
    edges = '[...document.querySelectorAll(".MuiCard-root")].map(card => card.getBoundingClientRect().right)'
    found = visit(drift, f"[innerWidth, Math.max(...{edges})]").found
    assert found[0] == 1300 and found[1] <= found[0]


def test_each_plot_says_what_it_is_to_who_can_not_see_it(drift: Path) -> None:
    plots = '[...document.querySelectorAll(".js-plotly-plot")].map(p => [p.role, p.ariaLabel])'
    said = visit(drift, plots).found
    assert len(said) > 8 and all(role == "img" and label for role, label in said), said
    assert any("images that moved most" in label for _, label in said)


def test_the_page_asks_nobody_and_the_console_is_silent(seen: Visit) -> None:
    assert seen.console == []
    assert seen.requests == []


def test_every_thumbnail_of_the_queue_loads_and_a_lost_image_is_a_grey_place(seen: Visit) -> None:
    assert len(seen.found) == 29, "30 images are shown, one of which can't be read"
    assert all(width == 96 for width in seen.found)


def test_a_row_of_classes_and_one_of_regions_open_to_pictures(drift: Path) -> None:
    # The table of classes has 10 rows, and the one of regions follows.
    opened = visit(drift, OPENS.replace("AT", "[0, 10]"))
    assert opened.found == [6, 6], "3 of tonight, 3 of the reference"
    assert "nearest of the" in opened.text
    assert opened.console == []


def test_the_links_lead_to_the_index_and_to_the_nights(drift: Path) -> None:
    # Plotly's own mark on each figure is a link too, which nobody follows unasked.
    links = [link for link in visit(drift, LINKS).found if link.endswith(".html")]
    root = drift.parents[6]
    assert (drift.parent / links[0]).resolve() == root / "site" / "index.html"
    nights = [(drift.parent / link).resolve() for link in links[1:]]
    assert len(nights) == 30
    assert nights[0] == drift, "the newest night is this one"
    assert nights[1] == root / f"sources/shop/nights/2026-11-22/{build.MODEL}/0001/report.html"


def test_a_quiet_night_says_ok_and_a_shift_without_harm_says_so(found: Findings, tmp_path: Path) -> None:
    quiet = replace(found, decision=build.decision(0.2), accuracy=build.HARMLESS)
    text = visit(written(tmp_path, build.page(quiet, build.OK))).text
    assert "✔ OK" in text and "Lever to pull: nothing" in text
    assert "The range covers the reference's accuracy." in text
    warned = replace(build.DRIFT, verdict="warn", lever="look")
    text = visit(written(tmp_path, build.page(replace(found, accuracy=build.HARMLESS), warned))).text
    assert "▲ WARN" in text and "covers the reference's accuracy: a shift without harm" in text


def test_the_page_never_says_no_harm_where_the_verdict_says_drift(found: Findings) -> None:
    harmless = accuracy_text(build.HARMLESS, "drift")
    assert "without harm" not in harmless and "can't be told" in harmless
    assert "lies below the reference's accuracy" in accuracy_text(build.ACCURACY, "drift")


REALISED = (Realised("random", 100, 97, 88, 88 / 97, 0.80, 0.95), Realised("moved", 40, 40, 25, 0.625, 0.458, 0.773))


def test_realised_accuracy_stands_beside_the_estimate_and_says_of_which_images(found: Findings, tmp_path: Path) -> None:
    text = visit(written(tmp_path, build.page(found, realised=REALISED))).text
    in_order(
        text,
        (
            "Estimated accuracy, without labels",
            "90.7% (88 of 97)",
            "Realised accuracy, by people's labels",
            "90.7% of the night's images (95% interval 80.0% to 95.0%)",
            "3 more were drawn and have no label",
            "Of the 40 labelled images that were chosen because they moved",
            "this is not the night's accuracy",
            "Labels, share of the images",
        ),
    )
    bare = visit(written(tmp_path, build.page(None, build.UNKNOWN, realised=REALISED[1:]))).text
    assert "this is not the night's accuracy" in bare and "queue --sample 100 draws images that tell it" in bare


def test_where_nothing_can_be_said_of_accuracy_the_page_says_why(found: Findings, tmp_path: Path) -> None:
    text = visit(written(tmp_path, build.page(replace(found, accuracy=build.UNSAID)))).text
    assert "Can't say: 37 % of the images look novel." in text


def test_a_night_without_a_reference_has_a_page(found: Findings, tmp_path: Path) -> None:
    uris = [pair.current for row in found.classes for pair in row.examples]
    unknown = build.page(None, build.UNKNOWN, queue=build.queue(uris), trend=build.trend(last=None))
    seen = visit(written(tmp_path, unknown), PICTURES)
    assert "? UNKNOWN" in seen.text and "build one: drivetrain reference" in seen.text
    assert "The images of which the learner is least sure" in seen.text and " sd" not in seen.text
    assert len(seen.found) == 29 and seen.console == []


def test_the_least_that_findings_may_be_has_a_page(tmp_path: Path) -> None:
    least = Findings(build.decision(0.1))
    bare = build.page(least, build.OK, queue=build.queue([], 0), trend=(), vocab=())
    seen = visit(written(tmp_path, bare))
    assert "Not tried on this reference yet" in seen.text and seen.console == []
    no_numbers = replace(least, decision=replace(least.decision, statistics=()))
    assert "✔ OK" in visit(written(tmp_path, replace(bare, findings=no_numbers))).text


def test_a_thousand_classes_with_the_heaviest_pictures_make_no_heavy_page(tmp_path: Path) -> None:
    heavy = build.findings(tmp_path, 1000, noise=True, score=48.0, regions=build.regions(500, ["/lost"], ["/lost"]))
    page = written(tmp_path, build.page(heavy))
    assert page.stat().st_size < MOST_BYTES
    seen = visit(page, PICTURES)
    assert "900 more of the 1,000 classes are left out here; all are in drift.json" in seen.text
    assert "450 more of the 500 regions are left out here; all are in drift.json" in seen.text
    assert "the 30 of 1,000 that changed most" in seen.text
    assert "off the scale" in seen.text
    assert len(seen.found) == 29 and all(seen.found) and seen.console == []


def test_rows_beyond_the_pictures_open_to_names(found: Findings, tmp_path: Path) -> None:
    uris = [pair.current for row in found.classes for pair in row.examples]
    many = replace(found, classes=build.class_shifts(40, uris, uris), regions=())
    page = build.page(many)
    # The third page of the table: rows 21 to 30.
    script = """(async () => {
      const wait = ms => new Promise(done => setTimeout(done, ms));
      for (const _ of [1, 2]) {
        document.querySelector('[aria-label="Next Page"] button').click();
        await wait(1500);
      }
      document.querySelectorAll("tbody td button")[0].click();
      await wait(2000);
      return document.body.innerText.includes("/tonight/image ");
    })()"""
    assert visit(written(tmp_path, page), script).found is True


HOSTILE = (
    "![x](http://evil.example/a.png)",
    "</script><script>console.error('run')</script>",
    "<img src=http://evil.example/b.png>",
    "[click](javascript:alert(1))",
    "`**\x00\x1b[31m",
)


def test_the_page_can_be_read_on_a_phone(drift: Path) -> None:
    """Evidently's cards hide what is wider than they are: no sentence, number or plot may be so."""
    frame = drift.with_name("frame.html")
    frame.write_text('<body style="margin:0"><iframe src="report.html" width="390" height="800"></iframe></body>')
    script = """(() => {
      const page = document.querySelector("iframe").contentDocument.documentElement;
      const shown = [...page.querySelectorAll(".MuiCardContent-root :is(p, li, h1, h5, .js-plotly-plot)")]
        .filter(one => !one.closest("table")).map(one => one.getBoundingClientRect()).filter(box => box.width);
      const captions = [...page.querySelectorAll("[aria-label*='moved most'] .annotation-text")]
        .map(one => one.getBoundingClientRect()).map(box => [Math.round(box.top), box.left, box.right]);
      return [page.scrollWidth, shown.length, Math.max(...shown.map(box => box.right)), captions];
    })()"""
    with served(drift.parent) as url:
        scroll, shown, right, captions = visit(frame, script, after=15_000, url=url).found
    assert scroll <= 390 and shown > 40 and right <= 390
    beside = [(a, b) for a, b in itertools.pairwise(sorted(captions)) if a[0] == b[0]]
    assert len(beside) == 27 and all(left[2] <= right[1] for left, right in beside), "captions lie over each other"


def test_a_hostile_label_fetches_and_runs_nothing(found: Findings, tmp_path: Path) -> None:
    classes = tuple(
        replace(row, label=HOSTILE[place % len(HOSTILE)] + str(place)) for place, row in enumerate(found.classes)
    )
    regions = tuple(replace(row, label=HOSTILE[place % len(HOSTILE)]) for place, row in enumerate(found.regions))
    verdict = replace(build.DRIFT, sentence=" ".join(HOSTILE), reasons=HOSTILE, lever=HOSTILE[0])
    causes = tuple(replace(each, words=HOSTILE[0], unit=HOSTILE[1]) for each in found.causes)
    hostile = replace(found, classes=classes, regions=regions, causes=causes)
    decision = replace(hostile.decision, grouped_by=HOSTILE[0])
    page = build.page(replace(hostile, decision=decision), verdict, notes=HOSTILE)
    seen = visit(written(tmp_path, page), "document.querySelectorAll('img, a[href^=javascript]').length")
    assert seen.requests == [] and seen.console == []
    assert seen.found == 0
    assert "![x](http://evil.example/a.png)" in seen.text, "it is shown to the letter"


@pytest.mark.thorough
def test_evidentlys_own_measure_stands_beside_ours_when_asked(
    found: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "EMBEDDED_ROWS", 60)
    seen = visit(written(tmp_path, build.page(found), evidently_embeddings=True))
    assert "Evidently's own EmbeddingsDrift, beside ours" in seen.text
    assert "it decides nothing here" in seen.text and "Drift detection method" in seen.text
    assert seen.console == []


def test_evidentlys_own_measure_is_left_out_where_there_are_no_embeddings() -> None:
    few, none = build.scored(30), build.scored(100).drop_columns(["embedding"])
    assert report._evidently_embeddings(build.scored(100), None) is None
    assert report._evidently_embeddings(few, build.scored(100)) is None
    assert report._evidently_embeddings(none, build.scored(100)) is None


def test_the_snapshot_holds_each_series_and_its_threshold(found: Findings) -> None:
    made = report.make(build.page(found), build.scored(50), build.scored(60), Store())
    metrics = {each["metric_name"]: each for each in json.loads(made.json)["metrics"]}
    names = {re.sub(r"\(.*", "", name) for name in metrics}
    shipped = json.loads((Path(__file__).parent.parent / "dashboards" / "evidently.json").read_text())
    drawn = {value["metric"] for tab in shipped["tabs"] for panel in tab["panels"] for value in panel["values"]}
    assert drawn <= names, "a panel without a series"
    value = {re.sub(r"\(.*", "", name): each["value"] for name, each in metrics.items()}
    assert (value["DriftScore"], value["DriftThreshold"]) == (pytest.approx(3.2), 1)
    assert (value["DriftAlpha"], value["EffectFloor"]) == (0.01, 0.55)
    assert (value["EstimatedAccuracy"], value["ReferenceAccuracy"]) == (0.83, 0.914)
    assert (value["ScoredImages"], value["FailedAllowed"]) == (1200, 0.01)
