"""A torch model behind the interface of the inference engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitesse.models.backbone import VisionModel
from vitesse.runtime.engines import checked_outputs


class TorchEngine:
    """Runs a model as the other engines run an artefact, so that all are compared alike."""

    name = "torch"

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        deployed = model.deployed() if isinstance(model, VisionModel) else model
        self.model = deployed.to(device).eval()
        self.device = device

    @torch.inference_mode()
    def run(self, batch_BCHW: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
        """The outputs of the model's task, numbers with a point as float32; see `Engine.run`."""
        given = self.model(torch.from_numpy(batch_BCHW).to(self.device))
        outputs = given if isinstance(given, tuple) else (given,)
        arrays = [(x.float() if x.is_floating_point() else x).cpu().numpy() for x in outputs]
        return checked_outputs(arrays, len(batch_BCHW), self.name)
