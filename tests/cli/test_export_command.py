"""`twostage export` prints where what lies and how near it is, and refuses what cannot be exported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.watching import Watcher, ctrl_c
from twostage.recipe import Recipe
from twostage.run import train

ROOT = Path(__file__).parents[2]


def test_the_output_says_where_what_is_and_how_to_load_it(twostage: Any, finished: Path, tmp_path: Path) -> None:
    result = twostage("export", finished, "--to", "comfyui", "-o", "out", "--dtype", "bfloat16")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("out/embeddings/rare.safetensors  0.2 kB")
    assert lines[1].startswith("out/finished.safetensors  0.2 MB")
    assert 'from_single_file("out/finished.safetensors", config="' in result.stdout
    assert lines[-1].startswith("loaded again by diffusers, it draws the run's picture but for 0.")
    assert "(limit 8)" in lines[-1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["embeddings", "finished.safetensors"]


def test_a_delta_is_a_run_to_generate_too(twostage: Any, finished: Path, tmp_path: Path) -> None:
    assert twostage("export", finished, "--to", "delta", "-o", "out").exit_code == 0
    result = twostage("generate", "out/finished.safetensors", "a {}", "-n", 1, "--steps", 2)
    assert result.stdout.splitlines() == ["out/generated/0001-a.png"]
    assert (tmp_path / "out" / "generated" / "0001-a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--to", "comfi"], "did you mean comfyui?"),
        (["--to", "ckpt"], "there are a1111, comfyui, delta, diffusers, embedding, lora"),
        (["--to", "shared"], "no such format"),
        ([], "--to"),
        (["--to", "a1111", "--rank", "4"], "--to a1111 has no --rank; it takes --dtype"),
        (["--to", "embedding", "--dtype", "float32"], "--to embedding has no --dtype; it takes --naming"),
        (["--to", "lora", "--naming", "peft"], "--naming"),
        (["--to", "lora", "--dtype", "fp8"], "--dtype"),
        (["--to", "lora", "--rank", "many"], "--rank"),
        (["--to", "lora", "--rank", "0"], "at least 1"),
        (["--to", "lora"], "give the --rank"),
    ],
)
def test_a_mistake_gets_one_line(mistake: Any, finished: Path, arguments: list[str], expected: str) -> None:
    assert expected in mistake("export", finished, *arguments, "-o", "out")


def test_what_is_no_run_is_told(mistake: Any, finished: Path) -> None:
    assert "no run folder" in mistake("export", "nowhere", "--to", "lora")
    assert "holds no run" in mistake("export", ".", "--to", "lora")
    assert "is no delta" in mistake("export", finished / "recipe.toml", "--to", "a1111", "-o", "out")


def test_an_unfinished_run_is_told_how_to_go_on(mistake: Any, tiny_recipe: Recipe, tmp_path_factory: Any) -> None:
    run = tmp_path_factory.mktemp("runs") / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, run, display=Watcher(("stage 1", 2), ctrl_c))
    assert "not finished" in mistake("export", run, "--to", "embedding", "-o", "out")


def test_a_place_that_cannot_be_written_is_found_before_the_work(mistake: Any, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write anywhere")
    assert "not yours to write" in mistake("export", finished, "--to", "lora", "--rank", "4", "-o", "locked/out")


def test_a_full_disk_is_one_line_and_leaves_nothing(finished: Path, tmp_path: Path) -> None:
    """On a real file system of 100 kilobytes, where the machine lets us mount one."""
    mount = f"mount -t tmpfs -o size=100k none {tmp_path}"
    unshare = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mount], capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    command = f'{mount} && "{sys.executable}" -m cli export {finished} --to a1111 -o {tmp_path}/out; ls -A {tmp_path}'
    done = subprocess.run([*unshare, command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot write" in line
    assert "No space left" in line
    assert "Traceback" not in done.stderr


def test_help_names_every_format(twostage: Any) -> None:
    assert "a1111|comfyui|delta|diffusers|embedding|lora" in twostage("export", "--help").stdout
