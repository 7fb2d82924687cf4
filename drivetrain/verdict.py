"""One word about a night, with reasons and the lever to pull: the one source for page, JSON, message and exit code.

Knows thresholds and plain words. Does not know how a statistic is made. Two gates: a p-value says that the night is not
the reference, the effect says that it matters; on many images everything is significant.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from drivetrain.drift import FEWEST_GROUPS, REFERENCE_PER_IMAGE, SMALLEST_TEST, SPLITS_BEYOND
from drivetrain.findings import Accuracy, Decision, Findings

Word = Literal["ok", "warn", "drift", "unknown"]

CONFIDENCE_FELL = 0.02
SHARE_CHANGED = 0.05
# An accuracy that is expected to fall by less than this is no harm: estimates without labels are no better than that.
HARM = 0.03


@dataclass(frozen=True)
class Verdict:
    """What a night comes to. ``sentence`` says it in one line, ``reasons`` why, ``lever`` what to do."""

    verdict: Word
    lever: str
    sentence: str
    reasons: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from.

    ``mean_confidence``: of the reference and of the night, None for a regression. ``leaked``: the reference's held-out
    images that were trained on.
    """

    images: int
    failed: int
    reasons: Mapping[str, int]
    reference: str | None
    held_out: bool
    findings: Findings | None
    mean_confidence: tuple[float, float] | None
    vocab: tuple[str, ...]
    too_many_failed: bool = False
    leaked: int = 0


def decide(evidence: Evidence, *, effect_floor: float, min_images: int) -> Verdict:
    """Turn evidence into a verdict, by the table in ARCHITECTURE.md."""
    missing = _missing(evidence, min_images)
    if missing:
        why, lever = missing
        return Verdict("unknown", lever, f"Unknown: {why}", (*_failures(evidence), why))
    findings = evidence.findings
    assert findings is not None
    drift = findings.decision
    said = (*_failures(evidence), *_numbers(evidence, findings))
    if drift.p_value > drift.alpha:
        lever = "look" if evidence.too_many_failed else "nothing"
        return Verdict("ok", lever, "The images look like the ones the learner was validated on.", said)
    if drift.effect < effect_floor:
        small = "The images differ from the reference, but by little."
        return Verdict("warn", "look", small, said)
    if not evidence.held_out:
        caution = (
            "The images differ from the reference, but the reference has no held-out images, and a learner is surer of "
            "images that it was trained on: this may be a false alarm. Build the reference with --labels."
        )
        return Verdict("warn", "look", caution, (caution, *said))
    return _outside(findings.accuracy, said)


def _outside(accuracy: Accuracy | None, said: tuple[str, ...]) -> Verdict:
    """The verdict on images that are not like the reference's: what matters is what they do to the labels."""
    different = "The images are not like the ones the learner was validated on"
    lever = "label and retrain, then rescore"
    if accuracy is None or accuracy.estimate is None:
        return Verdict("drift", lever, f"{different}; whether it still gets them right is unknown.", said)
    assert accuracy.low is not None
    if accuracy.low >= accuracy.reference - HARM:
        harmless = f"{different}, but it is expected to get as many of them right: a shift without harm."
        return Verdict("warn", "look; if this is how nights are now: drivetrain drift accept", harmless, said)
    lost = 100 * (accuracy.reference - accuracy.estimate)
    much = f"about {lost:.0f} points fewer" if lost >= 1 else "perhaps fewer"
    return Verdict("drift", lever, f"{different}, and it is expected to get {much} of them right.", said)


def _missing(evidence: Evidence, min_images: int) -> tuple[str, str] | None:
    """Why nothing can be said, and the lever that mends it."""
    scored = evidence.images - evidence.failed
    if evidence.images == 0:
        return "no new image arrived.", "look: should images have come?"
    if scored < min_images:
        return f"{scored} scored images are too few to say anything; min_images is {min_images}.", "look"
    if evidence.reference is None:
        return "there is no reference for this learner.", "build one: drivetrain reference --help"
    if evidence.findings is None:
        return "the reference has too few images to compare with.", "build a larger reference"
    return _untestable(evidence.findings.decision, scored)


