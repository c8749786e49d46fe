"""The rules of the house that no linter knows."""

import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sorted(path for folder in ("twostage", "cli", "recipes") for path in (ROOT / folder).rglob("*.py"))
OURS = SOURCES + sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = [_module(path) for path in SOURCES if path.name != "__main__.py"]


def test_sources_are_found():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_grows_beyond_350_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)


def test_every_folder_of_code_is_installed():
    """The list of packages is written by hand: two folders are renamed on the way in."""
    there = {_module(path.parent / "__init__.py") for path in SOURCES}
    renamed = {name if name.startswith("twostage") else f"twostage.{name}" for name in there}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(renamed)
    assert all((path.parent / "__init__.py").is_file() for path in SOURCES)


def test_a_wheel_holds_the_one_name_twostage_and_all_data(tmp_path):
    # From a copy, since setuptools leaves build folders where it builds.
    source = tmp_path / "source"
    for folder in ("twostage", "cli", "recipes"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (ROOT / "pyproject.toml", ROOT / "LICENSE", *ROOT.glob("README.md")):
        shutil.copy(file, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"twostage"}
    for folder, place in {"twostage": "twostage", "recipes": "twostage/recipes", "cli": "twostage/cli"}.items():
        for path in (source / folder).rglob("*"):
            assert path.is_dir() or f"{place}/{path.relative_to(source / folder).as_posix()}" in names


@pytest.mark.parametrize("module", ["cli.main", "twostage.recipe", "twostage.recipe_file", "twostage.errors"])
def test_help_never_waits_for_torch(module):
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_constraints_pin_every_dependency():
    """What was tested is what `make` installs."""
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    project = PROJECT["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        assert requirement.split(">")[0] in pinned
