"""What a measurement found, as plain records: what drift.json holds, what a verdict judges and what a page shows.

Knows names, shapes and units. Does not know how a number is made. docs/drift.md describes the same for those who read
drift.json; a test holds the two against each other.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

# The version of drift.json: a reader refuses a higher one.
SCHEMA = 2


@dataclass(frozen=True)
class Statistic:
    """One number, its null and its p-value. ``threshold`` is the null's 1 - alpha quantile."""

    name: str
    value: float
    p_value: float
    threshold: float
    null_mean: float
    # 41 quantiles of the null, from its least to its largest value.
    null: tuple[float, ...] = field(repr=False, default=())

    @property
    def score(self) -> float:
        """Where the value lies: 0 is the null's mean, 1 its threshold."""
        return (self.value - self.null_mean) / max(self.threshold - self.null_mean, 1e-12)


@dataclass(frozen=True)
class Decision:
    """A current sample held against a reference.

    ``n_current, n_reference`` images at hand; ``n_tested`` of the current ones enter the test, in ``groups_tested``
    groups that are drawn whole (a group of one image is an image of its own). ``p_value`` belongs to the statistic
    ``combined``, the one that decides. ``effect`` in 0.5..1: how often, of a random pair of a current and a reference
    image, the current one is told by its embedding alone (cross-fitted area under the ROC curve). ``accepted`` nights
    widened the null by ``widened`` (1: not at all).
    """

    n_current: int
    n_reference: int
    n_tested: int
    groups_tested: int
    groups_reference: int
    grouped_by: str
    splits: int
    alpha: float
    seed: int
    p_value: float
    effect: float
    statistics: tuple[Statistic, ...]
    accepted: int = 0
    widened: float = 1.0

    def statistic(self, name: str) -> Statistic | None:
        """The statistic of that name, or None if it was not computed."""
        return next((each for each in self.statistics if each.name == name), None)


@dataclass(frozen=True)
class Seen:
    """What the self-test says of one planted shift: the smallest share of a night's images that it was seen at.

    ``share`` in 0..1, None if not even a night of nothing else was seen in at least 8 of 10 trials. ``n`` images.
    """

    shift: str
    n: int
    share: float | None


@dataclass(frozen=True)
class SelfTest:
    """What this test could have seen on this reference, and how often it alarms without a shift.

    ``false_alarms`` of ``trials`` nights without a shift, drawn from images that the null was not made of.
    """

    alpha: float
    false_alarms: int
    trials: int
    seen: tuple[Seen, ...]


@dataclass(frozen=True)
class Accuracy:
    """Estimated accuracy without labels, in 0..1: ``low`` to ``high`` around ``estimate``; ``reference`` is measured.

    ``estimate`` is None where nothing can be said, and ``why`` says so. ``novel``: the share of the images that lie
    further from the reference than 99 % of its own images.
    """

    reference: float
    estimate: float | None
    low: float | None
    high: float | None
    novel: float
    why: str = ""


@dataclass(frozen=True)
class Realised:
    """Accuracy by the labels of people, in 0..1, with a 95 % interval from ``low`` to ``high``.

    ``chosen``: ``all`` images of the night, those drawn at ``random`` (``drawn`` of them, of which ``labelled`` have a
    label), or those that people saw because they ``moved`` or that somebody picked: these do not speak for the night.
    """

    chosen: str
    drawn: int
    labelled: int
    right: int
    accuracy: float
    low: float
    high: float

    @property
    def of_night(self) -> bool:
        """Whether this is the night's accuracy, and not that of its most unusual images."""
        return self.chosen != "moved"


@dataclass(frozen=True)
class Pair:
    """An image of the night and the reference image nearest to it by embedding, by their uris."""

    current: str
    reference: str | None


@dataclass(frozen=True)
class ClassShift:
    """One predicted class: its shares (0..1), and how far its images moved (standardised; 0 is usual, 1 the threshold).

    ``moved`` and ``p_value`` (corrected by Holm over the classes; Holm 1979) are None for a class with too few images
    to say. ``accuracy``: estimated accuracy of the class between ``accuracy_low`` and ``accuracy_high`` (95 %), None
    where nothing can be said.
    """

    label: str
    n_reference: int
    n_current: int
    reference_share: float
    current_share: float
    moved: float | None
    p_value: float | None
    share_p_value: float
    accuracy: float | None
    accuracy_reference: float | None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    examples: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Region:
    """A cluster of the reference's embeddings: its share there and in the night, and some of its images.

    ``p_value`` of the change of its share is corrected by Holm over all regions. ``label``: its most frequent
    predicted class, "" for a regression.
    """

    number: int
    label: str
    reference_share: float
    current_share: float
    p_value: float
    current_images: tuple[str, ...]
    reference_images: tuple[str, ...]


@dataclass(frozen=True)
class Cause:
    """A property of the pixels or files that changed: ``change`` in standard deviations of the reference.

    ``words`` says it plainly: "darker by 1.4 sd". ``reference`` and ``current`` are means, in ``unit``.
    """

    name: str
    words: str
    change: float
    reference: float
    current: float
    unit: str
    p_value: float


@dataclass(frozen=True)
class Histogram:
    """Shares of the images by bin, reference beside current. ``edges`` has one number more than the shares."""

    name: str
    edges: tuple[float, ...]
    reference: tuple[float, ...]
    current: tuple[float, ...]


@dataclass(frozen=True)
class Map:
    """The reference's first two principal components with its images and the night's: points of shape (n, 2).

    ``low`` and ``high`` bound both axes; they come from the reference alone, so that nights can be laid side by side.
    ``explained``: the share of the reference's variance on each axis.
    """

    reference: tuple[tuple[float, float], ...]
    current: tuple[tuple[float, float], ...]
    low: tuple[float, float]
    high: tuple[float, float]
    explained: tuple[float, float]


@dataclass(frozen=True)
class Findings:
    """All that was found when a run was held against its reference."""

    decision: Decision
    self_test: SelfTest | None = None
    accuracy: Accuracy | None = None
    classes: tuple[ClassShift, ...] = ()
    regions: tuple[Region, ...] = ()
    causes: tuple[Cause, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    map: Map | None = None
    schema: int = SCHEMA

    def record(self) -> dict[str, Any]:
        """As JSON. The map is for the page alone."""
        return {key: value for key, value in asdict(self).items() if key != "map"}


@dataclass(frozen=True)
class TrendPoint:
    """One night of a source's trend.

    ``score``: 0 is usual, 1 the threshold; None where nothing was measured. ``accuracy`` is estimated, ``realised``
    that of the night by people's labels, both in 0..1.
    """

    night: str
    verdict: str
    score: float | None
    effect: float | None
    accuracy: float | None
    images: int
    report: str
    realised: float | None = None
