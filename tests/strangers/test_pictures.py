"""Pictures from strangers: no larger than a limit, of kinds that run no other program, each fault a line."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image

from tests.strangers.conftest import refuse
from twostage.evaluating.series import read_drawn
from twostage.recipe import Data
from twostage.report.gallery import Gallery
from twostage.selection import _read as read_sample
from twostage.subject.held_out import find_held_out
from twostage.subject.photos import find_photos
from twostage.subject.pictures import Unusable, check_picture, read_nature, read_picture


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of that size whose pixels are zeros, packed a thousandfold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    body = zlib.compress(bytes(min((1 + width // 8) * height, 1000)))
    inner = b"".join(chunk(*one) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + inner + chunk(b"IDAT", body) + chunk(b"IEND", b"")


BOMBS = {
    "over the limit": png(20_000, 5_001),
    "far over the limit": png(60_000, 60_000),
    "text of a gigabyte": png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(64_000_000), 9))),
    "nothing": b"",
    "half a picture": png(4000, 4000)[:60],
}


@pytest.fixture(params=BOMBS)
def bomb(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "bomb.png"
    path.parent.mkdir()
    path.write_bytes(BOMBS[request.param])
    return path


def test_no_reader_of_pictures_takes_a_bomb(bomb: Path) -> None:
    """Photos, held-out photos, class images and masks; what was drawn before; what a report shows."""
    refuse(lambda: find_photos(bomb.parent), "bomb.png", "cannot be used")
    refuse(lambda: find_held_out(Data(held_out=(bomb,))), "bomb.png")
    for read in (check_picture, read_picture, read_nature):
        with pytest.raises(Unusable):
            read(bomb)
    refuse(lambda: read_sample(bomb), "bomb.png")
    assert read_drawn(bomb, 64) is None
    gallery = Gallery()
    shot = gallery.add(bomb, "a bomb")
    assert shot and [json.loads(line) for line in gallery.stored()] == [[shot.key, None]]


def test_a_mask_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "a-masklabel.png").write_bytes(BOMBS["over the limit"])
    refuse(lambda: find_photos(tmp_path), "a-masklabel.png", "100 megapixels")


def test_all_that_is_wrong_with_a_folder_of_photos_is_told_at_once(tmp_path: Path) -> None:
    for number, content in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.png").write_bytes(content)
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    refuse(lambda: find_photos(tmp_path), f"{len(BOMBS)} of the {len(BOMBS) + 1}", *(f"{n}.png" for n in range(5)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.fixture
def ghostscript(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What PIL would have another program open."""
    opened: list[Any] = []

    def run(*words: Any, **more: Any) -> Any:
        opened.append(words)
        return Image.new("RGB", (8, 8)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    return opened


def test_no_other_program_is_run_to_open_a_picture(ghostscript: list[Any], tmp_path: Path) -> None:
    """By its content, whatever a file is called: PIL knows page descriptions beside pictures."""
    file = tmp_path / "a.png"
    file.write_bytes(EPS)
    with Image.open(file) as known:
        known.load()
    assert ghostscript, "or this test proves nothing"
    ghostscript.clear()
    readers: list[Callable[[Path], Any]] = [check_picture, read_picture, read_nature]
    for read in readers:
        with pytest.raises(Unusable):
            read(file)
    refuse(lambda: read_sample(file), "a.png", "not a picture")
    assert read_drawn(file, 8) is None
    gallery = Gallery()
    gallery.add(file, "a page")
    assert "null" in next(iter(gallery.stored()))
    assert not ghostscript
