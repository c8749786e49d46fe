"""twostage/subject/photos.py: any photo becomes the right pixels, and a bad one is named before anything runs."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.errors import UserError
from twostage.subject.photos import find_photos, load_photo
from twostage.subject.pictures import MAX_MEGAPIXELS

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.isprintable()
    return text


def only(folder, resolution=16, fit="crop") -> torch.Tensor:
    (photo,) = find_photos(folder)
    picture = load_photo(photo, resolution, fit)
    assert picture.shape == (3, resolution, resolution)
    assert picture.dtype == torch.float32
    assert picture.is_contiguous()
    assert picture.min() >= -1
    assert picture.max() <= 1
    return picture


def colour(picture: torch.Tensor, y: int, x: int) -> tuple[int, ...]:
    return tuple(((picture[:, y, x] + 1) * 127.5).round().int().tolist())


def save(path, colour=RED, size=(20, 20), **options):
    Image.new("RGB", size, colour).save(path, **options)
    return path


def test_real_photos(dreambooth):
    photos = find_photos(dreambooth / "backpack")
    assert [photo.path.name for photo in photos] == sorted(p.name for p in (dreambooth / "backpack").iterdir())
    assert all(photo.caption is None for photo in photos)
    assert photos[0].sha256 == hashlib.sha256(photos[0].path.read_bytes()).hexdigest()
    picture = load_photo(photos[0], 64, "crop")
    assert picture.shape == (3, 64, 64)
    assert picture.std() > 0.1


# --- every kind of picture ---


def test_every_format_pil_writes_and_reads_comes_back(tmp_path):
    """JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF ... as far as this PIL has them, capital suffixes too."""
    Image.init()
    tried = 0
    for suffix in (".jpg", ".JPEG", ".png", ".webp", ".bmp", ".TIF", ".gif", ".avif", ".ppm", ".tga", ".jp2", ".ico"):
        if Image.registered_extensions().get(suffix.lower()) not in Image.SAVE:
            continue
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        save(folder / f"photo{suffix}")
        got = colour(only(folder), 8, 8)
        assert max(abs(a - b) for a, b in zip(got, RED, strict=True)) <= 6, (suffix, got)
        tried += 1
    assert tried >= 6


@pytest.mark.parametrize(
    ("mode", "value", "wanted"),
    [
        ("1", 1, WHITE),
        ("L", 100, (100, 100, 100)),
        ("P", 0, (0, 0, 0)),
        ("RGB", BLUE, BLUE),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (0, 0), WHITE),
        ("RGBA", (0, 0, 255, 0), WHITE),
        ("RGBA", (0, 0, 255, 255), BLUE),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("I;16", 32896, (128, 128, 128)),
        ("I;16", 65535, WHITE),
        ("I;16", 300, (1, 1, 1)),
        ("I", 32896, (128, 128, 128)),
        ("F", 0.5, (128, 128, 128)),
        ("F", 128.0, (128, 128, 128)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
    ],
)
def test_every_mode(tmp_path, mode, value, wanted):
    """Deep grey is scaled, not clipped to white; transparency lies on white."""
    suffix = "tif" if mode in ("F", "CMYK", "YCbCr", "I") else "png"
    Image.new(mode, (20, 20), value).save(tmp_path / f"photo.{suffix}")
    assert colour(only(tmp_path), 8, 8) == wanted


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (0, 0, 10, 20))
    image.save(tmp_path / "photo.png", transparency=0)
    picture = only(tmp_path, 20)
    assert colour(picture, 10, 3) == WHITE
    assert colour(picture, 10, 17) == RED


def test_adobe_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "photo.jpg", quality=95)
    got = colour(only(tmp_path), 8, 8)
    assert got[0] > 240
    assert got[1] < 15
    assert got[2] < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    """Whatever way the sensor lay, the red edge comes out on top."""
    upright = Image.new("RGB", (40, 40), BLUE)
    upright.paste(RED, (0, 0, 40, 10))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose whose inverse the tag names
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    picture = only(tmp_path, 40)
    assert colour(picture, 3, 20) == RED
    assert colour(picture, 30, 20) == BLUE


@pytest.mark.parametrize("wide", [True, False])
def test_crop_keeps_the_centre_and_pad_keeps_everything_on_white(tmp_path, wide):
    size = (60, 20) if wide else (20, 60)
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (20, 0, 40, 20) if wide else (0, 20, 20, 40))
    image.save(tmp_path / "photo.png")
    crop = only(tmp_path, 16, "crop")
    assert {colour(crop, y, x) for y in (0, 8, 15) for x in (0, 8, 15)} == {GREEN}
    pad = only(tmp_path, 60, "pad")
    pad = pad if wide else pad.transpose(1, 2)
    assert [colour(pad, y, 5) for y in (5, 30, 55)] == [WHITE, RED, WHITE]
    assert colour(pad, 30, 30) == GREEN


def test_a_sliver_of_one_pixel(tmp_path):
    save(tmp_path / "photo.png", size=(1, 5000))
    assert colour(only(tmp_path), 8, 8) == RED


def test_a_jpeg_with_previews_is_one_photo(tmp_path):
    """Many phones write MPO: a JPEG with further pictures behind it. That is no animation."""
    Image.new("RGB", (20, 20), RED).save(
        tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (20, 20), BLUE)]
    )
    assert Image.open(tmp_path / "photo.jpg").n_frames == 2
    assert colour(only(tmp_path), 8, 8)[0] > 240


# --- what lies in the folder ---


def test_other_files_are_passed_over(tmp_path):
    save(tmp_path / "b.png")
    save(tmp_path / "A.JPG")
    save(tmp_path / "ünï 漢字.png")
    save(tmp_path / ".hidden.png")
    for name in ("notes.pdf", "b.json", "c.txt", "Thumbs.db", ".DS_Store", "clip.mp4", "figure.eps"):
        (tmp_path / name).write_bytes(b"whatever")
    (tmp_path / "sub").mkdir()
    save(tmp_path / "sub" / "deep.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert [photo.path.name for photo in find_photos(tmp_path)] == ["A.JPG", "b.png", "ünï 漢字.png"]


def test_links_are_followed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to(save(tmp_path / "elsewhere.png"))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert colour(only(tmp_path / "link"), 8, 8) == RED


def test_a_suffix_that_lies_is_no_matter(tmp_path):
    save(tmp_path / "photo.jpg", format="PNG")
    assert colour(only(tmp_path), 8, 8) == RED


# --- bad input ---


def test_folder_missing_a_file_or_empty(tmp_path):
    (tmp_path / "file.jpg").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tmp_path / "other" / "notes.pdf").write_bytes(b"x")
    for name, says in [
        ("missing", "does not exist"),
        ("file.jpg", "is a file"),
        ("file.jpg/below", "does not exist"),
        ("empty", "found nothing"),
        ("other", "notes.pdf, sub/"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            find_photos(tmp_path / name)
        assert name in one_line(caught)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def bad_photos(folder) -> dict[str, str]:
    """File name -> what the error must say of it."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8))
    noise.save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    frames = {"save_all": True, "append_images": [Image.new("RGB", (9, 9), BLUE)]}
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "header-only.jpg").write_bytes(whole[:30])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "bomb.png").write_bytes(png_claiming(60000, 60000))
    (folder / "large.png").write_bytes(png_claiming(11000, 10000))
    save(folder / "moving.gif", size=(9, 9), **frames)
    save(folder / "moving.png", size=(9, 9), **frames)
    save(folder / "moving.webp", size=(9, 9), **frames)
    (folder / "phone.HEIC").write_bytes(b"x")
    (folder / "nowhere.jpg").symlink_to(folder / "gone")
    return {
        "truncated.jpg": "truncated",
        "header-only.jpg": "broken",
        "zero.jpg": "0 bytes",
        "text.png": "not a picture",
        "bomb.png": f"more than {MAX_MEGAPIXELS} megapixels",
        "large.png": "11000x10000",
        "moving.gif": "animated, 2 frames",
        "moving.png": "animated, 2 frames",
        "moving.webp": "animated, 2 frames",
        "phone.HEIC": "convert it to JPEG",
        "nowhere.jpg": "a link to nothing",
    }


