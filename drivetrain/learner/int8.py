"""The network in int8: made once, from images of the learner's world, and never trusted with a close call.

Quantising (nncf: ranges from calibration images, bias correction) moves the network's outputs a little. Where the two
best classes, or a class and its threshold, are nearer than that, the label could turn: these images are computed once
more in float32. How near is too near is measured on images held against float32. Embeddings are int8's throughout.
"""

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from drivetrain.errors import LearnerError
from drivetrain.learner.engines import CPU_BATCH, KEPT_IMAGES, Engine, OpenVinoEngine, openvino_module, packed, unpacked
from drivetrain.learner.header import short
from drivetrain.learner.outputs import Floats, Loss, cosines

# Computing close calls twice is cheap up to this share of the images; beyond it, this share of the checked images may
# keep another label: a few outliers must not send half of a bucket twice.
CHEAP = 0.1
MAY_DIFFER = 0.0025
# With more images computed twice, int8 saves too little to be worth other embeddings.
MOST_RECOMPUTED = 0.5


@dataclass(frozen=True)
class Quality:
    """How far int8 is from float32 on ``images`` images.

    ``close``: outputs nearer than that make a close call. ``recomputed``: share of images that have one. ``alone`` and
    ``agreement``: share whose labels are float32's, from int8 only and with close calls computed again. ``cosine``:
    mean, between the embeddings; None without.
    """

    images: int
    close: float
    recomputed: float
    alone: float
    agreement: float
    cosine: float | None
    made_with: str

    def __str__(self) -> str:
        return (
            f"int8: {self.agreement:.2%} of {self.images:,} images get float32's label; "
            f"{self.recomputed:.1%} are close calls, computed again in float32 ({self.alone:.2%} without that)"
        )


class Decision:
    """What labels an image has by what the network's last layer says (n, k), and by how much."""

    def __init__(self, multi_label: bool, loss: Loss) -> None:
        self._cut = _cut(loss) if multi_label else None

    def labels(self, raw: Floats) -> npt.NDArray[np.bool_]:
        """The labels (n, k) as booleans."""
        chosen: npt.NDArray[np.bool_] = np.arange(raw.shape[1]) == raw.argmax(1)[:, None]
        return chosen if self._cut is None else np.greater(raw, self._cut)

    def margins(self, raw: Floats) -> Floats:
        """How far each image (n,) is from other labels, in units of the last layer."""
        if self._cut is not None:
            nearest: Floats = np.abs(raw - self._cut).min(1)
            return nearest
        if raw.shape[1] < 2:
            return np.full(len(raw), np.inf, np.float32)
        best = np.partition(raw, -2, axis=1)
        margins: Floats = best[:, -1] - best[:, -2]
        return margins


def _cut(loss: Loss) -> float:
    """The threshold of multi-label in units of the last layer, which may give probabilities itself (BCELossFlat)."""
    if loss.activation != "sigmoid":
        return loss.threshold
    share = min(max(loss.threshold, 1e-7), 1 - 1e-7)
    return float(np.log(share / (1 - share)))


class Int8Engine:
    """OpenVINO in int8, with the close calls in float32."""

    def __init__(self, stored: bytes, exact: Engine, decision: Decision, threads: int | None) -> None:
        self.name = "int8"
        self._exact, self._decision = exact, decision
        model, arrays, quality = unpacked(stored)
        self._kept, self._expected, self.quality = arrays["kept"], arrays["expected"], Quality(**quality)
        self._fast = OpenVinoEngine(model, threads)

    def run(self, batch: Any) -> tuple[Floats, Floats | None]:
        """The network's last layer (n, k) and the embeddings (n, d) of a batch of n images."""
        raw, embeddings = self._fast.run(batch)
        close = np.flatnonzero(self._decision.margins(raw) <= self.quality.close)
        if len(close):
            raw[close] = self._exact.run(batch[close])[0]
        return raw, embeddings

    def differs(self) -> str:
        """Why this processor does not compute what the one did where int8 was made, or an empty text."""
        far = float(np.abs(self._fast.run(self._kept)[0] - self._expected).max())
        # Integers are the same everywhere, the steps between them are rounded as each processor likes.
        near = max(self.quality.close, 0.02 * float(np.abs(self._expected).max()))
        return f"its outputs differ by {far:.1e}" if far > near else ""


