"""Several subjects in one run: each its own photos, class and token, stage 2 shared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.export import Options, known_formats
from twostage.exporting import export
from twostage.families import load_base
from twostage.method.examples import encode_photos, together
from twostage.recipe import AnotherSubject, Prior, Recipe, Sample, Token
from twostage.recipe_file import dump_recipe, load_recipe
from twostage.run import generate, load_pipeline, train
from twostage.subject.photos import find_photos
from twostage.subject.tokens import embedding_table

TOKENS = {"<rare>": "rare", "<odd>": "odd"}


@pytest.fixture(scope="module")
def more_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos of something else; never write to it."""
    folder = tmp_path_factory.mktemp("more")
    for name in ("0", "9"):
        Image.effect_noise((32, 32), 90).convert("RGB").save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def both(tiny_recipe: Recipe, more_photos: Path) -> Recipe:
    """Two subjects, tokens of two vectors."""
    odd = AnotherSubject(photos=more_photos, class_noun="stuffed animal", placeholder="<odd>", initializer="blue")
    sample = Sample(prompts=("a {} beside a <odd> stuffed animal",), per_prompt=1, num_inference_steps=2)
    return without(tiny_recipe, subjects=(odd,), token=Token(initializer="red", num_vectors=2), sample=sample)


@pytest.fixture(scope="module")
def taught(both: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; never write to it."""
    torch.set_num_threads(1)
    return train(both, tmp_path_factory.mktemp("runs") / "both", display=Display())


def learned(run: Path) -> dict[str, torch.Tensor]:
    return {name: load_file(run / "embedding" / f"{file}.safetensors")[name] for name, file in TOKENS.items()}


def assert_same_run(one: Path, other: Path) -> None:
    files = [path.relative_to(one) for path in sorted(one.rglob("*.safetensors")) if "checkpoints" not in path.parts]
    assert len(files) == 3
    for file in files:
        ours, theirs = load_file(one / file), load_file(other / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_token_learns_rows_of_its_own_and_no_word_changes(taught: Path, both: Recipe) -> None:
    rows = learned(taught)
    base, pipeline = load_base(both.base), load_pipeline(taught)
    before, after = embedding_table(base.text_encoder), embedding_table(pipeline.text_encoder).cpu()
    assert torch.equal(after[: len(before)], before)
    assert len(after) == len(before) + 4
    for (name, vectors), word in zip(rows.items(), ("red", "blue"), strict=True):
        start = before[base.tokenizer(word, add_special_tokens=False).input_ids].mean(0)
        assert vectors.shape == (2, before.shape[1])
        assert (vectors != start).any(dim=1).all()
        ids = pipeline.tokenizer.convert_tokens_to_ids([name, f"{name}_1"])
        assert torch.equal(after[ids], vectors)
    assert not torch.equal(*rows.values())


def test_run_json_knows_every_photo_and_recipe_toml_every_subject(
    taught: Path, both: Recipe, more_photos: Path
) -> None:
    facts = json.loads((taught / "run.json").read_text())
    assert len(facts["photos"]) == 6
    assert {photo.sha256 for photo in find_photos(more_photos)} < {photo["sha256"] for photo in facts["photos"]}
    assert "<rare> read in each" in facts["checks"]["token"]
    assert "<odd> read in each" in facts["checks"]["token"]
    assert load_recipe(str(taught / "recipe.toml")) == both


@pytest.mark.parametrize("stop", [("stage 1", 3), ("stage 2", 2)])
def test_a_stopped_run_resumes_bit_for_bit(taught: Path, both: Recipe, tmp_path: Path, stop: tuple[str, int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(both, tmp_path / "run", display=Watcher(stop, ctrl_c))
    run = train(load_recipe(str(tmp_path / "run" / "recipe.toml")), tmp_path / "run", resume=True, display=Display())
    assert_same_run(run, taught)
    assert metrics(run) == metrics(taught)


def test_a_fork_takes_every_token(taught: Path, both: Recipe, tmp_path: Path) -> None:
    run = train(without(both, subjects=()), tmp_path / "fork", token_from=taught, display=Display())
    assert_same_run(run, taught)
    other = without(both, subjects=(both.subjects[0].model_copy(update={"placeholder": "<new>"}),))
    with pytest.raises(UserError, match="learned another token: subjects"):
        train(other, tmp_path / "other", token_from=taught, display=Display())


def test_either_is_drawn_by_its_own_token(taught: Path) -> None:
    watcher = Watcher()
    prompts = ["a photo of a {}", "a photo of a <odd> stuffed animal", "a photo of a backpack"]
    pictures = generate(taught, prompts, count=1, num_inference_steps=2, display=watcher)
    assert len({picture.tobytes() for picture in pictures}) == 3
    (note,) = watcher.said
    assert "'a photo of a backpack' has neither {} nor <rare> nor <odd>" in note


@pytest.mark.parametrize("to", known_formats())
def test_every_export_carries_both(taught: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / to
    export(taught, to, out, Options(rank=2) if to == "lora" else None, display=Display())
    if to == "delta":
        (file,) = out.glob("*.safetensors")
        assert {f"embedding.{name}" for name in TOKENS} <= load_file(file).keys()
        assert generate(file, "a <odd> stuffed animal", count=1, num_inference_steps=1)
    elif to == "diffusers":
        tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
        assert len(tokenizer("<rare> <rare>_1 <odd> <odd>_1", add_special_tokens=False).input_ids) == 4
    else:
        assert {path.stem for path in out.rglob("*.safetensors")} >= set(TOKENS.values())


def test_text_encoder_that_learned_leaves_without_the_tokens(both: Recipe, tmp_path: Path) -> None:
    assert both.stage2
    recipe = without(both, stage2=both.stage2.model_copy(update={"train_text_encoder": True}))
    run = train(recipe, tmp_path / "run", display=Display())
    table = embedding_table(load_base(both.base).text_encoder)
    tuned = load_file(run / "text_encoder" / "model.safetensors")
    (name,) = [name for name in tuned if name.endswith("token_embedding.weight")]
    assert torch.equal(tuned[name], table)
    assert generate(run, "a <odd> stuffed animal", count=1, num_inference_steps=1)


def test_words_in_place_of_learned_tokens(both: Recipe, tmp_path: Path) -> None:
    """And a prior, which says whose class it keeps."""
    more = both.subjects[0].model_copy(update={"placeholder": "blue"})
    prior = Prior(preserve=True, num_class_images=2, num_inference_steps=2)
    words = without(both, stage1=None, token=Token(placeholder="red"), subjects=(more,), prior=prior)
    watcher = Watcher()
    run = train(words, tmp_path / "run", display=watcher)
    assert any("alone" in said and "backpack" in said for said in watcher.said)
    assert not (run / "embedding").exists()
    assert generate(run, ["a {}", "a blue stuffed animal"], count=1, num_inference_steps=1)
    alike = without(words, subjects=(more.model_copy(update={"placeholder": "Red"}),))
    with pytest.raises(UserError, match="two subjects share a token"):
        train(alike, tmp_path / "alike", display=Display())
    assert not (tmp_path / "alike").exists()


def test_every_photo_is_shown_as_often_with_its_own_token(tiny_base: Path, both: Recipe, more_photos: Path) -> None:
    base, cpu = load_base(str(tiny_base)), torch.device("cpu")
    data = both.data.model_copy(update={"caption": "a {}"})
    masked = [find_photos(both.data.photos) if both.data.photos else [], find_photos(more_photos)]
    parts = [encode_photos(base, own, data, phrase, 0, cpu) for own, phrase in zip(masked, ("x", "y"), strict=True)]
    assert together(parts[:1]) is parts[0]
    batch = together(parts).batch(1, 0, range(12), 12)
    assert (batch.prompts.count("a x"), batch.prompts.count("a y")) == (8, 4)


def test_a_mask_of_one_subject_leaves_the_others_whole(both: Recipe, photos: Path, tmp_path: Path) -> None:
    masked = Path(shutil.copytree(photos, tmp_path / "masked"))
    Image.new("L", (40, 32), 128).save(masked / "0-masklabel.png")
    base = load_base(both.base)
    parts = [
        encode_photos(base, find_photos(folder), both.data, "x", 0, torch.device("cpu")) for folder in (masked, photos)
    ]
    weights = together(parts).views[0].weight
    assert weights
    assert [bool((weight == 1).all()) for weight in weights] == [False] + 7 * [True]


# What is refused

HEAD = '[token]\nplaceholder = "<rare>"\n[data]\nclass_noun = "dog"\n[stage1]\nsteps = 1\nlearning_rate = 1e-3\n'


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ('photos = "p"\nclass_noun = "cat"\nplaceholder = "<rare>"', "two subjects share a token"),
        ('photos = "p"\nclass_noun = "cat"\nplaceholder = "<Rare>"', "two subjects share a token"),
        ('photos = "p"\nclass_noun = "cat"\nplaceholder = "[rare]"', "two subjects share a token"),
        ('photos = "p"\nclass_noun = "cat"\nplaceholder = "<rare>_1"', "two subjects share a token"),
        ('photos = "p"\nplaceholder = "<odd>"', r"subjects\[0\].class_noun is empty"),
        ('class_noun = "cat"\nplaceholder = "<odd>"', r"subjects\[0\].photos is missing: Folder"),
        ('photos = ""\nclass_noun = "cat"\nplaceholder = "<odd>"', r"subjects\[0\].photos: is empty"),
        ('photos = "p"\nclass_noun = "cat"', r"subjects\[0\].placeholder is missing: Its own token"),
        ('photos = "p"\nclass_noun = "c"\nplaceholder = "<odd>"\nflip = true', r"no option subjects\[0\].flip"),
    ],
)
def test_a_subject_that_cannot_be_is_refused_in_a_line(tmp_path: Path, table: str, match: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f"{HEAD}[[subjects]]\n{table}\n")
    with pytest.raises(UserError, match=match) as error:
        load_recipe(str(file))
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_refused_and_nothing_written(both: Recipe, tmp_path: Path) -> None:
    gone = both.subjects[0].model_copy(update={"photos": tmp_path / "gone"})
    with pytest.raises(UserError, match="gone does not exist"):
        train(without(both, subjects=(gone,)), tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("toy/:stuffed animal:<odd>", ("toy", "stuffed animal", "<odd>", "")),
        ("C:\\toy:cat:<odd>:red", ("C:\\toy", "cat", "<odd>", "red")),
        ("toy:cat", None),
        (":cat:<odd>", None),
        ("a:b:c:d:e", None),
    ],
)
def test_a_flag_says_it_in_one_piece(text: str, expected: Any) -> None:
    overrides = {"subjects": [text], "data.class_noun": "dog"}
    if expected is None:
        with pytest.raises(UserError, match="--subjects: .* is not PHOTOS:CLASS:TOKEN"):
            load_recipe("two-stage", overrides=overrides)
        return
    (subject,) = load_recipe("two-stage", overrides=overrides).subjects
    assert (str(subject.photos), subject.class_noun, subject.placeholder, subject.initializer) == expected


def test_the_recipe_of_a_run_reads_back_equal(both: Recipe, tmp_path: Path) -> None:
    two = without(both, subjects=(*both.subjects, both.subjects[0].model_copy(update={"placeholder": '<"q">'})))
    (tmp_path / "recipe.toml").write_text(dump_recipe(two))
    assert load_recipe(str(tmp_path / "recipe.toml")) == two
