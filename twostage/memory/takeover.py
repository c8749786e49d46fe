"""What an optimizer has learned of its parameters, taken over by another: AdamW in 32, 8 or 4 bits, or Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twostage.memory.adafactor import Adafactor
from twostage.memory.adamw import AdamW, moment_quantisers
from twostage.memory.quantisation import Quantiser
from twostage.memory.tensorwise import flat

# Adafactor, where AdamW has its bits.
_FACTORED = 0


@dataclass(frozen=True)
class Moments:
    """Running means of a parameter's gradient and of its square, as AdamW keeps them: they started at zero.

    Both are float32, of the parameter's shape and strides; `first` is None where the optimizer has none.
    """

    first: Tensor | None
    second: Tensor


@torch.no_grad()
def take_over(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Go on with what another optimizer of the same parameters had learned, of the same kind or not.

    Of its own kind, every bit is taken. From more bits to fewer, moments are rounded. Adafactor gets the rows' and the
    columns' means of AdamW's second moments, corrected for their start at zero; its own come back as their product, and
    the first moments then start at zero.

    Args:
        optimizer: goes on. Its options are its own; the learning rates of its groups are taken over.
        saved: the `state_dict` of the other.
    """
    groups = [
        own | {name: other[name] for name in ("lr", "initial_lr") if name in other}
        for own, other in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    ]
    state: dict[int, Mapping[str, Any]] = {}
    for group, own, other in zip(optimizer.param_groups, groups, saved["param_groups"], strict=True):
        betas = own.get("betas") or other.get("betas")
        for index, parameter in zip(own["params"], group["params"], strict=True):
            if index in saved["state"]:
                state[index] = _translated(saved["state"][index], parameter, optimizer, betas)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _translated(
    entries: Mapping[str, Any], parameter: Tensor, optimizer: torch.optim.Optimizer, betas: tuple[float, float] | None
) -> Mapping[str, Any]:
    wanted = _FACTORED if isinstance(optimizer, Adafactor) else _bits_wanted(optimizer, parameter)
    there = _FACTORED if "exp_avg" not in entries else _bits_of(entries, parameter)
    if wanted == there:
        return entries
    assert betas is not None, "one of the two is AdamW"
    # By how much a running mean that started at zero falls short of the mean.
    shortfall = 1 - betas[1] ** int(entries["step"])
    moments = _factored_moments(entries, parameter, shortfall) if there == _FACTORED else _read(entries, parameter)
    kept = _factors(moments, parameter, shortfall) if wanted == _FACTORED else _written(moments, parameter, wanted)
    return {"step": entries["step"], **kept}


def _bits_wanted(optimizer: torch.optim.Optimizer, parameter: Tensor) -> int:
    quantiser = optimizer.quantisers_of(parameter)["exp_avg"] if isinstance(optimizer, AdamW) else None
    return quantiser.bits if quantiser else 32


def _bits_of(entries: Mapping[str, Any], parameter: Tensor) -> int:
    if "exp_avg_scale" not in entries:
        return 32
    return 8 if len(entries["exp_avg"]) == parameter.numel() else 4


def _read(entries: Mapping[str, Any], parameter: Tensor) -> Moments:
    quantisers = moment_quantisers(_bits_of(entries, parameter))
    first, second = (_unpacked(entries, name, quantiser, parameter) for name, quantiser in quantisers.items())
    return Moments(first, second)


def _unpacked(entries: Mapping[str, Any], name: str, quantiser: Quantiser | None, parameter: Tensor) -> Tensor:
    if quantiser is None:
        kept: Tensor = entries[name]
        return kept
    moment = _like(parameter, entries[name].device)
    flat(moment, moment).copy_(quantiser.unpack(entries[name], entries[f"{name}_scale"], parameter.numel()))
    return moment


def _written(moments: Moments, parameter: Tensor, bits: int) -> dict[str, Tensor]:
    first = torch.zeros_like(moments.second) if moments.first is None else moments.first
    kept = {}
    for (name, quantiser), moment in zip(moment_quantisers(bits).items(), (first, moments.second), strict=True):
        if quantiser is None:
            kept[name] = moment
        else:
            in_order = _like(parameter, moment.device).copy_(moment)
            kept[name], kept[f"{name}_scale"] = quantiser.pack(flat(in_order, in_order))
    return kept


def _factors(moments: Moments, parameter: Tensor, shortfall: float) -> dict[str, Tensor]:
    second = moments.second / shortfall
    if parameter.ndim < 2:
        return {"exp_avg_sq": second}
    matrix = second.flatten(1)
    return {"exp_avg_sq_row": matrix.mean(1), "exp_avg_sq_col": matrix.mean(0)}


def _factored_moments(entries: Mapping[str, Any], parameter: Tensor, shortfall: float) -> Moments:
    if "exp_avg_sq" in entries:
        return Moments(None, entries["exp_avg_sq"] * shortfall)
    row, column = entries["exp_avg_sq_row"], entries["exp_avg_sq_col"]
    matrix = torch.outer(row / row.mean(), column) * shortfall
    return Moments(None, _like(parameter, matrix.device).copy_(matrix.view(parameter.shape)))


def _like(parameter: Tensor, device: torch.device) -> Tensor:
    """Room for a moment, with the parameter's strides."""
    return torch.empty_strided(parameter.shape, parameter.stride(), device=device)
