"""Photos in, pictures out, by nothing but the command line."""

import pytest
from PIL import Image

TINY = (
    "--stage1.steps 2 --stage2.steps 2 --train-batch-size 2 --num-validation-images 1 --sample.num-inference-steps 2 "
    "--initializer-token red"
).split()


@pytest.fixture
def trained(twostage, tiny_base, photos):
    """Train once into runs/; returns the answer."""
    return twostage("train", "two-stage", photos, "--class", "backpack", "--base", tiny_base, *TINY)


def test_train_then_generate(trained, twostage, mistake, photos, tiny_base, tmp_path):
    assert trained.exit_code == 0, trained.output
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == f"two-stage-{photos.name}"
    assert "twostage generate" in trained.stdout
    assert (run / "recipe.toml").is_file()

    drawn = twostage("generate", run, "a photo of a {} in the snow", "-n", 2, "--steps", 2)
    assert drawn.exit_code == 0, drawn.output
    paths = drawn.stdout.splitlines()
    assert len(paths) == 2
    for path in paths:
        with Image.open(path) as picture:
            assert picture.size == (16, 16)

    again = mistake("train", "two-stage", photos, "--class", "backpack", "--base", tiny_base, *TINY)
    assert "--resume" in again

    resumed = twostage("train", run, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "finished" in resumed.stderr
    assert list((tmp_path / "runs").iterdir()) == [run]
