"""`twostage doctor`: one report of what works here, for people and for programs, and nothing private in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from twostage.recipe import Memory

ROOT = Path(__file__).parents[2]
CANARIES = {
    "HF_TOKEN": "canary-hf-token",
    "WANDB_API_KEY": "canary-wandb-key",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-secret",
    "MY_OWN_VARIABLE": "canary-of-no-name",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Everything, tried once; with a package that fails and says a secret."""
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "packages" / "wandb").mkdir(parents=True)
    code = "import os\nraise ImportError('refused with ' + os.environ['WANDB_API_KEY'])"
    (folder / "packages" / "wandb" / "__init__.py").write_text(code)
    path = os.pathsep.join([str(ROOT), str(folder / "packages")])
    environment = os.environ | CANARIES | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TWOSTAGE_CACHE": str(folder)}
    command = [sys.executable, "-m", "cli", "doctor", "--json"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_everything_that_works_here_was_tried(report):
    found = json.loads(report.stdout)
    assert report.returncode == 0 and found["trains"], report.stderr
    outcomes = {(one["area"], one["name"]): one["outcome"] for one in found["tried"]}
    optimizers = get_args(Memory.model_fields["optimizer"].annotation)
    kept = [form for form in get_args(Memory.model_fields["frozen_base"].annotation) if form != "full"]
    must = [("torch", "computes"), ("libraries", "import"), ("training", "pocket model"), ("attention", "float32")]
    must += [("optimizers", name) for name in optimizers] + [("frozen base", form) for form in kept]
    must += [("mixed precision", "bf16"), ("planning", "Stable Diffusion 1.5")]
    assert {key: outcomes[key] for key in must} == dict.fromkeys(must, "works")
    assert "not tried" not in {outcome for (area, _), outcome in outcomes.items() if area == "optimizers"}


def test_what_fails_is_told_and_does_not_end_the_report(report):
    found = json.loads(report.stdout)
    (wandb,) = (one for one in found["tried"] if one["name"] == "wandb")
    assert wandb["outcome"] == "fails" and "refused with ***" in wandb["says"]
    assert any("pip uninstall wandb" in one["advice"] for one in found["findings"])


def test_no_secret_and_no_other_variable_is_told(report):
    told = report.stdout + report.stderr
    assert "canary" not in told
    assert not {name for name in CANARIES if name in told}
    assert json.loads(report.stdout)["settings"]["OMP_NUM_THREADS"] == "1"


def test_it_says_what_a_report_needs(report):
    found = json.loads(report.stdout)
    assert {"twostage", "python", "torch", "diffusers"} <= {*found["versions"]}
    assert {"system", "memory", "processor", "NVIDIA driver"} <= {*found["machine"]}
    assert {one["name"] for one in found["places"]} >= {"working folder", "twostage cache", "hub cache"}
    assert all(isinstance(one["free"], int) for one in found["places"])


BROKEN_TORCH = "raise OSError('libcudart.so: cannot open shared object file')"


def test_where_nothing_can_be_trained_it_says_so_and_fails(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(BROKEN_TORCH)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "cli", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert "nothing can be trained here" in error and "libcudart.so" in error and "pytorch.org" in error
    assert "Traceback" not in done.stderr
    assert "tried\ttorch: computes\tfails\tOSError: libcudart.so" in done.stdout
    assert "versions\tpython\t" in done.stdout
