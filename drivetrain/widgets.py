"""What a report's page shows, top to bottom, in Evidently's widgets: sentences, counters, tables and plots.

Knows how to say a number plainly. Does not decide anything: verdict and numbers come from below, and `report` puts the
widgets into Evidently's report. Whatever a person or a store may have named (labels, keys, images) is escaped: in
Evidently's texts a label could fetch a picture from anywhere.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from evidently.legacy.renderers.html_widgets import (
    ColumnDefinition,
    CounterData,
    RichTableDataRow,
    RowDetails,
    WidgetSize,
    counter,
    plotly_figure,
    rich_table_data,
    table_data,
    text_widget,
)

from drivetrain.figures import (
    FARTHEST,
    accuracy_figure,
    density_figure,
    histogram_figure,
    label_figure,
    map_figure,
    null_figure,
    outside,
    trend_figure,
)
from drivetrain.findings import Accuracy, Cause, ClassShift, Decision, Findings, Map, Realised, Region, SelfTest
from drivetrain.galleries import pairs_figure, queue_figure, sides_figure
from drivetrain.schema import FLAGS
from drivetrain.selection import ROWS_WITH_PICTURES, Page, Shown, pairs_shown, sides_shown

ROWS_A_PAGE = 10
HALF = WidgetSize.HALF


def escaped(text: str) -> str:
    """A text that others made, as Evidently's Markdown shows it to the letter."""
    return re.sub(r"([\\`*_\[\](){}<>!#|~&:])", r"\\\1", re.sub(r"[\x00-\x1f\x7f]+", " ", text))


def head_widgets(page: Page) -> list[Any]:
    """The verdict with its lever, notes, and why."""
    verdict = page.verdict
    mark = {"ok": "✔", "warn": "▲", "drift": "◆", "unknown": "?"}[verdict.verdict]
    text = f"# {mark} {verdict.verdict.upper()}\n\n{escaped(verdict.sentence)}"
    text += f"\n\n**Lever to pull:** {escaped(verdict.lever)}"
    text += "".join(f"\n\n**Note:** {escaped(note)}" for note in page.notes)
    # From the record's folder up to the root: number, model, night, nights, source, sources.
    text += "\n\n[All nights](../../../../../../site/index.html)"
    why = "\n".join(f"- {escaped(reason)}" for reason in verdict.reasons) or "-"
    return [
        text_widget(title=f"{page.source}, {page.name}", text=text),
        text_widget(title="Why", text=why),
        _counters(page),
    ]


def _counters(page: Page) -> Any:
    counters = [
        CounterData("images", f"{page.commit.rows:,}"),
        CounterData("images failed", f"{page.commit.failed:,}"),
    ]
    if page.findings:
        found = page.findings.decision
        against = "held-out images to compare" if page.held_out else "images to compare, not held out"
        counters += [
            CounterData("p-value", f"{found.p_value:.2g}"),
            CounterData("effect", f"{found.effect:.2f}"),
            CounterData("images in the test", f"{found.n_tested:,}"),
            CounterData(against, f"{found.n_reference:,}"),
        ]
    return counter(title=f"run {page.run_id}", counters=counters)


def decision_widgets(decision: Decision) -> list[Any]:
    """The null with tonight's mark, of the statistic that decides and of all."""
    density = density_figure(decision)
    title = "Tonight against what no drift looks like"
    widgets = [plotly_figure(title="What decides: its null, and tonight", figure=density, size=HALF)] if density else []
    widgets.append(plotly_figure(title=title, figure=null_figure(decision), size=HALF if density else WidgetSize.FULL))
    return [*widgets, text_widget(title="How it was tested", text=_how(decision))]


def _how(found: Decision) -> str:
    groups = ""
    if found.grouped_by:
        groups = (
            f" in {found.groups_tested:,} groups by {escaped(found.grouped_by)}, drawn whole "
            f"(the reference has {found.groups_reference:,})"
        )
    text = (
        f"{found.n_tested:,} of {found.n_current:,} images{groups} were held against {found.n_reference:,} images of "
        f"the reference; {found.splits:,} splits of the reference against itself show what no drift looks like. "
        f"An alarm needs p ≤ {found.alpha:.2g}. A score of 0 is the mean of those splits, 1 is the threshold; scores "
        f"above {FARTHEST:.0f} are drawn at the edge."
    )
    if found.accepted:
        text += f" {found.accepted} accepted nights made the null {found.widened:.2f} times as wide."
    return text


