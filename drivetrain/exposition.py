"""The newest night of each source in Prometheus' text format, as a file under the root.

Knows the format. Does not know who reads it: node_exporter's textfile collector, or a scrape of the bucket over HTTP.
A gauge that a job exports is gone with the job, and a night is judged in its last second; a file stays until the next
night. It works without Ray.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from drivetrain.nights import Night

CODES = {"ok": 0, "warn": 1, "drift": 2, "unknown": -1}


def exposition(nights: Sequence[Night]) -> str:
    """The metrics of all sources. ``nights`` in any order; those that were not judged are passed over."""
    newest: dict[str, Night] = {}
    for night in sorted((each for each in nights if each.verdict), key=lambda each: each.night):
        newest[night.source] = night
    lines: list[str] = []
    for name, (text, value) in GAUGES.items():
        found = [(source, value(night)) for source, night in sorted(newest.items())]
        there = [(source, number) for source, number in found if number is not None]
        if there:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [f'{name}{{source="{_escaped(source)}"}} {number!r}' for source, number in there]
    return "".join(f"{line}\n" for line in lines)


GAUGES: dict[str, tuple[str, Callable[[Night], float | None]]] = {
    "drivetrain_verdict": (
        "Verdict on the source's newest judged night: 0 ok, 1 warn, 2 drift, -1 unknown.",
        lambda night: CODES[night.verdict],
    ),
    "drivetrain_p_value": ("p-value of that night.", lambda night: night.p_value),
    "drivetrain_effect": ("Effect of that night: 0.5 is chance, 1 is always told apart.", lambda night: night.effect),
    "drivetrain_score": ("Drift score of that night: 0 is usual, 1 is the threshold.", lambda night: night.score),
    "drivetrain_estimated_accuracy": (
        "Accuracy of that night as estimated without labels, 0 to 1.",
        lambda night: night.accuracy,
    ),
    "drivetrain_night_timestamp_seconds": (
        "Begin of that night, in UTC.",
        lambda night: datetime.fromisoformat(night.night).replace(tzinfo=UTC).timestamp(),
    ),
    "drivetrain_last_success_timestamp_seconds": (
        "When the record of that night was closed.",
        lambda night: datetime.fromisoformat(night.made).timestamp() if night.made else None,
    ),
}


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
