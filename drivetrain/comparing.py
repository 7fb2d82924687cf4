"""Two runs side by side: the comparison, its page, and what a command says of it.

Knows two committed runs. Does not know how they came to be.
"""

from typing import Any

from drivetrain import site
from drivetrain.compare import COLUMNS, Comparison, compare
from drivetrain.config import Config
from drivetrain.console import busy, say
from drivetrain.layout import Layout
from drivetrain.review import thumbnails
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Run
from drivetrain.store import Store

SHOWN_FLIPS = 60


def compare_runs(config: Config, old: str, new: str) -> dict[str, Any]:
    """Compare two committed runs over the same images. Needs ``root``. Returns the comparison with its page."""
    store, layout = open_root(config, existing=True)
    comparison = compare_and_publish(store, layout, Run.find(store, layout, old), Run.find(store, layout, new))
    site.build(store, layout)
    short = {key: value for key, value in comparison.record().items() if key != "flips"}
    return short | said_of(layout, comparison)


def compare_and_publish(store: Store, layout: Layout, old: Run, new: Run) -> Comparison:
    """Compare two committed runs, and write the comparison with its page."""
    if old.record.vocab != new.record.vocab:
        say("The two learners have other classes: labels that only one of them knows can't agree.")
    with busy("Comparing the two runs"):
        comparison = compare(old.record.run_id, new.record.run_id, old.rows(COLUMNS), new.rows(COLUMNS))
        folder = layout.comparison(comparison.old, comparison.new)
        store.replace(f"{folder}/comparison.json", to_json(comparison.record()))
        shown = comparison.flips[:SHOWN_FLIPS]
        pictures = thumbnails(store, [flip["uri"] for flip in shown])
        flips = [flip | {"picture": picture} for flip, picture in zip(shown, pictures, strict=True)]
        store.replace(f"{folder}/index.html", site.comparison_page(comparison, flips))
    return comparison


def known_comparison(store: Store, layout: Layout, old: Run, new: Run) -> dict[str, Any] | None:
    """What a job prints about a comparison that was made before, or None."""
    folder = layout.comparison(old.record.run_id, new.record.run_id)
    page = f"{folder}/index.html"
    found = from_json(store, f"{folder}/comparison.json")
    if found is None or not store.exists(page):
        return None
    flips = sum(number for _, _, number in found["confusion"])
    return {"agreement": found["agreement"], "flips": flips, "comparison": page}


def said_of(layout: Layout, comparison: Comparison) -> dict[str, Any]:
    """What a job prints about a comparison."""
    return {
        "agreement": comparison.agreement,
        "flips": sum(number for _, _, number in comparison.confusion),
        "comparison": f"{layout.comparison(comparison.old, comparison.new)}/index.html",
    }
