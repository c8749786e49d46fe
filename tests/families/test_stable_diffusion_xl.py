"""Stable Diffusion XL: what its two text encoders and its U-Net are told is what stock diffusers tells them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection
from typer.testing import CliRunner

from benchmarks.random_bases import stable_diffusion_xl
from cli.main import app
from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import open_pipeline
from twostage.families import Base, load_base
from twostage.method.class_samples import Making
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts
from twostage.method.embedding import EmbeddingLearner
from twostage.method.examples import encode_photos
from twostage.method.prior import find_class_images, prepare_prior
from twostage.recipe import Adapter, Checkpoints, Data, Prior, Recipe, Sample, Stage1, Stage2, Token
from twostage.recipe_evaluation import Foreign
from twostage.run import generate, load_pipeline, train
from twostage.subject.photos import find_photos
from twostage.subject.token_files import save_embedding
from twostage.subject.tokens import Placeholders, add_placeholder

BASES = {"sdxl": lambda folder: stable_diffusion_xl.write_pipeline(folder, stable_diffusion_xl.SIZES["tiny"])}
CPU = torch.device("cpu")
SIDE = 32
PROMPT = "a photo of a <rare> backpack"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusionXLPipeline` folder, 32x32 pixels; never write to it."""
    folder = tmp_path_factory.mktemp("base") / "xl"
    BASES["sdxl"](folder)
    return folder


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


