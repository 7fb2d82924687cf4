"""Stored embeddings through a new head: whether that may be, and what an actor holds for it.

Knows two learners whose bodies are equal to the bit, and the rows of the run that one of them made. Reads no image and
fetches nothing but parts. What is asked first is whether every step from an image to its embedding is the same; one
step that differs, or can't be compared, and the images are read.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.admit import known_learner
from drivetrain.config import Config
from drivetrain.console import busy
from drivetrain.errors import LearnerError, RunError
from drivetrain.export import LearnerInfo
from drivetrain.layout import Layout
from drivetrain.outcomes import numbers_of
from drivetrain.run import PartCounts, Run
from drivetrain.schema import matrix, row_schema
from drivetrain.store import Store

# What a learner says of an image, beside the embedding.
SAID = ("label", "label_index", "labels", "values", "confidence", "margin", "entropy", "energy", "probs")


def why_not(store: Store, layout: Layout, old: Run, info: LearnerInfo, config: Config) -> str:
    """Why a run's embeddings can't go through the head of another learner, the first reason; empty if they can."""
    record, settings = old.record, old.record.settings
    if not record.embedding_size:
        return f"run {record.run_id} has no embeddings"
    if config.embedding == "none":
        return 'embedding = "none" keeps no embeddings'
    if "int8" in (settings["engine"], config.engine):
        whose = record.run_id if settings["engine"] == "int8" else "the new run"
        return f"the engine of {whose} is int8, whose embeddings are its own"
    for key in ("embedding", "precision", "max_pixels"):
        if settings[key] != getattr(config, key):
            return f"{key} was {settings[key]!r} there and is {getattr(config, key)!r} here"
    before = known_learner(store, layout, record.model_id, settings["embedding"])
    if before is None:
        return f"nothing is known of the learner {record.model_id} any more"
    for each in (before, info):
        if each.read == "fastai":
            return f"the learner {each.model_id} was opened by running its code, which can't be compared"
    if before.body and before.road and (before.body, before.road) == (info.body, info.road):
        return ""
    return _looked_at(store, layout, before, info, config)


def _looked_at(store: Store, layout: Layout, before: LearnerInfo, info: LearnerInfo, config: Config) -> str:
    """The same, when two learners have to be opened to know it."""
    from drivetrain.learner import difference, open_learner

    with busy("Holding the new learner's body against the old one's"):
        found = []
        for each in (before, info):
            try:
                opened = open_learner(store.read(layout.export(each.model_id)), each.sha256, config.embedding)
                found.append((opened.body(), opened.road()))
            except (LearnerError, OSError) as error:
                return f"the learner {each.model_id} can't be compared: {error}"
    (old_body, old_road), (new_body, new_road) = found
    if old_road != new_road:
        return f"images are prepared otherwise: {_only(before, info)} there, {_only(info, before)} here"
    return difference(old_body, new_body)


def _only(one: LearnerInfo, other: LearnerInfo) -> str:
    """The transforms of one learner that another does not have; all of them where their texts are the same."""
    own = [each for each in one.transforms if each not in other.transforms]
    return ", ".join(own or one.transforms)


class HeadScorer:
    """Scores embeddings of another run's parts: what each actor holds. Opens the learner once, when it is made."""

    def __init__(
        self,
        store: Store,
        root: str,
        run_id: str,
        batch_size: int,
        *,
        vouched: bool = False,
        one_thread: bool = False,
        gpu: bool = False,
    ) -> None:
        # It imports torch, which the driver that asks `why_not` seldom needs.
        from drivetrain.learner import open_learner

        layout = Layout(root)
        self._run = Run.find(store, layout, run_id)
        record = self._run.record
        assert record.made_from is not None, "a run that is made from another one's embeddings"
        self._old = Run.find(store, layout, record.made_from)
        export, threads = store.read(layout.export(record.model_id)), 1 if one_thread else None
        self._learner = open_learner(
            export, record.sha256, record.settings["embedding"], vouched=vouched, threads=threads, gpu=gpu
        )
        self._ahead = ThreadPoolExecutor(1)
        self._expected: tuple[int, Future[pa.Table]] | None = None

    def run(self, task: int, upcoming: int | None = None) -> PartCounts:
        """Make one shard's part of the old one; read and compute the upcoming one while this one is written.

        Raises RunError when the old part holds other images than the manifest.
        """
        expected, self._expected = self._expected, None
        rows = expected[1].result() if expected and expected[0] == task else self._rows(task)
        if upcoming is not None:
            self._expected = (upcoming, self._ahead.submit(self._rows, upcoming))
        return self._run.save_part(task, rows)

    def _rows(self, shard: int) -> pa.Table:
        images, rows = self._run.shard(shard), self._old.part(shard)
        if not rows["uri"].equals(images["uri"]):
            raise RunError(
                f"{self._old.paths.part(shard)} holds other images than the manifest of {self._run.record.run_id}. "
                "Read the images instead: the same command with   --full"
            )
        return self._with_new_head(rows, images)

    def steps(
        self, task: int, first: int | None, without: frozenset[int]
    ) -> Iterator[tuple[int | None, PartCounts | None]]:
        """The same: a part has no steps that could be left out, since no image of anybody's is opened."""
        yield None, self.run(task)

    def _with_new_head(self, rows: pa.Table, images: pa.Table) -> pa.Table:
        """A part's rows with what the new head says; what is known of the images, and failed rows, stay as they are."""
        record = self._run.record
        scored = pc.equal(rows["status"], "ok").combine_chunks()
        embeddings = rows["embedding"].combine_chunks().filter(scored)
        said = columns_of(self._learner, matrix(pa.chunked_array([embeddings]))) if len(embeddings) else {}
        # A scored row takes its place among the scored; a failed one takes null.
        places = pc.if_else(scored, pc.subtract(pc.cumulative_sum(pc.cast(scored, pa.int64())), 1), None)
        columns: dict[str, Any] = {name: rows[name] for name in rows.column_names}
        schema = row_schema(record.embedding_size)
        for name in SAID:
            found = said.get(name)
            columns[name] = pa.nulls(len(rows), schema.field(name).type) if found is None else found.take(places)
        columns |= {name: images[name] for name in ("split", "true_label")}
        columns |= {name: pa.array([getattr(record, name)] * len(rows)) for name in ("model_id", "run_id")}
        return pa.table([columns[name] for name in schema.names], schema.names).cast(schema)


