"""The verb `push`: a finished run on the Hugging Face hub. What goes there is what is listed here, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from twostage.errors import UserError
from twostage.model_card import FILE, Card, result_samples
from twostage.reading import read_json
from twostage.recipe import Recipe
from twostage.recipe_file import dump_recipe
from twostage.run_folder import RunFolder, result_folders

# Of run.json: neither the photos' names and captions, nor where anything lies on this machine.
_FACTS = ("versions", "device", "seconds", "peak_memory_bytes", "checks", "base_card", "finished")


def check_push(repo: str) -> None:
    """Make sure that a push can be tried at all, before hours of training that should end in one; asks nobody.

    Raises:
        UserError: the name is none that the hub takes, or there is no token to log in with.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no name for a hub repository: {_line(error)}; write it as user/name") from error
    if not get_token():
        raise UserError("no Hugging Face token to push with: log in with `hf auth login`, or set HF_TOKEN")


def push(run: Path, repo: str, *, public: bool = False) -> str:
    """Put a finished run on the Hugging Face hub: results, recipe, last samples, and a model card.

    Never the photos, their names or captions of their own; neither checkpoints nor optimizer state.

    Args:
        run: the run folder; it is only read.
        repo: user/name, or a name alone for one of your own. It is made where it is missing.
        public: make it public; private otherwise. One that is there already stays what it is.

    Returns:
        Where it is, a URL.

    Raises:
        UserError: `run` is no finished run, or the hub did not take it; the run is as it was.
    """
    check_push(repo)
    folder = RunFolder(Path(run))
    recipe = folder.open()
    if not folder.finished:
        raise UserError(f"the run in {run} is not finished; go on with: twostage train {run} --resume")
    api = HfApi()
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        files = files_to_push(folder, recipe, made.repo_id)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(made.repo_id, operations, commit_message=f"Add {recipe.name} run")
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # The library passes on what its transports raise, and those have no common class.
        raise UserError(
            f"the hub did not take {repo}: {_reason(error)}; the run is whole: try again with "
            f"`twostage push {run} {repo}`"
        ) from error
    return str(made)


def files_to_push(folder: RunFolder, recipe: Recipe, repo: str) -> dict[str, Path | bytes]:
    """Names in the repository, and the files or the bytes they are made of.

    Args:
        folder: of a finished run, its facts read.
        recipe: the run's.
        repo: user/name.

    Raises:
        UserError: one is a link that leads out of the folder.
    """
    local = os.path.isdir(os.path.expanduser(recipe.base))
    # A path on this machine is nobody's business, and leads nowhere on another.
    base = Path(recipe.base).name if local else recipe.base
    shown = recipe.model_copy(
        update={
            "base": base,
            "data": recipe.data.model_copy(update={"photos": None, "held_out": ()}),
            "subjects": tuple(more.model_copy(update={"photos": Path("photos")}) for more in recipe.subjects),
            "prior": recipe.prior.model_copy(update={"class_images": None}),
            "select": recipe.select.model_copy(update={"encoders": ()}),
        }
    )
    files: dict[str, Path | bytes] = {
        FILE: Card(folder, recipe, repo, base).text().encode(),
        "recipe.toml": dump_recipe(shown).encode(),
        "run.json": (json.dumps(_public_facts(folder.facts, base), indent=2) + "\n").encode(),
    }
    found = [path for name in result_folders() for path in sorted((folder.path / name).rglob("*"))]
    if samples := result_samples(folder):
        found += sorted([*samples.glob("*.png"), samples.with_name(f"{samples.name}.png")])
    for path in found:
        if not path.resolve().is_relative_to(folder.path.resolve()):
            raise UserError(f"{path} is a link to a file that is no part of the run; put the file itself there to push")
        if path.is_file() and not path.name.startswith("."):
            files[path.relative_to(folder.path).as_posix()] = path
    if local:
        files |= _without_path(files, base)
    return files


def _public_facts(facts: dict[str, Any], base: str) -> dict[str, Any]:
    known = {name: facts[name] for name in _FACTS if name in facts}
    origin = {"from": {"recipe": facts["from"]["recipe"]}} if "from" in facts else {}
    identity = {"base": {"name": base, "sha256": facts.get("base", {}).get("sha256")}}
    return known | identity | origin | {"num_photos": facts.get("num_photos", len(facts.get("photos", [])))}


def _without_path(files: dict[str, Path | bytes], base: str) -> dict[str, Path | bytes]:
    """PEFT's descriptions, which name the base, with no more than its name."""
    described: dict[str, Path | bytes] = {}
    for name, path in files.items():
        if name.endswith("adapter_config.json") and isinstance(path, Path):
            config = read_json(path)
            described[name] = json.dumps(config | {"base_model_name_or_path": base}, indent=2).encode()
    return described


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if status in (401, 403):
        return (
            f"your token may not write there ({status}); log in with `hf auth login`, or set HF_TOKEN to one that may"
        )
    return _line(error) or type(error).__name__


def _line(error: Exception) -> str:
    """What an error says, in one line of reasonable length."""
    return " ".join(str(error).split())[:300].rstrip(".")
