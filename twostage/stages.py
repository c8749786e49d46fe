"""What a run consists of: the subject prepared, stage 1, stage 2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor, nn

from twostage.errors import UserError
from twostage.families import Base
from twostage.method.adapter import adapter_config, save_adapter, target_modules
from twostage.method.class_samples import ClassSamples, Making
from twostage.method.denoiser import (
    DenoiserLearner,
    EncodedText,
    LiveText,
    adapted_parts,
    encode_prompts,
    open_for_training,
    trains,
    whole_parts,
)
from twostage.method.embedding import EmbeddingLearner, write_rows
from twostage.method.examples import Examples, Source, encode_photos
from twostage.method.loop import StageLoop
from twostage.method.loss import check_prediction_type
from twostage.method.noise import OffsetNoise
from twostage.method.prior import Preserving, check_prior, class_prompt, find_class_images, prepare_prior
from twostage.method.sampling import assemble, check_steps, draw
from twostage.method.selfcheck import check_token
from twostage.quiet import quiet
from twostage.recipe import Recipe, Stage, Stage1, Stage2
from twostage.session import DrawSamples, Session
from twostage.subject.captions import all_prompts, subject_phrase
from twostage.subject.photos import Photo, find_photos
from twostage.subject.tokens import (
    Placeholder,
    add_placeholder,
    check_prompts,
    check_word,
    drop_placeholder,
    load_embedding,
    save_embedding,
)


@dataclass(frozen=True)
class Subject:
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


def find_subject_photos(recipe: Recipe) -> list[Photo]:
    """The photos, before a base is loaded or even downloaded for them."""
    if recipe.stage1 is None and recipe.stage2 is None:
        raise UserError(f"recipe {recipe.name!r} has neither [stage1] nor [stage2]: nothing would be trained")
    if recipe.data.photos is None:
        raise UserError("data.photos is not set; give the folder with the photos")
    return find_photos(recipe.data.photos, recipe.data.num_photos)


def find_class_pictures(recipe: Recipe) -> list[Photo]:
    """The user's own class images, where the recipe has use for some; before a base is loaded, as above."""
    if not recipe.prior.wanted:
        return []
    class_prompt(recipe.prior, recipe.data.class_noun)
    return find_class_images(recipe.prior)


def prepare_subject(session: Session, base: Base, photos: list[Photo], class_images: list[Photo]) -> Subject:
    """Photos encoded, prompts and token checked; the VAE has done its work and leaves memory."""
    recipe = session.recipe
    check_prediction_type(base.noise_scheduler)
    if recipe.sample.per_prompt and recipe.sample.prompts:
        check_steps(base, recipe.sample.num_inference_steps)
    for name in adapted_parts(recipe.stage2) if recipe.stage2 else ():
        adapter_config(base.outline(name), recipe.adapter, target_modules(name, recipe.adapter))
    phrase = subject_phrase(recipe.token, recipe.data)
    prompts = all_prompts(photos, recipe.data, phrase)
    naming = [prompt for prompt in prompts if prompt]  # The empty one of caption dropout names no token.
    placeholder = None
    if recipe.stage1:
        placeholder = add_placeholder(base.tokenizer, base.text_encoder, recipe.token)
        check_prompts(base.tokenizer, placeholder, naming)
        notes, ids = placeholder.notes, placeholder.token_ids
    else:
        notes = check_word(base.tokenizer, recipe.token.placeholder, naming)
        ids = base.tokenizer(recipe.token.placeholder, add_special_tokens=False).input_ids
    spelled = [placeholder.expand(prompt) if placeholder else prompt for prompt in naming]
    session.checks["token"] = check_token(base.tokenizer, ids, spelled)
    if recipe.prior.wanted:
        prompt = class_prompt(recipe.prior, recipe.data.class_noun)
        check_prior(recipe.prior, prompt, class_images, base, recipe.token.placeholder)
    for note in notes:
        session.display.say(f"note: {note}")
    with session.phase("encode_photos"):
        examples = encode_photos(base, photos, recipe.data, phrase, recipe.seed, session.device)
    base.release("vae")
    return Subject(photos, phrase, prompts, placeholder, examples)


