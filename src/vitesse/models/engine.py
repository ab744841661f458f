"""A torch model behind the interface of the inference engines."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitesse.runtime.engines import checked_outputs


class TorchEngine:
    """Runs a model as the other engines run an artefact, so that all are compared alike."""

    name = "torch"

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        self.model = model.to(device).eval()
        self.device = device

    @torch.inference_mode()
    def run(self, batch_BCHW: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Logits (B, num_classes) float32, see `Engine.run`."""
        logits_BK = self.model(torch.from_numpy(batch_BCHW).to(self.device))
        return checked_outputs([logits_BK.float().cpu().numpy()], len(batch_BCHW), self.name)
