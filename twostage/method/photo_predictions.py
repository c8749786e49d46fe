"""Prior samples from the subject's own photos: what the untouched base says of them when it is asked for the class.

Stage 2 moves the class where it is trained, at the noised photos: a bare "backpack" gives the same pixels too. So that
is where the tuned denoiser is held to the base, with the class in the token's place. Functional regularization of this
kind is drift correction (arXiv 2410.14159), which asks a frozen copy beside the one that learns; here the base is asked
once, before training, so no second U-Net is in memory, and nothing is drawn or kept on disk: a run that goes on asks it
anew. Photos are noised without the offset that a stage may add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from twostage.method.class_samples import ClassSamples, Making, in_batches
from twostage.method.examples import PRIOR, Examples, in_turn
from twostage.method.loss import Question
from twostage.method.precision import predict_as_kept
from twostage.method.predictions import PredictedBatch
from twostage.method.sampling import encode_visiting
from twostage.prompt_states import joined
from twostage.quiet import quiet

# Beside the streams of other draws of prior samples.
_TURNS = PRIOR + 10
# Of the addresses that photos are noised by.
_STAGE = 2


def prepare_photo_predictions(making: Making, examples: Examples, prompts: Sequence[str]) -> ClassSamples:
    """The base's predictions for noised photos; computed anew in each run, one pass of the U-Net for each.

    Sample i depends on the seed and i (but for the rounding of larger batches), so a larger count adds samples.

    Args:
        making: what they depend on; `num_class_images` of them are made.
        examples: of the subject's photos.
        prompts: for each photo, what its class is called in a prompt.
    """
    told = list(dict.fromkeys(prompts))
    # Draws of their own, else the first steps would hold to the very samples they learn.
    noised = replace(examples, choose_prompt=lambda photo, rng: prompts[photo], stream=PRIOR)
    shapes = _ask(making, noised, told)
    places, fallback = {shape: place for place, shape in enumerate(shapes)}, next(iter(shapes.values()))

    def batch(stage: int, step: int, rows: range, rows_per_step: int) -> PredictedBatch:
        # Of the shape of the subject's samples, with which they then share a pass; too few may lack it.
        shape, before = examples.shown(stage, step)
        samples, group = shapes.get(shape, fallback), places.get(shape, len(shapes))
        turns = [in_turn(_TURNS, making.seed, stage, before * rows_per_step + row, len(samples), group) for row in rows]
        asked = [samples[turn][0] for turn in turns]
        noisy, timesteps, target = (torch.cat(parts) for parts in zip(*map(_parts, asked), strict=True))
        given = {name: torch.cat([one.given[name] for one in asked]) for name in asked[0].given}
        return PredictedBatch(Question(noisy, timesteps, target, None, given), [samples[turn][1] for turn in turns])

    return ClassSamples(told, batch)


def _parts(asked: Question) -> tuple[Tensor, Tensor, Tensor]:
    return asked.noisy, asked.timesteps, asked.target


@torch.no_grad()
def _ask(making: Making, noised: Examples, prompts: Sequence[str]) -> dict[torch.Size, list[tuple[Question, str]]]:
    """Samples of each shape that latents come in: a noised photo, the base's prediction as its target, the prompt."""
    base, device, count = making.base, making.accelerator.device, making.options.num_class_images
    encoded = encode_visiting(base, list(prompts), device)
    states = dict(zip(prompts, encoded.split(), strict=True))
    with quiet():
        denoiser = making.denoiser.to(device)
    shapes: dict[torch.Size, list[tuple[Question, str]]] = {}
    with making.display.progress("class predictions", count) as update:
        for indices in in_batches(range(count), making.options.sample_batch_size):
            drawn = [noised.batch(_STAGE, index, range(1), 1) for index in indices]
            for shape in dict.fromkeys(batch.latents.shape[1:] for batch in drawn):
                alike = [batch for batch in drawn if batch.latents.shape[1:] == shape]
                asked = [replace(batch, weight=None).question(base.noise_scheduler) for batch in alike]
                noisy = torch.cat([one.noisy for one in asked]).to(device)
                timesteps = torch.cat([one.timesteps for one in asked]).to(device)
                given = {name: torch.cat([one.given[name] for one in asked]).to(device) for name in asked[0].given}
                told = joined(states[batch.prompts[0]] for batch in alike)
                with making.accelerator.autocast():
                    answers = predict_as_kept(base.family, denoiser, noisy, timesteps, given, told).float().cpu()
                for batch, one, answer in zip(alike, asked, answers.split(1), strict=True):
                    shapes.setdefault(shape, []).append((replace(one, target=answer), batch.prompts[0]))
            update(indices[-1] + 1)
    return shapes
