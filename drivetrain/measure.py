"""Everything that is found when a run is held against a reference, in one record.

Knows which statistic looks at what. Decides nothing and writes nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from drivetrain import why
from drivetrain.bundle import Bundle, Looked
from drivetrain.drift import Yardstick, decide
from drivetrain.findings import Findings
from drivetrain.severity import estimate


def findings_of(
    bundle: Bundle,
    looked: Looked,
    moved: npt.NDArray[np.float64],
    vocab: Sequence[str],
    alpha: float,
    accepted: Sequence[float],
    seed: int,
) -> Findings:
    """Hold the images that were drawn of a run against a reference, and count over all of them.

    ``moved`` (n,): how far each row of ``looked`` lies in the direction in which the night moved.
    """
    lens, reference = bundle.lens, bundle.scores
    current = looked.scores.take(looked.drawn)
    yardstick = Yardstick(reference, lens, seed)
    decision = decide(yardstick, current, alpha=alpha, seed=seed, accepted=accepted, grouped_by=bundle.grouped_by)
    assert looked.totals is not None, "a run that was seen through a lens"
    totals = bundle.totals, looked.totals
    every = looked.rows["uri"].to_pylist()
    uris = bundle.uris, [every[place] for place in looked.drawn]
    classes = why.classes(lens, reference, current, totals, vocab, alpha, seed)
    accuracy = estimate(lens, reference, current, decision.effect, seed)
    if accuracy and accuracy.estimate is None:
        # What can't be said of the night can't be said of its classes.
        classes = tuple(replace(each, accuracy=None, accuracy_low=None, accuracy_high=None) for each in classes)
    return Findings(
        decision=decision,
        self_test=bundle.self_test,
        accuracy=accuracy,
        classes=why.with_examples(classes, lens, reference, current, uris, moved[looked.drawn], vocab),
        regions=why.regions(lens, reference, current, totals, uris, vocab),
        causes=why.causes(reference, current, totals),
        histograms=why.histograms(lens, totals),
        map=why.map_of(lens, reference, current, seed),
    )
