"""The number formats that a run computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_FORMATS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def number_format(mixed_precision: str) -> torch.dtype:
    """What a recipe's mixed_precision, "no", "fp16" or "bf16", has frozen nets kept in."""
    return _FORMATS[mixed_precision]


def drawn_in(unet: Any, device: torch.device) -> AbstractContextManager[Any]:
    """What to be within to draw pictures with a U-Net as training has it: the rest of the pipeline is float32."""
    return torch.autocast(device.type, torch.bfloat16) if unet.dtype == torch.bfloat16 else nullcontext()


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
