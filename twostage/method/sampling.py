"""Pictures from a pipeline: the same prompt and seed give the same picture as stock diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from twostage.errors import UserError
from twostage.families import Base, load_part, work_in_tiles
from twostage.lack import lacks_memory
from twostage.loading import loading
from twostage.memory.heap import give_back
from twostage.method.guidance import Guides, guided
from twostage.quiet import quiet
from twostage.recipe import Sample

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# Pictures denoised together, unless someone says otherwise.
TOGETHER = 8
Encode = Callable[[list[str]], Tensor]
# Text; or text, and the same with the class alone in the token's place.
Prompt = str | tuple[str, str]


def assemble(base: Base, *, embedding: dict[str, Tensor] | None = None, **components: Any) -> StableDiffusionPipeline:
    """The base's stock pipeline with tuned components and a learned token in it.

    Everything not given is read from the base's folder, so this works while training has dropped its copies.

    Args:
        base: the pretrained pipeline.
        embedding: the tokens' names and their rows, (num_vectors, D).
        components: in place of the base's own: unet, text_encoder ...
    """
    pipeline = base.pipeline(**components)
    if embedding is not None:
        with loading(f"the embedding of {' and '.join(embedding)} into {base.source}", "train it anew"):
            pipeline.load_textual_inversion([{name: rows} for name, rows in embedding.items()])
    if base.vae_in_tiles:
        work_in_tiles(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_steps(base: Base, num_inference_steps: int) -> None:
    """Make sure that the base's own scheduler can draw in so many steps, before anything large is loaded.

    Raises:
        UserError: it cannot; a PNDM scheduler that starts with Runge-Kutta steps, for one, needs at least four.
    """
    scheduler = base.pipeline(**dict.fromkeys(("tokenizer", *base.family.MODELS))).scheduler
    with loading(base.folder / "scheduler"):
        try:
            scheduler.set_timesteps(num_inference_steps)
        except ValueError as error:
            raise _impossible_steps(scheduler, num_inference_steps) from error
    # Some schedulers take more steps than there are noise levels, and fail half way.
    if scheduler.timesteps.max() >= scheduler.config.num_train_timesteps:
        raise _impossible_steps(scheduler, num_inference_steps)


def _impossible_steps(scheduler: object, steps: int) -> UserError:
    return UserError(
        f"num_inference_steps {steps}: the base's {type(scheduler).__name__} cannot draw in so many; choose another "
        "number, such as 25"
    )


def read_unet(base: Base, pipeline: StableDiffusionPipeline) -> nn.Module:
    """The base's own U-Net, apart from the tuned one of the pipeline, and where that is.

    Raises:
        UserError: it cannot be read, or is not the one that was tuned.
    """
    unet = load_part(base.family, base.folder, "unet")
    kinds = {name: (unet.config[name], pipeline.unet.config[name]) for name in ("in_channels", "cross_attention_dim")}
    kinds["prediction_type"] = (base.noise_scheduler.config.prediction_type, pipeline.scheduler.config.prediction_type)
    for name, (own, theirs) in kinds.items():
        if own != theirs:
            raise UserError(
                f"the base {base.source} is not what was tuned: its {name} is {own}, of the result {theirs}; name "
                "the base that was, or guide with --away-from own"
            )
    placed: nn.Module = unet.to(pipeline.unet.device)
    return placed


def reads_whole(pipeline: StableDiffusionPipeline, prompt: str) -> bool:
    """Whether the text encoder reads the prompt to its end."""
    tokenizer = pipeline.tokenizer
    with quiet():
        ids = tokenizer(pipeline.maybe_convert_prompt(prompt, tokenizer)).input_ids
    return len(ids) <= tokenizer.model_max_length


def draw(  # noqa: PLR0913  Each is another thing, and most are left out most of the time.
    pipeline: StableDiffusionPipeline,
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
        device: where the U-Net is; text encoder and VAE come there for as long as they have work, one after the other,
            if they wait on the host. The U-Net's own when not given.
        encode: prompts, and the empty one -> their states, (len(prompts), tokens, D); then the pipeline needs neither
            text encoder nor tokenizer.
        untouched: the base's U-Net, where the U-Net is; without it, guidance steers away from the pipeline's own.
    """
    device = device or pipeline.unet.device
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
    pipeline: StableDiffusionPipeline,
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
    by_prompts = options.guidance_scale > 1 and pipeline.unet.config.time_cond_proj_dim is None
    share, weak = options.class_guidance, untouched if options.away_from == "base" else None
    try:
        with quiet(), _in_eval_mode(pipeline), torch.no_grad(), ExitStack() as within:
            states = _encode(pipeline, texts, device, by_prompts, encode)
            if by_prompts and texts != plain and (share or weak):
                named = torch.tensor([text != other for text, other in zip(texts, plain, strict=True)])
                kinds = _encode(pipeline, plain, device, False, encode)[0] if share else None
                within.enter_context(guided(pipeline.unet, Guides(named, kinds, share, weak)))
            with _without(pipeline, "text_encoder", "vae"):
                latents = _denoise(pipeline, states, seeds, options, side)
            with visiting(pipeline.vae, device):
                decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
            drawn: list[Image.Image] = pipeline.image_processor.postprocess(
                decoded, do_denormalize=[True] * len(decoded)
            )
    except (RuntimeError, MemoryError) as error:
        if len(prompts) == 1 or not lacks_memory(error):
            raise
        return None
    return drawn


def _encode(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], device: torch.device, guided: bool, encode: Encode | None
) -> tuple[Tensor, Tensor | None]:
    """States of the prompts and, where they guide, as many of the empty one."""
    if encode is None:
        with visiting(pipeline.text_encoder, device):
            stock: tuple[Tensor, Tensor | None] = pipeline.encode_prompt(list(prompts), device, 1, guided)
        return stock
    states = encode([*prompts, ""]).to(device, torch.float32)
    return states[:-1], states[-1:].repeat(len(prompts), 1, 1) if guided else None


def _denoise(
    pipeline: StableDiffusionPipeline,
    states: tuple[Tensor, Tensor | None],
    seeds: Sequence[int],
    options: Sample,
    side: int,
) -> Tensor:
    """Latents of a batch of pictures, scaled."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    unet, spans = pipeline.unet, side // pipeline.vae_scale_factor
    shape = (1, unet.config.in_channels, spans, spans)
    # In the text encoder's number format, as usual: without one, the pipeline would take the U-Net's.
    noise = [torch.randn(shape, generator=generator, dtype=states[0].dtype) for generator in generators]
    latents: Tensor = pipeline(
        prompt_embeds=states[0],
        negative_prompt_embeds=states[1],
        latents=torch.cat(noise).to(unet.device),
        generator=generators,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        height=side,
        width=side,
        output_type="latent",
    ).images
    return latents


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
def _without(pipeline: StableDiffusionPipeline, *names: str) -> Iterator[None]:
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
def _in_eval_mode(pipeline: StableDiffusionPipeline) -> Iterator[None]:
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
