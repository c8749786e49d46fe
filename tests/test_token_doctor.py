"""twostage/token_doctor.py: what is found is what the base's own files say, and what is drawn is the base's own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from twostage.display import Display
from twostage.errors import UserError
from twostage.families import load_base
from twostage.token_doctor import draw_token, inspect_token, suggest_tokens

SILENT = Display()


def test_suggestions_are_as_many_as_asked_and_one_token_each():
    found = suggest_tokens("pocket", class_noun="stuffed animal", count=4, display=SILENT)
    assert (found.base, found.noun) == ("pocket", "stuffed animal")
    assert len(found.tokens) == len(found.adjectives) == len(found.initial_words) == 4
    tokenizer = load_base("pocket").tokenizer
    for text in [token.text for token in found.tokens + found.adjectives] + [w.word for w in found.initial_words]:
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == 1


def test_without_a_class_there_are_no_initial_words(tiny_base):
    found = suggest_tokens(str(tiny_base), count=2, length=2, display=SILENT)
    assert not found.initial_words
    assert "from the vocabulary alone" in found.notes[0]


def test_it_says_when_the_vocabulary_holds_no_more(tiny_base):
    found = suggest_tokens(str(tiny_base), count=1000, display=SILENT)
    assert f"there are {len(found.tokens)} such texts" in found.notes[-1]


def test_braces_in_a_prompt_stand_for_text_and_class(tiny_base):
    (found,) = inspect_token(str(tiny_base), "sks", class_noun="backpack", prompt="a {} here", display=SILENT)
    assert found.encoder == "text_encoder"
    assert found.cut is not None and found.cut.read == "a sks backpack here"


def test_a_row_with_the_text_and_one_without_from_the_same_noise(tiny_base, tmp_path):
    picture = tmp_path / "new" / "sheet.png"
    assert draw_token(str(tiny_base), "photo", picture, class_noun="dog", count=2, display=SILENT) == picture
    with Image.open(picture) as sheet:
        width, height = sheet.size
        pixels = np.asarray(sheet.convert("RGB"))
    assert width > 2 * 128 and height > 2 * 128
    assert pixels.std() > 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sheet.gif", ".png"), ("sheet", ".png"), ("there.png", "exists already"), ("there.png/sheet.png", "no folder")],
)
def test_a_picture_that_cannot_be_written_is_found_before_drawing(tmp_path, name, expected):
    (tmp_path / "there.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=expected):
        draw_token("no base is loaded", "sks", tmp_path / name, display=SILENT)
    assert (tmp_path / "there.png").read_bytes() == b"mine"


def test_an_unknown_base_is_refused():
    for verb in (lambda: suggest_tokens("./nowhere"), lambda: inspect_token("./nowhere", "sks")):
        with pytest.raises(UserError, match="no folder here"):
            verb()
