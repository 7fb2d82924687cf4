"""What a comparison of two runs found, as plain records: what comparison.json holds and what its page shows.

Knows names, shapes and units. Does not know how a number is made. docs/comparison.md describes the same for those who
read comparison.json; a test holds the two against each other.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# The version of comparison.json: a reader refuses a higher one.
SCHEMA = 2
# With fewer labelled images slices are told by what changed.
ENOUGH_FOR_SLICES = 40

Word = Literal["promote", "keep", "label more", "look"]


@dataclass(frozen=True)
class Truth:
    """Which of the two is right more often, on images whose true label is known and that no training saw.

    ``measure``: ``accuracy`` (single-label), ``jaccard`` (multi-label: the labels that said and true set share, of all
    in either), ``error`` (regression: mean absolute error). ``difference`` is new less old with its 95 % interval.
    ``lost`` images got worse under the new learner, ``won`` better. All None where ``labelled`` is 0.
    """

    measure: str
    labelled: int
    by_people: int
    old: float | None
    new: float | None
    difference: float | None
    low: float | None
    high: float | None
    lost: int
    won: int
    p_value: float | None
    test: str
    margin: float
    needed: int
    needed_flips: int | None
    labelled_flips: int | None
    trained_old: int
    trained_new: int
    known_training_old: bool
    known_training_new: bool
    only_old: int
    only_new: int
    foreign: int
    unreadable: int

    @property
    def gain(self) -> float:
        """By how much the new learner is better; 0 where nothing is known."""
        return (self.difference or 0.0) * self._better

    @property
    def gain_interval(self) -> tuple[float, float]:
        """The 95 % interval of the gain."""
        ends = sorted((self._better * (self.low or 0.0), self._better * (self.high or 0.0)))
        return ends[0], ends[1]

    @property
    def _better(self) -> int:
        return -1 if self.measure == "error" else 1


@dataclass(frozen=True)
class OwnDrift:
    """What a run's latest closed record says of these images against the learner's own reference.

    ``verdict`` None: not measured, and ``sentence`` says what to type. ``estimate`` with ``low`` and ``high``: accuracy
    estimated without labels; None where the record says that it can't say (``why``).
    """

    verdict: str | None
    sentence: str
    p_value: float | None = None
    score: float | None = None
    effect: float | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    reference_accuracy: float | None = None
    why: str = ""
    report: str | None = None


@dataclass(frozen=True)
class Slice:
    """A part of the images on which the new learner does worse, or (``by`` disagreement) says otherwise more often.

    ``old`` and ``new`` in the unit of ``Truth.measure``. ``p_value`` is corrected by Holm over all slices of its kind
    of test. ``decides``: whether the recommendation goes by it. ``examples``: images that got worse, or changed.
    """

    kind: str
    name: str
    by: str
    n: int
    old: float | None
    new: float | None
    lost: int
    won: int
    changed: float | None
    p_value: float
    decides: bool
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Behaviour:
    """The newest behaviour tests of the new learner."""

    model_id: str
    made: str
    passed: bool
    sentence: str
    page: str | None


@dataclass(frozen=True)
class Recommendation:
    """What to do: ``sentence`` says it in one line, ``reasons`` why, ``next`` is the command to type, or empty."""

    do: Word
    sentence: str
    reasons: tuple[str, ...]
    next: str


@dataclass(frozen=True)
class Comparison:
    """What two learners say of the same images.

    ``flips`` are the images whose label changed, most confident new label first, at most 500; ``flipped`` counts all.
    ``confusion``: how often each label became which, the most frequent 1,000. ``confidence_change``: mean of new minus
    old over images scored by both, with a 95 % interval (normal approximation of the paired mean). ``overlap``: of a
    multi-label learner, the mean Jaccard index of the two sets of labels. ``inputs``: all that a comparison depends on
    beside the two committed runs.
    """

    old: str
    new: str
    model_old: str
    model_new: str
    images: int
    scored_by_both: int
    only_old: int
    only_new: int
    agreement: float | None
    agreement_interval: tuple[float, float] | None
    overlap: float | None
    flipped: int
    confusion: tuple[tuple[str, str, int], ...]
    classes_added: tuple[str, ...]
    classes_removed: tuple[str, ...]
    confidence_change: tuple[float, float, float] | None
    value_change: float | None
    truth: Truth
    drift_old: OwnDrift
    drift_new: OwnDrift
    slices: tuple[Slice, ...]
    slices_tested: int
    slices_note: str
    behaviour: Behaviour | None
    recommendation: Recommendation
    flips: tuple[dict[str, Any], ...]
    inputs: dict[str, Any] = field(default_factory=dict)
    made: str = ""
    schema: int = SCHEMA

    @property
    def slices_by_disagreement(self) -> bool:
        """Whether slices are told by changed labels, for want of labelled images."""
        return self.truth.labelled < ENOUGH_FOR_SLICES

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
