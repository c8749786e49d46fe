"""twostage/subject/rare_tokens.py: what means nothing comes before words, in a real vocabulary of any kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from tests.subject.vocabularies import RARE_STRINGS, untrained
from twostage.errors import UserError
from twostage.families import load_base
from twostage.subject.encoders import Encoder
from twostage.subject.rare_tokens import RareTokens
from twostage.subject.vocabulary import Vocabulary, word_list

COMMON = Path(__file__).parents[2] / "twostage" / "pretraining" / "words.txt"


@pytest.fixture(scope="module")
def rare(learned_tokenizer):
    return RareTokens(Encoder("text_encoder", learned_tokenizer, untrained(learned_tokenizer)))


@pytest.fixture(scope="module")
def pocket():
    base = load_base("pocket")
    return RareTokens(Encoder("text_encoder", base.tokenizer, base.text_encoder), "backpack")


def scores(rare, words):
    vocabulary = rare.vocabulary
    return {token.text: token.score for token in rare.weigh((word, (vocabulary.words[word],)) for word in words)}


def test_rare_strings_come_before_every_word_of_a_learned_vocabulary(rare):
    words = scores(rare, rare.vocabulary.known)
    assert len(words) > 1000
    found = scores(rare, RARE_STRINGS)
    assert min(found.values()) > 0.6
    short = [word for word in words if len(word) <= 4]
    assert max(words[word] for word in short) < min(found.values())
    assert sum(score < min(found.values()) for score in words.values()) > 0.99 * len(words)
    assert set(RARE_STRINGS) <= {token.text for token in rare.suggest(15)}


def test_what_is_suggested_of_the_pocket_vocabulary_is_no_word(pocket):
    suggested = {token.text: token.score for token in pocket.suggest(10)}
    assert {"sks", "bnha", "xyz"} <= suggested.keys()
    assert not suggested.keys() & word_list("short_words")
    words = [word for word in COMMON.read_text(encoding="utf-8").split() if word in word_list("short_words")]
    known = scores(pocket, [word for word in words if word in pocket.vocabulary.words])
    assert len(known) > 300
    assert max(known.values()) < min(suggested.values())


def test_rare_strings_come_before_every_word_of_clips_vocabulary():
    folder = os.environ.get("TWOSTAGE_CLIP_VOCABULARY")
    if not folder:
        pytest.skip("TWOSTAGE_CLIP_VOCABULARY names no folder with CLIP's vocab.json and merges.txt")
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    assert len(tokenizer) == 49408
    rare = RareTokens(Encoder("text_encoder", tokenizer, untrained(tokenizer)))
    found = scores(rare, ("sks", "ohwx", "bnha", "httr", "rcn", "hta", "omd", "ucn"))
    common = [word for word in COMMON.read_text(encoding="utf-8").split() if word not in ("sks", "ohwx", "bnha")]
    words = scores(rare, [word for word in common if word in rare.vocabulary.words])
    assert len(words) > 1000
    assert max(words.values()) < min(found.values())
    ordered = [token.text for token in rare.suggest(100)]
    assert {"sks", "ohwx"} <= set(ordered)
    assert not set(ordered) & word_list("short_words")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_text_is_short_and_its_tokens_come_back(rare, length):
    suggested = rare.suggest(8, length)
    assert len(suggested) == 8
    assert [token.score for token in suggested] == sorted((token.score for token in suggested), reverse=True)
    for token in suggested:
        assert len(token.ids) == length
        assert token.text.isascii() and token.text.isalpha() and len(token.text) <= max(4, 3 * length)
        tokenizer = rare.encoder.tokenizer
        assert tokenizer.decode(list(token.ids)).strip() == token.text
        assert tokenizer(f"a {token.text} dog").input_ids[2 : 2 + length] == list(token.ids)
    if length > 1:  # so that the list is no variations of one
        ids = [index for token in suggested for index in token.ids]
        assert len(ids) == len(set(ids))


def test_it_says_when_only_the_vocabulary_could_be_judged(rare, pocket):
    (note,) = rare.notes
    assert "from the vocabulary alone" in note
    (note,) = pocket.notes
    assert "is judged by" in note and "alone" not in note


def test_a_token_that_training_moved_is_not_as_rare_as_one_it_left_alone(learned_tokenizer):
    model = untrained(learned_tokenizer)
    table, vocabulary = model.get_input_embeddings().weight, Vocabulary(learned_tokenizer)
    with torch.no_grad():
        table[list(vocabulary.known.values())] *= 3
        table[vocabulary.words["rcn"]] *= 3
    rare = RareTokens(Encoder("text_encoder", learned_tokenizer, model))
    found = scores(rare, ("rcn", "sks"))
    assert found["rcn"] < 0.8 * found["sks"]
    assert [token.verdict for token in rare.weigh([("rcn", (vocabulary.words["rcn"],))])] == ["trained"]


def test_verdicts_say_what_speaks_against_a_word(rare):
    words = rare.vocabulary.words
    late = next(word for word in reversed(rare.vocabulary.known) if len(word) == 4)
    found = {token.text: token for token in rare.weigh((word, (words[word],)) for word in ("sks", "the", late))}
    assert found["sks"].verdict == "rare"
    assert found["the"].score == found[late].score == 0
    assert found[late].verdict == "wordlike"


def test_adjectives_are_rare_ones_of_one_token(pocket):
    adjectives = pocket.adjectives(5)
    assert len(adjectives) == 5
    for token in adjectives:
        assert token.text in word_list("adjectives")
        assert pocket.vocabulary.encode(token.text) == list(token.ids)
        assert token.rank is not None and token.rank > pocket.vocabulary.merges / 2


def test_initial_words_are_near_the_class_and_no_form_of_it(learned_tokenizer):
    model = untrained(learned_tokenizer)
    table, words = model.get_input_embeddings().weight, Vocabulary(learned_tokenizer).words
    with torch.no_grad():
        for word in ("objects", "method"):
            table[words[word]] = table[words["object"]] + 0.1 * table[words[word]]
    rare = RareTokens(Encoder("text_encoder", learned_tokenizer, model), "object")
    found = rare.initial_words(5)
    assert found[0].word == "method"
    assert found[0].by_table > 0.9 and found[0].by_output > 0.9
    assert not {"object", "objects"} & {word.word for word in found}


def test_a_class_that_is_no_word_here_is_told_with_the_nearest(learned_tokenizer):
    encoder = Encoder("text_encoder", learned_tokenizer, untrained(learned_tokenizer))
    note = RareTokens(encoder, "dictionarry").notes[0]
    assert "'dictionarry' is no word" in note and "did you mean 'dictionary'?" in note
    for noun in ("!!", "\x07", "\u200b"):
        with pytest.raises(UserError, match="holds no word"):
            RareTokens(encoder, noun)


def test_a_vocabulary_without_merges_is_refused():
    letters = {letter: index for index, letter in enumerate([*"abc", "a</w>", "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=letters, merges=[], model_max_length=24)
    with pytest.raises(UserError, match="no merges"):
        RareTokens(Encoder("text_encoder", tokenizer, untrained(tokenizer)))


def test_fewer_are_given_where_there_are_no_more(tokenizer, text_encoder):
    suggested = RareTokens(Encoder("text_encoder", tokenizer, text_encoder)).suggest(1000)
    assert "sks" in [token.text for token in suggested]
    assert len(suggested) < 20
