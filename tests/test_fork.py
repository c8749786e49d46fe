"""A run that takes its token from another: stage 1 is learned once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_sd15 import SIZES, write_pipeline
from tests.watching import Watcher, assert_same_bits, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import Data, Recipe, Sample, Stage1, Token
from twostage.recipe_file import load_recipe
from twostage.run import generate, train


@pytest.fixture(scope="module")
def quick(tiny_recipe: Recipe) -> Recipe:
    return without(tiny_recipe, sample=Sample(per_prompt=0))


@pytest.fixture(scope="module")
def unbroken(quick: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both stages; never write to it."""
    torch.set_num_threads(1)
    return train(quick, tmp_path_factory.mktemp("runs") / "unbroken", display=Display())


def without_knowing(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe that says nothing about the token or the class, and would learn them otherwise."""
    data = Data(photos=recipe.data.photos)
    return without(recipe, token=Token(), data=data, stage1=Stage1(steps=1, learning_rate=1e-3), **changes)


def test_stage_2_is_bit_for_bit_that_of_an_unbroken_run(quick: Recipe, unbroken: Path, tmp_path: Path) -> None:
    run = train(without_knowing(quick), tmp_path / "fork", token_from=unbroken, display=Display())
    assert_same_bits(run, unbroken)
    assert metrics(run) == [line for line in metrics(unbroken) if line["stage"] == 2]
    facts = json.loads((run / "run.json").read_text())
    assert facts["from"]["run"] == str(unbroken)
    assert facts["checks"].keys() == {"token", "stage2"}
    assert load_recipe(str(run / "recipe.toml")) == load_recipe(str(unbroken / "recipe.toml"))


def test_a_stopped_fork_resumes_bit_for_bit_when_the_run_it_came_from_is_gone(
    quick: Recipe, unbroken: Path, tmp_path: Path
) -> None:
    """That run need not be finished either: its stage 1 is enough."""
    with pytest.raises(KeyboardInterrupt):
        train(quick, tmp_path / "parent", display=Watcher(("stage 2", 1), ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        train(quick, tmp_path / "fork", token_from=tmp_path / "parent", display=Watcher(("stage 2", 3), ctrl_c))
    shutil.rmtree(tmp_path / "parent")
    recipe = load_recipe(str(tmp_path / "fork" / "recipe.toml"))
    assert_same_bits(train(recipe, tmp_path / "fork", resume=True, display=Display()), unbroken)


def test_a_fork_of_a_fork_and_another_seed_keep_the_token(quick: Recipe, finished: Path, tmp_path: Path) -> None:
    """All vectors of it; and other draws make another U-Net."""
    first = train(without_knowing(quick), tmp_path / "first", token_from=finished, display=Display())
    second = train(without_knowing(quick, seed=1), tmp_path / "second", token_from=first, display=Display())
    tokens = [load_file(run / "embedding" / "rare.safetensors")["<rare>"] for run in (finished, first, second)]
    assert tokens[0].shape[0] == 2
    assert all(torch.equal(token, tokens[0]) for token in tokens)
    nets = [load_file(run / "unet" / "diffusion_pytorch_model.safetensors") for run in (first, second)]
    assert not torch.equal(nets[0]["conv_in.weight"], nets[1]["conv_in.weight"])
    assert generate(second, "a {} in the snow", count=1, num_inference_steps=1)


def test_other_photos_are_remarked_on(quick: Recipe, unbroken: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    data = quick.data.model_copy(update={"num_photos": 2})
    train(without(quick, data=data), tmp_path / "fork", token_from=unbroken, display=watcher)
    assert any("other photos" in said for said in watcher.said)


def refuse(recipe: Recipe, parent: Path, output: Path, match: str) -> None:
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as error:
        train(recipe, output, token_from=parent, display=Display())
    assert "\n" not in str(error.value)
    assert sorted(output.parent.rglob("*")) == before


def test_a_token_of_another_base_is_refused_naming_both(quick: Recipe, unbroken: Path, tmp_path: Path) -> None:
    write_pipeline(tmp_path / "other", SIZES["tiny"])
    file = tmp_path / "other" / "text_encoder" / "config.json"
    file.write_text(file.read_text() + "\n")
    other = str(tmp_path / "other")
    refuse(without(quick, base=other), unbroken, tmp_path / "fork", rf"base '{quick.base}' .* is '{other}' ")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"token": Token(placeholder="<other>")}, r"token.placeholder \('<other>', there '<rare>'\)"),
        ({"token": Token(num_vectors=3)}, r"token.num_vectors \(3, there 1\)"),
        ({"token": Token(role="noun")}, r"token.role \('noun', there 'adjective'\)"),
        ({"data": Data(class_noun="dog")}, r"data.class_noun \('dog', there 'backpack'\)"),
        ({"stage1": None}, "has no .stage1.; to go on .* --to diffusers"),
        ({"stage2": None}, "nothing would be trained"),
    ],
)
def test_a_recipe_that_cannot_use_the_token_is_refused(
    quick: Recipe, unbroken: Path, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    refuse(without(quick, **changes), unbroken, tmp_path / "fork", match)


def test_a_run_that_has_no_token_to_give_is_refused(quick: Recipe, tmp_path: Path) -> None:
    refuse(quick, tmp_path / "none", tmp_path / "fork", "there is no run")
    with pytest.raises(KeyboardInterrupt):
        train(quick, tmp_path / "begun", display=Watcher(("stage 1", 2), ctrl_c))
    refuse(quick, tmp_path / "begun", tmp_path / "fork", "has not finished stage 1")
    unlearned = without(quick, token=Token(placeholder="sks"), stage1=None)
    with pytest.raises(KeyboardInterrupt):
        train(unlearned, tmp_path / "word", display=Watcher(("stage 2", 1), ctrl_c))
    refuse(quick, tmp_path / "word", tmp_path / "fork", "learned no token")


def test_resuming_needs_no_origin(quick: Recipe, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--from is for a new run"):
        train(quick, tmp_path / "fork", resume=True, token_from=unbroken, display=Display())


def test_an_output_that_cannot_be_written_is_left_as_it_was(
    quick: Recipe, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full once the token is there."""
    from twostage.run_folder import RunFolder

    def full(self: RunFolder, **facts: Any) -> None:
        raise UserError("cannot write run.json: No space left on device")

    monkeypatch.setattr(RunFolder, "update", full)
    refuse(quick, unbroken, tmp_path / "fork", "No space")
