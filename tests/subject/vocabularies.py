"""A vocabulary learned from English, and a text encoder for it that has learned nothing."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# No words, and as rare in the text below as the rarest words that get a token of their own.
RARE_STRINGS = ("sks", "ohwx", "zwqk", "rcn", "bnha", "httr")


def learn_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn byte pairs as CLIP's were, from Python's own documentation; write the vocabulary, and read it back."""
    text = " ".join(topics.values())[:250_000] + f" {' '.join(RARE_STRINGS)}" * 5
    blank = CLIPTokenizer()
    blank.backend_tokenizer.model = models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=3000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    blank.backend_tokenizer.train_from_iterator([text], trainer)
    merges = [tuple(pair) for pair in json.loads(blank.backend_tokenizer.to_str())["model"]["merges"]]
    tokens = alphabet + [f"{byte}</w>" for byte in alphabet] + ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def untrained(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small text encoder of random weights."""
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()
