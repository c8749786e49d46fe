"""The kinds of input, and the verbs that read each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.fuzz.material import CLASS, EVALUATION, Material
from twostage import report
from twostage.benching import find_subjects
from twostage.comparing.check import photos_of
from twostage.comparing.jobs import plan_jobs
from twostage.comparing.place import find_place
from twostage.comparing.record import Record
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import evaluate, evaluate_result, open_pipeline
from twostage.evaluation.encoders import load_encoders
from twostage.evaluation.suites import load_suite
from twostage.exporting import export
from twostage.families import load_base
from twostage.method.sampling import assemble, check_steps
from twostage.model_card import write_card
from twostage.photo_doctor import check_photos
from twostage.pushing import files_to_push
from twostage.recipe import Data
from twostage.recipe_evaluation import Foreign
from twostage.recipe_file import dump_recipe, load_recipe
from twostage.run import generate, load_pipeline, open_finished, train
from twostage.subject.captions import all_prompts
from twostage.subject.held_out import find_held_out, leaks
from twostage.subject.photos import find_photos, load_mask, load_photo, open_photo
from twostage.token_doctor import inspect_token

Read = Callable[[Material, Path, Random], None]
SILENT = Display()


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: for people.
        source: what is copied to be damaged, by its name among the material; `{}` is one of `of`.
        read: reads the copy, with the verbs that would; a random one where they are many.
        share: how many of the inputs are of it.
        of: what may stand in `source`.
        only: pattern of the files that are damaged.
        writes: what the verbs may change in the copy; names of its top. None is everything.
    """

    name: str
    source: str
    read: Read
    share: int
    of: tuple[str, ...] = ("",)
    only: str = "*"
    writes: tuple[str, ...] | None = ()

    def targets(self, folder: Path) -> list[Path]:
        """The files that may be damaged, in an order of their own."""
        return sorted(path for path in folder.rglob(self.only) if path.is_file())


# Photos


def read_photos(material: Material, folder: Path, rng: Random) -> None:
    data = Data(photos=folder, class_noun=CLASS)
    photos = find_photos(folder)
    all_prompts(photos, data, f"<rare> {CLASS}")
    for photo in photos:
        open_photo(photo)
        load_photo(photo, 16, "crop")
        load_photo(photo, 16, "pad")
        load_mask(photo, (16, 16), (8, 8), "crop")
    leaks(photos[:1], photos)


def examine_photos(material: Material, folder: Path, rng: Random) -> None:
    check_photos(folder, folder.parent / "out", base=str(material.folder / "base"), display=SILENT)


def hold_out(material: Material, folder: Path, rng: Random) -> None:
    for file in sorted(folder.iterdir()):
        if file.suffix != ".txt" and "masklabel" not in file.name:
            find_held_out(Data(held_out=(file,)))


def learn_photos(material: Material, folder: Path, rng: Random) -> None:
    recipe = material.recipe(data=Data(photos=folder, class_noun=CLASS, held_out=(material.folder / "held-out.png",)))
    train(recipe, folder.parent / "out" / "run", display=SILENT)


# Bases


def learn_base(material: Material, folder: Path, rng: Random) -> None:
    train(material.recipe(base=str(folder)), folder.parent / "out" / "run", display=SILENT)


def draw_base(material: Material, folder: Path, rng: Random) -> None:
    base = load_base(str(folder))
    base.content_hash  # noqa: B018  It reads every file.
    for name in base.family.models:
        base.outline(name)
    check_steps(base, 4)
    pipeline = assemble(base)
    pipeline("a backpack", num_inference_steps=4, height=16, width=16, output_type="np")


def inspect_base(material: Material, folder: Path, rng: Random) -> None:
    inspect_token(str(folder), "sks")


# Runs


def resume(material: Material, folder: Path, rng: Random) -> None:
    recipe = load_recipe(str(folder)) if rng.random() < 0.8 else material.long_recipe
    train(recipe, folder, resume=True, display=SILENT)
    try:
        open_finished(folder)
        load_pipeline(folder)
    except ValueError as error:
        raise AssertionError("what the resumed run has written is not whole") from error
    assert not list(folder.rglob(".writing-*")), "something is left unfinished"


def draw(material: Material, folder: Path, rng: Random) -> None:
    options = {"strength": rng.choice((1.0, 1.0, 0.5)), "away_from": rng.choice(("own", "base"))}
    generate(folder, ["a {}", "snow"], count=1, num_inference_steps=2, display=SILENT, **options)


def export_run(material: Material, folder: Path, rng: Random) -> None:
    to = rng.choice(("diffusers", "comfyui", "a1111", "lora", "delta", "embedding"))
    export(folder, to, folder.parent / "out" / "export", display=SILENT)


def measure_run(material: Material, folder: Path, rng: Random) -> None:
    evaluate(folder, EVALUATION, output=folder.parent / "out", display=SILENT)


def describe_run(material: Material, folder: Path, rng: Random) -> None:
    run, recipe = open_finished(folder)
    try:
        files_to_push(run, recipe, "me/mine")
    except (OSError, ValueError) as error:  # Which `push` tells as its own.
        raise UserError(" ".join(str(error).split())) from error
    write_card(run, recipe)


def fork_run(material: Material, folder: Path, rng: Random) -> None:
    train(material.recipe(), folder.parent / "out" / "run", token_from=folder, display=SILENT)


