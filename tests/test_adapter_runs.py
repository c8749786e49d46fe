"""Runs whose stage 2 trains an adapter: what they leave, how they resume, and what stock libraries draw from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import Adapter, Checkpoints, Recipe, Sample, Stage2, Token
from twostage.run import generate, train

KINDS = ("lora", "rslora", "dora", "loha", "lokr", "oft", "boft")

# Stock peft, here the judge, tries to compile for BOFT and says that it cannot; and it asks
# transformers in a way that is going out.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Failed to load the CUDA extension",
    "ignore:Setting boft_n_butterfly",
    "ignore:`is_gradient_checkpointing`:FutureWarning",
)


@pytest.fixture
def adapted(tiny_recipe: Recipe) -> Recipe:
    """A rare token and three steps of a LoRA, large ones."""
    return without(
        tiny_recipe,
        token=Token(placeholder="sks"),
        stage1=None,
        stage2=Stage2(steps=3, learning_rate=1e-1, batch_size=2, train="adapter"),
        adapter=Adapter(target_modules=("attention+ff",)),
        sample=Sample(per_prompt=0),
        checkpoints=Checkpoints(every=1),
    )


def stage2(recipe: Recipe, **changes: Any) -> Stage2:
    assert recipe.stage2
    return recipe.stage2.model_copy(update=changes)


def tensors(run: Path, part: str = "unet") -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / part / "adapter_model.safetensors")


def assert_same_adapters(one: Path, other: Path) -> None:
    parts = sorted(folder.name for folder in (one / "adapter").iterdir())
    assert parts == sorted(folder.name for folder in (other / "adapter").iterdir())
    for part in parts:
        ours, theirs = tensors(one, part), tensors(other, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def apart(one: Image.Image, other: Image.Image) -> int:
    """Largest difference of two pictures, of 255."""
    return int(abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def stock(base: str, prompt: str, run: Path | None = None, token: bool = False) -> Image.Image:
    """What diffusers and peft draw from a run's files, or from the base's."""
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    if run:
        pipeline.unet = PeftModel.from_pretrained(pipeline.unet, run / "adapter" / "unet").base_model.model
    if run and (run / "adapter" / "text_encoder").is_dir():
        read = PeftModel.from_pretrained(pipeline.text_encoder, run / "adapter" / "text_encoder")
        pipeline.text_encoder = read.base_model.model
    if run and token:
        pipeline.load_textual_inversion(run / "embedding" / "rare.safetensors", token="<rare>")
    picture: Image.Image = pipeline(
        prompt, generator=torch.Generator("cpu").manual_seed(0), num_inference_steps=3, guidance_scale=5.0
    ).images[0]
    return picture


def ours(run: Path, strength: float = 1.0) -> Image.Image:
    return generate(run, "a {}", count=1, num_inference_steps=3, guidance_scale=5.0, strength=strength)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_each_kind_draws_what_stock_peft_draws_from_its_files(
    adapted: Recipe, tmp_path: Path, kind: str
) -> None:
    recipe = without(adapted, adapter=Adapter(kind=kind, target_modules=("attention+ff",)))
    run = train(recipe, tmp_path / "run", display=Display())
    files = sorted(path.relative_to(run).as_posix() for path in run.rglob("adapter/**/*") if path.is_file())
    assert files == ["adapter/unet/adapter_config.json", "adapter/unet/adapter_model.safetensors"]
    assert not (run / "unet").exists()
    assert len(metrics(run)) == 3
    kept = load_file(run / "checkpoints" / "stage2-000002" / "trained.safetensors")
    assert len(kept) == len(tensors(run))

    before, after = stock(recipe.base, "a sks backpack"), stock(recipe.base, "a sks backpack", run)
    assert apart(before, after) > 4
    assert apart(ours(run), after) <= 1
    assert ours(run, 0).tobytes() == before.tobytes()
    assert min(apart(ours(run, 0.5), before), apart(ours(run, 0.5), after)) > 1


def test_two_stages_leave_a_token_and_an_adapter_that_stock_loads(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = without(
        tiny_recipe, stage2=stage2(tiny_recipe, train="adapter", learning_rate=3e-2, train_text_encoder=True)
    )
    run = train(recipe, tmp_path / "run", display=Display())
    assert not (run / "unet").exists()
    assert not (run / "text_encoder").exists()
    expected = stock(recipe.base, "a <rare> backpack", run, token=True)
    assert apart(ours(run), expected) <= 1
    last = Image.open(run / "samples" / "stage2-000006" / "prompt1-1.png")
    drawn = generate(run, recipe.sample.prompts[0], count=1, num_inference_steps=2)[0]
    assert apart(drawn, last) <= 1  # Drawn with the adapter apart.


def test_a_text_encoders_adapter_learns_at_its_own_rate(adapted: Recipe, tmp_path: Path) -> None:
    def run(name: str, rate: float) -> Path:
        options = stage2(adapted, train_text_encoder=True, text_encoder_learning_rate=rate)
        return train(without(adapted, stage2=options), tmp_path / name, display=Display())

    def size(run: Path) -> float:
        """Of the thick half of each pair of matrices, which starts at 0."""
        return sum(float(tensor.norm()) for name, tensor in tensors(run, "text_encoder").items() if "lora_B" in name)

    slow, fast = run("slow", 1e-6), run("fast", 1e-2)
    assert 0 < size(slow) < size(fast) / 1e3
    assert {name.split(".")[-3] for name in tensors(slow, "text_encoder")} == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert apart(ours(fast), stock(adapted.base, "a sks backpack", fast)) <= 1


@pytest.mark.parametrize(
    "options",
    [{"kind": "lora", "dropout": 0.5}, {"kind": "lokr", "dropout": 0.3}, {"kind": "boft", "dropout": 0.5}, {}],
    ids=lambda options: "-".join(map(str, options.values())) or "lora",
)
def test_an_interrupted_run_ends_as_an_unbroken_one_even_with_dropout(
    adapted: Recipe, tmp_path: Path, options: dict[str, Any]
) -> None:
    recipe = without(adapted, adapter=Adapter(**options), stage2=stage2(adapted, train_text_encoder=True))
    torch.manual_seed(1)
    unbroken = train(recipe, tmp_path / "unbroken", display=Display())
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 2", 2), ctrl_c))
    resumed = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert_same_adapters(resumed, unbroken)
    assert metrics(resumed) == metrics(unbroken)


def test_dropout_is_there_in_training_and_gone_in_pictures(adapted: Recipe, tmp_path: Path) -> None:
    dropping = without(adapted, adapter=Adapter(dropout=0.5), sample=Sample(per_prompt=1, num_inference_steps=2))
    run = train(dropping, tmp_path / "dropping", display=Display())
    plain = train(without(adapted, adapter=Adapter()), tmp_path / "plain", display=Display())
    assert metrics(run)[1]["loss"] != metrics(plain)[1]["loss"]
    last = Image.open(run / "samples" / "stage2-000003" / "prompt1-1.png")
    drawn = generate(run, dropping.sample.prompts[0], count=1, num_inference_steps=2)[0]
    assert apart(drawn, last) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing_but_memory(adapted: Recipe, tmp_path: Path, kind: str) -> None:
    options = Adapter(kind=kind, dropout=0.0 if kind == "oft" else 0.3)
    plain = without(adapted, adapter=options, stage2=stage2(adapted, train_text_encoder=True))
    saving = without(plain, stage2=stage2(plain, gradient_checkpointing=True))
    runs = [train(recipe, tmp_path / str(index), display=Display()) for index, recipe in enumerate((plain, saving))]
    losses = [[line["loss"] for line in metrics(run)] for run in runs]
    norms = [[line["grad_norm"] for line in metrics(run)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_base_in_half_precision_the_adapter_learns_in_float32(
    adapted: Recipe, tmp_path: Path, kind: str
) -> None:
    recipe = without(adapted, adapter=Adapter(kind=kind), mixed_precision="bf16", sample=Sample(num_inference_steps=2))
    run = train(recipe, tmp_path / "run", display=Display())
    assert {tensor.dtype for tensor in tensors(run).values()} == {torch.float32}
    assert all(np.isfinite(line["loss"]) for line in metrics(run))
    assert apart(ours(run), stock(recipe.base, "a sks backpack", run)) <= 1


def test_a_written_recipe_reproduces_the_run(adapted: Recipe, tmp_path: Path) -> None:
    from twostage.recipe_file import load_recipe

    recipe = without(adapted, adapter=Adapter(kind="dora", rank=3, alpha=1.5, target_modules=("all", "attn2.to_k")))
    run = train(recipe, tmp_path / "run", display=Display())
    assert_same_adapters(train(load_recipe(str(run)), tmp_path / "again", display=Display()), run)


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ("to_keys",)}, "to_keys.*nearest are"),
        ({"kind": "oft", "target_modules": ("conv1",)}, "3x3 Conv2d"),
    ],
)
def test_a_bad_target_is_told_before_anything_is_written(
    adapted: Recipe, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train(without(adapted, adapter=Adapter(**options)), tmp_path / "run", display=Display())
    assert not list(tmp_path.iterdir())


def test_a_run_whose_adapter_is_gone_is_told_in_one_line(adapted: Recipe, tmp_path: Path) -> None:
    run = train(adapted, tmp_path / "run", display=Display())
    (run / "adapter" / "unet" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the adapter") as error:
        ours(run)
    assert "\n" not in str(error.value)


def test_the_base_keeps_its_bits_through_a_run(adapted: Recipe, tmp_path: Path) -> None:
    """What training held in memory, its adapter set aside, is the base's file."""
    import gc

    held: dict[str, torch.Tensor] = {}

    def look() -> None:
        for thing in gc.get_objects():
            if type(thing) in (UNet2DConditionModel, CLIPTextModel) and hasattr(thing, "peft_config"):
                held.update({f"{type(thing).__name__}.{name}": p.clone() for name, p in thing.state_dict().items()})

    recipe = without(adapted, stage2=stage2(adapted, train_text_encoder=True))
    train(recipe, tmp_path / "run", display=Watcher(("stage 2", 3), look))
    kept = {name.replace(".base_layer.", "."): tensor for name, tensor in held.items()}
    base = Path(recipe.base)
    for part in (
        UNet2DConditionModel.from_pretrained(base / "unet"),
        CLIPTextModel.from_pretrained(base / "text_encoder"),
    ):
        for name, tensor in part.state_dict().items():
            assert torch.equal(kept[f"{type(part).__name__}.{name}"], tensor)
