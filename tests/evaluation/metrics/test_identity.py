"""The score of a subject's likeness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twostage.evaluation.figures import Figure, LeftOut
from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics.identity import FIGURES, gap_closed, identity


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


@pytest.mark.parametrize("role", ["dino", "dinov2", "clip_i"])
def test_likeness_is_told_for_each_prompt_and_for_seen_and_unseen_photos_apart(
    role: str, material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    given = material(
        subject=drawn(("red", "yellow"), ("blue", "blue")), seen=taken("red", "red"), unseen=taken("red", "blue")
    )
    seen, unseen = (FIGURES[f"{role}_{name}"](given) for name in ("seen", "unseen"))
    # Yellow is half red and half green: its cosine with either is 1/sqrt(2).
    assert seen.values == pytest.approx([(1 + 0.5**0.5) / 2, 0])
    assert unseen.values == pytest.approx([(1 + 0.5**0.5) / 4, 0.5])
    assert unseen.prompts == ("red <rare> 0", "blue <rare> 1")
    assert (seen.name, seen.lowest, seen.highest, seen.better) == (f"{role}_seen", -1, 1, "higher")


def test_without_a_held_out_photo_only_seen_is_known(
    material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    given = material(subject=drawn(("red",)), seen=taken("red"), unseen=taken())
    assert isinstance(FIGURES["dino_seen"](given), Figure)
    with pytest.raises(LeftOut, match="--held-out"):
        FIGURES["dino_unseen"](given)
