"""A comparison lies in a folder, or at an address that fsspec knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from twostage.comparing.place import Place, find_place
from twostage.errors import UserError


@pytest.fixture(params=["folder", "local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder; and two addresses, behind which everything is a copy that goes back and forth."""
    roots = {"folder": str(tmp_path / "c"), "local": f"local://{tmp_path}/c", "memory": f"memory://{tmp_path.name}/c"}
    return Place(roots[request.param])


def test_what_is_written_can_be_read(place: Place) -> None:
    assert not place.holds("a/b.json")
    assert place.read("a/b.json") is None
    place.write("a/b.json", "ü")
    assert place.holds("a/b.json")
    assert not place.holds("a")
    assert place.read("a/b.json") == "ü"


def test_a_folder_is_gone_on_with(place: Place) -> None:
    with place.folder("runs/x", "done") as folder:
        assert not folder.exists()
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file").write_text("1")
        (folder / "done").write_text("yes")
    assert place.read("runs/x/done") == "yes"
    with place.folder("runs/x", "done") as folder:
        assert (folder / "deep" / "file").read_text() == "1"
        (folder / "deep" / "file").write_text("2")
    assert place.read("runs/x/deep/file") == "2"
    with place.whole("/deep/") as folder:
        assert (folder / "runs" / "x" / "deep" / "file").read_text() == "2"
        (folder / "report.html").write_text("report")
    assert place.read("report.html") == "report"


def test_what_went_wrong_does_not_go_to_an_address(tmp_path: Path) -> None:
    place = Place(f"local://{tmp_path}/c")

    def go_wrong() -> None:
        with place.folder("runs/x", "done") as folder:
            folder.mkdir()
            (folder / "done").write_text("yes")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go_wrong()
    assert not place.holds("runs/x/done")


def test_outputs_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for output, match in (
        (str(tmp_path / "file"), "is a file"),
        ("memory://x", "workers cannot share"),
        ("nosuch://x/y", "cannot be reached"),
    ):
        with pytest.raises(UserError, match=match):
            find_place(output)
    monkeypatch.chdir(tmp_path)
    assert find_place("a").path == tmp_path / "a"
    assert find_place(f"file://{tmp_path}/a").path == tmp_path / "a"


def test_a_folder_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot read or write"):
        Place(str(tmp_path / "file")).write("a", "b")


def test_a_damaged_file_holds_no_facts(place: Place) -> None:
    assert place.facts("a.json") == {}
    for text in ('{"a": 1', "[1]", "", "[" * 100_000):
        place.write("a.json", text)
        assert place.facts("a.json") == {}
    place.write("a.json", '{"a": 1}')
    assert place.facts("a.json") == {"a": 1}


def test_two_processes_do_not_carry_out_one_comparison(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "c"))
    with place.alone(), pytest.raises(UserError, match="another process is at work"), Place(place.root).alone():
        pass
    with place.alone():
        pass
