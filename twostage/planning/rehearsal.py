"""A run without weights, photos and card: its own stages, two steps of each, on tensors that have no values."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from twostage.display import Display
from twostage.family_parts import Text
from twostage.memory.simulator import simulation
from twostage.memory.storages import StorageTrace
from twostage.memory.streaming import streamed
from twostage.method.class_samples import ClassSamples
from twostage.method.denoiser import EncodedText, LiveText, whole_parts
from twostage.method.loop import StageLoop
from twostage.method.precision import drawn_in
from twostage.method.sampling import TOGETHER
from twostage.planning.outlined import OutlinedBase, OutlinedExamples, outline_base, outline_placeholders
from twostage.planning.phases import Known, Parts, Phase, Rehearsed, Saved, Work, that_matters
from twostage.processes import accelerators_aside
from twostage.quiet import quiet
from twostage.recipe import Recipe, Stage
from twostage.run_folder import RunFolder
from twostage.session import DrawSamples, Session
from twostage.stages import Subject, learn_denoiser, learn_embedding
from twostage.subject.captions import all_prompts
from twostage.subject.photos import Photo

# Photos of a subject where the recipe does not say.
_PHOTOS = 4


def rehearse(recipe: Recipe, known: Known | None = None) -> Rehearsed:
    """What a run of the recipe takes, from its configuration alone.

    What trains is what `train` trains: the stages, the learners, the loss, the loop and the optimizer are its own. Each
    stage does two steps, the second with all the state that every further one has. Photos are squares.

    Args:
        recipe: its base is one that `outline_base` takes. Neither photos nor a class noun are needed.
        known: of rehearsals of similar recipes; it grows.

    Raises:
        UserError: the base is not known, or the recipe does not fit it.
    """
    with accelerators_aside(), simulation() as trace:
        session = Rehearsal(recipe, outline_base(recipe.base), trace, known)
        session.encode_photos()
        prior = session.draw_class_images()
        recipe = session.recipe
        if recipe.stage1:
            learn_embedding(session, recipe.stage1, session.base, session.subject)
        if recipe.stage2:
            learn_denoiser(session, recipe.stage2, session.base, session.subject, prior)
        return Rehearsed(session.found.phases, session.found.saved, session.largest_part)


class Rehearsal(Session):
    """A session that writes nothing and measures what it is given to run.

    Args:
        recipe: what is run.
        base: its base.
        trace: of the simulation that it is in.
        known: of rehearsals of similar recipes.

    Attributes:
        subject: what is taught.
        found: of what has run.
        largest_part: as in `Rehearsed`.
    """

    def __init__(self, recipe: Recipe, base: OutlinedBase, trace: StorageTrace, known: Known | None = None) -> None:
        # float16 takes what bfloat16 takes, and the latter is what CPUs can autocast to.
        precision = "no" if recipe.mixed_precision == "no" else "bf16"
        stages = {name: _shortened(getattr(recipe, name)) for name in ("stage1", "stage2") if getattr(recipe, name)}
        # A compiler needs values, and about the same memory comes of it.
        speed = recipe.speed.model_copy(update={"compile": "no"})
        self.recipe = recipe.model_copy(update={"mixed_precision": precision, "speed": speed, **stages})
        self._asked = recipe
        base.vae_in_tiles = recipe.memory.vae_tiling
        if base.family.text_on_host:
            base.keep_text_beside(trace.beside_card)
        self.base, self._trace, self._known = base, trace, known or Known()
        self.folder, self.display, self.is_main = RunFolder(Path("never written")), Display(), False
        self.accelerator = Accelerator(cpu=True, mixed_precision=precision)
        self.device = self.accelerator.device
        self.reached_stage, self.has_token, self.checks, self.selection = 0, False, {}, None
        self.attention = "sdpa"  # It keeps what the kernels of xformers keep.
        self.found, self.largest_part = Parts(), 0
        side = (recipe.data.resolution or base.resolution) // base.reduction
        self._latent = (base.channels, side, side)
        self.subject = self._outline_subject()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time is not counted."""
        yield

    @torch.no_grad()
    def encode_photos(self) -> None:
        """The VAE reads one picture, as it reads each."""
        if self.base.family.autoencoder is None:
            return
        self._read(self.base.family.autoencoder)
        self._known.parts("encode", self._asked, self.found, self._encode)
        self.base.release_autoencoder()

    def _encode(self) -> None:
        recipe, vae = self.recipe, self.base.vae
        side = self._latent[1] * self.base.reduction
        self._trace.begin()
        self.base.family.encode_images(vae, torch.empty(1, 3, side, side))
        pictures = (recipe.data.num_photos or _PHOTOS) * len(recipe.every_subject())
        if recipe.prior.wanted and recipe.prior.source == "images":
            pictures += recipe.prior.num_class_images
        self._note("encode", self._work, pictures * (1 + recipe.data.flip), "picture")

    def draw_class_images(self) -> ClassSamples | None:
        """What the untouched base draws or predicts for the class, where the recipe wants that."""
        options = self.recipe.prior
        if not options.wanted:
            return None
        together = min(options.sample_batch_size, options.num_class_images)
        photos = options.source == "photos"  # A noised one takes a single pass, without guidance.
        steps = 1 if photos else options.num_inference_steps
        with quiet():
            name = self.base.family.denoiser
            nets = {name: self._read(name).to(self.frozen_dtype)}
        label = "class images" if options.source == "images" else "class predictions"
        share = self.recipe.memory.streamed
        with streamed(nets[name], share, self.device) if share else nullcontext():
            self._draw(label, nets, together, options.num_class_images, steps, 1 if photos else 2)
        if self.frozen_dtype != torch.float32:
            self.base.release(name)  # As in class_prior.py.

        def batch(stage: int, step: int, rows: range, rows_per_step: int) -> Any:
            return self.subject.examples.batch(stage, step, rows, rows_per_step)

        return ClassSamples(self.subject.prompts[:1], batch)

    def run_stage(self, loop: StageLoop, steps: int, nets: Mapping[str, nn.Module], draw_samples: DrawSamples) -> None:
        """Two steps, and sample pictures."""
        self.largest_part = max(self.largest_part, *(4 * _numel(net) for net in nets.values()))
        measure = partial(self._measure_stage, loop, steps, nets)
        if loop.stage == 1:
            self._known.parts("stage 1", self._asked, self.found, measure)
        else:
            measure()
        self.accelerator.free_memory()

    def _measure_stage(self, loop: StageLoop, steps: int, nets: Mapping[str, nn.Module]) -> None:
        self._trace.begin()
        running = loop.steps()
        next(running)
        first = self._work
        work = self._work - first if next(running, None) else first
        name = f"stage {loop.stage}"
        asked, run = (getattr(recipe, f"stage{loop.stage}") for recipe in (self._asked, self.recipe))
        work = work.times(asked.gradient_accumulation_steps / run.gradient_accumulation_steps)
        self._note(name, work, steps, "step")
        due = sum(self.recipe.checkpoints.due(step) for step in range(1, steps))
        trace = self._trace
        self.found.phases.append(
            Phase(f"{name}, save", trace.current, trace.reserved, Work(), due, "checkpoint", trace.host)
        )
        self._note_saved(loop, steps)
        self._draw_samples_of(name, nets, due + 1)

    def _draw_samples_of(self, name: str, nets: Mapping[str, nn.Module], times: int) -> None:
        options = self.recipe.sample
        pictures = len(options.prompts) * options.per_prompt
        if not pictures:
            return
        text = nets.get("text")
        parts: dict[str, Any] = {name: net for name, net in nets.items() if name != "text"}
        if isinstance(text, LiveText):
            parts |= text.encoders
        elif isinstance(text, EncodedText):
            parts["states"] = text.every
        passes = 1
        if options.guidance_scale > 1:
            passes = 3 if options.within(self.recipe.class_nouns).class_guidance else 2
        self._draw(
            f"{name}, samples", parts, min(pictures, TOGETHER), pictures * times, options.num_inference_steps, passes
        )

    def _draw(self, name: str, nets: Mapping[str, Any], together: int, count: int, steps: int, passes: int) -> None:
        """A batch of pictures: one of its equal denoising steps, and what comes before and after them.

        What `nets` lacks comes to the card for as long as it has work; see method/sampling.py.
        """
        self._trace.begin()
        draw = partial(self._draw_batch, nets, together, together * passes, name != "class predictions")
        key = that_matters(name, self._asked)
        denoising = self._trace.once(key, draw, self._known.works)
        self._note(name, (self._work + denoising.times(steps - 1)).times(1 / together), count, "picture")

    @torch.no_grad()
    def _draw_batch(self, nets: Mapping[str, Any], together: int, rows: int, pictures: bool) -> Work:
        """Returns the work of the one step."""
        family = self.base.family
        with self.accelerator.autocast(), drawn_in(nets[family.denoiser], self.device):
            if "states" in nets:
                states = nets["states"].rows(slice(1)).repeated(rows)
            else:
                encoders = {name: nets.get(name) or self._read_anew(name) for name in family.text}
                text = Text(self.base.tokenizers, encoders, self.base.settings)
                states = family.encode_text(text, ["a"] * rows)
                del encoders, text
            gc.collect()  # The libraries' nets hold themselves.
            latents = torch.empty(rows, *self._latent)
            before = self._work
            given = self.subject.examples.batch(2, 0, range(rows), rows).given
            family.predict(nets[family.denoiser], latents, torch.zeros(rows, dtype=torch.int64), states, given)
            denoising = self._work - before
            if pictures and family.autoencoder:
                family.decode(self._read_anew(family.autoencoder), latents[:together])
                gc.collect()
        return denoising

    def _outline_subject(self) -> Subject:
        recipe, side = self.recipe, self._latent[1] * self.base.reduction
        phrases: list[str] = []
        prompts: list[str] = []
        for token, data in recipe.every_subject():
            noun = f" {data.class_noun or 'thing'}" if token.role == "adjective" else ""
            phrases.append(token.placeholder + noun)
            photo = Photo(Path("photo"), None, "", (side, side))
            prompts += all_prompts([photo], data, phrases[-1])
        named = [(token.placeholder, token.num_vectors) for token, _ in recipe.every_subject()]
        placeholders = outline_placeholders(self.base, named) if recipe.stage1 else None
        examples = OutlinedExamples(
            (),
            lambda index, rng: "",
            1,
            recipe.seed,
            family=self.base.family,
            shape=self._latent,
            side=side,
            prompts=tuple(prompts),
        )
        return Subject([], phrases[0], list(dict.fromkeys(prompts)), placeholders, examples)

    def _read(self, name: str) -> Any:
        net = _part(self.base, name)
        self.largest_part = max(self.largest_part, 4 * _numel(net))
        return net

    def _read_anew(self, name: str) -> Any:
        base = self.base
        found = type(base)(base.source, base.folder, base.family, base.resolution, base.reduction, base.vae_in_tiles)
        found.beside = base.beside
        return _part(found, name)

    @property
    def _work(self) -> Work:
        return Work(self._trace.flops, self._trace.half_flops, self._trace.copied)

    def _note(self, name: str, work: Work, count: int, unit: str) -> None:
        trace = self._trace
        self.found.phases.append(Phase(name, trace.peak, trace.reserved, work, count, unit, trace.host_peak))

    def _note_saved(self, loop: StageLoop, steps: int) -> None:
        progress = loop.progress()
        files = tuple(_bytes(part.values()) for part in (progress.trained, progress.optimizer, progress.averaged))
        stage2, result = self.recipe.stage2, files[0]
        if loop.stage == 2 and stage2:
            whole = whole_parts(stage2, self.base.family)
            result = sum(_bytes(self.base.component(name).parameters()) for name in whole) or result
        self.found.saved.append(Saved(steps, files, result))


def _shortened(stage: Stage) -> Stage:
    """Of all batches that a step adds up, the second is like all that follow."""
    return stage.model_copy(update={"gradient_accumulation_steps": min(2, stage.gradient_accumulation_steps)})


def _part(base: OutlinedBase, name: str) -> Any:
    """A component; the VAE works in tiles if it is to."""
    return base.vae if name == base.family.autoencoder else base.component(name)


def _numel(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
