"""The verbs. Start reading here: `train` is the whole method from top to bottom."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from twostage.class_prior import find_class_pictures, prepare_class
from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.export.delta import unpack
from twostage.families import Base, load_base, load_part
from twostage.fork import Parent, find_parent
from twostage.gauge import Prediction
from twostage.machine import usual_device
from twostage.method.adapter import merge_adapter
from twostage.method.denoiser import adapted_parts, whole_parts
from twostage.method.sampling import assemble, check_steps, draw, read_untouched, reads_whole
from twostage.method.strength import move_toward
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
from twostage.subject.token_files import load_learned, rows_by_encoder
from twostage.subject.tokens import Rows

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


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
        base = load_base(recipe.base)
        if parent:
            parent.check_base(base)
        if session.accelerator.num_processes == 1:  # A rehearsal would have to be all processes', or none's.
            check_disk(recipe, base, folder.path)
        subject = prepare_subject(session, base, photos, class_images)
        session.begin(base, subject.photos, held_out, class_images, parent)
    with session.training():
        prior = prepare_class(session, base, class_images, (subject.examples, subject.class_prompts))
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
        display: where notes about the prompts are shown; the terminal when not given.

    Returns:
        `count` pictures for each prompt, prompt after prompt. The `info` of each says how it was drawn.

    Raises:
        UserError: `run` is no finished run, its base cannot be loaded or draws no picture in so many steps, or
            there is nothing to mix at that strength, or to be guided by is a class that has no noun.
    """
    folder, recipe = open_finished(run)
    refuse_guidance(class_guidance, away_from, recipe.class_nouns)
    own = recipe.sample
    phrase = subject_phrase(recipe.token, recipe.data)
    names = [token.placeholder for token, _ in recipe.every_subject()]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    filled = [text.replace("{}", phrase) for text in prompts for _ in range(count)]
    seeds = [seed + index for _ in prompts for index in range(count)]
    options = Sample(
        num_inference_steps=num_inference_steps,
        guidance_scale=own.guidance_scale if guidance_scale is None else guidance_scale,
        class_guidance=own.class_guidance if class_guidance is None else class_guidance,
        away_from=away_from or own.away_from,
    ).within(recipe.class_nouns, recipe.stage2 is not None)
    base = load_base(recipe.base)
    check_steps(base, num_inference_steps)
    pipeline = _load_pipeline(folder, recipe, base, strength)
    display = display or terminal_display()
    for text in dict.fromkeys(filled):
        shown = text if len(text) <= 60 else text[:57] + "..."
        if not any(name in text for name in names):
            display.say(f"note: {shown!r} has neither {{}} nor {' nor '.join(names)}: the subject is not asked for")
        if not reads_whole(pipeline, text):
            display.say(f"note: {shown!r} is longer than what the text encoder reads; its end is not read")
    asked = [(text, without_token(text, recipe.every_subject())) for text in filled]
    untouched = read_untouched(base, pipeline) if options.away_from == "base" and options.guidance_scale > 1 else None
    pictures = draw(pipeline, asked, seeds, options, recipe.data.resolution or base.resolution, untouched=untouched)
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


def load_pipeline(run: Path, *, strength: float = 1.0) -> DiffusionPipeline:
    """The stock pipeline of a finished run: its base, with what was tuned and the learned token, on the GPU if any.

    Args:
        run: the run folder, or a delta of it.
        strength: how far the base's weights go to the trained ones, 0..2: 0 not at all, 1 all the way, between and
            beyond in proportion (arXiv 2109.01903). An adapter is merged so; for lora, rslora, loha and lokr that is
            what PEFT calls their scale. The learned token is what it is at any strength.

    Raises:
        UserError: `run` is no finished run, its base cannot be loaded, `strength` is out of range, or only a token was
            trained.
    """
    folder, recipe = open_finished(run)
    return _load_pipeline(folder, recipe, load_base(recipe.base), strength)


def load_pipelines(run: Path, strengths: Sequence[float]) -> Iterator[DiffusionPipeline]:
    """What `load_pipeline` gives at each strength, one after the other.

    It is one pipeline, loaded once, whose tuned weights are set anew: use it before asking for the next.

    Raises:
        UserError: as `load_pipeline`.
    """
    folder, recipe = open_finished(run)
    base, pipeline = load_base(recipe.base), None
    for strength in strengths:
        if pipeline is None:
            pipeline = _load_pipeline(folder, recipe, base, strength)
        else:
            _check_strength(folder, recipe, strength)
            for name in tuned_parts(recipe, base):
                net = getattr(pipeline, name)
                move_toward(net, load_part(base.family, base.folder, name), 1.0)
                _tune(net, folder, recipe, base, name, strength)
        yield pipeline


def _load_pipeline(folder: RunFolder, recipe: Recipe, base: Base, strength: float) -> DiffusionPipeline:
    _check_strength(folder, recipe, strength)
    tuned = {}
    for name in tuned_parts(recipe, base):
        if strength == 1 and (folder.path / name).is_dir():
            tuned[name] = load_part(base.family, folder.path, name)  # Whole, it needs nothing of the base's.
            continue
        tuned[name] = _tune(base.component(name), folder, recipe, base, name, strength)
        base.release(name)  # It is the base's no more.
    pipeline = assemble(base, embedding=learned_tokens(folder, recipe, base) or None, **tuned)
    return pipeline.to(usual_device())


def _check_strength(folder: RunFolder, recipe: Recipe, strength: float) -> None:
    if not 0 <= strength <= 2:
        raise UserError(f"strength {strength:g} is not between 0, the base, and 2; 1 is as trained")
    if strength != 1 and not recipe.stage2:
        raise UserError(
            f"strength {strength:g}: the run in {folder.path} has learned a token and trained no weights that could be "
            "mixed with the base's; leave it out"
        )


def tuned_parts(recipe: Recipe, base: Base) -> tuple[str, ...]:
    """Components of which a run trains the weights, whole or by an adapter."""
    options, family = recipe.stage2, base.family
    return whole_parts(options, family) + adapted_parts(options, family) if options else ()


def _tune(net: Any, folder: RunFolder, recipe: Recipe, base: Base, name: str, strength: float) -> Any:
    """A component of the base, given the trained weights at some strength, in place."""
    assert recipe.stage2
    if name in adapted_parts(recipe.stage2, base.family):
        return merge_adapter(net, folder.path / "adapter" / name, strength)
    move_toward(net, load_part(base.family, folder.path, name), strength)
    return net


def learned_tokens(folder: RunFolder, recipe: Recipe, base: Base) -> dict[str, Rows]:
    """Rows of each token that a finished run learned, by the token's name, in the order of the subjects."""
    found = {}
    for token, _ in recipe.every_subject() if recipe.stage1 else []:
        file = folder.embedding_file(token.placeholder)
        found[token.placeholder] = rows_by_encoder(file, load_learned(file, token), base.family)
    return found


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
