"""The pocket vocabulary."""

import pytest
from transformers import CLIPTokenizer

from twostage.pretraining.tokenizer import VOCABULARY_SIZE, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


@pytest.mark.parametrize("text", ["a photo of a dog", "señor ☃ 雪 \t x", "sks", "<|weird|>", "UPPER case", "1234"])
def test_any_string_has_tokens_and_none_is_unknown(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == " ".join(text.lower().split()).replace(" ", "")


def test_the_words_of_the_world_are_single_tokens(tokenizer: CLIPTokenizer) -> None:
    for word in ("backpack", "teapot", "jungle", "red", "cobblestone", "photo", "sks"):
        assert len(tokenizer.tokenize(word)) == 1


def test_the_vocabulary_has_clips_form(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer) <= VOCABULARY_SIZE
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.model_max_length == 77
    padded = tokenizer("a dog", padding="max_length").input_ids
    assert padded[0] == tokenizer.bos_token_id
    assert padded[3:] == [tokenizer.eos_token_id] * 74


def test_the_vocabulary_is_the_same_every_time(tokenizer: CLIPTokenizer) -> None:
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
