"""Runs of Stable Diffusion 3: what learns, what does not, and that stock diffusers draws it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import evaluate
from twostage.families import load_base
from twostage.planning.outlined import outline_base
from twostage.planning.rehearsal import rehearse
from twostage.recipe import Checkpoints, Data, Memory, Prior, Recipe, Sample, Stage1, Stage2, Token
from twostage.recipe_evaluation import Evaluation
from twostage.run import generate, train

PROMPT = "a photo of a <rare> backpack"
# As the stock pipeline wants it, which does not write out a token's vectors by itself.
WRITTEN_OUT = "a photo of a <rare> <rare>_1 backpack"
ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}


@pytest.fixture(scope="module")
def recipe(sd3_folder: Path, photos: Path) -> Recipe:
    """Both stages, a token of two vectors, and no pictures."""
    return Recipe(
        name="sd3",
        base=str(sd3_folder),
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


def test_a_run_keeps_all_three_rows_in_one_file(trained: Path, sd3_folder: Path) -> None:
    rows = load_file(trained / "embedding" / "rare.safetensors")
    assert {key: tuple(value.shape) for key, value in rows.items()} == {
        "clip_l": (2, 16),
        "clip_g": (2, 16),
        "t5xxl": (2, 32),
    }
    start = load_base(str(sd3_folder))
    for name, key in ENCODERS.items():
        tokenizer, table = start.tokenizers[name], start.component(name).get_input_embeddings().weight
        (red,) = tokenizer("red", add_special_tokens=False).input_ids
        assert (rows[key] - table[red]).abs().max() > 1e-2


def test_a_prompt_whose_token_t5_would_not_read_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    long = recipe.data.model_copy(update={"caption": "snow " * 80 + "{}"})
    with pytest.raises(UserError, match=r"longer than the 77 tokens .* vectors of <rare> fall off"):
        train(without(recipe, data=long), tmp_path / "run", display=Display())


@pytest.mark.parametrize(
    ("side", "why"),
    [(34, "transformer needs a multiple of 4"), (100, "the largest that .* takes is 96; its own is 32")],
)
def test_a_resolution_that_it_cannot_take_is_refused(recipe: Recipe, tmp_path: Path, side: int, why: str) -> None:
    with pytest.raises(UserError, match=f"resolution {side}: .*{why}"):
        train(without(recipe, data=recipe.data.model_copy(update={"resolution": side})), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


def test_all_of_the_transformer_learns_but_what_goes_no_further(trained: Path, sd3_folder: Path) -> None:
    ours, start = (
        load_file(path / "transformer" / "diffusion_pytorch_model.safetensors") for path in (trained, sd3_folder)
    )
    same = {name for name in start if torch.equal(ours[name], start[name])}
    asking = {f"transformer_blocks.1.attn.add_q_proj.{part}" for part in ("weight", "bias")}
    assert same == {"pos_embed.pos_embed"} | asking


def test_text_encoders_that_learn_are_the_two_clips(recipe: Recipe, sd3_folder: Path, tmp_path: Path) -> None:
    assert recipe.stage2
    stage2 = recipe.stage2.model_copy(update={"train_text_encoder": True, "steps": 2})
    run = train(without(recipe, stage2=stage2), tmp_path / "run", display=Display())
    assert {path.name for path in run.glob("text_encoder*")} == {"text_encoder", "text_encoder_2"}
    for part in ("text_encoder", "text_encoder_2"):
        ours, start = (load_file(path / part / "model.safetensors") for path in (run, sd3_folder))
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


def test_a_base_without_t5_is_trained_and_drawn_without(
    recipe: Recipe, trained: Path, sd3_without_t5: Path, tmp_path: Path
) -> None:
    run = train(without(recipe, base=str(sd3_without_t5)), tmp_path / "run", display=Display())
    assert load_file(run / "embedding" / "rare.safetensors").keys() == {"clip_l", "clip_g"}
    pipeline = stock_of(run)
    assert pipeline.text_encoder_3 is None
    assert alike(drawn_by(pipeline), drawn_from(run))
    with pytest.raises(UserError, match="learned its token for base"):
        train(recipe, tmp_path / "other", token_from=run, display=Display())


def test_strength_goes_from_the_base_to_what_was_trained(trained: Path, sd3_folder: Path) -> None:
    none, half, whole = (drawn_from(trained, strength=strength) for strength in (0.0, 0.5, 1.0))
    assert not alike(none, half) and not alike(half, whole)
    pipeline = stock_of(trained)
    assert alike(drawn_by(pipeline), whole)
    pipeline.transformer = StableDiffusion3Pipeline.from_pretrained(sd3_folder).transformer
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


def test_medium_is_known_by_name_and_of_its_published_size() -> None:
    base = outline_base("sd3")
    sizes = {name: sum(weight.numel() for weight in base.outline(name).parameters()) for name in base.family.models}
    rounded = {name: round(size / 1e6) for name, size in sizes.items()}
    assert rounded == {
        "text_encoder": 124,
        "text_encoder_2": 695,
        "text_encoder_3": 4762,
        "vae": 84,
        "transformer": 2028,
    }
    assert (base.resolution, base.multiple, base.family.largest(base.folder)) == (1024, 16, 3072)
