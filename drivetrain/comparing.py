"""Two runs side by side: the comparison, its page, and what a command says of it.

Knows two committed runs. Does not know how they came to be. A comparison is derived from them, from what people
labelled and from what was measured since, and is made anew at any time.
"""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from drivetrain import evidence, site
from drivetrain.behaviour import latest_behaviour
from drivetrain.broken import broken_images, pictured
from drivetrain.compare import Known, columns_of, compare
from drivetrain.comparison import Comparison, Slice, Truth
from drivetrain.config import Config
from drivetrain.console import busy
from drivetrain.errors import SettingError
from drivetrain.layout import Layout
from drivetrain.planruns import is_reference_name
from drivetrain.recommend import NAMES, shown
from drivetrain.review import thumbnails
from drivetrain.root import from_json, open_root, to_json
from drivetrain.run import Run
from drivetrain.several import several_at_once
from drivetrain.store import Store

SHOWN_FLIPS = 60
# Of what behaviour tests broke, and of one change: the rest stands on their own page.
SHOWN_BROKEN, SHOWN_OF_ONE = 24, 6
# The shortest beginning of a model's id that stands for it.
SHORTEST_MODEL = 8


def compare_runs(config: Config, old: str, new: str) -> dict[str, Any]:
    """Compare two committed runs over the same images. Needs ``root``. Returns the comparison with its page.

    ``old`` and ``new``: ids of runs, or of learners, which stand for their newest runs over the same images. Raises
    SettingError where there are none.
    """
    store, layout = open_root(config, existing=True)
    before, now = find_runs(store, layout, old, new)
    comparison = compare_and_publish(store, layout, before, now)
    site.build(store, layout)
    short = {key: value for key, value in comparison.record().items() if key != "flips"}
    return short | said_of(layout, comparison)


def find_runs(store: Store, layout: Layout, old: str, new: str) -> tuple[Run, Run]:
    """The two runs that ids of runs or of learners stand for: the newest over the same images.

    Raises SettingError, naming what there is, where there are none.
    """
    exact = [from_json(store, layout.run(name).record) is not None for name in (old, new)]
    if all(exact):
        # Named one by one they may have other images too; the comparison looks at those that they share.
        return Run.find(store, layout, old), Run.find(store, layout, new)
    choices = [
        [Run.find(store, layout, name)] if is_run else _runs_of_learner(store, layout, name)
        for name, is_run in zip((old, new), exact, strict=True)
    ]
    pairs = [
        (before, now)
        for before in choices[0]
        for now in choices[1]
        if before.record.manifest == now.record.manifest and before.record.run_id != now.record.run_id
    ]
    if pairs:
        return max(pairs, key=lambda pair: tuple((run.record.created, run.record.run_id) for run in reversed(pair)))
    raise SettingError(
        f"{old} and {new} have no two runs over the same images. Score those of one under the other's learner: "
        "drivetrain rescore --learner FILE --run RUN"
    )


def _runs_of_learner(store: Store, layout: Layout, model_id: str) -> list[Run]:
    """The committed runs of the learner whose id begins so, its references left out, which hold a training set.

    Raises SettingError where there is none.
    """
    beginning = model_id[:SHORTEST_MODEL]
    names = [each for each in store.names(layout.runs) if f"-{beginning}-" in each]
    runs = [Run.find(store, layout, each) for each in names if len(beginning) == SHORTEST_MODEL]
    found = [
        run
        for run in runs
        if run.record.model_id.startswith(model_id) and run.committed() and not is_reference_name(run.record.name)
    ]
    return found if runs else [Run.find(store, layout, model_id)]


def compare_and_publish(store: Store, layout: Layout, old: Run, new: Run) -> Comparison:
    """Compare two committed runs, and write the comparison with its page."""
    with busy("Comparing the two runs"):
        comparison = _compared(store, layout, old, new)
        folder = layout.comparison(comparison.old, comparison.new)
        shown_flips = comparison.flips[:SHOWN_FLIPS]
        wanted = [flip["uri"] for flip in shown_flips] + [uri for each in comparison.slices for uri in each.examples]
        wanted = list(dict.fromkeys(wanted))
        pictures = dict(zip(wanted, thumbnails(store, wanted), strict=True))
        broke = _broken(store, layout, comparison)
        store.replace(f"{folder}/index.html", site.comparison_page(layout, comparison, shown_flips, pictures, broke))
        # Last: whoever finds it finds its page as well.
        store.replace(f"{folder}/comparison.json", to_json(comparison.record()))
    return comparison


