"""Rectified flow: the forward process of families whose denoiser predicts a velocity between picture and noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


@dataclass(frozen=True)
class FlowConfig:
    """What a noise scheduler's configuration says of training."""

    num_train_timesteps: int
    shift: float
    prediction_type: str = "flow"


class FlowMatching:
    """x_s = (1 - s) x_0 + s noise; the denoiser predicts noise - x_0 (arXiv 2210.02747, and 2403.03206 for the shift).

    Levels are numbered as those of other noise schedulers, 0 the least noise; what the denoiser is told, its timestep,
    is the level's s times `num_train_timesteps`.

    Args:
        scheduler: of the pipeline; its own levels are used.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        self.config = FlowConfig(scheduler.config.num_train_timesteps, scheduler.config.shift)
        # The scheduler's go from the most noise to the least.
        self.sigmas: Tensor = scheduler.sigmas[: self.config.num_train_timesteps].flip(0).float()

    @classmethod
    def read(cls, folder: Path) -> FlowMatching:
        """Of the `scheduler_config.json` in a folder."""
        config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
        return cls(FlowMatchEulerDiscreteScheduler.from_config(config))

    @property
    def timesteps(self) -> Tensor:
        """What the denoiser is told of each level, (num_train_timesteps,) float32, rising."""
        return self.sigmas * self.config.num_train_timesteps

    def draw_level(self, rng: np.random.Generator) -> int:
        """Logit-normal, of mean 0 and deviation 1 (arXiv 2403.03206, section 3.1): the middle levels most often.

        The density is that of levels before they are shifted.
        """
        levels = self.config.num_train_timesteps
        # Drawn from the end of the most noise, as is usual; the density is the same from either.
        return levels - 1 - min(int(levels / (1 + np.exp(-rng.normal()))), levels - 1)

    def level_of(self, timesteps: Tensor) -> Tensor:
        """s of what the denoiser is told, with four axes to multiply latents by."""
        return (timesteps / self.config.num_train_timesteps).view(-1, 1, 1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents on their way to noise; `timesteps` as the denoiser is told them, (B,) float32."""
        level = self.level_of(timesteps).to(latents)
        return (1 - level) * latents + level * noise

    def told(self, levels: Tensor) -> Tensor:
        """Timesteps of levels, (B,) int64 in [0, num_train_timesteps) -> (B,) float32."""
        return self.timesteps.to(levels.device)[levels]
