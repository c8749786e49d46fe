"""Training examples, drawn by address: what step k shows depends on (seed, stage, k, row) and on nothing before it.

So an interrupted run resumes exactly, several processes see what one would, and two recipes with one seed are compared
on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from twostage.errors import UserError
from twostage.families import Base
from twostage.family import Family, NoiseScheduler
from twostage.family_parts import Shown
from twostage.flow import FlowMatching
from twostage.method.latents import encode_picture
from twostage.method.loss import Question, denoising_question
from twostage.recipe import Data
from twostage.subject.buckets import bucket_size, corner_of
from twostage.subject.captions import choose_prompt
from twostage.subject.photos import Photo, load_mask, load_photo

# Streams of one address that must not repeat each other; those of prior samples are shifted by PRIOR.
_CHOICES, _GAUSSIANS, _ORDER, _BUCKETS, OFFSETS = range(5)
PRIOR = 16


class PriorBatch(Protocol):
    """Samples of the class, one for each of the subject's."""

    @property
    def prompts(self) -> list[str]:
        """B of them."""

    def question(self, noise_scheduler: NoiseScheduler) -> Question:
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
        weight: (B, 1, h, w) in [0, 1], how much each place counts; None where all count in full.
        given: what else the denoiser is told of the pictures, with a batch axis; see `Family.picture_conditions`.
        prior: B prior samples, where there is a prior.
        address: what nets draw by themselves for these samples, such as dropout, is drawn from.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    weight: Tensor | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)
    prior: PriorBatch | None = None
    address: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            latents=self.latents.to(device),
            noise=self.noise.to(device),
            timesteps=self.timesteps.to(device),
            weight=None if self.weight is None else self.weight.to(device),
            given={name: tensor.to(device) for name, tensor in self.given.items()},
            prior=self.prior and self.prior.to(device),
        )

    def question(self, noise_scheduler: NoiseScheduler) -> Question:
        asked = denoising_question(noise_scheduler, self.latents, self.noise, self.timesteps)
        return replace(asked, weight=self.weight, given=self.given)


class Source(Protocol):
    """What a stage draws its batches from."""

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Batch:
        """Rows of one optimizer step, depending on seed and address alone."""


@dataclass(frozen=True)
class Posterior:
    """What the VAE made of the photos, on the CPU. Photos of another bucket have another h and w.

    Attributes:
        mean, std: for each photo (C, h, w), scaled.
        weight: for each photo (1, h, w) in [0, 1], how much each place counts; None where all count in full.
        shown: each photo, as its family is asked what it tells the denoiser of it; may be left out where it tells
            nothing.
    """

    mean: Tensor | Sequence[Tensor]
    std: Tensor | Sequence[Tensor]
    weight: Sequence[Tensor] | None = None
    shown: Sequence[Shown] | None = None


