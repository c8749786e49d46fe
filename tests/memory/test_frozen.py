"""Frozen weights in 8 or 4 bits: how far off they are, that they compute as whole ones do, and what they occupy."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.memory.frozen import place_frozen
from twostage.method.selfcheck import SelfCheck
from twostage.planning.phases import Known
from twostage.planning.rehearsal import rehearse
from twostage.recipe import Adapter, Memory, Recipe, Sample, Stage1, Stage2
from twostage.run import generate, train

CPU = torch.device("cpu")
FORMS = ("8bit", "4bit")
LAYERS = {
    "linear": (lambda: nn.Linear(100, 70), (3, 5, 100)),
    "linear, no bias": (lambda: nn.Linear(64, 30, bias=False), (7, 64)),
    "convolution": (lambda: nn.Conv2d(12, 20, 3, padding=1), (2, 12, 9, 9)),
    "every second place": (lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 10, 10)),
    "grouped, dilated": (lambda: nn.Conv2d(12, 20, (3, 1), dilation=2, groups=4, bias=False), (1, 12, 9, 9)),
}


def frozen(layer: nn.Module, kept: str, dtype: torch.dtype = torch.float32) -> Any:
    net = nn.Sequential(copy.deepcopy(layer).requires_grad_(False))
    place_frozen(net, kept, CPU, dtype)
    return net[0]


def random_linear() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(512, 256, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def distance(found: Tensor, right: Tensor) -> float:
    return float((found.detach().float() - right.detach().float()).norm() / right.detach().float().norm())


@pytest.mark.parametrize("kept", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_as_one_that_has_the_same_weight_whole(name: str, kept: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    ours = frozen(layer, kept)
    layer.weight.data = ours.weight
    answers = []
    for module in (ours, layer.requires_grad_(False)):
        shown = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        answer = module(shown)
        (answer * torch.linspace(-1, 1, answer.numel()).view_as(answer)).sum().backward()
        answers.append((answer, shown.grad))
    assert type(layer) in type(ours).__mro__
    assert all(torch.equal(*pair) for pair in zip(*answers, strict=True))


@pytest.mark.parametrize(("kept", "most"), [("8bit", 0.0065), ("4bit", 0.095)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normal_weights_come_back_nearly_whatever_the_format_of_their_scales(
    kept: str, most: float, dtype: torch.dtype
) -> None:
    layer = random_linear()
    ours = frozen(layer, kept, dtype)
    assert ours.weight.dtype == dtype
    assert distance(ours.weight, layer.weight) < most


def test_zeros_stay_zeros_and_the_largest_of_a_block_itself() -> None:
    layer = nn.Linear(128, 2, bias=False)
    layer.weight.data.zero_()
    layer.weight.data[0, 3] = -0.5
    assert all(torch.equal(frozen(layer, kept).weight, layer.weight) for kept in FORMS)


@pytest.mark.parametrize(("kept", "bits"), [("8bit", 8.25), ("4bit", 4.25)])
def test_a_weight_takes_its_bits_and_a_share_of_a_scale(kept: str, bits: float) -> None:
    ours = frozen(random_linear(), kept, torch.bfloat16)
    taken = sum(tensor.numel() * tensor.element_size() for tensor in ours.state_dict().values())
    assert taken * 8 == bits * 512 * 256


def test_convolutions_are_never_in_fewer_than_8_bits() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 64, 3)
    assert torch.equal(frozen(convolution, "4bit").weight, frozen(convolution, "8bit").weight)


@pytest.mark.parametrize("kept", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_kept_for_the_backward_pass(name: str, kept: str) -> None:
    make, shape = LAYERS[name]
    layer, kept_tensors = frozen(make(), kept), []
    with torch.autograd.graph.saved_tensors_hooks(kept_tensors.append, lambda tensor: tensor):
        layer(torch.randn(shape, requires_grad=True))
    assert not kept_tensors


def test_autocast_decides_what_a_layer_computes_in() -> None:
    ours = frozen(random_linear(), "8bit")
    shown = torch.randn(3, 512, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        answer = ours(shown)
    answer.sum().backward()
    assert answer.dtype == torch.bfloat16
    assert shown.grad is not None and shown.grad.dtype == torch.float32


def test_padding_that_is_no_number_of_zeros_leaves_a_convolution_whole() -> None:
    for layer in (nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")):
        assert "weight" in dict(frozen(layer, "8bit").named_parameters())


# Parity with libraries, where they are installed


def test_four_bits_are_as_near_as_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    layer = random_linear()
    packed, state = functional.quantize_4bit(layer.weight.data, blocksize=64, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state)
    assert torch.allclose(frozen(layer, "4bit").weight, theirs, atol=1e-6)


def test_eight_bits_are_nearer_than_torchao_with_a_scale_a_row() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    layer = random_linear()
    theirs = nn.Sequential(copy.deepcopy(layer))
    quantization.quantize_(theirs, quantization.Int8WeightOnlyConfig())
    right = layer.weight
    assert distance(frozen(layer, "8bit").weight, right) < distance(theirs[0].weight.dequantize(), right)


# Whole runs


def quantised(recipe: Recipe, kept: Any, stage2: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """Both stages, the second with an adapter."""
    options: dict[str, Any] = {"steps": 3, "learning_rate": 1e-3, "batch_size": 2, "train": "adapter"}
    return without(
        recipe,
        memory=Memory(frozen_base=kept),
        stage1=Stage1(steps=2, learning_rate=5e-3, batch_size=2),
        stage2=Stage2(**options | (stage2 or {})),
        **{"sample": Sample(prompts=(), per_prompt=0), **changes},
    )


@pytest.mark.parametrize(("kept", "at"), [("8bit", ("stage 1", 1)), ("4bit", ("stage 2", 2))])
def test_a_run_on_a_quantised_base_resumes_bit_for_bit(
    tiny_recipe: Recipe, tmp_path: Path, kept: Any, at: tuple[str, int]
) -> None:
    recipe = quantised(tiny_recipe, kept)
    unbroken = train(recipe, tmp_path / "unbroken", display=Display())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(at, ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    for name in ("embedding/rare.safetensors", "adapter/unet/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes()
    assert metrics(run) == metrics(unbroken)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_is_learned_on_it_loads_onto_the_base_in_full(
    tiny_recipe: Recipe, tiny_base: Path, tmp_path: Path, precision: Any
) -> None:
    checkpointed = {"gradient_checkpointing": True}
    sample = Sample(prompts=("a {}",), per_prompt=1, num_inference_steps=1)
    recipe = quantised(tiny_recipe, "4bit", checkpointed, mixed_precision=precision, sample=sample)
    run = train(recipe, tmp_path / "run", display=Display())
    full = train(without(recipe, memory=Memory()), tmp_path / "full", display=Display())
    losses = [[line["loss"] for line in metrics(folder)] for folder in (run, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert load_file(run / "embedding" / "rare.safetensors")["<rare>"].dtype == torch.float32
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    adapted = PeftModel.from_pretrained(unet, run / "adapter" / "unet")
    assert all("default" in name or not parameter.requires_grad for name, parameter in adapted.named_parameters())
    assert (run / "samples" / "stage2-000003.png").is_file()
    assert generate(run, "a {}", count=1, num_inference_steps=1)


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft", "boft"])
def test_every_kind_of_adapter_learns_on_a_quantised_base(tiny_recipe: Recipe, tmp_path: Path, kind: Any) -> None:
    recipe = quantised(tiny_recipe, "4bit", adapter=Adapter(kind=kind, rank=2), mixed_precision="bf16")
    run = train(without(recipe, stage1=None), tmp_path / "run", display=Display())
    assert json.loads((run / "run.json").read_text())["checks"]["stage2"]["moved"]
    assert generate(run, "a {}", count=1, num_inference_steps=1)


def test_a_changed_code_fails_the_check_of_what_is_frozen() -> None:
    net = nn.Sequential(random_linear().requires_grad_(False))
    place_frozen(net, "4bit", CPU, torch.float32)
    learned = nn.Parameter(torch.ones(8))
    check = SelfCheck(1, {"rows": learned}, {"unet": net})
    with torch.no_grad():
        learned.add_(1)
        net[0].codes[7] ^= 1
    with pytest.raises(UserError, match="frozen"):
        check.look_at_result()


def test_a_step_takes_less_memory_the_fewer_the_bits(tiny_recipe: Recipe) -> None:
    taken, known = {}, Known()
    for kept in ("full", *FORMS):
        phases = {phase.name: phase.allocated for phase in rehearse(quantised(tiny_recipe, kept), known).phases}
        taken[kept] = phases["stage 1"], phases["stage 2"]
    for stage in (0, 1):
        assert taken["full"][stage] > taken["8bit"][stage] > taken["4bit"][stage]


def test_stage_2_counts_nothing_of_stage_1(tiny_recipe: Recipe) -> None:
    both = quantised(tiny_recipe, "8bit", {"train": "unet"})
    (after, alone) = (
        rehearse(recipe).phases
        for recipe in (both, without(tiny_recipe, stage1=None, stage2=both.stage2, sample=both.sample))
    )
    found = [phase.allocated for phases in (after, alone) for phase in phases if phase.name == "stage 2"]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_u_net_that_trains_whole_is_not_to_be_quantised() -> None:
    stage2 = {"steps": 1, "learning_rate": 1e-3}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"memory": {"frozen_base": "8bit"}, "stage2": stage2})
    (error,) = caught.value.errors()
    assert "trains the whole U-Net" in error["msg"]
    assert "\n" not in error["msg"]
    Recipe.model_validate({"memory": {"frozen_base": "8bit"}, "stage2": {**stage2, "train": "adapter"}})
