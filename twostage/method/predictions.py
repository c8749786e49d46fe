"""Prior samples without pictures: what the untouched base predicts on its way from noise to the class.

The tuned denoiser's predictions are held to the base's, as drift correction (arXiv 2410.14159) does with a frozen copy
beside it; here the base's are computed once, before training, and read from the cache. No second U-Net is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMParallelScheduler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from twostage.errors import UserError
from twostage.family import NoiseScheduler
from twostage.family_parts import Shown
from twostage.flow import FlowMatching
from twostage.method.class_samples import ClassSamples, Making, address, torch_seed
from twostage.method.examples import PRIOR, in_turn
from twostage.method.latents import hash_tensors
from twostage.method.loss import Question
from twostage.method.sampling import encode_visiting
from twostage.prompt_states import PromptStates
from twostage.quiet import quiet

# Beside the streams of prior samples in training.
_WALKING = PRIOR + 9

_PARTS = ("noisy", "timesteps", "predictions")


@dataclass(frozen=True)
class PredictedBatch:
    """Prior samples for which the base's own prediction is the target.

    Attributes:
        asked: noisy latents (B, C, h, w), timesteps (B,), predictions (B, C, h, w).
        prompts: B of them.
    """

    asked: Question
    prompts: list[str]

    def question(self, noise_scheduler: NoiseScheduler) -> Question:
        """What the base was asked, and answered."""
        return self.asked

    def to(self, device: torch.device) -> PredictedBatch:
        """The same on a device."""
        return replace(self, asked=self.asked.to(device))


def prepare_predictions(making: Making) -> ClassSamples:
    """The base's predictions along paths from noise to the class; computed where the cache has none.

    Path i depends on the seed and i (but for the rounding of larger batches), so a larger count adds paths.

    Args:
        making: what they depend on; `num_class_images` paths of `states_per_path` states.

    Raises:
        UserError: the cache cannot be written.
    """
    options, seed, square = making.options, making.seed, _given(making)
    paths, states = options.num_class_images, options.states_per_path
    shelf = making.shelf("predictions", ".safetensors", states_per_path=states)
    making.fill(
        shelf, lambda path: _whole(path, states), paths, lambda batches: _compute(making, batches), "class predictions"
    )
    size = sum(shelf.file(index).stat().st_size for index in range(paths))
    making.display.say(f"{paths} paths of {states} predictions, {size / 1e6:.0f} MB, are read from {shelf.path}")

    def batch(stage: int, step: int, rows: range, rows_per_step: int) -> PredictedBatch:
        shown = [in_turn(PRIOR, seed, stage, step * rows_per_step + row, paths * states) for row in rows]
        read = [_read(shelf.file(one // states), one % states) for one in shown]
        noisy, timesteps, predictions = (torch.stack(parts) for parts in zip(*read, strict=True))
        given = {name: tensor.expand(len(rows), *tensor.shape[1:]) for name, tensor in square.items()}
        asked = Question(noisy.float(), timesteps, predictions.float(), None, given)
        return PredictedBatch(asked, [making.prompt] * len(rows))

    return ClassSamples([making.prompt], batch)


def _whole(path: Path, states: int) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = [file.get_tensor(name) for name in _PARTS]
            kept = (file.metadata() or {}).get("sha256") == hash_tensors(*tensors)
            return kept and all(len(tensor) == states for tensor in tensors)
    except (OSError, SafetensorError, TypeError):  # The last: of numbers that no file of ours holds.
        return False


def _read(path: Path, state: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, timestep and prediction; the rest of the file stays on disk."""
    try:
        with safe_open(path, framework="pt") as file:
            noisy, timesteps, predictions = (file.get_slice(part)[state] for part in _PARTS)
            return noisy, timesteps, predictions
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path} any more ({error}); go on with --resume, which makes it again") from error


@torch.no_grad()
def _compute(making: Making, batches: Sequence[Sequence[int]]) -> Iterator[dict[int, bytes]]:
    base, device = making.base, making.accelerator.device
    states = encode_visiting(base, [making.prompt], device, with_nothing=True)
    with quiet():
        making.denoiser.to(device)
    for together in batches:
        with making.accelerator.autocast():
            paths = _walk(making, together, states)
        yield {
            index: save(tensors, {"sha256": hash_tensors(*tensors.values())})
            for index, tensors in zip(together, paths, strict=True)
        }


