"""The queries of the Grafana dashboard give the right numbers, on a real Ray and a real Prometheus.

A driver uses RunMetrics as a job does; Ray exports, Prometheus scrapes, and every query of dashboards/grafana.json is
asked. Grafana itself is not run: its variables are filled in here, and how the panels look is not seen.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import Prometheus, RayCluster, poll, prometheus_server

from drivetrain import cluster

DASHBOARD = json.loads((Path(__file__).parent.parent / "dashboards" / "grafana.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
QUERIES = {
    f"{title} {target['refId']}": target["expr"]
    for title, panel in PANELS.items()
    for target in panel.get("targets", [])
}
METRICS = {
    "ray_drivetrain_images_scored_total",
    "ray_drivetrain_images_failed_total",
    "ray_drivetrain_runs_committed_total",
    "ray_drivetrain_images_per_second",
    "ray_drivetrain_shards_waiting",
}

# Answers every line with a finished shard; a source and run have one RunMetrics, as in a job. Ends with its input.
DRIVER = """
import sys, ray
from drivetrain.cluster import RunMetrics
ray.init(log_to_driver=False)
runs = {}
for line in sys.stdin:
    source, run, images, failed, waiting = line.split()
    if (source, run) not in runs:
        runs[source, run] = RunMetrics(source, run)
    runs[source, run].add(int(images), int(failed), int(waiting))
    print("added", flush=True)
for each in runs.values():
    each.committed()
"""


def test_the_dashboard_shows_all_that_a_job_exports() -> None:
    named = set(re.findall(r"\bray_drivetrain_\w+", " ".join(QUERIES.values())))
    assert named == METRICS
    assert set(re.findall(r"\bray_drivetrain_\w+", cluster.RunMetrics.__doc__ or "")) == METRICS
    for title in ("Images scored", "Images failed", "Images a second", "Shards waiting", "Failed share"):
        assert title in PANELS
    assert "[14d]" in QUERIES["Silent for 26 hours A"] and "26h" in QUERIES["Silent for 26 hours A"]


def test_the_dashboard_can_be_imported_anywhere() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    macros = {"__range", "__rate_interval"}
    text = json.dumps([panel.get("targets") for panel in DASHBOARD["panels"]])
    assert set(re.findall(r"\$\{?(\w+)", text)) == variables | macros, "a variable that nobody sets, or nobody uses"
    for panel in DASHBOARD["panels"]:
        for part in [panel, *panel.get("targets", [])] if panel["type"] != "text" else []:
            assert part["datasource"]["uid"] == "${datasource}", "a Prometheus that only its author has"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert "id" not in DASHBOARD


def test_no_panel_lies_on_another() -> None:
    cells: dict[tuple[int, int], str] = {}
    for title, panel in PANELS.items():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, f"{title} leaves Grafana's 24 columns"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, f"{title} lies on {cells[x, y]}"
                cells[x, y] = title


class Job:
    """A driver on the cluster that reports finished shards when told."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def finish(self, source: str, run: str, images: int, failed: int, waiting: int) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{source} {run} {images} {failed} {waiting}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "added\n", "the driver ended"


