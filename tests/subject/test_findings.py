"""What is said of photos, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from tests.watching import noise_photo
from twostage.subject import findings
from twostage.subject.findings import (
    Finding,
    find_copies,
    look_at_all,
    look_at_likeness,
    look_at_photo,
    most_typical,
    sorted_findings,
)
from twostage.subject.measures import Measures, list_photos, measure_photo, sharpness
from twostage.subject.photos import Fit, load_mask, load_photo
from twostage.subject.pictures import Unusable


def scene(seed: int = 0, size: tuple[int, int] = (320, 320)) -> Image.Image:
    """A picture with edges, nothing like the next."""
    return ImageOps.colorize(noise_photo(seed, size).convert("L"), "black", ("white", "gold", "pink", "lime")[seed])


def measured(folder: Path, resolution: int = 256, fit: Fit = "crop") -> list[Measures]:
    return [measure_photo(path, folder, resolution, fit, 8) for path in list_photos(folder)]


def kinds(folder: Path, resolution: int = 256, fit: Fit = "crop") -> dict[str, Finding]:
    (photo,) = measured(folder, resolution, fit)
    return {finding.kind: finding for finding in look_at_photo(photo, fit)}


def test_a_good_photo_is_not_remarked_on(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.jpg", quality=95)
    assert kinds(tmp_path) == {}


def test_blur_is_told_and_the_same_blur_has_the_same_number_at_any_size(tmp_path: Path) -> None:
    picture = scene(size=(1024, 1024))
    large, small = picture.convert("L"), picture.resize((400, 400), Image.Resampling.LANCZOS).convert("L")
    assert sharpness(large) == pytest.approx(sharpness(small), rel=0.2)
    picture.filter(ImageFilter.GaussianBlur(10)).save(tmp_path / "a.png")
    assert "sharpness" in kinds(tmp_path)["blur"].says


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    """One white pixel in the middle of 5x5: Laplacian 1020 there, -255 at its four sides, 0 at four of nine."""
    picture = Image.new("L", (5, 5))
    picture.putpixel((2, 2), 255)
    assert sharpness(picture) == pytest.approx((1020**2 + 4 * 255**2) / 9)
    assert sharpness(Image.new("L", (2, 9))) == 0


def test_a_photo_below_the_training_resolution_is_told_how_much_it_is_enlarged(tmp_path: Path) -> None:
    scene(size=(200, 160)).save(tmp_path / "a.png")
    small = kinds(tmp_path, resolution=512)["size"]
    assert small.level == "warning"
    assert "200x160, enlarged 3.2 times to train at 512 pixels" in small.says
    assert kinds(tmp_path, resolution=176)["size"].level == "note"
    assert "size" not in kinds(tmp_path, resolution=160)


@pytest.mark.parametrize(("colour", "says"), [("black", "nearly black"), ("white", "nearly white"), ("gray", "colour")])
def test_a_photo_that_shows_nothing_is_told(tmp_path: Path, colour: str, says: str) -> None:
    Image.new("RGB", (300, 300), colour).save(tmp_path / "a.png")
    assert says in kinds(tmp_path)["exposure"].says


def test_exif_transparency_and_grey_are_told_as_notes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(size=(300, 200)).save(tmp_path / "turned.jpg", exif=exif)
    clear = scene().convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 320, 80))
    clear.save(tmp_path / "clear.png")
    scene().convert("L").save(tmp_path / "grey.png")
    clear, grey, turned = measured(tmp_path)
    assert turned.photo.size == (200, 300)
    assert [photo.turned for photo in (clear, grey, turned)] == [False, False, True]
    assert clear.clear == pytest.approx(0.25)
    assert grey.grey
    assert not turned.grey
    said = {finding.kind: finding.level for photo in (clear, grey, turned) for finding in look_at_photo(photo, "crop")}
    assert {said[kind] for kind in ("turned", "transparent", "grey")} == {"note"}


def test_the_crop_and_the_subject_it_cuts_are_told(tmp_path: Path) -> None:
    scene(size=(600, 300)).save(tmp_path / "a.png")
    assert "the middle 50%" in kinds(tmp_path)["crop"].says
    mask = Image.new("L", (600, 300))
    ImageDraw.Draw(mask).rectangle((0, 100, 299, 199), fill=255)
    mask.save(tmp_path / "a-masklabel.png")
    assert "cuts 50% of the subject off" in kinds(tmp_path)["cut"].says
    assert "cut" not in kinds(tmp_path, fit="pad")
    assert "cut" not in kinds(tmp_path, fit="bucket")


def test_a_subject_that_fills_little_and_an_empty_mask_are_told(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    mask = Image.new("L", (320, 320))
    mask.save(tmp_path / "a-masklabel.png")
    assert "all black" in kinds(tmp_path)["mask"].says
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 31), fill=255)
    mask.save(tmp_path / "a-masklabel.png")
    assert "fills 1%" in kinds(tmp_path)["fills"].says


@pytest.mark.parametrize("fit", ["crop", "pad", "bucket"])
def test_what_is_measured_is_what_training_sees(tmp_path: Path, fit: Fit) -> None:
    scene(size=(330, 200)).save(tmp_path / "a.png")
    mask = Image.new("L", (330, 200))
    ImageDraw.Draw(mask).rectangle((0, 0, 199, 99), fill=255)
    mask.save(tmp_path / "a-masklabel.png")
    (photo,) = measured(tmp_path, 64, fit)
    pixels = load_photo(photo.photo, photo.seen.size, fit)
    shown = torch.tensor(list(photo.seen.tobytes()), dtype=torch.float32).reshape(*photo.seen.size[::-1], 3)
    assert torch.equal(shown.permute(2, 0, 1) / 127.5 - 1, pixels)
    weight = load_mask(photo.photo, photo.seen.size, (photo.seen.width // 8, photo.seen.height // 8), fit)
    assert photo.filled == pytest.approx(float(weight.mean()), abs=0.01)


def test_a_caption_without_braces_is_an_error_and_one_with_a_token_is_none(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("my dog")
    assert kinds(tmp_path)["caption"].level == "error"
    for fine in ("my {} here", "my <rare> dog"):
        (tmp_path / "a.txt").write_text(fine)
        assert "caption" not in kinds(tmp_path)


def test_what_training_would_refuse_is_refused_here_too(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(Unusable, match="empty"):
        measured(tmp_path)


def test_copies_a_common_background_and_missing_captions_are_told_of_the_set(tmp_path: Path) -> None:
    for index in range(3):
        page = Image.new("RGB", (300, 300), "ivory")
        page.paste(scene(index, (120, 120)), (90, 90))
        page.save(tmp_path / f"{index}.png")
    with Image.open(tmp_path / "1.png") as photo:
        ImageOps.mirror(photo).save(tmp_path / "9.png")
    (tmp_path / "0.txt").write_text("a {} on paper")
    photos = measured(tmp_path)
    copies = find_copies(photos)
    assert {pair: str(copy) for pair, copy in copies.items()} == {("1.png", "9.png"): "mirrored"}
    said = {finding.kind: finding for finding in look_at_all(photos, copies)}
    assert said.keys() == {"copy", "background", "captions"}
    assert said["copy"].photos == ("1.png", "9.png")
    assert "3 of 4" in said["captions"].says


def test_one_and_two_photos_are_few(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    assert "none can be held out" in look_at_all(measured(tmp_path), {})[0].advice
    scene(1).save(tmp_path / "b.png")
    assert [finding.says for finding in look_at_all(measured(tmp_path), {})] == ["two photos"]


@pytest.mark.parametrize("together", [1, 2, 3, 128])
def test_each_copy_is_of_the_first_original_however_many_are_compared_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(findings, "_TOGETHER", together)
    for name, seed in (("a", 0), ("b", 1), ("d", 2)):
        scene(seed).save(tmp_path / f"{name}.png")
    ImageOps.mirror(scene(0)).save(tmp_path / "c.png")
    scene(1).save(tmp_path / "e.jpg", quality=80)
    (tmp_path / "f.png").write_bytes((tmp_path / "d.png").read_bytes())
    found = {pair: str(copy) for pair, copy in find_copies(measured(tmp_path)).items()}
    assert found == {("a.png", "c.png"): "mirrored", ("b.png", "e.jpg"): "unchanged", ("d.png", "f.png"): "unchanged"}


def test_likeness_is_told_of_a_thousand_photos_as_of_four() -> None:
    vectors = torch.nn.functional.normalize(torch.ones(1000, 4) + torch.eye(4).repeat(250, 1), dim=1)
    vectors[7] = torch.nn.functional.normalize(torch.tensor([1.0, -1, 1, -1]), dim=0)
    (finding,) = look_at_likeness([str(index) for index in range(1000)], vectors)
    assert finding.photos == ("7",)


def test_the_photo_unlike_the_rest_and_the_most_typical_by_hand() -> None:
    """Four vectors of a plane, at 0, 10, 20 and 90 degrees."""
    angles = torch.tensor([0.0, 10.0, 20.0, 90.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    (finding,) = look_at_likeness(["a", "b", "c", "d"], vectors)
    among, own = (0.98481 + 0.98481 + 0.93969) / 3, (0.0 + 0.17365 + 0.34202) / 3
    assert finding.photos == ("d",)
    assert f"{among - own:.2f} less" in finding.says
    assert look_at_likeness(["a", "b", "c"], vectors[[0, 1, 3]]) == []
    assert most_typical(["a", "b", "c", "d"], vectors, ["a", "b", "c", "d"]) == "c"
    assert most_typical(["a", "b", "c", "d"], vectors, ["a", "d"]) == "a"


def test_the_worst_comes_first() -> None:
    levels = ["note", "error", "warning", "error"]
    findings = [Finding(level, str(index), (), "", "") for index, level in enumerate(levels)]
    assert [finding.kind for finding in sorted_findings(findings)] == ["1", "3", "2", "0"]
