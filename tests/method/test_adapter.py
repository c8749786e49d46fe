"""Adapters: every kind trains alone, leaves the base its bits, and is read by stock peft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from twostage.errors import UserError
from twostage.families import load_base
from twostage.family_parts import Text
from twostage.method.adapter import (
    PRESETS,
    add_adapter,
    find_targets,
    merge_adapter,
    save_adapter,
    target_modules,
)
from twostage.recipe import Adapter

KINDS = ("lora", "rslora", "dora", "loha", "lokr", "oft", "boft")
ROTATIONS = ("oft", "boft")

# Stock peft, here the judge, tries to compile for BOFT and says that it cannot; and it asks
# transformers in a way that is going out.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Failed to load the CUDA extension",
    "ignore:Setting boft_n_butterfly",
    "ignore:`is_gradient_checkpointing`:FutureWarning",
)


def answer(unet: nn.Module) -> Tensor:
    """What a U-Net says to a fixed question."""
    draws = torch.Generator().manual_seed(3)
    noisy, states = torch.randn(2, 4, 8, 8, generator=draws), torch.randn(2, 77, 16, generator=draws)
    with torch.no_grad():
        said: Tensor = unet(noisy, torch.tensor([10, 500]), states, return_dict=False)[0]
    return said


def moved(net: nn.Module, seed: int = 0) -> None:
    """Give whatever trains in a net other values, as training would."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.05)


