"""What is written opens in DuckDB, Polars, pandas, DataFusion and deltalake, with the same rows and the same values.

DuckDB reads a Delta table by an extension that it downloads, which the tests can't: here it is given the files that
deltalake says are the table's. Everything else opens what a user would open, in a user's way.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import datafusion
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, convert_to_deltalake
from tables import NEW, OLD, World, all_rows

from drivetrain.members import CURRENT
from drivetrain.readers import ways_to_read
from drivetrain.schema import row_schema
from drivetrain.table import refresh_table


def by_duckdb(parts: str) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(f"SELECT * FROM read_parquet('{parts}/*.parquet')").to_arrow_table()


def by_datafusion(parts: str) -> pa.Table:
    context = datafusion.SessionContext()
    context.register_parquet("rows", parts)
    return context.sql("SELECT * FROM rows").to_arrow_table()


def by_deltalake(parts: str) -> pa.Table:
    # It makes a log beside the files, and what is committed never changes: in a copy.
    copy = f"{parts}-copy"
    shutil.copytree(parts, copy)
    convert_to_deltalake(copy)
    return DeltaTable(copy).to_pyarrow_table()


READERS: dict[str, Callable[[str], object]] = {
    "duckdb": by_duckdb,
    "polars": lambda parts: pl.scan_parquet(f"{parts}/*.parquet").collect().to_arrow(),
    "pandas": pd.read_parquet,
    "datafusion": by_datafusion,
    "deltalake": by_deltalake,
}


def duckdb_on_delta(uri: str) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        paths = DeltaTable(uri).file_uris()
        return connection.sql(f"SELECT * FROM read_parquet({paths})").to_arrow_table()


def datafusion_on_delta(uri: str) -> pa.Table:
    context = datafusion.SessionContext()
    context.register_table("scores", DeltaTable(uri))
    return context.sql("SELECT * FROM scores").to_arrow_table()


DELTA_READERS: dict[str, Callable[[str], object]] = {
    "duckdb": duckdb_on_delta,
    "polars": lambda uri: pl.read_delta(uri).to_arrow(),
    "pandas": lambda uri: DeltaTable(uri).to_pandas(),
    "datafusion": datafusion_on_delta,
    "deltalake": lambda uri: DeltaTable(uri).to_pyarrow_table(),
}


def same(found: object, wanted: pa.Table) -> None:
    """The same columns in the same order, the same rows in any order, the same values to the bit."""
    if isinstance(found, pd.DataFrame):
        assert list(found.columns) == wanted.column_names
        found = pa.Table.from_pandas(found, schema=wanted.schema, preserve_index=False)
    assert isinstance(found, pa.Table) and found.column_names == wanted.column_names
    found = found.cast(wanted.schema).sort_by("uri").combine_chunks()
    wanted = wanted.sort_by("uri").combine_chunks()
    for name in wanted.column_names:
        assert found[name].to_pylist() == wanted[name].to_pylist(), name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(str(tmp_path_factory.mktemp("readers") / "root"))


@pytest.fixture(scope="module")
def nights(world: World) -> tuple[str, pa.Table]:
    """Two nights, each scored by a learner of its own: other classes, another length of embeddings."""
    first = world.run(world.plan("2026-01-02", range(150)), OLD, failed=[7, 120])
    second = world.run(world.plan("2026-01-03", range(150, 300)), NEW, failed=[151])
    refresh_table(world.store, world.layout, "shop")
    return world.uri, pa.concat_tables([all_rows(first, "2026-01-02"), all_rows(second, "2026-01-03")])


@pytest.mark.parametrize("reader", READERS)
def test_a_bare_glob_over_the_parts_of_a_scored_folder_opens(tmp_path: Path, reader: str) -> None:
    world = World(str(tmp_path / "root"))
    run = world.run(world.plan("2026-01-02", range(150)), NEW, failed=[7, 120])
    wanted = pa.concat_tables([run.part(shard).replace_schema_metadata(None) for shard in range(run.record.shards)])
    assert run.record.shards > 1 and wanted.schema == row_schema(8)
    same(READERS[reader](run.paths.parts), wanted)


@pytest.mark.parametrize("reader", DELTA_READERS)
def test_a_table_of_two_nights_and_two_learners_of_different_classes_opens(
    nights: tuple[str, pa.Table], reader: str
) -> None:
    uri, wanted = nights
    assert wanted.schema == CURRENT and len(wanted) == 300
    same(DELTA_READERS[reader](uri), wanted)


def test_what_is_shown_for_polars_and_pandas_runs(nights: tuple[str, pa.Table], world: World) -> None:
    uri, wanted = nights
    shown = ways_to_read(uri, world.layout.runs, {})
    names: dict[str, object] = {}
    exec(shown["Polars"].replace("polars.scan", "found = polars.scan"), names)
    same(names["found"].to_arrow(), wanted)  # type: ignore[attr-defined]
    exec(shown["pandas"].replace("\nDeltaTable(", "\nframe = DeltaTable("), names)
    assert len(names["frame"]) == 300  # type: ignore[arg-type]


def test_the_classes_of_probs_are_joined_from_the_runs_as_it_is_shown(
    nights: tuple[str, pa.Table], world: World
) -> None:
    uri, wanted = nights
    shown = ways_to_read(uri, world.layout.runs, {})["DuckDB, with the classes"]
    with duckdb.connect() as connection:
        query = shown.replace(f"delta_scan('{uri}')", f"read_parquet({DeltaTable(uri).file_uris()})")
        found = connection.sql(query.rstrip(";")).to_arrow_table().to_pylist()
    assert len(found) == len(wanted)
    for row in found:
        if row["status"] == "ok":
            assert row["classes_of_probs"][row["probs"].index(max(row["probs"]))] == row["label"]
