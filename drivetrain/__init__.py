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
    from drivetrain.alerts import notify_chat
    from drivetrain.behaving import check_behaviour
    from drivetrain.champion import promote, roll_back, withdraw
    from drivetrain.comparing import compare_runs
    from drivetrain.doctor import check_setup
    from drivetrain.gc import collect_garbage
    from drivetrain.init import write_config
    from drivetrain.labelling import export_queue, import_labels
    from drivetrain.nightly import accept_night, build_and_test_reference, measure_drift, run_night, self_test_drift
    from drivetrain.nights import learners_in_use, list_nights
    from drivetrain.reference import build_reference
    from drivetrain.rescore import rescore_nights, rescore_run, rescore_runs
    from drivetrain.score import score_images
    from drivetrain.table import show_table

# Evidently's telemetry stays off: it looks when it is imported, and our users were not asked.
os.environ.setdefault("DO_NOT_TRACK", "1")

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DrivetrainError",
    "accept_night",
    "build_and_test_reference",
    "build_reference",
    "check_behaviour",
    "check_setup",
    "collect_garbage",
    "compare_runs",
    "export_queue",
    "import_labels",
    "inspect_learner",
    "learners_in_use",
    "list_nights",
    "measure_drift",
    "notify_chat",
    "promote",
    "rescore_nights",
    "rescore_run",
    "rescore_runs",
    "roll_back",
    "run_night",
    "score_images",
    "self_test_drift",
    "show_table",
    "withdraw",
    "write_config",
]

_ROOMS = {
    "accept_night": "nightly",
    "build_and_test_reference": "nightly",
    "self_test_drift": "nightly",
    "build_reference": "reference",
    "check_behaviour": "behaving",
    "check_setup": "doctor",
    "collect_garbage": "gc",
    "compare_runs": "comparing",
    "export_queue": "labelling",
    "import_labels": "labelling",
    "inspect_learner": "admit",
    "learners_in_use": "nights",
    "list_nights": "nights",
    "measure_drift": "nightly",
    "notify_chat": "alerts",
    "promote": "champion",
    "rescore_nights": "rescore",
    "rescore_run": "rescore",
    "rescore_runs": "rescore",
    "roll_back": "champion",
    "run_night": "nightly",
    "score_images": "score",
    "write_config": "init",
    "withdraw": "champion",
    "show_table": "table",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"drivetrain.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'drivetrain' has no attribute {name!r}")
