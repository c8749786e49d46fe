"""Training examples, drawn by address: what step k shows depends on (seed, stage, k, row) and on nothing before it.

So an interrupted run resumes exactly, several processes see what one would, and two recipes with one seed are compared
on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from twostage.errors import UserError
from twostage.families import Base
from twostage.method.loss import Question, denoising_question
from twostage.recipe import Data
from twostage.subject.captions import choose_prompt
from twostage.subject.photos import Photo, load_photo

# Streams of one address that must not repeat each other; those of prior samples are shifted by PRIOR.
_CHOICES, _GAUSSIANS, _ORDER = range(3)
PRIOR = 16


class PriorBatch(Protocol):
    """Samples of the class, one for each of the subject's."""

    @property
    def prompts(self) -> list[str]:
        """B of them."""

    def question(self, noise_scheduler: DDPMScheduler) -> Question:
        """What the denoiser is asked for them."""

    def to(self, device: torch.device) -> PriorBatch:
        """The same on a device."""


@dataclass(frozen=True)
class Batch:
    """Training samples, drawn.

    Attributes:
        latents: (B, C, h, w), sampled from the posterior of each photo, scaled.
        noise: (B, C, h, w), standard normal.
        timesteps: (B,) int64 in [0, num_train_timesteps).
        prompts: B of them.
        prior: B prior samples, where there is a prior.
        address: what nets draw by themselves for these samples, such as dropout, is drawn from.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    prior: PriorBatch | None = None
    address: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            latents=self.latents.to(device),
            noise=self.noise.to(device),
            timesteps=self.timesteps.to(device),
            prior=self.prior and self.prior.to(device),
        )

    def question(self, noise_scheduler: DDPMScheduler) -> Question:
        return denoising_question(noise_scheduler, self.latents, self.noise, self.timesteps)


class Source(Protocol):
    """What a stage draws its batches from."""

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Batch:
        """Rows of one optimizer step, depending on seed and address alone."""


@dataclass(frozen=True)
class Posterior:
    """What the VAE made of the photos: mean and standard deviation, (photos, C, h, w) each, scaled, on the CPU."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Examples:
    """The photos of a run as an endless, addressable sequence of samples.

    Attributes:
        views: one posterior, or two where mirrored photos are to be drawn as often as upright ones.
        choose_prompt: photo's index, generator -> prompt.
        num_train_timesteps: noise levels of the base.
        seed: of the run.
        stream: 0, or PRIOR for draws that have nothing to do with those.
    """

    views: tuple[Posterior, ...]
    choose_prompt: Callable[[int, np.random.Generator], str]
    num_train_timesteps: int
    seed: int
    stream: int = 0

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Batch:
        """Rows of one optimizer step.

        Args:
            stage: 1 or 2.
            step: counted from 0.
            rows: which of the step's samples, over all processes and accumulated batches.
            rows_per_step: how many those are.
        """
        samples = [self._sample(stage, step, row, rows_per_step) for row in rows]
        latents, noise, timesteps, prompts = zip(*samples, strict=True)
        return Batch(
            torch.stack(latents),
            torch.stack(noise),
            torch.tensor(timesteps),
            list(prompts),
            address=(self.seed, stage, step, rows.start),
        )

    def _sample(self, stage: int, step: int, row: int, rows_per_step: int) -> tuple[Tensor, Tensor, int, str]:
        choices = np.random.default_rng([self.stream + _CHOICES, self.seed, stage, step, row])
        photo = in_turn(self.stream, self.seed, stage, step * rows_per_step + row, len(self.views[0].mean))
        timestep = int(choices.integers(self.num_train_timesteps))
        view = self.views[choices.integers(len(self.views))]
        prompt = self.choose_prompt(photo, choices)

        address = np.random.SeedSequence([self.stream + _GAUSSIANS, self.seed, stage, step, row])
        # Always drawn on the CPU: a GPU's generator would draw something else.
        gaussians = torch.Generator().manual_seed(int(address.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        mean, std = view.mean[photo], view.std[photo]
        latents = mean + std * torch.randn(mean.shape, generator=gaussians)
        return latents, torch.randn(mean.shape, generator=gaussians), timestep, prompt


def in_turn(stream: int, seed: int, stage: int, sample: int, count: int) -> int:
    """Which of `count` things a stage's sample shows: each once before any comes again, each round in another order."""
    epoch, place = divmod(sample, count)
    order = np.random.default_rng([stream + _ORDER, seed, stage, epoch, 0])
    return int(order.permutation(count)[place])


def encode_photos(
    base: Base, photos: Sequence[Photo], data: Data, phrase: str, seed: int, device: torch.device
) -> Examples:
    """Run the VAE once over each photo, and over its mirror image where flips are wanted.

    Raises:
        UserError: a photo cannot be read, or the VAE cannot halve `data.resolution` as often as it has to.
    """
    side = data.resolution or base.resolution
    if side % base.reduction:
        raise UserError(f"resolution {side}: the base's VAE needs a multiple of {base.reduction}")
    vae = base.vae.to(device)
    views: list[Posterior] = []
    for mirrored in (False, True) if data.flip else (False,):
        posteriors = []
        for photo in photos:
            pixels = load_photo(photo, side, data.fit).unsqueeze(0)
            posteriors.append(base.family.encode_images(vae, (pixels.flip(-1) if mirrored else pixels).to(device)))
        mean, std = (torch.cat(parts).float().cpu() for parts in zip(*posteriors, strict=True))
        views.append(Posterior(mean, std))

    def prompt(index: int, rng: np.random.Generator) -> str:
        return choose_prompt(photos[index], data, phrase, rng)

    return Examples(tuple(views), prompt, base.noise_scheduler.config.num_train_timesteps, seed)
