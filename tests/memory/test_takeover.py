"""An optimizer goes on with what one of another kind had learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twostage.memory.adamw import moment_quantisers
from twostage.memory.optimizers import Updates, build_optimizer
from twostage.memory.takeover import take_over
from twostage.recipe import Memory, Stage2

KINDS: tuple[Any, ...] = ("adamw", "adamw8bit", "adamw4bit", "adafactor")
# A matrix, a convolution and a vector; the first two are large enough to be quantised.
SHAPES = ((64, 128), (32, 16, 3, 3), (64,))
BETA2 = 0.999


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=draws) * 0.1 for shape in SHAPES]
    made[1] = made[1].to(memory_format=torch.channels_last)
    return {str(number): nn.Parameter(tensor.to(dtype)) for number, tensor in enumerate(made)}


def optimizer_of(
    kind: Any, weights: dict[str, nn.Parameter], on_host: bool = False, lr: float = 1e-3
) -> torch.optim.Optimizer:
    options = Stage2(steps=9, learning_rate=lr)
    memory = Memory(optimizer=kind, optimizer_state="host" if on_host else "card")
    return build_optimizer(weights, options, Updates(memory, address=(0, 2)))


def train(optimizer: torch.optim.Optimizer, weights: dict[str, nn.Parameter], first: int, steps: int) -> None:
    for step in range(first, first + steps):
        draws = torch.Generator().manual_seed(step)
        for p in weights.values():
            p.grad = (torch.randn(p.shape, generator=draws) * 10 ** (-torch.rand(p.shape, generator=draws))).to(p)
        optimizer.step()


def taken_over(one: Any, other: Any, **how: Any) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer, Any]:
    """Five steps by one kind, then the other kind in its place: both optimizers, and the weights."""
    weights = parameters()
    before = optimizer_of(one, weights)
    train(before, weights, 0, 5)
    after = optimizer_of(other, weights, **how)
    take_over(after, copy.deepcopy(before.state_dict()))
    return before, after, weights


def entries(optimizer: torch.optim.Optimizer, index: int) -> dict[str, Any]:
    found: dict[str, Any] = optimizer.state_dict()["state"][index]
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return int(one) == int(other)  # The step, which torch's AdamW counts in a tensor.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_host", [False, True])
def test_its_own_kinds_state_is_taken_bit_for_bit_wherever_it_waits(kind: Any, on_host: bool) -> None:
    before, after, _ = taken_over(kind, kind, on_host=on_host)
    for index in range(len(SHAPES)):
        old, new = entries(before, index), entries(after, index)
        assert old.keys() == new.keys()
        assert all(same(old[name], new[name]) for name in old)


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_every_kind_goes_on_from_every_other(one: Any, other: Any) -> None:
    before, after, weights = taken_over(one, other)
    start = {name: p.detach().clone() for name, p in weights.items()}
    train(after, weights, 5, 2)
    assert int(entries(after, 0)["step"]) == 7
    for name, p in weights.items():
        moved = (p.detach() - start[name]).abs()
        # Steps are of the size of a step: no moment was lost, and none has blown up.
        assert 0 < float(moved.max()) < 10 * 2e-3


@pytest.mark.parametrize(("kind", "bits"), [("adamw8bit", 8), ("adamw4bit", 4)])
def test_quantised_moments_are_those_of_torchs_adamw_rounded(kind: Any, bits: int) -> None:
    before, after, weights = taken_over("adamw", kind)
    for index, p in enumerate(weights.values()):
        for name, quantiser in moment_quantisers(bits).items():
            exact, kept = entries(before, index)[name], entries(after, index)
            if p.numel() < 4096:
                assert torch.equal(kept[name], exact)
                continue
            # In the order in which the parameter's elements lie in memory.
            flat = (exact.permute(0, 2, 3, 1) if exact.ndim == 4 else exact).reshape(-1)
            assert quantiser
            codes, scales = quantiser.pack(flat)
            assert torch.equal(kept[name], codes)
            assert torch.equal(kept[f"{name}_scale"], scales)


def test_moments_come_back_from_8_bits_as_they_are_there() -> None:
    weights = parameters()
    coarse, fine = optimizer_of("adamw8bit", weights), optimizer_of("adamw", weights)
    train(coarse, weights, 0, 5)
    take_over(fine, copy.deepcopy(coarse.state_dict()))
    again = optimizer_of("adamw8bit", weights)
    take_over(again, copy.deepcopy(fine.state_dict()))
    for index in range(len(SHAPES)):
        old, new = entries(coarse, index), entries(again, index)
        assert all(same(old[name], new[name]) for name in old if not name.endswith("_scale"))
        # Of a signed moment, 8 bits keep a block's largest value to a hundredth where that is negative.
        assert all(torch.allclose(old[name], new[name], rtol=0.02) for name in old if name.endswith("_scale"))


def test_adafactor_gets_the_rows_and_columns_means_of_adamws_second_moments() -> None:
    before, after, weights = taken_over("adamw", "adafactor")
    for index, p in enumerate(weights.values()):
        second = entries(before, index)["exp_avg_sq"] / (1 - BETA2**5)
        kept = entries(after, index)
        if p.ndim < 2:
            torch.testing.assert_close(kept["exp_avg_sq"], second)
            continue
        torch.testing.assert_close(kept["exp_avg_sq_row"], second.flatten(1).mean(1))
        torch.testing.assert_close(kept["exp_avg_sq_col"], second.flatten(1).mean(0))


def test_factors_come_back_as_their_product_and_first_moments_as_zeros() -> None:
    before, after, weights = taken_over("adafactor", "adamw")
    for index, p in enumerate(weights.values()):
        kept, old = entries(after, index), entries(before, index)
        assert not kept["exp_avg"].any()
        second = kept["exp_avg_sq"] / (1 - BETA2**5)
        if p.ndim < 2:
            torch.testing.assert_close(second, old["exp_avg_sq"])
            continue
        torch.testing.assert_close(second.flatten(1).mean(1), old["exp_avg_sq_row"])
        torch.testing.assert_close(second.flatten(1).mean(0), old["exp_avg_sq_col"])


def test_the_learning_rate_is_taken_over_and_the_options_are_its_own() -> None:
    weights = parameters()
    before = optimizer_of("adamw", weights)
    train(before, weights, 0, 1)
    before.param_groups[0]["lr"] = 0.5
    after = optimizer_of("adafactor", weights)
    take_over(after, copy.deepcopy(before.state_dict()))
    assert after.param_groups[0]["lr"] == 0.5
    assert after.param_groups[0]["decay"] == 0.8
    assert "betas" not in after.param_groups[0]


def test_state_of_float32_weights_goes_on_with_bfloat16_ones() -> None:
    weights = parameters()
    before = optimizer_of("adamw", weights)
    train(before, weights, 0, 5)
    halved = {name: nn.Parameter(p.detach().bfloat16()) for name, p in weights.items()}
    after = optimizer_of("adamw", halved)
    take_over(after, copy.deepcopy(before.state_dict()))
    for index in range(len(SHAPES)):
        assert torch.equal(entries(after, index)["exp_avg_sq"], entries(before, index)["exp_avg_sq"])
    train(after, halved, 5, 1)
