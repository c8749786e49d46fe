"""Guidance towards subject and class: the paper's formula, in the stock pipeline, wherever pictures are drawn."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import nn

from tests.watching import Watcher, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import evaluate
from twostage.families import load_base
from twostage.method.sampling import assemble, draw, read_untouched
from twostage.planning.rehearsal import rehearse
from twostage.recipe import Data, Recipe, Sample, Token
from twostage.recipe_evaluation import Evaluation
from twostage.run import generate, load_pipeline, train

TOKEN, CLASS, SEEDS = ["a photo of a red backpack", "snow"], ["a photo of a backpack", "snow"], [3, 4]
SHAPE = (6, 16, 16)
BOTH = list(zip(TOKEN, CLASS, strict=True))


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def sampled(share: float, guidance: float = 4.0) -> Sample:
    return Sample(num_inference_steps=3, guidance_scale=guidance, class_guidance=share)


@pytest.fixture(scope="module")
def trained() -> StableDiffusionPipeline:
    """The pocket model, its U-Net changed as if by training; never change it."""
    pipeline = assemble(load_base("pocket"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in pipeline.unet.parameters():
            weights.mul_(1 + 0.02 * torch.randn(weights.shape, generator=generator))
    return pipeline


@torch.no_grad()
def by_hand(pipeline: StableDiffusionPipeline, token: float, plain: float, weak: nn.Module | None = None) -> np.ndarray:
    """A loop of our own: e0 + token (e_subject - e0) + plain (e_class - e0), e0 being the weak model's if there is one.

    "snow" names no subject, and is guided as ever.
    """
    states = {name: pipeline.encode_prompt(texts, "cpu", 1, True) for name, texts in (("t", TOKEN), ("c", CLASS))}
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(3)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    latents = torch.cat([torch.randn(1, *SHAPE, generator=generator) for generator in generators])
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)

        def ask(told: torch.Tensor, unet: nn.Module = pipeline.unet, scaled: torch.Tensor = scaled) -> torch.Tensor:
            return unet(scaled, timestep, encoder_hidden_states=told).sample  # noqa: B023

        nothing, subject, kind = ask(states["t"][1]), ask(states["t"][0]), ask(states["c"][0])
        if weak:
            nothing = torch.cat([ask(states["t"][1], weak)[:1], nothing[1:]])
        guided = nothing + token * (subject - nothing) + plain * (kind - nothing)
        latents = scheduler.step(guided, timestep, latents, generator=generators).prev_sample
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return pixels(pipeline.image_processor.postprocess(decoded))


def test_the_share_splits_the_guidance_as_in_the_paper(trained: StableDiffusionPipeline) -> None:
    ours = pixels(draw(trained, BOTH, SEEDS, sampled(0.25), 64))
    assert np.abs(ours - by_hand(trained, 3.0, 1.0)).max() <= 1
    assert np.abs(ours - by_hand(trained, 4.0, 0.0)).max() > 1


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_away_from_the_base_nothing_is_what_the_base_says_of_it(trained: StableDiffusionPipeline, share: float) -> None:
    weak = load_base("pocket").denoiser
    options = sampled(share).model_copy(update={"away_from": "base"})
    ours = pixels(draw(trained, BOTH, SEEDS, options, 64, untouched=weak))
    right = by_hand(trained, 4.0 * (1 - share), 4.0 * share, weak)
    own = by_hand(trained, 4.0 * (1 - share), 4.0 * share)
    assert np.abs(ours - right).max() <= 1
    assert np.abs(ours[0] - own[0]).max() > 1 and np.abs(ours[1] - own[1]).max() <= 1
    stock = pixels(draw(trained, BOTH, SEEDS, sampled(share), 64, untouched=weak))
    assert np.abs(stock - own).max() <= 1  # Unless it is asked for.


def test_away_from_itself_is_as_ever(trained: StableDiffusionPipeline) -> None:
    options = sampled(0).model_copy(update={"away_from": "base"})
    same = pixels(draw(trained, BOTH, SEEDS, options, 64, untouched=copy.deepcopy(trained.unet)))
    assert np.abs(same - pixels(draw(trained, TOKEN, SEEDS, sampled(0), 64))).max() <= 1


def test_at_the_ends_it_is_the_subject_alone_and_the_class_alone(trained: StableDiffusionPipeline) -> None:
    subject, kind = (pixels(draw(trained, texts, SEEDS, sampled(0), 64)) for texts in (TOKEN, CLASS))
    assert np.array_equal(pixels(draw(trained, BOTH, SEEDS, sampled(0), 64)), subject)
    assert np.abs(pixels(draw(trained, BOTH, SEEDS, sampled(1), 64)) - kind).max() <= 1
    assert np.abs(subject - kind).max() > 1


@pytest.mark.parametrize(("prompts", "guidance"), [(TOKEN, 4.0), (BOTH, 1.0)])
def test_without_a_class_or_without_guidance_nothing_more_is_asked(prompts: list[str], guidance: float) -> None:
    pipeline, rows = assemble(load_base("pocket")), set()
    pipeline.unet.conv_in.register_forward_pre_hook(lambda net, args: rows.add(len(args[0])))
    drawn = pixels(draw(pipeline, prompts, SEEDS, sampled(0.5, guidance), 64))
    assert np.array_equal(drawn, pixels(draw(pipeline, TOKEN, SEEDS, sampled(0, guidance), 64)))
    assert rows == {4 if guidance > 1 else 2}


@pytest.mark.parametrize(("share", "away_from", "rows"), [(0.5, "own", 5), (0.0, "base", 3), (0.5, "base", 4)])
def test_no_more_is_asked_than_is_used(share: float, away_from: str, rows: int) -> None:
    """Of two pictures, one has the subject: nothing twice, one of them by the base; both prompts; one class."""
    pipeline, weak, seen = assemble(load_base("pocket")), load_base("pocket").denoiser, []
    pipeline.unet.conv_in.register_forward_pre_hook(lambda net, args: seen.append(len(args[0])))
    weak.conv_in.register_forward_pre_hook(lambda net, args: seen.append(-len(args[0])))
    options = sampled(share).model_copy(update={"num_inference_steps": 1, "away_from": away_from})
    draw(pipeline, BOTH, SEEDS, options, 64, untouched=weak)
    assert seen == ([rows, -1] if away_from == "base" else [rows])


def test_the_u_net_is_as_before_even_when_drawing_fails() -> None:
    pipeline = assemble(load_base("pocket"))
    pipeline.scheduler.step = None
    with pytest.raises(TypeError):
        draw(pipeline, BOTH, SEEDS, sampled(0.5), 64)
    assert not pipeline.unet._forward_hooks and not pipeline.unet._forward_pre_hooks


# In a run; the tiny base hardly minds its prompt, so it is guided hard

HARD = 100.0


@pytest.fixture(scope="module")
def guided(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose samples are guided towards the class; never write to it."""
    torch.set_num_threads(1)
    sample = Sample(
        prompts=("a photo of a {}",), per_prompt=2, num_inference_steps=2, guidance_scale=HARD, class_guidance=0.5
    )
    return train(without(tiny_recipe, sample=sample), tmp_path_factory.mktemp("guided") / "run", display=Display())


