"""Recipes are found, merged, checked and written back without losing or guessing anything."""

import re
from pathlib import Path

import pytest

from twostage.errors import UserError
from twostage.recipe import Recipe
from twostage.recipe_file import RECIPES, dump_recipe, load_recipe, shipped_recipes

TWO_STAGES = "[stage1]\nsteps = 3\nlearning_rate = 1e-3\n[stage2]\nsteps = 4\nlearning_rate = 1e-5\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.toml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def _mistakes(*args, **kwargs) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(*args, **kwargs)
    return str(caught.value).splitlines()


def test_recipes_are_shipped():
    assert {"two-stage", "textual-inversion"} <= set(shipped_recipes())
    assert len(shipped_recipes()) == len(list(RECIPES.rglob("*.toml")))


@pytest.mark.parametrize("base", ["pocket", "some/base"])
@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_says_what_it_is(name, base):
    recipe = load_recipe(name, base=base)
    assert recipe.name == name
    assert recipe.base == base
    assert recipe.description
    assert recipe.stage1 or recipe.stage2


@pytest.mark.parametrize("name", shipped_recipes())
def test_dump_reads_back_to_an_equal_recipe(name, write):
    recipe = load_recipe(name)
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_dump_keeps_awkward_values(write):
    odd = 'tab\t "quoted" back\\slash \x7f\x00 \U0001f392 [on.x] # no comment\n'
    overrides = {
        "description": odd,
        "base": "C:\\models",
        "seed": 2**62,
        "data.photos": "photos/my bag's",
        "data.flip": True,
        "stage2.learning_rate": 1e-30,
        "stage1.lr_power": 1e22,
        "sample.prompts": [odd, "", "ünï"],
    }
    recipe = load_recipe("two-stage", overrides=overrides)
    assert recipe.description == odd
    assert recipe.data.photos == Path("photos/my bag's")
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_dump_explains_every_option():
    text = dump_recipe(load_recipe("textual-inversion"))
    assert "# Peak learning rate, per optimizer step." in text
    assert "# resolution = (not set)" in text
    assert "# [stage2] is absent" in text


def test_flag_beats_table_for_base_beats_file_beats_default(write):
    mine = write(TWO_STAGES + "[on.pocket.stage2]\nsteps = 5\nbatch_size = 2\n[on.other.stage2]\nsteps = 6\n")
    recipe = load_recipe(mine, overrides={"stage2.batch_size": 7})
    assert recipe.stage2 and recipe.stage1
    assert (recipe.stage2.steps, recipe.stage2.batch_size) == (5, 7)
    assert (recipe.stage1.steps, recipe.stage1.batch_size) == (3, 4)


def test_the_base_that_a_flag_chooses_decides_which_table_counts(write):
    mine = write(TWO_STAGES + "[on.pocket.stage2]\nsteps = 5\n[on.other.stage2]\nsteps = 6\n")
    for chosen in (load_recipe(mine, base="other"), load_recipe(mine, overrides={"base": "other"})):
        assert chosen.stage2 and chosen.stage2.steps == 6
        assert chosen.base == "other"


def test_a_table_for_a_base_is_gone_from_the_resolved_recipe():
    assert "[on" not in dump_recipe(load_recipe("two-stage"))


def test_a_flag_for_every_stage_reaches_those_there_are():
    both = load_recipe("two-stage", overrides={"stage.batch_size": 2, "stage1.batch_size": 3})
    one = load_recipe("textual-inversion", overrides={"stage.steps": 11})
    assert both.stage1 and both.stage2 and one.stage1
    assert (both.stage1.batch_size, both.stage2.batch_size) == (3, 2)
    assert one.stage1.steps == 11


def test_name_is_the_files_when_it_gives_none(write):
    assert load_recipe(write(TWO_STAGES, "my (own) recipe.toml")).name == "my-own-recipe"


def test_a_run_folder_stands_for_its_recipe(write, tmp_path):
    write(dump_recipe(load_recipe("two-stage")), "recipe.toml")
    assert load_recipe(str(tmp_path)) == load_recipe("two-stage")


def test_byte_order_mark_is_no_mistake(write):
    assert load_recipe(write("\ufeff" + TWO_STAGES)).stage1


