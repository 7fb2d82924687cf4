"""What could this test have seen? Asked of a reference before a night is trusted to be quiet.

Knows planted shifts as scores. Does not know how images are changed or scored. A test that has never alarmed may be
right or blind; users of drift detectors keep asking which (alibi-detect issues 544 and 546).
"""

from collections.abc import Mapping

import numpy as np

from drivetrain.drift import Yardstick, splits_for
from drivetrain.findings import Seen, SelfTest
from drivetrain.groups import whole_groups
from drivetrain.lens import Indices, Lens, Scores, concatenated

SIZES = (200, 1000, 5000)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
TRIALS, ENOUGH = 10, 8
QUIET_NIGHTS = 200
YARDSTICK_SHARE = 0.7
MORE_OF_A_CLASS = "more of one class"


def self_test(
    reference: Scores, lens: Lens, planted: Mapping[str, Scores], *, alpha: float, seed: int
) -> SelfTest | None:
    """Plant shifts into nights made of reference images, and count which are seen.

    Seven tenths of the reference's groups are the yardstick, nights come from the others, so that no image is held
    against itself. ``planted``: by shift, the scores of shifted images. None for a reference of fewer than 100 images.
    """
    if len(reference) < 100:
        return None
    rng = np.random.default_rng([seed, 9])
    first = whole_groups(reference.groups, int(len(reference) * YARDSTICK_SHARE), rng)
    yardstick = Yardstick(reference.take(first), lens, seed)
    rest = reference.take(np.setdiff1d(np.arange(len(reference)), first))
    trial = _Trial(yardstick, rest, alpha, rng)
    quiet = trial.size(SIZES[1])
    alarms = sum(trial.alarms(trial.quiet_night(quiet)) for _ in range(QUIET_NIGHTS))
    seen = [
        Seen(shift, n, trial.smallest_share(shift, planted.get(shift), n))
        for shift in (*planted, *([MORE_OF_A_CLASS] if len(rest.labels) else []))
        for n in SIZES
        if trial.size(n) == n or n == SIZES[-1]
    ]
    return SelfTest(alpha, int(alarms), QUIET_NIGHTS, tuple(seen))


class _Trial:
    """Nights made of images that the yardstick does not hold."""

    def __init__(self, yardstick: Yardstick, rest: Scores, alpha: float, rng: np.random.Generator) -> None:
        self._yardstick, self._rest, self._alpha, self._rng = yardstick, rest, alpha, rng

    def size(self, n: int) -> int:
        """How many images of a night of n enter the test: never more than there are to draw a night from."""
        return min(self._yardstick.size_for(n), len(self._rest))

    def quiet_night(self, n: int) -> Scores:
        return self._rest.take(whole_groups(self._rest.groups, n, self._rng))

    def alarms(self, night: Scores) -> bool:
        null = self._yardstick.null(len(night), splits_for(self._alpha))
        values = self._yardstick.values(night)
        value = float(null.standardised(np.array([[values[name] for name in null.names]])).max())
        return (1 + int((null.combined >= value).sum())) / (1 + len(null.combined)) <= self._alpha

    def smallest_share(self, shift: str, planted: Scores | None, n: int) -> float | None:
        """The smallest share that is seen in 8 of 10 nights or more, and every larger one that was tried as well."""
        found = None
        for share in reversed(SHARES):
            seen = sum(self.alarms(self._shifted(planted, self.size(n), share)) for _ in range(TRIALS))
            if seen < ENOUGH:
                break
            found = share
        return found

    def _shifted(self, planted: Scores | None, n: int, share: float) -> Scores:
        night = self.quiet_night(n)
        strange = planted if planted is not None else self._one_class()
        number = max(1, round(n * share))
        drawn: Indices = self._rng.choice(len(strange), number, replace=number > len(strange))
        return concatenated([night.take(np.arange(n - number)), strange.take(drawn)])

    def _one_class(self) -> Scores:
        """The images of a class drawn at random."""
        label = self._rng.choice(np.unique(self._rest.labels))
        return self._rest.take(np.flatnonzero(self._rest.labels == label))
