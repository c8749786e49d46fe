"""Encoders by role: found, left out or refused; and what they saw is remembered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from twostage.errors import UserError
from twostage.evaluation.embedders import ViTEmbedder
from twostage.evaluation.encoders import Encoder, load_encoders
from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics import measure
from twostage.pocket import pocket_folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Were it online by mistake, the address would still lead nowhere.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_pocket_model_has_encoders_of_its_own() -> None:
    by_role, left_out, facts = load_encoders((), pocket=True)
    assert list(by_role) == ["dino", "clip"]
    assert list(left_out) == ["dinov2"]
    assert facts["dino"] == {"source": "pocket", "sha256": by_role["dino"].sha256, "model": "ViTModel"}
    assert facts["clip"]["model"] == "CLIPModel"


def test_a_folder_takes_the_place_of_a_default(random_encoders: dict[str, Path]) -> None:
    choice = ["dino=none", f"dinov2={random_encoders['registers']}", f"clip={random_encoders['clip']}"]
    by_role, left_out, facts = load_encoders(choice, pocket=True)
    assert list(by_role) == ["dinov2", "clip"]
    assert left_out == {"dino": "switched off; name one with --encoder dino=FOLDER"}
    assert facts["dinov2"]["model"] == "Dinov2WithRegistersModel"


@pytest.mark.usefixtures("offline")
def test_what_is_missing_offline_is_left_out_with_what_to_download() -> None:
    by_role, left_out, facts = load_encoders([f"clip={pocket_folder('clip')}"], pocket=False)
    assert list(by_role) == list(facts) == ["clip"]
    assert "run 'hf download facebook/dino-vits16'" in left_out["dino"]
    assert "--encoder dinov2=FOLDER" in left_out["dinov2"]


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        (["dino"], "'dino': give ROLE=SOURCE"),
        (["dino="], "'dino=': give ROLE=SOURCE"),
        (["dimo=pocket"], "did you mean dino"),
        (["dino=none", "dino=pocket"], "dino has 'none' already"),
        (["dinov2=pocket"], "'pocket' is for dino and clip"),
        (["clip=/nowhere/at/all"], "clip=/nowhere/at/all: is no folder here"),
        (["clip={vit}"], "cannot load the clip encoder .*/vit"),
        (["dino={clip}"], "CLIPModel is no ViT"),
        (["dino={broken}"], "cannot load the dino encoder .*broken"),
        (["dino={pickled}"], "cannot load the dino encoder .*safetensors"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_a_wrong_choice_is_one_line(
    choice: list[str], complaint: str, random_encoders: dict[str, Path], tmp_path: Path
) -> None:
    broken, pickled = (shutil.copytree(random_encoders["vit"], tmp_path / name) for name in ("broken", "pickled"))
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    (pickled / "model.safetensors").unlink()
    torch.save(ViTEmbedder(random_encoders["vit"]).model.state_dict(), pickled / "pytorch_model.bin")
    folders = {**random_encoders, "broken": broken, "pickled": pickled}
    with pytest.raises(UserError, match=complaint) as error:
        load_encoders([text.format(**folders) for text in choice], pocket=True)
    assert "\n" not in str(error.value)


def test_an_encoder_is_known_by_its_weights_and_preprocessing(random_encoders: dict[str, Path], tmp_path: Path) -> None:
    # Loaded twice, since what the weights lack is made up anew each time.
    first, second = (Encoder(ViTEmbedder(random_encoders["vit"])).sha256 for _ in range(2))
    assert first == second
    other = shutil.copytree(random_encoders["vit"], tmp_path / "other")
    told = json.loads((other / "preprocessor_config.json").read_text(encoding="utf-8"))
    (other / "preprocessor_config.json").write_text(json.dumps({**told, "image_mean": [0, 0, 0]}), encoding="utf-8")
    assert Encoder(ViTEmbedder(other)).sha256 != first


@pytest.mark.parametrize("settings", [{"size": None}, {"image_mean": "x"}, {"rescale_factor": {}}])
def test_an_encoder_that_cannot_see_is_refused_when_it_is_loaded(tmp_path: Path, settings: dict[str, object]) -> None:
    folder = Path(shutil.copytree(pocket_folder("vit"), tmp_path / "vit"))
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match="cannot load the dino encoder"):
        load_encoders((f"dino={folder}", "clip=none"), pocket=True)


def test_a_picture_is_encoded_once(pictures: list[Image.Image], cache: Path) -> None:
    uncached = ViTEmbedder(pocket_folder("vit")).images(pictures)
    first, second = (load_encoders((), pocket=True).by_role["dino"] for _ in range(2))
    assert torch.equal(first.images([*pictures, pictures[0]]), torch.cat([uncached, uncached[:1]]))
    assert first.encoded == len(pictures)
    assert torch.equal(second.images(pictures), uncached)
    assert second.encoded == 0


def test_a_broken_file_of_the_cache_is_made_anew(pictures: list[Image.Image], cache: Path) -> None:
    encoder = load_encoders((), pocket=True).by_role["dino"]
    expected = encoder.images(pictures[:3])
    files = sorted(cache.rglob("*.f32"))
    assert len(files) == 3
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-5])
    files[2].write_bytes(files[2].read_bytes()[:-1] + b"\xff")
    assert torch.equal(encoder.images(pictures[:3]), expected)
    assert encoder.encoded == 6


def test_measuring_again_encodes_nothing(pictures: list[Image.Image]) -> None:
    drawn = Shots(pictures[:4], ("a", "b"), (0, 0, 1, 1), plain=("a dog", "a cat"))
    sets = {"subject": drawn, "seen": Shots(pictures[4:6]), "unseen": Shots(pictures[6:])}
    again = []
    for _ in range(2):
        encoders = load_encoders((), pocket=True).by_role
        figures, _ = measure(Material(sets, encoders))
        again.append((figures, sum(encoder.encoded for encoder in encoders.values())))
    assert again[0][0] == again[1][0]
    assert [encoded for _, encoded in again] == [2 * len(pictures), 0]
