"""Every option is declared once, with all that flags and help need."""

import pytest
from pydantic import ValidationError

from twostage.recipe import Recipe, Sample, Select, Stage, Stage1, short_names
from twostage.recipe_errors import sections


def _fields():
    yield from (("", name, field) for name, field in Recipe.model_fields.items() if name not in sections())
    for title, section in sections().items():
        yield from ((title, name, field) for name, field in section.model_fields.items())


def test_every_option_has_help():
    missing = [f"{table}.{name}" for table, name, field in _fields() if not field.description]
    assert not missing


def test_recipe_stays_small_enough_to_survey():
    distinct = {(name if name in Stage.model_fields else f"{table}.{name}") for table, name, _ in _fields()}
    assert len(distinct) <= 89


def test_a_short_name_means_one_option():
    seen: dict[str, str] = {}
    for table, name, field in _fields():
        for short in short_names(field):
            place = name if name in Stage.model_fields else f"{table}.{name}"
            assert seen.setdefault(short, place) == place


def test_recipe_is_frozen():
    with pytest.raises(ValidationError):
        Recipe().seed = 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_learning_rate_that_cannot_train_is_refused(value):
    with pytest.raises(ValidationError):
        Stage1(steps=1, learning_rate=value)


@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler": "piecewise_constant"},
        {"lr_step_rules": "1:200,0.1"},
        {"lr_scheduler": "piecewise_constant", "lr_step_rules": "200"},
        {"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:200,0.1,"},
    ],
)
def test_piecewise_schedule_and_its_rules_need_each_other(options):
    with pytest.raises(ValidationError):
        Stage1(steps=1, learning_rate=1e-3, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 1e-3, "lr_warmup_steps": 10},
        {"learning_rate": 1e-3, "lr_warmup_steps": 10, "lr_scheduler": "piecewise_constant", "lr_step_rules": "1:2,0"},
        {"learning_rate": 1e-7, "lr_scheduler": "polynomial"},
    ],
)
def test_an_option_that_the_schedule_would_ignore_or_choke_on_is_refused(options):
    with pytest.raises(ValidationError, match="lr_"):
        Stage1(steps=1, **options)


def test_piecewise_schedule_with_rules():
    stage = Stage1(steps=9, learning_rate=1e-3, lr_scheduler="piecewise_constant", lr_step_rules="1:2,0.1:4,0.01")
    assert stage.lr_step_rules == "1:2,0.1:4,0.01"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (Sample(per_prompt=0), "sample.per_prompt = 0"),
        (Sample(prompts=()), "none of the 0 sample.prompts"),
        (Sample(prompts=("snow",)), "none of the 1 sample.prompts"),
    ],
)
@pytest.mark.parametrize("select", [Select(keep="best"), Select(stop_on_copying=1), Select(measure=True)])
def test_pictures_that_are_not_drawn_cannot_be_measured(sample, select, said):
    with pytest.raises(ValueError, match=said):
        Recipe(sample=sample, select=select)


def test_an_encoder_of_another_role_is_refused():
    with pytest.raises(ValueError, match="dino or clip"):
        Select(encoders=("dinov2=somewhere",))
