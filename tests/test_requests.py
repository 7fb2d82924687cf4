"""What a look into S3 costs: one request, since each of them is waited for."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty import Proxy, faulty_proxy
from servers import S3Server

from drivetrain.errors import StoreError
from drivetrain.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[Proxy]:
    with faulty_proxy(s3.endpoint, lambda method, path, nth: None) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: Proxy) -> Store:
    return Store({"s3": {"endpoint_url": proxy.endpoint}})


@pytest.fixture(scope="module")
def filled(s3: S3Server) -> str:
    store, bucket = Store(s3.storage), s3.bucket()
    for name in ("folder/record.json", "folder/inside/deep.json", "folder/inside/other.json", "beside.json"):
        assert store.create(f"{bucket}/{name}", name.encode())
    with store.writing(f"{bucket}/part.parquet") as file:
        pq.write_table(pa.table({"n": [1, 2]}), file)
    return bucket


def test_what_is_there_costs_one_request(proxy: Proxy, store: Store, filled: str) -> None:
    proxy.asked.clear()
    assert store.read(f"{filled}/folder/record.json") == b"folder/record.json"
    assert store.exists(f"{filled}/folder/record.json")
    assert store.names(f"{filled}/folder") == ["inside", "record.json"]
    assert store.read_table(f"{filled}/part.parquet")["n"].to_pylist() == [1, 2]
    bucket = f"/{filled.removeprefix('s3://')}"
    assert proxy.asked == {
        ("GET", f"{bucket}/folder/record.json"): 1,
        ("HEAD", f"{bucket}/folder/record.json"): 1,
        ("GET", bucket): 1,
        ("GET", f"{bucket}/part.parquet"): 1,
    }


def test_what_is_not_there_costs_one_request(proxy: Proxy, store: Store, filled: str) -> None:
    proxy.asked.clear()
    with pytest.raises(FileNotFoundError):
        store.read(f"{filled}/folder/nothing.json")
    assert not store.exists(f"{filled}/folder/nothing.json")
    assert not store.exists(f"{filled}/folder"), "a folder is no object"
    assert store.names(f"{filled}/nothing") == []
    assert store.names(f"{filled}/beside.json") == []
    assert proxy.asked.total() == 5


def test_a_bucket_that_is_not_there_is_no_empty_folder(store: Store, filled: str) -> None:
    with pytest.raises(StoreError, match="Could not list"):
        store.names(f"{filled}-nowhere/folder")


def test_the_names_of_a_bucket_are_those_at_its_top(store: Store, filled: str) -> None:
    assert store.names(filled) == ["beside.json", "folder", "part.parquet"]
