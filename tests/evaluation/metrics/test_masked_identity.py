"""Likeness of the subject alone: what is around it counts for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from twostage.evaluation.embedders import ViTEmbedder
from twostage.evaluation.figures import LeftOut
from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics.masked_identity import FIGURES, preservation


def test_each_patch_of_the_subject_is_looked_for_in_the_whole_picture() -> None:
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    diagonal = torch.tensor([0.6, 0.8])
    pictures = torch.stack([torch.stack([east, diagonal]), torch.stack([-east, -north])])
    subject = torch.stack([east, north])
    # East is there and north found by 0.8; in the other, the nearest to both is at a right angle.
    assert preservation(pictures, subject).tolist() == pytest.approx([0.9, 0.0])


def test_it_is_the_mean_over_masked_held_out_photos(
    random_encoders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    vit = ViTEmbedder(random_encoders["registers"])
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    photos = Shots(pictures[4:7], masks=[mask, None, mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM)])
    drawn = Shots(pictures[:4], ("a", "b"), (0, 0, 1, 1))
    figure = FIGURES["masked_dino_unseen"](Material({"subject": drawn, "unseen": photos}, {"dino": vit}))
    inside = [5, 6, 9, 10]
    scores = [
        torch.stack([(vit.patches([g])[0] @ vit.patches([r])[0][inside].T).amax(0).mean() for r in photos.images[::2]])
        for g in drawn.images
    ]
    by_picture = torch.stack(scores).mean(dim=1)
    assert figure.values == pytest.approx(by_picture.reshape(2, 2).mean(dim=1).tolist(), abs=1e-5)


def test_the_photo_itself_scores_one(random_encoders: dict[str, Path], pictures: list[Image.Image]) -> None:
    photos = Shots(pictures[:1], masks=[Image.new("L", (8, 8), 255)])
    sets = {"subject": Shots(pictures[:1], ("a",), (0,)), "unseen": photos}
    figure = FIGURES["masked_dino_unseen"](Material(sets, {"dino": ViTEmbedder(random_encoders["vit"])}))
    assert figure.value == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("mask", "reason"), [(None, "a-masklabel.png"), (Image.new("L", (8, 8)), "covers half a patch")]
)
def test_without_a_mask_it_is_left_out(
    mask: Image.Image | None,
    reason: str,
    random_encoders: dict[str, Path],
    drawn: Callable[..., Shots],
    taken: Callable[..., Shots],
) -> None:
    sets = {"subject": drawn(("red",)), "unseen": Shots(taken("red").images, masks=[mask])}
    with pytest.raises(LeftOut, match=reason):
        FIGURES["masked_dino_unseen"](Material(sets, {"dino": ViTEmbedder(random_encoders["vit"])}))
