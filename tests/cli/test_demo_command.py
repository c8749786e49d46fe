"""`twostage demo` never stumbles over an earlier one, and refuses what it cannot draw."""

from pathlib import Path

from cli.demo import _free_folder


def test_a_second_demo_gets_its_own_folder(tmp_path):
    first = tmp_path / "runs" / "demo"
    assert _free_folder(first) == first
    first.mkdir(parents=True)
    assert _free_folder(first) == Path(f"{first}-2")


def test_a_class_the_pocket_world_lacks(mistake):
    assert "backpack" in mistake("demo", "--class", "spaceship")


def test_an_output_that_holds_something(mistake, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "--output" in mistake("demo", "--output", "full")
