"""`twostage cache`: what it holds is told, and clearing removes that and nothing else."""

from __future__ import annotations

import json

import pytest

from twostage.cache import Shelf


@pytest.fixture
def filled(cache):
    for kind, facts, data in (
        ("latents", {"a": 1}, b"12345"),
        ("latents", {"a": 2}, b"1"),
        ("class-images", {}, b"123"),
    ):
        Shelf(kind, ".bin", facts).put(0, data)
    return cache


def test_it_tells_what_is_kept_and_where(twostage, filled):
    told = json.loads(twostage("cache", "list", "--json").stdout)
    assert told["folder"] == str(filled)
    by_kind = {one["kind"]: one for one in told["kinds"]}
    assert (by_kind["latents"]["shelves"], by_kind["latents"]["files"]) == (2, 4)  # With their facts.
    assert by_kind["latents"]["bytes"] == sum(p.stat().st_size for p in filled.glob("latents/*/*"))
    words = twostage("cache", "list").stdout
    assert "class-images" in words and str(filled) in words


def test_an_empty_cache_is_no_mistake(twostage, cache):
    assert str(cache) in twostage("cache", "list").stdout
    assert "removed 0 B" in twostage("cache", "clear").stdout
    assert not cache.exists()


def test_clearing_a_kind_leaves_the_others(twostage, filled):
    assert "latents" in twostage("cache", "clear", "latents").stdout
    assert not list(filled.glob("latents/*/*"))
    assert len(list(filled.glob("class-images/*/*.bin"))) == 1
    assert Shelf("class-images", ".bin", {}).file(0).read_bytes() == b"123"


def test_clearing_leaves_whatever_else_lies_there(twostage, filled, tmp_path):
    """As where TWOSTAGE_CACHE names a folder of somebody's."""
    mine = [filled / "thesis.txt", filled / "latents" / "notes.txt", filled / "photos" / "cat" / "facts.json"]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "facts.json").write_text("{}")
    mine.append(outside / "facts.json")
    (filled / "latents" / ("0" * 32)).symlink_to(outside)
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    twostage("cache", "clear")
    assert all(file.read_text() == "mine" for file in mine)
    assert not list(filled.rglob("*.bin"))


def test_a_kind_that_is_not_there_is_named_with_those_that_are(mistake, filled):
    assert "'latent'; it has class-images, latents" in mistake("cache", "clear", "latent")
    assert len(list(filled.rglob("*.bin"))) == 3


def test_after_clearing_it_is_filled_anew(twostage, filled):
    twostage("cache", "clear")
    Shelf("latents", ".bin", {"a": 1}).put(0, b"again")
    assert Shelf("latents", ".bin", {"a": 1}).file(0).read_bytes() == b"again"
