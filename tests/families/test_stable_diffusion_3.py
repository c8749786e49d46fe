"""Stable Diffusion 3: what its three text encoders and its transformer are told is what stock diffusers tells them."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

from benchmarks.random_bases.stable_diffusion_3 import SIZES, write_pipeline
from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import evaluate
from twostage.families import Base, load_base
from twostage.method.adapter import find_targets
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts
from twostage.method.embedding import EmbeddingLearner
from twostage.method.examples import encode_photos
from twostage.method.predictions import _Way
from twostage.method.sampling import assemble, draw
from twostage.planning.rehearsal import rehearse
from twostage.recipe import Checkpoints, Data, Memory, Prior, Recipe, Sample, Stage1, Stage2, Token
from twostage.recipe_evaluation import Evaluation
from twostage.run import generate, train
from twostage.subject.photos import find_photos
from twostage.subject.tokens import Placeholders, add_placeholder

BASES = {"sd3": partial(write_pipeline, size=SIZES["tiny"])}
CPU = torch.device("cpu")
PROMPT = "a photo of a <rare> backpack"
# As the stock pipeline wants it, which does not write out a token's vectors by itself.
WRITTEN_OUT = "a photo of a <rare> <rare>_1 backpack"
ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusion3Pipeline` folder, 32x32 pixels; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "sd3"
    BASES["sd3"](folder)
    return folder


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and its index says that there is no T5."""
    folder = tmp_path_factory.mktemp("base") / "without"
    write_pipeline(folder, SIZES["tiny"], t5=False)
    return folder


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


@pytest.fixture(scope="module")
def recipe(folder: Path, photos: Path) -> Recipe:
    """Both stages, a token of two vectors, and no pictures."""
    return Recipe(
        name="sd3",
        base=str(folder),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red", num_vectors=2),
        stage1=Stage1(steps=4, learning_rate=5e-2, batch_size=2),
        stage2=Stage2(steps=4, learning_rate=1e-3, batch_size=2),
        sample=Sample(per_prompt=0),
        checkpoints=Checkpoints(every=3, keep=2),
    )


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; never write to it."""
    torch.set_num_threads(1)
    return train(recipe, tmp_path_factory.mktemp("runs") / "sd3", display=Display())


def left(run: Path) -> dict[str, torch.Tensor]:
    """All that a run has left."""
    files = (file for file in sorted(run.rglob("*.safetensors")) if "checkpoints" not in file.parts)
    return {f"{file.parent.name} {name}": value for file in files for name, value in load_file(file).items()}


def assert_same(run: Path, other: Path) -> None:
    ours, theirs = left(run), left(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def stock_of(run: Path) -> StableDiffusion3Pipeline:
    """What the card's own words for diffusers load."""
    told: dict[str, Any] = {}
    code = re.search(r"```python\n(.*?)generator = ", (run / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    exec(code[1], told)
    return told["pipe"]


def drawn_by(pipeline: StableDiffusion3Pipeline, prompt: str = WRITTEN_OUT) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    (picture,) = pipeline(prompt, generator=generator, num_inference_steps=3, guidance_scale=5.0).images
    return np.asarray(picture).astype(int)


def drawn_from(run: Path, **how: Any) -> np.ndarray:
    options: dict[str, Any] = {"class_guidance": 0.0, "away_from": "own", "guidance_scale": 5.0} | how
    (picture,) = generate(run, PROMPT, count=1, seed=5, num_inference_steps=3, display=Display(), **options)
    return np.asarray(picture).astype(int)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """But for the last digit of weights that lie elsewhere in memory, which may be multiplied in another order."""
    return bool(np.abs(one - other).max() <= 1)


# Prompts


@pytest.mark.parametrize("t5", [True, False])
def test_states_of_prompts_are_those_of_stock_diffusers(folder: Path, without_t5: Path, t5: bool) -> None:
    """Of a prompt that is longer than what CLIP reads, and one that is longer than what T5 does, too."""
    own = folder if t5 else without_t5
    prompts = ["a photo of a red backpack", "snow " * 120, "snow " * 300]
    base, stock = load_base(str(own)), StableDiffusion3Pipeline.from_pretrained(own, **({} if t5 else NO_T5))
    with torch.no_grad():
        states, negative, pooled, negative_pooled = stock.encode_prompt(prompts, None, None, device=CPU)
        ours, nothing = base.encode_text(prompts), base.encode_text([""]).repeated(3)
    assert ours["states"].shape == (3, 77 + 256, 32)
    assert ours["states"][:, 77:].any() == t5
    told = {"states": states, "pooled": pooled}, {"states": negative, "pooled": negative_pooled}
    for found, theirs in zip((ours, nothing), told, strict=True):
        for name, tensor in theirs.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)


def test_stage_1_learns_a_row_in_each_of_three_tables_and_nothing_else(base: Base, photos: Path) -> None:
    examples = encode_photos(base, find_photos(photos), Data(), "<rare> backpack", 0, CPU)
    added = {
        name: Placeholders((add_placeholder(base.text.tokenizers[name], encoder, Token(initializer="red")),))
        for name, encoder in base.text.encoders.items()
    }
    learner = EmbeddingLearner(base, added)
    assert [tuple(parameter.shape) for parameter in learner.parameters()] == [(1, 16), (1, 16), (1, 32)]
    learner(examples.batch(1, 0, range(2), 2)).mean().backward()
    assert all(rows.grad is not None and rows.grad.abs().max() > 0 for rows in learner.every_row.values())
    nets = [*base.text.encoders.values(), base.denoiser]
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())