@pytest.fixture(scope="module")
def recipe(folder: Path, photos: Path) -> Recipe:
    """Both stages, text encoders in the second one, and a token of two vectors."""
    return Recipe(
        name="xl",
        base=str(folder),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red", num_vectors=2),
        stage1=Stage1(steps=4, learning_rate=5e-2, batch_size=2),
        stage2=Stage2(steps=4, learning_rate=1e-3, batch_size=2, train_text_encoder=True),
        sample=Sample(per_prompt=0),
        checkpoints=Checkpoints(every=3, keep=2),
    )


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; never write to it."""
    torch.set_num_threads(1)
    return train(recipe, tmp_path_factory.mktemp("runs") / "xl", display=Display())


def of_pipeline(run: Path) -> dict[str, torch.Tensor]:
    """All that a run has left."""
    files = (file for file in sorted(run.rglob("*.safetensors")) if "checkpoints" not in file.parts)
    return {f"{file.parent.name} {name}": value for file in files for name, value in load_file(file).items()}


def drawn_by(pipeline: StableDiffusionXLPipeline, prompt: str = PROMPT) -> bytes:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    return pipeline(prompt, generator=generator, num_inference_steps=3, guidance_scale=5.0).images[0].tobytes()


def drawn_from(run: Path) -> bytes:
    how: dict[str, Any] = {"class_guidance": 0.0, "away_from": "own", "guidance_scale": 5.0}
    return generate(run, PROMPT, count=1, seed=5, num_inference_steps=3, display=Display(), **how)[0].tobytes()


# Prompts


def test_states_of_prompts_are_those_of_stock_diffusers(base: Base) -> None:
    prompts = ["a photo of a red backpack", "snow"]
    stock = StableDiffusionXLPipeline.from_pretrained(base.folder)
    states, negative, pooled, negative_pooled = stock.encode_prompt(prompts, device=CPU)
    ours, nothing = base.encode_text(prompts), base.encode_text([""]).repeated(2)
    assert torch.equal(ours["states"], states) and torch.equal(ours["pooled"], pooled)
    assert not negative.any()
    assert torch.equal(nothing["states"], negative) and torch.equal(nothing["pooled"], negative_pooled)


def test_the_empty_prompt_is_encoded_where_the_pipeline_says_so(base: Base, tmp_path: Path) -> None:
    folder = shutil.copytree(base.folder, tmp_path / "base")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    _, negative, _, pooled = stock.encode_prompt("snow", device=CPU)
    nothing = load_base(str(folder)).encode_text([""])
    assert negative.any() and torch.equal(nothing["states"], negative) and torch.equal(nothing["pooled"], pooled)


def test_the_state_of_a_whole_prompt_is_that_of_its_end_whatever_tokens_were_added(base: Base) -> None:
    """The published configuration would have it end at the token: what follows would not be told."""
    assert json.loads((base.folder / "text_encoder_2" / "config.json").read_text())["eos_token_id"] == 2
    for name, encoder in base.text.encoders.items():
        add_placeholder(base.text.tokenizers[name], encoder, Token())
    snow, beach = base.encode_text(["a <rare> in the snow", "a <rare> on the beach"])["pooled"]
    assert not torch.equal(snow, beach)


def test_a_run_says_where_prompts_end(trained: Path) -> None:
    """So stock transformers, which reads the text encoder of the run, pools where training has."""
    own = CLIPTextModelWithProjection.from_pretrained(trained / "text_encoder_2")
    assert own.text_model.eos_token_id == load_base(json_base(trained)).text.tokenizers["text_encoder_2"].eos_token_id


def json_base(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["base"]["name"])


# Pictures


def told(examples: Any, size: tuple[int, int] | None = None) -> set[tuple[int, ...]]:
    """All that samples tell of their photos; those of one size of latents."""
    batches = [examples.batch(2, step, range(2), 2) for step in range(8)]
    if size:
        batches = [batch for batch in batches if tuple(batch.latents.shape[-2:]) == size]
    return {tuple(int(number) for number in row) for batch in batches for row in batch.given["time_ids"]}


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        # As compute_time_ids of diffusers' train_text_to_image_sdxl.py, whose Resize has the shorter side be 32:
        # height and width of the photo, top and left of the cut, height and width of what is left.
        ((40, 32), "crop", (32, 40, 0, 4, 32, 32)),
        ((300, 450), "crop", (450, 300, 8, 0, 32, 32)),
        ((1024, 768), "crop", (768, 1024, 0, 5, 32, 32)),
        ((16, 16), "crop", (16, 16, 0, 0, 32, 32)),
        ((300, 450), "pad", (450, 300, 0, 0, 32, 32)),
        # In a bucket, which is 26 wide and 38 high, nearly nothing is cut.
        ((300, 450), "bucket", (450, 300, 0, 0, 38, 26)),
    ],
)
def test_the_unet_is_told_the_photos_size_its_cut_and_what_is_left(
    base: Base, tmp_path: Path, size: tuple[int, int], fit: Any, expected: tuple[int, ...]
) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "photo.png")
    data = Data(photos=tmp_path, fit=fit, flip=True)
    examples = encode_photos(base, find_photos(tmp_path), data, "red backpack", 0, CPU)
    assert told(examples) == {expected}


def test_a_photo_that_lies_on_its_side_is_told_as_it_is_seen(base: Base, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (450, 300), "teal").save(tmp_path / "photo.jpg", exif=exif)
    examples = encode_photos(base, find_photos(tmp_path), Data(photos=tmp_path), "red backpack", 0, CPU)
    assert told(examples) == {(450, 300, 8, 0, 32, 32)}


def test_each_photo_of_a_batch_is_told_for_itself(base: Base, tmp_path: Path) -> None:
    for name, size in {"a": (40, 32), "b": (32, 48), "c": (64, 48)}.items():
        Image.new("RGB", size, "teal").save(tmp_path / f"{name}.png")
    examples = encode_photos(base, find_photos(tmp_path), Data(photos=tmp_path), "red backpack", 0, CPU)
    assert told(examples) == {(32, 40, 0, 4, 32, 32), (48, 32, 8, 0, 32, 32), (48, 64, 0, 5, 32, 32)}


@pytest.mark.parametrize("source", ["images", "predictions"])
def test_prior_samples_are_told_their_own_sizes(base: Base, tmp_path: Path, source: Any) -> None:
    """The user's as photos are; those of the base's own, which are squares, as stock diffusers tells of squares."""
    Image.new("RGB", (48, 36), "gold").save(tmp_path / "own.png")
    options = Prior(
        source=source,
        num_class_images=2,
        num_inference_steps=2,
        states_per_path=1,
        class_images=tmp_path if source == "images" else None,
    )
    making = Making(options, "a photo of a backpack", base, Data(), 0, Accelerator(), Display())
    samples = prepare_prior(making, find_class_images(options))
    questions = [samples.batch(2, step, range(2), 2).question(base.noise_scheduler) for step in range(2)]
    found = {tuple(int(number) for number in row) for asked in questions for row in asked.given["time_ids"]}
    own = {(36, 48, 0, 5, 32, 32)} if source == "images" else set()
    assert found == {(32, 32, 0, 0, 32, 32)} | own


def test_the_loss_is_stock_diffusers_unets(base: Base, photos: Path) -> None:
    """Written out with stock pieces, on what the samples are."""
    examples = encode_photos(base, find_photos(photos), Data(), "red backpack", 0, CPU)
    batch = examples.batch(2, 3, range(2), 2)
    prompts = list(dict.fromkeys(batch.prompts))
    with torch.no_grad():
        loss = DenoiserLearner(base, EncodedText(encode_prompts(base, prompts, str, CPU)))(batch)
    stock = StableDiffusionXLPipeline.from_pretrained(base.folder)
    states, _, pooled, _ = stock.encode_prompt(batch.prompts, device=CPU, do_classifier_free_guidance=False)
    noisy = base.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    sizes = torch.tensor([[32.0, 40, 0, 4, 32, 32]] * 2)
    added = {"text_embeds": pooled, "time_ids": sizes}
    with torch.no_grad():
        output = stock.unet(noisy, batch.timesteps, states, added_cond_kwargs=added).sample
    torch.testing.assert_close(loss, (output - batch.noise).pow(2).mean((1, 2, 3)), atol=1e-6, rtol=1e-5)


# Training


def learner_of(base: Base) -> EmbeddingLearner:
    added = {}
    for name, encoder in base.text.encoders.items():
        added[name] = Placeholders((add_placeholder(base.text.tokenizers[name], encoder, Token(initializer="red")),))
    return EmbeddingLearner(base, added)


def test_stage_1_learns_a_row_in_each_table_and_nothing_else(base: Base, photos: Path) -> None:
    examples = encode_photos(base, find_photos(photos), Data(), "<rare> backpack", 0, CPU)
    learner = learner_of(base)
    assert [tuple(parameter.shape) for parameter in learner.parameters()] == [(1, 16), (1, 24)]
    learner(examples.batch(1, 0, range(2), 2)).mean().backward()
    assert all(rows.grad is not None and rows.grad.abs().max() > 0 for rows in learner.every_row.values())
    nets = [*base.text.encoders.values(), base.denoiser]
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())


def test_a_run_keeps_both_rows_in_one_file_and_every_word_as_it_was(trained: Path, folder: Path) -> None:
    rows = load_file(trained / "embedding" / "rare.safetensors")
    assert {key: tuple(value.shape) for key, value in rows.items()} == {"clip_l": (2, 16), "clip_g": (2, 24)}
    for part, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        ours, start = (load_file(path / part / "model.safetensors") for path in (trained, folder))
        (table,) = (name for name in start if name.endswith("token_embedding.weight"))
        assert torch.equal(ours[table], start[table])
        moved = rows[key] - start[table][load_base(str(folder)).tokenizer.convert_tokens_to_ids("red</w>")]
        assert moved.abs().max() > 1e-2


def test_stage_2_trains_all_that_is_read_of_both_text_encoders(trained: Path, folder: Path) -> None:
    """The first one's state is taken before its last layer, which therefore learns nothing."""
    same = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        file = "model.safetensors" if "text" in part else "diffusion_pytorch_model.safetensors"
        ours, start = (load_file(path / part / file) for path in (trained, folder))
        same[part] = {name.split("layers.")[-1] for name in start if torch.equal(ours[name], start[name])}
    assert not same["unet"]
    assert {name[0] for name in same["text_encoder"] if name[0].isdigit()} == {"1"}
    others = {part: {name for name in names if not name[0].isdigit()} for part, names in same.items()}
    tables = r"(text_model\.)?(embeddings\.token_embedding\.weight|embeddings\.position_ids|final_layer_norm\.\w+)"
    assert all(re.fullmatch(tables, name) for name in others["text_encoder"])
    assert len(same["text_encoder_2"]) == 1


