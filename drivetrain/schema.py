"""The columns of every Parquet file that drivetrain writes.

Knows names, types and their order. Does not know where a file lies or how a value is made.
Columns and their order are frozen for each major version: readers glob over many runs, and one more column on the
second night breaks a bare ``scan_parquet``.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_MAJOR = 1

SPLITS = ("trained", "held_out", "unknown")

FLAGS = {
    "high_bit_depth": "more than 8 bits a channel, cut to 8",
    "alpha": "transparency, dropped",
    "frames": "several frames, the first one taken",
    "exif_orientation": "to be turned by EXIF, not turned, as in training",
    "wrong_suffix": "another format than its name says",
}

MANIFEST = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("split", pa.string()),
        pa.field("true_label", pa.string()),
    ]
)


# An image before it is cut into a shard.
IMAGE = pa.schema([field for field in MANIFEST if field.name != "shard"])


def row_schema(embedding_size: int) -> pa.Schema:
    """The schema of a part: one row an image, scored or failed.

    ``embedding_size`` is the length of an embedding; 0 (``embedding = "none"``) gives a column of nulls.
    """
    floats = pa.list_(pa.float32())
    embedding = pa.list_(pa.float32(), embedding_size) if embedding_size else floats
    columns: list[tuple[str, pa.DataType]] = [
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("mtime", pa.timestamp("us", tz="UTC")),
        ("content_hash", pa.string()),
        ("verified", pa.bool_()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("error_text", pa.string()),
        ("attempts", pa.int32()),
        ("flags", pa.list_(pa.string())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("sharpness", pa.float32()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("true_label", pa.string()),
        ("label", pa.string()),
        ("label_index", pa.int32()),
        ("labels", pa.list_(pa.string())),
        ("values", floats),
        ("confidence", pa.float32()),
        ("margin", pa.float32()),
        ("entropy", pa.float32()),
        ("energy", pa.float32()),
        ("probs", floats),
        ("embedding", embedding),
        ("model_id", pa.string()),
        ("run_id", pa.string()),
    ]
    return pa.schema(columns)


def round_mantissa(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Round float32 to 12 bits of mantissa, half to even, so that a part's dictionary holds its values.

    The relative error is at most 2**-13. Any shape; infinities and NaN come back as they are.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x03FF) + ((bits >> np.uint32(11)) & np.uint32(1))) & np.uint32(0xFFFFF800)
    finite = np.isfinite(values)
    return np.where(finite, rounded.view(np.float32), values).astype(np.float32)


def matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A list column without nulls, all lists of one length, as a matrix of shape (rows, length)."""
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        combined = pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], column.type)
    flat = combined.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1).astype(np.float32) if len(column) else np.zeros((0, 0), np.float32)


def column(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column of numbers as float64, nulls as NaN."""
    values: npt.NDArray[np.float64] = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def parquet_bytes(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """A table as the bytes of a Parquet file: zstd, encodings that every engine we know can read.

    A dictionary for strings, and for embeddings, whose rounded values come again and again; other floats are plain.
    """
    sink = pa.BufferOutputStream()
    often = [field.name for field in table.schema if pa.types.is_string(field.type)]
    if "embedding" in table.column_names:
        often.append("embedding.list.element")
    pq.write_table(table, sink, compression="zstd", use_dictionary=often, row_group_size=row_group_size)
    data: bytes = sink.getvalue().to_pybytes()
    return data