def make_int8(
    model: Any, calibration: Sequence[Any], checks: Iterable[Any], exact: Engine, decision: Decision
) -> tuple[bytes, Quality]:
    """Quantise a float32 OpenVINO model: what is to be stored, and how far it is from the exact engine.

    ``calibration`` and ``checks`` are prepared images. Raises LearnerError when nncf is not installed or can't do it,
    or when too many images would have to be computed twice.
    """
    quantised = _quantised(model, calibration)
    fast = OpenVinoEngine(quantised)
    raws, others, near = [], [], []
    for batch in _batches(checks):
        raw, embeddings = fast.run(batch)
        other, exactly = exact.run(batch)
        raws.append(raw)
        others.append(other)
        if embeddings is not None and exactly is not None:
            near.append(cosines(embeddings, exactly))
    raw, other = np.concatenate(raws), np.concatenate(others)
    quality = _quality(raw, other, np.concatenate(near) if near else None, decision)
    if quality.recomputed > MOST_RECOMPUTED:
        raise LearnerError(f"{quality.recomputed:.0%} of the images would have to be computed again in float32")
    kept = np.stack(list(calibration[:KEPT_IMAGES]))
    return packed(quantised, {"kept": kept, "expected": fast.run(kept)[0]}, asdict(quality)), quality


def _quality(raw: Floats, exact: Floats, near: Floats | None, decision: Decision) -> Quality:
    wrong = (decision.labels(raw) != decision.labels(exact)).any(1)
    margins = decision.margins(raw)
    close = _closest(margins, wrong)
    again = margins <= close
    return Quality(
        images=len(raw),
        close=close,
        recomputed=float(again.mean()),
        alone=float(1 - wrong.mean()),
        agreement=float(1 - (wrong & ~again).mean()),
        cosine=None if near is None else float(near.mean()),
        made_with=f"nncf {version('nncf')}, openvino {version('openvino')}",
    )


def _closest(margins: Floats, wrong: npt.NDArray[np.bool_]) -> float:
    """The margin up to which images are close calls: that of the clearest image whose label is wrong, if cheap."""
    turned = [*np.sort(margins[wrong])[::-1].tolist(), 0.0]
    for close in turned[: int(MAY_DIFFER * len(margins)) + 1]:
        if (margins <= close).mean() <= CHEAP:
            break
    return float(close)


def _quantised(model: Any, calibration: Sequence[Any]) -> Any:
    """The model in int8. Its first layers stay float32: they cost most labels and little time (benchmarks/int8.md)."""
    # nncf talks: about CUDA, through torch's log, and with bars on stdout, where a job's result goes.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    openvino_module()
    try:
        import nncf
    except ImportError as error:
        raise LearnerError('nncf makes it, and is not installed here: pip install "drivetrain[int8]"') from error
    nncf.set_log_level(logging.ERROR)
    operations = [(each.get_friendly_name(), each.get_type_name()) for each in model.get_ordered_ops()]
    first = {kind: name for name, kind in reversed(operations) if kind in ("Convolution", "GroupConvolution")}
    attends = any(kind in ("ScaledDotProductAttention", "Softmax") for _, kind in operations)
    try:
        with redirect_stdout(io.StringIO()):
            return nncf.quantize(
                model,
                nncf.Dataset([item[None] for item in calibration]),
                subset_size=len(calibration),
                preset=nncf.QuantizationPreset.MIXED,
                fast_bias_correction=False,
                ignored_scope=nncf.IgnoredScope(names=list(first.values())),
                model_type=nncf.ModelType.TRANSFORMER if attends else None,
            )
    except Exception as error:
        raise LearnerError(f"nncf can't quantise it: {short(error)}") from error


def _batches(items: Iterable[Any]) -> Iterator[Any]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == CPU_BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
