"""Ways of drawing a result that were tried, as loops over the base's own scheduler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.trials.measuring import DRAWING
from twostage import run
from twostage.families import load_base
from twostage.method.sampling import draw
from twostage.quiet import quiet

_TOGETHER = 8
# U-Net, latents, timestep, states by name ("token", "class", "empty"), share of the way done 0..1 -> guided prediction.
Predict = Callable[[Any, Tensor, Tensor, dict[str, Tensor], float], Tensor]


def at_strength(strength: float) -> Callable[..., list[Image.Image]]:
    """Weights between base and result (WiSE-FT, arXiv 2109.01903)."""

    def drawing(folder: Path, prompts: Sequence[str], plain: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        side = load_base("pocket").resolution
        return draw(run.load_pipeline(folder, strength=strength), prompts, seeds, DRAWING, side)

    return drawing


def guided(**how: Any) -> Callable[..., list[Image.Image]]:
    """As `twostage generate` draws with these options."""

    def drawing(folder: Path, prompts: Sequence[str], plain: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        base, asked = load_base("pocket"), list(zip(prompts, plain, strict=True))
        options = DRAWING.model_copy(update=how)
        return draw(run.load_pipeline(folder), asked, seeds, options, base.resolution, untouched=base.denoiser)

    return drawing


def _loop(prepare: Callable[[Any], Predict]) -> Callable[..., list[Image.Image]]:
    @torch.no_grad()
    def drawing(folder: Path, prompts: Sequence[str], plain: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        pipeline, base = run.load_pipeline(folder), load_base("pocket")
        predict = prepare(pipeline)
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), _TOGETHER):
            batch = slice(start, start + _TOGETHER)
            pictures += _draw(pipeline, predict, prompts[batch], plain[batch], seeds[batch], base.resolution)
        return pictures

    return drawing


def _draw(
    pipeline: Any, predict: Predict, prompts: Sequence[str], plain: Sequence[str], seeds: Sequence[int], side: int
) -> list[Image.Image]:
    with quiet():
        asked, empty = pipeline.encode_prompt(list(prompts), "cpu", 1, True)
        classes, _ = pipeline.encode_prompt(list(plain), "cpu", 1, True)
    states = {"token": asked, "class": classes, "empty": empty}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    spans = side // pipeline.vae_scale_factor
    shape = (1, pipeline.unet.config.in_channels, spans, spans)
    latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(DRAWING.num_inference_steps)
    latents = latents * scheduler.init_noise_sigma
    for place, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        guided = predict(pipeline.unet, scaled, timestep, states, place / len(scheduler.timesteps))
        latents = scheduler.step(guided, timestep, latents, generator=generators, return_dict=False)[0]
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    drawn: list[Image.Image] = pipeline.image_processor.postprocess(decoded, do_denormalize=[True] * len(decoded))
    return drawn


def _ask(unet: Any, latents: Tensor, timestep: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
    many = torch.cat([latents] * len(states))
    answer: Tensor = unet(many, timestep, encoder_hidden_states=torch.cat(states), return_dict=False)[0]
    return answer.chunk(len(states))


def class_first(share: float) -> Callable[..., list[Image.Image]]:
    """The class alone for the first steps, then the token (arXiv 2502.05895: the first 7 of 50)."""

    def prepare(pipeline: Any) -> Predict:
        def predict(unet: Any, latents: Tensor, timestep: Tensor, states: dict[str, Tensor], done: float) -> Tensor:
            told = states["class"] if done < share else states["token"]
            without, asked = _ask(unet, latents, timestep, states["empty"], told)
            return without + DRAWING.guidance_scale * (asked - without)

        return predict

    return _loop(prepare)


def mixed(token: float = 2.5, plain: float = 2.5, asked_base: bool = False) -> Callable[..., list[Image.Image]]:
    """Guidance towards token and class together (arXiv 2502.05895: 3.5 each); the base may answer for the class."""

    def prepare(pipeline: Any) -> Predict:
        base = load_base("pocket").denoiser if asked_base else None

        def predict(unet: Any, latents: Tensor, timestep: Tensor, states: dict[str, Tensor], done: float) -> Tensor:
            without, asked, kind = _ask(unet, latents, timestep, states["empty"], states["token"], states["class"])
            if base is not None:
                kind = _of_subject(states, _ask(base, latents, timestep, states["class"])[0], kind)
            return without + token * (asked - without) + plain * (kind - without)

        return predict

    return _loop(prepare)


def personalization(between: float = 0.0, token: float = 5.0, plain: float = 0.0) -> Callable[..., list[Image.Image]]:
    """Away from what weights nearer to the base's draw of nothing (arXiv 2508.00319), where the subject is asked."""

    def prepare(pipeline: Any) -> Predict:
        weak, own = copy.deepcopy(load_base("pocket").denoiser), pipeline.unet.state_dict()
        weak.load_state_dict({name: value.lerp(own[name], between) for name, value in weak.state_dict().items()})

        def predict(unet: Any, latents: Tensor, timestep: Tensor, states: dict[str, Tensor], done: float) -> Tensor:
            without, asked, kind = _ask(unet, latents, timestep, states["empty"], states["token"], states["class"])
            without = _of_subject(states, _ask(weak, latents, timestep, states["empty"])[0], without)
            return without + token * (asked - without) + plain * (kind - without)

        return predict

    return _loop(prepare)


def _of_subject(states: dict[str, Tensor], where_asked_for: Tensor, elsewhere: Tensor) -> Tensor:
    """Of two predictions, the first for prompts with the token, the second for those without."""
    named = (states["token"] != states["class"]).flatten(1).any(dim=1)
    return torch.where(named[:, None, None, None], where_asked_for, elsewhere)