def prepare_class(session: Session, base: Base, class_images: list[Photo]) -> ClassSamples | None:
    """What stage 2 holds to. Outside of training: Ctrl-C ends it at once, and the cache keeps what is done."""
    recipe = session.recipe
    if not recipe.prior.wanted:
        return None
    prompt = class_prompt(recipe.prior, recipe.data.class_noun)
    with session.phase("prior"):
        return prepare_prior(
            Making(recipe.prior, prompt, base, recipe.data, recipe.seed, session.accelerator, session.display),
            class_images,
        )


def learn_embedding(session: Session, options: Stage1, base: Base, subject: Subject) -> None:
    """Stage 1, and its result: the learned rows in the text encoder and in the embedding file."""
    placeholder = subject.placeholder
    assert placeholder is not None
    file = session.folder.embedding_file(session.recipe)
    if session.reached_stage > 1 or session.has_token:
        write_rows(base.text_encoder, placeholder.token_ids, load_embedding(file)[1])
        return
    base.text_encoder.to(session.device)
    with quiet():
        base.unet.to(session.device, session.frozen_dtype)
    if options.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    learner = EmbeddingLearner(base, placeholder, options.snr_gamma)
    after_step = learner.pull_norm if options.norm_control == "pull" else None
    source = _source(subject.examples, options)
    loop = StageLoop(1, learner, source, options, session.accelerator, after_step)
    nets = {"text_encoder": base.text_encoder, "unet": base.unet}
    session.run_stage(loop, options.steps, nets, _sampler(session, base, subject, learner.rows))
    rows = learner.rows.detach()
    write_rows(base.text_encoder, placeholder.token_ids, rows)
    if session.is_main:
        save_embedding(file, placeholder, rows)
    # Stage 2 builds on the original, not on what stage 1 may have rounded to half precision.
    base.release("unet")


def learn_denoiser(session: Session, options: Stage2, base: Base, subject: Subject, prior: ClassSamples | None) -> None:
    """Stage 2, and its result: what it trained, in the layout of diffusers and transformers, or of PEFT."""
    rows, text = None, _text(session, options, base, subject, prior.prompts if prior else [])
    if subject.placeholder:
        rows = base.text_encoder.get_input_embeddings().weight[subject.placeholder.token_ids].cpu()
    live = {"text_encoder": base.text_encoder, "tokenizer": base.tokenizer} if trains(text) else {}
    if not live:
        base.release("text_encoder", "tokenizer")
    if "unet" in adapted_parts(options):
        with quiet():
            base.unet.to(session.frozen_dtype)
    open_for_training(base, "unet", options, session.recipe.adapter, session.recipe.seed)
    learner = DenoiserLearner(base, text, session.recipe.prior.weight, options.snr_gamma)
    source = _source(subject.examples, options)
    source = Preserving(source, prior) if prior else source
    rates = {"text.": options.text_encoder_learning_rate} if options.text_encoder_learning_rate else None
    loop = StageLoop(2, learner, source, options, session.accelerator, rates=rates)
    nets = {"unet": base.unet, "text": text}
    session.run_stage(loop, options.steps, nets, _sampler(session, base, subject, rows, **live))
    if session.is_main:
        with session.phase("save"), quiet():
            if subject.placeholder and live:
                drop_placeholder(base.text_encoder, subject.placeholder)
            for name in whole_parts(options):
                session.folder.save_model(name, getattr(base, name).save_pretrained)
            for name in adapted_parts(options):
                session.folder.save_model(
                    f"adapter/{name}", partial(save_adapter, getattr(base, name), base=base.source)
                )


def _source(examples: Examples, options: Stage) -> Source:
    """The photos' samples as the stage wants them."""
    return OffsetNoise(examples, options.noise_offset, examples.seed) if options.noise_offset else examples


def _text(session: Session, options: Stage2, base: Base, subject: Subject, prior_prompts: list[str]) -> nn.Module:
    """How stage 2 comes by the states of its prompts: from a text encoder that learns, or encoded here, once."""
    recipe = session.recipe
    if trains(open_for_training(base, "text_encoder", options, recipe.adapter, recipe.seed)):
        return LiveText(base, subject.expand)
    prompts = list(dict.fromkeys(subject.prompts + prior_prompts))
    with session.phase("encode_prompts"):
        return EncodedText(encode_prompts(base, prompts, subject.expand, session.device))


def _sampler(session: Session, base: Base, subject: Subject, rows: Tensor | None, **live: Any) -> DrawSamples:
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
