"""Low rank: the nearest there is, and its loss as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from twostage.export.shared.low_rank import changes, factorise, measure_loss, pad_rank


def product(down: Tensor, up: Tensor) -> Tensor:
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (6, 4, 3, 3), (40, 4, 3, 3), (8, 16, 1, 1)])
@pytest.mark.parametrize("rank", [1, 3, 64])
def test_factors_are_the_truncated_singular_value_decomposition(shape: tuple[int, ...], rank: int) -> None:
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    down, up = factorise(change, rank)
    assert down.shape == (rank, *shape[1:])
    assert up.shape == (shape[0], rank, *[1] * (len(shape) - 2))
    u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
    nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert torch.allclose(product(down, up).flatten(1), nearest, atol=1e-5)


def test_a_change_of_lower_rank_than_asked_for_is_kept_whole() -> None:
    change = torch.outer(torch.arange(8.0), torch.ones(5))
    down, up = factorise(change, 4)
    assert torch.allclose(product(down, up), change, atol=1e-5)
    assert all(tensor.isfinite().all() for tensor in (down, up))
    assert product(*factorise(torch.zeros(3, 4), 2)).eq(0).all()


def test_half_precision_keeps_a_small_change() -> None:
    """Neither factor takes all of the size: float16 has no numbers below 6e-8, and few below 6e-5."""
    change = 1e-4 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    down, up = (factor.half().float() for factor in factorise(change, 64))
    assert (product(down, up) - change).norm() < 1e-3 * change.norm()


def test_padding_changes_nothing_but_the_rank() -> None:
    down, up = torch.randn(2, 5, 3, 3), torch.randn(4, 2, 1, 1)
    wide = pad_rank(down, up, 6)
    assert wide[0].shape[0] == wide[1].shape[1] == 6
    assert torch.equal(product(*wide), product(down, up))


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4))


def test_loss_is_nothing_for_the_net_itself_and_all_for_the_base() -> None:
    base = small_net()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight += 1
        tuned[1].weight += 2
    assert [name for name, _ in changes(tuned, base)] == ["0"]
    kept = measure_loss(tuned, base, tuned)
    assert (kept.overall, kept.outside, kept.worst) == (0, 0, 0)
    lost = measure_loss(tuned, base, base)
    assert lost.overall == lost.worst == 1
    assert lost.layer == "0"
    # 6 of the norm's weights moved by 2, 36 of the layer's by 1.
    assert lost.outside == pytest.approx((24 / 60) ** 0.5)