def _given(making: Making) -> dict[str, Tensor]:
    """What the denoiser is told of a picture that is a square from the start, one row."""
    side, family = making.side, making.base.family
    shown = Shown(torch.zeros(_shape(making)), (side, side), (side, side))
    given = family.picture_conditions(shown, torch.Generator().manual_seed(0))
    return {name: tensor.unsqueeze(0) for name, tensor in given.items()}


def _shape(making: Making) -> tuple[int, int, int]:
    base = making.base
    side = making.side // base.reduction
    return base.channels, side, side


class _Way:
    """From noise to picture through the base's own noise levels: DDIM's (arXiv 2010.02502), or a flow's by Euler.

    Args:
        scheduler: of the base.
        steps: of the way.
    """

    def __init__(self, scheduler: NoiseScheduler, steps: int) -> None:
        self._stride = scheduler.config.num_train_timesteps // steps
        self._flow = scheduler if isinstance(scheduler, FlowMatching) else None
        if not isinstance(scheduler, FlowMatching):
            self._ddim = DDIMParallelScheduler.from_config(
                scheduler.config, clip_sample=False, thresholding=False, set_alpha_to_one=True
            )
            self._ddim.set_timesteps(steps)

    def told(self, levels: Tensor) -> Tensor:
        """What the denoiser is told of levels."""
        return self._flow.told(levels) if self._flow else levels

    def step(self, output: Tensor, levels: Tensor, latents: Tensor) -> Tensor:
        """Latents a stride nearer to the picture."""
        if self._flow is None:
            stepped: Tensor = self._ddim.batch_step_no_noise(output, levels, latents)
            return stepped
        told, below = self._flow.told, levels - self._stride
        nearer = torch.where(below < 0, 0.0, told(below.clamp_min(0)))
        return latents + self._flow.level_of(nearer - told(levels)) * output


def _walk(making: Making, indices: Sequence[int], states: PromptStates) -> list[dict[str, Tensor]]:
    """Paths from noise to picture.

    Each begins at another level close to the highest, so that together they pass every level.

    Args:
        making: what they depend on.
        indices: of the paths, B of them.
        states: of nothing and of the class prompt.

    Returns:
        For each path: noisy (S, C, h, w) and predictions (S, C, h, w) of the class prompt, float16; timesteps (S,).
    """
    base, options = making.base, making.options
    steps, device = options.num_inference_steps, states.device
    levels = base.noise_scheduler.config.num_train_timesteps
    way, stride, shape = _Way(base.noise_scheduler, steps), levels // steps, _shape(making)
    starts, kept, noisy = [], [], []
    for index in indices:
        draws = np.random.default_rng(address(_WALKING, making.seed, index))
        starts.append(levels - 1 - int(draws.integers(levels - stride * (steps - 1))))
        edges = [steps * k // options.states_per_path for k in range(options.states_per_path + 1)]
        kept.append({int(draws.integers(low, high)) for low, high in pairwise(edges)})
        noise = torch.Generator().manual_seed(torch_seed(address(_WALKING, making.seed, index)))
        noisy.append(torch.randn(shape, generator=noise))
    latents, rows = torch.stack(noisy).to(device), len(indices)
    prompts = states.rows([0] * rows + [1] * rows)
    given = {name: tensor.to(device).expand(2 * rows, *tensor.shape[1:]) for name, tensor in _given(making).items()}
    paths: list[list[tuple[Tensor, ...]]] = [[] for _ in indices]
    for step in range(steps):
        reached = torch.tensor(starts, device=device) - step * stride
        timesteps = way.told(reached)
        twice = (torch.cat([latents] * 2), torch.cat([timesteps] * 2))
        output = base.family.predict(base.denoiser, *twice, prompts, given)
        without, prediction = output.float().chunk(2)
        for row in (row for row in range(rows) if step in kept[row]):
            paths[row].append((latents[row].half().cpu(), timesteps[row].cpu(), prediction[row].half().cpu()))
        guided = without + options.guidance_scale * (prediction - without)
        latents = way.step(guided, reached, latents)
    return [
        {part: torch.stack(tensors) for part, tensors in zip(_PARTS, zip(*path, strict=True), strict=True)}
        for path in paths
    ]
