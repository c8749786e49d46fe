"""What a denoiser is made of, a U-Net or not, is streamed block by block."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor

from twostage.families import load_base
from twostage.memory.blocks import blocks_of
from twostage.memory.streaming import streamed

CPU = torch.device("cpu")


def transformer() -> SD3Transformer2DModel:
    """Frozen, tiny, of random weights."""
    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
    )
    return net.requires_grad_(False).eval()


def answers(net: SD3Transformer2DModel) -> list[Tensor]:
    """Its output, and gradients of what it is shown and told."""
    generator = torch.Generator().manual_seed(1)
    told = [torch.randn(2, *size, generator=generator).requires_grad_() for size in ((16, 8, 8), (5, 12), (10,))]
    output = net(*told, torch.tensor([300.0, 700.0]), return_dict=False)[0]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), told)]


def test_the_blocks_of_a_u_net_are_its_residual_and_transformer_blocks_and_what_changes_their_size(
    tiny_base: Path,
) -> None:
    unet = load_base(str(tiny_base)).denoiser
    kinds = (ResnetBlock2D, BasicTransformerBlock, Downsample2D, Upsample2D)
    assert list(blocks_of(unet)) == [module for module in unet.modules() if isinstance(module, kinds)]


def test_the_blocks_of_another_denoiser_are_those_that_diffusers_would_not_split() -> None:
    net = transformer()
    assert list(blocks_of(net)) == list(net.transformer_blocks)


def test_a_streamed_transformer_answers_as_a_resident_one_and_leaves_no_block_on_the_card() -> None:
    """Its blocks have two outputs each, and the last block one."""
    net = transformer()
    right = answers(net)
    with streamed(net, 1.0, CPU):
        assert all(block.ff.net[2].weight.isnan().all() for block in net.transformer_blocks)
        found = answers(net)
    assert all(torch.equal(one, other) for one, other in zip(found, right, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(answers(net), right, strict=True))


def test_weights_that_train_are_streamed_though_some_beside_them_cannot_learn() -> None:
    net = transformer().requires_grad_(True)
    net.transformer_blocks[-1].attn.add_q_proj.requires_grad_(False)
    with streamed(net, 1.0, CPU):
        assert all(block.ff.net[2].weight.isnan().all() for block in net.transformer_blocks)
