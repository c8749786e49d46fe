"""Photos that training must not see: found, checked, and their copies told of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from tests.watching import noise_photo
from twostage.errors import UserError
from twostage.recipe import Data
from twostage.subject.held_out import find_held_out, leaks
from twostage.subject.photos import find_photos


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Four photos with structure; write to it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate("abcd"):
        noise_photo(seed, (80, 80)).save(folder / f"{name}.png")
    return folder


def held_out(*paths: Path) -> list[str]:
    return [photo.path.name for photo in find_held_out(Data(held_out=paths))]


def test_photos_and_folders_are_named_together_and_each_counts_once(own: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    shutil.copy(own / "c.png", tmp_path / "more" / "same-as-c.png")
    shutil.copy(own / "a.png", tmp_path / "more" / "x.png")
    assert held_out(own / "c.png", tmp_path / "more", own / "c.png") == ["c.png", "x.png"]
    assert held_out(own) == ["a.png", "b.png", "c.png", "d.png"]
    assert held_out() == []


def test_a_single_photo_comes_with_its_mask_and_caption_whatever_else_lies_there(own: Path) -> None:
    (own / "a.txt").write_text("a {} on the grass")
    Image.new("L", (80, 80)).save(own / "a-masklabel.png")
    (own / "b.png").write_bytes(b"broken")
    (photo,) = find_held_out(Data(held_out=(own / "a.png",)))
    assert photo.caption == "a {} on the grass"
    assert photo.mask and photo.mask.path == own / "a-masklabel.png"


def test_the_photos_of_the_folder_with_the_same_bytes_are_left_out(own: Path, tmp_path: Path) -> None:
    shutil.copy(own / "b.png", tmp_path / "elsewhere.png")
    unseen = {photo.sha256 for photo in find_held_out(Data(held_out=(tmp_path / "elsewhere.png",)))}
    assert [photo.path.name for photo in find_photos(own, held_out=unseen)] == ["a.png", "c.png", "d.png"]
    assert [photo.path.name for photo in find_photos(own, 2, unseen)] == ["a.png", "c.png"]
    with pytest.raises(UserError, match="num_photos 4: .* holds 3, 1 more held out; "):
        find_photos(own, 4, unseen)


def test_holding_out_every_photo_is_refused(own: Path) -> None:
    unseen = {photo.sha256 for photo in find_held_out(Data(held_out=(own,)))}
    with pytest.raises(UserError, match=r"every photo in .*photos \(4\) is held out"):
        find_photos(own, held_out=unseen)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("gone.jpg", None, "gone.jpg does not exist; give a photo"),
        ("text.jpg", b"no picture", "text.jpg cannot be used: broken, or not a picture; "),
        ("notes.txt", b"a {} here", "notes.txt cannot be used: broken, or not a picture; "),
        ("empty.png", b"", "empty.png cannot be used: 0 bytes"),
        ("raw.nef", b"x", "raw.nef cannot be used: NEF cannot be read"),
    ],
)
def test_what_is_no_photo_is_refused_in_a_line(tmp_path: Path, name: str, content: bytes | None, match: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match) as error:
        held_out(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no photos in"):
        held_out(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_photo_that_may_not_be_read_is_refused(own: Path) -> None:
    (own / "a.png").chmod(0)
    with pytest.raises(UserError, match="permission"):
        held_out(own / "a.png")


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is empty or '\.'"):
        Data(held_out=(Path(""),))


def test_a_copy_that_training_sees_leaks(own: Path, tmp_path: Path) -> None:
    with Image.open(own / "b.png") as picture:
        ImageOps.mirror(picture).save(tmp_path / "b.jpg", quality=80)
    held = find_held_out(Data(held_out=(tmp_path / "b.jpg", own / "d.png")))
    photos = find_photos(own, held_out={photo.sha256 for photo in held})
    (note,) = leaks(held, photos)
    assert "b.jpg leaks: training sees " in note
    assert "b.png, the same picture mirrored" in note
    assert leaks([], photos) == []
