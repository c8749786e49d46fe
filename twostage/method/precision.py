"""The number format that a U-Net computes in."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def predict_as_kept(family: ModuleType, unet: Any, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """The U-Net's output, as `family.predict` gives it, computed in what its weights are kept in where that is a half.

    Nothing is left for autocast to do then: it would take the norms' inputs to float32 and back, and what is kept of
    them for the backward pass would take twice the memory. A float32 U-Net is left to autocast, where that is on.
    """
    kept = next(unet.parameters()).dtype
    if kept == torch.float32:
        predicted: Tensor = family.predict(unet, noisy, timesteps, states)
        return predicted
    with torch.autocast(noisy.device.type, enabled=False):
        predicted = family.predict(unet, noisy.to(kept), timesteps, states.to(kept))
    return predicted
