"""The pages in a real browser, from a folder, offline: they show what they should, and ask nobody for anything."""

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import learners
import pytest

from drivetrain import Config, build_reference, rescore_run, run_night

pytestmark = pytest.mark.slow

CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=20000",
]  # fmt: skip


BROWSER = "not an origin"


@dataclass(frozen=True)
class Seen:
    """A page after its scripts ran: its document, and what the console said."""

    document: str
    console: list[str]
    requests: list[str]


def see(page: Path) -> Seen:
    """Open a page in Chromium; every request that it made is in the net log."""
    with tempfile.TemporaryDirectory() as profile:
        log = Path(profile) / "net.json"
        command = [*CHROMIUM, f"--user-data-dir={profile}", f"--log-net-log={log}", "--dump-dom", f"file://{page}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
        # What Chromium asks on its own behalf has no origin; the rest is the page's doing.
        asked = [
            about["url"]
            for about in events
            if str(about.get("url")).startswith("http") and about.get("initiator", BROWSER) != BROWSER
        ]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(done.stdout, console, asked)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A drifted night with one broken image, its rescore, and the index."""
    folder = tmp_path_factory.mktemp("pages")
    train = learners.write_digits(folder / "train", 0, 600, by_label=True)
    learners.write_digits(folder / "in" / "2026-11-21", 600, 800)
    learners.write_digits(folder / "in" / "2026-11-22", 800, 1000, invert=True)
    (folder / "in" / "2026-11-22" / "<b>broken & odd.jpg").write_bytes(b"no image")
    exports = [
        learners.exported(learners.digits_learner(folder / "train", epochs=3, seed=seed), folder / f"{seed}.pkl")
        for seed in (0, 1)
    ]
    labels = folder / "labels.csv"
    labels.write_text("fname,label,is_valid\n" + "".join(f"{p},{p.parent.name},{i % 2}\n" for i, p in enumerate(train)))
    config = Config(
        root=str(folder / "root"), learner=exports[0].path, trust=tuple(each.sha256 for each in exports), actors=0,
        source="digits", images=f"{folder}/in/{{night}}", labels=str(labels), max_failed=0.5,
    )  # fmt: skip
    build_reference(config.model_copy(update={"images": str(folder / "train")}))
    ok = run_night(Config(**config.model_dump() | {"night": "2026-11-21"}))
    drift = run_night(Config(**config.model_dump() | {"night": "2026-11-22"}))
    assert (ok["verdict"], drift["verdict"]) == ("ok", "drift")
    again = rescore_run(config.model_copy(update={"learner": exports[1].path, "run": drift["run_id"]}))
    return {
        "report": Path(drift["report"]),
        "comparison": Path(again["comparison"]),
        "index": folder / "root" / "site" / "index.html",
    }


@pytest.fixture(scope="module")
def report(pages: dict[str, Path]) -> Seen:
    return see(pages["report"])


def test_a_page_that_asks_for_something_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="https://example.org/picture.png"><script>console.error("wrong")</script>')
    seen = see(page)
    assert seen.requests == ["https://example.org/picture.png"] and any("wrong" in line for line in seen.console)


@pytest.mark.parametrize("name", ["report", "comparison", "index"])
def test_no_console_error_and_no_request_to_anywhere(pages: dict[str, Path], name: str) -> None:
    seen = see(pages[name])
    assert seen.console == []
    assert seen.requests == []


def test_the_report_says_verdict_lever_reasons_and_numbers(report: Seen) -> None:
    text = re.sub(r"<[^>]+>", " ", report.document)
    for said in ("DRIFT", "Lever to pull", "label and retrain, then rescore", "1 of 201 images", "1 undecodable"):
        assert said in text, said
    for title in ("Tonight against what no drift looks like", "Labels, share of the images", "combined (decides)"):
        assert title in text, title


def test_the_report_shows_thumbnails(report: Seen) -> None:
    assert report.document.count("data:image/jpeg;base64,") >= 30


def test_the_report_is_light(pages: dict[str, Path]) -> None:
    """Evidently's own page is 3.7 MB; a page that grows with the night crashed browsers."""
    assert pages["report"].stat().st_size < 6_000_000


def test_the_links_of_the_index_lead_somewhere(pages: dict[str, Path]) -> None:
    seen = see(pages["index"])
    links = re.findall(r'href="([^"]+\.html)"', seen.document)
    assert len(set(links)) == 3, "two reports, each from its row and from its mark of the trend, and a comparison"
    for link in links:
        assert (pages["index"].parent / link).resolve().exists(), link
    rows = seen.document[seen.document.index("<table") :]
    assert rows.index("2026-11-22") < rows.index("2026-11-21"), "newest first"


def test_the_comparison_shows_flips(pages: dict[str, Path]) -> None:
    seen = see(pages["comparison"])
    stored = json.loads(pages["comparison"].with_name("comparison.json").read_text())
    assert stored["scored_by_both"] == 200 and stored["images"] == 201
    assert seen.document.count("<figure>") == min(60, len(stored["flips"]))
    assert "Which label became which" in seen.document
