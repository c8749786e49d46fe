"""The demo: what it refuses. That its recipe learns is held in test_strategies.py."""

from pathlib import Path

import pytest

from twostage.demo import demo
from twostage.errors import UserError


def test_the_demo_refuses_an_unknown_class_and_a_folder_in_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="backpack, sneaker"):
        demo(tmp_path / "demo", class_name="submarine")
    (tmp_path / "note").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="already holds"):
        demo(tmp_path)
    assert not (tmp_path / "demo").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
