"""What the doctor says is what is so: each thing was tried, and what is broken takes nothing else with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from twostage.display import Display
from twostage.doctor import examine
from twostage.doctor.attempts import Wrong, optimize, train_pocket
from twostage.doctor.facts import Place, find_places, look_at_place, memory_limit
from twostage.doctor.mistakes import Here, find_mistakes
from twostage.doctor.privacy import without_private
from twostage.doctor.trials import TRIALS, Trial
from twostage.doctor.trying import Tried, try_all
from twostage.pocket import pocket_folder

ROOT = Path(__file__).parent.parent
BY_KEY = {trial.key: trial for trial in TRIALS}
# Of third-party code that needs neither torch nor a network to be imported: its trial takes a moment.
QUICK = BY_KEY["packages: wandb"]


def fake(folder: Path, name: str, code: str) -> None:
    """A package that is really installed there, and really does that."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return lambda name, code: fake(tmp_path / "packages", name, code)


def carry_out(*trials: Trial, limit: float = 60.0) -> list[Tried]:
    return try_all(Display(), trials, limit)


BROKEN = {
    "raises": (r"raise ImportError('built for torch 1.9\nsee page 3')", "ImportError: built for torch 1.9 see page 3"),
    "raises what nobody expects": ("class Odd(BaseException): ...\nraise Odd('no idea')", "Odd: no idea"),
    "aborts": ("import os; os.abort()", "SIGABRT"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "leaves": ("import os; os._exit(3)", "exit code 3"),
    "says why and aborts": ("import os; os.write(2, b'no kernel image'); os.abort()", "no kernel image"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_package_is_told_with_the_reason(how: str, install: Any) -> None:
    code, reason = BROKEN[how]
    install("wandb", code)
    (tried,) = carry_out(QUICK)
    assert tried.outcome == "fails"
    assert reason in tried.says and "\n" not in tried.says


def test_a_package_that_hangs_is_told(install: Any) -> None:
    install("wandb", "import time; time.sleep(600)")
    (tried,) = carry_out(QUICK, limit=1.0)
    assert (tried.outcome, tried.says) == ("fails", "killed, or not done in 1 s")


def test_what_comes_after_a_crash_is_tried_all_the_same(install: Any) -> None:
    install("wandb", "import os; os.abort()")
    install("ray", "print('hello, I am ray')")
    crashes, works = (replace(BY_KEY[key], package="") for key in ("packages: wandb", "packages: ray"))
    assert [tried.outcome for tried in carry_out(crashes, works)] == ["fails", "works"]


def test_what_needs_what_fails_is_not_tried(install: Any) -> None:
    install("wandb", "raise ImportError")
    install("ray", "")
    needing = replace(BY_KEY["packages: ray"], package="", needs=("packages: wandb",))
    found = carry_out(replace(QUICK, package=""), needing)
    assert [tried.outcome for tried in found] == ["fails", "not tried"]


def test_what_is_not_installed_is_no_mistake() -> None:
    missing = Trial("packages", "none", QUICK.run, package="no_such_package_as_this")
    (tried,) = carry_out(missing)
    assert (tried.outcome, tried.says) == ("absent", "not installed")


def test_a_folder_with_a_packages_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results_of_mine").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert carry_out(replace(QUICK, package="results_of_mine"))[0].outcome == "absent"


def test_a_file_of_the_working_folder_takes_no_librarys_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Any
) -> None:
    install("wandb", "import json")
    (tmp_path / "json.py").write_text("raise ImportError('not the json you want')")
    monkeypatch.chdir(tmp_path)
    assert carry_out(QUICK)[0].outcome == "works"


def test_an_attention_kernel_that_aborts_leaves_a_report(install: Any) -> None:
    """diffusers imports xformers where it is installed: then nothing can be trained, and the report says why."""
    install("xformers", "import os; os.abort()")
    keys = ("libraries: import", "optimizers: adamw", "attention: xformers")
    found = examine(Display(), [BY_KEY[key] for key in keys])
    assert [tried.outcome for tried in found.tried] == ["fails", "not tried", "fails"]
    assert not found.trains
    error = found.findings[0]
    assert error.level == "error" and "SIGABRT" in error.says and "pip uninstall xformers" in error.advice


def test_the_report_does_not_import_what_it_is_about() -> None:
    """A torch that is broken is what a report may be about."""
    code = "import sys, twostage.doctor, twostage.doctor.child; print({'torch', 'numpy', 'diffusers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_broken_torch_is_told(install: Any) -> None:
    install("torch", "raise OSError('libtorch_cuda.so: cannot open shared object file')")
    found = examine(Display(), [BY_KEY["torch: computes"], BY_KEY["optimizers: adamw"]])
    assert not found.trains
    assert "OSError: libtorch_cuda.so: cannot open" in found.findings[0].says
    assert "pytorch.org" in found.findings[0].advice
    assert found.tried[1].outcome == "not tried"


class Forgetful(torch.optim.AdamW):
    """Steps as it should, and takes nothing from a checkpoint."""

    def load_state_dict(self, state_dict: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [(partial(torch.optim.SGD, lr=0.0), "lead nowhere"), (partial(Forgetful, lr=0.05), "from a checkpoint")],
    ids=["stands still", "forgets"],
)
def test_an_optimizer_that_runs_and_is_wrong_is_found_out(
    optimizer: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twostage.memory.optimizers.build_optimizer", lambda named, *_: optimizer(named.values()))
    with pytest.raises(Wrong, match=reason):
        optimize("adamw")


def test_a_pocket_model_with_other_weights_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readable, of the right shapes, and not what was trained."""
    folder = tmp_path / "pipeline"
    shutil.copytree(pocket_folder(), folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: value.flip(0) for name, value in weights.items()}, file, {"format": "pt"})
    monkeypatch.setattr("twostage.base_folder.pocket_folder", lambda: folder)
    with pytest.raises(Wrong, match="its weights are off"):
        train_pocket()


def well(**other: Any) -> Here:
    tried = [
        Tried("torch", "computes", "works", "", facts={"device": "cuda", "cuda": "13.0", "free": 8e9, "total": 8e9}),
        Tried("planning", "Stable Diffusion 1.5", "works", "", facts={"run": 34_000, "weights": 4_000}),
    ]
    here = Here(tried, [], {}, {}, "RTX 3060", 8, 32_000_000_000, None)
    return replace(here, **other)


def on_a_cpu(**facts: Any) -> list[Tried]:
    return [Tried("torch", "computes", "works", "", facts={"device": "cpu", "cuda": None} | facts)]


def place(**other: Any) -> Place:
    return replace(Place("twostage cache", Path("/here"), 0, 10**12, "ext4", ""), **other)


MISTAKES = {
    "torch without CUDA": (well(tried=on_a_cpu()), "built without CUDA", "pytorch.org"),
    "card hidden": (
        well(tried=on_a_cpu(cuda="13.0"), settings={"CUDA_VISIBLE_DEVICES": ""}),
        "CUDA_VISIBLE_DEVICES='' leaves torch none",
        "unset",
    ),
    "old driver": (
        well(tried=on_a_cpu(cuda="13.0", refusal="The NVIDIA driver on your system is too old")),
        "is too old",
        "update the driver",
    ),
    "driver that does not answer": (well(driver="nvidia-smi fails: Driver/library version mismatch"), "mismatch", ""),
    "card that others use": (
        well(tried=[Tried("torch", "computes", "works", "", facts={"device": "cuda", "free": 1e9, "total": 8e9})]),
        "only 1.0 GB are free",
        "nvidia-smi",
    ),
    "old diffusers": (well(unmet={"diffusers>=0.35": "0.30"}), "needs diffusers>=0.35, and 0.30 is installed", "pip"),
    "no permission": (well(places=[place(fault="Permission denied")]), "Permission denied", "TWOSTAGE_CACHE"),
    "no room for a run": (
        well(places=[place(name="working folder", free=33_999)]),
        "34.0 kB free in /here; the run folder",
        "--output",
    ),
    "no room for weights": (well(places=[place(name="hub cache", used=1000, free=2_999)]), "the weights", "HF_HOME"),
    "cache in memory": (well(places=[place(kind="tmpfs")]), "is memory (tmpfs)", "TWOSTAGE_CACHE"),
    "cache on a network": (well(places=[place(kind="nfs4")]), "on a network (nfs4)", "TWOSTAGE_CACHE"),
    "offline": (well(settings={"HF_HUB_OFFLINE": "1"}), "only if it has been downloaded before", "unset"),
    "one thread": (
        well(tried=on_a_cpu(), driver="", settings={"OMP_NUM_THREADS": "1"}),
        "there are 8 cores to train on",
        "unset",
    ),
    "card that is waited for": (well(settings={"CUDA_LAUNCH_BLOCKING": "1"}), "makes a card slow", "unset"),
    "other allocator": (
        well(settings={"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}),
        "predicts for torch's own allocator",
        "unset",
    ),
    "limited memory": (well(limit=8_000_000_000), "8.0 GB of the 32.0 GB", "limit of the container"),
    "slow halves": (
        well(tried=[Tried("mixed precision", "fp16", "works", "", facts={"times": 40.0})]),
        "fp16 is slow here: a matrix product took 40 times",
        "'no'",
    ),
    "broken optimizer": (
        well(tried=[Tried("optimizers", "adafactor", "fails", "odd")]),
        "adafactor fails: odd",
        "leave",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_common_mistake_is_told_once_with_what_to_do(name: str) -> None:
    here, says, advice = MISTAKES[name]
    (finding,) = find_mistakes(here)
    assert says in finding.says and advice in finding.advice


def test_where_all_is_well_nothing_is_told() -> None:
    fine = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    places = [place(), place(name="working folder"), place(name="temporary files", kind="tmpfs")]
    # Weights that lie there already need no room.
    places.append(place(name="hub cache", used=4_000, free=100))
    assert find_mistakes(well(settings=fine, places=places, limit=64_000_000_000)) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path / "file" / "cache"))
    found = {one.name: one for one in find_places()}
    assert found["twostage cache"].fault == "Not a directory"
    assert found["working folder"].fault == ""


SMALL = """
import sys
from pathlib import Path
from twostage.doctor.attempts import Wrong, optimize, train_pocket
from twostage.doctor.facts import find_places
for one in find_places():
    print(one.name, one.kind, one.free is not None and one.free <= 1 << 20, one.fault, sep="|")
"""


@pytest.mark.parametrize(
    ("options", "fills", "told"),
    [
        ("size=1m", "", "twostage cache|tmpfs|True|"),
        ("size=1m", "head -c 1048576 /dev/zero > full", "twostage cache|tmpfs|True|No space left on device"),
        ("size=1m,ro", "", "twostage cache|tmpfs|True|Read-only file system"),
    ],
    ids=["small", "full", "read-only"],
)
def test_a_cache_on_a_disk_that_is(options: str, fills: str, told: str, tmp_path: Path) -> None:
    """On a real file system, where the machine lets us mount one."""
    mount = f"mount -t tmpfs -o {options} none {tmp_path}"
    unshare = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mount], capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    command = f'{mount} && cd {tmp_path} && {fills or "true"} && exec "{sys.executable}" -c "$PROGRAM"'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PROGRAM": SMALL, "TWOSTAGE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([*unshare, command], env=environment, capture_output=True, text=True, check=True)
    assert told in done.stdout.splitlines()


def test_looking_at_a_place_leaves_nothing_behind(tmp_path: Path) -> None:
    found = look_at_place("twostage cache", tmp_path / "not" / "yet", None)
    assert (found.fault, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/user/run\n", {"user/memory.max": "2000", "user/run/memory.max": "max"}, 2000),
        ("0::/docker/1\n", {"memory.max": "3000"}, 3000),
        ("9:cpu:/x\n4:memory:/x/y\n0::/\n", {"memory/x/memory.limit_in_bytes": "4000"}, 4000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/\n", {"memory.max": "max"}, None),
    ],
    ids=["inherited", "in a container", "version 1", "version 1, none", "none"],
)
def test_the_memory_that_a_container_may_take_is_found(
    groups: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, said in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(said + "\n")
    assert memory_limit(tmp_path) == limit


def test_nothing_private_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-wandb")
    tried = Tried("packages", "x", "fails", "401 for canary-of-wandb in /home/alice/x and /tmp/torch_alice/y, alice")
    assert without_private(tried).says == "401 for *** in ~/x and /tmp/torch_USER/y, alice"
    told = {"a": ["https://alice:pass@hub.example/x hf_AbCdEfGhIjKlMnOpQrSt"], "b": Path("/home/alice/.cache")}
    assert without_private(told) == {"a": ["https://***@hub.example/x ***"], "b": Path("~/.cache")}
    assert without_private("/home/alice2/a and /data/home/alice") == "/home/alice2/a and /data/home/USER"
