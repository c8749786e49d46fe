"""Names of a LoRA's tensors, as kohya's trainer and diffusers give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from twostage.export.shared.layouts import Layout
from twostage.export.shared.original import file_name, original_unet_names

# By the layer's name in its component: "down", "up", and "magnitude" where there is one.
Factors = tuple[str, dict[str, Tensor]]

_DIFFUSERS = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def diffusers_names(component: str, layers: Iterable[Factors]) -> dict[str, Tensor]:
    """Tensors of a component's layers as diffusers names them; `component` is "unet", "text_encoder" and the like."""
    return {
        f"{component}.{_module(component, module)}.{_DIFFUSERS[part]}": value
        for module, factors in layers
        for part, value in factors.items()
    }


def kohya_names(layout: Layout, component: str, net: Any, layers: Iterable[Factors]) -> dict[str, Tensor]:
    """Tensors of a component's layers as kohya's trainer names them; it has no name for a magnitude.

    Args:
        layout: the family's.
        component: the part of the pipeline that `net` is.
        net: the stock model.
        layers: its layers that have factors.

    Raises:
        UserError: a U-Net's layer that has no original name, where the names are made of those.
    """
    original = original_unet_names(net) if component == "unet" and layout.blocks_of_lora else {}
    tensors = {}
    for module, factors in layers:
        name = original.get(f"{module}.weight", f"{_module(component, module)}.weight").removesuffix(".weight")
        stem = f"{layout.kohya[component]}_{name.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = factors["down"]
        tensors[f"{stem}.lora_up.weight"] = factors["up"]
        tensors[f"{stem}.alpha"] = torch.tensor(float(len(factors["down"])))
    return tensors


def _module(component: str, module: str) -> str:
    return file_name(module) if component.startswith("text_encoder") else module
