"""The columns are frozen, rounding keeps its bound, and list columns become matrices however they are cut."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drivetrain.schema import MANIFEST, column, matrix, round_mantissa, row_schema

FLOAT32 = st.floats(
    width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False, min_value=-(2.0**127), max_value=2.0**127
)
seeded = settings(derandomize=True, database=None, deadline=None)


@seeded
@given(FLOAT32)
@example(0.0)
@example(1 + 2**-13)
@example(-(1 + 3 * 2**-13))
def test_rounding_is_off_by_at_most_2_to_the_minus_13(value: float) -> None:
    (rounded,) = round_mantissa(np.array([value], np.float32)).tolist()
    assert abs(rounded - value) <= abs(value) * 2**-13


@seeded
@given(FLOAT32)
def test_rounding_leaves_12_bits_of_mantissa_and_is_idempotent(value: float) -> None:
    once = round_mantissa(np.array([value], np.float32))
    assert not (once.view(np.uint32) & 0x7FF).any()
    np.testing.assert_array_equal(round_mantissa(once), once)


def test_rounding_is_half_to_even() -> None:
    step = 2.0**-12
    values = np.array([1 + step / 2, 1 + 3 * step / 2, 1 + step * 0.51, 1 + step * 0.49], np.float32)
    np.testing.assert_array_equal(round_mantissa(values), np.array([1, 1 + 2 * step, 1 + step, 1], np.float32))


def test_infinities_and_nan_come_back_as_they_are() -> None:
    payload = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    values = np.concatenate([np.array([np.inf, -np.inf, np.nan], np.float32), payload])
    np.testing.assert_array_equal(round_mantissa(values), values)


def test_rounding_keeps_shape_type_and_its_argument() -> None:
    values = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    before = values.copy()
    for view in (values, values.T, values[::2, 1:4], values[:0]):
        rounded = round_mantissa(view)
        assert rounded.shape == view.shape
        assert rounded.dtype == np.float32
        np.testing.assert_allclose(rounded, view, rtol=2**-13)
    np.testing.assert_array_equal(values, before)


def test_the_columns_of_a_row_and_their_order_are_frozen() -> None:
    floats = "list<item: float>"
    assert [(field.name, str(field.type)) for field in row_schema(3)] == [
        ("uri", "string"),
        ("etag", "string"),
        ("size", "int64"),
        ("mtime", "timestamp[us, tz=UTC]"),
        ("content_hash", "string"),
        ("verified", "bool"),
        ("status", "string"),
        ("error", "string"),
        ("error_text", "string"),
        ("attempts", "int32"),
        ("flags", "list<item: string>"),
        ("width", "int32"),
        ("height", "int32"),
        ("brightness", "float"),
        ("contrast", "float"),
        ("sharpness", "float"),
        ("group", "string"),
        ("split", "string"),
        ("true_label", "string"),
        ("label", "string"),
        ("label_index", "int32"),
        ("labels", "list<item: string>"),
        ("values", floats),
        ("confidence", "float"),
        ("margin", "float"),
        ("entropy", "float"),
        ("energy", "float"),
        ("probs", floats),
        ("embedding", "fixed_size_list<item: float>[3]"),
        ("model_id", "string"),
        ("run_id", "string"),
    ]


def test_without_embeddings_only_the_type_of_that_column_differs() -> None:
    without, with_three = row_schema(0), row_schema(3)
    assert without.names == with_three.names
    assert [name for name in without.names if without.field(name) != with_three.field(name)] == ["embedding"]
    assert str(without.field("embedding").type) == "list<item: float>"


def test_the_columns_of_a_manifest_and_their_order_are_frozen() -> None:
    assert [(field.name, str(field.type), field.nullable) for field in MANIFEST] == [
        ("shard", "int32", False),
        ("uri", "string", False),
        ("etag", "string", True),
        ("size", "int64", True),
        ("mtime", "timestamp[us, tz=UTC]", True),
        ("split", "string", True),
        ("true_label", "string", True),
    ]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 3)], ids=["list", "fixed"])
def test_a_list_column_becomes_the_same_matrix_however_it_is_cut(kind: pa.DataType) -> None:
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    whole = pa.array(values.tolist(), kind)
    for cut in (
        pa.chunked_array([whole]),
        pa.chunked_array([whole[:4], whole[4:4], whole[4:]]),
        pa.chunked_array([whole]).slice(0),
    ):
        np.testing.assert_array_equal(matrix(cut), values)
    np.testing.assert_array_equal(matrix(pa.chunked_array([whole[2:7]])), values[2:7])
    np.testing.assert_array_equal(matrix(pa.chunked_array([whole[:4], whole[4:]]).slice(3, 5)), values[3:8])
    taken = pa.table({"x": whole}).filter(pa.array([True, False] * 5))["x"]
    np.testing.assert_array_equal(matrix(taken), values[::2])
    assert matrix(taken).dtype == np.float32


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 3)], ids=["list", "fixed"])
def test_an_empty_list_column_becomes_an_empty_matrix(kind: pa.DataType) -> None:
    assert matrix(pa.chunked_array([], kind)).shape == (0, 0)
    assert matrix(pa.chunked_array([pa.array([[1, 2, 3]], kind)]).slice(1)).shape == (0, 0)


def test_a_column_of_numbers_has_nan_for_null() -> None:
    table = pa.table(
        {"x": pa.chunked_array([[0.5, None], [2.0]], pa.float32()), "n": pa.array([1, None, 3], pa.int32())}
    )
    np.testing.assert_array_equal(column(table, "x"), [0.5, np.nan, 2.0])
    np.testing.assert_array_equal(column(table, "n"), [1, np.nan, 3])
    nothing = pa.table({"x": pa.array([None, None], pa.float32())})
    assert np.isnan(column(nothing, "x")).all()