def test_t5_reads_a_token_that_was_added_and_the_words_around_it(base: Base) -> None:
    tokenizer, encoder = base.tokenizers["text_encoder_3"], base.component("text_encoder_3")
    plain = tokenizer("a photo of a backpack").input_ids
    placeholder = add_placeholder(tokenizer, encoder, Token(num_vectors=2))
    ids = tokenizer(placeholder.expand("a photo of a <rare> backpack")).input_ids
    assert [row for row in ids if row not in placeholder.token_ids] == plain
    assert [row for row in ids if row in placeholder.token_ids] == placeholder.token_ids


def test_a_run_keeps_all_three_rows_in_one_file(trained: Path, folder: Path) -> None:
    rows = load_file(trained / "embedding" / "rare.safetensors")
    assert {key: tuple(value.shape) for key, value in rows.items()} == {
        "clip_l": (2, 16),
        "clip_g": (2, 16),
        "t5xxl": (2, 32),
    }
    start = load_base(str(folder))
    for name, key in ENCODERS.items():
        tokenizer, table = start.tokenizers[name], start.component(name).get_input_embeddings().weight
        (red,) = tokenizer("red", add_special_tokens=False).input_ids
        assert (rows[key] - table[red]).abs().max() > 1e-2


def test_a_prompt_whose_token_t5_would_not_read_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    long = recipe.data.model_copy(update={"caption": "snow " * 80 + "{}"})
    with pytest.raises(UserError, match=r"longer than the 77 tokens .* vectors of <rare> fall off"):
        train(without(recipe, data=long), tmp_path / "run", display=Display())


# Pictures


