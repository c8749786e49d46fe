"""What a run consists of: the subject prepared, stage 1, stage 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import nn

from twostage.class_prior import class_prompts
from twostage.errors import UserError
from twostage.families import Base
from twostage.flow import FlowMatching
from twostage.machine import reproducible
from twostage.memory.activations import keeping
from twostage.memory.attention import check_sdpa, choose_attention, set_attention
from twostage.memory.frozen import place_frozen
from twostage.memory.host import saves_nothing
from twostage.memory.optimizers import Updates
from twostage.memory.streaming import Streaming
from twostage.method.adapter import adapter_config, save_adapter, target_modules
from twostage.method.class_samples import ClassSamples
from twostage.method.denoiser import (
    DenoiserLearner,
    EncodedText,
    LiveText,
    adapted_parts,
    checkpoint_gradients,
    encode_prompts,
    keep_weights,
    open_for_training,
    trains,
    whole_parts,
)
from twostage.method.embedding import EmbeddingLearner, write_rows
from twostage.method.examples import Examples, Source, encode_photos, together
from twostage.method.kernels import compile_blocks, interpreted, lay_out
from twostage.method.loop import StageLoop
from twostage.method.loss import check_flow_options, check_prediction_type
from twostage.method.noise import OffsetNoise
from twostage.method.precision import drawn_in
from twostage.method.prior import Preserving
from twostage.method.sampling import Encode, assemble, check_steps, draw
from twostage.naming import name_subjects
from twostage.quiet import quiet
from twostage.recipe import Recipe, Stage, Stage1, Stage2
from twostage.session import DrawSamples, Session
from twostage.subject.captions import all_prompts, subject_phrase, without_token
from twostage.subject.photos import Photo, find_photos
from twostage.subject.token_files import keyed_rows, load_learned, rows_by_encoder, save_embedding
from twostage.subject.tokens import Placeholders, add_rows, drop_placeholder, embedding_table


@dataclass(frozen=True)
class Subject:
    """What a run teaches: photos, their encoded views, every prompt they can come with, and the tokens.

    Where it is several subjects, `phrase` is the first one's, and the rest is of all of them. `placeholders` is None
    where the recipe learns no token and uses words that the vocabulary has; else it has the tokens of each text encoder
    by the component's name. `class_prompts`: what the base is asked for at each photo; empty where the prior asks it
    elsewhere, or there is none.
    """

    photos: list[Photo]
    phrase: str
    prompts: list[str]
    placeholders: Mapping[str, Placeholders] | None
    examples: Examples
    class_prompts: tuple[str, ...] = ()

    def expand(self, prompt: str) -> str:
        if not self.placeholders:
            return prompt
        return next(iter(self.placeholders.values())).expand(prompt)  # The names are the same for all.


def find_subject_photos(recipe: Recipe, held_out: Sequence[Photo] = ()) -> list[list[Photo]]:
    """The photos of each subject, save those held out, before a base is loaded or even downloaded for them."""
    if recipe.stage1 is None and recipe.stage2 is None:
        raise UserError(f"recipe {recipe.name!r} has neither [stage1] nor [stage2]: nothing would be trained")
    if recipe.data.photos is None:
        raise UserError("data.photos is not set; give the folder with the photos")
    unseen = {photo.sha256 for photo in held_out}
    return [find_photos(data.photos, data.num_photos, unseen) for _, data in recipe.every_subject() if data.photos]


def prepare_subject(session: Session, base: Base, photos: list[list[Photo]], class_images: list[Photo]) -> Subject:
    """Photos encoded, prompts and token checked; the VAE has done its work and leaves memory."""
    recipe = session.recipe
    check_prediction_type(base.noise_scheduler)
    for stage, options in ((1, recipe.stage1), (2, recipe.stage2)):
        if options:
            check_flow_options(base.noise_scheduler, stage, options)
    base.vae_in_tiles = recipe.memory.vae_tiling
    if recipe.sample.per_prompt and recipe.sample.prompts:
        check_steps(base, recipe.sample.num_inference_steps)
    _check_trained(recipe, base)
    _choose_attention(session, base)
    subjects = recipe.every_subject()
    phrases = [subject_phrase(token, data) for token, data in subjects]
    told = list(zip(photos, phrases, strict=True))
    prompts = [all_prompts(found, recipe.data, phrase) for found, phrase in told]
    placeholders = name_subjects(session, base, prompts)
    classes = class_prompts(session, base, photos, class_images)
    with session.phase("encode_photos"):
        examples = together(
            [encode_photos(base, found, recipe.data, phrase, recipe.seed, session.device) for found, phrase in told]
        )
    base.release_autoencoder()
    every_prompt = list(dict.fromkeys(prompt for own in prompts for prompt in own))
    found = [photo for own in photos for photo in own]
    return Subject(found, phrases[0], every_prompt, placeholders, examples, classes)


def _check_trained(recipe: Recipe, base: Base) -> None:
    """Make sure that stage 2 can train of this base what the recipe says.

    Raises:
        UserError: it cannot.
    """
    if recipe.stage2 is None:
        return
    if recipe.stage2.train_text_encoder and not base.family.learning_encoders:
        raise UserError(
            f"stage2.train_text_encoder: the text encoder of a {base.family.pipeline} is too large to be trained with "
            "its denoiser, and is not; leave it out"
        )
    for name in adapted_parts(recipe.stage2, base.family):
        adapter_config(base.outline(name), recipe.adapter, target_modules(base.family, name, recipe.adapter))


def _choose_attention(session: Session, base: Base) -> None:
    memory = session.recipe.memory
    dtype = torch.bfloat16 if memory.weights == "bfloat16" else session.frozen_dtype
    outline = partial(base.outline, base.family.denoiser)
    session.attention, note = choose_attention(outline, memory.attention, session.device, dtype)
    if session.attention == "sdpa" and session.device.type != "cpu":
        check_sdpa(outline, session.device, dtype)
    varies = "" if session.device.type == "cpu" else reproducible(session.device)
    for line in filter(None, (note, saves_nothing(memory, session.device), varies)):
        session.display.say(f"note: {line}")


def learn_embedding(session: Session, options: Stage1, base: Base, subject: Subject) -> None:
    """Stage 1, and its result: the learned rows in the text encoder and in an embedding file a token."""
    placeholders = subject.placeholders
    assert placeholders is not None
    tokens = {token.placeholder: token for token, _ in session.recipe.every_subject()}
    files = {name: session.folder.embedding_file(name) for name in tokens}
    encoders = base.text.encoders
    if session.reached_stage > 1 or session.has_token:
        widths = {name: embedding_table(encoder).shape[1] for name, encoder in encoders.items()}
        learned = [
            rows_by_encoder(file, load_learned(file, tokens[name]), base.family, widths) for name, file in files.items()
        ]
        for name, encoder in encoders.items():
            write_rows(encoder, placeholders[name].token_ids, torch.cat([rows[name] for rows in learned]))
        return
    # Before anything of the table is rounded.
    learner = EmbeddingLearner(base, placeholders, options.snr_gamma, options.flow_weighting)
    lay_out(base.denoiser, session.recipe.speed)
    _place_frozen(session, base)
    set_attention(base.denoiser, session.attention)
    if options.gradient_checkpointing:
        for net in (base.denoiser, *encoders.values()):
            checkpoint_gradients(net)
    streaming = _stream(session, base)
    after_step = learner.pull_norm if options.norm_control == "pull" else None
    source = _source(subject.examples, options)
    nets = {**encoders, base.family.denoiser: base.denoiser}
    updates = Updates(keeping=keeping(session.recipe.memory, nets.values(), session.device))
    loop = StageLoop(1, learner, source, options, session.accelerator, after_step, updates, streaming)
    _compile(session, loop, base.denoiser)
    session.run_stage(loop, options.steps, nets, _sampler(session, base, subject, learner.encode))
    learned_rows = {name: rows.detach() for name, rows in learner.every_row.items()}
    # Stage 2 builds on the originals, not on what stage 1 may have rounded or quantised.
    base.release(base.family.denoiser, *encoders)
    del encoders, nets
    for name, rows in learned_rows.items():
        add_rows(base.component(name), placeholders[name])
        write_rows(base.component(name), placeholders[name].token_ids, rows)
    if session.is_main:
        split = {name: placeholders[name].split(rows) for name, rows in learned_rows.items()}
        for token in tokens:
            own = {name: rows[token] for name, rows in split.items()}
            save_embedding(files[token], token, keyed_rows(base.family, own))


def _place_frozen(session: Session, base: Base) -> None:
    """Bring what stage 1 asks to its device, in the form in which it is kept.

    Of text encoders, the norms and what runs between its layers stay float32: that is little, and rows are learned
    through it.
    """
    kept = session.recipe.memory.frozen_base
    with quiet():
        place_frozen(base.denoiser, kept, _place(session), session.frozen_dtype)
        for encoder in base.text.encoders.values():
            place_frozen(
                encoder,
                "full" if kept == "full" else "8bit",
                base.text_device(session.device),
                session.frozen_dtype,
                casting=(nn.Linear, nn.Embedding),
            )


def learn_denoiser(session: Session, options: Stage2, base: Base, subject: Subject, prior: ClassSamples | None) -> None:
    """Stage 2, and its result: what it trained, in the layout of diffusers and transformers, or of PEFT."""
    text, family = _text(session, options, base, subject, prior.prompts if prior else []), base.family
    live = {name: base.component(name) for name in family.readers} if trains(text) else {}
    if not live:
        base.release_text()
    denoiser = base.denoiser
    lay_out(denoiser, session.recipe.speed)
    if family.denoiser in adapted_parts(options, family):
        with quiet():
            place_frozen(denoiser, session.recipe.memory.frozen_base, _place(session), session.frozen_dtype)
    if family.denoiser in whole_parts(options, family):
        keep_weights(denoiser, session.recipe.memory)
    set_attention(denoiser, session.attention)
    open_for_training(base, family.denoiser, options, session.recipe.adapter, session.recipe.seed)
    streaming = _stream(session, base)
    learner = DenoiserLearner(base, text, session.recipe.prior.weight, options.snr_gamma, options.flow_weighting)
    source = _source(subject.examples, options)
    source = Preserving(source, prior) if prior else source
    rates = {"text.": options.text_encoder_learning_rate} if options.text_encoder_learning_rate else {}
    nets = {family.denoiser: denoiser, "text": text}
    kept = keeping(session.recipe.memory, nets.values(), session.device)
    updates = Updates(session.recipe.memory, rates, (session.recipe.seed, 2), kept)
    loop = StageLoop(2, learner, source, options, session.accelerator, updates=updates, streaming=streaming)
    _compile(session, loop, base.denoiser)
    session.run_stage(loop, options.steps, nets, _sampler(session, base, subject, text, **live))
    if session.is_main:
        with session.phase("save"), quiet():
            for name, placeholders in (subject.placeholders or {}).items() if live else ():
                drop_placeholder(base.component(name), placeholders)
            for name in whole_parts(options, family):
                net = base.component(name)
                needs = sum(tensor.nbytes for tensor in net.state_dict().values())
                session.folder.save_model(name, net.save_pretrained, needs)
            for name in adapted_parts(options, family):
                session.folder.save_model(
                    f"adapter/{name}", partial(save_adapter, base.component(name), base=base.source)
                )


def _place(session: Session) -> torch.device:
    """Where the denoiser is prepared: where it is used, but on the host if it is streamed, never whole on the card."""
    return torch.device("cpu") if session.recipe.memory.streamed else session.device


def _stream(session: Session, base: Base) -> Streaming | None:
    share = session.recipe.memory.streamed
    streaming = Streaming(base.denoiser, share, session.device) if share else None
    base.denoiser.to(session.device)
    return streaming


def _compile(session: Session, loop: StageLoop, denoiser: nn.Module) -> None:
    """Compile the denoiser's blocks where the recipe says so and it can be done."""
    recipe, note = session.recipe, ""
    if recipe.speed.compile == "no":
        return
    graphs = recipe.speed.compile == "graphs"
    if graphs and (session.device.type != "cuda" or session.accelerator.num_processes > 1):
        graphs, note = False, "speed.compile = 'graphs' is for one process on a GPU: compiling without CUDA graphs"
    with session.phase("compile"), session.display.progress("compile", 1) as update:
        failed = compile_blocks(denoiser, loop.attempt, graphs=graphs, fixed=recipe.data.fit != "bucket")
        update(1)
    for line in filter(None, (note, failed)):
        session.display.say(f"note: {line}")