def test_samples_in_training_are_drawn_as_generate_draws_them(guided: Path) -> None:
    last = pixels([Image.open(guided / "samples" / "stage2-000006" / f"prompt1-{number}.png") for number in (1, 2)])
    drawn = [
        pixels(
            generate(
                guided, "a photo of a {}", count=2, num_inference_steps=2, guidance_scale=HARD, class_guidance=share
            )
        )
        for share in (None, 0.5, 0.0)
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert np.abs(last - drawn[0]).max() <= 1
    assert np.abs(last - drawn[2]).max() > 1


def test_away_from_the_base_generate_reads_the_base_s_own_u_net(guided: Path, tiny_base: Path) -> None:
    how = {"count": 2, "num_inference_steps": 2, "guidance_scale": HARD, "class_guidance": 0.0}
    drawn = {away: pixels(generate(guided, "a photo of a {}", away_from=away, **how)) for away in ("own", "base")}
    options = Sample(num_inference_steps=2, guidance_scale=HARD, away_from="base")
    asked = [("a photo of a <rare> backpack", "a photo of a backpack")] * 2
    weak = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    right = pixels(draw(load_pipeline(guided), asked, [0, 1], options, 16, untouched=weak))
    assert np.array_equal(drawn["base"], right)
    assert np.abs(drawn["own"] - right).max() > 1


def test_a_result_of_other_guidance_says_so_on_its_card(guided: Path, finished: Path) -> None:
    card = (guided / "README.md").read_text(encoding="utf-8")
    assert "50% of the guidance towards the class alone; with `--class-guidance 0 --away-from own`" in card
    assert "base" not in card.split("The latter draws")[1].split("## How")[0]
    assert "guidance" not in (finished / "README.md").read_text(encoding="utf-8").split("## How")[0]


def test_weights_do_not_depend_on_how_samples_are_guided(guided: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    other = train(tiny_recipe, tmp_path / "run", display=Display())
    name = Path("unet") / "diffusion_pytorch_model.safetensors"
    assert (guided / name).read_bytes() == (other / name).read_bytes()


def test_an_evaluation_guides_as_its_option_says_and_writes_it_down(guided: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(guided, tmp_path / "run"))
    few = Evaluation(
        num_prompts=1,
        images_per_prompt=1,
        num_class_images=2,
        num_unrelated_images=0,
        num_inference_steps=2,
        encoders=("dino=pocket", "clip=none", "dinov2=none"),
    )
    hard = {"count": 1, "num_inference_steps": 2, "guidance_scale": HARD, "display": Watcher()}
    for share, away_from, told in ((None, None, (0.5, "own")), (0.0, "base", (0.0, "base"))):
        how = {"class_guidance": share, "away_from": away_from}
        record = evaluate(run, few.model_copy(update=how), display=Display())
        assert (record["choices"]["class_guidance"], record["choices"]["away_from"]) == told
        drawn = generate(run, record["choices"]["prompts"][0], **how, **hard)
        assert np.abs(pixels([Image.open(run / record["pictures"]["subject"][0])]) - pixels(drawn)).max() <= 1
        with Image.open(run / record["pictures"]["class"][0]) as picture:
            kind = generate(run, "a photo of a backpack", **hard)
            assert np.abs(pixels([picture]) - pixels(kind)).max() <= 1


def test_a_plan_counts_the_third_pass(tiny_recipe: Recipe) -> None:
    """Two pictures together: four rows of the U-Net a step, or six."""
    wide = without(tiny_recipe, sample=Sample(prompts=("a {}",), per_prompt=8, num_inference_steps=4))
    found = {}
    for share in (0.0, 0.5):
        sample = wide.sample.model_copy(update={"class_guidance": share})
        phases = {phase.name: phase for phase in rehearse(without(wide, sample=sample)).phases}
        found[share] = phases["stage 2, samples"]
    assert found[0.5].allocated > found[0.0].allocated
    assert 1.2 < found[0.5].work.flops / found[0.0].work.flops < 1.5


def test_without_a_class_noun_samples_are_as_ever_and_asking_for_it_is_one_line(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = without(
        tiny_recipe,
        data=Data(photos=tiny_recipe.data.photos),
        token=Token(role="noun", initializer="red"),
        sample=tiny_recipe.sample.model_copy(update={"class_guidance": 0.5, "away_from": "base"}),
    )
    run = train(recipe, tmp_path / "run", display=Display())
    plain, told = (
        generate(run, "a {}", count=1, num_inference_steps=2, class_guidance=share)[0] for share in (0.0, None)
    )
    assert plain.tobytes() == told.tobytes()
    assert (told.info["class guidance"], told.info["away from"], told.info["guidance"]) == ("0.0", "own", "7.5")
    assert "guidance" not in (run / "README.md").read_text(encoding="utf-8").split("## How")[0]
    for asked, said in (({"class_guidance": 0.5}, "class_guidance is 0.5"), ({"away_from": "base"}, "away_from is")):
        with pytest.raises(UserError, match=said + ".*no class noun.*leave it out"):
            generate(run, "a {}", **asked)
    before = json.loads((run / "run.json").read_text(encoding="utf-8"))
    with pytest.raises(UserError, match="no class noun"):
        evaluate(run, Evaluation(class_guidance=0.5), display=Display())
    assert json.loads((run / "run.json").read_text(encoding="utf-8")) == before
    assert not (run / "evaluation").exists()


def test_a_base_that_is_not_what_was_tuned_is_one_line(tiny_base: Path) -> None:
    pipeline = assemble(load_base(str(tiny_base)))
    assert read_untouched(load_base(str(tiny_base)), pipeline) is not pipeline.unet
    with pytest.raises(UserError, match=r"base pocket is not what was tuned: its in_channels is 6, of the result 4;"):
        read_untouched(load_base("pocket"), pipeline)
    other = assemble(load_base("pocket"))
    other.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(UserError, match="its prediction_type is v_prediction, of the result epsilon"):
        read_untouched(load_base("pocket"), other)


def test_fewer_together_draw_the_same(trained: StableDiffusionPipeline) -> None:
    """As where memory holds fewer: what guides is taken apart with the prompts."""
    options, weak = sampled(0.25).model_copy(update={"away_from": "base"}), load_base("pocket").denoiser
    both, single = (pixels(draw(trained, BOTH, SEEDS, options, 64, together=n, untouched=weak)) for n in (2, 1))
    assert np.abs(both - single).max() <= 2


def test_only_a_subject_with_a_class_is_guided_by_it() -> None:
    one, other = Sample(class_guidance=0.5, away_from="base"), Sample(class_guidance=0.5)
    assert one.within("dog") == one
    assert one.within("dog", unet_trains=False) == other
    assert one.within(" ") == Sample()
