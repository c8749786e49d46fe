"""What the families share: text encoders, tokenizers, the autoencoder, and how a pipeline is written."""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from benchmarks.random_sd15 import WORDS, make_tokenizer
from twostage.quiet import quiet

DTYPES = ("float32", "float16", "bfloat16")
SENTINELS = 100  # T5's <extra_id_99> to <extra_id_0>, its last entries.


@dataclass(frozen=True)
class ClipSize:
    """The numbers in which one CLIP text encoder differs from another."""

    width: int
    layers: int
    heads: int
    projection: int
    activation: str = "gelu"  # OpenCLIP's; OpenAI's has quick_gelu.
    vocabulary: int = 49408


@dataclass(frozen=True)
class T5Size:
    """The numbers of a T5 v1.1 encoder. Its tokenizer knows fewer entries than its table has rows, as published."""

    width: int = 4096
    head_width: int = 64
    heads: int = 64
    inner_width: int = 10240
    layers: int = 24
    rows: int = 32128
    vocabulary: int = 32100


@dataclass(frozen=True)
class AutoencoderSize:
    """The numbers in which one AutoencoderKL differs from another. A picture has `side` pixels, for its config only."""

    side: int
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32


OPENAI_CLIP = ClipSize(width=768, layers=12, heads=12, projection=768, activation="quick_gelu")
TINY_CLIP = ClipSize(width=16, layers=2, heads=2, projection=16, activation="quick_gelu", vocabulary=1024)
TINY_T5 = T5Size(width=32, head_width=8, heads=2, inner_width=48, layers=2, rows=1024, vocabulary=996)


def make_clip_tokenizer(vocabulary: int, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer; OpenAI's encoder is padded with the end token, OpenCLIP's with '!', which is entry 0."""
    tokenizer = copy.deepcopy(_clip_tokenizer(vocabulary))
    tokenizer.pad_token = pad
    return tokenizer


@functools.cache
def _clip_tokenizer(vocabulary: int) -> CLIPTokenizer:
    """The same entries in the same order for each encoder of a pipeline: what learns them breaks ties by chance."""
    return make_tokenizer(vocabulary)


def make_clip(size: ClipSize, *, projected: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    """CLIP's text encoder, `projected` with the layer that projects its pooled state."""
    config = CLIPTextConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        projection_dim=size.projection,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=77,
        hidden_act=size.activation,
        # As published, and wrong: with 2, transformers pools the state at the highest id, not at the end token.
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def make_t5_tokenizer(vocabulary: int, max_length: int) -> T5Tokenizer:
    """T5's tokenizer with that many entries, in T5's order: pad, end, unknown, pieces, sentinels.

    The pieces are words, characters and combinations of letters; a space before them is '▁'.
    """
    wanted = vocabulary - 3 - SENTINELS
    pieces = dict.fromkeys(["▁", *(f"▁{word}" for word in WORDS)], -6.0)
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    for parts, score in ((characters, -14.0), (_letters(2), -16.0), (_letters(3), -18.0)):
        for piece in itertools.chain(parts, (f"▁{part}" for part in parts)):
            if len(pieces) < wanted:
                pieces.setdefault(piece, score)
    assert len(pieces) == wanted, f"a vocabulary of {vocabulary} is out of reach: {len(pieces) + 3 + SENTINELS}"
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    sentinels = [(f"<extra_id_{index}>", 0.0) for index in reversed(range(SENTINELS))]
    return T5Tokenizer(vocab=[*special, *pieces.items(), *sentinels], extra_ids=SENTINELS, model_max_length=max_length)


def _letters(length: int) -> list[str]:
    return ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=length)]


def make_t5(size: T5Size) -> T5EncoderModel:
    config = T5Config(
        vocab_size=size.rows,
        d_model=size.width,
        d_kv=size.head_width,
        d_ff=size.inner_width,
        num_layers=size.layers,
        num_decoder_layers=size.layers,
        num_heads=size.heads,
        relative_attention_num_buckets=32,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=True,
        decoder_start_token_id=0,
    )
    return T5EncoderModel(config)


def make_autoencoder(size: AutoencoderSize, *, latent_channels: int = 4, **published: Any) -> AutoencoderKL:
    """The autoencoder; `published` are entries of its config that its family sets."""
    depth = len(size.channels)
    return AutoencoderKL(
        sample_size=size.side,
        latent_channels=latent_channels,
        block_out_channels=size.channels,
        layers_per_block=size.layers,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        norm_num_groups=size.groups,
        **published,
    )


def save(pipeline: DiffusionPipeline, folder: Path, dtype: torch.dtype, **tokenizers: str) -> None:
    """Write `pipeline`; `tokenizers` gives the class that the published index names, where saving names another."""
    with quiet():
        pipeline.to(dtype).save_pretrained(folder, safe_serialization=True)
    index = folder / "model_index.json"
    entries = json.loads(index.read_text(encoding="utf-8"))
    entries |= {name: ["transformers", class_name] for name, class_name in tokenizers.items()}
    index.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def command_line(doc: str | None, sizes: dict[str, Any], write: Callable[..., None]) -> None:
    """Write the pipeline that the command line asks for."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--size", choices=sorted(sizes), default=next(iter(sizes)))
    options = parser.parse_args()
    write(options.folder, sizes[options.size], seed=options.seed, dtype=getattr(torch, options.dtype))
    print(f"{options.folder}: {options.size}, seed {options.seed}, {options.dtype}")
