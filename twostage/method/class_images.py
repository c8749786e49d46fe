"""Prior samples from pictures of the class: the user's own, or drawn by the untouched base (arXiv 2208.12242)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from twostage.family_parts import Shown
from twostage.method.class_samples import ClassSamples, Making, address, torch_seed
from twostage.method.examples import PRIOR, Examples, Posterior
from twostage.method.latents import encode_picture
from twostage.method.sampling import assemble, draw
from twostage.recipe import Sample
from twostage.subject.buckets import corner_of
from twostage.subject.photos import Photo, load_photo

# Beside the streams of prior samples in training.
_DRAWING = PRIOR + 8


def prepare_images(making: Making, own: list[Photo]) -> ClassSamples:
    """Class images, encoded; the base draws those that neither the user nor the cache has.

    Picture i depends on the seed and i (but for the rounding of larger batches), so a larger count adds pictures.

    Args:
        making: what they depend on.
        own: the user's class images.

    Raises:
        UserError: a picture cannot be read, or the cache not be written.
    """
    options, base = making.options, making.base
    lacking = options.num_class_images - len(own)
    pictures = list(own)
    if lacking:
        shelf = making.shelf("class-images", ".png")
        if options.class_images:
            making.display.say(
                f"note: {options.class_images} holds {len(own)} class images of {options.num_class_images}; the base "
                f"draws the other {lacking}, kept in {shelf.path}"
            )
        making.fill(
            shelf,
            lambda path: _whole(path, making.side),
            lacking,
            lambda batches: _draw(making, batches),
            "class images",
        )
        pictures += [Photo(shelf.file(index), None, "", (making.side,) * 2) for index in range(lacking)]
    prompts = [picture.caption or making.prompt for picture in pictures]

    def prompt(index: int, rng: np.random.Generator) -> str:
        return prompts[index]

    repeats = tuple(picture.repeats for picture in pictures)
    views, scheduler = _encode(making, pictures), base.noise_scheduler
    examples = Examples(views, prompt, scheduler, making.seed, PRIOR, repeats, base.family)
    base.release_autoencoder()
    return ClassSamples(list(dict.fromkeys(prompts)), examples.batch)


def _whole(path: Path, side: int) -> bool:
    """Whether the file is a picture of that size, with all its bytes as they were written."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
            return picture.size == (side, side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _draw(making: Making, batches: Sequence[Sequence[int]]) -> Iterator[dict[int, bytes]]:
    base, options = making.base, making.options
    device = making.accelerator.device
    making.denoiser.to(device)
    pipeline = assemble(base, **{name: base.component(name) for name in (*base.family.tokenizers, *base.family.models)})
    how = Sample(num_inference_steps=options.num_inference_steps, guidance_scale=options.guidance_scale)
    for together in batches:
        seeds = [torch_seed(address(_DRAWING, making.seed, index)) for index in together]
        with making.accelerator.autocast():
            prompts = [making.prompt] * len(together)
            drawn = draw(pipeline, prompts, seeds, how, making.side, together=len(together), device=device)
        yield {index: _png(picture) for index, picture in zip(together, drawn, strict=True)}


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def _encode(making: Making, pictures: Sequence[Photo]) -> tuple[Posterior, ...]:
    """What the VAE makes of the pictures, and of their mirror images where photos are mirrored."""
    base, data = making.base, making.data
    views: list[Posterior] = []
    with making.display.progress("encoding class images", len(pictures) * (1 + data.flip)) as update:
        for mirrored in (False, True) if data.flip else (False,):
            posteriors = []
            for picture in pictures:
                pixels = load_photo(picture, making.side, data.fit)
                pixels = pixels.flip(-1) if mirrored else pixels
                posteriors.append(encode_picture(base, pixels, making.accelerator.device))
                update(len(views) * len(pictures) + len(posteriors))
            mean, std = (torch.stack(parts) for parts in zip(*posteriors, strict=True))
            size = (making.side,) * 2
            shown = [
                Shown(own, picture.size, size, corner_of(picture.size, size, data.fit))
                for own, picture in zip(mean, pictures, strict=True)
            ]
            views.append(Posterior(mean, std, shown=shown))
    return tuple(views)
