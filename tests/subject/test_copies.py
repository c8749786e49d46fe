"""Copies of a picture are found; other pictures of the same thing are not taken for copies."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.watching import noise_photo
from twostage.subject.copies import Thumbnail, find_copy

DATASET = Path(__file__).parents[3] / "shared" / "dreambooth" / "dataset"
# What references_and_licenses.txt of the data set says of its photos, and what is there.
COPIES = {("cat", "02.jpg", "03.jpg"), ("dog5", "02.jpg", "03.jpg")}


def drawn(seed: int) -> Image.Image:
    picture = noise_photo(seed, (200, 160)).convert("L")
    return ImageOps.colorize(picture, "black", ("orange", "teal", "pink")[seed])


def saved_again(picture: Image.Image, quality: int = 60) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=quality)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (saved_again, "unchanged"),
        (lambda picture: picture.resize((130, 104)), "unchanged"),
        (lambda picture: ImageEnhance.Brightness(picture).enhance(1.3), "unchanged"),
        (ImageOps.mirror, "mirrored"),
        (lambda picture: picture.crop((40, 0, 200, 160)), "shifted by 25%"),
        (lambda picture: ImageOps.mirror(picture.crop((40, 0, 200, 160))), "mirrored and shifted by 25%"),
    ],
)
def test_a_copy_is_found_and_described(change, said: str) -> None:
    picture = drawn(0)
    whole = picture.crop((0, 0, 160, 160)) if "shifted" in said else picture
    assert str(find_copy(Thumbnail(whole), Thumbnail(change(picture)))) == said


def test_other_pictures_are_no_copies() -> None:
    for one, other in combinations([drawn(0), drawn(1), drawn(2), Image.new("RGB", (9, 9), "white")], 2):
        assert find_copy(Thumbnail(one), Thumbnail(other)) is None


def test_pictures_of_one_pixel_or_one_colour_are_compared_without_a_word() -> None:
    one, other = Thumbnail(Image.new("RGB", (1, 1))), Thumbnail(Image.new("RGB", (300, 2), "white"))
    assert find_copy(one, other) is None
    assert find_copy(one, one) is None


@pytest.mark.skipif(not DATASET.is_dir(), reason="the DreamBooth data set is not here")
@pytest.mark.parametrize("subject", ["cat", "dog5", "red_cartoon", "vase", "berry_bowl"])
def test_the_copies_in_real_photos_are_found_and_no_others(subject: str) -> None:
    """Two sets with a copy, and the three whose photos are most alike: on white, or from one spot."""
    seen = {path.name: Thumbnail(Image.open(path).convert("RGB")) for path in DATASET.glob(f"{subject}/*.jpg")}
    found = {(subject, *pair) for pair in combinations(sorted(seen), 2) if find_copy(seen[pair[0]], seen[pair[1]])}
    assert found == {copy for copy in COPIES if copy[0] == subject}
