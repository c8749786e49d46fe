"""Pictures from a pipeline: the same prompt and seed give the same picture as stock diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from twostage.errors import UserError
from twostage.families import Base, family_of, load_part, work_in_tiles
from twostage.family import Family
from twostage.family_parts import Drawing, Text
from twostage.flow import FlowMatching
from twostage.lack import lacks_memory
from twostage.loading import loading
from twostage.memory.heap import give_back
from twostage.method.guidance import Guides, guided
from twostage.prompt_states import PromptStates, joined
from twostage.quiet import quiet
from twostage.recipe import Sample
from twostage.subject.tokens import Rows, add_learned, written_out

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Pictures denoised together, unless someone says otherwise.
TOGETHER = 8
Encode = Callable[[list[str]], PromptStates]
# Of a denoiser's configuration, what tells it from another's.
_KIND = ("in_channels", "cross_attention_dim", "joint_attention_dim", "encoder_hid_dim")
# Text; or text, and the same with the class alone in the token's place.
Prompt = str | tuple[str, str]


def assemble(base: Base, *, embedding: Mapping[str, Rows] | None = None, **components: Any) -> DiffusionPipeline:
    """The base's stock pipeline with tuned components and a learned token in it.

    Everything not given is read from the base's folder, so this works while training has dropped its copies.

    Args:
        base: the pretrained pipeline.
        embedding: the tokens' names and their rows, (num_vectors, D) for each text encoder.
        components: in place of the base's own: unet, text_encoder ...; a text encoder that has rows for its tokens
            comes with its tokenizer.
    """
    pipeline = base.pipeline(**components)
    if embedding is not None:
        with loading(f"the embedding of {' and '.join(embedding)} into {base.source}", "train it anew"):
            add_learned(base.family, pipeline, embedding)
    if base.vae_in_tiles and base.family.autoencoder:
        work_in_tiles(pipeline.vae)
    if base.low_resolution:
        pipeline.low_resolution = replace(base.low_resolution)  # A new one: what it reads goes with the pipeline.
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_steps(base: Base, num_inference_steps: int) -> None:
    """Make sure that the base's own scheduler can draw in so many steps, before anything large is loaded.

    Raises:
        UserError: it cannot; a PNDM scheduler that starts with Runge-Kutta steps, for one, needs at least four.
    """
    scheduler = base.pipeline(**dict.fromkeys((*base.family.tokenizers, *base.family.models))).scheduler
    # Any number will do for how far a flow's levels are moved for the size of a picture.
    told = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    with loading(base.folder / "scheduler"):
        try:
            scheduler.set_timesteps(num_inference_steps, **told)
        except ValueError as error:
            raise _impossible_steps(scheduler, num_inference_steps) from error
    # Some schedulers take more steps than there are noise levels, and fail half way. A flow has levels without end.
    flow = isinstance(base.noise_scheduler, FlowMatching)
    if not flow and scheduler.timesteps.max() >= scheduler.config.num_train_timesteps:
        raise _impossible_steps(scheduler, num_inference_steps)


def _impossible_steps(scheduler: object, steps: int) -> UserError:
    return UserError(
        f"num_inference_steps {steps}: the base's {type(scheduler).__name__} cannot draw in so many; choose another "
        "number, such as 25"
    )


def read_untouched(base: Base, pipeline: DiffusionPipeline) -> nn.Module:
    """The base's own denoiser, apart from the tuned one of the pipeline, and where that is.

    Raises:
        UserError: it cannot be read, or is not the one that was tuned.
    """
    name = base.family.denoiser
    own, tuned = load_part(base.family, base.folder, name), getattr(pipeline, name, None)
    if tuned is None:
        raise UserError(
            f"the base {base.source} is not what was tuned: the result has no {name}; name the one that was"
        )
    wanted = [key for key in _KIND if key in own.config]
    kinds = {key: (own.config[key], tuned.config.get(key)) for key in wanted}
    theirs = pipeline.scheduler.config.get("prediction_type")
    if theirs is not None:
        kinds["prediction_type"] = (base.noise_scheduler.config.prediction_type, theirs)
    for key, (one, other) in kinds.items():
        if one != other:
            raise UserError(
                f"the base {base.source} is not what was tuned: its {key} is {one}, of the result {other}; name "
                "the base that was, or guide with --away-from own"
            )
    placed: nn.Module = own.to(tuned.device)
    return placed


def reads_whole(family: Family, text: Text, prompt: str) -> bool:
    """Whether the text encoder reads the prompt to its end."""
    read = family.as_read(prompt)
    with quiet():
        lengths = [
            len(own(written_out(text, read)).input_ids) <= own.model_max_length for own in text.tokenizers.values()
        ]
    return any(lengths)  # What one of them cuts off, another may read.


def text_of(pipeline: DiffusionPipeline) -> Text:
    """All that reads prompts in a stock pipeline."""
    parts = family_of(pipeline).text
    return Text(
        {name: getattr(pipeline, part.tokenizer) for name, part in parts.items()},
        {name: getattr(pipeline, name) for name in parts},
        dict(pipeline.config) | {"denoiser": denoiser_of(pipeline).config},
    )


def encode_visiting(
    base: Base, prompts: list[str], device: torch.device, *, with_nothing: bool = False
) -> PromptStates:
    """States of prompts, on the device; the text encoders come there for as long as it takes, if that is their place.

    Args:
        base: whose text encoders are asked.
        prompts: tokens of several vectors written out.
        device: of the denoiser.
        with_nothing: have what stands for no prompt in the first row.
    """
    states, nothing = _read(base.family, base.text, prompts, device, with_nothing)
    return joined([nothing, states]) if nothing else states


def _read(
    family: Family, text: Text, prompts: Sequence[str], device: torch.device, with_nothing: bool
) -> tuple[PromptStates, PromptStates | None]:
    """States of prompts and, if wanted, of nothing, on the device; text encoders visit where they are to work."""
    with ExitStack() as within:
        for encoder in text.encoders.values():
            within.enter_context(visiting(encoder, family.text_device(device)))
        found = family.encode_text(text, prompts)
        nothing = family.nothing(text) if with_nothing else None
    return found.to(device), nothing.to(device) if nothing else None


def draw(  # noqa: PLR0913  Each is another thing, and most are left out most of the time.
    pipeline: DiffusionPipeline,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    options: Sample,
    side: int,
    *,
    together: int = TOGETHER,
    device: torch.device | None = None,
    encode: Encode | None = None,
    untouched: nn.Module | None = None,
) -> list[Image.Image]:
    """One picture for each prompt and its seed.

    The starting latents of each come from a CPU generator of their own, so a picture depends neither on the device
    nor on what is drawn beside it (but for the rounding of larger batches).

    Args:
        pipeline: from `assemble`.
        prompts, seeds: equally many. A prompt is a text, or a text and what it says with the class alone in the
            token's place; without the latter, it is guided in the stock pipeline's way.
        options: denoising steps, and how pictures are guided.
        side: of the pictures, in pixels.
        together: pictures a batch; fewer where there is too little memory for so many.
        device: where the denoiser is; text encoders and VAE come there for as long as they have work, one after the
            other, if they wait on the host. The denoiser's own when not given.
        encode: prompts, and the empty one -> their states; then the pipeline needs neither text encoders nor
            tokenizers.
        untouched: the base's denoiser, where that of the pipeline is; without it, guidance steers away from the
            pipeline's own.
    """
    device = device or denoiser_of(pipeline).device
    pictures: list[Image.Image] = []
    while len(pictures) < len(prompts):
        batch = slice(len(pictures), len(pictures) + together)
        drawn = _draw_together(pipeline, prompts[batch], seeds[batch], options, side, device, encode, untouched)
        if drawn is None:
            together = -(-len(prompts[batch]) // 2)
            give_back()
        pictures += drawn or []
    return pictures


def _draw_together(
    pipeline: DiffusionPipeline,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    options: Sample,
    side: int,
    device: torch.device,
    encode: Encode | None,
    untouched: nn.Module | None,
) -> list[Image.Image] | None:
    """None where there is too little memory for so many at once; where it is one, that is an error."""
    texts, plain = zip(*((prompt, prompt) if isinstance(prompt, str) else prompt for prompt in prompts), strict=True)
    family, share = family_of(pipeline), options.class_guidance
    by_prompts = options.guidance_scale > 1 and family.guides(denoiser_of(pipeline))
    try:
        with quiet(), _in_eval_mode(pipeline), torch.no_grad():
            told, guides = _encode(pipeline, texts, device, by_prompts, encode), None
            if by_prompts and texts != plain:
                named = torch.tensor([text != other for text, other in zip(texts, plain, strict=True)])
                kinds = _encode(pipeline, plain, device, False, encode)[0] if share else None
                guides = Guides(named, family.prompt_inputs(kinds) if kinds else {}, share, untouched)
            latents = _denoise(pipeline, told, guides, seeds, options, side, device)
            drawn = _decode(pipeline, family, latents, device)
    except (RuntimeError, MemoryError) as error:
        if len(prompts) == 1 or not lacks_memory(error):
            raise
        return None
    return drawn


def _denoise(
    pipeline: DiffusionPipeline,
    told: tuple[PromptStates, PromptStates | None],
    guides: Guides | None,
    seeds: Sequence[int],
    options: Sample,
    side: int,
    device: torch.device,
) -> Tensor:
    """Latents of pictures; of small ones, where it has what draws these, told and guided in the same way."""
    family, first = family_of(pipeline), getattr(pipeline, "low_resolution", None)
    drawing = _drawing(pipeline, seeds, options, side, told[0])
    if first:
        own = guides and replace(guides, untouched=first.untouched)
        with visiting(denoiser_of(first.pipeline), device):
            small = _denoise(first.pipeline, told, own, seeds, options, first.side, device)
        drawing = replace(drawing, small=small)
    if guides and options.away_from != "base":
        guides = replace(guides, untouched=None)
    with ExitStack() as within:
        if guides and (guides.kinds or guides.untouched is not None):
            within.enter_context(guided(denoiser_of(pipeline), guides))
        within.enter_context(_without(pipeline, *family.text, *filter(None, [family.autoencoder])))
        return family.denoise(pipeline, *told, drawing)


def denoiser_of(pipeline: DiffusionPipeline) -> Any:
    """The denoiser of a stock pipeline."""
    return getattr(pipeline, family_of(pipeline).denoiser)


def _encode(
    pipeline: DiffusionPipeline, prompts: Sequence[str], device: torch.device, guided: bool, encode: Encode | None
) -> tuple[PromptStates, PromptStates | None]:
    """States of the prompts and, where they guide, as many of nothing."""
    if encode is None:
        text = text_of(pipeline)
        found, empty = _read(family_of(pipeline), text, [written_out(text, one) for one in prompts], device, guided)
        return found, empty.repeated(len(prompts)) if empty else None
    states = encode([*prompts, ""]).to(device, torch.float32)
    nothing = states.rows(slice(-1, None)).repeated(len(prompts)) if guided else None
    return states.rows(slice(-1)), nothing


def _drawing(
    pipeline: DiffusionPipeline, seeds: Sequence[int], options: Sample, side: int, states: PromptStates
) -> Drawing:
    """What a batch of pictures starts from, and how it goes on."""
    family, denoiser = family_of(pipeline), denoiser_of(pipeline)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    spans = side // getattr(pipeline, "vae_scale_factor", 1)
    shape = (1, family.channels(denoiser), spans, spans)
    # In the text encoder's number format, as usual: without one, the pipeline would take the U-Net's.
    noise = [torch.randn(shape, generator=generator, dtype=states["states"].dtype) for generator in generators]
    start = torch.cat(noise).to(denoiser.device)
    return Drawing(start, generators, options.num_inference_steps, options.guidance_scale, (side, side))


def _decode(pipeline: DiffusionPipeline, family: Family, latents: Tensor, device: torch.device) -> list[Image.Image]:
    vae = getattr(pipeline, family.autoencoder) if family.autoencoder else None
    with nullcontext() if vae is None else visiting(vae, device):
        decoded = family.decode(vae, latents)
    pixels = ((decoded / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy() * 255).round().astype("uint8")
    return [Image.fromarray(picture) for picture in pixels]


@contextmanager
def visiting(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it, a net is on the device; it goes back to where it was."""
    home = next(net.parameters()).device
    if home.type == device.type:
        yield
        return
    net.to(device)
    try:
        yield
    finally:
        net.to(home)


@contextmanager
def _without(pipeline: DiffusionPipeline, *names: str) -> Iterator[None]:
    """Within it, a pipeline lacks components, so that it does not take its device from one that is elsewhere."""
    kept = {name: getattr(pipeline, name) for name in names}
    try:
        for name in names:
            object.__setattr__(pipeline, name, None)  # The pipeline's own way would also change its configuration.
        yield
    finally:
        for name, component in kept.items():
            object.__setattr__(pipeline, name, component)


@contextmanager
def _in_eval_mode(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Within it, nothing is dropped out, though the nets may be in training."""
    nets = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
    training = [module for net in nets for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """The pictures, equally large, in rows of `columns`."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * columns, height * -(-len(pictures) // columns)), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet
