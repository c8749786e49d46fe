"""`twostage train` refuses what cannot work in one line, before anything is loaded or written."""

import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "Missing argument"),
        ("two-stag photos --class bag", "did you mean two-stage?"),
        ("two-stage --class bag", "no photos"),
        ("two-stage photos", "--class"),
        ("two-stage . --class bag", "empty or '.'"),
        ("two-stage photos --class bag --stage2.steps -3", "--stage2.steps -3: must be at least 1"),
        ("two-stage photos --class bag --learning-rate 1", "--stage1.learning-rate or --stage2.learning-rate"),
        ("two-stage photos --class bag --max_train_steps 1", "--stage1.steps or --stage2.steps"),
        ("textual-inversion photos --class bag --stage2.steps 3", "no [stage2]"),
        ("two-stage photos --class bag --resume-from-checkpoint x/y", "only 'latest'"),
        ("two-stage photos more --class bag", "more"),
        ("textual-inversion photos --class bag --with-prior-preservation", "there is no [stage2]"),
        ("dreambooth photos", "--class"),
        ("dreambooth photos --class bag --num-class-images 0", "--prior.num-class-images 0: must be at least 1"),
        ("dreambooth photos --class bag --prior.source pictures", "must be 'images', 'predictions' or 'photos'"),
        ("dreambooth photos --class bag --text-encoder-lr 1e-6", "train_text_encoder = false"),
        ("two-stage photos --class bag --mixed-precision bfloat16", "did you mean bf16?"),
        ("two-stage photos --class bag --vram lots", "--vram 'lots' is no size of memory; write it as 8GB"),
        ("two-stage photos --class bag --vram 0GB", "--vram '0GB' is no size of memory"),
        ("two-stage photos --class bag --vram 8GB", "photos does not exist"),
        ("two-stage photos --class bag --memory.weights float16", "must be 'float32' or 'bfloat16'"),
        (
            "two-stage photos --class bag --memory.weights bfloat16 --mixed-precision fp16",
            "does not go with mixed_precision = 'fp16'",
        ),
        (
            "two-stage photos --class bag --memory.step-in-backward --stage2.max-grad-norm 0 --mixed-precision fp16",
            "cannot skip a step that overflows",
        ),
    ],
)
def test_a_mistake_gets_one_line(mistake, arguments, expected):
    assert expected in mistake("train", *arguments.split())


def test_an_unset_variable_does_not_train_on_the_current_folder(mistake):
    assert "empty or '.'" in mistake("train", "two-stage", "", "--class", "bag")


def test_missing_photos_are_found_before_a_run_folder_is_made(mistake):
    mistake("train", "textual-inversion", "no-such-photos", "--class", "bag")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--class bag --class-data-dir no-such-folder", "no-such-folder does not exist"),
        ("--token.role noun", "prior preservation needs to know the class"),
        ("--class sks", "has the token sks in it"),
        ("--class bag --prior.num-inference-steps 1000", "num_inference_steps 1000"),
    ],
)
def test_a_prior_that_cannot_be_made_is_refused_before_a_run_folder_is_made(
    mistake, photos, tiny_base, cache, arguments, expected
):
    assert expected in mistake("train", "dreambooth", photos, "--base", tiny_base, *arguments.split())
    assert not cache.exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--memory.attention xformers", "memory.attention = 'xformers' cannot be had here"),
        ("--mixed-precision fp16", "needs a GPU"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_before_a_run_folder_is_made(mistake, photos, flags, expected):
    assert expected in mistake("train", "textual-inversion", photos, *flags.split(), "--class", "bag")


def test_memory_that_nothing_fits_gets_the_smallest_that_would_do(twostage, photos, tiny_base, tmp_path):
    low = "--gradient-checkpointing --mixed-precision bf16 --train-batch-size 1 --sample.per-prompt 0"
    low += " --memory.vae-tiling --memory.frozen-base 4bit --memory.activations host --memory.streamed 1"
    before = sorted(tmp_path.rglob("*"))
    chosen = ["--base", tiny_base, "--class", "bag", "--vram", "0.5GB"]
    result = twostage("train", "textual-inversion", photos, *chosen, *low.split())
    assert result.exit_code == 2
    assert "--vram 0.5GB: nothing on the ladder makes this fit; the smallest memory" in result.stderr.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_optimizers_in_8_and_4_bits_need_no_library(twostage, photos, tiny_base, monkeypatch):
    for library in ("bitsandbytes", "torchao"):
        monkeypatch.setitem(sys.modules, library, None)  # Importing it is an ImportError.
    flags = "--class bag --stage2.steps 1 --sample.per-prompt 0 --stage1.steps 1".split()
    for optimizer in ("adamw8bit", "adamw4bit"):
        chosen = ["--optimizer", optimizer, "--base", tiny_base, "-o", optimizer]
        result = twostage("train", "two-stage", photos, *flags, *chosen)
        assert result.exit_code == 0, result.output


def test_mistakes_in_flags_are_reported_together(twostage):
    result = twostage("train", "two-stage", "photos", "--seed", "x", "--stage1.steps", "0", "--data.resolution", "65")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3
