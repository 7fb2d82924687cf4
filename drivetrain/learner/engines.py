"""OpenVINO: the engine of actors on CPUs, and a network of its in one file.

Knows arrays. An engine takes a batch as `pixels` prepares it, and gives what the network's last layer says and the
embedding. Does not know classes, losses or images; needs no torch.
"""

import io
import json
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from drivetrain.errors import LearnerError
from drivetrain.learner.header import short
from drivetrain.learner.outputs import Floats

# Images in one pass on a CPU: with more the activations leave its cache (benchmarks/engines.md).
CPU_BATCH = 8
# Images kept with a stored network, whose outputs every processor must repeat.
KEPT_IMAGES = 8

# The last one is named for what int8 says of itself there; roots hold such files.
_XML, _WEIGHTS, _ARRAYS, _ABOUT = "model.xml", "model.bin", "kept.npz", "quality.json"


class Engine(Protocol):
    """Computes a network."""

    name: str

    def run(self, batch: Any) -> tuple[Floats, Floats | None]:
        """The network's last layer (n, k) and the embeddings (n, d) of a batch of n images."""
        ...


class OpenVinoEngine:
    """An OpenVINO model on the CPU, without loss of precision: what is not in int8 is computed in float32."""

    def __init__(self, model: Any, threads: int | None = None) -> None:
        self.name = "openvino"
        # Unpinned: two processes of one thread each would share a core.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False, "NUM_STREAMS": 1}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._request = openvino_module().Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(self, batch: Any) -> tuple[Floats, Floats | None]:
        """The network's last layer (n, k) and the embeddings (n, d) of a batch of n images."""
        found = list(self._request.infer([np.ascontiguousarray(batch)], share_inputs=True).values())
        return found[0].copy(), found[1].copy() if len(found) > 1 else None


def packed(model: Any, arrays: dict[str, Any], about: dict[str, Any]) -> bytes:
    """A network with arrays and JSON of its own as one file, so that it never lies beside those of another.

    Raises OSError when the folder for temporary files can't take it.
    """
    sink, beside = io.BytesIO(), io.BytesIO()
    np.savez(beside, **arrays)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(sink, "w") as archive:
        try:
            openvino_module().save_model(model, f"{folder}/{_XML}", compress_to_fp16=False)
        except RuntimeError as error:
            # No fault of the network, which is not to be thought of as one that can't be saved.
            raise OSError(
                f"A network can't be written below {folder}: {short(error)}. Make room, or set TMPDIR."
            ) from error
        for name in (_XML, _WEIGHTS):
            archive.write(Path(folder, name), name)
        archive.writestr(_ARRAYS, beside.getvalue())
        archive.writestr(_ABOUT, json.dumps(about, indent=1))
    return sink.getvalue()


def unpacked(stored: bytes) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """What `packed` made one file of. Raises LearnerError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(stored)) as archive:
            model = openvino_module().Core().read_model(archive.read(_XML), archive.read(_WEIGHTS))
            arrays = dict(np.load(io.BytesIO(archive.read(_ARRAYS)), allow_pickle=False))
            return model, arrays, json.loads(archive.read(_ABOUT))
    except LearnerError:
        raise
    except Exception as error:
        raise LearnerError(
            f"The stored network can't be read by OpenVINO {engine_version()}: {short(error)}"
        ) from error


def openvino_module() -> Any:
    """OpenVINO, imported so that it reports to nobody. Raises LearnerError where it is not installed."""
    # OpenVINO tells Google Analytics that it is used, unless this package can't be imported. Our users were not asked.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise LearnerError(f"OpenVINO is not installed here: {error}") from error
    return openvino


def engine_version() -> str:
    """The version of OpenVINO installed here, or an empty text."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return ""
