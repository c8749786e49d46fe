"""The score of a subject's likeness."""

import pytest
import torch

from twostage.evaluation.metrics.identity import gap_closed, identity


def test_identity_is_the_mean_cosine_over_all_pairs() -> None:
    generated = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    references = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    pairs = [torch.cosine_similarity(g, r, dim=0) for g in generated for r in references]
    assert identity(generated, references) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    assert identity(references[:1], references[:1]) == pytest.approx(1.0)


def test_the_gap_is_measured_from_the_untouched_model_to_real_photos() -> None:
    assert gap_closed(0.3, untouched=0.3, real=0.8) == 0
    assert gap_closed(0.8, untouched=0.3, real=0.8) == 1
    assert gap_closed(0.2, untouched=0.3, real=0.8) < 0