@pytest.mark.parametrize("where", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(tiny_base: Path, kind: str, where: str) -> None:
    unet = load_base(str(tiny_base)).denoiser
    before, untouched = answer(unet), {name: p.clone() for name, p in unet.state_dict().items()}
    add_adapter(unet, Adapter(kind=kind), [where], seed=0)
    assert torch.equal(answer(unet), before)
    trains = [p for p in unet.parameters() if p.requires_grad]
    assert trains
    assert {p.dtype for p in trains} == {torch.float32}
    moved(unet)
    assert not torch.allclose(answer(unet), before, atol=1e-3)
    kept = {name.replace(".base_layer.", "."): p for name, p in unet.state_dict().items()}
    assert all(torch.equal(kept[name], p) for name, p in untouched.items())


@pytest.mark.parametrize("where", ["attention+ff", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_merged_and_apart_answer_alike(tiny_base: Path, tmp_path: Path, kind: str, where: str) -> None:
    base = load_base(str(tiny_base))
    add_adapter(base.denoiser, Adapter(kind=kind, rank=2), [where], seed=0)
    moved(base.denoiser)
    trained = answer(base.denoiser)
    save_adapter(base.denoiser, tmp_path, "some/base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == sorted(config["target_modules"])

    base.release("unet")
    merged = merge_adapter(base.denoiser, tmp_path)
    assert type(merged) is UNet2DConditionModel
    stock = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(tiny_base / "unet"), tmp_path)
    assert torch.equal(answer(stock), trained)
    assert torch.allclose(answer(merged), trained, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_leads_from_the_base_to_what_was_trained(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    base = load_base(str(tiny_base))
    untouched = answer(base.denoiser)
    add_adapter(base.denoiser, Adapter(kind=kind), ["all"], seed=0)
    moved(base.denoiser)
    save_adapter(base.denoiser, tmp_path, "")
    answers = []
    for strength in (0.0, 0.5, 1.0):
        base.release("unet")
        answers.append(answer(merge_adapter(base.denoiser, tmp_path, strength)))
    assert torch.equal(answers[0], untouched)
    assert (answers[1] - untouched).norm() < (answers[2] - untouched).norm()
    assert not torch.allclose(answers[1], answers[2], atol=1e-3)


@pytest.mark.parametrize("kind", ["lora", "rslora", "loha", "lokr"])
def test_strength_is_pefts_own_scale_where_the_kind_has_one(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    base = load_base(str(tiny_base))
    add_adapter(base.denoiser, Adapter(kind=kind, rank=2, alpha=3), ["all"], seed=0)
    moved(base.denoiser)
    save_adapter(base.denoiser, tmp_path, "")
    for layer in base.denoiser.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 0.3)
    scaled = answer(base.denoiser)
    base.release("unet")
    assert torch.allclose(answer(merge_adapter(base.denoiser, tmp_path, 0.3)), scaled, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_encoder_takes_an_adapter_too(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    base = load_base(str(tiny_base))

    def read(encoder: nn.Module) -> Tensor:
        with torch.no_grad():
            return base.family.encode_text(Text(base.tokenizers, {"text_encoder": encoder}, {}), ["a red backpack"])[
                "states"
            ]

    before = read(base.text_encoder)
    add_adapter(base.text_encoder, Adapter(kind=kind), target_modules(base.family, "text_encoder", Adapter()), seed=0)
    assert torch.equal(read(base.text_encoder), before)
    moved(base.text_encoder)
    trained = read(base.text_encoder)
    save_adapter(base.text_encoder, tmp_path, "")
    base.release("text_encoder")
    assert torch.allclose(read(merge_adapter(base.text_encoder, tmp_path)), trained, atol=1e-5)
    stock = PeftModel.from_pretrained(CLIPTextModel.from_pretrained(tiny_base / "text_encoder"), tmp_path)
    assert torch.equal(read(stock.base_model.model), trained)
    assert not torch.allclose(trained, before, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_net_of_half_precision_keeps_it_and_its_adapter_is_float32(tiny_base: Path, kind: str) -> None:
    unet = load_base(str(tiny_base)).denoiser.to(torch.bfloat16)
    add_adapter(unet, Adapter(kind=kind), ["all"], seed=0)
    assert {p.dtype for p in unet.parameters() if p.requires_grad} == {torch.float32}
    assert unet.conv_in.weight.dtype == torch.bfloat16
    draws = torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.randn(2, 77, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = unet(*draws, return_dict=False)[0].float().square().mean()
    loss.backward()
    gradients = [p.grad for p in unet.parameters() if p.requires_grad]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_fresh_adapter_comes_from_its_seed_alone(tiny_base: Path) -> None:
    def fresh(seed: int) -> list[Tensor]:
        unet = load_base(str(tiny_base)).denoiser
        add_adapter(unet, Adapter(), ["attention"], seed=seed)
        return [p for p in unet.parameters() if p.requires_grad]

    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    one = fresh(5)
    assert torch.equal(torch.randn(3), expected)
    again, other = fresh(5), fresh(6)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Targets


def targets(base: Path, kind: str, *wanted: str) -> list[str]:
    return find_targets(load_base(str(base)).denoiser, kind, wanted)


def test_targets_are_found_by_preset_name_end_and_pattern(tiny_base: Path) -> None:
    attention = targets(tiny_base, "lora", "attention")
    assert {name.split(".")[-1] for name in attention} == {"to_q", "to_k", "to_v", "0"}
    assert len(attention) == 4 * 8
    assert len(targets(tiny_base, "lora", "attention+ff")) == len(attention) + 2 * 4
    one = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    assert targets(tiny_base, "lora", one) == [one]
    assert len(targets(tiny_base, "lora", "attn2.to_k")) == 4
    block = targets(tiny_base, "lora", "mid_block.*")
    assert one in block
    assert all(name.startswith("mid_block.") for name in block)
    assert targets(tiny_base, "lora", "mid_block.*", "attn2.to_k", one) == [
        name for name in targets(tiny_base, "lora", "all") if name in block or name.endswith("attn2.to_k")
    ]


@pytest.mark.parametrize("kind", ROTATIONS)
def test_rotations_take_of_a_preset_what_they_can(tiny_base: Path, kind: str) -> None:
    found = targets(tiny_base, kind, "all")
    every = targets(tiny_base, "lora", "all")
    assert set(found) < set(every)
    assert "mid_block.attentions.0.proj_in" in found
    assert not any(name.endswith("conv1") for name in found)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("lora", "to_keys", "'to_keys' is no module of the UNet2DConditionModel.* the nearest are .*to_k"),
        ("lora", "atention", "the nearest are attention"),
        ("lora", "up_block.*", "the nearest are up_blocks"),
        ("lora", "zzzz", "presets are attention"),
        ("lora", "norm1", r"'norm1' is a LayerNorm \(down_blocks.*lora adapts Linear and Conv2d"),
        ("lora", "to_out", r"'to_out' is a ModuleList"),
        ("lora", "mid_block", r"'mid_block' is a UNetMidBlock2DCrossAttn"),
        ("oft", "conv1", r"'conv1' is a 3x3 Conv2d .*oft adapts Linear and 1x1 Conv2d"),
        ("boft", "resnets.0.conv2", "'resnets.0.conv2' is a 3x3 Conv2d"),
        ("boft", "*.conv1", "no module of the UNet2DConditionModel that boft can adapt"),
    ],
)
def test_a_target_that_cannot_be_is_named_with_what_could(tiny_base: Path, kind: str, value: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        targets(tiny_base, kind, "attention", value)
    assert "\n" not in str(error.value)
    assert "adapter.target_modules" in str(error.value)


@pytest.mark.parametrize("kind", ROTATIONS)
def test_blocks_that_rotate_divide_every_targets_inputs(tiny_base: Path, kind: str) -> None:
    """Inputs of the attention are 8 and 16, and a rank of 3 would like 12."""
    unet = load_base(str(tiny_base)).denoiser
    add_adapter(unet, Adapter(kind=kind, rank=3), ["attention"], seed=0)
    assert getattr(unet.peft_config["default"], f"{kind}_block_size") == 8


@pytest.mark.parametrize("kind", ROTATIONS)
def test_targets_with_no_block_in_common_are_refused(kind: str) -> None:
    net = nn.ModuleDict({"odd": nn.Linear(9, 4), "even": nn.Linear(4, 4)})
    with pytest.raises(UserError, match="modules of 4 to 9 inputs share no block"):
        add_adapter(net, Adapter(kind=kind), ["odd", "even"], seed=0)


# The recipe's section


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "oft", "alpha": 4}, "no alpha"),
        ({"kind": "boft", "alpha": 4}, "no alpha"),
        ({"kind": "oft", "dropout": 0.1}, "no dropout"),
        ({"rank": 0}, "rank"),
        ({"dropout": 1.0}, "dropout"),
        ({"target_modules": ()}, "target_modules"),
    ],
)
def test_options_that_a_kind_would_ignore_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Adapter(**options)


# Damaged files


def test_an_adapter_that_cannot_be_read_is_told_in_one_line(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base))
    add_adapter(base.denoiser, Adapter(), ["attention"], seed=0)
    save_adapter(base.denoiser, tmp_path, "")
    base.release("unet")
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:100], b""):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot load the adapter") as error:
            merge_adapter(base.denoiser, tmp_path)
        assert "\n" not in str(error.value)
        base.release("unet")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=name):
            merge_adapter(base.denoiser, tmp_path)
