"""Score image buckets with an exported fastai learner, and know each night whether the model still fits its world.

The functions here are the ones that the ``drivetrain`` command and ``jobs/`` call. Importing this package loads no
torch, ray or evidently; the first use of a function does.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from drivetrain.config import Config
from drivetrain.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.admit import inspect_learner
    from drivetrain.comparing import compare_runs
    from drivetrain.doctor import check_setup
    from drivetrain.gc import collect_garbage
    from drivetrain.init import write_config
    from drivetrain.nightly import accept_night, build_and_test_reference, measure_drift, run_night, self_test_drift
    from drivetrain.nights import list_nights
    from drivetrain.reference import build_reference
    from drivetrain.rescore import rescore_run
    from drivetrain.score import score_images

# Evidently's telemetry stays off: it looks when it is imported, and our users were not asked.
os.environ.setdefault("DO_NOT_TRACK", "1")

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DrivetrainError",
    "accept_night",
    "build_and_test_reference",
    "build_reference",
    "check_setup",
    "collect_garbage",
    "compare_runs",
    "inspect_learner",
    "list_nights",
    "measure_drift",
    "rescore_run",
    "run_night",
    "score_images",
    "self_test_drift",
    "write_config",
]

_ROOMS = {
    "accept_night": "nightly",
    "build_and_test_reference": "nightly",
    "self_test_drift": "nightly",
    "build_reference": "reference",
    "check_setup": "doctor",
    "collect_garbage": "gc",
    "compare_runs": "comparing",
    "inspect_learner": "admit",
    "list_nights": "nights",
    "measure_drift": "nightly",
    "rescore_run": "rescore",
    "run_night": "nightly",
    "score_images": "score",
    "write_config": "init",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"drivetrain.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'drivetrain' has no attribute {name!r}")
