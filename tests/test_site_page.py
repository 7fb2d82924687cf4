"""The index of all nights in a real browser, wide and on a phone; and the same nights as Prometheus reads them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from browser import Visit, served, visit
from servers import S3Server, poll, prometheus_server

from drivetrain import site
from drivetrain.exposition import exposition
from drivetrain.layout import Layout
from drivetrain.nights import Night
from drivetrain.store import Store

MODEL = "3fa9c1d2aaaa"
MADE = "2026-11-24T02:10:00.000000+00:00"
WORDS = ("ok", "ok", "warn", "unknown", "drift")
LEVERS = {
    "ok": "nothing",
    "warn": "look",
    "drift": "label and retrain, then rescore",
    "unknown": "build one: drivetrain",
}
SOURCES = ("shop", "a-source-with-a-very-long-name-such-as-people-make-of-bucket-and-path")


def filled(store: Store, root: str) -> Layout:
    """A root with two sources of 5 nights, the last of them planned; the first one's record has no score yet."""
    layout = Layout(root)
    for source in SOURCES:
        for place, word in enumerate(WORDS):
            night = f"2026-11-{19 + place}"
            record = layout.plan(source, "night", night).record(MODEL, 1)
            measured = word != "unknown"
            numbers: dict[str, Any] = {"rows": 1_234_567, "failed": 1200, "p_value": None, "effect": None}
            if measured:
                numbers |= {"p_value": 0.000999 * (place + 1), "effect": 0.5 + place / 10}
            if place:
                numbers |= {"score": place * 0.9 if measured else None, "accuracy": 0.87 if measured else None}
            verdict = {"verdict": word, "lever": LEVERS[word], "numbers": numbers, "made": MADE}
            store.replace(record.verdict, json.dumps(verdict).encode())
            store.replace(record.report, b"<html>report</html>")
    site.build(store, layout)
    return layout


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = filled(Store(), str(tmp_path_factory.mktemp("site") / "root"))
    return Path(layout.site) / "index.html"


LINKS = """[...document.querySelectorAll('a')].map(one => one.href.baseVal || one.getAttribute('href'))"""


@pytest.mark.slow
def test_the_index_shows_each_night_with_its_numbers(index: Path) -> None:
    seen = visit(index, LINKS, after=500)
    assert seen.console == [] and seen.requests == []
    for said in (*SOURCES, "◆ drift", "✔ ok", "▲ warn", "? unknown", "1,234,567", "3.60", "87.0%", "0.005"):
        assert said in seen.text, said
    reports = [link for link in seen.found if link.endswith("report.html")]
    # Each of 5 nights in the table; those with a score in the trend as well.
    assert len(reports) == len(SOURCES) * (5 + 3)
    for link in reports:
        assert (index.parent / link).resolve().exists(), link


@pytest.mark.slow
def test_the_trend_says_in_words_what_it_draws(index: Path) -> None:
    script = "[...document.querySelectorAll('svg[role=img]')].map(one => one.getAttribute('aria-label'))"
    labels = visit(index, script, after=500).found
    assert len(labels) == 2
    assert labels[1].startswith("Drift score of the last 3 measured nights of shop, oldest left; 1 of them are drift.")
    titles = visit(index, "[...document.querySelectorAll('svg title')].map(one => one.textContent)", after=500).found
    assert titles[-1] == "2026-11-23: drift, score 3.60"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 700, 1300])
def test_the_index_is_never_wider_than_the_screen(index: Path, width: int, tmp_path: Path) -> None:
    # A window of Chromium has a least width of its own: the screen of a phone is a frame.
    frame = index.with_name("frame.html")
    frame.write_text(f'<body style="margin:0"><iframe src="index.html" width="{width}" height="800"></iframe></body>')
    script = """(() => {
      const page = document.querySelector("iframe").contentDocument.documentElement;
      const right = [...page.querySelectorAll("body *")].map(one => one.getBoundingClientRect())
        .filter(box => box.width && box.right > 0).map(box => box.right);
      return [page.scrollWidth, Math.max(...right)];
    })()"""
    scroll, right = visit_with_files(frame, script).found
    assert scroll <= width
    assert right <= width + 1


