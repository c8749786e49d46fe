"""The verbs. Start reading here: `train` is the whole method from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from twostage.display import Display, terminal_display
from twostage.errors import UserError
from twostage.families import Base, load_base, load_part
from twostage.method.denoiser import (
    DenoiserLearner,
    EncodedText,
    LiveText,
    encode_prompts,
    open_for_training,
    trains,
    whole_parts,
)
from twostage.method.embedding import EmbeddingLearner, write_rows
from twostage.method.examples import Examples, encode_photos
from twostage.method.loop import StageLoop
from twostage.method.loss import check_prediction_type
from twostage.method.sampling import assemble, check_steps, draw, reads_whole
from twostage.quiet import quiet
from twostage.recipe import Recipe, Sample, Stage1, Stage2
from twostage.run_folder import RunFolder
from twostage.session import DrawSamples, Session
from twostage.subject.captions import all_prompts, subject_phrase
from twostage.subject.photos import Photo, find_photos
from twostage.subject.tokens import (
    Placeholder,
    add_placeholder,
    check_prompts,
    drop_placeholder,
    embedding_file_name,
    load_embedding,
    save_embedding,
)

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class _Subject:
    """What a run teaches: photos, their encoded views, every prompt they can come with, and the token.

    `placeholder` is None where the recipe learns no token and uses a word that the vocabulary has.
    """

    photos: list[Photo]
    phrase: str
    prompts: list[str]
    placeholder: Placeholder | None
    examples: Examples

    def expand(self, prompt: str) -> str:
        return self.placeholder.expand(prompt) if self.placeholder else prompt


def train(recipe: Recipe, output: Path, *, resume: bool = False, display: Display | None = None) -> Path:
    """Teach a base model one subject, as the recipe says.

    Args:
        recipe: the strategy with all its options; `data.photos` must be set.
        output: the run folder to make, or to go on with.
        resume: go on from the newest checkpoint in `output`; the result is the one an unbroken run would have had.
        display: where progress is shown; the terminal when not given.

    Returns:
        The run folder.

    Raises:
        UserError: something is wrong with the recipe, photos, base or output; a new run has then written nothing.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; a checkpoint was saved and the display said how to go on.
    """
    session = Session(recipe, RunFolder(Path(output)), display or terminal_display())
    if not session.open(resume):
        return session.folder.path
    with session.phase("load"):
        photos = _find_photos(recipe)
        base = load_base(recipe.base)
        subject = _prepare_subject(session, base, photos)
    session.begin(base, subject.photos)
    with session.training():
        if recipe.stage1 and subject.placeholder:
            _learn_embedding(session, recipe.stage1, base, subject)
        if recipe.stage2:
            _learn_denoiser(session, recipe.stage2, base, subject)
    session.finish()
    return session.folder.path


def generate(
    run: Path,
    prompt: str | Sequence[str],
    *,
    count: int = 4,
    seed: int = 0,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    display: Display | None = None,
) -> list[Image.Image]:
    """Draw the subject of a finished run.

    Args:
        run: the run folder.
        prompt: one or several; `{}` in it stands for token and class.
        count: pictures a prompt.
        seed: picture i starts from the noise of seed + i, as stock diffusers draws it.
        num_inference_steps: denoising steps.
        guidance_scale: weight of classifier-free guidance; 1 is off.
        display: where notes about the prompts are shown; the terminal when not given.

    Returns:
        `count` pictures for each prompt, prompt after prompt.

    Raises:
        UserError: `run` is no finished run, its base cannot be loaded, or draws no picture in so many steps.
    """
    folder, recipe = _open_finished(run)
    phrase = subject_phrase(recipe.token, recipe.data.class_noun)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    filled = [text.replace("{}", phrase) for text in prompts for _ in range(count)]
    seeds = [seed + index for _ in prompts for index in range(count)]
    options = Sample(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    base = load_base(recipe.base)
    check_steps(base, num_inference_steps)
    pipeline = _load_pipeline(folder, recipe, base)
    display = display or terminal_display()
    for text in dict.fromkeys(filled):
        shown = text if len(text) <= 60 else text[:57] + "..."
        if recipe.token.placeholder not in text:
            display.say(
                f"note: {shown!r} has neither {{}} nor {recipe.token.placeholder}: the subject is not asked for"
            )
        if not reads_whole(pipeline, text):
            display.say(f"note: {shown!r} is longer than what the text encoder reads; its end is not read")
    return draw(pipeline, filled, seeds, options, recipe.data.resolution or base.resolution)


def load_pipeline(run: Path) -> StableDiffusionPipeline:
    """The stock pipeline of a finished run: its base, with the tuned U-Net and the learned token, on the GPU if any.

    Raises:
        UserError: `run` is no finished run, or its base cannot be loaded.
    """
    folder, recipe = _open_finished(run)
    return _load_pipeline(folder, recipe, load_base(recipe.base))


def _load_pipeline(folder: RunFolder, recipe: Recipe, base: Base) -> StableDiffusionPipeline:
    parts = whole_parts(recipe.stage2) if recipe.stage2 else ()
    tuned = {name: load_part(base.family, folder.path, name) for name in parts}
    embedding = None
    if recipe.stage1:
        name, rows = load_embedding(folder.path / "embedding" / embedding_file_name(recipe.token.placeholder))
        embedding = {name: rows}
    pipeline = assemble(base, embedding=embedding, **tuned)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _open_finished(run: Path) -> tuple[RunFolder, Recipe]:
    folder = RunFolder(Path(run))
    recipe = folder.open()
    if not folder.finished:
        raise UserError(f"the run in {run} is not finished; go on with: twostage train {run} --resume")
    return folder, recipe


def _find_photos(recipe: Recipe) -> list[Photo]:
    """The photos, before a base is loaded or even downloaded for them."""
    if recipe.stage1 is None and recipe.stage2 is None:
        raise UserError(f"recipe {recipe.name!r} has neither [stage1] nor [stage2]: nothing would be trained")
    if recipe.data.photos is None:
        raise UserError("data.photos is not set; give the folder with the photos")
    return find_photos(recipe.data.photos)


def _prepare_subject(session: Session, base: Base, photos: list[Photo]) -> _Subject:
    """Photos encoded, prompts and token checked; the VAE has done its work and leaves memory."""
    recipe = session.recipe
    check_prediction_type(base.noise_scheduler)
    if recipe.sample.per_prompt and recipe.sample.prompts:
        check_steps(base, recipe.sample.num_inference_steps)
    phrase = subject_phrase(recipe.token, recipe.data.class_noun)
    prompts = all_prompts(photos, recipe.data, phrase)
    placeholder = None
    if recipe.stage1:
        placeholder = add_placeholder(base.tokenizer, base.text_encoder, recipe.token)
        check_prompts(base.tokenizer, placeholder, prompts)
        for note in placeholder.notes:
            session.display.say(f"note: {note}")
    with session.phase("encode_photos"):
        examples = encode_photos(base, photos, recipe.data, phrase, recipe.seed, session.device)
    base.release("vae")
    return _Subject(photos, phrase, prompts, placeholder, examples)


def _learn_embedding(session: Session, options: Stage1, base: Base, subject: _Subject) -> None:
    """Stage 1, and its result: the learned rows in the text encoder and in the embedding file."""
    placeholder = subject.placeholder
    assert placeholder is not None
    file = session.folder.path / "embedding" / embedding_file_name(placeholder.name)
    if session.reached_stage > 1:
        write_rows(base.text_encoder, placeholder.token_ids, load_embedding(file)[1])
        return
    base.text_encoder.to(session.device)
    with quiet():
        base.unet.to(session.device, session.frozen_dtype)
    if options.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    learner = EmbeddingLearner(base, placeholder)
    after_step = learner.pull_norm if options.norm_control == "pull" else None
    loop = StageLoop(1, learner, subject.examples, options, session.accelerator, after_step)
    session.run_stage(loop, options.steps, _sampler(session, base, subject, learner.rows))
    rows = learner.rows.detach()
    write_rows(base.text_encoder, placeholder.token_ids, rows)
    if session.is_main:
        save_embedding(file, placeholder, rows)
    # Stage 2 builds on the original, not on what stage 1 may have rounded to half precision.
    base.release("unet")


def _learn_denoiser(session: Session, options: Stage2, base: Base, subject: _Subject) -> None:
    """Stage 2, and its result: what it trained, in diffusers' and transformers' layout."""
    rows, text = None, _text(session, options, base, subject)
    if subject.placeholder:
        rows = base.text_encoder.get_input_embeddings().weight[subject.placeholder.token_ids].cpu()
    live = {"text_encoder": base.text_encoder, "tokenizer": base.tokenizer} if trains(text) else {}
    if not live:
        base.release("text_encoder", "tokenizer")
    open_for_training(base, "unet", options)
    learner = DenoiserLearner(base, text)
    rates = {"text.": options.text_encoder_learning_rate} if options.text_encoder_learning_rate else None
    loop = StageLoop(2, learner, subject.examples, options, session.accelerator, rates=rates)
    session.run_stage(loop, options.steps, _sampler(session, base, subject, rows, **live))
    if session.is_main:
        with session.phase("save"), quiet():
            if subject.placeholder and live:
                drop_placeholder(base.text_encoder, subject.placeholder)
            for name in whole_parts(options):
                session.folder.save_model(name, getattr(base, name).save_pretrained)


def _text(session: Session, options: Stage2, base: Base, subject: _Subject) -> nn.Module:
    """How stage 2 comes by the states of its prompts: from a text encoder that learns, or encoded here, once."""
    if trains(open_for_training(base, "text_encoder", options)):
        return LiveText(base, subject.expand)
    with session.phase("encode_prompts"):
        return EncodedText(encode_prompts(base, subject.prompts, subject.expand, session.device))


def _sampler(session: Session, base: Base, subject: _Subject, rows: Tensor | None, **live: Any) -> DrawSamples:
    """Draws the recipe's sample pictures with the U-Net and the rows as they are when it is called.

    What training has dropped is read from disk for as long as the drawing takes; a text encoder that trains is given,
    with its tokenizer, and knows the rows.
    """
    options = session.recipe.sample
    prompts = [text.replace("{}", subject.phrase) for text in options.prompts for _ in range(options.per_prompt)]
    seeds = [session.recipe.seed + index for _ in options.prompts for index in range(options.per_prompt)]
    side = session.recipe.data.resolution or base.resolution

    def draw_samples() -> list[Image.Image]:
        embedding = None
        if rows is not None and subject.placeholder and not live:
            embedding = {subject.placeholder.name: rows.detach().cpu()}
        pipeline = assemble(base, embedding=embedding, unet=base.unet, **live)
        return draw(pipeline.to(session.device), prompts, seeds, options, side)

    return draw_samples
