"""Milliseconds an image for the network alone, in one thread: what computes it, and how many images a pass.

    python benchmarks/engines.py resnet18.pkl resnet50.pkl --batches 1 8 32

Each learner has a process of its own, in which the engines take turns. All are held against eager torch (NCHW), as
fastai runs it; this and the folded one leave out the normalising, which the others do. ONNX Runtime and torch.compile
are shown where they are installed and work. The table goes to stdout and to engines.md beside this file.
"""

import argparse
import copy
import hashlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tables import heading, in_own_process, publish, table

ROUNDS = 3
SECONDS = 2.0
Run = Callable[[Any], Any]


def folded(model: Any) -> Any:
    """The network in channels_last with its batch norms in the convolutions, by torch.fx."""
    import torch
    from torch.fx.experimental.optimization import fuse

    fused: Any = fuse(copy.deepcopy(model).eval()).to(memory_format=torch.channels_last)
    return fused


def engines(served: Any, size: list[int]) -> dict[str, Callable[[], Run]]:
    """How to make each engine: a function of pixels (n, height, width, 3)."""
    import torch

    from drivetrain.learner.eager import converted
    from drivetrain.learner.engines import OpenVinoEngine

    def torch_of(module: Any) -> Run:
        return lambda pixels: module(torch.from_numpy(pixels))

    def contiguous() -> Run:
        return lambda pixels: served.model((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).contiguous())

    def fused() -> Run:
        model = folded(served.model)
        return lambda pixels: model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)

    def compiled() -> Run:
        torch._inductor.config.freezing = True
        return torch_of(torch.compile(served))

    def onnx() -> Run:
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.onnx"
            example = torch.zeros((2, *size), dtype=torch.uint8)
            axes = {"pixels": {0: "n"}}
            torch.onnx.export(served, (example,), path, input_names=["pixels"], dynamic_axes=axes, dynamo=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {"pixels": pixels})

    def openvino() -> Run:
        engine = OpenVinoEngine(converted(served, size), 1)
        return engine.run

    return {
        "torch, NCHW": contiguous,
        "torch, channels_last": lambda: torch_of(served),
        "torch, channels_last, batch norms folded": fused,
        "torch.compile, frozen": compiled,
        "ONNX Runtime": onnx,
        "OpenVINO": openvino,
    }


def milliseconds(run: Run, pixels: Any) -> float:
    """Milliseconds an image, after a first pass."""
    run(pixels)
    started, passes = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        run(pixels)
        passes += 1
    return (time.perf_counter() - started) / passes / len(pixels) * 1000


def measure(learner: str, batches: list[int]) -> dict[str, Any]:
    """Medians by engine and number of images, and why an engine is not there."""
    import numpy as np
    import torch

    from drivetrain.learner import open_learner

    warnings.simplefilter("ignore")
    data = Path(learner).read_bytes()
    scorer = open_learner(data, hashlib.sha256(data).hexdigest(), "none", threads=1)
    size = list(scorer._recipe.decoder.shape)
    runs, absent = {}, {}
    with torch.no_grad():
        for name, make in engines(scorer.eager.served, size).items():
            try:
                runs[name] = make()
                runs[name](np.zeros((2, *size), np.uint8))
            except Exception as error:
                runs.pop(name, None)
                absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in batches} for name in runs}
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for n in batches:
                pixels = rng.integers(0, 255, (n, *size), dtype=np.uint8)
                for name, run in runs.items():
                    found[name][n].append(milliseconds(run, pixels))
    return {"ms": {name: {n: median(each) for n, each in of.items()} for name, of in found.items()}, "absent": absent}


def main() -> None:
    """Measure every learner, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("learners", nargs="+")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--one", action="store_true")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.learners[0], given.batches)))
        return
    numbers = [str(n) for n in given.batches]
    rows, notes = [], []
    for learner in given.learners:
        found = in_own_process(__file__, "--one", learner, "--batches", *numbers)
        base = min(found["ms"]["torch, NCHW"].values())
        for name, of in found["ms"].items():
            best = min(of.values())
            rows.append([f"{Path(learner).stem}: {name}", *(f"{of[n]:.1f}" for n in numbers), f"{base / best:.2f}"])
        notes += [f"{Path(learner).stem}: {name} did not work here ({why})." for name, why in found["absent"].items()]
    heads = ["learner and engine", *(f"ms an image, {n} a pass" for n in numbers), "times torch NCHW, each at its best"]
    lines = heading("Engines", "python benchmarks/engines.py", "torch", "openvino")
    about = (
        f"One thread, 224 pixels, random pixels, float32; medians of {ROUNDS} rounds in which the engines take turns."
    )
    publish(__file__, [*lines, about, "", *table(heads, rows), "", *notes])


if __name__ == "__main__":
    main()
