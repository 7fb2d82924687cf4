"""The network in eager torch, which every other engine is held against; and its way from torch to OpenVINO.

Knows tensors. Does not know classes, losses or images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from drivetrain.errors import LearnerError
from drivetrain.learner.engines import openvino_module
from drivetrain.learner.front import Front
from drivetrain.learner.outputs import Floats


class Served(nn.Module):
    """A network with what comes before it: pixels in, (last layer, embedding) out.

    ``pixels`` are uint8 (n, height, width, channels) with a ``front``, and what fastai's batch transforms made without.
    """

    def __init__(self, model: nn.Module, front: Front | None, layer: nn.Module | None) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.model = model
        self.front = front
        self._seen: list[torch.Tensor] = []
        if front is not None and front.mean is not None and front.std is not None:
            self.register_buffer("mean", front.mean.float().reshape(1, -1, 1, 1))
            self.register_buffer("std", front.std.float().reshape(1, -1, 1, 1))
        self._embeds = layer is not None
        if layer is not None:
            layer.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._seen[:] = [inputs[0]]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The last layer (n, k) and, if there is an embedding layer, what entered it (n, d)."""
        if self.front is not None:
            pixels = pixels.permute(0, 3, 1, 2).float() / self.front.divisor
            for step in self.front.steps:
                pixels = step(pixels)
            if self.front.mean is not None:
                pixels = (pixels - self.mean) / self.std
        raw = self.model(pixels)
        if isinstance(raw, tuple | list):
            raise LearnerError("The network gives several outputs; only those with one can be served.")
        raw = raw.float().flatten(1) if raw.ndim > 1 else raw.float().reshape(-1, 1)
        return (raw, flat(self._seen[0])) if self._embeds else (raw,)


def flat(seen: torch.Tensor) -> torch.Tensor:
    """An embedding (n, d): averaged over positions where the layer has them (maps of a body, tokens)."""
    seen = seen.float()
    if seen.ndim == 4:
        return seen.mean((2, 3))
    return seen.mean(1) if seen.ndim == 3 else seen.flatten(1)


class TorchEngine:
    """Eager torch in float32; on a GPU optionally in autocast's half precision."""

    def __init__(self, served: Served, device: torch.device, half: bool = False) -> None:
        self.name = "torch"
        self.served = served.to(device).eval()
        self._device, self._half = device, half
        if device.type == "cuda" and not half:
            # By torch's default convolutions round to 10 bits of mantissa there: not the float32 of the run's settings,
            # which CPUs compute under the same key.
            torch.backends.cudnn.allow_tf32 = False
        if device.type == "cuda":
            self.served = self.served.to(memory_format=torch.channels_last)

    def run(self, batch: Any) -> tuple[Floats, Floats | None]:
        """The network's last layer (n, k) and the embeddings (n, d) of a batch of n images."""
        pixels = torch.from_numpy(batch) if isinstance(batch, np.ndarray) else batch
        # What fastai's own batch transforms made is on the GPU already.
        if self._device.type == "cuda" and pixels.device.type == "cpu":
            pixels = pixels.pin_memory().to(self._device, non_blocking=True)
        with torch.inference_mode(), torch.autocast("cuda", enabled=self._half):
            found = [each.float().cpu().numpy() for each in self.served(pixels)]
        return found[0], found[1] if len(found) > 1 else None


def gpus_here() -> list[str]:
    """The names of the GPUs that torch finds for this process."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def converted(served: Served, shape: Sequence[int]) -> Any:
    """The network as an OpenVINO model for any number of images of one shape (height, width, channels)."""
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    with torch.no_grad():
        model = openvino_module().convert_model(served.eval(), example_input=example)
    model.reshape([-1, *shape])
    return model
