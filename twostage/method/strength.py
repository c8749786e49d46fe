"""Weights between base and result, and beyond: theta0 + strength (theta - theta0); WiSE-FT, arXiv 2109.01903."""

from __future__ import annotations

import torch
from torch import nn

from twostage.errors import UserError


@torch.no_grad()
def move_toward(net: nn.Module, other: nn.Module, strength: float) -> None:
    """Move a net's weights toward another's, in place and tensor by tensor, so that no third net is in memory.

    Args:
        net: the base's, on any device. Rows at the end of a table that `other` lacks, those of learned tokens, stay.
        other: the trained one.
        strength: 0 leaves every bit of `net`, 1 makes it `other` bit for bit; between and beyond in proportion.

    Raises:
        UserError: the nets are not of one shape; nothing has moved then.
    """
    there = other.state_dict()
    pairs = []
    for name, tensor in net.state_dict().items():
        theirs = there.get(name)
        own = tensor[: len(theirs)] if theirs is not None and theirs.ndim else tensor
        if theirs is None or own.shape != theirs.shape:
            raise UserError(
                f"the base's {type(net).__name__} is not the one that was trained: {name} differs in shape; get the "
                "base that the run was trained on"
            )
        if own.is_floating_point():
            pairs.append((own, theirs))
    for own, theirs in pairs:
        own.copy_(torch.lerp(own, theirs.to(own.device, own.dtype), strength))
