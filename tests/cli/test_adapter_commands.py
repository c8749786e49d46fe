"""Adapters by nothing but the command line."""

import json

from PIL import Image

FLAGS = "--adapter.kind dora --rank 2 --lora-alpha 4 --target-modules attention --target-modules conv1".split()
SHORT = "--max_train_steps 2 --num-validation-images 0".split()


def test_an_adapter_is_trained_and_drawn_at_a_strength(twostage, tiny_base, photos, tmp_path):
    trained = twostage("train", "dreambooth-lora", photos, "--class", "backpack", "--base", tiny_base, *FLAGS, *SHORT)
    assert trained.exit_code == 0, trained.output
    (run,) = (tmp_path / "runs").iterdir()
    config = json.loads((run / "adapter" / "unet" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["r"], config["lora_alpha"]) == (True, 2, 4)
    assert any(name.endswith("conv1") for name in config["target_modules"])

    drawn = twostage("generate", run, "a {} in the snow", "-n", 1, "--steps", 2, "--strength", 0.5)
    assert drawn.exit_code == 0, drawn.output
    with Image.open(drawn.stdout.splitlines()[-1]) as picture:
        assert picture.info["strength"] == "0.5"


def test_options_of_an_adapter_that_is_not_trained_are_refused(mistake, tiny_base, photos):
    said = mistake("train", "two-stage", photos, "--class", "backpack", "--base", tiny_base, "--rank", 8)
    assert "adapter.rank = 8 would do nothing" in said
    assert "stage2.train = 'adapter'" in said


def test_a_strength_is_between_nothing_and_twice_what_was_trained(mistake):
    assert "--strength" in mistake("generate", ".", "a photo", "--strength", "-1")
    assert "--strength" in mistake("generate", ".", "a photo", "--strength", "nan")
