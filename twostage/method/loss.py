"""The denoising loss, as a pure function."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import DDPMScheduler
from torch import Tensor

from twostage.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
Predict = Callable[[Tensor, Tensor], Tensor]


def denoising_loss(
    predict: Predict, noise_scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Mean squared error of the denoiser's output, per sample (arXiv 2006.11239, eq. 14, for any prediction type).

    Args:
        predict: noisy latents and timesteps -> the denoiser's output, shaped like the latents.
        noise_scheduler: gives the noise levels and what the denoiser predicts.
        latents: (B, C, h, w), scaled.
        noise: (B, C, h, w), standard normal.
        timesteps: (B,) in [0, num_train_timesteps).

    Returns:
        (B,) float32.
    """
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    target = denoising_target(noise_scheduler, latents, noise, timesteps)
    error = predict(noisy, timesteps).float() - target.float()
    return error.square().flatten(1).mean(1)


def denoising_target(noise_scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser should put out: the noise, the velocity (arXiv 2202.00512), or the latents themselves."""
    kind = noise_scheduler.config.prediction_type
    assert kind in PREDICTION_TYPES, kind
    if kind == "epsilon":
        return noise
    return noise_scheduler.get_velocity(latents, noise, timesteps) if kind == "v_prediction" else latents


def check_prediction_type(noise_scheduler: DDPMScheduler) -> None:
    """Refuse a base whose denoiser predicts something else.

    Raises:
        UserError: naming what it predicts.
    """
    kind = noise_scheduler.config.prediction_type
    if kind not in PREDICTION_TYPES:
        raise UserError(f"the base's scheduler predicts {kind!r}; known are {', '.join(PREDICTION_TYPES)}")
