"""The slider between base and result: its ends are those of stock diffusers, for whatever a run has trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tests.watching import without
from twostage.display import Display
from twostage.errors import UserError
from twostage.method.sampling import draw
from twostage.recipe import Adapter, Recipe, Sample, Stage2
from twostage.run import generate, load_pipeline, load_pipelines, train

CLASS_PROMPT = "a photo of a backpack"
BETWEEN = (0.5, 1.5)


@pytest.fixture(scope="module", params=["unet", "adapter"])
def run(request: pytest.FixtureRequest, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, the text encoder in the second one; never write to it."""
    torch.set_num_threads(1)
    options = {"unet": 1e-3, "adapter": 3e-2}
    recipe = without(
        tiny_recipe,
        stage2=Stage2(
            steps=3, learning_rate=options[request.param], batch_size=2, train=request.param, train_text_encoder=True
        ),
        adapter=Adapter(kind="dora") if request.param == "adapter" else Adapter(),
        sample=Sample(per_prompt=0),
    )
    return train(recipe, tmp_path_factory.mktemp("runs") / "run", display=Display())


def drawn(pipeline: StableDiffusionPipeline, prompt: str = CLASS_PROMPT) -> bytes:
    pipeline.set_progress_bar_config(disable=True)
    picture: Image.Image = draw(pipeline, [prompt], [3], Sample(num_inference_steps=3, guidance_scale=5.0), 16)[0]
    return picture.tobytes()


def ours(run: Path, strength: float) -> bytes:
    (picture,) = generate(
        run,
        CLASS_PROMPT,
        count=1,
        seed=3,
        num_inference_steps=3,
        guidance_scale=5.0,
        strength=strength,
        display=Display(),
    )
    return picture.tobytes()


def test_at_0_the_class_is_drawn_as_stock_diffusers_draws_it_from_the_base(run: Path, tiny_base: Path) -> None:
    assert ours(run, 0) == drawn(StableDiffusionPipeline.from_pretrained(tiny_base))


def test_at_1_it_is_the_run_and_between_and_beyond_neither(run: Path) -> None:
    plain = generate(run, CLASS_PROMPT, count=1, seed=3, num_inference_steps=3, guidance_scale=5.0, display=Display())
    assert ours(run, 1) == plain[0].tobytes()
    assert len({ours(run, strength) for strength in (0, 1, *BETWEEN)}) == 4


def test_the_learned_token_is_what_it_is_at_any_strength(run: Path) -> None:
    tables = [load_pipeline(run, strength=s).text_encoder.get_input_embeddings().weight for s in (0, 0.5, 1)]
    assert all(torch.equal(tables[0], table) for table in tables)


def test_several_strengths_one_after_the_other_are_each_as_loaded_alone(run: Path) -> None:
    """In any order, back and forth."""
    strengths = (0.5, 1.5, 0, 1, 0.5)
    prompt = "a photo of a <rare> backpack"
    one_by_one = [drawn(pipeline, prompt) for pipeline in load_pipelines(run, strengths)]
    assert one_by_one == [drawn(load_pipeline(run, strength=strength), prompt) for strength in strengths]


@pytest.mark.parametrize("strength", [-0.1, 2.1, float("nan")])
def test_a_strength_out_of_range_is_refused(finished: Path, strength: float) -> None:
    with pytest.raises(UserError, match="is not between 0, the base, and 2"):
        load_pipeline(finished, strength=strength)


def test_a_run_of_the_token_alone_has_no_weights_to_mix(tiny_recipe: Recipe, tmp_path: Path) -> None:
    run = train(without(tiny_recipe, stage2=None, sample=Sample(per_prompt=0)), tmp_path / "run", display=Display())
    with pytest.raises(UserError, match="strength 0.5.*trained no weights") as error:
        generate(run, "a {}", strength=0.5)
    assert "\n" not in str(error.value)
    assert ours(run, 1)
