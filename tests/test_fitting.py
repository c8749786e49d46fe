"""A run fits what it is given, and goes on where that was too little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageChops
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook

from tests.watching import Watcher, ctrl_c, metrics, without
from twostage import fitting, run
from twostage.display import Display, Update
from twostage.errors import UserError
from twostage.lack import OutOfMemory
from twostage.memory.ladder import changed_recipe, climb
from twostage.recipe import Checkpoints, Memory, Recipe, Sample, Stage2
from twostage.recipe_file import load_recipe
from twostage.run_folder import RunFolder


@pytest.fixture
def short(tiny_recipe: Recipe) -> Recipe:
    """Stage 2 alone, whose activations are most of what it takes; no pictures."""
    stage2 = Stage2(steps=3, learning_rate=1e-3, batch_size=16)
    return without(tiny_recipe, stage1=None, stage2=stage2, sample=Sample(prompts=(), per_prompt=0))


@pytest.fixture
def lowest(short: Recipe) -> Recipe:
    """The same at the end of the ladder, with steps enough to run out of memory in."""
    stage2 = Stage2(steps=9, learning_rate=1e-3, batch_size=1)
    *_, last = climb(without(short, stage2=stage2, checkpoints=Checkpoints(every=1)))
    return last.recipe


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


class Lacking(Watcher):
    """Has the `at`-th module that a stage asks find no memory: torch's own error, for more than any machine has."""

    def __init__(self, hook: Callable[[Any], Any], at: int, again: bool = False) -> None:
        super().__init__()
        self._hook, self._at, self._again = hook, at, again

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        if not label.startswith("stage") or not self._at:
            yield lambda done, **numbers: None
            return
        asked = 0

        def ask(*_: Any) -> None:
            nonlocal asked
            asked += 1
            if asked == self._at:
                self._at = self._at if self._again else 0
                torch.empty(1 << 55)

        handle = self._hook(ask)
        try:
            yield lambda done, **numbers: None
        finally:
            handle.remove()


# Before the run


def test_a_recipe_that_fits_is_trained_as_it_is_bit_for_bit(short: Recipe, tmp_path: Path) -> None:
    plain = run.train(short, tmp_path / "plain", display=Display())
    fitted = fitting.train(short, tmp_path / "fitted", "16GB", display=Display())
    assert_same_weights(plain, fitted)
    assert metrics(plain) == metrics(fitted)
    assert (plain / "recipe.toml").read_text() == (fitted / "recipe.toml").read_text()
    assert facts(plain)["measured"]["stage2"].keys() == {"resident"}
    assert "plan" not in facts(plain)


def test_one_that_does_not_is_changed_by_the_first_rung_that_makes_it_fit(short: Recipe, tmp_path: Path) -> None:
    short = without(short, stage2=Stage2(steps=2, learning_rate=1e-3, batch_size=256))
    watcher = Watcher()
    folder = fitting.train(short, tmp_path / "run", "1070MB", display=watcher)
    trained = load_recipe(str(folder / "recipe.toml"))
    assert trained.stage2 and trained.stage2.gradient_checkpointing
    assert "to fit 1070MB: gradient checkpointing (stage2.gradient_checkpointing = true)" in watcher.said
    plan = facts(folder)["plan"]
    assert (plan["asked"], plan["rung"], plan["of"]) == ("1070MB", "gradient checkpointing", "memory")
    assert plan["changes"]["stage2.gradient_checkpointing"] is True
    assert trained == changed_recipe(short, plan["changes"])
    found = facts(folder)["measured"]["stage2"]
    assert found["predicted"] == plan["predicted"]["stage 2"]["allocated"]
    assert found["allocated"] == pytest.approx(found["predicted"], rel=0.05)
    assert any(line.startswith("stage 2 takes ") and ", predicted " in line for line in watcher.said)


