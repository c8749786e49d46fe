"""twostage/subject/encoders.py: neighbours and states are those of stock classes; random weights say nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.subject.vocabularies import untrained
from twostage.subject.encoders import Encoder


@pytest.fixture(scope="module")
def encoder(learned_tokenizer):
    return Encoder("text_encoder", learned_tokenizer, untrained(learned_tokenizer))


@torch.no_grad()
def stock_state(encoder, text):
    ids = encoder.tokenizer(text, return_tensors="pt").input_ids
    return encoder.model(ids).last_hidden_state[0, -1]


def test_end_states_are_those_of_the_stock_encoder(encoder):
    texts = ["dog", "a photo of a dog", "a"]
    states = encoder.end_states([encoder.vocabulary.encode(text) for text in texts])
    for text, state in zip(texts, states, strict=True):
        assert torch.allclose(state, stock_state(encoder, text), atol=1e-5)


def test_a_text_beyond_the_limit_is_read_as_far_as_the_encoder_reads(encoder):
    ids = encoder.vocabulary.encode("the object " * 60)
    assert encoder.limit == 77
    assert torch.equal(encoder.end_states([ids]), encoder.end_states([ids[:75]]))


def test_neighbours_have_the_highest_cosines_and_are_not_the_word_itself(encoder):
    vocabulary = encoder.vocabulary
    own = vocabulary.words["object"]
    cosines = F.cosine_similarity(encoder.table, encoder.table[[own]])
    best = sorted((word for word in vocabulary.known if word != "object"), key=lambda w: -cosines[vocabulary.known[w]])
    found = encoder.neighbours([own], 3)
    assert [neighbour.word for neighbour in found] == best[:3]
    assert found[0].cosine == pytest.approx(float(cosines[vocabulary.known[best[0]]]), abs=1e-5)


def test_words_like_a_word_are_near_it_at_the_end_of_the_text(encoder):
    found = encoder.words_like("object", 3)
    assert len(found) == 3
    assert "object" not in [neighbour.word for neighbour in found]
    assert 1 >= found[0].cosine >= found[1].cosine >= found[2].cosine


def test_pull_is_how_far_the_sentence_moves(encoder):
    words = ["the", "sks"]
    pulls = encoder.pull([encoder.vocabulary.encode(word) for word in words], "object")
    without = stock_state(encoder, "a photo of a object")
    for word, pull in zip(words, pulls, strict=True):
        moved = stock_state(encoder, f"a photo of a {word} object")
        assert float(pull) == pytest.approx(1 - float(F.cosine_similarity(moved, without, dim=0)), abs=1e-5)
    assert float(encoder.pull([[]], "object")[0]) == pytest.approx(0, abs=1e-6)


def test_random_weights_say_nothing_of_training(encoder):
    assert not any(measure.tells for measure in [*encoder.table_measures(), encoder.pull_measure("object")])


def test_rows_that_training_moved_are_told_from_those_it_never_reached(learned_tokenizer):
    model = untrained(learned_tokenizer)
    table = model.get_input_embeddings().weight
    unreachable = Encoder("text_encoder", learned_tokenizer, model).vocabulary.unreachable
    moved = [index for index in range(len(table)) if index not in unreachable]
    with torch.no_grad():
        table[moved] = 3 * table[moved] + 0.02 * torch.randn(table.shape[1])
    norm, neighbours = Encoder("text_encoder", learned_tokenizer, model).table_measures()
    assert norm.tells and neighbours.tells
    ends = torch.tensor([norm.untouched, norm.frequent])
    assert norm.trained(ends).tolist() == [0, 1]