def _broken(store: Store, layout: Layout, comparison: Comparison) -> site.Broken:
    """What behaviour tests of the new learner broke, a few images of it with their pictures."""
    record = latest_behaviour(store, layout, comparison.model_new) if comparison.behaviour else None
    if record is None:
        return site.Broken()
    turned = [each for each in record["broke"] if not each["learner"]["stayed"]]
    wrong = [case for case in record["cases"] if not case["passed"]]
    images = broken_images(record, SHOWN_BROKEN, SHOWN_OF_ONE)
    shown = several_at_once(partial(pictured, store), [*wrong[:SHOWN_OF_ONE], *images])
    cases = len(wrong[:SHOWN_OF_ONE])
    return site.Broken(tuple(shown[cases:]), tuple(shown[:cases]), len(turned) + len(wrong))


def known_comparison(store: Store, layout: Layout, old: Run, new: Run) -> dict[str, Any] | None:
    """What a job prints about a comparison that was made from all that is known by now, or None."""
    if not up_to_date(store, layout, old, new):
        return None
    found = from_json(store, f"{layout.comparison(old.record.run_id, new.record.run_id)}/comparison.json")
    return _said(layout, found) if found else None


def up_to_date(store: Store, layout: Layout, old: Run, new: Run) -> bool:
    """Whether the two runs have been compared from all that is known by now."""
    path = f"{layout.comparison(old.record.run_id, new.record.run_id)}/comparison.json"
    return evidence.recorded_inputs(store, path) == evidence.inputs_of(store, layout, old, new)


def _compared(store: Store, layout: Layout, old: Run, new: Run) -> Comparison:
    before, now = old.record, new.record
    if before.task != now.task:
        raise SettingError(
            f"A {before.task} learner and a {now.task} one say things that can't be compared: {before.run_id} and "
            f"{now.run_id}."
        )
    # Before anything is read: what comes in between is looked at by the next comparison.
    inputs = evidence.inputs_of(store, layout, old, new)
    known = Known(
        task=before.task,
        models=(before.model_id, now.model_id),
        source=now.source,
        root=layout.root,
        vocabs=(before.vocab, now.vocab),
        people=evidence.labels_of(store, layout, old, new),
        training=(evidence.training_of(store, layout, old), evidence.training_of(store, layout, new)),
        drift=(evidence.own_drift(store, layout, old), evidence.own_drift(store, layout, new)),
        behaviour=evidence.behaviour_of(store, layout, now.model_id),
        regions=partial(evidence.regions_of, store, layout, old),
        inputs=inputs,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    columns = columns_of(before.task)
    return compare(before.run_id, now.run_id, old.rows(columns), new.rows(columns), known)


def said_of(layout: Layout, comparison: Comparison) -> dict[str, Any]:
    """What a job prints about a comparison."""
    return _said(layout, comparison.record())


def _said(layout: Layout, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "agreement": record["agreement"],
        "flips": record["flipped"],
        "truth": record["truth"],
        "worst_slice": _worst_slice(record),
        # A list, as it is read back from the file.
        "recommendation": record["recommendation"] | {"reasons": list(record["recommendation"]["reasons"])},
        "comparison": f"{layout.comparison(record['old'], record['new'])}/index.html",
    }


def _worst_slice(record: dict[str, Any]) -> str | None:
    """The slice that stands first, in words."""
    if not record["slices"]:
        return None
    worst, truth = Slice(**record["slices"][0]), Truth(**record["truth"])
    certain = f"p = {worst.p_value:.2g} after Holm over {record['slices_tested']:,} slices"
    if worst.old is None or worst.new is None:
        return f"{worst.kind} {worst.name!r}: {worst.changed or 0:.1%} of {worst.n:,} labels changed, {certain}"
    change = f"{NAMES[truth.measure]} {shown(truth, worst.old)} -> {shown(truth, worst.new)}"
    return f"{worst.kind} {worst.name!r}: {change} on {worst.n:,} labelled images, {certain}"