@dataclass(frozen=True)
class Examples:
    """The photos of a run as an endless, addressable sequence of samples.

    Attributes:
        views: one posterior, or two where mirrored photos are to be drawn as often as upright ones.
        choose_prompt: photo's index, generator -> prompt.
        noise_scheduler: of the base; or how many noise levels it has, all of which come equally often.
        seed: of the run.
        family: of the base; may be left out where its denoiser is told of noisy latents and prompts alone.
        stream: 0, or PRIOR for draws that have nothing to do with those.
        repeats: for each photo, how often it is shown in a round; all once when empty.
    """

    views: tuple[Posterior, ...]
    choose_prompt: Callable[[int, np.random.Generator], str]
    noise_scheduler: NoiseScheduler | int
    seed: int
    stream: int = 0
    repeats: tuple[int, ...] = ()
    family: Family | None = None

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Batch:
        """Rows of one optimizer step. All of them are of one bucket, which comes up as often as it has photos.

        Args:
            stage: 1 or 2.
            step: counted from 0.
            rows: which of the step's samples, over all processes and accumulated batches.
            rows_per_step: how many those are.
        """
        bucket, before = self._bucket(stage, step)
        samples = [self._sample(stage, step, row, bucket, before * rows_per_step + row) for row in rows]
        latents, noise, timesteps, prompts, weights, given = zip(*samples, strict=True)
        return Batch(
            torch.stack(latents),
            torch.stack(noise),
            torch.tensor(timesteps),
            list(prompts),
            None if self.views[0].weight is None else torch.stack(weights),
            {name: torch.stack([own[name] for own in given]) for name in given[0]},
            address=(self.seed, stage, step, rows.start),
        )

    def shown(self, stage: int, step: int) -> tuple[torch.Size, int]:
        """Shape of the latents that a step shows, and how many steps before it showed the same bucket."""
        bucket, before = self._bucket(stage, step)
        return self.views[0].mean[self._buckets[bucket][0]].shape, before

    @cached_property
    def _buckets(self) -> list[list[int]]:
        """For each size of latents, the photos of that size, as often as they are shown in a round."""
        buckets: dict[torch.Size, list[int]] = {}
        for photo, mean in enumerate(self.views[0].mean):
            repeats = self.repeats[photo] if self.repeats else 1
            buckets.setdefault(mean.shape, []).extend([photo] * repeats)
        return list(buckets.values())

    def _bucket(self, stage: int, step: int) -> tuple[int, int]:
        """Which bucket a step shows, and how many steps before it showed the same."""
        owners = [bucket for bucket, photos in enumerate(self._buckets) for _ in photos]
        if len(self._buckets) == 1:
            return 0, step
        round_, place = divmod(step, len(owners))
        order = np.random.default_rng([self.stream + _BUCKETS, self.seed, stage, round_, 0]).permutation(len(owners))
        shown = [owners[index] for index in order[: place + 1]]
        return shown[-1], round_ * len(self._buckets[shown[-1]]) + shown[:-1].count(shown[-1])

    def _sample(
        self, stage: int, step: int, row: int, bucket: int, sample: int
    ) -> tuple[Tensor, Tensor, int, str, Tensor | None, dict[str, Tensor]]:
        choices = np.random.default_rng([self.stream + _CHOICES, self.seed, stage, step, row])
        photos = self._buckets[bucket]
        photo = photos[in_turn(self.stream, self.seed, stage, sample, len(photos), bucket)]
        timestep = draw_level(self.noise_scheduler, choices)
        view = self.views[choices.integers(len(self.views))]
        prompt = self.choose_prompt(photo, choices)

        address = np.random.SeedSequence([self.stream + _GAUSSIANS, self.seed, stage, step, row])
        # Always drawn on the CPU: a GPU's generator would draw something else.
        gaussians = torch.Generator().manual_seed(int(address.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        mean, std = view.mean[photo], view.std[photo]
        latents = mean + std * torch.randn(mean.shape, generator=gaussians)
        noise = torch.randn(mean.shape, generator=gaussians)
        given = self.family.picture_conditions(view.shown[photo], gaussians) if self.family and view.shown else {}
        return latents, noise, timestep, prompt, None if view.weight is None else view.weight[photo], given


def draw_level(noise_scheduler: NoiseScheduler | int, rng: np.random.Generator) -> int:
    """The noise level of a sample, in [0, num_train_timesteps)."""
    if isinstance(noise_scheduler, FlowMatching):
        return noise_scheduler.draw_level(rng)
    levels = noise_scheduler if isinstance(noise_scheduler, int) else noise_scheduler.config.num_train_timesteps
    return int(rng.integers(levels))


def together(parts: Sequence[Examples]) -> Examples:
    """The photos of several subjects as one sequence, in which each comes as often as if it were one subject's.

    Args:
        parts: of one base, seed and recipe; each photo keeps its own prompts.
    """
    if len(parts) == 1:
        return parts[0]
    owners = [(part, photo) for part in parts for photo in range(len(part.views[0].mean))]
    masked = any(part.views[0].weight is not None for part in parts)
    views = []
    for same in zip(*(part.views for part in parts), strict=True):
        means = [mean for view in same for mean in view.mean]
        stds = [std for view in same for std in view.std]
        weights = [weight for view in same for weight in view.weight or [torch.ones_like(m[:1]) for m in view.mean]]
        shown = [one for view in same for one in view.shown or []]
        views.append(Posterior(means, stds, weights if masked else None, shown or None))

    def prompt(index: int, rng: np.random.Generator) -> str:
        part, photo = owners[index]
        return part.choose_prompt(photo, rng)

    repeats = tuple(part.repeats[photo] if part.repeats else 1 for part, photo in owners)
    return replace(parts[0], views=tuple(views), choose_prompt=prompt, repeats=repeats)


def in_turn(stream: int, seed: int, stage: int, sample: int, count: int, group: int = 0) -> int:
    """Which of `count` things a stage's sample shows: each once before any comes again, each round in another order.

    Groups of things have their turns apart from each other.
    """
    epoch, place = divmod(sample, count)
    order = np.random.default_rng([stream + _ORDER, seed, stage, epoch, group])
    return int(order.permutation(count)[place])


def encode_photos(
    base: Base, photos: Sequence[Photo], data: Data, phrase: str, seed: int, device: torch.device
) -> Examples:
    """What the VAE makes of each photo, and of its mirror image where flips are wanted.

    Raises:
        UserError: a photo or mask cannot be read, a mask leaves nothing to learn, or `data.resolution` is none that
            the base takes.
    """
    side = data.resolution or base.resolution
    base.check_side(side)
    masked = any(photo.mask for photo in photos)
    views: list[Posterior] = []
    for mirrored in (False, True) if data.flip else (False,):
        means, stds, weights, shown = [], [], [], []
        for photo in photos:
            size = bucket_size(photo.size, side, base.multiple) if data.fit == "bucket" else (side, side)
            pixels, weight = load_photo(photo, size, data.fit), _weight(photo, data, size, base.reduction)
            if mirrored:
                pixels, weight = pixels.flip(-1), weight.flip(-1)
            mean, std = encode_picture(base, pixels, device)
            means.append(mean)
            stds.append(std)
            weights.append(weight)
            shown.append(Shown(mean, photo.size, size, corner_of(photo.size, size, data.fit)))
        views.append(Posterior(means, stds, weights if masked else None, shown))

    def prompt(index: int, rng: np.random.Generator) -> str:
        return choose_prompt(photos[index], data, phrase, rng)

    repeats = tuple(photo.repeats for photo in photos)
    return Examples(tuple(views), prompt, base.noise_scheduler, seed, repeats=repeats, family=base.family)


def _weight(photo: Photo, data: Data, size: tuple[int, int], reduction: int) -> Tensor:
    """How much each latent of the photo counts, (1, h, w)."""
    mask = load_mask(photo, size, (size[0] // reduction, size[1] // reduction), data.fit)
    weight = mask + (1 - mask) * data.unmasked_weight
    if not weight.any():
        assert photo.mask is not None
        raise UserError(
            f"the mask {photo.mask.path} is black wherever training sees it: the photo would teach nothing; paint the "
            "subject white, use --data.fit pad, or raise data.unmasked_weight above 0"
        )
    return weight
