"""What other trainers leave: the files beside a pipeline are checked before a picture is drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import evaluate_result, open_pipeline
from twostage.families import load_base
from twostage.method.sampling import draw
from twostage.recipe import Sample
from twostage.recipe_evaluation import Evaluation, Foreign

HOW = Sample(num_inference_steps=2, guidance_scale=2.0)


@pytest.fixture
def width(tiny_base: Path) -> int:
    return int(load_base(str(tiny_base)).text_encoder.config.hidden_size)


def embedding(path: Path, key: str, width: int) -> Path:
    save_file({key: torch.full((2, width), 0.1)}, path)
    return path


def opened(base: Path, **given: object) -> object:
    return open_pipeline(Foreign.model_validate({"pipeline": str(base), "class_noun": "backpack", **given}))


def test_an_embedding_goes_by_its_own_name_or_the_one_given(tiny_base: Path, tmp_path: Path, width: int) -> None:
    file = embedding(tmp_path / "own.safetensors", "<own>", width)
    by_name = open_pipeline(Foreign(pipeline=str(tiny_base), embedding=file, class_noun="backpack"))
    renamed = open_pipeline(Foreign(pipeline=str(tiny_base), embedding=file, class_noun="backpack", token="<new>"))
    assert (by_name.phrase, renamed.phrase) == ("<own> backpack", "<new> backpack")
    pictures = [draw(r.load(1), [f"a {r.phrase}"], [0], HOW, r.side)[0].tobytes() for r in (by_name, renamed)]
    assert pictures[0] == pictures[1]


def test_an_embedding_file_without_a_name_wants_a_token(tiny_base: Path, tmp_path: Path, width: int) -> None:
    """kohya's and A1111's files call every token emb_params."""
    file = embedding(tmp_path / "rare.safetensors", "emb_params", width)
    with pytest.raises(UserError, match="--token"):
        opened(tiny_base, embedding=file)
    assert opened(tiny_base, embedding=file, token="<rare>")


def test_an_embedding_of_another_base_or_with_a_words_name_is_one_line(
    tiny_base: Path, tmp_path: Path, width: int
) -> None:
    with pytest.raises(UserError, match=f"is {width + 1} wide, and the text encoder of .* {width};"):
        opened(tiny_base, embedding=embedding(tmp_path / "wide.safetensors", "<wide>", width + 1))
    taken = sorted(load_base(str(tiny_base)).tokenizer.get_vocab())[100]
    with pytest.raises(UserError, match="already"):
        opened(tiny_base, embedding=embedding(tmp_path / "taken.safetensors", "<x>", width), token=taken)


def test_a_lora_that_does_not_fit_is_one_line(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = {name: torch.zeros(3, 3) for name in ("unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight")}
    save_file(keys, tmp_path / "other.safetensors")
    result = open_pipeline(Foreign(pipeline=str(tiny_base), lora=tmp_path / "other.safetensors", token="sks"))
    capfd.readouterr()
    with pytest.raises(UserError, match=r"^LoRA .*other\.safetensors does not fit") as error:
        result.load(1)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_guidance_away_from_a_base_that_nobody_named_is_one_line(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"away_from is 'base'.*name it with --base"):
        evaluate_result(opened(tiny_base, token="red"), tmp_path / "out", Evaluation(away_from="base"), Display())
    assert not (tmp_path / "out").exists()


def test_pictures_guided_away_from_another_base_are_drawn_anew(tiny_base: Path, tmp_path: Path) -> None:
    """The same result, and other pictures of it."""
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.3 * tensor for name, tensor in load_file(weights).items()}, weights)
    options = Evaluation(
        num_prompts=1,
        images_per_prompt=1,
        num_class_images=2,
        num_unrelated_images=0,
        num_inference_steps=2,
        guidance_scale=60,
        away_from="base",
        encoders=("dino=pocket", "clip=none", "dinov2=none"),
    )
    drawn = []
    for base in (tiny_base, other):
        given = Foreign(pipeline=str(tiny_base), class_noun="backpack", token="red", base=str(base))
        result = open_pipeline(given)
        record = evaluate_result(result, tmp_path / "out", options, Display())
        drawn.append((tmp_path / "out" / record["pictures"]["subject"][0]).read_bytes())
    assert drawn[0] != drawn[1]
