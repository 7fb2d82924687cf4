"""What to do after two learners were compared: promote, keep, label more or look, by the table in docs/comparison.md.

Knows records of a comparison and plain words. Does not know how a number is made. Agreement is never a reason to
promote: two learners may agree and both be wrong, or differ because one of them has become right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain.comparison import Behaviour, OwnDrift, Recommendation, Slice, Truth, Word

ALPHA = 0.05
ENOUGH_LABELLED = 100
# More than that share of the images that the old learner scored, and the new one did not, is a fault to look at.
MOST_LOST = 0.01


@dataclass(frozen=True)
class Facts:
    """What a recommendation is made from; of both learners where there are two."""

    run_old: str
    run_new: str
    model_new: str
    source: str
    root: str
    images: int
    scored_by_both: int
    only_old: int
    agreement: float | None
    flipped: int
    classes_removed: Sequence[str]
    truth: Truth
    drift_old: OwnDrift
    drift_new: OwnDrift
    slices: Sequence[Slice]
    behaviour: Behaviour | None


def recommend(facts: Facts) -> Recommendation:
    """Go through the table's rows from the top; the first one that fits decides."""
    do, sentence, following = _decided(facts)
    return Recommendation(do, sentence, (*_measured(facts), *_beside(facts)), following)


def better(truth: Truth) -> bool:
    """Whether the new learner is significantly better on labelled images."""
    return truth.p_value is not None and truth.p_value <= ALPHA and truth.gain > 0


def worse(truth: Truth) -> bool:
    """Whether the new learner is significantly worse on labelled images."""
    return truth.p_value is not None and truth.p_value <= ALPHA and truth.gain < 0


def worse_slices(slices: Sequence[Slice]) -> list[Slice]:
    """The slices that decide and on which the new learner is significantly worse."""
    return [each for each in slices if each.decides and each.p_value <= ALPHA]


def _decided(facts: Facts) -> tuple[Word, str, str]:
    truth = facts.truth
    if not facts.scored_by_both:
        return "look", "Look: there is no image that both learners scored.", ""
    if worse(truth):
        return "keep", "Keep the old learner: the new one is right less often on labelled images.", ""
    if facts.behaviour and not facts.behaviour.passed:
        return _failed_behaviour(facts, facts.behaviour)
    if broken := worse_slices(facts.slices):
        where = f"{broken[0].kind} {broken[0].name!r}"
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        if better(truth):
            return "look", f"Look: the new learner is better on the whole, and worse on {where}{more}.", ""
        return "keep", f"Keep the old learner: the new one is worse on {where}{more}, and not better on the whole.", ""
    if truth.labelled_flips == facts.flipped and not better(truth):
        return "keep", f"Keep the old learner: {_all_told(facts)}, so that nothing is won.", ""
    if truth.labelled < ENOUGH_LABELLED:
        return _label_more(facts, f"only {truth.labelled:,} labelled images tell the two apart")
    if not better(truth):
        low, high = truth.gain_interval
        if low >= -truth.margin and high <= truth.margin:
            same = f"on {truth.labelled:,} labelled images the two differ by less than {margin_of(truth)}"
            return "keep", f"Keep the old learner: {same}, so that nothing is won.", ""
        return _label_more(facts, f"{truth.labelled:,} labelled images don't say which is better")
    if doubt := _doubt(facts):
        why, following = doubt
        return "look", f"Look: the new learner is right more often on labelled images, but {why}.", following
    sentence = "Promote the new learner: it is right more often on labelled images, and nothing speaks against it."
    return "promote", sentence, f"drivetrain promote {facts.model_new} --root {facts.root} --source {facts.source}"


def _failed_behaviour(facts: Facts, behaviour: Behaviour) -> tuple[Word, str, str]:
    if better(facts.truth):
        sentence = "Look: the new learner is right more often on labelled images, and fails its behaviour tests."
        return "look", sentence, ""
    return "keep", f"Keep the old learner: the new one fails its behaviour tests. {behaviour.sentence}", ""


def _all_told(facts: Facts) -> str:
    """That more labels of these images would tell nothing new."""
    if not facts.flipped:
        return "no label changed"
    return f"all {facts.flipped:,} images whose label changed have a true label, and neither is right more often"


def _label_more(facts: Facts, why: str) -> tuple[Word, str, str]:
    truth = facts.truth
    few = f"{truth.needed:,} labelled images show a difference of {margin_of(truth)}"
    # A label of an image on which the two agree can't tell them apart.
    if truth.needed_flips is not None and 0 < truth.needed_flips < truth.needed:
        enough = truth.needed_flips < facts.flipped
        few += f", or {f'about {truth.needed_flips:,}' if enough else f'all {facts.flipped:,}'} of those that changed"
    return "label more", f"Label more: {why}; {few}.", f"{_queue(facts)} --root {facts.root} --to csv"


