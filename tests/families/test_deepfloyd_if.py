"""DeepFloyd IF, stage I: T5 is told, and the U-Net asked, as by stock diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import IFPipeline
from safetensors.torch import load_file, save_file

from benchmarks.random_bases import deepfloyd_if
from twostage.display import Display
from twostage.errors import UserError
from twostage.families import Base, load_base
from twostage.family_parts import Shown
from twostage.method.adapter import find_targets
from twostage.method.embedding import EmbeddingLearner
from twostage.method.examples import Batch
from twostage.method.sampling import assemble, draw, reads_whole
from twostage.planning.outlined import outline_base
from twostage.recipe import Data, Recipe, Sample, Stage1, Stage2, Token
from twostage.run import generate, train
from twostage.subject.tokens import add_placeholder

BASES = {"if": lambda folder: deepfloyd_if.write_pipeline(folder, deepfloyd_if.SIZES["tiny"])}
PROMPTS = ["a photo of a Backpack ", "snow, 1st of MAY", "", "a dog " * 50]
STEPS, GUIDANCE = 3, 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deepfloyd") / "if"
    BASES["if"](path)
    return path


@pytest.fixture(scope="module")
def stock(folder: Path) -> IFPipeline:
    pipeline = IFPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


def batch(prompts: list[str]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shape = (len(prompts), 3, 16, 16)
    pixels, noise = torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape, generator=generator)
    return Batch(pixels, noise, torch.arange(len(prompts)) * 100 + 7, prompts)


def test_prompts_are_read_as_stock_diffusers_reads_them(base: Base, stock: IFPipeline) -> None:
    """In lower case, cut off at 77 tokens, and what fills them up is hidden from the others."""
    for prompt in PROMPTS:
        assert torch.equal(base.encode_text([prompt])["states"], stock.encode_prompt(prompt, False)[0])
    assert torch.equal(base.encode_text(PROMPTS)["states"], stock.encode_prompt(PROMPTS, False)[0])


@pytest.mark.parametrize("length", [512, 10**30, 20, None])
def test_a_tokenizer_of_any_length_is_read_to_77_tokens(
    folder: Path, base: Base, tmp_path: Path, length: int | None
) -> None:
    own = tmp_path / "base"
    for file in (file for file in folder.rglob("*") if file.is_file()):
        (own / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (own / file.relative_to(folder)).hardlink_to(file)
    config = own / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.unlink()
    config.write_text(json.dumps({name: value for name, value in settings.items() if name != "model_max_length"}))
    if length is not None:
        config.write_text(json.dumps(settings | {"model_max_length": length}))
    other = load_base(str(own))
    assert torch.equal(other.encode_text(PROMPTS)["states"], base.encode_text(PROMPTS)["states"])
    assert [reads_whole(other.family, other.text, prompt) for prompt in PROMPTS] == [True, True, True, False]


def test_a_tokenizer_that_takes_another_package_to_read_is_refused_with_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published, it is one; what transformers asks for would not help."""
    own = tmp_path / "base"
    shutil.copytree(folder, own)
    (own / "tokenizer" / "tokenizer.json").rename(own / "tokenizer" / "spiece.model")
    monkeypatch.setattr("twostage.pixel_cascade.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"which sentencepiece and protobuf read; .*'twostage\[t5\]'$"):
        _ = load_base(str(own)).tokenizer


def test_what_a_base_is_known_by_is_its_sentencepiece_file_too(folder: Path, tmp_path: Path) -> None:
    hashes = set()
    for content in ("one", "other"):
        own = tmp_path / content
        shutil.copytree(folder, own)
        (own / "tokenizer" / "spiece.model").write_text(content, encoding="utf-8")
        hashes.add(load_base(str(own)).content_hash)
    assert len(hashes) == 2


def test_t5_has_one_table_where_its_configuration_says_that_none_is_shared(folder: Path, tmp_path: Path) -> None:
    """As published."""
    own = tmp_path / "base"
    shutil.copytree(folder, own)
    config = own / "text_encoder" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
    config.write_text(json.dumps(settings | {"is_encoder_decoder": True}), encoding="utf-8")
    ours, stock = load_base(str(own)), IFPipeline.from_pretrained(own)
    assert torch.equal(ours.encode_text(PROMPTS[:1])["states"], stock.encode_prompt(PROMPTS[0], False)[0])
    assert ours.text_encoder.encoder.embed_tokens is ours.text_encoder.shared


def test_t5_works_on_the_host_wherever_the_u_net_is(base: Base) -> None:
    assert base.text_device(torch.device("cuda")) == torch.device("cpu")


@pytest.mark.parametrize(("name", "side", "multiple"), [("if-i-m", 64, 8), ("if-i-xl", 64, 8), ("if-ii-l", 256, 16)])
def test_published_bases_are_planned_by_name(name: str, side: int, multiple: int) -> None:
    base = outline_base(name)
    assert (base.resolution, base.multiple, base.channels) == (side, multiple, 3)
    shown = Shown(torch.zeros(3, side, side), (side, side), (side, side))
    assert bool(base.family.picture_conditions(shown, torch.Generator())) == (side == 256)


def test_pictures_are_those_of_stock_diffusers_alone_and_together(base: Base, stock: IFPipeline) -> None:
    pipeline, options = assemble(base), Sample(num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    prompts, seeds = PROMPTS[:2], [3, 4]
    alone = [draw(pipeline, [text], [seed], options, 16)[0] for text, seed in zip(prompts, seeds, strict=True)]
    together = draw(pipeline, prompts, seeds, options, 16)
    for prompt, seed, one, other in zip(prompts, seeds, alone, together, strict=True):
        theirs = stock(
            prompt,
            clean_caption=False,
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
        ).images[0]
        assert np.array_equal(np.asarray(one), np.asarray(theirs))
        assert np.abs(np.asarray(other, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_pictures_of_another_size_and_without_guidance_are_those_of_stock_diffusers(
    base: Base, stock: IFPipeline
) -> None:
    ours = draw(assemble(base), PROMPTS[:1], [5], Sample(num_inference_steps=STEPS, guidance_scale=1.0), 24)[0]
    theirs = stock(
        PROMPTS[0],
        clean_caption=False,
        generator=torch.Generator().manual_seed(5),
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        height=24,
        width=24,
    ).images[0]
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_what_is_trained_is_the_noise_and_not_the_variance(base: Base) -> None:
    asked = batch(["a photo of a backpack"] * 2).question(base.noise_scheduler)
    states = base.encode_text(["a photo of a backpack"] * 2)
    with torch.no_grad():
        whole = base.denoiser(asked.noisy, asked.timesteps, encoder_hidden_states=states["states"]).sample
        ours = base.family.predict(base.denoiser, asked.noisy, asked.timesteps, states, {})
    assert whole.shape[1] == 6
    assert torch.equal(ours, whole[:, :3])


@pytest.mark.parametrize("rows", [1, 40], ids=["in spare rows of the table", "in new ones"])
def test_the_tokens_rows_learn_in_the_table_that_t5_reads(base: Base, rows: int) -> None:
    token = Token(placeholder="<rare>", num_vectors=rows)
    placeholder = add_placeholder(base.tokenizer, base.text_encoder, token)
    assert (base.text_encoder.get_input_embeddings().num_embeddings > 1024) == (rows == 40)
    learner = EmbeddingLearner(base, placeholder)
    before = learner.encode(["a <rare> backpack"])["states"].detach()
    learner(batch(["a <rare> backpack"] * 2)).sum().backward()
    (parameter,) = learner.parameters()
    assert (parameter.grad.abs().amax(1) > 0).all()
    with torch.no_grad():
        parameter += 1
    assert not torch.equal(learner.encode(["a <rare> backpack"])["states"], before)


def test_an_adapter_of_the_attention_is_one_of_what_it_makes_of_prompts_too(base: Base) -> None:
    targets = find_targets(base.outline("unet"), "lora", ["attention"])
    ends = {name.rpartition("attentions.")[2].split(".", 1)[1] for name in targets}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"}


def recipe(folder: Path, photos: Path, **more: object) -> Recipe:
    return Recipe(
        base=str(folder),
        data=Data(photos=photos, class_noun="backpack"),
        sample=Sample(per_prompt=0),
        **{"stage1": Stage1(steps=1, learning_rate=1e-2), **more},
    )


def test_a_token_with_capitals_is_refused_for_what_stock_diffusers_makes_of_it(
    folder: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="the token '<Rare>': .*read it as '<rare>'.* call it that$"):
        train(recipe(folder, photos, token=Token(placeholder="<Rare>")), tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


def test_training_t5_with_the_u_net_is_refused(folder: Path, photos: Path, tmp_path: Path) -> None:
    stage2 = Stage2(steps=1, learning_rate=1e-4, train_text_encoder=True)
    with pytest.raises(UserError, match="^stage2.train_text_encoder: .*too large"):
        train(recipe(folder, photos, stage2=stage2), tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


def test_the_card_has_stock_diffusers_leave_the_prompt_as_it_is(folder: Path, photos: Path, tmp_path: Path) -> None:
    """Cleaned, it would lose <rare>, which is an HTML tag then: where bs4 and ftfy are installed, and there alone."""
    run = train(recipe(folder, photos), tmp_path / "run", display=Display())
    assert ", clean_caption=False, generator=generator)" in (run / "README.md").read_text(encoding="utf-8")


def test_a_table_without_spare_rows_is_learned_in_and_drawn_with(folder: Path, photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "base"
    deepfloyd_if.write_pipeline(own, deepfloyd_if.SIZES["tiny"])
    weights, config = own / "text_encoder" / "model.safetensors", own / "text_encoder" / "config.json"
    tensors = load_file(weights)
    tensors["shared.weight"] = tensors["shared.weight"][:996].contiguous()
    save_file(tensors, weights, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"vocab_size": 996}))
    run = train(recipe(own, photos), tmp_path / "run", display=Display())
    drawn = generate(run, "a photo of a {}", count=1, num_inference_steps=STEPS, display=Display())
    pipeline = IFPipeline.from_pretrained(own)
    pipeline.tokenizer.add_tokens("<rare>")
    pipeline.text_encoder.resize_token_embeddings(997, mean_resizing=False)
    pipeline.text_encoder.shared.weight.data[996] = load_file(run / "embedding" / "rare.safetensors")["<rare>"]
    theirs = pipeline(
        "a photo of a <rare> backpack",
        clean_caption=False,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=STEPS,
        guidance_scale=7.5,
    ).images[0]
    assert np.array_equal(np.asarray(drawn[0]), np.asarray(theirs))
