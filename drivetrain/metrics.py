"""Our own metrics for Evidently: each is a number of its dashboard, and most are a part of the page.

Knows which number carries which widgets. Does not compute any: a page comes with its numbers, as one more dataset,
which is how Evidently passes extra data to a calculation. A number that never changes is a metric too: Evidently draws
a threshold only as a series.
"""

from typing import Any, cast

import pandas as pd
from evidently import DataDefinition, Dataset
from evidently.core.metric_types import (
    ByLabelCalculation,
    ByLabelMetric,
    SingleValueCalculation,
    SingleValueMetric,
)
from evidently.legacy.renderers.html_widgets import text_widget

from drivetrain.exposition import CODES
from drivetrain.findings import Findings
from drivetrain.selection import Page, Shown
from drivetrain.widgets import (
    accuracy_widgets,
    class_widgets,
    decision_widgets,
    failed_widgets,
    head_widgets,
    queue_widgets,
    realised_widgets,
    region_widgets,
    self_test_widgets,
    trend_widgets,
    world_widgets,
)

PAGE = "drivetrain_page"
# Evidently's own measure of embeddings: more rows take minutes.
EMBEDDED_ROWS = 500


def handed_over(shown: Shown, evidently: tuple[float, list[Any]] | None) -> dict[str, Dataset]:
    """A page as the extra data of a report. ``evidently``: score and widgets of Evidently's own measure, if asked."""
    frame = pd.DataFrame({"page": [_Held(shown, evidently)]})
    return {PAGE: Dataset.from_pandas(frame, data_definition=DataDefinition())}


class NightVerdict(SingleValueMetric):
    """The verdict as a number: 0 ok, 1 warn, 2 drift, -1 unknown."""


class DriftPValue(SingleValueMetric):
    """The p-value of the deciding statistics together."""


class DriftAlpha(SingleValueMetric):
    """The p-value that alarms, for a line beside those of the nights."""


class DriftScore(SingleValueMetric):
    """How far the deciding statistic lies out: 0 is usual, 1 is the threshold."""


class DriftThreshold(SingleValueMetric):
    """1, the score that alarms, for a line beside those of the nights."""


class DriftEffect(SingleValueMetric):
    """How often tonight's image is told from the reference's, of a random pair."""


class EffectFloor(SingleValueMetric):
    """The smallest effect that alarms, for a line beside those of the nights."""


class EstimatedAccuracy(SingleValueMetric):
    """The accuracy that is estimated without labels."""


class ReferenceAccuracy(SingleValueMetric):
    """The accuracy on the reference's labelled images, for a line beside those of the nights."""


class RealisedAccuracy(SingleValueMetric):
    """The accuracy by the labels of people: the night's where they tell it, else that of the images that moved."""


class FailedShare(SingleValueMetric):
    """The share of the night's images that could not be scored."""


class FailedAllowed(SingleValueMetric):
    """The share of failed images that is accepted, for a line beside those of the nights."""


class ScoredImages(SingleValueMetric):
    """The number of images that were scored."""


class MeanConfidence(SingleValueMetric):
    """The mean confidence of the rows at hand."""


class LabelShare(ByLabelMetric):
    """The share of the night's images that got each label."""


class ReviewImages(SingleValueMetric):
    """The number of images in the review queue."""


class EvidentlyEmbeddings(SingleValueMetric):
    """Evidently's own drift of embeddings, on a sample, for those who know it."""


class _Held:
    """Carries an object through a data frame, which would take a list or a table apart."""

    def __init__(self, shown: Shown, evidently: tuple[float, list[Any]] | None) -> None:
        self.shown, self.evidently = shown, evidently


def _held(context: Any) -> _Held:
    return cast("_Held", context.additional_data[PAGE].as_dataframe()["page"].iloc[0])


def _found(page: Page) -> Findings:
    """The findings of a page whose metrics are there only if it has some."""
    assert page.findings is not None
    return page.findings


class NightVerdictCalculation(SingleValueCalculation[NightVerdict]):
    """Shows the sentence, the lever and the reasons at the top of the page."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The verdict's code and its widgets."""
        page = _held(context).shown.page
        result = self.result(CODES[page.verdict.verdict])
        result.widget = head_widgets(page)
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Verdict (0 ok, 1 warn, 2 drift, -1 unknown)"


class DriftPValueCalculation(SingleValueCalculation[DriftPValue]):
    """Shows the null with tonight's mark, and what the test could have seen."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The p-value and its pictures."""
        found = _found(_held(context).shown.page)
        result = self.result(found.decision.p_value)
        result.widget = [*decision_widgets(found.decision), *self_test_widgets(found.self_test)]
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Drift p-value"


class DriftScoreCalculation(SingleValueCalculation[DriftScore]):
    """Shows the trend of the last nights."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The score and its trend; and, where no accuracy can be estimated, why not."""
        page = _held(context).shown.page
        combined = _found(page).decision.statistic("combined")
        assert combined is not None
        result = self.result(combined.score)
        accuracy = _found(page).accuracy
        unsaid = accuracy_widgets(page) if accuracy is None or accuracy.estimate is None else []
        result.widget = [*trend_widgets(page), *unsaid]
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Drift score (0 usual, 1 threshold)"