def self_test_widgets(test: SelfTest | None) -> list[Any]:
    """What the test could have seen on this reference."""
    title = "What this test could have seen"
    if test is None:
        return [text_widget(title=title, text="Not tried on this reference yet: `drivetrain drift selftest` does.")]
    text = (
        f"Tried on this reference. Without a shift it alarmed on {test.false_alarms:,} of {test.trials:,} nights; "
        f"alpha is {test.alpha:.2g}. The table shows the smallest share of a night's images that must be shifted for "
        f"p ≤ alpha in at least 8 of 10 trials; a verdict of drift needs an effect above its floor too, and is a "
        f"warning else. Of a large night only a part enters the test, as above."
    )
    sizes = sorted({each.n for each in test.seen})
    shares = {(each.shift, each.n): each.share for each in test.seen}
    rows = [
        [shift, *(_seen_at(shares, shift, n) for n in sizes)]
        for shift in dict.fromkeys(each.shift for each in test.seen)
    ]
    names = ["planted shift", *(f"in a night of {n:,} images" for n in sizes)]
    table = [table_data(title="", column_names=names, data=rows)] if rows else []
    return [text_widget(title=title, text=text), *table]


def _seen_at(shares: dict[tuple[str, int], float | None], shift: str, n: int) -> str:
    if (shift, n) not in shares:
        return "not tried"
    share = shares[shift, n]
    return "not seen" if share is None else f"{share:.0%} of the images"


def trend_widgets(page: Page) -> list[Any]:
    """The score of the last nights with its band, and links to them."""
    if not page.trend:
        return []
    decision = page.findings.decision if page.findings else None
    figure = trend_figure(page.trend, page.name, decision)
    title = f"The last {len(page.trend)} nights: score (1 is the threshold) and accuracy"
    text = "The grey band holds 9 of 10 nights without drift, by tonight's null. "
    if any(point.realised is not None for point in page.trend):
        text += "Stars: the accuracy of nights whose images people labelled, all or some drawn at random. "
    text += "Reports of these nights: "
    text += ", ".join(_link(point.night, point.report) for point in reversed(page.trend))
    return [plotly_figure(title=title, figure=figure), text_widget(title="", text=text)]


def _link(night: str, report: str) -> str:
    """A link from one report of the source to another: night, model, number, file, below ``nights``."""
    place = report.split("/")[-4:]
    if len(place) < 4 or not re.fullmatch(r"[\w./-]+", "/".join(place)):
        return escaped(night)
    return f"[{night}](../../../../nights/{'/'.join(place)})"


NOT_LABELLED = (
    "**Can't say**: this needs 100 labelled held-out images of the reference, each with one label. They come from "
    "class folders or from `drivetrain reference --labels`."
)


def accuracy_widgets(page: Page) -> list[Any]:
    """Estimated accuracy as a range beside the reference's, in a sentence first."""
    found = page.findings.accuracy if page.findings else None
    title = "Estimated accuracy, without labels"
    if found is None:
        # Of a regression no accuracy can be told at all.
        of_classes = page.findings and page.findings.classes
        return [text_widget(title=title, text=NOT_LABELLED)] if of_classes else []
    text = accuracy_text(found, page.verdict.verdict)
    if found.estimate is None:
        return [text_widget(title=title, text=text)]
    # A text of half the width beside a plot leaves a hole as high as the plot.
    figure = accuracy_figure(found, page.realised)
    return [text_widget(title=title, text=text), plotly_figure(title="", figure=figure)]


def realised_widgets(page: Page) -> list[Any]:
    """How often the learner was right by the labels of people, a sentence for each way the images were chosen."""
    text = "\n\n".join(realised_text(each) for each in page.realised)
    if text and not any(each.of_night for each in page.realised):
        text += " `drivetrain queue --sample 100` draws images that tell it."
    return [text_widget(title="Realised accuracy, by people's labels", text=text)] if text else []


def realised_text(found: Realised) -> str:
    """What people's labels say, and of which images."""
    share = f"**{found.accuracy:.1%}**"
    if found.chosen == "all":
        return f"{share}: {found.right:,} of the night's {found.labelled:,} scored images are right. All have labels."
    interval = f"95% interval {found.low:.1%} to {found.high:.1%}"
    if found.chosen == "random":
        text = (
            f"{share} of the night's images ({interval}): of {found.labelled:,} labelled images that were drawn at "
            f"random, {found.right:,} are right."
        )
        missing = found.drawn - found.labelled
        return text + (
            f" {missing:,} more were drawn and have no label: the interval counts them both ways." * bool(missing)
        )
    return (
        f"Of the {found.labelled:,} labelled images that were chosen because they moved (or by somebody's choice), "
        f"{found.right:,} are right: {found.accuracy:.1%} ({interval}). These are the night's most unusual images: "
        "**this is not the night's accuracy**."
    )


