"""The verbs. Start reading here: `train` is the whole method from top to bottom."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.export.delta import unpack
from twostage.families import Base, load_base, load_part
from twostage.fork import find_parent
from twostage.method.adapter import merge_adapter
from twostage.method.denoiser import adapted_parts, whole_parts
from twostage.method.sampling import assemble, check_steps, draw, reads_whole
from twostage.model_card import base_facts, write_card
from twostage.recipe import Recipe, Sample
from twostage.run_folder import RunFolder
from twostage.session import Session
from twostage.stages import (
    find_class_pictures,
    find_subject_photos,
    learn_denoiser,
    learn_embedding,
    prepare_class,
    prepare_subject,
)
from twostage.subject.captions import subject_phrase
from twostage.subject.held_out import find_held_out, leaks
from twostage.subject.tokens import load_embedding

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def train(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    token_from: Path | None = None,
    display: Display | None = None,
) -> Path:
    """Teach a base model one subject, as the recipe says.

    Args:
        recipe: the strategy with all its options; `data.photos` must be set.
        output: the run folder to make, or to go on with.
        resume: go on from the newest checkpoint in `output`; the result is the one an unbroken run would have had.
        token_from: a run whose stage 1 is done; its token is taken, and stage 1 left out. Stage 2 begins at the base,
            whatever that run made of it, and does what it does in an unbroken run of both stages. For a new run only:
            it keeps a copy of the token.
        display: where progress is shown; the terminal when not given.

    Returns:
        The run folder.

    Raises:
        UserError: something is wrong with the recipe, photos, base or output; a new run has then written nothing.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint was saved and the display said how to go on.
    """
    parent = None
    if token_from is not None:
        if resume:
            raise UserError(f"--from is for a new run, and {output} has its token already; leave it out")
        parent = find_parent(token_from)
        recipe = parent.fork(recipe)
    session = Session(recipe, RunFolder(Path(output)), display or terminal_display())
    if not session.open(resume):
        return session.folder.path
    with session.phase("load"):
        held_out = find_held_out(recipe.data)
        photos = find_subject_photos(recipe, held_out)
        class_images = find_class_pictures(recipe)
        for note in leaks(held_out, [photo for own in photos for photo in own]):
            session.display.say(f"note: {note}")
        base = load_base(recipe.base)
        if parent:
            parent.check_base(base)
        subject = prepare_subject(session, base, photos, class_images)
    session.begin(base, subject.photos, held_out, class_images, parent)
    prior = prepare_class(session, base, class_images)
    with session.training():
        if recipe.stage1 and subject.placeholders:
            learn_embedding(session, recipe.stage1, base, subject)
        if recipe.stage2:
            learn_denoiser(session, recipe.stage2, base, subject, prior)
    session.finish(base_card=base_facts(base))
    if session.is_main:
        write_card(session.folder, recipe)
    return session.folder.path


def generate(
    run: Path,
    prompt: str | Sequence[str],
    *,
    count: int = 4,
    seed: int = 0,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    adapter_scale: float = 1.0,
    display: Display | None = None,
) -> list[Image.Image]:
    """Draw the subject of a finished run.

    Args:
        run: the run folder, or a delta of it.
        prompt: one or several; `{}` in it stands for token and class, the first subject's where there are several.
        count: pictures a prompt.
        seed: picture i starts from the noise of seed + i, as stock diffusers draws it.
        num_inference_steps: denoising steps.
        guidance_scale: weight of classifier-free guidance; 1 is off.
        adapter_scale: weight of a trained adapter; see `load_pipeline`.
        display: where notes about the prompts are shown; the terminal when not given.

    Returns:
        `count` pictures for each prompt, prompt after prompt.

    Raises:
        UserError: `run` is no finished run, its base cannot be loaded or draws no picture in so many steps, or there is
            no adapter to scale.
    """
    folder, recipe = open_finished(run)
    phrase = subject_phrase(recipe.token, recipe.data)
    names = [token.placeholder for token, _ in recipe.every_subject()]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    filled = [text.replace("{}", phrase) for text in prompts for _ in range(count)]
    seeds = [seed + index for _ in prompts for index in range(count)]
    options = Sample(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    base = load_base(recipe.base)
    check_steps(base, num_inference_steps)
    pipeline = _load_pipeline(folder, recipe, base, adapter_scale)
    display = display or terminal_display()
    for text in dict.fromkeys(filled):
        shown = text if len(text) <= 60 else text[:57] + "..."
        if not any(name in text for name in names):
            display.say(f"note: {shown!r} has neither {{}} nor {' nor '.join(names)}: the subject is not asked for")
        if not reads_whole(pipeline, text):
            display.say(f"note: {shown!r} is longer than what the text encoder reads; its end is not read")
    return draw(pipeline, filled, seeds, options, recipe.data.resolution or base.resolution)


def load_pipeline(run: Path, *, adapter_scale: float = 1.0) -> StableDiffusionPipeline:
    """The stock pipeline of a finished run: its base, with what was tuned and the learned token, on the GPU if any.

    Args:
        run: the run folder, or a delta of it.
        adapter_scale: how far a trained adapter moves the base's weights, into which it is merged: 0 not at all, 1 as
            trained, between and beyond in proportion. For lora, rslora, loha and lokr that is what PEFT calls their
            scale; dora, oft and boft, which have none, are interpolated.

    Raises:
        UserError: `run` is no finished run, its base cannot be loaded, or there is no adapter to scale.
    """
    folder, recipe = open_finished(run)
    return _load_pipeline(folder, recipe, load_base(recipe.base), adapter_scale)


def _load_pipeline(folder: RunFolder, recipe: Recipe, base: Base, adapter_scale: float) -> StableDiffusionPipeline:
    whole = whole_parts(recipe.stage2) if recipe.stage2 else ()
    adapted = adapted_parts(recipe.stage2) if recipe.stage2 else ()
    if adapter_scale != 1 and not adapted:
        raise UserError(
            f"adapter_scale {adapter_scale:g}: the run in {folder.path} has trained no adapter; leave it out"
        )
    tuned = {name: load_part(base.family, folder.path, name) for name in whole}
    for name in adapted:
        tuned[name] = merge_adapter(getattr(base, name), folder.path / "adapter" / name, adapter_scale)
        base.release(name)  # It is the base's no more.
    pipeline = assemble(base, embedding=learned_tokens(folder, recipe) or None, **tuned)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def learned_tokens(folder: RunFolder, recipe: Recipe) -> dict[str, Tensor]:
    """Rows of each token that a finished run learned by name, (num_vectors, D) each, in the order of its subjects."""
    learned = recipe.every_subject() if recipe.stage1 else []
    return dict(load_embedding(folder.embedding_file(token.placeholder)) for token, _ in learned)


def open_finished(run: Path) -> tuple[RunFolder, Recipe]:
    """The folder and the recipe of a finished run that is given as its folder, or as a delta of it, which is unpacked.

    Raises:
        UserError: it is none, or not finished; or a delta of another base.
    """
    folder = RunFolder(unpack(Path(run)) if os.path.isfile(run) else Path(run))
    recipe = folder.open()
    if not folder.finished:
        raise UserError(f"the run in {run} is not finished; go on with: twostage train {run} --resume")
    return folder, recipe
