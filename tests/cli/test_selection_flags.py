"""Choosing between checkpoints by nothing but the command line."""

import json

from PIL import Image

BASIS = "train textual-inversion".split()
FLAGS = "--select.keep best --encoder dino=pocket --encoder clip=pocket".split()
SHORT = "--max-train-steps 4 --checkpointing-steps 2 --sample.num-inference-steps 2 --num-validation-images 1".split()


def test_the_best_checkpoint_is_kept(twostage, tiny_base, photos, tmp_path):
    Image.effect_noise((32, 32), 80).convert("RGB").save(tmp_path / "unseen.png")
    done = twostage(
        *BASIS,
        photos,
        "--class",
        "backpack",
        "--base",
        tiny_base,
        *FLAGS,
        *SHORT,
        "--held-out",
        "unseen.png",
        "-o",
        "run",
    )
    assert done.exit_code == 0, done.output
    assert "stage 1, step 2: identity" in done.stderr
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["selection"]
    assert facts["chosen"]["step"] in (2, 4)
    assert len((tmp_path / "run" / "selection.jsonl").read_text().splitlines()) == 2


def test_a_choice_without_pictures_is_refused(mistake, tiny_base, photos):
    said = mistake(*BASIS, photos, "--class", "backpack", "--base", tiny_base, *FLAGS, "--num-validation-images", 0)
    assert "select.keep = 'best'" in said
    assert "sample.per_prompt = 0" in said
