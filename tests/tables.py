"""Synthetic runs for the tests of the table of current scores, and what such a table must hold by the plainest rule."""

import dataclasses
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from builders import begun, frozen, image
from deltalake import DeltaTable

from drivetrain.layout import Layout
from drivetrain.manifest import Plan
from drivetrain.members import CURRENT
from drivetrain.root import to_json
from drivetrain.run import Run
from drivetrain.schema import SCHEMA_MAJOR, round_mantissa, row_schema
from drivetrain.store import Store

# Learners of different classes and embeddings; those of WIDE are long, as real ones are.
OLD, NEW, WIDE = "0a" * 32, "1b" * 32, "2c" * 32
ABOUT: Mapping[str, dict[str, Any]] = {
    OLD: {"vocab": ("cat", "dog"), "embedding_size": 3},
    NEW: {"vocab": ("cat", "dog", "horse", "newt", "toad"), "embedding_size": 8},
    WIDE: {"vocab": ("cat", "dog"), "embedding_size": 256},
}
Rows = dict[str, tuple[str, str]]


class World:
    """A root with a source ``shop`` whose plans are made by number of image. ``truth`` says what readers must see."""

    def __init__(self, root: str, store: Store | None = None) -> None:
        self.store, self.layout = store or Store(), Layout(root)
        self.store.create(self.layout.marker, to_json({"drivetrain": "root", "schema": SCHEMA_MAJOR}))
        self.clock = 0

    def plan(self, name: str, numbers: Iterable[int], kind: str = "night") -> Plan:
        """Freeze a plan, later than the one before."""
        images = [image(f"{number:05d}.jpg") for number in numbers]
        plan = frozen(self.store, self.layout, images, name=name, kind=kind)
        self.clock += 1
        plan = dataclasses.replace(plan, created=f"2026-01-01T00:{self.clock // 60:02d}:{self.clock % 60:02d}+00:00")
        self.store.replace(plan.paths(self.layout).plan, to_json(dataclasses.asdict(plan)))
        return plan

    def run(self, plan: Plan, sha256: str = OLD, failed: Collection[int] = ()) -> Run:
        """Commit a run of a plan, later than the one before."""
        self.clock += 1
        created = f"2026-01-02T00:{self.clock // 60:02d}:{self.clock % 60:02d}+00:00"
        return commit(begun(self.store, self.layout, plan, sha256=sha256, created=created, **ABOUT[sha256]), failed)

    def night(self, name: str, numbers: Iterable[int], sha256: str = OLD, kind: str = "night") -> Run:
        """A plan and its run."""
        return self.run(self.plan(name, numbers, kind), sha256)

    @property
    def uri(self) -> str:
        return self.layout.table("shop")

    def table(self, version: int | None = None) -> DeltaTable:
        """The table as a reader of its own opens it."""
        return DeltaTable(self.uri, version=version, storage_options=self.store.delta_options(self.uri))

    def rows(self, version: int | None = None) -> Rows:
        """Of each uri in the table the night and the run; fails if there are two rows of one."""
        found = self.table(version).to_pyarrow_table(columns=["uri", "night", "run_id"]).to_pylist()
        rows = {each["uri"]: (each["night"], each["run_id"]) for each in found}
        assert len(rows) == len(found), "an image has two rows"
        return rows

    def version(self) -> int:
        return self.table().version()


def truth(*runs: Run) -> Rows:
    """What readers must see of some counting runs, the one whose rows win last: a dictionary that is overwritten."""
    rows: Rows = {}
    for run in runs:
        name = run.record.name.split("-scope-")[0]
        rows |= dict.fromkeys(run.manifest(["uri"])["uri"].to_pylist(), (name, run.record.run_id))
    return rows


def commit(run: Run, failed: Collection[int] = ()) -> Run:
    """Write a run's parts, with values that differ from image to image and from learner to learner, and close it."""
    counts = {shard: run.save_part(shard, part(run, shard, failed)) for shard in range(run.record.shards)}
    run.commit(counts, 1.0, 1.0, run.record.images)
    return run


def part(run: Run, shard: int, failed: Collection[int] = ()) -> pa.Table:
    """One shard's rows: the numbers in ``failed`` are images that could not be scored."""
    rows = []
    vocab, size = run.record.vocab, run.record.embedding_size
    for listed in run.shard(shard).to_pylist():
        number = int(Path(listed["uri"]).stem)
        rng = np.random.default_rng([number, len(vocab)])
        about = {key: listed[key] for key in ("uri", "etag", "size", "mtime")} | {"attempts": 1, "flags": []}
        probs = rng.dirichlet(np.ones(len(vocab))).astype(np.float32)
        best = int(probs.argmax())
        outcome: dict[str, Any] = {"status": "failed", "error": "undecodable", "error_text": "a test says so"}
        if number not in failed:
            outcome = {
                "status": "ok", "label": vocab[best], "label_index": best, "labels": [vocab[best]],
                "confidence": probs[best], "probs": probs.tolist(), "width": 32, "verified": True,
                "embedding": round_mantissa(rng.normal(size=size).astype(np.float32)).tolist(),
            }  # fmt: skip
        rows.append(about | outcome | {"model_id": run.record.model_id, "run_id": run.record.run_id})
    return pa.Table.from_pylist(rows, schema=row_schema(size))


def all_rows(run: Run, night: str) -> pa.Table:
    """A run's rows as the table must hold them."""
    parts = [part for shard in range(run.record.shards) if len(part := run.part(shard))]
    rows = pa.concat_tables([each.replace_schema_metadata(None) for each in parts])
    return rows.append_column("night", pa.array([night] * len(rows), pa.string())).cast(CURRENT)


if __name__ == "__main__":
    # A writer of its own: ROOT STEP. It ends by SIGKILL at that step.
    import os
    import signal

    from drivetrain import table

    def die(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    root, step = sys.argv[1:]
    after = {"committed": table._commit}
    if step == "half a file":
        table.GROUP_BYTES = 1
        real = table.pq.ParquetWriter.write_table
        seen: list[int] = []

        def write(self: Any, *given: Any, **named: Any) -> None:
            real(self, *given, **named)
            seen.append(1)
            if len(seen) == 3:
                self.file_handle and self.file_handle.flush()
                die()

        table.pq.ParquetWriter.write_table = write
    elif step == "a file of two":
        whole = table._Added._write_file

        def one(self: Any, pieces: Any) -> None:
            whole(self, pieces)
            die()

        table._Added._write_file = one  # type: ignore[method-assign]
    elif step == "before the commit":
        table._commit = die
    elif step == "after the commit":

        def late(*given: Any) -> None:
            after["committed"](*given)
            die()

        table._commit = late
    table.refresh_table(Store(), Layout(root), "shop", file_bytes=20_000)
