"""What a file names lies where it may: nothing is written, read, shown or removed elsewhere; nothing is unpacked."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cli.main import app
from tests.report.comparisons import write_run
from tests.strangers.conftest import change_json, refuse
from twostage import report
from twostage.cache import Shelf, clear
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluating import evaluate, open_run
from twostage.evaluation.encoders import load_encoders
from twostage.exporting import export
from twostage.families import load_base
from twostage.method.loop import Progress
from twostage.pushing import files_to_push
from twostage.recipe import Checkpoints
from twostage.recipe_file import load_recipe
from twostage.recipe_fork import read_recipe
from twostage.report.gallery import choose
from twostage.report.pooling import Pool
from twostage.report.reading import read_runs
from twostage.run import generate, open_finished
from twostage.run_folder import RunFolder
from twostage.subject.photos import find_photos
from twostage.subject.token_files import embedding_file_name, load_embedding


@pytest.fixture(scope="module")
def whole_delta(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exported = export(finished, "delta", tmp_path_factory.mktemp("exported") / "delta", display=Display())
    return exported.folder / next(iter(exported.files))


@pytest.fixture
def delta(whole_delta: Path, tmp_path: Path) -> Path:
    """One of the test's own."""
    return Path(shutil.copy(whole_delta, tmp_path))


def with_facts(delta: Path, **changes: Any) -> Path:
    """The same delta, with other facts in its metadata."""
    with safe_open(delta, framework="pt") as opened:
        facts = json.loads(opened.metadata()["twostage_delta"])
    save_file(load_file(delta), delta, metadata={"twostage_delta": json.dumps(facts | changes)})
    return delta


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no file of a stranger may touch, and what is in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    Image.new("RGB", (64, 64), "teal").save(folder / "mine.png")
    return folder


def untouched(folder: Path) -> bool:
    return sorted(os.listdir(folder)) == ["mine.png", "mine.txt"] and (folder / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../../../outside", "ABSOLUTE", "unet/../../../../outside", "..", ""])
def test_a_delta_writes_nowhere_but_in_its_own_folder(
    name: str, delta: Path, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp" / "tmp").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp" / "tmp"))
    name = str(outside) if name == "ABSOLUTE" else name
    for changes in ({"adapters": {name: {"r": 1}}}, {"whole": [name]}):
        refuse(lambda changes=changes: generate(with_facts(delta, **changes), "a {}"), repr(name), "not unpacked")
    assert untouched(outside)
    assert not list((tmp_path / "tmp").rglob("adapter_config.json"))


def test_a_token_names_no_file_but_one_of_letters() -> None:
    for name in ("../../x", "/etc/x", "..\\..\\x", "C:x", "a/b", "..", "<.>", "x\0y", "\n", ".bashrc", "~"):
        file = embedding_file_name(name)
        assert Path("a", file).name == file and not file.startswith(".") and file.endswith(".safetensors")
        assert not set(file) & set("/\\:~\0\n")


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".", "", "a\\b", "a\nb", "a:b", "~x"])
def test_a_recipe_s_name_is_no_path(name: str, tmp_path: Path) -> None:
    """As run folders and those of a comparison are called by it."""
    (tmp_path / "x.toml").write_text(f"name = {json.dumps(name)}\n[stage1]\nsteps = 1\nlearning_rate = 1.0\n")
    with pytest.raises(UserError, match="name = "):
        load_recipe(str(tmp_path / "x.toml"))


def test_a_base_s_index_leads_to_no_file_elsewhere(own_base: Path, tmp_path: Path) -> None:
    weights = own_base / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, tmp_path / "elsewhere.safetensors")
    for elsewhere in ("../../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "..\\x.safetensors"):
        index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), elsewhere)}
        Path(f"{weights}.index.json").write_text(json.dumps(index), encoding="utf-8")
        refuse(lambda: load_base(str(own_base)), "beside their index")


@pytest.mark.parametrize("address", ["http://x/y", "https://x/y", "file:///x/y", "s3://x/y", "//x/y", "\\\\x\\y"])
def test_a_base_is_a_folder_or_a_hub_id_and_no_address(address: str) -> None:
    refuse(lambda: load_base(address), "no folder here")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_a_model_or_in_a_token_s_place_is_refused_and_not_waited_for(own_base: Path, tmp_path: Path) -> None:
    for name in ("generation_config.json", "more.safetensors"):
        os.mkfifo(own_base / "unet" / name)
        refuse(lambda: load_base(str(own_base)), name, "pipe")
        (own_base / "unet" / name).unlink()
    os.mkfifo(own_base / "unet" / "config.json.safetensors")
    os.mkfifo(tmp_path / "token.safetensors")
    refuse(lambda: load_embedding(tmp_path / "token.safetensors"), "no file")
    refuse(lambda: load_encoders((f"dino={own_base / 'unet'}",), pocket=True), "pipe")


