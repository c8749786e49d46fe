"""Weights come from safetensors alone: a pickle is never opened, and who has one is told how to convert it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from safetensors.torch import load_file

from tests.strangers.conftest import refuse
from twostage.evaluating import open_pipeline
from twostage.evaluation.encoders import load_encoders
from twostage.families import load_base, load_part
from twostage.pocket import pocket_folder
from twostage.recipe_evaluation import Foreign
from twostage.run import load_pipeline
from twostage.subject.token_files import load_embedding

Bombs = Callable[[Path], Path]
WEIGHTS = "diffusion_pytorch_model"


def test_the_bomb_goes_off_where_it_is_read(bomb: Bombs, canary: Path, tmp_path: Path) -> None:
    torch.load(bomb(tmp_path / "x.bin"), weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("name", ["unet", "text_encoder", "vae"])
def test_a_base_of_pickles_is_refused_with_how_to_convert_it(
    name: str, own_base: Path, bomb: Bombs, canary: Path
) -> None:
    (weights,) = (own_base / name).glob("*.safetensors")
    bomb(weights.with_suffix(".bin"))
    weights.unlink()
    refuse(lambda: load_base(str(own_base)), name, "pickle", "convert it", "use_safetensors=False", "save_pretrained")
    assert not canary.exists()


def test_a_single_file_is_refused_with_how_to_convert_it(bomb: Bombs, canary: Path, tmp_path: Path) -> None:
    file = bomb(tmp_path / "it's a model.ckpt")
    message = refuse(lambda: load_base(str(file)), "pickle", "from_single_file")
    assert shlex.split(message.split("python -c ")[1])[0].startswith("from diffusers import")
    assert not canary.exists()


@pytest.mark.parametrize(("name", "stem"), [("unet", WEIGHTS), ("text_encoder", "model")])
def test_an_index_that_leads_to_pickles_is_refused(
    name: str, stem: str, own_base: Path, bomb: Bombs, canary: Path
) -> None:
    """With one safetensors file beside it, that nobody reads."""
    folder = own_base / name
    (folder / f"{stem}.safetensors").rename(folder / "decoy.safetensors")
    bomb(folder / "shard.bin")
    index = {"metadata": {}, "weight_map": {"weight": "shard.bin"}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    refuse(lambda: load_base(str(own_base)), "shard.bin", "safetensors", "convert it")
    # As a run's own, too.
    refuse(lambda: load_part(load_base("pocket").family, own_base, name), "shard.bin", "convert it")
    assert not canary.exists()


def test_an_adapter_of_a_pickle_is_refused(lora_run: Path, bomb: Bombs, canary: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    (run / "adapter" / "unet" / "adapter_model.safetensors").unlink()
    bomb(run / "adapter" / "unet" / "adapter_model.bin")
    refuse(lambda: load_pipeline(run), "adapter_model.bin", "pickle", "convert it")
    assert not canary.exists()


def test_an_encoder_of_pickles_is_refused(bomb: Bombs, canary: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pocket_folder("vit"), tmp_path / "vit"))
    (folder / "model.safetensors").unlink()
    bomb(folder / "pytorch_model.bin")
    choice = (f"dino={folder}", "dinov2=none", "clip=none")
    refuse(lambda: load_encoders(choice, pocket=True), "pytorch_model.bin", "convert it")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["token.pt", "token.bin", "token.safetensors"])
def test_an_embedding_of_a_pickle_is_refused_whatever_its_name(
    name: str, bomb: Bombs, canary: Path, tmp_path: Path
) -> None:
    file = bomb(tmp_path / name)
    refuse(lambda: load_embedding(file), name, "" if name.endswith("safetensors") else "convert it")
    assert not canary.exists()


def test_a_lora_of_a_pickle_is_refused_whatever_its_name(
    tiny_base: Path, bomb: Bombs, canary: Path, tmp_path: Path
) -> None:
    for name in ("lora.pt", "lora.safetensors"):
        foreign = Foreign(pipeline=str(tiny_base), token="sks", lora=bomb(tmp_path / name))
        refuse(lambda foreign=foreign: open_pipeline(foreign).load(1.0), name)
    refuse(
        lambda: open_pipeline(Foreign(pipeline=str(tiny_base), token="sks", lora=tmp_path / "lora.pt")), "convert it"
    )
    assert not canary.exists()


def test_a_run_of_pickles_is_refused(finished: Path, bomb: Bombs, canary: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "unet" / f"{WEIGHTS}.safetensors").unlink()
    bomb(run / "unet" / f"{WEIGHTS}.bin")
    refuse(lambda: load_pipeline(run), "safetensors")
    delta = bomb(tmp_path / "run.safetensors")
    refuse(lambda: load_pipeline(delta), "is no delta")
    refuse(lambda: load_pipeline(bomb(tmp_path / "run.pt")), "pickle")
    assert not canary.exists()


def test_the_conversion_that_is_told_works_and_opens_no_bomb(
    bomb: Bombs, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"<a>": torch.ones(1, 4)}, tmp_path / "it's.bin")
    bomb(tmp_path / "evil.bin")
    monkeypatch.chdir(tmp_path)
    scripts = []
    for name in ("it's.bin", "evil.bin"):
        message = refuse(lambda name=name: load_embedding(tmp_path / name), "; if you trust who made it, convert it: ")
        python, flag, script = shlex.split(message.split("convert it: ")[1])
        assert (python, flag) == ("python", "-c")
        scripts.append(script)
    exec(scripts[0], {})
    with pytest.raises(UnpicklingError, match="Weights only"):
        exec(scripts[1], {})
    assert load_file(tmp_path / "it's.safetensors")["<a>"].shape == (1, 4)
    assert not canary.exists()


def test_nothing_but_the_pretraining_of_the_bundled_models_reads_a_pickle() -> None:
    """That reads files of its own, and tensors alone."""
    root = Path(__file__).parents[2]
    for path in [*(root / "twostage").rglob("*.py"), *(root / "cli").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for word in ("pickle.load", "import pickle", "import joblib", "import dill", "allow_pickle", "yaml.load"):
            assert word not in text, path
        reads = [line for line in text.splitlines() if "torch.load(" in line and "torch.load({read}" not in line]
        assert all("weights_only=True" in line and "pretraining" in path.parts for line in reads), path
