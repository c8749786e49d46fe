"""`twostage photos check` prints findings, what to copy, and always answers."""

import json
import shlex
from pathlib import Path

import pytest

from tests.watching import noise_photo


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    folder.mkdir()
    for seed, name in enumerate("abcd"):
        noise_photo(seed).save(folder / f"{name}.png")
    return folder


def test_check_prints_findings_worst_first_and_lines_to_copy(twostage, own, tmp_path):
    (own / "b.png").write_bytes((own / "a.png").read_bytes())
    (own / "text.jpg").write_text("no picture")
    result = twostage("photos", "check", "my photos", "--class", "stuffed animal", "--resolution", 512)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "error: text.jpg: broken, or not a picture"
    assert "warning: a.png, b.png: the same picture" in lines
    assert "4 photos to train on at 512 pixels" in lines
    assert (tmp_path / "checks" / "my photos" / "photo-check.png").is_file()
    words = shlex.split(lines[-1].removeprefix("then: "))
    assert words[:5] == ["twostage", "train", "two-stage", "my photos", "--class"]
    assert words[5:7] == ["stuffed animal", "--held-out"]
    assert Path(words[7]).name in ("c.png", "d.png")
    assert "first put right" in lines[-2]


def test_what_is_proposed_trains(twostage, own, tiny_base, tmp_path):
    result = twostage("photos", "check", own, "--class", "dog", "--base", tiny_base, "-o", "out", "--json")
    found = json.loads(result.stdout)
    words = shlex.split(found["command"])[1:]
    short = ("--stage1.steps", 2, "--stage2.steps", 2, "--num-validation-images", 0, "-o", "run")
    trained = twostage(*words, *short)
    assert trained.exit_code == 0, trained.output
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [photo["name"] for photo in facts["held_out"]] == [Path(found["held_out"]).name]
    assert len(facts["photos"]) == 3


def test_check_prints_json(twostage, own):
    found = json.loads(twostage("photos", "check", own, "-o", "out", "--json").stdout)
    assert found["photos"] == ["a.png", "b.png", "c.png", "d.png"]
    assert found["resolution"] == 64
    assert found["sheet"] == str(Path("out") / "photo-check.png")


def test_check_refuses_in_a_line(mistake, tmp_path):
    assert "does not exist" in mistake("photos", "check", "gone")
    (tmp_path / "empty").mkdir()
    assert "no photos in empty" in mistake("photos", "check", "empty")
    assert "--fit" in mistake("photos", "check", "empty", "--fit", "stretch")