def _source(examples: Examples, options: Stage) -> Source:
    """The photos' samples as the stage wants them."""
    if isinstance(examples.noise_scheduler, FlowMatching):
        examples = replace(examples, noise_scheduler=examples.noise_scheduler.drawn(options.flow_levels))
    return OffsetNoise(examples, options.noise_offset, examples.seed) if options.noise_offset else examples


def _text(session: Session, options: Stage2, base: Base, subject: Subject, prior_prompts: list[str]) -> nn.Module:
    """How stage 2 comes by the states of its prompts: from text encoders that learn, or encoded here, once."""
    recipe = session.recipe
    opened = [open_for_training(base, name, options, recipe.adapter, recipe.seed) for name in base.family.text]
    if any(map(trains, opened)):
        return LiveText(base, subject.expand)
    del opened
    prompts = list(dict.fromkeys(subject.prompts + prior_prompts))
    wanted = dict.fromkeys(["", *(text for both in _sample_prompts(session, subject) for text in both)])
    drawn = [prompt for prompt in wanted if prompt not in prompts]
    with session.phase("encode_prompts"):
        # Apart from each other, so that what trains does not depend on what is drawn.
        states = [encode_prompts(base, some, subject.expand, session.device) for some in (prompts, drawn)]
    return EncodedText(states[0] | states[1])


