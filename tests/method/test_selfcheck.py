"""A run that learned nothing fails, and says why; one that learned passes, whatever it trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import CLIPTokenizer

from tests.watching import Watcher, ctrl_c, without
from twostage.checkpoints import CheckpointFolder
from twostage.display import Display
from twostage.errors import UserError
from twostage.method.loop import Progress
from twostage.method.selfcheck import SelfCheck, check_token, checksum
from twostage.recipe import Adapter, Checkpoints, Recipe, Sample, Stage2, Token
from twostage.run import train

Hook = Callable[[nn.Module, Any, Any], Any]


@pytest.fixture
def one_stage(tiny_recipe: Recipe) -> Recipe:
    """Two steps of stage 2 with a word of the vocabulary."""
    assert tiny_recipe.stage2
    stage2 = tiny_recipe.stage2.model_copy(update={"steps": 2})
    return without(tiny_recipe, token=Token(placeholder="sks"), stage1=None, stage2=stage2, sample=Sample(per_prompt=0))


@pytest.fixture
def hooked() -> Iterator[Callable[[Hook], None]]:
    """Have a function see what every module puts out, for the length of a test."""
    handles = []
    yield lambda hook: handles.append(register_module_forward_hook(hook))
    for handle in handles:
        handle.remove()


def checks(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())["checks"]
    return found


def fails(recipe: Recipe, run: Path, match: str) -> dict[str, Any]:
    """Train, which must end in one line and an unfinished run without results; returns its checks."""
    with pytest.raises(UserError, match=match) as error:
        train(recipe, run, display=Display())
    assert "\n" not in str(error.value)
    assert json.loads((run / "run.json").read_text())["finished"] is False
    assert not (run / "unet").exists()
    return checks(run)


def test_a_run_that_learned_says_what_was_checked(finished: Path) -> None:
    found = checks(finished)
    assert found["token"] == "read in each of 27 prompts"
    assert found["stage1"].keys() == found["stage2"].keys() == {"gradients", "finite", "moved", "frozen"}
    assert found["stage1"]["moved"] == "1 of 1 tensor"
    assert found["stage2"]["moved"] == "208 of 208 tensors"
    assert "failed" not in json.dumps(found)


@pytest.mark.parametrize("options", [{"train_text_encoder": True}, {"train": "adapter", "train_text_encoder": True}])
def test_all_that_can_train_is_checked(one_stage: Recipe, tmp_path: Path, options: dict[str, Any]) -> None:
    """The first of an adapter's factors gets no gradient before the second has moved, which is no failure."""
    stage2 = Stage2(steps=2, learning_rate=1e-3, batch_size=2, **options)
    run = train(without(one_stage, stage2=stage2, adapter=Adapter()), tmp_path / "run", display=Display())
    found = checks(run)["stage2"]
    assert found["gradients"].endswith("by step 1")
    moved, _, trained, _ = found["moved"].split()
    assert moved == trained


def test_a_rate_too_small_to_move_a_float_fails(one_stage: Recipe, tmp_path: Path) -> None:
    assert one_stage.stage2
    still = one_stage.stage2.model_copy(update={"learning_rate": 1e-12})
    found = fails(without(one_stage, stage2=still), tmp_path / "run", r"'moved'.*raise stage2.learning_rate")
    assert found["stage2"]["moved"].startswith("failed: ")


def test_a_frozen_net_that_changes_fails(tiny_recipe: Recipe, tmp_path: Path, hooked: Callable[[Hook], None]) -> None:
    def tamper(module: nn.Module, _inputs: Any, _output: Any) -> None:
        if isinstance(module, UNet2DConditionModel):
            module.mid_block.resnets[0].conv1.weight.data[0, 0, 0, 0] += 1e-3

    hooked(tamper)
    recipe = without(tiny_recipe, stage2=None, sample=Sample(per_prompt=0))
    fails(recipe, tmp_path / "run", r"stage 1 .*'frozen': 1 \(unet.mid_block.resnets.0.conv1.weight\)")
    assert not (tmp_path / "run" / "embedding").exists()