def test_latents_are_those_of_diffusers_script(base: Base) -> None:
    """Its VAE shifts what it scales."""
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    vae = StableDiffusion3Pipeline.from_pretrained(base.folder, transformer=None, **NO_T5).vae
    assert vae.config.shift_factor
    with torch.no_grad():
        mean = (vae.encode(pixels).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
        ours, deviation = base.family.encode_images(base.vae, pixels)
        torch.testing.assert_close(ours, mean)
        torch.testing.assert_close(deviation, vae.encode(pixels).latent_dist.std * vae.config.scaling_factor)
        decoded = vae.decode(mean / vae.config.scaling_factor + vae.config.shift_factor).sample
        torch.testing.assert_close(base.family.decode(base.vae, mean), decoded)


def test_the_loss_is_stock_diffusers_transformers(base: Base, photos: Path) -> None:
    """Written out with stock pieces, on what the samples are."""
    batch = encode_photos(base, find_photos(photos), Data(), "red backpack", 0, CPU).batch(2, 3, range(2), 2)
    with torch.no_grad():
        text = EncodedText(encode_prompts(base, list(dict.fromkeys(batch.prompts)), str, CPU))
        loss = DenoiserLearner(base, text)(batch)
        stock = StableDiffusion3Pipeline.from_pretrained(base.folder)
        states, _, pooled, _ = stock.encode_prompt(batch.prompts, None, None, device=CPU)
        indices = 999 - batch.timesteps  # The scheduler's levels go from the most noise to the least.
        sigmas = stock.scheduler.sigmas[indices].view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * batch.latents + sigmas * batch.noise
        output = stock.transformer(noisy, states, pooled, stock.scheduler.timesteps[indices]).sample
    torch.testing.assert_close(loss, (output - (batch.noise - batch.latents)).pow(2).mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("side", "why"),
    [(34, "transformer needs a multiple of 4"), (100, "the largest that .* takes is 96; its own is 32")],
)
def test_a_resolution_that_it_cannot_take_is_refused(recipe: Recipe, tmp_path: Path, side: int, why: str) -> None:
    with pytest.raises(UserError, match=f"resolution {side}: .*{why}"):
        train(without(recipe, data=recipe.data.model_copy(update={"resolution": side})), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [("patch_size", "2"), ("pos_embed_max_size", None), ("patch_size", 0)])
def test_a_setting_of_another_kind_is_refused_in_one_line(folder: Path, tmp_path: Path, name: str, value: Any) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "base"))
    file = own / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {name: value}))
    with pytest.raises(UserError, match=name) as caught:
        load_base(str(own)).check_side(32)
    assert len(str(caught.value).splitlines()) == 1


def test_towards_the_class_alone_is_what_the_class_alone_draws(base: Base) -> None:
    """All that the transformer is told is told by name."""
    pipeline, seeds = assemble(base), [3, 4]
    both = [("a photo of a red backpack", "a photo of a backpack"), ("snow", "snow")]
    how = Sample(num_inference_steps=3, guidance_scale=4.0, class_guidance=1.0)
    guided, plain, apart = (
        np.stack([np.asarray(picture).astype(int) for picture in draw(pipeline, prompts, seeds, options, 32)])
        for prompts, options in (
            (both, how),
            ([kind for _, kind in both], how),
            (both, how.model_copy(update={"class_guidance": 0.0})),
        )
    )
    assert np.abs(guided - plain).max() <= 1
    assert np.abs(apart - plain)[0].max() > 1


def test_a_prior_goes_from_noise_to_picture_as_stock_diffusers_does(base: Base) -> None:
    """By its scheduler's steps, on the way's own levels."""
    way, generator = _Way(base.noise_scheduler, 5), torch.Generator().manual_seed(0)
    levels = torch.arange(999, 0, -200)
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(base.folder / "scheduler")
    stock.set_timesteps(sigmas=((levels + 1) / 1000).tolist())
    latents = theirs = torch.randn(1, 16, 4, 4, generator=generator)
    for level, timestep in zip(levels, stock.timesteps, strict=True):
        output = torch.randn(1, 16, 4, 4, generator=generator)
        torch.testing.assert_close(way.told(level.view(1)), timestep.view(1))
        latents = way.step(output, level.view(1), latents)
        theirs = stock.step(output, timestep, theirs).prev_sample
        torch.testing.assert_close(latents, theirs, atol=1e-5, rtol=1e-5)


# Training


