"""Names of Stable Diffusion XL: those of the file that was published, and of a LoRA from the trainer that most use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import twostage.planning
from twostage.export.shared.layouts import LAYOUTS
from twostage.export.shared.lora_names import diffusers_names, kohya_names
from twostage.export.shared.original import original_checkpoint

LAYOUT = LAYOUTS["StableDiffusionXLPipeline"]
# What DiffSynth-Studio knows the published files by, in diffsynth/configs/model_configs.py of
# github.com/modelscope/DiffSynth-Studio, commit fed7b18: md5 over the names and shapes of all tensors, made as
# `hash_state_dict_keys` in diffsynth/core/loader/file.py says. The first is sd_xl_base_1.0.safetensors; the others are
# folders of stabilityai/stable-diffusion-xl-base-1.0, and show that these are the published nets.
PUBLISHED = "4cf64a799d04260df438c6f33c9a047e"
PUBLISHED_PARTS = {
    "unet": "142b114f67f5ab3a6d83fb5788f12ded",
    "vae": "13115dd45a6e1c39860f91ab073b8a78",
    "text_encoder_2": "98cc34ccc5b54ae0e56bdea8688dcd5a",
}
# Number, and sha256 of the sorted lines "name [shape]" with -1 for the rank, of the tensors in LoRA files of kohya's
# trainer, after LoRA-XL-*.txt in components/ of github.com/arenasys/stable-diffusion-webui-model-toolkit, commit
# 26b9827; and the layers that one has no factors for, which are outside the blocks.
LORA = {
    "unet": (2364, "100661c17a5d7e47dd67661893c91657fcbb5fffecbf8601de82a716a7503f26"),
    "text_encoder": (216, "0d492610ac35e365d7630589973f30a9b32bb3fcde218cdd39c3acd0579a8c56"),
    "text_encoder_2": (576, "54ea6f811f5bd8284070d9fe80dc7216d125d0534dcc076e1623725e536a7be9"),
}
OUTSIDE = {
    "unet": {"input_blocks_0_0", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2", "out_2"},
    "text_encoder": set(),
    "text_encoder_2": {"text_projection"},
}
RANK = 7


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The nets in the published configuration, without a weight."""
    folder = Path(twostage.planning.__file__).parent / "bases" / "sdxl"
    with torch.device("meta"):
        nets: dict[str, Any] = {
            name: kind.from_config(json.loads((folder / name / "config.json").read_text(encoding="utf-8")))
            for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
        }
        nets["text_encoder"] = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
        nets["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text_encoder_2"))
    return nets


def checkpoint_of(nets: dict[str, Any]) -> dict[str, Tensor]:
    encoders = {place: nets[name] for name, place in LAYOUT.places.items()}
    return original_checkpoint(nets["unet"], nets["vae"], encoders)


def digest(tensors: dict[str, Tensor]) -> str:
    names = [entry for name, value in tensors.items() for entry in (name, f"{name}:{'_'.join(map(str, value.shape))}")]
    return hashlib.md5(",".join(sorted(names)).encode()).hexdigest()


def test_the_nets_of_these_tests_are_the_published_ones(published: dict[str, Any]) -> None:
    assert {name: digest(published[name].state_dict()) for name in PUBLISHED_PARTS} == PUBLISHED_PARTS


def test_names_and_shapes_are_those_of_the_published_checkpoint(published: dict[str, Any]) -> None:
    checkpoint = checkpoint_of(published)
    assert LAYOUT.is_published(published["unet"])
    assert len(checkpoint) == 2515
    assert digest(checkpoint) == PUBLISHED


def layers(net: nn.Module) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Factors of every layer that a LoRA can have, without values."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            rows, *others = module.weight.shape
            up = torch.empty(rows, RANK, *[1] * (len(others) - 1), device="meta")
            yield name, {"down": torch.empty(RANK, *others, device="meta"), "up": up}


@pytest.mark.parametrize("component", list(LORA))
def test_a_lora_has_the_names_of_kohyas_trainer(published: dict[str, Any], component: str) -> None:
    net = published[component]
    found = set()
    for name, value in kohya_names(LAYOUT, component, net, layers(net)).items():
        module, part = name.split(".", 1)
        shape = list(value.shape)
        if part != "alpha":
            shape["up" in part] = -1
        if module.removeprefix(f"{LAYOUT.kohya[component]}_") not in OUTSIDE[component]:
            found.add(f"{name} [{','.join(map(str, shape))}]")
    number, expected = LORA[component]
    assert len(found) == number
    assert hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest() == expected


def test_diffusers_names_are_those_of_its_models(published: dict[str, Any]) -> None:
    for component in LORA:
        names = diffusers_names(component, layers(published[component]))
        assert len(names) == 2 * sum(1 for _ in layers(published[component]))
        prefix = "unet." if component == "unet" else f"{component}.text_"
        assert all(name.startswith(prefix) for name in names)


def test_every_text_encoder_comes_back_from_diffusers_own_converter() -> None:
    """Values: query, key and value are cut apart again, and the projection, which is no square here, turned back."""
    shape = {"vocab_size": 9, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    first = CLIPTextModel(CLIPTextConfig(hidden_size=4, **shape))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=6, projection_dim=5, **shape))
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
        )
        vae = AutoencoderKL()
    checkpoint = checkpoint_of({"unet": unet, "vae": vae, "text_encoder": first, "text_encoder_2": second})
    backs = (
        convert_ldm_clip_checkpoint(checkpoint),
        convert_open_clip_checkpoint(second, checkpoint, prefix=f"{LAYOUT.places['text_encoder_2']}.model."),
    )
    for encoder, back in zip((first, second), backs, strict=True):
        back.pop("text_model.embeddings.position_ids", None)
        ours = {
            name if name.startswith("text_") else f"text_model.{name}": value
            for name, value in encoder.state_dict().items()
        }
        assert back.keys() == ours.keys()
        assert all(torch.equal(back[name], value) for name, value in ours.items())
    assert checkpoint["conditioner.embedders.1.model.logit_scale"].exp().item() == pytest.approx(100)
