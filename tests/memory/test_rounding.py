"""Stochastic rounding: right on average, exact where there is nothing to round, the same wherever a run goes on."""

from __future__ import annotations

import pytest
import torch

from twostage.memory.rounding import generator_at, round_stochastically_

CPU = torch.device("cpu")


def rounded(values: torch.Tensor, *address: int) -> torch.Tensor:
    return round_stochastically_(values.clone(), generator_at(address, CPU))


def test_results_are_the_two_neighbours_in_bfloat16() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    found = rounded(values, 0)
    assert torch.equal(found, found.bfloat16().float())
    spacing = 2 ** (values.abs().log2().floor() - 7)
    assert ((found - values).abs() < spacing).all()
    assert (found != values.bfloat16().float()).float().mean() > 0.2


@pytest.mark.parametrize("value", [1.001, -1.003, 3e-5, 1e-39])
def test_the_mean_is_the_value(value: float) -> None:
    found = rounded(torch.full((200_000,), value), 1)
    near = torch.tensor(value).bfloat16().float()
    assert float(found.mean()) == pytest.approx(value, abs=float((found - near).abs().max()) * 0.01)


def test_what_bfloat16_holds_stays() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, torch.inf, -torch.inf, 2.0**-130])
    assert torch.equal(rounded(values, 0), values)
    payloads = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert rounded(payloads, 0).isnan().all()


def test_draws_belong_to_their_address() -> None:
    values = torch.randn(1000)
    assert torch.equal(rounded(values, 0, 2, 5, 1), rounded(values, 0, 2, 5, 1))
    for other in ((1, 2, 5, 1), (0, 1, 5, 1), (0, 2, 6, 1), (0, 2, 5, 2)):
        assert not torch.equal(rounded(values, *other), rounded(values, 0, 2, 5, 1))


@pytest.mark.parametrize(("rate", "share"), [(1e-6, 0.028), (2e-6, 0.056), (5e-6, 0.095), (1e-5, 0.189), (1e-4, 1.0)])
def test_updates_survive_of_which_rounding_to_the_nearest_leaves_a_share(rate: float, share: float) -> None:
    """Of weights of N(0, 0.02), and updates of AdamW's size: the learning rate."""
    draws = torch.Generator().manual_seed(0)
    weights = (torch.randn(2_000_000, generator=draws) * 0.02).bfloat16().float()
    update = torch.randn(weights.shape, generator=draws).sign() * rate
    nearest = (weights + update).bfloat16().float() - weights
    arrived = rounded(weights + update, 0) - weights
    assert float((nearest * update).mean()) / rate**2 == pytest.approx(share, abs=0.01)
    assert float((arrived * update).mean()) / rate**2 == pytest.approx(1, abs=0.01)