def test_stock_diffusers_draws_what_a_run_of_text_encoders_draws(trained: Path, folder: Path) -> None:
    told: dict[str, Any] = {}
    code = re.search(r"```python\n(.*?)picture = ", (trained / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    exec(code[1], told)
    assert drawn_by(told["pipe"]) == drawn_from(trained)
    plain = StableDiffusionXLPipeline.from_pretrained(folder)
    assert drawn_by(plain) != drawn_from(trained)


def test_a_lora_of_all_three_nets_learns_and_is_drawn(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.stage2
    stage2 = recipe.stage2.model_copy(update={"train": "adapter", "learning_rate": 1e-1})
    run = train(without(recipe, stage2=stage2, adapter=Adapter(rank=2)), tmp_path / "run", display=Display())
    for part in ("unet", "text_encoder", "text_encoder_2"):
        adapter = load_file(run / "adapter" / part / "adapter_model.safetensors")
        untouched = {name for name, value in adapter.items() if ".lora_B." in name and not value.any()}
        assert all("layers.1." in name and part == "text_encoder" for name in untouched), untouched
        assert len(untouched) == (4 if part == "text_encoder" else 0)
    told: dict[str, Any] = {}
    code = re.search(r"```python\n(.*?)picture = ", (run / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    exec(code[1], told)
    assert drawn_by(told["pipe"]) == drawn_from(run)


@pytest.mark.parametrize(("label", "step"), [("stage 1", 2), ("stage 2", 1)])
def test_a_stopped_run_resumes_bit_for_bit(
    recipe: Recipe, trained: Path, tmp_path: Path, label: str, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher((label, step), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    ours, theirs = of_pipeline(run), of_pipeline(trained)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert metrics(run) == metrics(trained)


def test_another_run_takes_the_token_of_both_text_encoders(recipe: Recipe, trained: Path, tmp_path: Path) -> None:
    run = train(recipe, tmp_path / "run", token_from=trained, display=Display())
    ours, theirs = of_pipeline(run), of_pipeline(trained)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_all_memory_options_train_a_token(recipe: Recipe, tmp_path: Path) -> None:
    """In bfloat16, the frozen nets in 8 bits, activations recomputed."""
    assert recipe.stage1
    options = recipe.stage1.model_copy(update={"gradient_checkpointing": True})
    memory = recipe.memory.model_copy(update={"frozen_base": "8bit"})
    changed = without(recipe, stage1=options, stage2=None, memory=memory, mixed_precision="bf16")
    rows = load_file(train(changed, tmp_path / "run", display=Display()) / "embedding" / "rare.safetensors")
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in rows.values())


# The VAE


def test_the_vae_works_in_float32_whatever_is_around_it(base: Base) -> None:
    """The published one's activations overflow float16."""
    pixels, latents = torch.rand(1, 3, SIDE, SIDE) * 2 - 1, torch.randn(1, 4, 16, 16)
    stock = AutoencoderKL.from_pretrained(base.folder / "vae")
    with torch.no_grad():
        mean = stock.encode(pixels).latent_dist.mean * stock.config.scaling_factor
        picture = stock.decode(latents / stock.config.scaling_factor).sample
        with torch.autocast("cpu", torch.bfloat16):
            assert stock.encode(pixels).latent_dist.mean.dtype == torch.bfloat16
            ours = base.family.encode_images(base.vae, pixels)[0]
            drawn = base.family.decode(base.vae, latents.bfloat16())
    assert torch.equal(ours, mean)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, picture, atol=0.05, rtol=0.05)  # Of latents that were rounded.


def test_samples_of_a_half_precision_run_are_decoded_in_float32(recipe: Recipe, tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    own = AutoencoderKL.decode

    def decode(vae: AutoencoderKL, latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        vae.decoder.conv_out.register_forward_hook(lambda module, shown, output: seen.append(output.dtype))
        return own(vae, latents, *args, **options)

    sample = Sample(prompts=("a {}",), per_prompt=1, num_inference_steps=2)
    changed = without(recipe, stage1=None, token=Token(placeholder="sks"), sample=sample, mixed_precision="bf16")
    memory = recipe.memory.model_copy(update={"weights": "bfloat16"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderKL, "decode", decode)
        train(without(changed, memory=memory), tmp_path / "run", display=Display())
    assert set(seen) == {torch.float32}


# Bad input


def refused(*arguments: object) -> str:
    """The one line that the command answers with."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and len(line) < 500
    return line


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run, and write nothing."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


def test_the_refiner_is_refused_for_the_base_model(photos: Path, tmp_path: Path, empty: Path) -> None:
    sizes = stable_diffusion_xl.SIZES["tiny"]
    stable_diffusion_xl.write_pipeline(tmp_path / "refiner", sizes, refiner=True)
    line = refused("train", "two-stage", photos, "--class", "bag", "--base", tmp_path / "refiner")
    assert "refiner" in line and "base model" in line
    assert not list(empty.iterdir())


@pytest.mark.parametrize(("side", "why"), [(33, "multiple of 8"), (4104, "at most 4096")])
def test_a_resolution_that_it_cannot_take_is_refused(
    folder: Path, photos: Path, empty: Path, side: int, why: str
) -> None:
    line = refused("train", "two-stage", photos, "--class", "bag", "--base", folder, "--data.resolution", side)
    assert str(side) in line and why in line
    assert not list(empty.iterdir())


@pytest.fixture(scope="module")
def sd15_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("token") / "rare.safetensors"
    save_embedding(file, "<rare>", torch.zeros(1, 16))  # As wide as the first text encoder's.
    return file


def test_a_token_of_another_family_is_refused(
    folder: Path, tiny_base: Path, trained: Path, sd15_token: Path, empty: Path
) -> None:
    options = ("--class-noun", "bag", "--output", empty / "out")
    line = refused("evaluate", "--pipeline", folder, "--embedding", sd15_token, *options)
    assert "one text encoder" in line and "clip_g and clip_l" in line
    own = trained / "embedding" / "rare.safetensors"
    line = refused("evaluate", "--pipeline", tiny_base, "--embedding", own, *options)
    assert "clip_g" in line and "another family" in line
    assert not list(empty.iterdir())


def test_a_run_is_no_parent_on_another_family(tiny_base: Path, photos: Path, trained: Path, empty: Path) -> None:
    line = refused("train", "two-stage", photos, "--class", "backpack", "--base", tiny_base, "--from", trained)
    assert str(tiny_base) in line and str(trained) in line
    assert not list(empty.iterdir())


def test_a_run_whose_token_is_another_familys_draws_nothing(trained: Path, sd15_token: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    save_embedding(run / "embedding" / "rare.safetensors", "<rare>", torch.zeros(2, 16))
    with pytest.raises(UserError, match="another family"):
        load_pipeline(run)


def lora(pipeline: DiffusionPipeline, file: Path, *parts: str) -> Path:
    """A LoRA of some nets as diffusers writes it, of random numbers."""
    layers = {}
    for part in parts:
        targets = ["to_q", "to_k"] if part == "unet" else ["q_proj", "k_proj"]
        net = getattr(pipeline, part)
        net.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=targets))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(net)
    pipeline.save_lora_weights(file.parent, weight_name=file.name, **layers)
    return file


@pytest.mark.parametrize("parts", [("unet",), ("text_encoder_2",), ("text_encoder", "text_encoder_2")])
def test_a_lora_of_another_family_is_refused(folder: Path, tiny_base: Path, tmp_path: Path, parts: Any) -> None:
    """Stock diffusers leaves out what finds no place, and says nothing."""
    file = lora(StableDiffusionXLPipeline.from_pretrained(folder), tmp_path / "xl.safetensors", *parts)
    assert open_pipeline(Foreign(pipeline=str(folder), lora=file, token="sks")).load(1)
    with pytest.raises(UserError, match="does not fit the pipeline, a StableDiffusionPipeline: .* the same family"):
        open_pipeline(Foreign(pipeline=str(tiny_base), lora=file, token="sks")).load(1)
    if parts == ("unet",):
        other = lora(StableDiffusionPipeline.from_pretrained(tiny_base), tmp_path / "sd.safetensors", *parts)
        with pytest.raises(UserError, match="does not fit the pipeline, a StableDiffusionXLPipeline: "):
            open_pipeline(Foreign(pipeline=str(folder), lora=other, token="sks")).load(1)
