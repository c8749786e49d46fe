"""A real byte-level BPE `CLIPTokenizer` and the stock pipeline around it, both tiny and made in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.subject.vocabularies import learn_tokenizer

DREAMBOOTH = Path(__file__).resolve().parents[3] / "shared" / "dreambooth" / "dataset"
WORDS = ("a", "photo", "of", "the", "backpack", "dog", "cat", "bear", "on", "beach", "snow", "clean", "red", "sks")


@pytest.fixture(scope="session")
def dreambooth() -> Path:
    """The DreamBooth photos, where the machine has them."""
    if not DREAMBOOTH.is_dir():
        pytest.skip(f"no DreamBooth photos at {DREAMBOOTH}")
    return DREAMBOOTH


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's vocabulary in small: all bytes, all bytes ending a word, and merges that make a few words one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        merges += [("".join(letters[:i]), letters[i]) for i in range(1, len(letters))]
    merges = list(dict.fromkeys(merges))
    tokens = alphabet + [f"{byte}</w>" for byte in alphabet] + ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=24)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


@pytest.fixture
def tokenizer() -> CLIPTokenizer:
    return make_tokenizer()


@pytest.fixture
def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return make_text_encoder(tokenizer)


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    """A stock pipeline with random weights, as someone without this package would have it."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = StableDiffusionPipeline(
        vae,
        make_text_encoder(tokenizer),
        tokenizer,
        unet,
        DDIMScheduler(clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def learned_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """A vocabulary in CLIP's form with real words and real frequencies; add nothing to it."""
    return learn_tokenizer(tmp_path_factory.mktemp("vocabulary"))
