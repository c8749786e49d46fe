"""Between two nets: the ends are exact, and what lies between is on the line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from twostage.errors import UserError
from twostage.method.strength import move_toward


def net(seed: int, rows: int = 3) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"table": nn.Embedding(rows, 2), "norm": nn.BatchNorm1d(4)})


def moved(strength: float) -> nn.ModuleDict:
    start = net(0)
    move_toward(start, net(1), strength)
    return start


def bits(module: nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict().values())


@pytest.mark.parametrize(("strength", "end"), [(0.0, 0), (1.0, 1)])
def test_the_ends_are_exact(strength: float, end: int) -> None:
    assert all(torch.equal(*pair) for pair in zip(bits(moved(strength)), bits(net(end)), strict=True))


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.5, 2.0])
def test_what_lies_between_and_beyond_is_on_the_line(strength: float) -> None:
    start, end = net(0)["table"].weight, net(1)["table"].weight
    assert torch.allclose(moved(strength)["table"].weight, start + strength * (end - start), atol=1e-6)


def test_the_rows_of_learned_tokens_stay() -> None:
    longer, before = net(0, rows=5), net(0, rows=5)["table"].weight
    move_toward(longer, net(1), 1.0)
    assert torch.equal(longer["table"].weight[:3], net(1)["table"].weight)
    assert torch.equal(longer["table"].weight[3:], before[3:])


def test_a_net_of_another_shape_is_refused_and_nothing_moves() -> None:
    start = net(0)
    with pytest.raises(UserError, match="table.weight differs in shape"):
        move_toward(start, net(1, rows=4), 0.5)
    assert all(torch.equal(*pair) for pair in zip(bits(start), bits(net(0)), strict=True))
