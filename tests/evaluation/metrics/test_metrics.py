"""All figures together: what is known is told, of the rest why not, and nothing broken passes for a number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from twostage.evaluation.embedders import ViTEmbedder
from twostage.evaluation.encoders import Encoder
from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics import all_figures, measure

NAMES = """dino_seen dino_unseen dinov2_seen dinov2_unseen clip_i_seen clip_i_unseen masked_dino_unseen clip_t
    clip_t_token diversity diversity_lpips pres dpres drift_class drift_unrelated kid copying copying_p95 overfit_gap"""


def test_every_figure_is_found_by_its_file() -> None:
    assert set(all_figures()) == set(NAMES.split())


def test_figures_carry_the_name_they_are_asked_by_and_stay_in_their_range(
    material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    pair = ("red", "blue")
    sets = {name: drawn(pair, pair, plain=("red", "blue")) for name in ("subject", "class", "unrelated")}
    sets |= {f"base_{name}": drawn(("green", "red"), pair) for name in sets}
    given = material(**sets, seen=taken("red"), unseen=taken("blue"))
    for name, figure in all_figures().items():
        if name not in ("masked_dino_unseen", "diversity_lpips"):
            told = figure(given)
            assert told.name == name
            assert all(told.lowest <= value <= told.highest for value in told.values)


def test_with_nothing_but_pictures_every_other_figure_says_what_it_lacks(
    material: Callable[..., Material], drawn: Callable[..., Shots]
) -> None:
    figures, left_out = measure(Material({"subject": drawn(("red", "red"))}, {}))
    assert figures == []
    assert left_out["dino_seen"] == "no dino encoder"
    assert left_out["clip_t"] == "there is no text without the token; a class noun is needed (--class)"
    figures, left_out = measure(material(subject=drawn(("red", "red"))))
    assert [figure.name for figure in figures] == ["diversity", "clip_t_token"]
    assert "--photos" in left_out["dino_seen"]


def test_a_black_picture_leaves_out_the_figures_of_its_set(
    material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    given = {"subject": drawn(("red", "blue"), ("blue", "black")), "class": drawn(("red", "red"))}
    figures, left_out = measure(material(**given, seen=taken("red")))
    assert [figure.name for figure in figures] == ["pres"]
    assert left_out["dino_seen"].startswith("picture 3 of subject ('blue <rare> 1') is all black")


def test_an_encoder_of_nan_gives_no_figure_and_is_not_remembered(
    random_encoders: dict[str, Path], pictures: list[Image.Image], cache: Path
) -> None:
    embedder = ViTEmbedder(random_encoders["vit"])
    with torch.no_grad():
        embedder.model.layernorm.weight.fill_(float("nan"))
    sets = {"subject": Shots(pictures[:2], ("a dog",), (0, 0)), "seen": Shots(pictures[2:])}
    figures, left_out = measure(Material(sets, {"dino": Encoder(embedder)}))
    assert figures == []
    assert left_out["dino_seen"] == "the dino encoder sees no numbers in picture 0 of subject ('a dog'); get it anew"
    assert not list(cache.rglob("*.f32"))


@pytest.mark.parametrize("name", ["dino", "clip"])
def test_the_base_and_the_result_are_never_taken_for_each_other(
    name: str, material: Callable[..., Material], drawn: Callable[..., Shots], taken: Callable[..., Shots]
) -> None:
    given = material(subject=drawn(("red",)), base_subject=drawn(("blue",)), seen=taken("red"))
    assert given.embedded(name, "subject").tolist() == [[1, 0, 0]]
    assert given.of_base().embedded(name, "subject").tolist() == [[0, 0, 1]]
    assert given.embedded(name, "subject").tolist() == [[1, 0, 0]]