def test_a_report_shows_no_picture_from_outside_the_run(tmp_path: Path, outside: Path) -> None:
    data = write_run(tmp_path / "runs" / "a", "two-stage", "dog", 0)
    folder = tmp_path / "runs" / "a"
    (folder / "link.png").symlink_to(outside / "mine.png")
    secret = [str(outside / "mine.png"), "../../outside/mine.png", "link.png"]
    data["pictures"]["subject"] = (secret * 8)[: len(data["pictures"]["subject"])]
    data["result"] |= {"photos": secret[:2], "held_out": [], "photo_sha256": []}
    (folder / "recipe.toml").write_text(f"[data]\nphotos = {json.dumps(str(outside))}\n")
    change_json(folder / "run.json", photos=[{"name": "mine.png", "sha256": "0" * 64}])
    (folder / "evaluation.json").write_text(json.dumps(data))
    gallery = choose(Pool(read_runs([folder])[0]))
    assert gallery.files and not any("mine" in str(file.resolve()) for file in gallery.files.values())


def test_a_run_s_links_out_are_not_pushed(finished: Path, outside: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    folder = RunFolder(run)
    recipe = folder.open()
    assert files_to_push(folder, recipe, "me/x")
    for place in ("embedding/more.json", "unet/more", f"samples/{sorted(os.listdir(run / 'samples'))[-2]}/more.png"):
        (run / place).symlink_to(outside if place == "unet/more" else outside / "mine.txt")
        refuse(lambda: files_to_push(folder, recipe, "me/x"), "link", str(run / place))
        (run / place).unlink()


def test_an_evaluation_neither_writes_nor_removes_through_a_link(finished: Path, outside: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (outside / "pictures.json").write_text("{}")
    for place in ("evaluation", "evaluation/subject"):
        (run / place).symlink_to(outside)
        refuse(lambda: evaluate(run, display=Display()), "link", str(run / place))
        (run / place).unlink()
        (run / "evaluation").mkdir(exist_ok=True)
        (run / "evaluation" / "pictures.json").write_text("{}")
    (outside / "pictures.json").unlink()
    assert untouched(outside)


def test_a_run_that_is_gone_on_with_removes_nothing_through_a_link(
    finished: Path, outside: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    folder = RunFolder(run)
    folder.open()
    for name in ("optimizer.safetensors", "trained.safetensors"):
        (outside / name).write_bytes(b"mine")
    (run / "checkpoints").mkdir(exist_ok=True)
    for place in ("checkpoints/stage1-000001", "checkpoints/best-stage1-000002", "samples/stage2-000009", ".writing-x"):
        (run / place).symlink_to(outside)
    for step in (3, 4):
        progress = Progress(step, {"a": torch.zeros(1)}, {"b": torch.zeros(1)}, {"c": 0.0})
        folder.checkpoints.save(1, progress, Checkpoints(every=1, keep=1), best=lambda place: (1, 1))
    folder.rewind(1, 2)
    folder.checkpoints.drop(Checkpoints())
    for name in ("optimizer.safetensors", "trained.safetensors"):
        assert (outside / name).read_bytes() == b"mine"
        (outside / name).unlink()
    assert untouched(outside)


@pytest.mark.parametrize("name", ["checkpoints", "samples", "embedding", "metrics.jsonl", ".lock"])
def test_a_run_whose_parts_are_links_is_not_gone_on_with(
    name: str, finished: Path, outside: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside if "." not in name else outside / "mine.txt")
    refuse(RunFolder(run).hold, "is a link")
    assert untouched(outside)


def test_the_cache_is_cleared_of_its_own_and_not_through_a_link(cache: Path, outside: Path) -> None:
    shelf = Shelf("latents", ".x", {"a": 1})
    shelf.put(0, b"x")
    (shelf.path / "link").symlink_to(outside)
    (outside / "facts.json").write_text("{}")
    (cache / "latents" / ("0" * 32)).symlink_to(outside)
    (cache / "others").symlink_to(outside.parent)
    clear()
    (outside / "facts.json").unlink()
    assert untouched(outside) and not shelf.path.exists()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One that would leave a file outside wherever it is unpacked."""
    file = tmp_path / "theirs.zip"
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("../escaped.txt", "x")
        opened.writestr("recipe.toml", "x")
    return file


def test_archives_are_not_unpacked(archive: Path, tmp_path: Path) -> None:
    wanting = (
        lambda: load_base(str(archive)),
        lambda: find_photos(archive),
        lambda: open_finished(archive),
        lambda: open_run(archive),
        lambda: evaluate(archive),
        lambda: read_recipe(archive),
        lambda: load_encoders((f"dino={archive}",), pocket=True),
        lambda: report.build([archive], tmp_path / "report.html"),
    )
    for attempt in wanting:
        refuse(attempt, str(archive), "unpack it yourself")
    assert sorted(os.listdir(tmp_path)) == ["theirs.zip"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "two-stage", "{}", "--class", "dog"],
        ["photos", "check", "{}"],
        ["generate", "{}", "a {}"],
        ["export", "{}", "--to", "embedding"],
        ["push", "{}", "me/x"],
        ["evaluate", "{}"],
        ["compare", "two-stage", "--photos", "{}", "--class", "dog"],
    ],
)
def test_a_command_that_is_given_an_archive_says_to_unpack_it(
    words: list[str], archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive.parent)
    with pytest.raises(SystemExit) as ended:
        app([word.replace("{}", str(archive)) if word == "{}" else word for word in words])
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and "unpack it yourself" in told and "\n" not in told
    assert sorted(os.listdir(archive.parent)) == ["theirs.zip"]
