"""Flags derive from the recipe's fields; only those that were given override the file."""

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.flags import recipe_flags
from cli.main import app
from twostage.recipe import Recipe, Stage, short_names
from twostage.recipe_errors import sections


@pytest.fixture
def parse():
    """What a command gets to override when these arguments are given."""
    seen: dict[str, Any] = {}

    @recipe_flags
    def command(*, overrides: dict[str, Any]) -> None:
        seen.update(overrides)

    probe = typer.Typer(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
    probe.command()(command)

    def run(*arguments: str) -> dict[str, Any]:
        seen.clear()
        result = CliRunner().invoke(probe, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return dict(seen)

    return run


def test_nothing_given_overrides_nothing(parse):
    assert parse() == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--stage2.learning-rate 2e-6", {"stage2.learning_rate": 2e-6}),
        ("--stage2.learning_rate 2e-6", {"stage2.learning_rate": 2e-6}),
        ("--stage1.steps 7 --stage2.steps 8", {"stage1.steps": 7, "stage2.steps": 8}),
        ("--class backpack", {"data.class_noun": "backpack"}),
        ("--pretrained_model_name_or_path here", {"base": "here"}),
        ("--train_batch_size=2", {"stage.batch_size": 2}),
        ("--stage.adam-beta1 0.5", {"stage.adam_beta1": 0.5}),
        ("--gradient_checkpointing", {"stage.gradient_checkpointing": True}),
        ("--no-gradient-checkpointing", {"stage.gradient_checkpointing": False}),
        ("--no-data.flip", {"data.flip": False}),
        ("--data.flip", {"data.flip": True}),
        ("--validation_prompt one --validation_prompt two", {"sample.prompts": ["one", "two"]}),
        ("--checkpoints.at 50 --checkpoints.at 100", {"checkpoints.at": [50, 100]}),
        ("--checkpoints.at half", {"checkpoints.at": ["half"]}),
        ("--min_snr_gamma 5", {"stage.snr_gamma": 5.0}),
        ("--learnable_property object", {"data.learnable": "object"}),
        ("--lr-scheduler constant_with_warmup", {"stage.lr_scheduler": "constant_with_warmup"}),
        ("--seed -1", {"seed": -1}),
        ("--seed many", {"seed": "many"}),
    ],
)
def test_a_flag_overrides_the_option_it_names(parse, arguments, expected):
    assert parse(*arguments.split()) == expected


@pytest.mark.parametrize("command", ["train", "evaluate", "compare"])
def test_help_lists_the_choices_of_an_option_that_may_be_left_out(command):
    text = CliRunner().invoke(app, [command, "--help"]).stdout
    assert "own|base" in text


def test_help_shows_every_option_whole_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = CliRunner().invoke(app, ["train", "--help"]).stdout
    options = [(name, name, field) for name, field in Recipe.model_fields.items() if name not in sections()]
    for title, section in sections().items():
        for name, field in section.model_fields.items():
            place = "stage" if name in Stage.model_fields else title
            options.append((name, f"{place}.{name}", field))
    for _, place, field in options:
        for flag in (place.replace("_", "-"), *short_names(field)):
            assert f"--{flag}" in text
        assert (field.description or "")[:20].split(" ")[0] in text