@pytest.mark.parametrize(("label", "step"), [("stage 1", 2), ("stage 2", 1)])
def test_a_stopped_run_resumes_bit_for_bit(
    recipe: Recipe, trained: Path, tmp_path: Path, label: str, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher((label, step), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert_same(run, trained)
    assert metrics(run) == metrics(trained)


def test_another_run_takes_the_token_of_all_three_text_encoders(recipe: Recipe, trained: Path, tmp_path: Path) -> None:
    assert_same(train(recipe, tmp_path / "run", token_from=trained, display=Display()), trained)


def test_all_of_the_transformer_learns_but_what_goes_no_further(trained: Path, folder: Path) -> None:
    ours, start = (
        load_file(path / "transformer" / "diffusion_pytorch_model.safetensors") for path in (trained, folder)
    )
    same = {name for name in start if torch.equal(ours[name], start[name])}
    asking = {f"transformer_blocks.1.attn.add_q_proj.{part}" for part in ("weight", "bias")}
    assert same == {"pos_embed.pos_embed"} | asking


def test_text_encoders_that_learn_are_the_two_clips(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    assert recipe.stage2
    stage2 = recipe.stage2.model_copy(update={"train_text_encoder": True, "steps": 2})
    run = train(without(recipe, stage2=stage2), tmp_path / "run", display=Display())
    assert {path.name for path in run.glob("text_encoder*")} == {"text_encoder", "text_encoder_2"}
    for part in ("text_encoder", "text_encoder_2"):
        ours, start = (load_file(path / part / "model.safetensors") for path in (run, folder))
        same = {name for name in start if torch.equal(ours[name], start[name])}
        assert all(name.endswith(("token_embedding.weight", "position_ids")) for name in same)
    assert alike(drawn_by(stock_of(run)), drawn_from(run))


def test_memory_options_that_change_nothing_change_nothing(recipe: Recipe, tmp_path: Path) -> None:
    """Blocks streamed and recomputed, and activations that wait on the host, to the last bit."""
    assert recipe.stage1 and recipe.stage2
    whole = recipe.stage2.model_copy(update={"max_grad_norm": 0.0, "steps": 2})
    runs = []
    for name, checkpointing, more in (("plain", False, {}), ("less", True, {"streamed": 1.0, "activations": "host"})):
        changed = without(
            recipe,
            stage1=recipe.stage1.model_copy(update={"gradient_checkpointing": checkpointing, "steps": 2}),
            stage2=whole.model_copy(update={"gradient_checkpointing": checkpointing}),
            memory=Memory(step_in_backward=True, **more),
        )
        runs.append(train(changed, tmp_path / name, display=Display()))
    assert_same(*runs)


def test_a_lora_is_trained_in_half_precision_on_a_frozen_base_of_fewer_bits(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.stage2
    stage2 = recipe.stage2.model_copy(update={"train": "adapter", "steps": 2})
    changed = without(recipe, stage2=stage2, memory=Memory(frozen_base="4bit"), mixed_precision="bf16")
    run = train(changed, tmp_path / "run", display=Display())
    adapter = load_file(run / "adapter" / "transformer" / "adapter_model.safetensors")
    adapted = {name.split(".attn.")[1].split(".lora")[0] for name in adapter}
    assert adapted == {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    learned = [name for name, tensor in adapter.items() if "lora_B" in name and tensor.any()]
    assert len(learned) == 2 * 8 - 2  # The last block has no to_add_out, and what its prompt asks goes no further.
    assert alike(drawn_by(stock_of(run)), drawn_from(run))


@pytest.mark.parametrize("target", ["attention+ff", "all"])
def test_presets_of_an_adapter_are_what_they_say(base: Base, target: str) -> None:
    found = {re.sub(r"^transformer_blocks\.\d\.", "", name) for name in find_targets(base.denoiser, "lora", [target])}
    feed_forward = {"ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"}
    assert feed_forward <= found
    assert ("norm1.linear" in found) == (target == "all")


@pytest.mark.parametrize("source", ["predictions", "photos"])
def test_a_class_is_held_to_what_the_base_says_of_it(recipe: Recipe, tmp_path: Path, source: Any) -> None:
    assert recipe.stage2
    prior = Prior(preserve=True, source=source, num_class_images=2, num_inference_steps=4, states_per_path=2)
    stage2 = recipe.stage2.model_copy(update={"steps": 2, "train": "adapter", "flow_weighting": "latents"})
    changed = without(recipe, stage1=None, stage2=stage2, token=Token(placeholder="sks"), prior=prior)
    run = train(changed, tmp_path / "run", display=Display())
    assert all(np.isfinite(line["loss"]) for line in metrics(run))


def test_what_weighs_the_loss_and_draws_the_levels_is_used(recipe: Recipe, trained: Path, tmp_path: Path) -> None:
    losses = [[line["loss"] for line in metrics(trained) if line["step"] == 1]]
    for name, option in (("a", {"flow_weighting": "latents"}), ("b", {"flow_levels": "uniform"})):
        stages = {
            stage: getattr(recipe, stage).model_copy(update={"steps": 1, **option}) for stage in ("stage1", "stage2")
        }
        losses.append([line["loss"] for line in metrics(train(without(recipe, **stages), tmp_path / name))])
    assert len({stage_1 for stage_1, _ in losses}) == len({stage_2 for _, stage_2 in losses}) == 3


# Results


def test_a_base_without_t5_is_trained_and_drawn_without(
    recipe: Recipe, trained: Path, without_t5: Path, tmp_path: Path
) -> None:
    run = train(without(recipe, base=str(without_t5)), tmp_path / "run", display=Display())
    assert load_file(run / "embedding" / "rare.safetensors").keys() == {"clip_l", "clip_g"}
    pipeline = stock_of(run)
    assert pipeline.text_encoder_3 is None
    assert alike(drawn_by(pipeline), drawn_from(run))
    with pytest.raises(UserError, match="learned its token for base"):
        train(recipe, tmp_path / "other", token_from=run, display=Display())


def test_strength_goes_from_the_base_to_what_was_trained(trained: Path, folder: Path) -> None:
    none, half, whole = (drawn_from(trained, strength=strength) for strength in (0.0, 0.5, 1.0))
    assert not alike(none, half) and not alike(half, whole)
    pipeline = stock_of(trained)
    assert alike(drawn_by(pipeline), whole)
    pipeline.transformer = StableDiffusion3Pipeline.from_pretrained(folder).transformer
    assert alike(drawn_by(pipeline), none)


def test_a_run_is_evaluated(trained: Path, tmp_path: Path) -> None:
    own, unseen = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "unseen"
    unseen.mkdir()
    Image.new("RGB", (32, 32), "crimson").save(unseen / "0.png")
    options = Evaluation(
        suite="pocket",
        num_prompts=1,
        images_per_prompt=2,
        num_class_images=2,
        num_unrelated_images=1,
        num_inference_steps=2,
        encoders=("dino=pocket", "clip=pocket", "dinov2=none"),
    )
    record = evaluate(own, options, held_out=[unseen], display=Display())
    assert record["choices"]["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert np.isfinite(record["figures"]["dino_unseen"]["value"])


def test_a_plan_has_all_of_a_run_and_streams_blocks(recipe: Recipe) -> None:
    assert recipe.stage2
    stage2 = recipe.stage2.model_copy(update={"max_grad_norm": 0.0})
    memory = Memory(step_in_backward=True, streamed=1.0)
    found = {phase.name: phase for phase in rehearse(without(recipe, stage2=stage2, memory=memory)).phases}
    assert {"encode", "stage 1", "stage 2"} <= found.keys()
    assert found["stage 1"].work.copied and found["stage 2"].work.copied
