"""The loop that trains the pocket models."""

from pathlib import Path

import pytest
import torch
from torch import nn

from twostage.pretraining.fit import Schedule, fit


class Interrupted(Exception):
    pass


def train(folder: Path, schedule: Schedule, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            raise Interrupted
        x = torch.randn(16, 4, generator=generator)
        return (net(x) - x.flip(1)).square().mean()

    return fit("net", net, loss, schedule, folder).state_dict()


def test_an_interrupted_pretraining_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    schedule = Schedule(steps=30, learning_rate=1e-2, warmup=5, ema=0.9, save_every=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    unbroken = train(tmp_path / "a", schedule)
    with pytest.raises(Interrupted):
        train(tmp_path / "b", schedule, stop_at=17)
    resumed = train(tmp_path / "b", schedule)
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)


def test_pretraining_learns(tmp_path: Path) -> None:
    net = nn.Linear(4, 4)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    before = (net(x) - x.flip(1)).square().mean().item()
    fit("net", net, lambda step, generator: (net(x) - x.flip(1)).square().mean(), Schedule(200, 1e-2, 10), tmp_path)
    assert (net(x) - x.flip(1)).square().mean().item() < 0.1 * before


def test_the_learning_rate_warms_up_and_decays() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == pytest.approx(1.0)
    assert factors[-1] < 0.02