def _sample_prompts(session: Session, subject: Subject) -> list[tuple[str, str]]:
    """Each as it is, and as it guides towards the class, where it does."""
    recipe, options = session.recipe, session.recipe.sample
    texts = [text.replace("{}", subject.phrase) for text in options.prompts if options.per_prompt]
    subjects = recipe.every_subject() if options.class_guidance else []
    return [(text, without_token(text, subjects)) for text in texts]


def _sampler(session: Session, base: Base, subject: Subject, encode: Encode, **live: Any) -> DrawSamples:
    """Draws the recipe's sample pictures with the nets and the rows as they are when it is called.

    The VAE, which training has dropped, is read from disk for as long as the drawing takes. Text encoders that train
    are given, with their tokenizers; else `encode` tells the states of prompts.
    """
    options, family = session.recipe.sample, base.family
    prompts = [prompt for prompt in _sample_prompts(session, subject) for _ in range(options.per_prompt)]
    seeds = [session.recipe.seed + index for _ in options.prompts for index in range(options.per_prompt)]
    side = session.recipe.data.resolution or base.resolution

    def draw_samples() -> list[Image.Image]:
        parts = {family.denoiser: base.denoiser} | (live or dict.fromkeys(family.readers))
        pipeline, denoiser = assemble(base, **parts), base.denoiser
        with interpreted(denoiser), drawn_in(denoiser, session.device):
            told = None if live else encode
            return draw(pipeline, prompts, seeds, options, side, device=session.device, encode=told)

    return draw_samples
