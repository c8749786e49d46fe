"""The main job on the pocket model: photos in, a subject learned."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from twostage import run
from twostage.demo import DRAWING, SEEN, UNSEEN, demo, take_photos
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluation.embedders import ViTEmbedder
from twostage.evaluation.metrics.identity import gap_closed, identity
from twostage.families import load_base
from twostage.method.sampling import assemble, draw
from twostage.pocket import pocket_folder, world
from twostage.recipe_file import load_recipe


def test_two_stages_learn_a_subject_that_words_cannot_name(tmp_path: Path) -> None:
    """A third of the default's steps must close a fifth of the gap to real photos; an untrained run closes none."""
    subject = world.sample_subject(np.random.default_rng(77), "backpack")
    take_photos(tmp_path / "photos", subject, SEEN, 0)
    unseen = take_photos(tmp_path / "unseen", subject, UNSEEN, 1)
    more = take_photos(tmp_path / "more", subject, UNSEEN, 2)
    recipe = load_recipe("two-stage", base="pocket")
    assert recipe.stage1
    assert recipe.stage2
    overrides = {
        "data.photos": str(tmp_path / "photos"),
        "data.class_noun": "backpack",
        "sample.per_prompt": 0,
        "stage1.steps": max(1, recipe.stage1.steps // 3),
        "stage2.steps": max(1, recipe.stage2.steps // 3),
    }
    folder = run.train(
        load_recipe("two-stage", base="pocket", overrides=overrides), tmp_path / "run", display=Display()
    )
    base, vit = load_base("pocket"), ViTEmbedder(pocket_folder("vit"))
    trained, untouched = (
        draw(pipeline, prompts, list(range(len(prompts))), DRAWING, base.resolution)
        for pipeline, prompts in (
            (run.load_pipeline(folder), [world.prompt("backpack", context=c, token="<rare>") for c in UNSEEN]),
            (assemble(base), [world.prompt("backpack", context=c) for c in UNSEEN]),
        )
    )
    assert isinstance(run.load_pipeline(folder), StableDiffusionPipeline)
    references = vit.images(unseen)
    scores = [identity(vit.images(pictures), references) for pictures in (trained, untouched, more)]
    assert gap_closed(*scores) > 0.2


def test_the_demo_refuses_an_unknown_class_and_a_folder_in_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="backpack, sneaker"):
        demo(tmp_path / "demo", class_name="submarine")
    (tmp_path / "note").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="already holds"):
        demo(tmp_path)
    assert not (tmp_path / "demo").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
