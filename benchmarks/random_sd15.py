"""Write a Stable Diffusion 1.5 sized pipeline with random weights, for tests of memory, speed and file layouts.

    python benchmarks/random_sd15.py FOLDER [--seed 0] [--dtype float32] [--size sd15]

The published configuration, stock classes and folder layout, nothing downloaded; stock diffusers loads the folder. Its
tokenizer is a real byte-level BPE of exactly 49,408 entries, learned from a few words here and
filled up with letter combinations.
"""

from __future__ import annotations

import argparse
import itertools
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from twostage.quiet import quiet

with quiet():  # Its import warns of image processors that are not used here.
    from diffusers import StableDiffusionPipeline

WORDS = """
a photo of the in on with and backpack dog cat stuffed animal toy teapot vase sneaker boot car robot clock can bowl
candle cartoon glasses red blue green yellow orange purple white black shiny wet cube shaped rare sks corgi beer
rendering cropped my clean dirty dark cool close up bright good one rendition nice small weird large jungle snow beach
cobblestone street top pink fabric wooden floor city background mountain tree grass water river sunset light winter
""".split()


@dataclass(frozen=True)
class Size:
    """The numbers in which a small pipeline differs from Stable Diffusion 1.5."""

    vocabulary: int = 49408
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    unet_layers: int = 2
    unet_heads: int = 8
    unet_groups: int = 32
    sample_size: int = 64
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    vae_groups: int = 32


SIZES = {
    "sd15": Size(),
    "tiny": Size(
        vocabulary=1024,
        text_width=16,
        text_layers=2,
        text_heads=2,
        unet_channels=(8, 16),
        unet_layers=1,
        unet_heads=2,
        unet_groups=4,
        sample_size=8,
        vae_channels=(8, 8),
        vae_layers=1,
        vae_groups=4,
    ),
}


def write_pipeline(
    folder: Path, size: Size, *, seed: int = 0, dtype: torch.dtype = torch.float32, prediction_type: str = "epsilon"
) -> None:
    """Write the pipeline to `folder`, weights drawn from `seed`."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(size.vocabulary)
    pipeline = StableDiffusionPipeline(
        vae=_vae(size),
        text_encoder=_text_encoder(size, tokenizer),
        tokenizer=tokenizer,
        unet=_unet(size),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with quiet():
        pipeline.to(dtype).save_pretrained(folder, safe_serialization=True)


def make_tokenizer(vocabulary: int) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of that many entries, in CLIP's order: bytes, bytes that end a word, merges in
    their order, start, end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = dict.fromkeys(letters + [f"{letter}</w>" for letter in letters])
    merges: list[tuple[str, str]] = []
    for left, right in itertools.chain(_learned_merges(letters), _letter_merges()):
        if len(entries) == vocabulary - 2:
            break
        if left + right not in entries:
            entries[left + right] = None
            merges.append((left, right))
    assert len(entries) == vocabulary - 2, f"a vocabulary of {vocabulary} is out of reach: {len(entries) + 2}"
    ids = {entry: index for index, entry in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=77)


def _learned_merges(letters: list[str]) -> list[tuple[str, str]]:
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    learner.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def _letter_merges() -> itertools.chain[tuple[str, str]]:
    """Pairs, triples and quadruples of letters, inside and at the end of words."""
    pairs = ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)]
    ends = ("", "</w>")
    return itertools.chain(
        ((left, right + end) for left, right in itertools.product(string.ascii_lowercase, repeat=2) for end in ends),
        ((pair, letter + end) for pair in pairs for letter in string.ascii_lowercase for end in ends),
        itertools.product(pairs, pairs),
    )


def _text_encoder(size: Size, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.text_width,
        intermediate_size=4 * size.text_width,
        projection_dim=size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _unet(size: Size) -> UNet2DConditionModel:
    depth = len(size.unet_channels)
    return UNet2DConditionModel(
        sample_size=size.sample_size,
        in_channels=4,
        out_channels=4,
        center_input_sample=False,
        block_out_channels=size.unet_channels,
        layers_per_block=size.unet_layers,
        down_block_types=("CrossAttnDownBlock2D",) * (depth - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (depth - 1),
        cross_attention_dim=size.text_width,
        attention_head_dim=size.unet_heads,
        norm_num_groups=size.unet_groups,
    )


def _vae(size: Size) -> AutoencoderKL:
    depth = len(size.vae_channels)
    return AutoencoderKL(
        sample_size=size.sample_size * 2 ** (depth - 1),
        latent_channels=4,
        block_out_channels=size.vae_channels,
        layers_per_block=size.vae_layers,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        norm_num_groups=size.vae_groups,
        scaling_factor=0.18215,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--size", choices=sorted(SIZES), default="sd15")
    options: Any = parser.parse_args(arguments)
    write_pipeline(options.folder, SIZES[options.size], seed=options.seed, dtype=getattr(torch, options.dtype))
    print(f"{options.folder}: {options.size}, seed {options.seed}, {options.dtype}")


if __name__ == "__main__":
    main()