def test_modules_that_no_gradient_reaches_fail(
    one_stage: Recipe, tmp_path: Path, hooked: Callable[[Hook], None]
) -> None:
    """As with an attention whose backward pass does not work on a card."""

    def cut(module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.detach() if isinstance(module, Attention) else None

    hooked(cut)
    found = fails(
        one_stage, tmp_path / "run", r"'gradients': none reached 40 \(unet\.down_blocks\.0\.attentions\.0\..*, \.\.\.\)"
    )
    assert found["stage2"]["gradients"].startswith("failed: ")


def test_missing_gradients_stop_a_stage_in_its_first_steps() -> None:
    net = nn.ModuleDict({"asked": nn.Linear(2, 2), "forgotten": nn.Linear(2, 2)})
    check = SelfCheck(2, dict(net.named_parameters()), {}, patience=2)
    net["asked"](torch.ones(2)).sum().backward()
    check.look_at_gradients()
    with pytest.raises(UserError, match=r"none reached 1 \(forgotten\) of 2 modules in 2 steps"):
        check.look_at_gradients()


def test_a_gradient_that_comes_late_is_waited_for() -> None:
    """A step whose captions were all dropped has none for the token."""
    rows = nn.Parameter(torch.ones(2))
    check = SelfCheck(1, {"rows": rows}, {}, patience=3)
    rows.grad = torch.zeros(2)
    check.look_at_gradients()
    rows.grad = torch.tensor([float("inf"), 1.0])
    check.look_at_gradients()
    rows.grad = torch.tensor([0.0, 1.0])
    check.look_at_gradients()
    assert check.outcome["gradients"] == "reached all of 1 module by step 3"


def test_what_a_resumed_stage_says_of_gradients_is_what_an_unbroken_one_says() -> None:
    """It was interrupted after the second step, and looks anew: its machine may be another."""
    net = nn.ModuleDict({"early": nn.Linear(2, 2), "late": nn.Linear(2, 2)})

    def look(check: SelfCheck, step: int) -> None:
        net.zero_grad()
        net["late" if step == 3 else "early"](torch.ones(2)).sum().backward()
        check.look_at_gradients()

    unbroken, first, second, third = (SelfCheck(2, dict(net.named_parameters()), {}) for _ in range(4))
    for step in (1, 2, 3, 4):
        look(unbroken, step)
    assert unbroken.outcome["gradients"] == "reached all of 2 modules by step 3"
    for step in (1, 2):
        look(first, step)
    second.restore(json.loads(json.dumps(first.progress())))
    for step in (3, 4):
        look(second, step)
    assert second.outcome == unbroken.outcome
    third.restore(second.progress())
    third.outcome["gradients"] = "failed: on a machine between"
    for step in (2, 3):
        look(third, step)
    assert third.outcome == unbroken.outcome


def test_what_is_no_number_any_more_fails() -> None:
    rows = nn.Parameter(torch.ones(2))
    check = SelfCheck(1, {"rows": rows}, {})
    rows.data[1] = float("nan")
    with pytest.raises(UserError, match=r"'finite': 1 \(rows\).*lower stage1.learning_rate"):
        check.look_at_result()


def test_a_tensor_put_in_the_place_of_a_frozen_one_is_seen() -> None:
    net = nn.Linear(2, 2).requires_grad_(False)
    check = SelfCheck(1, {}, {"net": net})
    net.bias = nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(UserError, match=r"'frozen': 1 \(net.bias\)"):
        check.look_at_result()


def test_the_token_must_be_among_what_the_text_encoder_reads(tiny_base: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    tokenizer.add_tokens(["<rare>", "<rare>_1"])
    ids = tokenizer.convert_tokens_to_ids(["<rare>", "<rare>_1"])
    whole = "a photo of a <rare> <rare>_1 dog"
    assert check_token(tokenizer, ids, [whole, "", whole]) == "read in each of 2 prompts"
    for cut in ("a " * 80 + whole, "a <rare> dog", "a <rare>_1 <rare> dog", "a dog"):
        with pytest.raises(UserError, match="'token'"):
            check_token(tokenizer, ids, [whole, cut])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("size", [1, 7, 300_001])
def test_a_checksum_is_of_the_bits(dtype: torch.dtype, size: int) -> None:
    tensor = torch.arange(size).remainder(2).to(dtype)
    assert checksum(tensor) == checksum(tensor.clone())
    assert checksum(torch.cat([tensor[:1], tensor])[1:]) == checksum(tensor)
    for place in (0, size // 2, size - 1):
        other = tensor.clone()
        other[place] = 1 - other[place].to(torch.int64)
        assert checksum(other) != checksum(tensor)
    if size > 1:
        assert checksum(tensor.roll(1)) != checksum(tensor)


def test_a_checksum_tells_zero_from_minus_zero_and_takes_every_shape() -> None:
    assert checksum(torch.zeros(3)) != checksum(-torch.zeros(3))
    assert checksum(torch.tensor(1.0)) == checksum(torch.ones(1))
    assert checksum(torch.zeros(0)) == 0
    square = torch.arange(6.0).view(2, 3)
    assert checksum(square.T) == checksum(square.T.contiguous())


def test_a_resumed_run_has_the_checks_of_both_sessions(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = without(tiny_recipe, sample=Sample(per_prompt=0))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 1", 6), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert all(
        found.keys() == {"gradients", "finite", "moved", "frozen"}
        for found in (checks(run)["stage1"], checks(run)["stage2"])
    )


@pytest.mark.parametrize("saved", [(1, 1), (2, 1)])
def test_a_run_killed_as_it_saves_a_checkpoint_has_the_checks_of_an_unbroken_one(
    tiny_recipe: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: tuple[int, int]
) -> None:
    """Who goes on from stage 2 does not look at stage 1 any more."""

    class Killed(BaseException):
        pass

    def save(self: CheckpointFolder, stage: int, progress: Progress, *options: Any) -> Path:
        path = whole_save(self, stage, progress, *options)
        if (stage, progress.step) == saved:
            raise Killed
        return path

    whole_save = CheckpointFolder.save
    recipe = without(tiny_recipe, sample=Sample(per_prompt=0), checkpoints=Checkpoints(every=1))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", save)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "run", display=Display())
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert json.dumps(checks(run)) == json.dumps(checks(finished))
