"""A run: one learner over one frozen manifest, in one folder, closed by one record.

Knows parts, counts and commits. Does not know how a row is made. Written in this order: manifest, run.json, parts,
commit.json; readers trust commit.json alone, so a half-done run is invisible. Every file but status.json is created
once: of two writers the first wins, and the second changes nothing.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.errors import RunError, SettingError
from drivetrain.layout import Layout, RunPaths, shard_of
from drivetrain.manifest import Plan, copy_manifest, read_manifest, read_shard
from drivetrain.root import from_json, to_json
from drivetrain.schema import SCHEMA_MAJOR, parquet_bytes
from drivetrain.several import several_at_once
from drivetrain.store import Store

FOOTER = b"drivetrain"
# Where a commit would lie, drivetrain gc says that the run is removed.
TOMBSTONE = "commit.json"


@dataclass(frozen=True)
class RunRecord:
    """run.json: what a run is made of, known before any image is read.

    ``settings`` are those that change a value in a row; they and the plan and the model make the run's id.
    ``engine_note`` says why the engine is not the fast one. ``retry_of`` is the run whose failed images this one scores
    again, and whose other rows it keeps. ``made_from`` is the run whose stored embeddings went through this learner's
    head, without an image being read; None for a run that was made from images.
    """

    run_id: str
    source: str
    kind: str
    name: str
    manifest: str
    images: int
    shards: int
    skipped: dict[str, int]
    model_id: str
    sha256: str
    task: str
    vocab: tuple[str, ...]
    layer: str
    embedding_size: int
    settings: dict[str, Any]
    schema: int
    created: str
    rescore_of: str | None = None
    engine_note: str = ""
    retry_of: str | None = None
    made_from: str | None = None

    @property
    def head_only(self) -> bool:
        """Whether its rows come of embeddings; one that scores failed images again reads those."""
        return self.made_from is not None and self.retry_of is None


@dataclass(frozen=True)
class Commit:
    """commit.json: the rows add up to the manifest, and nothing changes any more."""

    run_id: str
    rows: int
    failed: int
    reasons: dict[str, int]
    parts: dict[str, int]
    max_failed: float
    too_many_failed: bool
    seconds: float
    scored: int
    finished: str
    flags: dict[str, int] = field(default_factory=dict)
    unverified: int = 0


@dataclass(frozen=True)
class PartCounts:
    """A part's footer: rows; failed ones, by reason; those with a flag, by flag; those whose bytes have no MD5."""

    rows: int
    failed: int
    reasons: dict[str, int]
    flags: dict[str, int] = field(default_factory=dict)
    unverified: int = 0


def run_id_of(plan: Plan, sha256: str, settings: dict[str, Any]) -> str:
    """The id of a run: readable, and a digest of everything that changes a value. Same command, same run."""
    key = json.dumps([plan.source, plan.kind, plan.name, plan.digest, sha256, settings, SCHEMA_MAJOR], sort_keys=True)
    return f"{plan.source}-{plan.name}-{sha256[:8]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


