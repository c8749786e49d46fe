"""Files are there whole or not at all, whoever writes them."""

from __future__ import annotations

from pathlib import Path

from twostage.writing import whole_file


def test_two_that_write_the_same_file_at_once_leave_one_of_theirs(tmp_path: Path) -> None:
    final = tmp_path / "picture.png"
    with whole_file(final) as one, whole_file(final) as other:
        one.write_text("one")
        other.write_text("other")
    assert final.read_text() in ("one", "other")
    assert list(tmp_path.iterdir()) == [final]