def visit_with_files(page: Path, script: str) -> Visit:
    """A page that looks into a frame of another file: from file:// only with a server."""
    with served(page.parent) as url:
        return visit(page, script, after=1500, url=url)


# --- Prometheus ---


def night(name: str, verdict: str = "ok", source: str = "shop", **changes: Any) -> Night:
    about = {"state": "done", "images": 10, "failed": 0, "lever": "nothing", "report": "/r", "made": MADE} | changes
    return Night(source=source, night=name, verdict=verdict, **about)


def test_the_newest_judged_night_of_each_source_is_told() -> None:
    text = exposition(
        [
            night("2026-11-22", "drift", p_value=0.001, effect=0.8, score=3.25, accuracy=0.7),
            night("2026-11-21", "ok", p_value=0.5, effect=0.5, score=0.1),
            night("2026-11-23", "", state="planned", made=""),
            night("2026-11-20", "unknown", source="web"),
        ]
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        'drivetrain_verdict{source="shop"} 2',
        'drivetrain_verdict{source="web"} -1',
        'drivetrain_p_value{source="shop"} 0.001',
        'drivetrain_effect{source="shop"} 0.8',
        'drivetrain_score{source="shop"} 3.25',
        'drivetrain_estimated_accuracy{source="shop"} 0.7',
        'drivetrain_night_timestamp_seconds{source="shop"} 1795305600.0',
        'drivetrain_night_timestamp_seconds{source="web"} 1795132800.0',
        'drivetrain_last_success_timestamp_seconds{source="shop"} 1795486200.0',
        'drivetrain_last_success_timestamp_seconds{source="web"} 1795486200.0',
    ]
    assert text.count("# HELP") == text.count("# TYPE") == 7


def test_a_root_without_a_judged_night_has_no_metric_and_still_a_file(tmp_path: Path) -> None:
    assert exposition([night("2026-11-23", "", state="running", made="")]) == ""
    layout = Layout(str(tmp_path / "root"))
    site.build(Store(), layout)
    assert Path(layout.metrics).read_text() == "# No night has been judged yet.\n"


@pytest.mark.slow
def test_a_real_prometheus_reads_the_file_and_the_dashboards_queries_find_it(index: Path) -> None:
    dashboard = json.loads((Path(__file__).parent.parent / "dashboards" / "grafana.json").read_text())
    queries = {
        (panel["title"], target["refId"]): target["expr"].replace("$source", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        if "site/metrics.prom" in panel["description"]
    }
    with (
        served(index.parent, "text/plain; version=0.0.4") as url,
        prometheus_server([url.removeprefix("http://")]) as prometheus,
    ):
        poll(lambda: prometheus.query("drivetrain_verdict"), "Prometheus has read metrics.prom", 40)
        found = {
            name: {each["metric"]["source"]: float(each["value"][1]) for each in prometheus.query(expr)}
            for name, expr in queries.items()
        }
    assert len(queries) == 6
    hours = found.pop(("Hours since a night was judged", "A"))
    assert set(hours) == set(SOURCES)
    assert all(abs(each - (time.time() - 1795486200) / 3600) < 1 for each in hours.values())
    assert found == {
        ("Verdict of the newest night", "A"): dict.fromkeys(SOURCES, 2),
        ("Drift score", "A"): dict.fromkeys(SOURCES, 3.6),
        ("Drift p-value and effect", "A"): dict.fromkeys(SOURCES, 0.000999 * 5),
        ("Drift p-value and effect", "B"): dict.fromkeys(SOURCES, 0.9),
        ("Estimated accuracy", "A"): dict.fromkeys(SOURCES, 0.87),
    }


@pytest.mark.slow
def test_in_a_bucket_the_file_is_sent_as_text(s3: S3Server) -> None:
    bucket = s3.bucket()
    layout = filled(Store(s3.storage), f"{bucket}/root")
    about = s3.client().info(layout.metrics)
    assert about["ContentType"] == "text/plain"
    assert s3.client().info(f"{layout.site}/index.html")["ContentType"] == "text/html"
