import pytest

from tests.watching import without
from twostage.display import Display
from twostage.exporting import export as export_run
from twostage.recipe import Adapter, Recipe, Sample, Stage2
from twostage.run import train


@pytest.fixture
def export(tmp_path):
    """Export a run, silently, to a folder of the test's own."""

    def run(source, to, options=None, name="out"):
        return export_run(source, to, tmp_path / name, options, display=Display())

    return run


@pytest.fixture(scope="session")
def lora_run(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory):
    """A rank-stabilised LoRA on every layer it can have, convolutions and text encoder too; never write to it."""
    assert tiny_recipe.stage1
    recipe = without(
        tiny_recipe,
        stage1=tiny_recipe.stage1.model_copy(update={"steps": 1}),
        stage2=Stage2(steps=2, learning_rate=2e-2, batch_size=2, train="adapter", train_text_encoder=True),
        adapter=Adapter(kind="rslora", rank=2, alpha=3.0, target_modules=("all",)),
        sample=Sample(per_prompt=0),
    )
    return train(recipe, tmp_path_factory.mktemp("runs") / "lora", display=Display())
