"""What lies beside photos: masks, sub-folders of repeats; and how many photos are used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.errors import UserError
from twostage.subject.photos import MAX_REPEATS, find_photos, load_mask, load_photo


def save(path, size=(40, 32), colour="red", mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def half_mask(path, size=(40, 32), mode="L", **options):
    """White on the left half."""
    image = Image.new("L", size, "black")
    image.paste("white", (0, 0, size[0] // 2, size[1]))
    image.convert(mode).save(path, **options)


def refused(folder, match):
    with pytest.raises(UserError, match=match) as caught:
        find_photos(folder)
    assert "\n" not in str(caught.value)


# --- how many photos ---


def test_the_first_photos_by_name_are_used_when_asked_for(tmp_path):
    for name in "cab":
        save(tmp_path / f"{name}.png")
    assert [photo.path.stem for photo in find_photos(tmp_path, 2)] == ["a", "b"]
    assert len(find_photos(tmp_path, 3)) == 3
    with pytest.raises(UserError, match=r"num_photos 4: .* holds 3"):
        find_photos(tmp_path, 4)


# --- repeats ---


def test_a_sub_folder_of_a_number_and_a_name_repeats_its_photos(tmp_path):
    save(tmp_path / "b.png")
    save(tmp_path / "10_sks dog" / "b.png")
    save(tmp_path / "2_far" / "a.png")
    (tmp_path / "2_far" / "a.txt").write_text("a {} far away", encoding="utf-8")
    half_mask(tmp_path / "2_far" / "a-masklabel.png")
    save(tmp_path / "0_left out" / "c.png")
    save(tmp_path / "rest" / "c.png")
    save(tmp_path / "2_far" / "3_deeper" / "c.png")
    found = [(str(photo.path.relative_to(tmp_path)), photo.repeats, photo.caption) for photo in find_photos(tmp_path)]
    assert found == [("b.png", 1, None), ("10_sks dog/b.png", 10, None), ("2_far/a.png", 2, "a {} far away")]
    assert find_photos(tmp_path)[2].mask


def test_a_folder_of_nothing_but_repeats_will_do(tmp_path):
    save(tmp_path / "3_dog" / "a.png")
    assert [photo.repeats for photo in find_photos(tmp_path)] == [3]


def test_more_repeats_than_make_sense_are_refused(tmp_path):
    """A date is no number of repeats."""
    save(tmp_path / "2023_summer" / "a.png")
    refused(tmp_path, rf"2023_summer.*{MAX_REPEATS}")


def test_a_bad_photo_in_a_sub_folder_is_named_with_it(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "3_x").mkdir()
    (tmp_path / "3_x" / "b.png").write_bytes(b"")
    refused(tmp_path, r"1 of the 2 photos .*3_x/b\.png \(0 bytes\)")


# --- masks ---


def test_a_mask_is_no_photo_and_belongs_to_one(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "b.jpg")
    half_mask(tmp_path / "a-masklabel.png")
    one, other = find_photos(tmp_path)
    assert one.mask and one.mask.path.name == "a-masklabel.png"
    assert other.mask is None
    assert (load_mask(other, (16, 16), (2, 2), "crop") == 1).all()


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "RGBA"])
def test_the_mask_is_cut_like_its_photo_and_averaged_over_areas(tmp_path, mode):
    """A photo painted as its mask: what the U-Net's places see of it is what the mask says of them."""
    half_mask(tmp_path / "a.png", mode="RGB")
    half_mask(tmp_path / "a-masklabel.png", mode=mode)
    (photo,) = find_photos(tmp_path)
    for fit, size in (("crop", (32, 32)), ("crop", (24, 40)), ("crop", (40, 24))):
        pixels = (load_photo(photo, size, fit)[:1] + 1) / 2
        mask = load_mask(photo, size, (size[0] // 8, size[1] // 8), fit)
        assert mask.shape == (1, size[1] // 8, size[0] // 8)
        torch.testing.assert_close(mask, torch.nn.functional.avg_pool2d(pixels, 8), atol=0.05, rtol=0)


def test_a_place_half_covered_counts_half(tmp_path):
    save(tmp_path / "a.png", (24, 24))
    half_mask(tmp_path / "a-masklabel.png", (24, 24))
    (photo,) = find_photos(tmp_path)
    torch.testing.assert_close(load_mask(photo, (24, 24), (3, 1), "crop"), torch.tensor([[[1.0, 0.5, 0.0]]]))


def test_what_is_filled_up_does_not_count(tmp_path):
    save(tmp_path / "a.png", (40, 20))
    save(tmp_path / "a-masklabel.png", (40, 20), "white", "L")
    (photo,) = find_photos(tmp_path)
    mask = load_mask(photo, (16, 16), (4, 4), "pad")
    assert mask[0, :, 0].tolist() == [0, 1, 1, 0]


def test_a_transparent_mask_is_black_there(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "a-masklabel.png", colour=(255, 255, 255, 0), mode="RGBA")
    (photo,) = find_photos(tmp_path)
    assert load_mask(photo, (16, 16), (2, 2), "crop").max() == 0


def test_photo_and_mask_are_compared_upright(tmp_path):
    """A phone's photo lies on its side in the file; the mask somebody painted on it does not."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(tmp_path / "a.jpg", exif=exif)
    half_mask(tmp_path / "a-masklabel.png", (600, 800))
    (photo,) = find_photos(tmp_path)
    assert photo.size == (600, 800)
    assert photo.mask


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    save(tmp_path / "a.jpg", (400, 320))
    half_mask(tmp_path / "a-masklabel.png", (320, 400))
    refused(tmp_path, r"a-masklabel\.png is 320x400 and its photo a\.jpg 400x320")


def test_masks_that_fit_no_photo_or_two_are_refused(tmp_path):
    save(tmp_path / "a.png")
    half_mask(tmp_path / "b-masklabel.png")
    refused(tmp_path, r"b-masklabel\.png is the mask of no photo")
    (tmp_path / "b-masklabel.png").rename(tmp_path / "a-masklabel.png")
    half_mask(tmp_path / "a-masklabel.webp")
    refused(tmp_path, r"a\.png has two masks: a-masklabel\.png, a-masklabel\.webp")
    (tmp_path / "a-masklabel.webp").unlink()
    save(tmp_path / "a.jpg")
    refused(tmp_path, r"would be the mask of a\.jpg, a\.png")


def test_a_broken_mask_is_named_among_the_bad_photos(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a-masklabel.png").write_text("x", encoding="utf-8")
    refused(tmp_path, r"a-masklabel\.png \(broken")


def test_masks_alone_are_no_photos(tmp_path):
    half_mask(tmp_path / "a-masklabel.png")
    refused(tmp_path, "mask of no photo")
