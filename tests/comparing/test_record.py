"""compare.json is read back, or it is said why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from twostage.comparing import Request
from twostage.comparing.place import Place
from twostage.comparing.record import FILE, Record
from twostage.errors import UserError


@pytest.mark.parametrize("text", ['{"request": {"rec', "", "[]", "null", "{}", '{"request": 3}', '{"request": "x"}'])
def test_a_broken_one_is_told_in_a_line(ask: Callable[..., Request], tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="is broken .*; choose another output") as error:
        Record(Place(str(tmp_path))).open(ask("both"))
    assert len(str(error.value).splitlines()) == 1
    assert (tmp_path / FILE).read_text() == text


def test_whatever_differs_is_told_in_a_line_of_some_length(ask: Callable[..., Request], tmp_path: Path) -> None:
    request = ask("both")
    stored = request.model_dump(mode="json") | {"a\nb": "x" * 100_000}
    (tmp_path / FILE).write_text(json.dumps({"request": stored}))
    with pytest.raises(UserError, match="holds another comparison") as error:
        Record(Place(str(tmp_path))).open(request)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_other_photos_are_another_comparison(ask: Callable[..., Request], tmp_path: Path) -> None:
    request, record = ask("both"), Record(Place(str(tmp_path)))
    record.begin(request, [], photos={"thing": {"photos": ["a", "b"]}})
    again = Record(Place(str(tmp_path)))
    again.open(request)
    again.begin(request, [], photos={"thing": {"photos": ["a", "b"]}})
    with pytest.raises(UserError, match="photos of thing have changed"):
        again.begin(request, [], photos={"thing": {"photos": ["a", "c"]}})
