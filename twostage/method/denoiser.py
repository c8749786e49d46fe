"""Stage 2: the denoiser learns, text encoder and embedding are frozen, and no prior images are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twostage.families import Base
from twostage.method.examples import Batch
from twostage.method.loss import denoising_loss

# Prompts a forward pass of the text encoder; fixed, so that a prompt's states do not depend on the run's length.
_CHUNK = 16


class DenoiserLearner(nn.Module):
    """The U-Net and the loss it learns from; what is said in the prompts comes encoded."""

    def __init__(self, base: Base, states: dict[str, Tensor]) -> None:
        super().__init__()
        self.unet = base.unet.requires_grad_(True)
        self._family, self._noise_scheduler = base.family, base.noise_scheduler
        self._states = states

    def forward(self, batch: Batch) -> Tensor:
        """Loss of each sample, (B,)."""
        states = torch.stack([self._states[prompt] for prompt in batch.prompts]).to(batch.latents.device)
        predict = partial(self._family.predict, self.unet, states=states)
        return denoising_loss(predict, self._noise_scheduler, batch.latents, batch.noise, batch.timesteps)


@torch.no_grad()
def encode_prompts(
    base: Base, prompts: list[str], expand: Callable[[str], str], device: torch.device
) -> dict[str, Tensor]:
    """States of every prompt of the stage, (tokens, D) float32 each, so that the text encoder can leave memory."""
    encoder: Any = base.text_encoder.to(device)
    states: dict[str, Tensor] = {}
    for start in range(0, len(prompts), _CHUNK):
        chunk = prompts[start : start + _CHUNK]
        encoded = base.family.encode_text(base.tokenizer, encoder, [expand(prompt) for prompt in chunk])
        states.update(zip(chunk, encoded.float().unbind(), strict=True))
    return states
