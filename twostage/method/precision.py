"""The number formats that a run computes in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from twostage.family import Family
from twostage.prompt_states import PromptStates

_FORMATS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def number_format(mixed_precision: str) -> torch.dtype:
    """What a recipe's mixed_precision, "no", "fp16" or "bf16", has frozen nets kept in."""
    return _FORMATS[mixed_precision]


def drawn_in(denoiser: Any, device: torch.device) -> AbstractContextManager[Any]:
    """What to be within to draw pictures with a denoiser as training has it: the rest of the pipeline is float32."""
    return torch.autocast(device.type, torch.bfloat16) if denoiser.dtype == torch.bfloat16 else nullcontext()


def predict_as_kept(
    family: Family,
    denoiser: Any,
    noisy: Tensor,
    timesteps: Tensor,
    given: Mapping[str, Tensor],
    states: PromptStates,
) -> Tensor:
    """The denoiser's output, as `family.predict` gives it, computed in what its weights are in where that is a half.

    Nothing is left for autocast to do then: it would take the norms' inputs to float32 and back, and what is kept of
    them for the backward pass would take twice the memory. A float32 net is left to autocast, where that is on.
    """
    kept = next(denoiser.parameters()).dtype
    if kept == torch.float32:
        return family.predict(denoiser, noisy, timesteps, states, given)
    with torch.autocast(noisy.device.type, enabled=False):
        told = {name: tensor.to(kept) if tensor.is_floating_point() else tensor for name, tensor in given.items()}
        return family.predict(denoiser, noisy.to(kept), timesteps, states.to(dtype=kept), told)
