"""Low rank: the LoRA nearest to a change of weights, and how near it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Below this share of a weight's own norm, a "change" is the rounding of merging an adapter.
_NO_CHANGE = 1e-7


@dataclass(frozen=True)
class Loss:
    """What of a change of weights is lost, as relative Frobenius norms: 0 is nothing, 1 is all of it.

    Attributes:
        overall: ||lost|| / ||change||, over all tensors.
        worst: that of the layer that loses most.
        layer: its name.
        outside: of `overall`, what biases and norms lose, which a LoRA does not hold.
    """

    overall: float
    worst: float
    layer: str
    outside: float


def factorise(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The product up @ down of the given rank that is nearest to `change` in Frobenius norm (Eckart-Young).

    The truncated singular value decomposition, by way of the smaller Gram matrix, in float64: exact, and a fraction
    of the cost where a convolution is wide. Singular values are shared evenly, so that half precision loses least.

    Args:
        change: (out, in), or (out, in, height, width) of a convolution.
        rank: both factors get it; beyond `change`'s own they are zero.

    Returns:
        down, (rank, in) or (rank, in, height, width), and up, (out, rank) or (out, rank, 1, 1); float32.
    """
    matrix = change.detach().flatten(1).double()
    rows, columns = matrix.shape
    own = min(rank, rows, columns)
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    squares, vectors = torch.linalg.eigh(gram)
    # Ascending; rounding can leave the smallest below zero.
    values, vectors = squares[-own:].clamp(min=0).sqrt(), vectors[:, -own:]
    halves = values.sqrt()
    inverse = torch.where(halves > 0, 1 / halves.clamp(min=torch.finfo(halves.dtype).tiny), 0)
    if rows <= columns:
        up, down = vectors * halves, inverse[:, None] * (vectors.T @ matrix)
    else:
        up, down = (matrix @ vectors) * inverse, halves[:, None] * vectors.T
    up, down = pad_rank(down.float(), up.float(), rank)[::-1]
    if change.ndim == 2:
        return down, up
    return down.reshape(rank, *change.shape[1:]), up[:, :, None, None]


def pad_rank(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (r, in) and (out, r) with zeros up to `rank`: readers of LoRA files disagree on several ranks in one."""
    missing = rank - down.shape[0]
    if missing:
        down = torch.cat([down, down.new_zeros(missing, *down.shape[1:])])
        up = torch.cat([up, up.new_zeros(up.shape[0], missing, *up.shape[2:])], dim=1)
    return down, up


def changes(tuned: nn.Module, base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Module name and change of weight of every linear layer and convolution that changed."""
    before: dict[str, Any] = dict(base.named_modules())
    for name, module in tuned.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        weight = before[name].weight
        change = module.weight.detach() - weight.to(module.weight.device)
        if change.norm() > _NO_CHANGE * weight.norm():
            yield name, change


def measure_loss(tuned: nn.Module, base: nn.Module, loaded: nn.Module) -> Loss:
    """What `loaded` lacks of the change from `base` to `tuned`; the three are of one shape but for a token table."""
    layers = {f"{name}.weight" for name, _ in changes(tuned, base)}
    before, after = base.state_dict(), loaded.state_dict()
    change = lost = outside = 0.0
    worst, layer = 0.0, ""
    for name, value in tuned.state_dict().items():
        if before[name].shape != value.shape:
            continue
        here = (value.cpu() - before[name].cpu()).double().square().sum().item()
        gone = (value.cpu() - after[name].cpu()).double().square().sum().item()
        change, lost = change + here, lost + gone
        if name not in layers:
            outside += gone
        elif gone > worst * here:
            worst, layer = gone / here, name.removesuffix(".weight")
    total = change or 1.0
    return Loss((lost / total) ** 0.5, worst**0.5, layer, (outside / total) ** 0.5)