def accuracy_text(found: Accuracy, verdict: str) -> str:
    """What is estimated, or why nothing can be said."""
    novel = (
        f" {found.novel:.1%} of the images lie further from the reference than 99% of its own images do; 1% is usual."
    )
    if found.estimate is None or found.low is None or found.high is None:
        return f"**Can't say**: {escaped(found.why or 'no reason was given')}.{novel}".replace("..", ".")
    text = (
        f"**{found.estimate:.1%}** (between {found.low:.1%} and {found.high:.1%}); on the reference's labelled images "
        f"it is {found.reference:.1%}, measured.{novel}"
    )
    return text + _compared(found.low, found.reference, found.high, verdict)


def _compared(low: float, reference: float, high: float, verdict: str) -> str:
    """What the range means beside the reference's accuracy; whether that is harm is the verdict's to say."""
    if high < reference:
        return " The whole range lies below the reference's accuracy."
    if low > reference:
        return " The whole range lies above the reference's accuracy."
    meaning = {
        "warn": ": **a shift without harm**, as far as this can be estimated.",
        "drift": ": whether labels are worse tonight can't be told.",
    }
    return " The range covers the reference's accuracy" + meaning.get(verdict, ".")


def class_widgets(shown: Shown) -> list[Any]:
    """The shares of the labels, and a table of the classes whose rows open to pictures."""
    found = shown.page.findings
    if found is None or not found.classes:
        return []
    title = "Labels, share of the images"
    if len(found.classes) > 30:
        title += f": the 30 of {len(found.classes):,} that changed most"
    rows = [_class_row(row, shown, place) for place, row in enumerate(shown.classes)]
    return [
        plotly_figure(title=title, figure=label_figure(found.classes)),
        rich_table_data(
            title="Classes as the learner sees them; a row opens to images",
            rows_per_page=ROWS_A_PAGE,
            columns=_columns(
                class_="predicted class",
                images="images tonight",
                before="share, reference (%)",
                now="share, tonight (%)",
                share_p="p of the share",
                moved="moved (1 = threshold)",
                moved_p="p of moved (Holm)",
                accuracy="est. accuracy (%)",
                between="between (%)",
                accuracy_before="accuracy, reference (%)",
            ),
            data=rows,
        ),
        text_widget(title="", text=_class_note(len(rows), len(found.classes))),
    ]


def _class_row(row: ClassShift, shown: Shown, place: int) -> RichTableDataRow:
    fields = {
        "class_": row.label,
        "images": row.n_current,
        "before": _percent(row.reference_share),
        "now": _percent(row.current_share),
        "share_p": _digits(row.share_p_value),
        "moved": None if row.moved is None else round(row.moved, 2),
        "moved_p": _digits(row.p_value),
        "accuracy": _percent(row.accuracy),
        "between": _between(row.accuracy_low, row.accuracy_high),
        "accuracy_before": _percent(row.accuracy_reference),
    }
    pairs = pairs_shown(row)
    figure = pairs_figure(pairs, shown.pictures) if pairs and place < ROWS_WITH_PICTURES else None
    return RichTableDataRow(fields=fields, details=_details(figure, _names(pair.current for pair in row.examples)))


def _class_note(rows: int, all_of_them: int) -> str:
    text = (
        "Moved: how far the images of a class lie from the reference's images of that class; empty where there are "
        "too few to say. Classes that changed most come first."
    )
    return text + _left_out(rows, all_of_them, "classes")


def region_widgets(shown: Shown) -> list[Any]:
    """A table of the regions of the reference, whose rows open to pictures of both sides."""
    found = shown.page.findings
    if found is None or not found.regions:
        return []
    note = "A region is a cluster of the reference's images, named by the label that most of them get."
    return [
        rich_table_data(
            title="Regions of the reference; a row opens to images",
            rows_per_page=ROWS_A_PAGE,
            columns=_columns(
                region="region",
                label="mostly",
                before="share, reference (%)",
                now="share, tonight (%)",
                change="change (points)",
                p="p (Holm)",
            ),
            data=[_region_row(row, shown, place) for place, row in enumerate(shown.regions)],
        ),
        text_widget(title="", text=note + _left_out(len(shown.regions), len(found.regions), "regions")),
    ]