def _queue(facts: Facts) -> str:
    """What writes the images whose labels tell most: of a regression, which has no flips, some drawn at random."""
    truth = facts.truth
    if truth.needed_flips is None:
        return f"drivetrain queue {facts.run_new} --sample {truth.needed}"
    left = facts.flipped - (truth.labelled_flips or 0)
    wanted = truth.needed_flips - (truth.labelled_flips or 0)
    size = min(wanted, left) if wanted > 0 else left
    return f"drivetrain queue {facts.run_new} --flips {facts.run_old} --review-size {size}"


def _doubt(facts: Facts) -> tuple[str, str] | None:
    """What speaks against a learner that is better, and what to type."""
    if not facts.truth.known_training_new:
        of = f"--root {facts.root} --learner NEW.pkl --images TRAINING_SET --labels labels.csv"
        following = f"drivetrain reference {of}"
        return "nobody knows whether it was trained on these: it has no reference that says so", following
    if facts.classes_removed:
        few = ", ".join(repr(word) for word in facts.classes_removed[:5])
        return f"it no longer knows {len(facts.classes_removed)} of the old classes ({few})", ""
    if facts.only_old > MOST_LOST * facts.images:
        return f"it failed on {facts.only_old:,} images that the old one scored", ""
    if facts.drift_new.verdict == "drift" and facts.drift_old.verdict != "drift":
        return "these images are not like those that it was validated on, while they are like the old one's", ""
    return None


def margin_of(truth: Truth) -> str:
    """The smallest difference that is worth to know of, as people read it."""
    return f"{truth.margin:.3g}" if truth.measure == "error" else f"{100 * truth.margin:.0f} points"


def shown(truth: Truth, value: float) -> str:
    """A number of a measure, as people read it."""
    return f"{value:.4g}" if truth.measure == "error" else f"{value:.1%}"


def difference_of(truth: Truth) -> str:
    """The difference with its interval, as people read it."""
    assert truth.difference is not None and truth.low is not None and truth.high is not None
    if truth.measure == "error":
        return f"{truth.difference:+.3g} (95 % interval {truth.low:+.3g} to {truth.high:+.3g})"
    points = [100 * each for each in (truth.difference, truth.low, truth.high)]
    return f"{points[0]:+.1f} points (95 % interval {points[1]:+.1f} to {points[2]:+.1f})"


NAMES = {"accuracy": "accuracy", "jaccard": "mean Jaccard index", "error": "mean absolute error"}


def _measured(facts: Facts) -> list[str]:
    """What labels say."""
    truth = facts.truth
    if not truth.labelled or truth.old is None or truth.new is None:
        return ["No labelled image that no training saw: how often the two are right is not known."]
    said = [
        f"On {truth.labelled:,} labelled images the {NAMES[truth.measure]} is {shown(truth, truth.old)} (old) and "
        f"{shown(truth, truth.new)} (new): {difference_of(truth)}, p = {truth.p_value:.2g} ({truth.test}); "
        f"{truth.lost:,} got worse, {truth.won:,} better."
    ]
    if truth.by_people:
        said.append(
            f"{truth.by_people:,} of these labels are people's. What people label is mostly chosen for looking odd: it "
            "is no random sample, and the accuracy of all images is another."
        )
    said += [
        f"Worse on {each.kind} {each.name!r}: {shown(truth, each.old or 0)} (old), {shown(truth, each.new or 0)} (new) "
        f"on {each.n:,} images, p = {each.p_value:.2g} after Holm."
        for each in worse_slices(facts.slices)
    ]
    return said


def _beside(facts: Facts) -> list[str]:
    """What else is known; none of it promotes."""
    truth, said = facts.truth, []
    if not (truth.known_training_old and truth.known_training_new):
        which = [
            word for word, known in (("old", truth.known_training_old), ("new", truth.known_training_new)) if not known
        ]
        said.append(
            f"Which images the {' and the '.join(which)} learner was trained on is not known: no reference says so."
        )
    if truth.trained_old or truth.trained_new:
        said.append(
            "Accuracy told only on images that no training saw: "
            f"{truth.trained_old:,} labelled images that the old learner was trained on and {truth.trained_new:,} of "
            "the new one are left out."
        )
    said.append(facts.behaviour.sentence if facts.behaviour else "No behaviour tests of the new learner.")
    for word, drift in (("Old", facts.drift_old), ("New", facts.drift_new)):
        said.append(f"{word} learner against its own reference: {drift.verdict or 'not measured'}. {drift.sentence}")
    if facts.agreement is not None:
        said.append(f"The two agree on {facts.agreement:.1%} of the images, which says nothing of who is right.")
    return said