class EstimatedAccuracyCalculation(SingleValueCalculation[EstimatedAccuracy]):
    """Shows what accuracy is estimated."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The estimate and its range."""
        page = _held(context).shown.page
        accuracy = _found(page).accuracy
        assert accuracy is not None and accuracy.estimate is not None
        result = self.result(accuracy.estimate)
        result.widget = accuracy_widgets(page)
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Estimated accuracy"


class RealisedAccuracyCalculation(SingleValueCalculation[RealisedAccuracy]):
    """Shows what people's labels say."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The share that is right, with its sentences."""
        page = _held(context).shown.page
        result = self.result(page.realised[0].accuracy)
        result.widget = realised_widgets(page)
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Realised accuracy"


class LabelShareCalculation(ByLabelCalculation[LabelShare]):
    """Shows the classes."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The share of each label."""
        shown = _held(context).shown
        result = self.result({row.label: row.current_share for row in _found(shown.page).classes})
        result.widget = class_widgets(shown)
        return result

    def label_metric(self, label: Any) -> str:
        """The name of one label's share."""
        return f"Share of {label}"

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Label shares"


class DriftEffectCalculation(SingleValueCalculation[DriftEffect]):
    """Shows the regions: where in the reference's world the night differs."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The effect."""
        shown = _held(context).shown
        result = self.result(_found(shown.page).decision.effect)
        result.widget = region_widgets(shown)
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Drift effect (0.5 chance, 1 always told apart)"


class ReviewImagesCalculation(SingleValueCalculation[ReviewImages]):
    """Shows the images that moved most, and the world around them."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number of images and their thumbnails."""
        shown = _held(context).shown
        result = self.result(len(shown.page.queue))
        found = shown.page.findings
        result.widget = [*queue_widgets(shown), *(world_widgets(found) if found else [])]
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Images in the review queue"


class FailedShareCalculation(SingleValueCalculation[FailedShare]):
    """Shows failed images by reason."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The share."""
        page = _held(context).shown.page
        result = self.result(page.commit.failed / max(1, page.commit.rows))
        result.widget = failed_widgets(page)
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Failed share"


class EvidentlyEmbeddingsCalculation(SingleValueCalculation[EvidentlyEmbeddings]):
    """Shows what Evidently's EmbeddingsDrift says, and how that is to be read."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """Evidently's score and its own widgets."""
        evidently = _held(context).evidently
        assert evidently is not None
        result = self.result(evidently[0])
        result.widget = [text_widget(title="Evidently's own EmbeddingsDrift, beside ours", text=_READ), *evidently[1]]
        return result

    def display_name(self) -> str:
        """The metric's name on the page."""
        return "Evidently's EmbeddingsDrift (decides nothing here)"


_READ = (
    f"You asked for this. At most {EMBEDDED_ROWS} images of each side, drawn at random, and Evidently's defaults: a "
    "classifier is trained to tell tonight's embeddings from the reference's, and its score is the area under its ROC "
    "curve (0.5 is chance). Evidently's word *detected* is held against a threshold of its own, which was not made for "
    "your images: it decides nothing here, and the verdict above does not know it. In the plot (t-SNE) only "
    "neighbourhoods mean something, distances between groups and the axes do not."
)


def _drawn_only(result: Any) -> Any:
    """A number of the dashboard, and nothing on the page."""
    result.widget = []
    return result


class DriftAlphaCalculation(SingleValueCalculation[DriftAlpha]):
    """alpha."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number."""
        page = _held(context).shown.page
        return _drawn_only(self.result(_found(page).decision.alpha))

    def display_name(self) -> str:
        """The metric's name."""
        return "Alarm at a p-value of (alpha)"


class DriftThresholdCalculation(SingleValueCalculation[DriftThreshold]):
    """The unit of the score."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number."""
        return _drawn_only(self.result(1.0))

    def display_name(self) -> str:
        """The metric's name."""
        return "Alarm at a score of"


class EffectFloorCalculation(SingleValueCalculation[EffectFloor]):
    """effect_floor."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number."""
        page = _held(context).shown.page
        return _drawn_only(self.result(page.effect_floor))

    def display_name(self) -> str:
        """The metric's name."""
        return "Alarm at an effect of (effect_floor)"


class ReferenceAccuracyCalculation(SingleValueCalculation[ReferenceAccuracy]):
    """The reference's measured accuracy."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number."""
        page = _held(context).shown.page
        accuracy = _found(page).accuracy
        assert accuracy is not None
        return _drawn_only(self.result(accuracy.reference))

    def display_name(self) -> str:
        """The metric's name."""
        return "Accuracy on the reference"


class FailedAllowedCalculation(SingleValueCalculation[FailedAllowed]):
    """max_failed."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number."""
        page = _held(context).shown.page
        return _drawn_only(self.result(page.commit.max_failed))

    def display_name(self) -> str:
        """The metric's name."""
        return "Failed share accepted (max_failed)"


class ScoredImagesCalculation(SingleValueCalculation[ScoredImages]):
    """The images of the night that have a score, all of them; the rows at hand may be a sample."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number."""
        page = _held(context).shown.page
        return _drawn_only(self.result(page.commit.rows - page.commit.failed))

    def display_name(self) -> str:
        """The metric's name."""
        return "Images scored"


class MeanConfidenceCalculation(SingleValueCalculation[MeanConfidence]):
    """The mean of a column of the rows, which Evidently's own metric would draw once more."""

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        """The number."""
        return _drawn_only(self.result(float(current_data.as_dataframe()["confidence"].mean())))

    def display_name(self) -> str:
        """The metric's name."""
        return "Mean confidence"