class Run:
    """One run's folder. Make one with `begin` or `find`."""

    def __init__(self, store: Store, layout: Layout, record: RunRecord) -> None:
        self.store, self.layout, self.record = store, layout, record
        self.paths: RunPaths = layout.run(record.run_id)

    @classmethod
    def begin(cls, store: Store, layout: Layout, manifest_folder: str, record: RunRecord) -> "Run":
        """Start a run, or find the one that has been started before."""
        paths = layout.run(record.run_id)
        copy_manifest(store, manifest_folder, paths.manifest)
        begun = store.create(paths.record, to_json(asdict(record)))
        return cls(store, layout, record) if begun else cls.find(store, layout, record.run_id)

    @classmethod
    def find(cls, store: Store, layout: Layout, run_id: str) -> "Run":
        """The run of that id. Raises SettingError, naming those that exist, if there is none."""
        found = from_json(store, layout.run(run_id).record)
        if found is None:
            known = store.names(layout.runs)[-5:]
            there = "\n".join(f"  {name}" for name in known) or "  (none)"
            raise SettingError(f"No run {run_id!r} under {layout.root}. The last ones:\n{there}")
        return cls(store, layout, RunRecord(**{**found, "vocab": tuple(found["vocab"])}))

    def newest(self) -> "Run":
        """This run, or the newest committed one that scored its failed images again."""
        found = from_json(self.store, self.layout.run(self._next_id()).record)
        following = Run.find(self.store, self.layout, self._next_id()) if found else None
        return following.newest() if following and following.committed() else self

    def successor(self) -> "Run":
        """The run that scores this committed run's failed images again, begun now or before."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = replace(self.record, run_id=self._next_id(), retry_of=self.record.run_id, created=now)
        return Run.begin(self.store, self.layout, self.paths.manifest, record)

    def _next_id(self) -> str:
        base, _, number = self.record.run_id.rpartition("-retry")
        return f"{base}-retry{int(number) + 1}" if self.record.retry_of else f"{self.record.run_id}-retry1"

    def shard(self, shard: int) -> pa.Table:
        """The manifest's rows of one shard."""
        return read_shard(self.store, self.paths.manifest, shard)

    def manifest(self, columns: list[str] | None = None) -> pa.Table:
        """The whole frozen manifest."""
        return read_manifest(self.store, self.paths.manifest, columns)

    def missing(self) -> list[int]:
        """The shards that have no part yet."""
        there = {shard_of(name) for name in self.store.names(self.paths.parts)}
        return [shard for shard in range(self.record.shards) if shard not in there]

    def part(self, shard: int) -> pa.Table:
        """All columns of one shard's part."""
        return self.store.read_table(self.paths.part(shard))

    def save_part(self, shard: int, rows: pa.Table) -> PartCounts:
        """Create a shard's part. If another writer was first, its part stands and its counts are returned."""
        reasons = Counter(rows["error"].drop_null().to_pylist())
        flags = Counter(flag for each in rows["flags"].drop_null().to_pylist() for flag in each)
        unverified = sum(verified is False for verified in rows["verified"].to_pylist())
        counts = PartCounts(len(rows), reasons.total(), dict(reasons), dict(flags), unverified)
        about = {key: getattr(self.record, key) for key in ("sha256", "vocab", "layer", "settings", "schema")}
        footer = {FOOTER: json.dumps(about | asdict(counts)).encode()}
        rows = rows.replace_schema_metadata(footer)
        if self.store.create(self.paths.part(shard), parquet_bytes(rows)):
            return counts
        return self.counts(shard)

    def counts(self, shard: int) -> PartCounts:
        """What a part's footer says. Raises RunError when the part is damaged."""
        try:
            with self.store.open(self.paths.part(shard)) as file:
                footer = pq.read_metadata(file)
                about = json.loads(footer.metadata[FOOTER])
        except (OSError, KeyError, ValueError, TypeError) as error:
            # pyarrow tells of a broken footer by an OSError; every other one is the store's, and no reason to delete.
            if isinstance(error, OSError) and "thrift" not in str(error):
                raise
            raise RunError(
                f"{self.paths.part(shard)} is damaged: {error}. Delete it and run the same command."
            ) from error
        return PartCounts(
            footer.num_rows, about["failed"], about["reasons"], about.get("flags", {}), about.get("unverified", 0)
        )

    def beat(self, done: int, state: str = "running", **about: Any) -> None:
        """Write the heartbeat. ``about``: who writes it, and why it is the last one."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        status = {"state": state, "images_done": done, "of": self.record.images, "at": now} | about
        self.store.replace(self.paths.status, to_json(status))

    def committed(self) -> Commit | None:
        """The closing record, or None while the run is not done."""
        found = self._closing()
        return Commit(**found) if found and "removed" not in found else None

    def removed(self) -> str | None:
        """When drivetrain gc removed the run, or None."""
        return (self._closing() or {}).get("removed")

    def _closing(self) -> dict[str, Any] | None:
        return from_json(self.store, self.paths.commit)

    def remove(self) -> bool:
        """Claim the run for removal; False if it is committed. Nothing commits it from then on."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.store.create(self.paths.commit, to_json({"removed": now, "by": "drivetrain gc"}))
        return self.removed() is not None

    def settled(self) -> Commit | None:
        """As `committed`, and raises RunError when drivetrain gc removed the run."""
        found = self._closing()
        if found and "removed" in found:
            raise RunError(
                f"Run {self.record.run_id} was removed by drivetrain gc on {found['removed']}. Score its images under "
                "another --name, or give a night another --source."
            )
        return Commit(**found) if found else None

    def commit(self, counts: dict[int, PartCounts], max_failed: float, seconds: float, scored: int) -> Commit:
        """Close the run. ``counts`` are the parts known already; the footers of the others are read.

        Raises RunError when parts are missing, the rows do not add up to the manifest, or gc removed the run.
        """
        if missing := self.missing():
            raise RunError(f"{len(missing)} of {self.record.shards} parts are missing; run the same command to go on.")
        unknown = [shard for shard in range(self.record.shards) if shard not in counts]
        read = dict(zip(unknown, several_at_once(self.counts, unknown), strict=True))
        of_shard = {shard: counts.get(shard) or read[shard] for shard in range(self.record.shards)}
        rows = sum(each.rows for each in of_shard.values())
        if rows != self.record.images:
            raise RunError(
                f"The parts hold {rows:,} rows and the manifest {self.record.images:,} images; not committed."
            )
        reasons: Counter[str] = sum((Counter(each.reasons) for each in of_shard.values()), Counter())
        flags: Counter[str] = sum((Counter(each.flags) for each in of_shard.values()), Counter())
        failed = reasons.total()
        record = Commit(
            run_id=self.record.run_id,
            rows=rows,
            failed=failed,
            reasons=dict(reasons),
            parts={f"part-{shard:05d}.parquet": each.rows for shard, each in of_shard.items()},
            max_failed=max_failed,
            too_many_failed=rows > 0 and failed / rows > max_failed,
            seconds=round(seconds, 3),
            scored=scored,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            flags=dict(flags),
            unverified=sum(each.unverified for each in of_shard.values()),
        )
        if self.store.create(self.paths.commit, to_json(asdict(record))):
            return record
        closed = self.settled()
        assert closed is not None
        return closed

    def rows(
        self, columns: Sequence[str], *, most: int | None = None, seed: int = 0, only: dict[str, str] | None = None
    ) -> pa.Table:
        """The rows of a committed run, some columns only, sorted as the manifest is.

        With ``only`` or ``most``, the rows with status ok and the values of ``only``; of them about ``most``, drawn
        evenly over all parts with a seed: memory stays bounded for a run of any size.
        Raises RunError if the run is not committed.
        """
        commit = self.committed()
        if commit is None:
            raise RunError(f"The run {self.record.run_id} is not committed yet; run its command again to finish it.")
        parts = [f"{self.paths.parts}/{name}" for name in sorted(commit.parts)]
        if most is None and only is None:
            return pa.concat_tables([self.store.read_table(part, list(columns)) for part in parts])
        wanted = {"status": "ok", **(only or {})}
        chosen = [_equal(self.store.read_table(part, list(wanted)), wanted) for part in parts]
        found = sum(int(each.sum()) for each in chosen)
        most = found if most is None else most
        share = min(1.0, most / max(1, found))
        tables = []
        for number, (part, mask) in enumerate(zip(parts, chosen, strict=True)):
            drawn = mask & (np.random.default_rng([seed, number]).random(len(mask)) < share)
            tables.append(self.store.read_table(part, list(columns)).filter(pa.array(drawn)))
        return pa.concat_tables(tables)


def _equal(table: pa.Table, wanted: dict[str, str]) -> npt.NDArray[np.bool_]:
    mask = np.ones(len(table), dtype=bool)
    for name, value in wanted.items():
        mask &= table[name].to_numpy(zero_copy_only=False) == value
    return mask