def test_all_bad_photos_among_good_ones_are_named_in_one_line(tmp_path):
    save(tmp_path / "good.png")
    bad = bad_photos(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as caught:
            find_photos(tmp_path)
    text = one_line(caught)
    assert f"{len(bad)} of the {len(bad) + 1} photos" in text
    assert "good.png" not in text
    for name, reason in bad.items():
        assert f"{name} (" in text
        assert reason in text.split(f"{name} (")[1].split("), ")[0], text


def test_the_size_limit_is_ours_not_pils_global(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png_claiming(60000, 60000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UserError, match="60000x60000"):
        find_photos(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    save(tmp_path / "a.png").chmod(0)
    with pytest.raises(UserError, match=r"a\.png \(permission denied\)"):
        find_photos(tmp_path)


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    """Photos with flipped bytes are read or refused; no decoder's own exception reaches the user."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    refused = 0
    for suffix in (".jpg", ".png", ".webp", ".bmp", ".tif", ".gif", ".tga", ".ico", ".jp2", ".avif"):
        if Image.registered_extensions().get(suffix) not in Image.SAVE:
            continue
        path = tmp_path / f"photo{suffix}"
        noise.save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[rng.integers(0, min(len(whole), 200), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                find_photos(tmp_path)
            except UserError as error:
                refused += "\n" not in str(error)
        path.unlink()
    assert refused > 20


def test_a_photo_damaged_after_it_was_found(tmp_path):
    (photo,) = find_photos(save(tmp_path / "a.png").parent)
    photo.path.write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        load_photo(photo, 16, "crop")
    photo.path.unlink()
    with pytest.raises(UserError, match="gone"):
        load_photo(photo, 16, "crop")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_that_is_no_text_can_still_be_printed(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"")
    try:
        open(os.fsencode(tmp_path) + b"/\xff.png", "wb").close()
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    with pytest.raises(UserError) as caught:
        find_photos(tmp_path)
    assert "a\\nb.png" in one_line(caught)
    one_line(caught).encode()