@contextmanager
def job(ray_cluster: RayCluster, log: Path) -> Iterator[Job]:
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env=ray_cluster.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield Job(process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


class Asked:
    """The dashboard's queries, asked as Grafana would, for the sources of this test alone."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus

    def __call__(self, query: str, span: str = "1h", at: float | None = None, **spans: str) -> dict[str, float]:
        """The value of each legend. ``span`` is the range of the dashboard; ``spans``: other words, put for old."""
        expr = QUERIES[query].replace("$source", "grafana-.*").replace("$__range", span)
        expr = expr.replace("$__rate_interval", "10s")
        for old, new in spans.items():
            expr = expr.replace(old.removeprefix("_"), new)
        assert "$" not in expr
        answer = {}
        for series in self._prometheus.query(expr, at):
            labels: dict[str, str] = series["metric"]
            name = " ".join(labels[key].removeprefix("grafana-") for key in ("source", "run") if key in labels)
            assert name not in answer, f"{query}: two series are called {name}"
            answer[name] = float(series["value"][1])
        return answer

    def becomes(self, expected: Any, query: str, **options: Any) -> None:
        """Ask until the answer is as expected: a scrape comes every second, an export too."""
        last: dict[str, float] = {}
        holds: Callable[[dict[str, float]], bool] = expected if callable(expected) else lambda got: got == expected

        def check() -> bool:
            last.clear()
            last.update(self(query, **options))
            return holds(last)

        try:
            poll(check, query, 40)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last answer was {last}") from None


@pytest.mark.thorough
def test_every_query_gives_the_numbers_of_the_jobs(ray_cluster: RayCluster, tmp_path: Path) -> None:
    with prometheus_server([f"127.0.0.1:{ray_cluster.metrics_port}"]) as prometheus:
        ask = Asked(prometheus)
        for query in QUERIES:
            ask(query)  # Prometheus takes each of them, before there is a number too
        assert ask("Silent for 26 hours A") == {"": 1}, "silence is shown where nothing was ever committed"
        with job(ray_cluster, tmp_path / "first.log") as first:
            first.finish("grafana-shop", "shop-1", images=10, failed=1, waiting=3)
            first.finish("grafana-shop", "shop-1", images=20, failed=0, waiting=2)
            first.finish("grafana-web", "web-1", images=8, failed=8, waiting=0)
            first.finish("grafana-lab", "lab-1", images=5, failed=0, waiting=7)
        check_totals(ask)
        check_that_old_counters_are_not_counted_again(ask)
        with job(ray_cluster, tmp_path / "second.log") as second:
            check_speed(ask, second)
        check_silence(ask)


def check_totals(ask: Asked) -> None:
    """What was finished within one scrape, and before the job's end, is counted in full."""
    ask.becomes({"shop": 29, "lab": 5}, "Images scored A")
    ask.becomes({"shop": 1, "web": 8, "lab": 0}, "Images failed A")
    ask.becomes({"shop": 1 / 30, "web": 1, "lab": 0}, "Failed share A")
    ask.becomes({"shop": 29, "lab": 5}, "Images in the last 24 hours A")
    ask.becomes({"shop": 1, "web": 8}, "Images in the last 24 hours B")
    ask.becomes({"shop": 1 / 30, "web": 1, "lab": 0}, "Failed share of the last 24 hours A")
    ask.becomes({"shop shop-1": 2, "web web-1": 0, "lab lab-1": 7}, "Shards waiting A")


def check_that_old_counters_are_not_counted_again(ask: Asked) -> None:
    """Ray exports the counters of ended jobs for as long as the node lives: they must not look like new images."""
    ask.becomes({"shop": 0, "lab": 0}, "Images scored A", span="4s")
    ask.becomes({"shop": 0, "web": 0, "lab": 0}, "Images failed A", span="4s")
    ask.becomes({}, "Failed share A", span="4s")  # 0 of 0 is no share
    assert ask("Images scored A") == {"shop": 29, "lab": 5}


def check_speed(ask: Asked, second: Job) -> None:
    """A second run of a source: its images come on top, and some 20 of them a second."""
    finished = 0

    def steady(answer: dict[str, float]) -> bool:
        nonlocal finished
        second.finish("grafana-shop", "shop-2", images=10, failed=0, waiting=50 - finished)
        finished += 1
        time.sleep(0.4)  # the pace of this job: with poll's own 0.1 s, 20 images a second at most
        return 4 < answer.get("shop shop-2", 0) < 25

    ask.becomes(steady, "Images a second A")
    ask.becomes({"shop": 29 + 10 * finished, "lab": 5}, "Images scored A")
    ask.becomes(lambda waiting: waiting["shop shop-2"] == 51 - finished, "Shards waiting A")
    mean = ask("Images a second B")
    assert set(mean) == {"shop shop-1", "web web-1", "lab lab-1", "shop shop-2"}
    assert 2 < mean["shop shop-2"] < 30


def check_silence(ask: Asked) -> None:
    """Who is silent shows after 26 hours, whether the counters are still exported or gone with the head."""
    now = time.time()
    hours = ask("Hours since a run was committed A", at=now + 600)
    assert set(hours) == {"shop", "web", "lab"} and all(0 <= value <= 0.2 for value in hours.values()), hours
    hours = ask("Hours since a run was committed A", at=now + 30 * 3600)
    assert all(29.7 < value <= 30.1 for value in hours.values()) and set(hours) == {"shop", "web", "lab"}, hours
    assert ask("Silent for 26 hours A", at=now) == {}
    assert ask("Silent for 26 hours A", at=now + 25 * 3600) == {}
    assert set(ask("Silent for 26 hours A", at=now + 27 * 3600)) == {"shop", "web", "lab"}
    assert set(ask("Silent for 26 hours A", at=now + 15 * 24 * 3600)) == {""}
    ask.becomes(lambda silent: set(silent) == {"shop", "web", "lab"}, "Silent for 26 hours A", _26h="4s")
