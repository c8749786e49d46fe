"""A checkup of a folder of photos, from the files to the sheet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.watching import Alive, noise_photo
from twostage import photo_doctor
from twostage.display import Display
from twostage.errors import UserError
from twostage.photo_doctor import SHEET, Checkup, check_photos
from twostage.recipe import Data
from twostage.subject.held_out import find_held_out, leaks
from twostage.subject.measures import Measures, measure_photo
from twostage.subject.photos import find_photos

DATASET = Path(__file__).parents[2] / "shared" / "dreambooth" / "dataset"
SETS = sorted(path.name for path in DATASET.iterdir() if path.is_dir()) if DATASET.is_dir() else []
COPIES = {"cat": ("02.jpg", "03.jpg"), "dog5": ("02.jpg", "03.jpg")}
SAME_BACKGROUND = {"berry_bowl", "red_cartoon"}
UNLIKE = {"backpack_dog": "02.jpg", "bear_plushie": "00.jpg", "shiny_sneaker": "03.jpg"}


def checkup(folder: Path, output: Path, **options: object) -> Checkup:
    return check_photos(folder, output, display=Display(), **options)  # type: ignore[arg-type]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Five photos of as many things; write to it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate("abcde"):
        noise_photo(seed).save(folder / f"{name}.png")
    return folder


def test_broken_files_are_collected_and_the_rest_is_looked_at(own: Path, tmp_path: Path) -> None:
    (own / "text.jpg").write_text("no picture")
    (own / "zero.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(own / "pixel.bmp")
    Image.new("L", (9, 9)).save(own / "moving.gif", save_all=True, append_images=[Image.new("L", (9, 9), 9)])
    Image.new("CMYK", (300, 300), (90, 20, 0, 0)).save(own / "cmyk.jpg")
    Image.new("I;16", (300, 300), 30000).save(own / "deep.png")
    Image.new("RGBA", (300, 300), (90, 20, 0, 0)).save(own / "clear.png")
    (own / "notes.txt").write_text("no caption of any photo")
    found = checkup(own, tmp_path / "out")
    broken = {name for finding in found.findings if finding.kind == "unusable" for name in finding.photos}
    assert broken == {"text.jpg", "zero.png", "moving.gif"}
    assert found.photos == [
        "a.png",
        "b.png",
        "c.png",
        "clear.png",
        "cmyk.jpg",
        "d.png",
        "deep.png",
        "e.png",
        "pixel.bmp",
    ]
    assert [finding.level for finding in found.findings][:3] == ["error"] * 3
    with Image.open(found.sheet) as sheet:
        assert sheet.width > 6 * 192


def test_the_photo_to_hold_out_has_no_copy_and_no_fault(own: Path, tmp_path: Path) -> None:
    for name in "abc":
        shutil.copy(own / f"{name}.png", own / f"{name}-again.png")
    with Image.open(own / "d.png") as photo:
        photo.resize((32, 32)).save(own / "d.png")
    found = checkup(own, tmp_path / "out")
    assert found.held_out == own / "e.png"
    held = find_held_out(Data(held_out=(found.held_out,)))
    seen = find_photos(own, held_out={photo.sha256 for photo in held})
    assert len(seen) == 7
    assert leaks(held, seen) == []
    shutil.copy(own / "e.png", own / "e-again.png")
    (own / "d.png").unlink()
    assert checkup(own, tmp_path / "out").held_out is None


@pytest.mark.parametrize("number", [1, 2])
def test_none_is_held_out_of_one_photo_or_two(own: Path, tmp_path: Path, number: int) -> None:
    for path in sorted(own.iterdir())[number:]:
        path.unlink()
    found = checkup(own, tmp_path / "out")
    assert found.held_out is None
    assert [finding.kind for finding in found.findings] == ["number"]


def test_what_training_refuses_of_the_folder_as_a_whole_is_an_error(own: Path, tmp_path: Path) -> None:
    shutil.copy(own / "a.png", own / "a.bmp")
    (own / "a.txt").write_text("a {}")
    (finding,) = [finding for finding in checkup(own, tmp_path / "out").findings if finding.level == "error"]
    assert "give each photo a stem of its own" in finding.says


def test_the_resolution_is_the_bases_unless_given(own: Path, tmp_path: Path, tiny_base: Path) -> None:
    assert checkup(own, tmp_path / "out", base=str(tiny_base)).resolution == 16
    found = checkup(own, tmp_path / "out", resolution=512, fit="bucket")
    assert found.resolution == 512
    assert sum(finding.kind == "size" for finding in found.findings) == 5


def test_a_large_photo_is_looked_at(own: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((5000, 4000)).save(own / "huge.jpg")
    assert "huge.jpg" in checkup(own, tmp_path / "out").photos


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000), (1, 500), (1, 1)])
def test_a_photo_of_any_shape_is_framed(own: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    noise_photo(3, (50, 50)).resize(size).save(own / "odd.png")
    assert "odd.png" in check_photos(own, tmp_path / "out", display=Display()).photos


def test_of_many_photos_no_pictures_are_kept_and_the_sheet_shows_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_doctor, "_MOST_SHOWN", 6)
    counters: list[Alive] = []

    def counted(*asked: Any) -> Measures:
        photo = measure_photo(*asked)
        counters[-1].see(photo.whole, photo.seen)
        return photo

    monkeypatch.setattr(photo_doctor, "measure_photo", counted)
    for count in (8, 16):
        (folder := tmp_path / str(count)).mkdir()
        for seed in range(count):
            noise_photo(seed, (80, 80)).save(folder / f"{seed:02}.png")
        Image.new("RGB", (80, 80)).save(folder / "zz-black.png")
        counters.append(Alive())
        found = checkup(folder, tmp_path / "out", resolution=64)
        assert len(found.photos) == count + 1
        (note,) = [finding for finding in found.findings if finding.kind == "sheet"]
        assert note.says == f"the sheet shows 6 of {count + 1} photos"
        with Image.open(found.sheet) as sheet:
            assert sheet.height < 3 * 300  # One row of photos, and one of what training sees with what is said.
    assert counters[0].most == counters[1].most < 16


@pytest.mark.parametrize("what", ["gone", "empty", "broken", "file"])
def test_a_folder_without_usable_photos_is_refused_and_nothing_written(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "photos"
    if what == "file":
        folder.write_text("x")
    elif what != "gone":
        folder.mkdir()
    if what == "broken":
        (folder / "a.jpg").write_text("no picture")
    with pytest.raises(UserError) as error:
        checkup(folder, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused(own: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no folder of yours to write"):
        checkup(own, tmp_path / "file" / "out")
    (tmp_path / "out" / SHEET).mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        checkup(own, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == [SHEET]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_refused(own: Path, tmp_path: Path) -> None:
    own.chmod(0)
    with pytest.raises(UserError, match="permission"):
        checkup(own, tmp_path / "out")


@pytest.mark.skipif(not SETS, reason="the DreamBooth data set is not here")
@pytest.mark.parametrize("name", SETS)
def test_real_photos_are_told_what_is_so_and_little_else(name: str, tmp_path: Path) -> None:
    """Both copies of the data set are found; a photo that looks unlike the rest is there in three of its 24 sets."""
    found = checkup(DATASET / name, tmp_path, resolution=512)
    said = {finding.kind: finding.photos for finding in found.findings}
    expected: dict[str, tuple[str, ...]] = {"copy": COPIES[name]} if name in COPIES else {}
    expected |= {"background": ()} if name in SAME_BACKGROUND else {}
    expected |= {"unlike": (UNLIKE[name],)} if name in UNLIKE else {}
    assert said == expected
    assert found.held_out is not None
    assert found.held_out.name not in {*expected.get("copy", ()), *expected.get("unlike", ())}
