"""A root that can be read and not written ends each job before its work, with the line that mends it."""

from collections.abc import Iterator
from typing import Any

import pytest
from builders import begun, committed, frozen, images
from faulty import Proxy, faulty_proxy
from servers import S3Server

import drivetrain
from drivetrain import Config
from drivetrain.errors import StoreError
from drivetrain.layout import Layout
from drivetrain.root import to_json
from drivetrain.schema import SCHEMA_MAJOR
from drivetrain.store import Store

pytestmark = pytest.mark.slow
JOBS: dict[str, Any] = {
    "score": drivetrain.score_images,
    "drift measure": drivetrain.measure_drift,
    "drift accept": drivetrain.accept_night,
    "drift selftest": drivetrain.self_test_drift,
    "promote": lambda config: drivetrain.promote(config, config.run),
}


@pytest.fixture(scope="module")
def closed(s3: S3Server) -> Iterator[tuple[Proxy, Config]]:
    """A root with a committed run, on a store that lets nobody write from now on."""
    with faulty_proxy(s3.endpoint, lambda method, path, nth: None) as proxy:
        storage = {"s3": {"endpoint_url": proxy.endpoint}}
        store, layout = Store(storage), Layout(f"{s3.bucket()}/root")
        store.create(layout.marker, to_json({"drivetrain": "root", "schema": SCHEMA_MAJOR}))
        run = begun(store, layout, frozen(store, layout, images(3)))
        committed(run)
        store.create(layout.export(run.record.model_id), b"an export")
        proxy.rule = lambda method, path, nth: "403" if method in ("PUT", "POST") else None
        yield proxy, Config(
            root=layout.root, run=run.record.run_id, learner=layout.export(run.record.model_id), source="shop",
            images=f"{layout.root}/images", storage=storage, actors=0,
        )  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_a_closed_root_is_told_first(job: str, closed: tuple[Proxy, Config]) -> None:
    proxy, config = closed
    proxy.asked.clear()
    with pytest.raises(StoreError, match=r"root: these credentials may not write to .*\nAllow s3:ListBucket"):
        JOBS[job](config)
    assert all(path.endswith("/probe.json") for method, path in proxy.asked if method == "PUT"), (
        "nothing else was tried"
    )
