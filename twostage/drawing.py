"""Pictures of finished runs. What reads prompts is gone before the U-Nets come, where it is larger than they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from twostage.display import Display
from twostage.families import Base, known_families
from twostage.family_parts import LowResolution, Text
from twostage.finished import find_larger, learned_tokens, load_tuned, open_base, placed, put_together, tune_text
from twostage.machine import usual_device
from twostage.method.denoiser import EncodedText, encode_prompts
from twostage.method.sampling import Encode, assemble, check_steps, draw, read_untouched, reads_whole, text_of
from twostage.prompt_states import PromptStates
from twostage.recipe import Recipe, Sample
from twostage.run_folder import RunFolder
from twostage.subject.tokens import add_learned, written_out

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# A run that enlarges pictures, or none, its recipe, and its base; see `find_larger`.
Larger = tuple[RunFolder | None, Recipe | None, Base]


def draw_finished(
    folder: RunFolder,
    recipe: Recipe,
    prompts: Sequence[tuple[str, str]],
    seeds: Sequence[int],
    options: Sample,
    strength: float,
    display: Display,
) -> list[Image.Image]:
    """Pictures of a finished run; large ones, where its recipe says what enlarges them.

    Args:
        folder, recipe: of the run.
        prompts, seeds, options: as in `method.sampling.draw`.
        strength: as in `finished.load_pipeline`.
        display: told what the user should know of the prompts.

    Raises:
        UserError: the base, or what comes before or behind it, cannot be loaded or drawn with.
    """
    base, encode = open_base(recipe), None
    larger = find_larger(recipe.super_resolution, base) if recipe.super_resolution else None
    for one in (base, *(larger[2:] if larger else ())):
        check_steps(one, options.num_inference_steps)
    _tell_of_size(recipe, base, display)
    if base.family.text_on_host or larger:
        encode = _encode_first(folder, recipe, base, prompts, strength, display)
        pipeline = put_together(folder, recipe, base, strength, reads=False)
    else:
        pipeline = put_together(folder, recipe, base, strength)
        _tell_of_prompts(recipe, base, text_of(pipeline), prompts, display)
    by_base = options.away_from == "base" and options.guidance_scale > 1
    untouched = read_untouched(base, pipeline) if by_base else None
    side = recipe.data.resolution or base.resolution
    if larger:
        first = LowResolution(lambda: pipeline, side, untouched=untouched)
        side, untouched = (larger[1] and larger[1].data.resolution) or larger[2].resolution, None
        return draw(_enlarging(larger, first), prompts, seeds, options, side, encode=encode)
    return draw(pipeline, prompts, seeds, options, side, encode=encode, untouched=untouched)


def _encode_first(
    folder: RunFolder,
    recipe: Recipe,
    base: Base,
    prompts: Sequence[tuple[str, str]],
    strength: float,
    display: Display,
) -> Encode:
    """What the denoiser is told of each prompt, by text encoders that are then forgotten."""
    tune_text(folder, recipe, base, strength)
    held: dict[str, Any] = {**base.text.encoders}
    held |= {part.tokenizer: base.component(part.tokenizer) for part in base.family.text.values()}
    add_learned(base.family, SimpleNamespace(**held), learned_tokens(folder, recipe, base))
    text = base.text
    _tell_of_prompts(recipe, base, text, prompts, display)
    asked = list(dict.fromkeys(["", *(one for both in prompts for one in both)]))
    device = torch.device(usual_device())
    states: dict[str, PromptStates] = {}
    for one in asked:  # Each by itself, so that its states are rounded as the stock pipeline's are.
        states |= encode_prompts(base, [one], partial(written_out, text), device)
    base.release_text()
    return EncodedText(states)


def _enlarging(larger: Larger, first: LowResolution) -> DiffusionPipeline:
    """The stock pipeline of what enlarges pictures, which needs nothing that reads prompts."""
    run, recipe, base = larger
    nets = load_tuned(run, recipe, base, 1.0) if run and recipe else {}
    pipeline = placed(base, assemble(base, **nets, **dict.fromkeys(base.family.readers)))
    first.pipeline.to("cpu")  # It comes for as long as it draws.
    pipeline.low_resolution = first
    return pipeline


def _tell_of_size(recipe: Recipe, base: Base, display: Display) -> None:
    enlarged = any(family.enlarges == base.family.pipeline for family in known_families().values())
    if enlarged and not recipe.super_resolution:
        display.say(
            f"note: {base.family.title} draws small pictures, of {recipe.data.resolution or base.resolution} pixels; "
            "--super-resolution takes the run or the folder of what enlarges them"
        )
    if base.family.enlarges and not recipe.low_resolution:
        display.say(
            f"note: {base.family.title} draws by itself, of noise: --low-resolution takes the run or the folder of "
            "what draws the small pictures that it enlarges"
        )


def _tell_of_prompts(
    recipe: Recipe, base: Base, text: Text, prompts: Sequence[tuple[str, str]], display: Display
) -> None:
    names = [token.placeholder for token, _ in recipe.every_subject()]
    for asked in dict.fromkeys(named for named, _ in prompts):
        shown = asked if len(asked) <= 60 else asked[:57] + "..."
        if not any(name in asked for name in names):
            display.say(f"note: {shown!r} has neither {{}} nor {' nor '.join(names)}: the subject is not asked for")
        if not reads_whole(base.family, text, asked):
            display.say(f"note: {shown!r} is longer than what the text encoder reads; its end is not read")
