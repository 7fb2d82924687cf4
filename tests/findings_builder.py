"""Full findings of believable numbers for any number of classes, with small pictures on disk."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from drivetrain.findings import (
    Accuracy,
    Cause,
    ClassShift,
    Decision,
    Findings,
    Histogram,
    Map,
    Pair,
    Region,
    Seen,
    SelfTest,
    Statistic,
    TrendPoint,
)
from drivetrain.report import Page
from drivetrain.review import QUEUE
from drivetrain.run import Commit
from drivetrain.schema import row_schema
from drivetrain.verdict import Verdict

RUN = "shop-2026-11-23-3fa9c1d2-9b1e22aa"
MODEL = "3fa9c1d2aaaa"
NIGHT = "2026-11-23"
DRIFT = Verdict(
    "drift",
    "label and retrain, then rescore",
    "The images are not like the ones the learner was validated on; whether it still gets them right is unknown.",
    (
        "7 of 1207 images (0.6%) could not be scored (2 empty, 5 undecodable).",
        "p = 0.001, and 0.01 or less is an alarm: 1,000 of 1,200 images held against 5,000 held-out reference images.",
        "Effect 0.81: of 100 pairs of a new image and one of the reference, embeddings tell which is which in 81.",
    ),
)
OK = Verdict("ok", "nothing", "The images look like the ones the learner was validated on.", DRIFT.reasons[1:])
UNKNOWN = Verdict(
    "unknown",
    "build one: drivetrain reference --help",
    "Unknown: there is no reference for this learner.",
    ("there is no reference for this learner.",),
)


def pictures(folder: Path, number: int, *, noise: bool = False, shift: int = 0) -> list[str]:
    """Small images on disk; their paths. ``noise``: the heaviest that a thumbnail can be."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number + shift)
    found = []
    for place in range(number):
        path = folder / f"image {place:04d}.jpg"
        if noise:
            image = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
        else:
            image = Image.new("RGB", (120, 90), tuple(int(c) for c in rng.integers(60, 250, 3)))
            ImageDraw.Draw(image).ellipse((20 + shift, 15, 80 + shift, 75), fill=(20, 40, 60 + shift))
        image.save(path, quality=85)
        found.append(str(path))
    return found


def statistic(name: str, score: float, alpha: float = 0.01) -> Statistic:
    """A statistic whose null is bell-shaped, and that lies at a score (0 usual, 1 the threshold)."""
    rng = np.random.default_rng(len(name))
    drawn = rng.gamma(6, 0.01, 1000)
    mean, threshold = float(drawn.mean()), float(np.quantile(drawn, 1 - alpha))
    value = mean + score * (threshold - mean)
    p_value = (1 + int((drawn >= value).sum())) / 1001
    return Statistic(
        name, value, p_value, threshold, mean, tuple(map(float, np.quantile(drawn, np.linspace(0, 1, 41))))
    )


def decision(score: float = 3.2, *, grouped_by: str = "") -> Decision:
    """A decision at a score."""
    scores = {"combined": score, "mmd": score, "bbsd": score * 0.6, "labels": 0.9, "confidence": 1.4, "energy": 0.3}
    statistics = tuple(statistic(name, each) for name, each in scores.items())
    return Decision(
        n_current=1200, n_reference=5000, n_tested=1000, groups_tested=1000, groups_reference=5000,
        grouped_by=grouped_by, splits=1000, alpha=0.01, seed=0, p_value=statistics[0].p_value,
        effect=min(0.5 + score / 10, 0.99), statistics=statistics,
    )  # fmt: skip