def columns_of(learner: Any, embeddings: npt.NDArray[np.float32]) -> dict[str, pa.Array]:
    """What a learner's head says of embeddings (n, d): the columns of n rows, without those that stay null.

    Raises RunError when it says something that is not finite: such a row is a failed one, which is not made here.
    """
    info, found = learner.info, learner.predict_from(embeddings)
    if not np.isfinite(found.outputs).all():
        raise RunError(
            "The new head gives NaN or infinity for some of the stored embeddings. "
            "Read the images, of which these become failed rows: the same command with   --full"
        )
    columns = {
        name: _lists(values) if values.ndim > 1 else pa.array(values)
        for name, values in numbers_of(info, found).items()
    }
    if "label_index" not in columns:
        return columns
    words = pa.array(info.vocab, pa.string())
    label = words.take(columns["label_index"])
    chosen = label if found.chosen is None else words.take(pa.array(np.nonzero(found.chosen)[1]))
    each = np.ones(len(label), int) if found.chosen is None else found.chosen.sum(1)
    ends = np.concatenate([[0], np.cumsum(each)]).astype(np.int32)
    return columns | {"label": label, "labels": pa.ListArray.from_arrays(pa.array(ends), chosen)}


def _lists(values: npt.NDArray[np.float32]) -> pa.Array:
    """Rows of numbers as a column of lists."""
    ends = pa.array(np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1]))
    return pa.ListArray.from_arrays(ends, pa.array(np.ascontiguousarray(values).reshape(-1)))
