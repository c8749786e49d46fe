"""What other programs call the parts of a base, by the pipeline class of its family: all that the formats ask of one.

A family that is not here has files of other programs that are not written here; a whole pipeline folder, the tokens and
a delta it has like every other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twostage.errors import UserError
from twostage.family import Family

# What needs no layout.
_EVERY_FAMILY = "--to diffusers, embedding or delta, or --to lora with --naming diffusers"


@dataclass(frozen=True)
class Layout:
    """One family's.

    Attributes:
        published: what the published models are called.
        shapes: theirs, (widths of the U-Net's levels, width of the prompt's states): A1111 and ComfyUI load no others.
        places: what stands before each text encoder's names in a checkpoint.
        kohya: what stands before the names of a component's layers in a LoRA file.
        blocks_of_lora: whether a LoRA file names the U-Net's blocks as the checkpoint does, or as diffusers.
        metadata: of a LoRA file, which tells A1111 whose it is; made from the base where it is not the same for all.
        told_by_keys: whether A1111 and ComfyUI know what a checkpoint predicts by keys in it.
    """

    published: str
    shapes: tuple[tuple[tuple[int, ...], int], ...]
    places: dict[str, str]
    kohya: dict[str, str]
    blocks_of_lora: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    told_by_keys: bool = False

    def is_published(self, unet: Any) -> bool:
        """Whether a U-Net has the shapes of a published one."""
        config = unet.config
        shape = (tuple(config.block_out_channels), config.cross_attention_dim)
        return shape in self.shapes and config.in_channels == 4


_WIDTHS = (320, 640, 1280)

LAYOUTS = {
    "StableDiffusionPipeline": Layout(
        published="Stable Diffusion 1 and 2",
        shapes=(((*_WIDTHS, 1280), 768), ((*_WIDTHS, 1280), 1024)),
        places={"text_encoder": "cond_stage_model"},
        kohya={"unet": "lora_unet", "text_encoder": "lora_te"},
    ),
    # The version's name is that of sd-scripts, library/sdxl_model_util.py; A1111's modules/networks read it.
    "StableDiffusionXLPipeline": Layout(
        published="Stable Diffusion XL",
        shapes=((_WIDTHS, 2048),),
        places={"text_encoder": "conditioner.embedders.0", "text_encoder_2": "conditioner.embedders.1"},
        kohya={"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        blocks_of_lora=True,
        metadata={"ss_v2": "False", "ss_base_model_version": "sdxl_base_v1-0"},
        told_by_keys=True,
    ),
}


def layout_of(family: Family) -> Layout:
    """The layout of a family.

    Raises:
        UserError: it has none.
    """
    if family.pipeline not in LAYOUTS:
        known = " and ".join(layout.published for layout in LAYOUTS.values())
        raise UserError(
            f"this format has names for {known} alone, and the base is a {family.pipeline}; choose {_EVERY_FAMILY}"
        )
    return LAYOUTS[family.pipeline]
