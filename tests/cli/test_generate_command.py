"""`twostage generate` saves what the library draws, and refuses what cannot be drawn."""

import os

import pytest
from PIL import Image

from cli.generate import _save

PROMPT = "a photo of <rare> Bäg / at the beach"


def test_pictures_are_numbered_on_and_say_how_they_were_made(tmp_path):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pictures[1].info["away from"] = "base"
    first = _save(pictures, tmp_path / "new" / "folder", 3, PROMPT)
    second = _save(pictures, tmp_path / "new" / "folder", 3, PROMPT)
    assert [path.name[:5] for path in first + second] == ["0001-", "0002-", "0003-", "0004-"]
    with Image.open(second[1]) as picture:
        assert picture.info["prompt"] == PROMPT
        assert picture.info["away from"] == "base"
        assert picture.info["seed"] == "4"


def test_a_long_prompt_makes_no_long_name(tmp_path):
    (path,) = _save([Image.new("RGB", (8, 8))], tmp_path, 0, "very " * 200)
    assert len(path.name) < 80


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-run", "a photo"], "no run folder"),
        ([".", " "], "PROMPT is empty"),
        ([".", "caf\udce9"], "UTF-8"),
        ([".", "a photo", "-n", "0"], "--count"),
        ([".", "a photo", "--guidance", "nan"], "--guidance"),
        ([".", "a photo", "--class-guidance", "1.5"], "--class-guidance"),
        ([".", "a photo", "--steps", "many"], "--steps"),
        ([".", "a photo", "--seed", "9" * 30], "--seed"),
        ([".", "a photo"], "no run"),
    ],
)
def test_a_mistake_gets_one_line(mistake, arguments, expected):
    assert expected in mistake("generate", *arguments)


def test_an_output_that_cannot_be_written_is_found_before_drawing(mistake, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write anywhere")
    assert "not yours to write" in mistake("generate", ".", "a photo", "--output", "locked/pictures")


def test_output_that_is_a_file(mistake, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in mistake("generate", ".", "a photo", "--output", "file")
