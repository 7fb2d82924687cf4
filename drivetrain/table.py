"""The Delta table of a source's current scores: one row for each image, switched in one transaction.

Knows Delta, and which files hold which plans' rows. Does not know whose rows they are (`members`). All of the table can
be made again from the runs, so that a file is never changed: it is written anew from them, with all plans that have
rows in it. Each commit says in its own record which runs' rows the table holds, and in which files they are; from that
a refresh sees what is stale without reading a row. A table whose files are others than its record says (somebody else
compacted it) is written anew as a whole.

Two writers: each commit carries the number of the next refresh, and Delta refuses the second with the same number. That
one begins again from what it finds. A writer that was killed leaves files that no commit names, which `vacuum` removes
after a week; so long readers of an older version find its files.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.config import Config, without_secrets
from drivetrain.console import say
from drivetrain.errors import DrivetrainError, SettingError, StoreError
from drivetrain.layout import Layout
from drivetrain.members import CURRENT, Member, Members, members_of, part_bytes, rows_of, stale_plans
from drivetrain.readers import ways_to_read
from drivetrain.root import open_root
from drivetrain.store import Store

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction, RemoveAction

# Readers like files of 64 to 256 MB: plans of less than half of this share one, larger ones are cut.
FILE_BYTES = 128 * 1024**2
# What is gathered before it is written: a row group, uncompressed.
GROUP_BYTES = 64 * 1024**2
# A month of small nights; more are put together by the next refresh.
MOST_SMALL_FILES = 30
# Refreshes of others that may come first, before one gives up.
MOST_TRIES = 10
# Commits of others (vacuum) above the last refresh.
LOOK_BACK = 20
# Under this name stand the number of the refresh and its record.
APP = "drivetrain"
DESCRIPTION = (
    "The current scores of one source of drivetrain, each image once. The classes of probs stand in vocab of "
    "run.json, in the run's folder: runs/<run_id>/run.json below the root."
)
# Whose values repeat.
_OFTEN = ["status", "error", "group", "split", "true_label", "label", "model_id", "run_id", "night",
          "flags.list.element", "labels.list.element", "embedding.list.element"]  # fmt: skip
_BOUNDED = ("uri", "night", "model_id", "run_id")


@dataclass(frozen=True)
class _State:
    """What a version of the table holds. ``files``: of each file the plans with rows in it, and how many."""

    members: Members = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    def record(self) -> str:
        members = [member.record() for member in self.members.values()]
        return json.dumps({"members": members, "files": self.files}, ensure_ascii=False)

    @classmethod
    def of(cls, record: str) -> "_State":
        found = json.loads(record)
        members = (Member(**each) for each in found["members"])
        return cls({member.key: member for member in members}, found["files"])


def refresh_table(
    store: Store, layout: Layout, source: str, *, compact: bool = False, file_bytes: int = FILE_BYTES
) -> dict[str, Any]:
    """Make the source's table hold the current scores, in one transaction; with ``compact`` in few files.

    Returns its ``uri``, ``version``, ``rows``, ``files``, ``bytes``, and the plans that were ``rewritten``. Writes no
    version when nothing changed. Empty where there is nothing to hold, or no Delta table can be (memory://).
    Raises StoreError when the store refuses, or others were faster again and again; the table is then as it was.
    """
    from deltalake.exceptions import CommitFailedError

    if layout.root.startswith("memory://"):
        return {}
    for _ in range(MOST_TRIES):
        try:
            return _refreshed(store, layout, source, compact, file_bytes)
        except CommitFailedError:
            continue
        except DrivetrainError:
            raise
        except Exception as error:
            # Any: deltalake hands on errors of its own, of Arrow's and of Python's.
            said = without_secrets(f"{type(error).__name__}: {error}")
            raise StoreError(
                f"The table of current scores {layout.table(source)} could not be written: {said}"
            ) from error
    raise StoreError(f"The table {layout.table(source)} was changed by others {MOST_TRIES} times while this one wrote.")


def keep_table_current(store: Store, layout: Layout, source: str) -> list[str]:
    """Refresh the source's table after something that readers should see. That it failed loses nothing.

    It is said then, and returned as a note for the job's result.
    """
    try:
        found = refresh_table(store, layout, source)
    except (DrivetrainError, OSError) as error:
        note = f"Readers see the scores as they were: {error}\nThe next command mends it, or: drivetrain table"
        say(note)
        return [note]
    if found.get("rewritten"):
        say(f"Current scores of {source}: {found['rows']:,} images, version {found['version']} of {found['uri']}")
    return []


def show_table(config: Config) -> dict[str, Any]:
    """Refresh, compact and clean up a source's table, and say where it is and how other programs read it.

    Needs ``root``, and ``source`` or ``images``, which name it. Returns ``table``, as `refresh_table` does, and
    ``read_with``: code by program. Raises SettingError when the source has no committed run.
    """
    config.need("root")
    source = config.the_source()
    store, layout = open_root(config, existing=True)
    if layout.root.startswith("memory://"):
        raise SettingError("memory:// holds no Delta table: give a --root on a disk or in a bucket.")
    found = refresh_table(store, layout, source, compact=True)
    if not found:
        known = ", ".join(store.names(layout.sources)) or "none"
        raise SettingError(f"No committed run of a night or of score for source {source!r}. Sources here: {known}.")
    removed = _vacuum(store, layout.table(source))
    ways = ways_to_read(found["uri"], layout.runs, store.delta_options(layout.root))
    return {"table": found | {"removed_files": removed}, "read_with": ways}


def _open(store: Store, uri: str) -> "DeltaTable | None":
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(uri, storage_options=store.delta_options(uri))
    except TableNotFoundError:
        return None


def _create(store: Store, uri: str, source: str) -> None:
    from deltalake import DeltaTable

    options = store.delta_options(uri)
    try:
        DeltaTable.create(uri, CURRENT, name=source, description=DESCRIPTION, storage_options=options)
    except Exception:
        # Of two that create it one may be refused, in one way or another; then it is there.
        if _open(store, uri) is None:
            raise


def _refreshed(store: Store, layout: Layout, source: str, compact: bool, file_bytes: int) -> dict[str, Any]:
    """One try. Raises CommitFailedError when another refresh came first."""
    uri = layout.table(source)
    # The table before the runs, and looked at once: all that is written replaces what this look has seen, and the
    # commit is refused if another refresh came since.
    table = _open(store, uri)
    sizes = _sizes(table)
    state = _state(store, uri, table, sizes)
    known = state or _State()
    now = members_of(store, layout, source, known.members)
    if table is None:
        if now:
            _create(store, uri, source)
        return _refreshed(store, layout, source, compact, file_bytes) if now else {}
    stale = stale_plans(store, layout, known.members, now)
    about = _About(store, layout, known, now, sizes, file_bytes)
    if compact or len(about.small_files()) > MOST_SMALL_FILES:
        stale = about.fewer_files(stale)
    if state and not stale:
        return _said_of(uri, table, [])
    replaced = about.files_of(stale) if state else set(sizes)
    added = _Added(store, layout, uri, now)
    rewritten = about.present(about.plans_of(replaced) | stale)
    for plans, files in about.groups(rewritten):
        added.write(plans, files)
    held = {path: rows for path, rows in known.files.items() if path not in replaced} | added.files
    _commit(table, [*added.actions, *_removals(replaced, sizes)], _State(now, held))
    return _said_of(uri, table, rewritten)


class _About:
    """Which files a refresh replaces, and how the rows of plans are shared out among new ones."""

    def __init__(
        self, store: Store, layout: Layout, known: _State, now: Members, sizes: dict[str, int], file_bytes: int
    ) -> None:
        self._store, self._layout, self._now, self._file_bytes = store, layout, now, file_bytes
        self._files, self._sizes = known.files, sizes
        self._bytes = {
            plan: sum(
                sizes[path] * held[plan] // sum(held.values()) for path, held in known.files.items() if plan in held
            )
            for plan in self.plans_of(known.files)
            if known.members.get(plan) == now.get(plan)
        }

    def plans_of(self, paths: Iterable[str]) -> set[str]:
        """The plans with rows in some files."""
        return {plan for path in paths for plan in self._files[path]} if self._files else set()

    def present(self, plans: Collection[str]) -> list[str]:
        """Those that have members, in the order in which readers look for them."""
        return sorted((plan for plan in plans if plan in self._now), key=lambda plan: (self._now[plan].night, plan))

    def files_of(self, stale: Collection[str]) -> set[str]:
        """The files that go when some plans are written anew: theirs, and those of all plans in these."""
        gone: set[str] = set()
        plans = set(stale)
        while more := {path for path, held in self._files.items() if plans & held.keys()} - gone:
            gone |= more
            plans |= self.plans_of(gone)
        return gone

    def small_files(self) -> set[str]:
        """The files that are smaller than readers like."""
        return {path for path, size in self._sizes.items() if size < self._file_bytes // 2}

    def fewer_files(self, stale: set[str]) -> set[str]:
        """The stale plans with those of small files, where that leaves fewer files than the stale ones alone."""
        more = stale | self.plans_of(self.small_files() & self._files.keys())
        return more if self._left(more) < self._left(stale) else stale

    def _left(self, stale: set[str]) -> int:
        gone = self.files_of(stale)
        new = sum(files for _, files in self.groups(self.present(stale | self.plans_of(gone))))
        return len(self._sizes) - len(gone) + new

    def groups(self, plans: Iterable[str]) -> list[tuple[list[str], int]]:
        """Small plans together until they fill a file, a large one alone; with the number of files for each group."""
        groups: list[list[str]] = []
        filled, least = self._file_bytes, self._file_bytes // 2
        for plan in plans:
            size = self._size(plan)
            if filled >= least or size >= least:
                groups.append([])
                filled = 0
            groups[-1].append(plan)
            filled += size
        return [(group, max(1, round(sum(map(self._size, group)) / self._file_bytes))) for group in groups]

    def _size(self, plan: str) -> int:
        """About how large the rows of a plan are: what they take in the table, else the size of the run's parts."""
        if plan not in self._bytes:
            self._bytes[plan] = part_bytes(self._store, self._layout, plan, self._now)
        return self._bytes[plan]


class _Added:
    """Files that a refresh writes. ``actions`` are for Delta's log, ``files`` says which plans' rows are in which."""

    def __init__(self, store: Store, layout: Layout, uri: str, members: Members) -> None:
        self._store, self._layout, self._uri, self._members = store, layout, uri, members
        self.actions: list[AddAction] = []
        self.files: dict[str, dict[str, int]] = {}

    def write(self, plans: list[str], files: int) -> None:
        """Write the rows of some plans into so many files."""
        rows = sum(self._members[plan].images for plan in plans)
        numbered = self._numbered(plans, max(1, -(-rows // files)))
        for _, pieces in groupby(numbered, lambda piece: piece[0]):
            self._write_file((plan, batch) for _, plan, batch in pieces)

    def _numbered(self, plans: list[str], most: int) -> Iterator[tuple[int, str, pa.RecordBatch]]:
        """The plans' rows, each batch with the number of its file, of ``most`` rows."""
        done = 0
        for plan in plans:
            for batch in rows_of(self._store, self._layout, plan, self._members):
                while len(batch):
                    piece = batch.slice(0, most - done % most)
                    yield done // most, plan, piece
                    done, batch = done + len(piece), batch.slice(len(piece))

    def _write_file(self, pieces: Iterator[tuple[str, pa.RecordBatch]]) -> None:
        from deltalake.transaction import AddAction

        name, rows = f"part-{uuid.uuid4().hex}.parquet", Counter[str]()
        footers: list[pq.FileMetaData] = []
        how: dict[str, Any] = {"compression": "zstd", "use_dictionary": _OFTEN, "metadata_collector": footers}
        with self._store.writing(f"{self._uri}/{name}") as sink:
            with pq.ParquetWriter(sink, CURRENT, **how) as writer:
                for group in _row_groups(pieces, rows):
                    writer.write_table(group, row_group_size=len(group))
            size = sink.tell()
        self.files[name] = dict(rows)
        self.actions.append(AddAction(name, size, {}, _milliseconds(), True, _bounds(footers[0])))


def _row_groups(pieces: Iterator[tuple[str, pa.RecordBatch]], rows: "Counter[str]") -> Iterator[pa.Table]:
    """Batches put together into row groups; counts the rows of each plan."""
    held: list[pa.RecordBatch] = []
    size = 0
    for plan, batch in pieces:
        rows[plan] += len(batch)
        held.append(batch)
        size += batch.nbytes
        if size >= GROUP_BYTES:
            yield pa.Table.from_batches(held, CURRENT)
            held, size = [], 0
    if held:
        yield pa.Table.from_batches(held, CURRENT)


def _bounds(footer: pq.FileMetaData) -> str:
    """What Delta's log says of a file, so that readers pass over those that hold nothing they look for."""
    lows: dict[str, str] = {}
    highs: dict[str, str] = {}
    for name in _BOUNDED:
        place = CURRENT.get_field_index(name)
        found = [footer.row_group(number).column(place).statistics for number in range(footer.num_row_groups)]
        if all(each is not None and each.has_min_max and each.null_count == 0 for each in found):
            lows[name], highs[name] = min(each.min for each in found), max(each.max for each in found)
    return json.dumps({"numRecords": footer.num_rows, "minValues": lows, "maxValues": highs,
                       "nullCount": dict.fromkeys(lows, 0)})  # fmt: skip


def _removals(paths: Iterable[str], sizes: dict[str, int]) -> "list[RemoveAction]":
    from deltalake.transaction import RemoveAction

    return [RemoveAction(path, True, _milliseconds(), sizes[path], {}) for path in paths]


def _commit(table: "DeltaTable", actions: "list[AddAction | RemoveAction]", state: _State) -> None:
    """The one moment at which readers see other rows. Raises CommitFailedError when another refresh came first."""
    from deltalake.transaction import CommitProperties, Transaction

    number = (table.transaction_version(APP) or 0) + 1
    properties = CommitProperties({APP: state.record()}, app_transactions=[Transaction(APP, number)])
    table.create_write_transaction(actions, "append", CURRENT, commit_properties=properties)
    table.update_incremental()


def _adds(table: "DeltaTable | None") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pa.table(table.get_add_actions(flatten=True)).to_pylist() if table else []
    return found


def _sizes(table: "DeltaTable | None") -> dict[str, int]:
    """The table's files and their sizes."""
    return {each["path"]: each["size_bytes"] for each in _adds(table)}


def _state(store: Store, uri: str, table: "DeltaTable | None", sizes: dict[str, int]) -> _State | None:
    """What the table's last refresh says that it holds, or None if that is not what its files are."""
    record = next(_records(store, uri, table), None) if table else None
    state = _State.of(record) if record else None
    return state if state and state.files.keys() == sizes.keys() else None


def _records(store: Store, uri: str, table: "DeltaTable") -> Iterator[str]:
    """What the last commits say of us, newest first.

    Their files are read here: deltalake's own history keeps Python's lock while it waits for the store, and neither a
    heartbeat nor anything else of this process moves meanwhile.
    """
    newest = table.version()
    for number in range(newest, max(-1, newest - LOOK_BACK), -1):
        try:
            lines = store.read(f"{uri}/_delta_log/{number:020d}.json").splitlines()
        except FileNotFoundError:
            # Cleaned up by somebody's log retention.
            return
        for line in lines:
            about = json.loads(line).get("commitInfo") or {}
            if APP in about:
                yield about[APP]


def _vacuum(store: Store, uri: str) -> int:
    """Remove files that no version of the last seven days names; returns how many."""
    from deltalake.transaction import CommitProperties

    table = _open(store, uri)
    assert table is not None
    if not table.vacuum(dry_run=True, full=True):
        return 0
    # Along with the record of what the table holds: a cleaned up log may keep the last commit alone.
    state = _state(store, uri, table, _sizes(table))
    properties = CommitProperties({APP: state.record()}) if state else None
    return len(table.vacuum(dry_run=False, full=True, commit_properties=properties))


def _said_of(uri: str, table: "DeltaTable", rewritten: list[str]) -> dict[str, Any]:
    adds = _adds(table)
    return {
        "uri": uri,
        "version": table.version(),
        "rows": sum(each["num_records"] for each in adds),
        "files": len(adds),
        "bytes": sum(each["size_bytes"] for each in adds),
        "rewritten": rewritten,
    }


def _milliseconds() -> int:
    return int(time.time() * 1000)
