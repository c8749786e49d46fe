"""The pocket model's vocabulary: byte-level BPE, so any string has tokens, in CLIP's own format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from twostage.pocket.world import CLASSES, LIVE, caption, sample_scene, sample_subject

VOCABULARY_SIZE = 3000
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def corpus(seed: int, captions: int = 4000) -> list[str]:
    """Captions of the world, and common English words that captions hardly use: the rare tokens."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(captions):
        subject = sample_subject(rng, CLASSES[i % len(CLASSES)])
        lines.append(caption(subject, sample_scene(rng, subject.class_name in LIVE), rng))
    words = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
    # Three times, so that whole words outrank accidental fragments of the captions.
    return lines + words * 3


def build_tokenizer(seed: int = 0) -> CLIPTokenizer:
    """Train the BPE merges on `corpus` and return a stock CLIPTokenizer of at most 3,000 tokens."""
    empty = CLIPTokenizer()
    trainer_model = empty.backend_tokenizer
    trainer_model.model = models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        # Named beforehand, for the trainer numbers what it meets in random order, and ties go by number.
        special_tokens=[letter + "</w>" for letter in sorted(pre_tokenizers.ByteLevel.alphabet())],
        show_progress=False,
    )
    trainer_model.train_from_iterator(corpus(seed), trainer)
    vocabulary, merges = _vocabulary_and_merges(trainer_model.model)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _vocabulary_and_merges(model: models.BPE) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        merges = [
            (left, right)
            for left, right in (
                line.split(" ") for line in (Path(folder) / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
            )
        ]
        trained = json.loads((Path(folder) / "vocab.json").read_text(encoding="utf-8"))
    # As in CLIP: the 256 bytes, the same with the end-of-word mark, then the merges, then the two specials.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys(alphabet + [letter + "</w>" for letter in alphabet])
    tokens.update(dict.fromkeys(token for token, _ in sorted(trained.items(), key=lambda item: item[1])))
    tokens.update(dict.fromkeys([BOS, EOS]))
    return {token: index for index, token in enumerate(tokens)}, merges