# What somebody might write, and what must be in the one line that answers.
BAD = {
    "negative steps": (TWO_STAGES.replace("steps = 4", "steps = -4"), ["stage2.steps = -4", "at least 1"]),
    "steps as text": (TWO_STAGES.replace("steps = 4", 'steps = "4"'), ["stage2.steps = '4'", "whole number"]),
    "half a step": (TWO_STAGES.replace("steps = 4", "steps = 4.5"), ["stage2.steps = 4.5", "whole number"]),
    "steps as bool": (TWO_STAGES.replace("steps = 4", "steps = true"), ["stage2.steps = true", "whole number"]),
    "nan": (TWO_STAGES.replace("1e-5", "nan"), ["stage2.learning_rate = nan", "finite"]),
    "inf": (TWO_STAGES.replace("1e-5", "inf"), ["stage2.learning_rate = inf", "finite"]),
    "zero": (TWO_STAGES.replace("1e-5", "0"), ["stage2.learning_rate = 0", "above 0"]),
    "bool as text": (TWO_STAGES + '[data]\nflip = "yes"\n', ["data.flip", "true or false"]),
    "list as text": (TWO_STAGES + '[sample]\nprompts = "a"\n', ["sample.prompts", "list"]),
    "list of numbers": (TWO_STAGES + "[sample]\nprompts = [1]\n", ["sample.prompts[0] = 1", "text in quotes"]),
    "step as text": (TWO_STAGES + '[checkpoints]\nat = [1, "2"]\n', ["checkpoints.at[1] = '2'", "whole number"]),
    "step 0": (TWO_STAGES + "[checkpoints]\nat = [0]\n", ["checkpoints.at[0] = 0", "above 0"]),
    "step after the last": (TWO_STAGES + "[checkpoints]\nat = [1, 5]\n", ["checkpoints.at = 5", "has 4"]),
    "all captions dropped": (TWO_STAGES + "[data]\ncaption_dropout = 1\n", ["data.caption_dropout = 1", "below 1"]),
    "gamma 0": (TWO_STAGES + "snr_gamma = 0\n", ["stage2.snr_gamma = 0", "above 0"]),
    "an average that never moves": (TWO_STAGES + "ema_decay = 1\n", ["stage2.ema_decay = 1", "below 1"]),
    "what is learnable": (TWO_STAGES + '[data]\nlearnable = "obiect"\n', ["data.learnable = 'obiect'", "'style'"]),
    "date": (TWO_STAGES + "[data]\nresolution = 1979-05-27\n", ["data.resolution", "whole number"]),
    "empty placeholder": (TWO_STAGES + '[token]\nplaceholder = ""\n', ["token.placeholder", "not be empty"]),
    "choice": (TWO_STAGES + '[token]\nrole = "adjectiv"\n', ["token.role = 'adjectiv'", "did you mean adjective?"]),
    "missing": ("[stage1]\nsteps = 3\n", ["stage1.learning_rate is missing"]),
    "stage is a number": ("stage2 = 3\n", ["stage2 = 3", "[stage2]"]),
    "stage is a list of tables": ("[[stage2]]\nsteps = 3\n", ["stage2 = ", "[stage2]"]),
    "no stage": ("seed = 3\n", ["neither [stage1] nor [stage2]"]),
    "empty file": ("", ["neither [stage1] nor [stage2]"]),
    "typo in option": (TWO_STAGES + "[data]\nresolutoin = 64\n", ["data.resolutoin", "did you mean resolution?"]),
    "typo in table": (TWO_STAGES + "[tokens]\nrole = 'noun'\n", ["tokens", "did you mean token?"]),
    "option in no table": ("learning_rate = 1\n" + TWO_STAGES, ["stage1.learning_rate or stage2.learning_rate"]),
    "dashes": (TWO_STAGES + "[token]\nnum-vectors = 1\n", ["did you mean num_vectors?"]),
    "on is a number": ("on = 3\n" + TWO_STAGES, ["on = 3", "[on.pocket]"]),
    "on.x is a number": ("on.pocket = 3\n" + TWO_STAGES, ["[on.pocket]", "table"]),
    "bad value for base": (TWO_STAGES + "[on.pocket.stage2]\nsteps = 0\n", ["[on.pocket]", "stage2.steps = 0"]),
    "bad value for other base": (TWO_STAGES + "[on.x.stage2]\nsteps = 0\n", ["[on.x]", "stage2.steps = 0"]),
    "typo for other base": (TWO_STAGES + "[on.x.stage2]\nstep = 1\n", ["[on.x]", "did you mean steps?"]),
    "stage only for a base": (
        "[stage1]\nsteps=1\nlearning_rate=1\n[on.x.stage2]\nsteps = 1\n",
        ["[on.x]", "no [stage2]"],
    ),
    "base is a list": ("base = [1]\n" + TWO_STAGES, ["base = [1]", "text in quotes"]),
    "name is a path": ('name = "../x"\n' + TWO_STAGES, ["name = '../x'", "letters"]),
    "broken TOML": ("[stage1]\nsteps = = 3\n", ["not valid TOML", "line 2"]),
    "table twice": (TWO_STAGES + "[stage1]\nsteps = 1\n", ["not valid TOML", "line 7"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_in_the_file_gets_one_line_that_names_it(case, write):
    text, expected = BAD[case]
    mine = write(text)
    (line,) = _mistakes(mine)
    assert line.startswith(mine)
    for part in expected:
        assert part in line


def test_all_mistakes_are_reported_at_once_each_with_where_it_came_from(write):
    mine = write(TWO_STAGES.replace("steps = 3", "steps = -3") + "[data]\nresolutoin = 64\n[on.x.stage1]\nsteps = 0\n")
    lines = _mistakes(mine, overrides={"stage2.learning_rate": -1.0, "seed": "x"})
    assert len(lines) == 5
    where = {re.split(r":? ", line.removeprefix(mine))[1] for line in lines if line.startswith(mine)}
    assert where == {"stage1.steps", "there", "[on.x]"}
    assert [line.split(" ")[0] for line in lines if line.startswith("--")] == ["--seed", "--stage2.learning-rate"]


def test_a_flag_is_blamed_for_what_the_flag_said(write):
    (line,) = _mistakes(write(TWO_STAGES), overrides={"stage2.steps": -1})
    assert line == "--stage2.steps -1: must be at least 1"


def test_flag_for_a_stage_the_recipe_lacks():
    (line,) = _mistakes("textual-inversion", overrides={"stage2.steps": 1})
    assert line.startswith("--stage2.steps: textual-inversion.toml has no [stage2]")


@pytest.mark.parametrize("option", ["learning_rate", "steps"])
def test_one_value_for_two_stages_is_refused_where_it_cannot_be_meant(option):
    (line,) = _mistakes("two-stage", overrides={f"stage.{option}": 1})
    dashed = option.replace("_", "-")
    assert f"--stage1.{dashed} or --stage2.{dashed}" in line


def test_flags_over_a_broken_table_do_not_crash(write):
    (line,) = _mistakes(write("stage2 = 3\n"), overrides={"stage2.steps": 1, "stage.batch_size": 2})
    assert "stage2 = 3" in line


def test_text_that_is_no_utf8_is_refused():
    (line,) = _mistakes("two-stage", overrides={"data.photos": "caf\udce9"})
    assert line.startswith("--data.photos") and "UTF-8" in line


def test_unknown_recipe_lists_what_there_is():
    (line,) = _mistakes("two-stag")
    assert "did you mean two-stage?" in line
    assert all(name in line for name in shipped_recipes())


def test_paths_that_are_no_recipe(tmp_path):
    assert "no recipe file" in _mistakes(str(tmp_path / "none.toml"))[0]
    assert "is a folder" in _mistakes(str(tmp_path))[0]
    assert "cannot read" in _mistakes("x" * 5000 + ".toml")[0]
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in _mistakes(str(tmp_path / "binary.toml"))[0]


def test_a_recipe_made_in_python_is_the_same_as_one_read(write):
    made = Recipe(stage1={"steps": 3, "learning_rate": 1e-3}, stage2={"steps": 4, "learning_rate": 1e-5}, name="mine")
    assert load_recipe(write(TWO_STAGES)) == made