def _untestable(drift: Decision, scored: int) -> tuple[str, str] | None:
    """Why the test can't say anything, and the lever that mends it."""
    least = SMALLEST_TEST * REFERENCE_PER_IMAGE
    if drift.n_reference < least:
        return (
            f"the reference has {drift.n_reference} images to compare with; {least} are needed.",
            "build a larger reference",
        )
    if drift.n_tested < SMALLEST_TEST:
        return f"{scored} scored images are too few for the test; it needs {SMALLEST_TEST}.", "look"
    if drift.groups_tested < min(FEWEST_GROUPS, drift.n_tested):
        return (
            f"the {scored} images come in {drift.groups_tested} groups ({drift.grouped_by}); {FEWEST_GROUPS} are "
            "needed to know how groups differ.",
            "look; a finer group_by",
        )
    if drift.groups_reference < FEWEST_GROUPS * REFERENCE_PER_IMAGE and drift.groups_reference < drift.n_reference:
        return (
            f"the reference's images come in {drift.groups_reference} groups ({drift.grouped_by}); "
            f"{FEWEST_GROUPS * REFERENCE_PER_IMAGE} are needed to know how groups differ.",
            "a finer group_by, or a reference of more groups",
        )
    needed = SPLITS_BEYOND / drift.alpha if drift.alpha > 0 else float("inf")
    if drift.splits < needed:
        return (
            f"so few alarms are allowed (alpha = {drift.alpha:.2g} a night) that {drift.splits:,} splits of the "
            f"reference can't tell where its threshold lies; {SPLITS_BEYOND} of them must lie beyond it.",
            f"raise alarms_per_year {needed / drift.splits:.1f} times" if drift.alpha > 0 else "raise alarms_per_year",
        )
    return None


def _failures(evidence: Evidence) -> tuple[str, ...]:
    if not evidence.failed:
        return ()
    share = evidence.failed / evidence.images
    by_reason = ", ".join(f"{number} {reason}" for reason, number in evidence.reasons.items())
    many = ": more than max_failed allows" if evidence.too_many_failed else ""
    return (f"{evidence.failed} of {evidence.images} images ({share:.1%}) could not be scored ({by_reason}){many}.",)


def _numbers(evidence: Evidence, findings: Findings) -> tuple[str, ...]:
    """The measurements in plain words."""
    drift = findings.decision
    against = "held-out reference images" if evidence.held_out else "reference images, none of them held out"
    groups = (
        f", in {drift.groups_tested:,} groups by {drift.grouped_by}" if drift.groups_tested < drift.n_tested else ""
    )
    said = [
        f"p = {drift.p_value:.2g}, and {drift.alpha:.2g} or less is an alarm: {drift.n_tested:,} of "
        f"{drift.n_current:,} images{groups} held against {drift.n_reference:,} {against}.",
        f"Effect {drift.effect:.2f}: of 100 pairs of a new image and one of the reference, embeddings tell which is "
        f"which in {100 * drift.effect:.0f}; 50 is chance.",
    ]
    if not evidence.held_out:
        said.insert(0, "The reference has no held-out images: alarms against it can't be trusted.")
    if evidence.leaked:
        said.append(
            f"{evidence.leaked:,} of the reference's held-out images have the very bytes of images that were trained "
            "on; the learner is too sure of these, and nights may look drifted when they are not."
        )
    said += _accuracy(findings.accuracy)
    if evidence.mean_confidence:
        before, now = evidence.mean_confidence
        change = now - before
        if abs(change) >= CONFIDENCE_FELL:
            said.append(f"Mean confidence {'fell' if change < 0 else 'rose'} from {before:.2f} to {now:.2f}.")
    if drift.p_value <= drift.alpha:
        said += _changed(findings)
    if drift.widened > 1:
        said.append(f"{drift.accepted} accepted nights made the threshold {drift.widened:.1f} times as wide.")
    return tuple(said)


def _accuracy(accuracy: Accuracy | None) -> list[str]:
    if accuracy is None:
        return []
    if accuracy.estimate is None or accuracy.low is None or accuracy.high is None:
        return [f"Accuracy can't be estimated: {accuracy.why}."]
    return [
        f"Estimated accuracy {accuracy.estimate:.0%} (between {accuracy.low:.0%} and {accuracy.high:.0%}); on the "
        f"reference's held-out images it is {accuracy.reference:.0%}."
    ]


def _changed(findings: Findings) -> list[str]:
    """Which class changed its share most, and what the pixels say."""
    said = []
    shares = sorted(findings.classes, key=lambda each: -abs(each.current_share - each.reference_share))
    if shares and abs(shares[0].current_share - shares[0].reference_share) >= SHARE_CHANGED:
        most = shares[0]
        said.append(
            f"Most changed label: {most.label!r} went from {most.reference_share:.0%} of the images to "
            f"{most.current_share:.0%}."
        )
    if findings.causes:
        said.append(f"The images are {', '.join(cause.words for cause in findings.causes[:3])}.")
    return said