def _region_row(row: Region, shown: Shown, place: int) -> RichTableDataRow:
    fields = {
        "region": row.number,
        "label": row.label or "-",
        "before": _percent(row.reference_share),
        "now": _percent(row.current_share),
        "change": round(100 * (row.current_share - row.reference_share), 1),
        "p": _digits(row.p_value),
    }
    sides = sides_shown(row)
    figure = sides_figure(*sides, shown.pictures) if any(sides) and place < ROWS_WITH_PICTURES else None
    return RichTableDataRow(
        fields=fields, details=_details(figure, _names((*row.current_images, *row.reference_images)))
    )


def queue_widgets(shown: Shown) -> list[Any]:
    """The images that moved most."""
    if not shown.queue:
        return []
    title = "The images that moved most: label, confidence, and how far (in standard deviations of the reference)"
    if not shown.page.findings:
        title = "The images of which the learner is least sure: label and confidence"
    more = len(shown.page.queue) - len(shown.queue)
    text = "review.parquet beside this page holds " + (f"{more:,} more." if more else "the same images.")
    return [
        plotly_figure(
            title=title, figure=queue_figure(shown.queue, shown.pictures, moved=shown.page.findings is not None)
        ),
        text_widget(title="", text=f"{text} A grey place is an image that can't be shown. Point at one for its name."),
    ]


def world_widgets(found: Findings) -> list[Any]:
    """The map, the histograms, and the causes."""
    widgets = [] if found.map is None else _map(found.map)
    for each in found.histograms:
        title = f"{escaped(each.name).capitalize()} against the reference"
        size = HALF if len(found.histograms) > 1 else WidgetSize.FULL
        widgets.append(plotly_figure(title=title, figure=histogram_figure(each), size=size))
    return [*widgets, *_causes(found.causes)]


def _map(found: Map) -> list[Any]:
    title = "A map of the images (principal components of the reference's embeddings; the same axes every night)"
    text = f"{outside(found):,} of tonight's {len(found.current):,} points lie outside the map: they are on its border."
    return [plotly_figure(title=title, figure=map_figure(found)), text_widget(title="", text=text)]


def _causes(causes: Sequence[Cause]) -> list[Any]:
    title = "What changed in the pictures themselves"
    if not causes:
        return [text_widget(title=title, text="Nothing that was measured: no property of pixels or files changed.")]
    rows = [
        [
            each.words,
            each.name,
            f"{each.change:+.1f} sd",
            f"{each.reference:.4g} {each.unit}".strip(),
            f"{each.current:.4g} {each.unit}".strip(),
            f"{each.p_value:.2g}",
        ]
        for each in causes
    ]
    names = ["in words", "property", "change", "mean, reference", "mean, tonight", "p"]
    return [table_data(title=title, column_names=names, data=rows)]


def failed_widgets(page: Page) -> list[Any]:
    """Failed images by reason, and what decoding lost."""
    commit = page.commit
    share = f" ({commit.failed / commit.rows:.1%})" if commit.rows else ""
    by_reason = ", ".join(f"{number:,} {reason}" for reason, number in sorted(commit.reasons.items())) or "none"
    text = f"**{commit.failed:,}** of {commit.rows:,}{share}: {by_reason}"
    if commit.flags:
        lost = "; ".join(f"{number:,} {FLAGS[flag]} ({flag})" for flag, number in sorted(commit.flags.items()))
        text += f"\n\nScored, with something lost in decoding: {lost}."
    return [text_widget(title="Images that could not be scored", text=text)]


def _details(figure: Any, names: str) -> RowDetails | None:
    """What a row opens to: pictures, or the names of the images for which the page has no room."""
    if figure is not None:
        return RowDetails().with_part("Images", plotly_figure(title="", figure=figure))
    return RowDetails().with_part("Images", text_widget(title="", text=names))


def _names(uris: Iterable[str]) -> str:
    found = list(dict.fromkeys(uris))[:4]
    return "\n\n".join(escaped(uri) for uri in found) or "No image to show."


def _left_out(shown: int, all_of_them: int, what: str) -> str:
    if shown == all_of_them:
        return ""
    return f" {all_of_them - shown:,} more of the {all_of_them:,} {what} are left out here; all are in drift.json."


def _columns(**names: str) -> list[ColumnDefinition]:
    return [ColumnDefinition(title, field) for field, title in names.items()]


def _percent(share: float | None) -> float | None:
    """A number and no text, so that the table sorts by it."""
    return None if share is None else round(100 * share, 1)


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.0f} to {100 * high:.0f}"


def _digits(p_value: float | None) -> float | None:
    return None if p_value is None else float(f"{p_value:.2g}")