def report_run(material: Material, folder: Path, rng: Random) -> None:
    report.build([folder], folder.parent / "out" / "report.html")


def read_run(material: Material, folder: Path, rng: Random) -> None:
    """One of the verbs, those that read most more often."""
    rng.choice((draw, draw, draw, export_run, measure_run, describe_run, fork_run))(material, folder, rng)


# What is given by hand


def draw_delta(material: Material, folder: Path, rng: Random) -> None:
    generate(
        folder / f"{'two-stage' if folder.name == 'whole' else 'lora'}.safetensors",
        "a {}",
        count=1,
        num_inference_steps=2,
        display=SILENT,
    )


def measure_foreign(material: Material, folder: Path, rng: Random) -> None:
    given = (
        {"lora": folder / "lora.safetensors"} if folder.name == "lora" else {"embedding": folder / "rare.safetensors"}
    )
    foreign = Foreign(pipeline=str(material.folder / "base"), token="<rare>", class_noun=CLASS, **given)
    result = open_pipeline(foreign)
    evaluate_result(result, folder.parent / "out", EVALUATION, SILENT)


def read_words(material: Material, folder: Path, rng: Random) -> None:
    for file in sorted(folder.iterdir()):
        if file.suffix == ".txt":
            load_suite(str(file), class_noun=rng.choice((CLASS, "dog")))
        else:
            dump_recipe(load_recipe(str(file)))


def read_lists(material: Material, folder: Path, rng: Random) -> None:
    find_subjects(folder)


def see(material: Material, folder: Path, rng: Random) -> None:
    encoders = load_encoders((f"dino={folder}", "dinov2=none", "clip=none"), pocket=True)
    pictures = [open_photo(photo) for photo in find_photos(material.folder / "photos")]
    encoders.by_role["dino"].images(pictures)


# Comparisons


def go_on_comparing(material: Material, folder: Path, rng: Random) -> None:
    request, cells = material.request()
    record = Record(find_place(str(folder)))
    record.open(request)
    record.begin(request, cells, command="", threads=1, steps={}, photos=photos_of(cells))
    plan_jobs(find_place(str(folder)), cells, EVALUATION)
    report.build([folder], folder / "report.html")


# The cache


def learn_from_cache(material: Material, folder: Path, rng: Random) -> None:
    name = rng.choice(("cached", "cached-paths"))
    recipe = material.cache_recipe if name == "cached" else material.path_recipe
    run = train(recipe, folder.parent / "out" / "run", display=SILENT)
    assert digest_of(run) == digest_of(material.folder / name), "damage to the cache changed a result"


def measure_from_cache(material: Material, folder: Path, rng: Random) -> None:
    output = folder.parent / "out"
    found = evaluate(material.folder / "runs" / "two-stage", EVALUATION, output=output, display=SILENT)
    kept = evaluate(material.folder / "runs" / "two-stage", EVALUATION, output=output, display=SILENT)
    assert found["figures"] == kept["figures"], "a second evaluation gives other figures"
    intact = (material.folder / "cached-evaluation" / "evaluation.json").read_text(encoding="utf-8")
    assert (output / "evaluation.json").read_text(encoding="utf-8") == intact, "damage to the cache changed figures"


def digest_of(run: Path) -> str:
    """Of what a run has learned."""
    digest = hashlib.sha256()
    for name in ("embedding", "unet"):
        for file in sorted((run / name).rglob("*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


_RUNS = ("two-stage", "two-stage", "both", "token", "lora", "dora", "loha", "oft")

KINDS = (
    Kind("photos, read", "pictures", read_photos, 20),
    Kind("photos, examined", "pictures", examine_photos, 8),
    Kind("photos, held out", "pictures", hold_out, 4),
    Kind("photos, learned", "photos", learn_photos, 3),
    Kind("base, learned", "base", learn_base, 12),
    Kind("base, drawn with", "base", draw_base, 12),
    Kind("base, inspected", "base", inspect_base, 3),
    Kind("interrupted run", "interrupted", resume, 24, writes=None),
    Kind("finished run", "runs/{}", read_run, 26, of=_RUNS, writes=("README.md",)),
    Kind("evaluated run", "runs/two-stage", report_run, 6, only="evaluation*"),
    Kind("delta", "given/{}", draw_delta, 12, of=("whole", "adapter")),
    Kind("LoRA", "given/lora", measure_foreign, 5, only="lora.safetensors"),
    Kind("embedding", "given/embedding", measure_foreign, 5),
    Kind("suite or recipe", "words", read_words, 12),
    Kind("data set's list", "data-set", read_lists, 3, only="*.txt"),
    Kind("encoder", "encoder", see, 4),
    Kind("comparison", "comparison", go_on_comparing, 14, only="*.json", writes=("compare.json", "report.*")),
    Kind("cache, learned from", "cache", learn_from_cache, 16, writes=None),
    Kind("cache, measured from", "cache", measure_from_cache, 6, writes=None),
)


def use(cache: Path, temporary: Path) -> None:
    """The cache and the place for temporary files, of an input of its own."""
    temporary.mkdir(parents=True, exist_ok=True)
    os.environ["TWOSTAGE_CACHE"], os.environ["TMPDIR"] = str(cache), str(temporary)
