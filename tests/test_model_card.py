"""The model card says what a run is, and its code works as it stands."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from tests.watching import without
from twostage.display import Display
from twostage.families import load_base
from twostage.model_card import Card, base_facts
from twostage.recipe import Adapter, Data, Recipe, Sample, Stage2, Token
from twostage.run import generate, train
from twostage.run_folder import RunFolder


def card(run: Path) -> ModelCard:
    return ModelCard.load(run / "README.md")


def code(run: Path, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", card(run).text, re.DOTALL)
    return str(found)


def drawn_by_its_code(run: Path, folder: Path) -> np.ndarray[Any, Any]:
    """The picture that the card's Python code saves."""
    with contextlib.chdir(folder):
        exec(compile(code(run, "python"), "README.md", "exec"), {})
    return np.asarray(Image.open(folder / "picture.png"), dtype=int)


def drawn_by_us(run: Path) -> np.ndarray[Any, Any]:
    return np.asarray(generate(run, "a photo of a {}", count=1, num_inference_steps=50)[0], dtype=int)


def test_the_hub_reads_its_metadata(finished: Path) -> None:
    data = card(finished).data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "text-to-image"
    assert data["instance_prompt"] == "a photo of a <rare> backpack"
    assert {"dreambooth", "textual_inversion", "stable-diffusion"} <= set(data["tags"])
    assert [entry["text"] for entry in data["widget"]] == ["a photo of a <rare> backpack", "snow"]
    assert all((finished / entry["output"]["url"]).is_file() for entry in data["widget"])


def test_it_tells_how_the_run_was_made_and_not_of_the_photos(finished: Path) -> None:
    text = card(finished).text
    assert "from 4 photos" in text
    assert "| stage2.learning_rate | `0.001` |" in text
    assert "| token.num_vectors | `2` |" in text
    (sheet,) = re.findall(r"!\[samples\]\((.*?)\)", text)
    assert (finished / sheet).is_file()
    assert "0.png" not in text
    assert "data.photos" not in text


def test_its_python_code_draws_the_subject(finished: Path, tmp_path: Path) -> None:
    assert np.array_equal(drawn_by_its_code(finished, tmp_path), drawn_by_us(finished))


def test_its_command_draws_the_subject(finished: Path, tmp_path: Path) -> None:
    (command,) = [line for line in code(finished, "sh").splitlines() if line.startswith("twostage ")]
    arguments = f"{command} --steps 2 -o {tmp_path}".replace("twostage", f"{sys.executable} -m cli", 1)
    subprocess.run(arguments, shell=True, check=True, cwd=Path(__file__).parent.parent, capture_output=True)
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.parametrize("options", [{}, {"train": "adapter"}])
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_the_code_of_other_results_draws_them_too(tiny_recipe: Recipe, tmp_path: Path, options: dict[str, Any]) -> None:
    """A text encoder that learned, and adapters of both nets; a resolution that is not the base's."""
    assert tiny_recipe.stage2
    recipe = without(
        tiny_recipe,
        token=Token(placeholder="sks"),
        data=tiny_recipe.data.model_copy(update={"resolution": 32}),
        stage1=None,
        stage2=Stage2(steps=2, learning_rate=3e-2, batch_size=2, train_text_encoder=True, **options),
        adapter=Adapter(),
        sample=Sample(per_prompt=0),
    )
    run = train(recipe, tmp_path / "run", display=Display())
    ours, theirs = drawn_by_us(run), drawn_by_its_code(run, tmp_path)
    assert ours.shape == theirs.shape == (32, 32, 3)
    assert abs(ours - theirs).max() <= 1
    assert "widget" not in card(run).data.to_dict()
    assert ("lora" in card(run).data.tags) == bool(options)


def test_a_style_and_captions_are_told_as_such(tiny_recipe: Recipe, tmp_path: Path) -> None:
    data = Data(photos=tiny_recipe.data.photos, learnable="style", caption="in the style of {} | oil")
    recipe = without(tiny_recipe, stage2=None, data=data, sample=Sample(prompts=("a `cat`\n{}",), per_prompt=1))
    text = card(train(recipe, tmp_path / "run", display=Display())).text
    assert "taught one style" in text
    assert "shown as `in the style of <rare> | oil`" in text
    assert "| data.caption | `in the style of {} \\| oil` |" in text
    assert "1. `` a `cat` <rare> ``" in text


# The base


def test_the_licence_is_the_one_beside_the_base(tiny_base: Path, finished: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    stated = {"pipeline": "StableDiffusionPipeline"}
    assert base_facts(load_base(str(base))) == stated
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: odd\nlicense_link: LICENSE.md\n---\n# Base\n")
    facts = base_facts(load_base(str(base)))
    assert facts == stated | {"license": "other", "license_name": "odd", "license_link": "LICENSE.md"}
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    assert base_facts(load_base(str(base))) == stated
    assert base_facts(load_base("pocket")) == stated | {"license": "apache-2.0"}


def test_an_unknown_licence_is_called_unknown(finished: Path) -> None:
    data = card(finished).data
    assert (data.license, data.license_name) == ("other", "unknown")
    assert "not known here" in card(finished).text


def test_a_base_of_the_hub_is_linked_and_a_folder_is_not(finished: Path) -> None:
    folder = RunFolder(finished)
    recipe = folder.open()
    assert card(finished).data.base_model is None
    folder.facts["base_card"] = {"hub_id": "org/base", "license": "mit"}
    content = Card(folder, recipe, "me/mine", "org/base").text()
    data = ModelCard(content).data
    assert (data.base_model, data.license, data.license_name) == ("org/base", "mit", None)
    assert "base = 'org/base'" in content
    assert "hf download me/mine --local-dir mine" in content
    assert "Licence" not in content
