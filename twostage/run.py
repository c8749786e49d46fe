"""The verbs. Start reading here: `train` is the whole method from top to bottom."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from twostage.class_prior import find_class_pictures, prepare_class
from twostage.display import Display, terminal_display
from twostage.drawing import draw_finished
from twostage.errors import UserError
from twostage.finished import (
    check_cascade,
    learned_tokens,
    load_pipeline,
    load_pipelines,
    low_resolution_of,
    open_base,
    open_finished,
    tuned_parts,
)
from twostage.fork import Parent, find_parent
from twostage.gauge import Prediction
from twostage.model_card import base_facts, write_card
from twostage.planning.disk import check_disk
from twostage.recipe import Recipe, Sample
from twostage.recipe_evaluation import refuse_guidance
from twostage.run_folder import RunFolder
from twostage.session import Session
from twostage.stages import (
    find_subject_photos,
    learn_denoiser,
    learn_embedding,
    prepare_subject,
)
from twostage.subject.captions import subject_phrase, without_token
from twostage.subject.held_out import find_held_out, leaks

__all__ = [
    "generate",
    "learned_tokens",
    "load_pipeline",
    "load_pipelines",
    "open_finished",
    "train",
    "tuned_parts",
]


def train(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    token_from: Path | None = None,
    prediction: Prediction | None = None,
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
        prediction: of what the run takes, told beside what is measured; see `fitting.train`, which makes it fit.
        display: where progress is shown; the terminal when not given.

    Returns:
        The run folder.

    Raises:
        UserError: something is wrong with the recipe, photos, base or output; a new run has then written nothing.
        OutOfMemory: there is too little; what was done is saved.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; what was done is saved, and the display said how to go on.
    """
    parent, folder = None, RunFolder(Path(output))
    if token_from is not None:
        if resume:
            raise UserError(f"--from is for a new run, and {output} has its token already; leave it out")
        parent = find_parent(token_from)
        recipe = parent.fork(recipe)
    if resume:
        recipe = folder.fitted(recipe)
    try:
        return _train(recipe, folder, parent, resume, display or terminal_display(), prediction)
    finally:
        folder.let_go()


def _train(
    recipe: Recipe,
    folder: RunFolder,
    parent: Parent | None,
    resume: bool,
    display: Display,
    prediction: Prediction | None,
) -> Path:
    session = Session(recipe, folder, display, prediction)
    if not session.open(resume):
        return folder.path
    with session.phase("load"):
        held_out = find_held_out(recipe.data)
        photos = find_subject_photos(recipe, held_out)
        class_images = find_class_pictures(recipe)
        for note in leaks(held_out, [photo for own in photos for photo in own]):
            session.display.say(f"note: {note}")
        session.prepare_selection(photos[0], held_out)
        base = open_base(recipe, untouched=True)
        if parent:
            parent.check_base(base)
        for note in check_cascade(recipe, base):
            session.display.say(f"note: {note}")
        if session.accelerator.num_processes == 1:  # A rehearsal would have to be all processes', or none's.
            check_disk(recipe, base, folder.path)
        subject = prepare_subject(session, base, photos, class_images)
        session.begin(base, subject.photos, held_out, class_images, parent)
    with session.training():
        prior = prepare_class(session, base, class_images, (subject.examples, subject.class_prompts))
        base.low_resolution = low_resolution_of(recipe, base)  # Tuned: samples show the subject, as a class must not.
        if recipe.stage1 and subject.placeholders:
            learn_embedding(session, recipe.stage1, base, subject)
            gc.collect()  # accelerate's autocast ties the learner into a cycle, and it holds a U-Net and text encoder.
        if recipe.stage2:
            learn_denoiser(session, recipe.stage2, base, subject, prior)
    session.finish(partial(write_card, folder, recipe), base_card=base_facts(base))
    return folder.path


def generate(  # noqa: PLR0913  A keyword for each option of the command.
    run: Path,
    prompt: str | Sequence[str],
    *,
    count: int = 4,
    seed: int = 0,
    num_inference_steps: int = 25,
    guidance_scale: float | None = None,
    class_guidance: float | None = None,
    away_from: Literal["own", "base"] | None = None,
    strength: float = 1.0,
    super_resolution: str | Path | None = None,
    low_resolution: str | Path | None = None,
    display: Display | None = None,
) -> list[Image.Image]:
    """Draw the subject of a finished run.

    Args:
        run: the run folder, or a delta of it.
        prompt: one or several; `{}` in it stands for token and class, the first subject's where there are several.
        count: pictures a prompt.
        seed: picture i starts from the noise of seed + i, as stock diffusers draws it.
        num_inference_steps: denoising steps.
        guidance_scale: weight of classifier-free guidance; 1 is off. As the recipe says for its samples when not given.
        class_guidance: share of it that goes towards the class alone, without the token, 0..1; as the recipe says when
            not given. See `method.guidance` for this and the next.
        away_from: whether it steers away from what the trained U-Net draws of nothing, "own", or from what the "base"
            does; as the recipe says when not given.
        strength: how far the base's weights go to the trained ones; see `load_pipeline`.
        super_resolution: what enlarges the pictures, where the base draws small ones: a folder, a hub id or a run; as
            the recipe says when not given. It is asked with the same prompts and seeds.
        low_resolution: what draws small pictures, where the base enlarges them; likewise.
        display: where notes about the prompts are shown; the terminal when not given.

    Returns:
        `count` pictures for each prompt, prompt after prompt. The `info` of each says how it was drawn.

    Raises:
        UserError: `run` is no finished run, its base cannot be loaded or draws no picture in so many steps, or
            there is nothing to mix at that strength, or to be guided by is a class that has no noun; or what draws or
            enlarges the pictures does not go with the base.
    """
    folder, recipe = open_finished(run)
    given = {"super_resolution": super_resolution, "low_resolution": low_resolution}
    recipe = recipe.model_copy(update={name: str(value) for name, value in given.items() if value is not None})
    refuse_guidance(class_guidance, away_from, recipe.class_nouns)
    own = recipe.sample
    phrase = subject_phrase(recipe.token, recipe.data)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    filled = [text.replace("{}", phrase) for text in prompts for _ in range(count)]
    seeds = [seed + index for _ in prompts for index in range(count)]
    options = Sample(
        num_inference_steps=num_inference_steps,
        guidance_scale=own.guidance_scale if guidance_scale is None else guidance_scale,
        class_guidance=own.class_guidance if class_guidance is None else class_guidance,
        away_from=away_from or own.away_from,
    ).within(recipe.class_nouns, recipe.stage2 is not None)
    asked = [(text, without_token(text, recipe.every_subject())) for text in filled]
    pictures = draw_finished(folder, recipe, asked, seeds, options, strength, display or terminal_display())
    how = {
        "steps": num_inference_steps,
        "guidance": options.guidance_scale,
        "class guidance": options.class_guidance,
        "away from": options.away_from,
        "strength": strength,
    }
    for picture in pictures:
        picture.info.update({name: str(value) for name, value in how.items()})
    return pictures
