"""One word about a night, with reasons and the lever to pull: the one source for page, JSON, message and exit code.

Knows thresholds and plain words. Does not know how a statistic is made. Two gates: a p-value says that the night is not
the reference, the effect says that it matters; on many images everything is significant.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from drivetrain.drift import REFERENCE_PER_IMAGE, SMALLEST_TEST, Drift

Word = Literal["ok", "warn", "drift", "unknown"]

CONFIDENCE_FELL = 0.02
SHARE_CHANGED = 0.05


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
    """What a verdict is made from. ``mean_confidence``: of the reference and of the night, None for a regression."""

    images: int
    failed: int
    reasons: Mapping[str, int]
    reference: str | None
    held_out: bool
    drift: Drift | None
    mean_confidence: tuple[float, float] | None
    vocab: tuple[str, ...]
    too_many_failed: bool = False


def decide(evidence: Evidence, *, effect_floor: float, min_images: int) -> Verdict:
    """Turn evidence into a verdict, by the table in ARCHITECTURE.md."""
    missing = _missing(evidence, min_images)
    if missing:
        why, lever = missing
        return Verdict("unknown", lever, f"Unknown: {why}", (*_failures(evidence), why))
    drift = evidence.drift
    assert drift is not None
    said = (*_failures(evidence), *_numbers(evidence, drift))
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
    outside = (
        "The images are not like the ones the learner was validated on; whether it still gets them right is unknown."
    )
    return Verdict("drift", "label and retrain, then rescore", outside, said)


def _missing(evidence: Evidence, min_images: int) -> tuple[str, str] | None:
    """Why nothing can be said, and the lever that mends it."""
    scored = evidence.images - evidence.failed
    if evidence.images == 0:
        return "no new image arrived.", "look: should images have come?"
    if scored < min_images:
        return f"{scored} scored images are too few to say anything; min_images is {min_images}.", "look"
    if evidence.reference is None:
        return "there is no reference for this learner.", "build one: drivetrain reference --help"
    if evidence.drift is None:
        return "the reference has too few images to compare with.", "build a larger reference"
    drift, least = evidence.drift, SMALLEST_TEST * REFERENCE_PER_IMAGE
    if drift.n_reference < least:
        return (
            f"the reference has {drift.n_reference} images to compare with; {least} are needed.",
            "build a larger reference",
        )
    if drift.n_tested < SMALLEST_TEST:
        return f"{scored} scored images are too few for the test; it needs {SMALLEST_TEST}.", "look"
    if drift.alpha * (drift.splits + 1) < 1:
        return f"alpha = {drift.alpha:g} is so small that {drift.splits} splits could never alarm.", "raise alpha"
    return None


def _failures(evidence: Evidence) -> tuple[str, ...]:
    if not evidence.failed:
        return ()
    share = evidence.failed / evidence.images
    by_reason = ", ".join(f"{number} {reason}" for reason, number in evidence.reasons.items())
    many = ": more than max_failed allows" if evidence.too_many_failed else ""
    return (f"{evidence.failed} of {evidence.images} images ({share:.1%}) could not be scored ({by_reason}){many}.",)


def _numbers(evidence: Evidence, drift: Drift) -> tuple[str, ...]:
    """The measurements in plain words."""
    against = "held-out reference images" if evidence.held_out else "reference images, none of them held out"
    said = [
        f"p = {drift.p_value:.2g}, and {drift.alpha:g} or less is an alarm: {drift.n_tested:,} of {drift.n_current:,} "
        f"images held against {drift.n_reference:,} {against}.",
        f"Effect {drift.effect:.2f}: of 100 pairs of a new image and one of the reference, embeddings tell which is "
        f"which in {100 * drift.effect:.0f}; 50 is chance.",
    ]
    if not evidence.held_out:
        said.insert(0, "The reference has no held-out images: alarms against it can't be trusted.")
    if evidence.mean_confidence:
        before, now = evidence.mean_confidence
        change = now - before
        if abs(change) >= CONFIDENCE_FELL:
            said.append(f"Mean confidence {'fell' if change < 0 else 'rose'} from {before:.2f} to {now:.2f}.")
    shares = zip(evidence.vocab, drift.label_shares, strict=False)
    changed = sorted(((word, *pair) for word, pair in shares), key=lambda each: -abs(each[2] - each[1]))
    if drift.p_value <= drift.alpha and changed and abs(changed[0][2] - changed[0][1]) >= SHARE_CHANGED:
        word, before, now = changed[0]
        said.append(f"Most changed label: {word!r} went from {before:.0%} of the images to {now:.0%}.")
    return tuple(said)
