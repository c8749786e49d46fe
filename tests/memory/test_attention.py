"""Attention by other kernels than torch's own is used where it is right, and nowhere else."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
)
from torch import Tensor
from torch.nn import functional as F

from benchmarks.random_bases import deepfloyd_if
from twostage.display import Display
from twostage.errors import UserError
from twostage.families import load_base
from twostage.memory.attention import check_sdpa, choose_attention, largest_difference, set_attention
from twostage.recipe import Memory, Recipe
from twostage.run import train

CPU = torch.device("cpu")
WITHOUT_XFORMERS = pytest.mark.skipif(find_spec("xformers") is not None, reason="xformers is installed here")


class Garbage(AttnProcessor2_0):
    """A kernel that does not work."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states).flip(1)


class NoGradient(AttnProcessor2_0):
    """A kernel that works forward alone."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        return super().__call__(attn, hidden_states, states.detach())


class Unscaled(AttnProcessor2_0):
    """A kernel that forgets to divide by the root of a head's width."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        width = (attn.inner_dim // attn.heads) ** 0.5
        scale = attn.to_q.register_forward_hook(lambda module, given, queries: queries * width)
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states)
        finally:
            scale.remove()


class BlindToPrompts(AttnAddedKVProcessor2_0):
    """A kernel that passes a prompt over."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        assert encoder_hidden_states is not None
        return super().__call__(attn, hidden_states, torch.zeros_like(encoder_hidden_states))


class Kernels(UNet2DConditionModel):
    """A U-Net for which diffusers' switch to xformers brings what a test gives."""

    brought: AttnProcessor2_0

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        self.set_attn_processor(self.brought)


def outline(base: Path, processor: Any = None) -> Any:
    unet = load_base(str(base)).outline("unet")
    if processor is not None:
        unet.__class__, unet.brought = Kernels, processor
    return unet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_own_kernels_agree_with_attention_written_out(tiny_base: Path, dtype: torch.dtype) -> None:
    unet = outline(tiny_base)
    set_attention(unet, "sdpa")
    assert largest_difference(unet, CPU, dtype) < (1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("processor", [Garbage(), NoGradient(), Unscaled()], ids=lambda one: type(one).__name__)
def test_a_wrong_kernel_is_refused_where_it_was_asked_for(tiny_base: Path, processor: Any) -> None:
    with pytest.raises(UserError, match=r"memory.attention = 'xformers' .* wrong here .* use auto or sdpa"):
        choose_attention(lambda: outline(tiny_base, processor), "xformers", CPU, torch.float32)


def test_a_right_kernel_is_used_where_it_was_asked_for(tiny_base: Path) -> None:
    assert choose_attention(lambda: outline(tiny_base, AttnProcessor2_0()), "xformers", CPU, torch.float32) == (
        "xformers",
        "",
    )


def test_the_trial_leaves_the_random_numbers_of_the_run_alone(tiny_base: Path) -> None:
    before = torch.random.get_rng_state()
    largest_difference(outline(tiny_base), CPU, torch.float32)
    assert torch.equal(before, torch.random.get_rng_state())


@WITHOUT_XFORMERS
def test_without_xformers_auto_says_so_in_a_line_and_takes_torchs_own(tiny_base: Path) -> None:
    choice, note = choose_attention(lambda: outline(tiny_base), "auto", torch.device("cuda"), torch.float32)
    assert (choice, note) == ("sdpa", "attention is torch's own (sdpa): xformers is not installed")


def test_on_a_cpu_auto_takes_torchs_own_and_says_nothing() -> None:
    assert choose_attention(pytest.fail, "auto", CPU, torch.float32) == ("sdpa", "")


def test_the_way_back_is_never_the_attention_that_writes_its_matrix_out(tiny_base: Path) -> None:
    unet = outline(tiny_base)
    unet.set_attn_processor(AttnProcessor())
    set_attention(unet, "sdpa")
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}


def test_a_run_says_whose_kernels_it_used(finished: Path) -> None:
    assert json.loads((finished / "run.json").read_text(encoding="utf-8"))["attention"] == "sdpa"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be a kernel here")
def test_a_run_that_asks_for_xformers_in_vain_is_refused_before_anything_is_written(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe.model_copy(update={"memory": Memory(attention="xformers")})
    with pytest.raises(UserError, match=r"memory.attention = 'xformers' cannot be had here: [^\n]* use auto or sdpa$"):
        train(recipe, tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


def test_torchs_own_attention_is_not_trained_with_where_it_is_wrong(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel whose output is right and whose gradient is not: training would run, and teach nothing."""
    check_sdpa(lambda: outline(tiny_base, AttnProcessor2_0()), CPU, torch.float32)
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **more: kernel(q, k.detach(), v, **more))
    with pytest.raises(UserError, match="attention is wrong on this cpu device"):
        check_sdpa(lambda: outline(tiny_base, AttnProcessor2_0()), CPU, torch.float32)


def test_a_u_net_that_attends_to_places_and_prompt_at_once_goes_on_doing_so(tmp_path: Path) -> None:
    """As DeepFloyd IF's: by torch's own kernels, which are right; a wrong one is found."""
    deepfloyd_if.write_pipeline(tmp_path, deepfloyd_if.SIZES["tiny"])
    unet = load_base(str(tmp_path)).outline("unet")
    unet.set_attn_processor(AttnAddedKVProcessor())
    set_attention(unet, "sdpa")
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnAddedKVProcessor2_0}
    assert largest_difference(unet, CPU, torch.float32) < 1e-5
    unet = load_base(str(tmp_path)).outline("unet")
    unet.set_attn_processor(BlindToPrompts())
    assert largest_difference(unet, CPU, torch.float32) > 0.1


def joint_outline(qk_norm: str | None = None) -> Any:
    """Of a transformer whose prompts and pictures attend to each other."""
    with torch.device("meta"):
        return SD3Transformer2DModel(
            sample_size=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=8,
            dual_attention_layers=(0,) if qk_norm else (),
            qk_norm=qk_norm,
        )


@pytest.mark.parametrize("norm", [None, "rms_norm"], ids=["sd3", "sd3.5"])
def test_joint_attention_is_held_to_attention_written_out_too(norm: str | None) -> None:
    net = joint_outline(norm)
    set_attention(net, "sdpa")
    assert {type(processor) for processor in net.attn_processors.values()} == {JointAttnProcessor2_0}
    assert 0 < largest_difference(net, CPU, torch.bfloat16) < 0.03
    check_sdpa(lambda: joint_outline(norm), CPU, torch.float32)


def test_joint_attention_is_not_trained_with_where_its_kernel_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **more: kernel(q, k.detach(), v, **more))
    with pytest.raises(UserError, match="attention is wrong on this cpu device"):
        check_sdpa(joint_outline, CPU, torch.float32)
