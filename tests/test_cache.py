"""The cache: where it is, whole files only, other facts on another shelf."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from twostage.cache import Shelf, cache_folder, kept
from twostage.errors import UserError


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("TWOSTAGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "twostage"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "twostage"


def test_other_facts_are_another_shelf(cache: Path) -> None:
    shelves = [Shelf("things", ".txt", facts) for facts in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3})]
    assert shelves[0].path == shelves[1].path != shelves[2].path
    assert not cache.exists()


def test_what_is_put_is_there_and_nothing_beside_it() -> None:
    shelf = Shelf("things", ".txt", {"a": 1})
    assert shelf.missing(3, Path.is_file) == [0, 1, 2]
    shelf.put(1, b"one")
    shelf.put(1, b"two")
    assert shelf.missing(3, Path.is_file) == [0, 2]
    assert shelf.file(1).read_bytes() == b"two"
    assert sorted(path.name for path in shelf.path.iterdir()) == ["000001.txt", "facts.json"]


def test_files_have_numbers_or_names() -> None:
    shelf = Shelf("things", ".txt", {"a": 1})
    shelf.put("abc", b"named")
    assert shelf.file("abc").name == "abc.txt"
    assert shelf.file(7).name == "000007.txt"


def test_who_reads_while_several_write_finds_a_whole_file() -> None:
    shelf = Shelf("things", ".txt", {"a": 1})
    shelf.put(0, bytes(1))
    contents = [bytes([number]) * 200_000 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(shelf.put, 0, content) for content in contents * 10]
        while not all(one.done() for one in writing):
            assert shelf.file(0).read_bytes() in [bytes(1), *contents]
        assert all(one.result() is None for one in writing)
    assert sorted(path.name for path in shelf.path.iterdir()) == ["000000.txt", "facts.json"]


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOSTAGE_CACHE", "/proc/cache")
    with pytest.raises(UserError, match=r"^cannot write /proc/cache/.*TWOSTAGE_CACHE") as error:
        Shelf("things", ".txt", {}).put(0, b"x")
    assert "\n" not in str(error.value)


def test_files_in_folders_of_a_shelf_are_counted_too() -> None:
    shelf = Shelf("embeddings", ".f32", {"a": 1})
    for key in ("ab/abcd", "ab/abef", "cd/cdef"):
        shelf.put(key, b"12345678")
    (found,) = kept()
    assert (found.shelves, found.files) == (1, 4)
    assert found.bytes == 3 * 8 + (shelf.path / "facts.json").stat().st_size
