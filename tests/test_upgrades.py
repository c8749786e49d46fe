"""What an older version wrote is read; what a newer one wrote is refused with how to go on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.watching import Watcher, metrics
from twostage.display import Display
from twostage.errors import UserError
from twostage.exporting import export
from twostage.families import load_base
from twostage.recipe import Recipe
from twostage.recipe_file import FORMAT as RECIPE_FORMAT
from twostage.recipe_file import load_recipe
from twostage.run import generate, train
from twostage.run_facts import FORMAT
from twostage.run_folder import RunFolder

KEPT = sorted((Path(__file__).parent / "kept").glob("format-*"))


def taken(kept: Path, name: str, base: Path, target: Path) -> Path:
    """A kept run, of a base that is here: with another torch its random weights may be others."""
    run = Path(shutil.copytree(kept / name, target / name))
    for file in (run / "recipe.toml", run / "run.json"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("BASE", str(base)).replace("PHOTOS", str(kept / "photos")), encoding="utf-8")
    facts = json.loads((run / "run.json").read_text())
    facts["base"]["sha256"] = load_base(str(base)).content_hash
    (run / "run.json").write_text(json.dumps(facts))
    return run


def test_a_run_folder_of_each_format_is_kept() -> None:
    assert [kept.name for kept in KEPT] == [f"format-{number}" for number in range(1, FORMAT + 1)]
    newest = json.loads((KEPT[-1] / "finished" / "run.json").read_text())
    assert newest["format"] == FORMAT


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.name)
def test_an_interrupted_run_of_an_older_version_goes_on(kept: Path, tiny_base: Path, tmp_path: Path) -> None:
    run, watcher = taken(kept, "interrupted", tiny_base, tmp_path), Watcher()
    train(load_recipe(str(run)), run, resume=True, display=watcher)
    assert "going on after step 3 of stage 2" in watcher.said
    assert RunFolder(run).open() and [line["step"] for line in metrics(run)] == [1, 2, 3, 4] * 2


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.name)
def test_a_finished_run_of_an_older_version_draws_exports_and_lends_its_token(
    kept: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run = taken(kept, "finished", tiny_base, tmp_path)
    assert len(generate(run, "a photo of a {}", count=1, num_inference_steps=1, display=Display())) == 1
    assert export(run, "diffusers", tmp_path / "exported", display=Display()).files
    recipe = load_recipe(str(run))
    assert train(recipe, tmp_path / "child", token_from=run, display=Display())


def test_a_run_folder_from_before_formats_were_told_is_read(tiny_base: Path, tmp_path: Path) -> None:
    run = taken(KEPT[0], "finished", tiny_base, tmp_path)
    for name, pattern in (("run.json", r'"format": \d+, '), ("recipe.toml", r"format = \d+\n")):
        text, found = re.subn(pattern, "", (run / name).read_text(), count=1)
        assert found
        (run / name).write_text(text)
    assert RunFolder(run).open().name == "kept"


def test_what_a_newer_version_wrote_is_refused_in_a_line_that_says_to_update(
    tiny_base: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    run = taken(KEPT[-1], "interrupted", tiny_base, tmp_path)
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace(f"format = {RECIPE_FORMAT}", f"format = {RECIPE_FORMAT + 1}"))
    with pytest.raises(UserError, match=r"newer twostage \(format 2, and this one reads up to 1\); update") as refused:
        load_recipe(str(run))
    assert "\n" not in str(refused.value)
    (run / "recipe.toml").write_text(text)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"format": FORMAT + 1}))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"newer twostage \(format 2, .*update") as refused:
        train(load_recipe(str(run)), run, resume=True, display=Display())
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("found", ["0", '"1"', "true", "[]"])
def test_a_format_that_is_no_number_is_refused(found: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f"format = {found}\n[stage1]\nsteps = 3\n")
    with pytest.raises(UserError, match="format must be a whole number"):
        load_recipe(str(tmp_path / "own.toml"))