def test_where_nothing_fits_nothing_is_written(lowest: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--vram 0.5GB: .*the smallest memory that would do has 2GB"):
        fitting.train(lowest, tmp_path / "run", "0.5GB", display=Display())
    assert not (tmp_path / "run").exists()


def test_auto_is_what_the_machine_has(short: Recipe, tmp_path: Path) -> None:
    watcher = Watcher()
    folder = fitting.train(short, tmp_path / "run", "auto", display=watcher)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < facts(folder)["plan"]["bytes"] <= there
    assert any(line.startswith("--vram auto: ") for line in watcher.said)


def test_an_interrupted_run_is_resumed_by_the_command_it_was_begun_with(short: Recipe, tmp_path: Path) -> None:
    short = without(short, stage2=Stage2(steps=3, learning_rate=1e-3, batch_size=128))
    with pytest.raises(KeyboardInterrupt):
        fitting.train(short, tmp_path / "run", "1050MB", display=Watcher(("stage 2", 1), ctrl_c))
    changes = facts(tmp_path / "run")["plan"]["changes"]
    assert changes
    run.train(short, tmp_path / "run", resume=True, display=Display())
    changed = changed_recipe(short, changes)
    assert changed and load_recipe(str(tmp_path / "run" / "recipe.toml")) == changed
    assert_same_weights(tmp_path / "run", run.train(changed, tmp_path / "unbroken", display=Display()))


@pytest.mark.parametrize("state", ["finished", "held by another process"])
def test_fitting_a_run_that_cannot_go_on_changes_nothing_in_it(short: Recipe, tmp_path: Path, state: str) -> None:
    """Else its recipe would name options that it was not trained with."""
    folder = run.train(short, tmp_path / "run", display=Display())
    other = RunFolder(folder)
    if state != "finished":
        other.open()
        other.hold()
        other.update(finished=False)
    before = {name: (folder / name).read_bytes() for name in ("run.json", "recipe.toml")}
    with nullcontext() if state == "finished" else pytest.raises(UserError, match="another process is at work"):
        fitting.train(short, folder, "auto", resume=True, display=Display())
    assert {name: (folder / name).read_bytes() for name in before} == before
    other.let_go()


# Out of memory


def assert_same_weights(one: Path, other: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_run_that_lacks_memory_says_how_to_go_on_and_keeps_its_last_step(short: Recipe, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="--resume --vram auto") as caught:
        run.train(short, tmp_path / "run", display=Lacking(register_module_forward_hook, 300))
    assert isinstance(caught.value, UserError)
    step = caught.value.step
    assert step == caught.value.kept > 0
    assert (tmp_path / "run" / "checkpoints" / f"stage2-{step:06d}").is_dir()
    run.train(short, tmp_path / "run", resume=True, display=Display())
    assert_same_weights(tmp_path / "run", run.train(short, tmp_path / "unbroken", display=Display()))


def test_within_a_limit_it_goes_one_rung_down_and_on_after_the_last_step(short: Recipe, tmp_path: Path) -> None:
    watcher = Lacking(register_module_forward_hook, 300)
    folder = fitting.train(short, tmp_path / "run", "16GB", display=watcher)
    (entry,) = facts(folder)["plan"]["lacked"]
    assert (entry["from"], entry["to"]) == ("the recipe as it is", "gradient checkpointing")
    assert entry["step"] > 0
    assert any(f"out of memory in stage 2 after step {entry['step']}, going on there" in line for line in watcher.said)
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3]
    # Recomputed activations are the same bits, so the run is the one that lacked nothing.
    assert_same_weights(folder, run.train(short, tmp_path / "unbroken", display=Display()))


def test_weights_that_had_begun_to_move_are_given_up_for_the_newest_checkpoint(short: Recipe, tmp_path: Path) -> None:
    fused = without(
        short,
        memory=Memory(step_in_backward=True),
        stage2=short.stage2.model_copy(update={"max_grad_norm": 0.0, "steps": 4}),  # type: ignore[union-attr]
        checkpoints=Checkpoints(every=2),
    )
    watcher = Lacking(register_module_full_backward_hook, 700)
    folder = fitting.train(fused, tmp_path / "run", "16GB", display=watcher)
    (entry,) = facts(folder)["plan"]["lacked"]
    assert any("had begun to move weights" in line for line in watcher.said)
    assert entry["step"] == 2
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
    unbroken = metrics(run.train(fused, tmp_path / "unbroken", display=Display()))
    # A hook on the backward pass adds gradients up in another order.
    assert [line["loss"] for line in metrics(folder)] == pytest.approx([line["loss"] for line in unbroken], rel=1e-4)


def test_at_the_end_of_the_ladder_there_is_one_line_and_a_checkpoint(lowest: Recipe, tmp_path: Path) -> None:
    watcher = Lacking(register_module_forward_hook, 600, again=True)
    with pytest.raises(UserError, match="nothing further down the ladder takes less") as caught:
        fitting.train(lowest, tmp_path / "run", "16GB", display=watcher)
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert len(str(caught.value).splitlines()) == 1
    assert not facts(tmp_path / "run")["finished"]


def test_pictures_are_drawn_fewer_together_where_that_is_too_many(finished: Path) -> None:
    plain = run.generate(finished, "a {}", count=3, num_inference_steps=2, display=Display())
    lacking = Lacking(register_module_forward_hook, 100)
    with lacking.progress("stage", 1):
        drawn = run.generate(finished, "a {}", count=3, num_inference_steps=2, display=Display())
    differences = [ImageChops.difference(one, other).getextrema() for one, other in zip(plain, drawn, strict=True)]
    assert all(high <= 2 for bands in differences for _, high in bands)


def test_a_process_whose_memory_is_really_short_trains_to_the_end_in_less(
    short: Recipe, tmp_path: Path, cache: Path
) -> None:
    """After its first step all memory is taken but for what a lower rung needs."""
    recipe = without(short, stage2=Stage2(steps=2, learning_rate=1e-3, batch_size=512))
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    code = """
        import re, resource, sys
        from contextlib import contextmanager, nullcontext
        from pathlib import Path
        import torch
        from twostage import fitting
        from twostage.display import Display
        from twostage.recipe import Recipe

        FREE = 150 << 20
        BLOCK = 1 << 20

        def data():
            return int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

        class Tight(Display):
            taken = []

            def say(self, text):
                print(text)

            @contextmanager
            def progress(self, label, total, done=0):
                def update(done, **numbers):
                    if (label, done) != ("stage 2", 1) or self.taken:
                        return
                    limit = data() + FREE
                    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
                    try:
                        while True:
                            self.taken.append(torch.ones(BLOCK // 4))
                    except RuntimeError:
                        del self.taken[-FREE // BLOCK :]
                yield update

        torch.set_num_threads(1)
        recipe = Recipe.model_validate_json(Path("recipe.json").read_text())
        fitting.train(recipe, Path("run"), "16GB", display=Tight())
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    # Or else glibc raises it as it goes, and what is freed stays in the process.
    environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 17)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lacked = facts(tmp_path / "run")["plan"]["lacked"]
    assert lacked[0]["step"] == 1
    assert "out of memory in stage 2 after step 1, going on there" in done.stdout
    assert facts(tmp_path / "run")["finished"]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
