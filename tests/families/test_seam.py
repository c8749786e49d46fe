"""What families have in common, whichever they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import T5Config, T5EncoderModel

from tests.watching import without
from twostage.display import Display
from twostage.families import known_families, load_base
from twostage.families.stable_diffusion import StableDiffusion
from twostage.flow import FlowMatching
from twostage.method.denoiser import checkpoint_gradients
from twostage.method.sampling import assemble, check_steps
from twostage.planning.rehearsal import rehearse
from twostage.recipe import Recipe, Token
from twostage.run import generate, train


class Flowing(StableDiffusion):
    """As if a Stable Diffusion had learned a flow."""

    def noise_scheduler(self, folder: Path) -> FlowMatching:
        return FlowMatching.read(folder / "scheduler")


class Lacking(StableDiffusion):
    """What is asked for where an index says that there is no image encoder."""

    absent = ("image_encoder",)


class Choosing(StableDiffusion):
    def without(self, absent: Any) -> StableDiffusion:
        return Lacking() if "image_encoder" in absent else self


@pytest.fixture
def own_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may change."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_a_base_is_of_the_family_that_does_without_what_its_index_lacks(
    own_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(known_families(), "StableDiffusionPipeline", Choosing())
    index = own_base / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8"))
    for told, kind in ((parts | {"image_encoder": [None, None]}, Lacking), ({"safety_checker": [None] * 2}, Choosing)):
        index.write_text(json.dumps({name: parts[name] for name in parts if name != "image_encoder"} | told))
        base = load_base(str(own_base))
        assert type(base.family) is kind
    assert "image_encoder" not in base.settings
    assert base.settings["denoiser"] == json.loads((own_base / "unet" / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_flow_is_drawn_in_any_number_of_steps(own_base: Path, monkeypatch: pytest.MonkeyPatch, dynamic: bool) -> None:
    """Its highest level is the last timestep, which other schedulers do not have."""
    monkeypatch.setitem(known_families(), "StableDiffusionPipeline", Flowing())
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic).save_pretrained(own_base / "scheduler")
    index = own_base / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8")) | {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    }
    index.write_text(json.dumps(parts))
    base = load_base(str(own_base))
    assert type(assemble(base).scheduler) is FlowMatchEulerDiscreteScheduler
    for steps in (1, 25, 2000):
        check_steps(base, steps)


def test_a_text_encoder_that_recomputes_drops_nothing_out() -> None:
    """Recomputing is for training mode alone, and in that mode T5's attention would drop out."""
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.5)
    encoder, ids = T5EncoderModel(config).eval(), torch.arange(32).view(2, 16)
    right = encoder(ids)[0]
    checkpoint_gradients(encoder)
    found = encoder(ids)[0]
    assert any(module.training for module in encoder.modules())
    assert torch.equal(found, right)
    weights = list(encoder.parameters())
    ours, theirs = (torch.autograd.grad(states.square().sum(), weights) for states in (found, right))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_text_encoders_that_were_trained_are_asked_on_the_host_too(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There they are asked before the denoiser is read, and then forgotten."""
    assert tiny_recipe.stage2
    stage2 = tiny_recipe.stage2.model_copy(update={"train_text_encoder": True, "steps": 2, "learning_rate": 1e-2})
    run = train(without(tiny_recipe, stage1=None, stage2=stage2, token=Token(placeholder="sks")), tmp_path / "run")
    drawn = []
    for on_host, strength in ((False, 1.0), (True, 1.0), (False, 0.5), (True, 0.5)):
        monkeypatch.setattr(StableDiffusion, "text_on_host", on_host)
        (picture,) = generate(run, "sks", count=1, num_inference_steps=2, strength=strength, display=Display())
        drawn.append(np.asarray(picture).astype(int))
    for beside, on_host in (drawn[:2], drawn[2:]):
        assert np.abs(beside - on_host).max() <= 1
    assert np.abs(drawn[0] - drawn[2]).max() > 1


def test_a_plan_has_text_encoders_that_stay_on_the_host_there(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for on_host in (False, True):
        monkeypatch.setattr(StableDiffusion, "text_on_host", on_host)
        found.append({phase.name: phase for phase in rehearse(tiny_recipe).phases}["stage 1"])
    size = sum(weight.nbytes for weight in load_base(tiny_recipe.base).text_encoder.parameters())
    card, host = ([getattr(phase, name) for phase in found] for name in ("allocated", "host"))
    assert not host[0] and host[1] >= size
    assert card[0] - card[1] >= size