SHARES = {"darker": (0.6, 0.25, 0.1), "rotated": (None, 0.4, 0.2), "blurrier": (0.5, 0.2, 0.08)}
SELF_TEST = SelfTest(
    0.01, 3, 400,
    tuple(
        Seen(shift, n, share)
        for shift, shares in SHARES.items()
        for n, share in zip((200, 1000, 5000), shares, strict=True)
    ),
)  # fmt: skip
ACCURACY = Accuracy(reference=0.914, estimate=0.83, low=0.79, high=0.865, novel=0.043)
HARMLESS = Accuracy(reference=0.914, estimate=0.905, low=0.88, high=0.93, novel=0.012)
UNSAID = Accuracy(reference=0.914, estimate=None, low=None, high=None, novel=0.37, why="37 % of the images look novel")


def class_shifts(number: int, current: Sequence[str], reference: Sequence[str]) -> tuple[ClassShift, ...]:
    """Classes of falling size, of which the third moved and comes first, as `why` has it."""
    weights = 1 / np.arange(1, number + 1)
    before = weights / weights.sum()
    now = before * np.where(np.arange(number) == 2, 2.5, 1)
    now /= now.sum()
    found = (
        ClassShift(
            label=f"class {place:04d}",
            n_reference=int(5000 * before[place]),
            n_current=int(1200 * now[place]),
            reference_share=float(before[place]),
            current_share=float(now[place]),
            moved=None if 1200 * now[place] < 5 else (2.6 if place == 2 else 0.3),
            p_value=None if 1200 * now[place] < 5 else (0.002 if place == 2 else 1.0),
            share_p_value=0.003 if place == 2 else 0.6,
            accuracy=0.71 if place == 2 else 0.9,
            accuracy_reference=0.92,
            examples=tuple(
                Pair(current[(place * 3 + i) % len(current)], reference[(place * 3 + i) % len(reference)])
                for i in range(3)
            ),
        )
        for place in range(number)
    )
    return tuple(sorted(found, key=lambda each: each.share_p_value))


def regions(number: int, current: Sequence[str], reference: Sequence[str]) -> tuple[Region, ...]:
    """Regions of which the fifth grew, and comes first."""
    found = (
        Region(
            number=place,
            label=f"class {place % 10:04d}",
            reference_share=1 / number,
            current_share=3 / number if place == 4 else 0.9 / number,
            p_value=0.001 if place == 4 else 0.8,
            current_images=tuple(current[(place + i) % len(current)] for i in range(4)),
            reference_images=tuple(reference[(place + i) % len(reference)] for i in range(4)),
        )
        for place in range(number)
    )
    return tuple(sorted(found, key=lambda each: each.p_value))


CAUSES = (
    Cause("brightness", "darker by 1.4 sd", -1.4, 0.51, 0.34, "of full white", 0.001),
    Cause("width", "smaller by 0.6 sd", -0.6, 640.0, 480.0, "pixels", 0.004),
)


def histograms() -> tuple[Histogram, ...]:
    """Confidence and energy, tonight less sure."""
    rng = np.random.default_rng(1)
    drawn = {
        "confidence": (rng.beta(8, 1.5, 5000), rng.beta(5, 2, 1200)),
        "energy": (rng.normal(-9, 2, 5000), rng.normal(-7, 2, 1200)),
    }
    found = []
    for name, (before, now) in drawn.items():
        edges = np.histogram_bin_edges(np.concatenate([before, now]), 40)
        shares = [np.histogram(each, edges)[0] / len(each) for each in (before, now)]
        found.append(Histogram(name, tuple(map(float, edges)), *(tuple(map(float, each)) for each in shares)))
    return tuple(found)


def map_of() -> Map:
    """Two clouds, the second one beside the first."""
    rng = np.random.default_rng(2)
    before, now = rng.normal(0, 1, (3000, 2)), rng.normal((1.6, 0.4), 1, (1200, 2))
    low, high = before.min(0), before.max(0)
    return Map(
        tuple(map(tuple, before.tolist())), tuple(map(tuple, now.tolist())), tuple(low.tolist()), tuple(high.tolist()),
        (0.31, 0.12),
    )  # fmt: skip


