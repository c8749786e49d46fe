"""`twostage recipe`: what there is, what it holds, and one's own."""

from twostage.recipe_file import find_recipe, load_recipe, shipped_recipes


def test_list_is_one_line_a_recipe_in_a_pipe(twostage):
    lines = twostage("recipe", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == shipped_recipes()
    assert all(len(line.split("\t")) == 3 for line in lines)


def test_show_tells_value_default_and_help(twostage):
    text = twostage("recipe", "show", "textual-inversion").stdout
    assert "token.role = 'noun'  (default 'adjective')" in text
    assert "Peak learning rate, per optimizer step." in text
    assert "[stage2]  absent" in text


def test_show_for_a_base(twostage):
    def steps(base: str) -> str:
        text = twostage("recipe", "show", "two-stage", "--base", base).stdout
        return next(line for line in text.splitlines() if line.startswith("stage2.learning_rate"))

    assert steps("pocket") != steps("some/other")


def test_new_copies_and_never_overwrites(twostage, mistake, tmp_path):
    result = twostage("recipe", "new", "two-stage", "mine")
    assert result.exit_code == 0
    assert (tmp_path / "mine.toml").read_bytes() == find_recipe("two-stage").read_bytes()
    assert load_recipe("mine.toml").name == "mine"
    assert "exists already" in mistake("recipe", "new", "two-stage", "mine")


def test_new_where_nothing_can_be_written(mistake):
    assert "cannot write" in mistake("recipe", "new", "two-stage", "no/such/folder/mine.toml")


def test_unknown_recipe(mistake):
    assert "did you mean two-stage?" in mistake("recipe", "show", "two-stag")
    assert "did you mean two-stage?" in mistake("recipe", "new", "two-stag", "mine")
