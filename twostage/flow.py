"""Rectified flow: the forward process of families whose denoiser predicts a velocity between picture and noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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


def _logit_normal(rng: np.random.Generator) -> float:
    return float(1 / (1 + np.exp(-rng.normal())))


def _mode(rng: np.random.Generator) -> float:
    place = rng.random()
    return float(1 - place - _HEAVY * (np.cos(np.pi / 2 * place) ** 2 - 1 + place))


# How levels are drawn, from 0 to 1 (arXiv 2403.03206, section 3.1), with the paper's own constants.
_HEAVY = 1.29
DENSITIES: Mapping[str, Callable[[np.random.Generator], float]] = {
    "logit_normal": _logit_normal,
    "mode": _mode,
    "uniform": lambda rng: rng.random(),
}


class FlowMatching:
    """x_s = (1 - s) x_0 + s noise; the denoiser predicts noise - x_0 (arXiv 2210.02747, and 2403.03206 for the shift).

    Levels are numbered as those of other noise schedulers, 0 the least noise; what the denoiser is told, its timestep,
    is the level's s times `num_train_timesteps`.

    Args:
        scheduler: of the pipeline; its own levels are used.
        density: of the levels that `draw_level` draws, a key of DENSITIES.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, density: str = "logit_normal") -> None:
        self._scheduler, self._density = scheduler, DENSITIES[density]
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

    def drawn(self, density: str) -> FlowMatching:
        """The same with another density of the levels that are drawn."""
        return FlowMatching(self._scheduler, density)

    def draw_level(self, rng: np.random.Generator) -> int:
        """A level, in [0, num_train_timesteps). The density is that of levels before they are shifted."""
        levels = self.config.num_train_timesteps
        # Drawn from the end of the most noise, as is usual.
        return levels - 1 - min(int(levels * self._density(rng)), levels - 1)

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
