"""twostage/subject/captions.py, and caption files: which prompt a sample gets, and that it always names the token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twostage.errors import UserError
from twostage.recipe import Data, Token
from twostage.subject.captions import (
    OBJECT_TEMPLATES,
    STYLE_TEMPLATES,
    all_prompts,
    choose_prompt,
    subject_phrase,
    without_token,
)
from twostage.subject.photos import Photo, find_photos

PHRASE = "<rare> backpack"


def photo(caption: str | None = None) -> Photo:
    return Photo(Path("a.jpg"), caption, "", (20, 20))


def test_the_fields_templates_are_all_there():
    assert len(OBJECT_TEMPLATES) == len(set(OBJECT_TEMPLATES)) == 27
    assert all(template.count("{}") == 1 for template in OBJECT_TEMPLATES)


@pytest.mark.parametrize(
    ("token", "data", "phrase"),
    [
        (Token(), Data(class_noun=" stuffed  animal "), "<rare> stuffed animal"),
        (Token(role="noun"), Data(), "<rare>"),
        (Token(role="noun"), Data(class_noun="dog"), "<rare>"),
        (Token(num_vectors=3), Data(class_noun="dog"), "<rare> dog"),
        (Token(), Data(learnable="style"), "<rare>"),
        (Token(), Data(learnable="style", class_noun="woodcut"), "<rare> woodcut"),
    ],
)
def test_the_phrase_is_token_and_class_noun_right_wrong_or_none(token, data, phrase):
    assert subject_phrase(token, data) == phrase


def test_an_adjective_without_a_noun_is_refused_with_both_ways_out():
    with pytest.raises(UserError, match=r"--class backpack.*--token\.role noun"):
        subject_phrase(Token(), Data(class_noun=" "))


@pytest.mark.parametrize(
    ("token", "noun", "prompt", "plain"),
    [
        (Token(), " stuffed  animal ", "a <rare> stuffed animal, <rare>!", "a stuffed animal, stuffed animal!"),
        (Token(), "dog", "a <rare> in snow, a <rare>", "a dog in snow, a dog"),
        (Token(placeholder="sks"), "dog", "two masks dog", "two masks dog"),
        (Token(role="noun"), "dog", "a <rare> dog", "a dog"),
        (Token(), "dog", "a blue <rare> puppy and <rarer> things", "a blue puppy and <rarer> things"),
        (Token(placeholder="sks"), "dog", "a sks dog in a sksy place", "a dog in a sksy place"),
        (Token(role="noun"), "dog", "a <rare> on a beach", "a dog on a beach"),
        (Token(role="noun"), r"d\1g", "a <rare>", r"a d\1g"),
        (Token(), "dog", "a cat", "a cat"),
        (Token(role="noun"), "", "a <rare>", "a <rare>"),
    ],
)
def test_without_its_token_a_prompt_asks_for_the_class(token, noun, prompt, plain):
    assert without_token(prompt, [(token, Data(class_noun=noun))]) == plain


def test_a_style_has_templates_of_its_own():
    style = all_prompts([photo()], Data(learnable="style"), "<rare>")
    assert style == [template.format("<rare>") for template in STYLE_TEMPLATES]
    assert len(set(STYLE_TEMPLATES)) == len(STYLE_TEMPLATES) >= 15
    assert all(template.count("{}") == 1 for template in STYLE_TEMPLATES)
    assert not set(STYLE_TEMPLATES) & set(OBJECT_TEMPLATES)
    assert all_prompts([photo("a {}")], Data(learnable="style"), "<rare>") == ["a <rare>"]


def test_object_is_what_other_trainers_call_a_subject():
    assert Data(learnable="object").learnable == "subject"


def test_dropout_empties_that_share_of_prompts_and_leaves_the_others_as_they_were():
    def draw(data):
        return [choose_prompt(photo(), data, PHRASE, np.random.default_rng([0, step])) for step in range(1000)]

    plain, dropped = draw(Data()), draw(Data(caption_dropout=0.3))
    empty = [prompt == "" for prompt in dropped]
    assert 250 < sum(empty) < 350
    assert all(one == other for one, other, gone in zip(plain, dropped, empty, strict=True) if not gone)
    assert all_prompts([photo()], Data(caption_dropout=0.3), PHRASE) == [*all_prompts([photo()], Data(), PHRASE), ""]


def test_same_address_same_template_and_every_template_comes():
    drawn = [choose_prompt(photo(), Data(), PHRASE, np.random.default_rng([0, step])) for step in range(400)]
    assert drawn == [choose_prompt(photo(), Data(), PHRASE, np.random.default_rng([0, step])) for step in range(400)]
    assert set(drawn) == set(all_prompts([photo()], Data(), PHRASE))
    assert all(PHRASE in prompt for prompt in drawn)


@pytest.mark.parametrize(
    ("own", "shared", "prompt"),
    [
        ("a {} in a tree", "a picture of {}", "a <rare> backpack in a tree"),
        ("my <rare> bag", "a picture of {}", "my <rare> bag"),
        (None, "a picture of {}", "a picture of <rare> backpack"),
        (None, "{}, and {}", "<rare> backpack, and <rare> backpack"),
    ],
)
def test_own_caption_then_the_shared_one(own, shared, prompt):
    data = Data(caption=shared)
    assert choose_prompt(photo(own), data, PHRASE, np.random.default_rng(0)) == prompt
    assert all_prompts([photo(own), photo(own)], data, PHRASE) == [prompt]


def test_all_prompts_holds_captions_and_templates_once():
    prompts = all_prompts([photo("a {} here"), photo(), photo("a {} here"), photo()], Data(), PHRASE)
    assert len(prompts) == len(set(prompts)) == 28


@pytest.mark.parametrize(
    ("own", "shared", "where"), [("a backpack", "", "a.jpg"), (None, "a backpack", "data.caption")]
)
def test_a_caption_without_the_token_is_refused(own, shared, where):
    """It would train nothing, and nobody would notice."""
    with pytest.raises(UserError, match=where) as caught:
        all_prompts([photo(own)], Data(caption=shared), PHRASE)
    assert "<rare>" in str(caught.value)
    assert "{}" in str(caught.value)


def test_a_token_inside_a_longer_word_does_not_count():
    with pytest.raises(UserError):
        all_prompts([photo("she asks a dog")], Data(), "sks dog")
    assert all_prompts([photo("an sks, sitting")], Data(), "sks dog") == ["an sks, sitting"]


# --- caption files ---


def save_photo(path: Path) -> None:
    Image.new("RGB", (20, 20)).save(path)


@pytest.mark.parametrize("text", ["a {} here\n", "\ufeffa {} here", "  a {} here \r\nmore\r\n", "\n\na {} here"])
def test_caption_beside_the_photo(tmp_path, text):
    save_photo(tmp_path / "a.b.png")
    save_photo(tmp_path / "plain.png")
    (tmp_path / "a.b.txt").write_text(text, encoding="utf-8")
    assert [photo.caption for photo in find_photos(tmp_path)] == ["a {} here", None]


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "empty"), (b" \n", "empty"), (b"\xff\xfea\0", "UTF-8"), (b"a\0b\0", "UTF-8")]
)
def test_a_bad_caption_is_named(tmp_path, content, says):
    save_photo(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        find_photos(tmp_path)
    assert "a.txt" in str(caught.value)


def test_a_caption_for_two_photos_is_refused(tmp_path):
    save_photo(tmp_path / "a.png")
    save_photo(tmp_path / "a.jpg")
    assert len(find_photos(tmp_path)) == 2
    (tmp_path / "a.txt").write_text("a {}", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jpg, a\.png"):
        find_photos(tmp_path)
