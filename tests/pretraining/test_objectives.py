"""What the pocket nets learn from."""

import torch

from twostage.pretraining.objectives import draw_timesteps


def test_timesteps_lie_in_range_and_mostly_where_shapes_are_decided() -> None:
    timesteps = draw_timesteps(20_000, torch.Generator().manual_seed(0))
    assert timesteps.dtype == torch.int64 and timesteps.min() >= 0 and timesteps.max() < 1000
    middle = ((timesteps > 250) & (timesteps < 800)).float().mean()
    assert 0.65 < middle < 0.85
    assert timesteps.max() > 990 and timesteps.min() < 10


def test_a_batch_of_timesteps_is_spread_evenly_over_its_strata() -> None:
    """One from each: the means of small batches hardly differ, as those of independent draws would."""
    means = torch.stack([draw_timesteps(64, torch.Generator().manual_seed(i)).float().mean() for i in range(50)])
    independent = 200 / 64**0.5
    assert means.std() < 0.5 * independent
