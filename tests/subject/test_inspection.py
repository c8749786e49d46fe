"""twostage/subject/inspection.py: the cut is where the encoder stops to read, and every piece is shown."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from tests.subject.vocabularies import untrained
from twostage.errors import UserError
from twostage.subject.encoders import Encoder
from twostage.subject.inspection import cut_prompt, inspect_text


@pytest.fixture(scope="module")
def encoder(learned_tokenizer):
    return Encoder("text_encoder", learned_tokenizer, untrained(learned_tokenizer))


def what_is_read(encoder, prompt):
    return encoder.tokenizer(prompt, truncation=True, max_length=encoder.limit, add_special_tokens=True).input_ids[1:-1]


@pytest.mark.parametrize(
    "prompt",
    [
        "the object " * 40,
        "the  object,\n" * 40 + "end",
        "a " * 74 + "ohwxsksrcn and more",
        "a " * 75 + "object",
        "dóg ☃ " * 30,
        "sksrcn" * 60,
    ],
)
def test_a_prompt_is_cut_where_the_tokenizer_cuts_it(encoder, prompt):
    cut = cut_prompt(encoder, prompt)
    assert cut.read + cut.unread == prompt
    assert cut.unread.strip()
    assert cut.tokens == len(encoder.tokenizer(prompt).input_ids) > cut.limit == 77
    # What is shown as read is read; a word whose first bytes alone are read counts as not read.
    shown, read = encoder.vocabulary.encode(cut.read), what_is_read(encoder, prompt)
    assert encoder.tokenizer.decode(read).replace(" ", "").startswith("".join(cut.read.split()))
    assert 75 - len(shown) <= 4


def test_a_cut_within_a_word_is_shown_there(encoder):
    assert len(encoder.vocabulary.encode("ohwxsks")) > 1
    first = encoder.vocabulary.spelling[encoder.vocabulary.encode("ohwxsks")[0]]
    cut = cut_prompt(encoder, "a " * 74 + "ohwxsks")
    assert (cut.read.split()[-1], cut.unread) == (first, "ohwxsks"[len(first) :])


def test_a_prompt_that_fits_is_not_cut(encoder):
    prompt = "a " * 75
    cut = cut_prompt(encoder, prompt)
    assert (cut.read, cut.unread, cut.tokens) == (prompt, "", 77)


def test_each_word_is_split_into_its_pieces(encoder):
    found = inspect_text(encoder, "sks dóg")
    assert [piece.word for piece in found.pieces] == ["sks"] + ["dóg"] * (len(found.pieces) - 1)
    assert [piece.id for piece in found.pieces] == encoder.tokenizer("sks dóg").input_ids[1:-1]
    assert found.pieces[0].spelling == "sks</w>"
    assert found.pieces[0].rank == encoder.vocabulary.rank(found.pieces[0].id)
    assert found.weighed is None
    assert found.mean_norm == pytest.approx(float(encoder.norms.mean()))
    assert len(found.nearest) == len(found.pieces[0].nearest) == 3


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("sks", "one token of the vocabulary"),
        ("SKS", "one token of the vocabulary"),
        ("<rare>", "free as the name of a new token"),
        ("sks object", "no white space"),
        ("<|endoftext|>", "was added"),
        ("a{}", "choose a name"),
    ],
)
def test_it_says_whether_a_text_can_name_a_token(encoder, text, status):
    assert status in inspect_text(encoder, text).status


def test_one_word_is_weighed(encoder):
    assert inspect_text(encoder, "sks", noun="object").weighed.verdict == "rare"
    assert inspect_text(encoder, "The").weighed.verdict in ("common", "wordlike")


def test_a_text_without_tokens_is_refused(encoder):
    with pytest.raises(UserError, match="holds no token"):
        inspect_text(encoder, " ")


def test_a_vocabulary_without_merges_or_words_is_shown_all_the_same():
    letters = {letter: index for index, letter in enumerate([*"abc", "a</w>", "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=letters, merges=[], model_max_length=77)
    found = inspect_text(Encoder("text_encoder", tokenizer, untrained(tokenizer)), "cba")
    assert [(piece.spelling, piece.rank, piece.nearest) for piece in found.pieces] == [
        ("c", None, ()),
        ("b", None, ()),
        ("a</w>", None, ()),
    ]
    assert found.weighed is None and found.nearest == ()