def findings(folder: Path, classes: int = 10, *, score: float = 3.2, noise: bool = False, **changes: Any) -> Findings:
    """All there is, with pictures below a folder."""
    current = pictures(folder / "tonight", 120, noise=noise, shift=25)
    reference = pictures(folder / "reference", 120, noise=noise)
    full = Findings(
        decision=decision(score),
        self_test=SELF_TEST,
        accuracy=ACCURACY,
        classes=class_shifts(classes, current, reference),
        regions=regions(30, current, reference),
        causes=CAUSES,
        histograms=histograms(),
        map=map_of(),
    )
    return replace(full, **changes)


def trend(number: int = 30, last: float | None = 3.2) -> tuple[TrendPoint, ...]:
    """Quiet nights, one without a measurement, one warning, and the last one at a score; two nights with labels."""
    rng = np.random.default_rng(3)
    points = []
    for place in range(number):
        night = str(np.datetime64(NIGHT) - (number - 1 - place))
        score: float | None = float(np.clip(rng.normal(0, 0.4), -1, 0.95))
        verdict = "ok"
        if place == number - 6:
            score, verdict = None, "unknown"
        elif place == number - 3:
            score, verdict = 1.2, "warn"
        elif place == number - 1:
            score, verdict = last, "drift" if (last or 0) > 1 else "ok"
        accuracy = None if score is None else max(0.4, 0.91 - 0.025 * max(score, 0))
        effect = None if score is None else 0.5 + max(score, 0) / 10
        report = f"/root/sources/shop/nights/{night}/{MODEL}/0001/report.html"
        realised = 0.88 if place in (number - 3, number - 2) else None
        points.append(TrendPoint(night, verdict, score, effect, accuracy, 1200, report, realised))
    return tuple(points)


def queue(uris: Sequence[str], number: int = 100) -> pa.Table:
    """A review queue of some images; the fourth one can't be read."""
    chosen = [uris[place % len(uris)] if place != 3 else "/nowhere/lost image.jpg" for place in range(number)]
    return pa.table(
        {
            "rank": np.arange(1, number + 1, dtype=np.int32),
            "uri": chosen,
            "moved": np.linspace(6, 2, number).astype(np.float32),
            "label": [f"class {place % 10:04d}" for place in range(number)],
            "confidence": np.linspace(0.5, 0.99, number).astype(np.float32),
            "true_label": pa.array([None] * number, pa.string()),
            "run_id": [RUN] * number,
        },
        schema=QUEUE,
    )


COMMIT = Commit(
    RUN, 1207, 7, {"undecodable": 5, "empty": 2}, {}, 0.01, False, 12.5, 1207, "2026-11-24T02:10:00+00:00",
    {"alpha": 3, "wrong_suffix": 12},
)  # fmt: skip


def page(found: Findings | None, verdict: Verdict = DRIFT, **changes: Any) -> Page:
    """A night's page."""
    uris = [pair.current for row in found.classes for pair in row.examples] if found else []
    uris = list(dict.fromkeys(uris)) or ["/nowhere/x.jpg"]
    score = found.decision.statistics[0].score if found else None
    full = Page(
        source="shop", kind="night", name=NIGHT, model_id=MODEL, run_id=RUN, verdict=verdict, findings=found,
        commit=COMMIT, vocab=tuple(row.label for row in found.classes) if found else (), queue=queue(uris),
        held_out=True, effect_floor=0.55, trend=trend(last=score),
    )  # fmt: skip
    return replace(full, **changes)


def scored(number: int, *, shift: float = 0.0, size: int = 8) -> pa.Table:
    """Rows of scored images."""
    rng = np.random.default_rng(int(10 * shift))
    about = [
        {
            "uri": f"/x/{place}.jpg",
            "status": "ok",
            "label": f"class {place % 10:04d}",
            "confidence": float(rng.beta(8, 2)),
            "energy": float(rng.normal(-9 + shift)),
            "embedding": (rng.normal(0, 1, size) + shift).tolist(),
        }
        for place in range(number)
    ]
    return pa.Table.from_pylist(about, schema=row_schema(size))
