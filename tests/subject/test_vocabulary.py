"""twostage/subject/vocabulary.py: merges tell how frequent a token was, and letters whether it is a word."""

from __future__ import annotations

import pytest

from twostage.subject.vocabulary import Vocabulary, word_list


@pytest.fixture(scope="module")
def vocabulary(learned_tokenizer):
    return Vocabulary(learned_tokenizer)


def test_words_come_in_the_order_in_which_they_were_learned(vocabulary):
    ranks = [vocabulary.rank(index) for word, index in vocabulary.words.items() if len(word) > 1]
    assert ranks == sorted(ranks)
    words = list(vocabulary.words)
    assert words.index("the") < words.index("object") < words.index("sks")
    assert vocabulary.rarity(vocabulary.words["the"]) < 0.1 < 0.7 < vocabulary.rarity(vocabulary.words["sks"]) <= 1


def test_a_rank_is_the_number_of_the_merge(vocabulary):
    assert vocabulary.merges == len(vocabulary.spelling) - 2 * 256 - 2
    assert all(vocabulary.rank(index) == index - 512 for index in (512, 700, 1500))
    assert vocabulary.rank(5) is None


def test_words_are_tokens_that_come_back(vocabulary):
    for word in ("the", "object", "sks"):
        assert vocabulary.encode(word) == [vocabulary.words[word]]
    assert all(word.isascii() and word.isalpha() and word.islower() for word in vocabulary.words)


def test_what_was_added_is_no_word(tokenizer):
    tokenizer.add_tokens(["blorb"])
    vocabulary = Vocabulary(tokenizer)
    (index,) = vocabulary.encode("blorb")
    assert vocabulary.rank(index) is None
    assert "blorb" not in vocabulary.words.keys() | vocabulary.heads.keys()


def test_no_text_leads_to_an_unreachable_token(vocabulary):
    every_character = "".join(map(chr, [*range(1, 0x3000), 0x1F600, 0x10FFFF]))
    assert len(vocabulary.unreachable) == 26
    assert not set(vocabulary.unreachable) & set(vocabulary.encode(every_character))


@pytest.mark.parametrize("word", ["dog", "red", "ewe", "yarn", "meadow", "container"])
def test_words_look_like_words(vocabulary, word):
    assert vocabulary.wordlike(word) > 0.5


@pytest.mark.parametrize("text", ["sks", "zwqk", "ohwx", "bnha", "qxu"])
def test_letters_at_random_do_not(vocabulary, text):
    assert vocabulary.wordlike(text) < 0.1


@pytest.mark.parametrize("name", ["short_words", "adjectives"])
def test_the_lists_hold_single_lower_case_words(name):
    words = word_list(name)
    assert len(words) > 500
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert name != "short_words" or {len(word) for word in words} == {3, 4}
