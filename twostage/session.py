"""One session of a run: device and processes, clock, display, and what is saved when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from PIL import Image
from torch import nn

from twostage.checkpoints import Place, checkpoint_name
from twostage.display import Display
from twostage.errors import UserError
from twostage.families import Base
from twostage.fork import Parent
from twostage.gauge import Prediction
from twostage.identity import check_identity, identity
from twostage.machine import facts_of
from twostage.memory.heap import keep_freed_memory
from twostage.memory_watch import MemoryWatch
from twostage.method.kernels import set_precision
from twostage.method.loop import Progress, StageLoop, Step
from twostage.method.precision import number_format
from twostage.method.selfcheck import PATIENCE, SelfCheck
from twostage.processes import start_accelerator
from twostage.recipe import Recipe
from twostage.recipe_file import differences
from twostage.run_folder import RunFolder
from twostage.selection import Selection
from twostage.stopping import Stopping
from twostage.subject.photos import Photo
from twostage.tracking import Tracking, check_installed

DrawSamples = Callable[[], list[Image.Image]]


class Session:
    """From opening the run folder to marking the run finished, or to being interrupted.

    Attributes:
        recipe: what is run.
        folder: where it is written.
        accelerator: device, precision and processes.
        tracking: the experiment tracker.
        reached_stage: the one to go on with; 0 where the run starts.
        has_token: whether the token was taken from another run, so that there is no stage 1 to do.
        checks: what the self-checks have found, for run.json.
        selection: what decides between checkpoints; None where nobody asked.
        attention: whose kernels the U-Net attends by, "sdpa" or "xformers".
    """

    attention = "sdpa"
    _check: SelfCheck

    def __init__(
        self, recipe: Recipe, folder: RunFolder, display: Display, prediction: Prediction | None = None
    ) -> None:
        self.recipe, self.folder = recipe, folder
        check_installed(recipe)
        self.accelerator = start_accelerator(recipe, folder)
        self.is_main = self.accelerator.is_main_process
        self.tracking = Tracking(self.accelerator, recipe)
        self.display = display if self.is_main else Display()
        self.device: torch.device = self.accelerator.device
        if self.device.type == "cpu" and prediction is None:  # Where memory is to be fitted, all that is free counts.
            keep_freed_memory()
        set_precision(recipe.speed, self.device)
        self.reached_stage, self.has_token, self._resumes = 0, False, False
        self.checks: dict[str, Any] = {}
        self.selection: Selection | None = None
        self._progress: Progress | None = None
        self._seconds: dict[str, float] = {}
        self._phases: list[str] = []
        self._counted = 0.0
        self._stopping = Stopping(folder, self.display, self.accelerator.num_processes > 1)
        self._memory = MemoryWatch(folder, self.device, self.display, prediction, self.is_main)

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Of the U-Net while it does not train; of what trains, memory.weights decides."""
        return number_format(self.recipe.mixed_precision)

    def open(self, resume: bool) -> bool:
        """Check the output before anything is loaded; False where there is nothing left to do.

        Raises:
            UserError: the output cannot take a new run, or holds none to resume, or one of another recipe.
        """
        self._resumes = resume
        if not resume:
            self.folder.check_free()
            return True
        stored = self.folder.open()
        if self.is_main and not self.folder.finished:
            self.folder.hold()
            stored = self.folder.open()  # It may have gone on since.
        changed = differences(stored, self.recipe)
        if changed:
            raise UserError(
                f"{self.folder.path} was begun with another recipe: {', '.join(changed)}; resume it with its own "
                f"({self.folder.path / 'recipe.toml'}), or choose a new output"
            )
        if self.folder.finished:
            self.display.say(f"{self.folder.path} is finished; there is nothing to resume")
        self._seconds = dict(self.folder.facts.get("seconds", {}))
        self.checks = dict(self.folder.facts.get("checks", {}))
        return not self.folder.finished

    def prepare_selection(self, photos: Sequence[Photo], held_out: Sequence[Photo]) -> None:
        """Load what measures checkpoints, where the recipe wants that; call it before `begin`, on every process.

        Raises:
            UserError: an encoder or a held-out photo is missing.
        """
        if self.recipe.select.wanted:
            self.selection = Selection(self.recipe, self.folder, photos, held_out, self.display, self.is_main)

    def begin(
        self,
        base: Base,
        photos: list[Photo],
        held_out: list[Photo],
        class_images: list[Photo],
        parent: Parent | None = None,
    ) -> None:
        """Write the first files of a new run, or find where an interrupted one stood.

        Raises:
            UserError: base, photos, those held out or the user's class images are not those the run was begun with;
                the folder cannot be written.
        """
        step, facts = 0, identity(base, self.accelerator.num_processes, photos, held_out, class_images)
        self.has_token = parent is not None or "from" in self.folder.facts
        if parent and parent.differs(facts["photos"]):
            self.display.say(f"note: the token of {parent.folder.path} was learned from other photos")
        for photo in held_out:
            if parent and parent.has_seen(photo):
                self.display.say(f"note: the held-out photo {photo.path} leaks: the token was learned from it")
        if self._resumes:
            check_identity(self.folder, facts)
            step = self._find_progress()
        self.accelerator.wait_for_everyone()
        if self.is_main:
            if self._resumes:
                self.folder.rewind(self.reached_stage, step)
                self.folder.checkpoints.prune(self.recipe.checkpoints, self._best)
            else:
                facts = facts_of(self.device) | facts
                if parent:
                    facts["from"] = parent.facts
                self.folder.create(self.recipe, facts, parent.embeddings if parent else None)
            self._save_facts(attention=self.attention, **self._memory.facts)
        if parent:
            self.accelerator.wait_for_everyone()  # All read the token from the folder.
        try:
            self.tracking.start(self.folder, resumes=self._resumes)
        except UserError:
            if self.is_main and not self._resumes:
                self.folder.abandon()
            raise

    def _find_progress(self) -> int:
        """Read the newest checkpoint; the step it is of, or 0."""
        found, newest = self.folder.checkpoints.newest(), self.folder.checkpoints.newest_place()
        if newest and (not found or newest != (found[0], found[1].step)):
            self.display.say(f"note: the checkpoint {checkpoint_name(*newest)} is damaged, and passed over")
        if not found:
            self.display.say("no checkpoint yet: starting")
            return 0
        self.reached_stage, self._progress = found
        self.display.say(f"going on after step {self._progress.step} of stage {self.reached_stage}")
        return self._progress.step

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time within towards `name` in run.json, and towards no phase around it.

        Raises:
            OutOfMemory: what is within needs more than there is.
        """
        self._count_seconds()
        self._phases.append(name)
        try:
            with self._memory.within(name):
                yield
        finally:
            self._count_seconds()
            self._phases.pop()

    def _count_seconds(self) -> None:
        """Add what has passed since this was last called to the innermost phase."""
        now = time.perf_counter()
        if self._phases:
            name = self._phases[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._counted
        self._counted = now

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within it, Ctrl-C and SIGTERM end a stage with a checkpoint, and anything else at once, and it is said how to
        go on; facts and trackers are kept then.
        """
        try:
            with self._memory.within(""), self._stopping.on_signals():
                yield
        except (UserError, KeyboardInterrupt):
            if self.is_main:
                with suppress(UserError):  # On a full disk, it is the first error that tells what is missing.
                    self._save_facts()
            self.tracking.end()
            raise

    def run_stage(self, loop: StageLoop, steps: int, nets: Mapping[str, nn.Module], draw_samples: DrawSamples) -> None:
        """Run a stage from where it stands, saving checkpoints and drawing samples on the way.

        Args:
            loop: of the stage.
            steps: it has.
            nets: what it asks, by name; what does not train in them has to keep its bits.
            draw_samples: draws the recipe's sample pictures with the weights as they are when it is called.

        Raises:
            UserError: the stage has taught nothing, or something else; see `SelfCheck`.
            OutOfMemory: there was not enough for a step; the one before is saved, where it still stands.
            KeyboardInterrupt: someone asked to stop; a checkpoint was saved.
        """
        name = f"stage{loop.stage}"
        with self.phase("checks"), loop.gathered():
            patience = round(PATIENCE / (1 - self.recipe.data.caption_dropout))
            check = SelfCheck(loop.stage, loop.trained, nets, patience)
        check.outcome.update(self.checks.get(name, {}))
        self.checks[name], self._check = check.outcome, check
        if self._progress and self.reached_stage == loop.stage:
            loop.restore(self._progress)
            check.restore(self._progress.numbers.get("selfcheck"))
            self._progress = None  # As large as the U-Net and its optimizer state.
        due, ends = self.recipe.checkpoints.due, False
        if loop.step == steps or loop.step and due(loop.step):
            # Whoever stops at a checkpoint leaves without its samples.
            ends = self._look(loop, steps, draw_samples)
        looks, stopping = check.look_at_gradients, self._stopping
        progress = self.display.progress(f"stage {loop.stage}", steps, loop.step)
        with stopping.leaving(loop, self._save), self.phase(name), progress as update:
            for step in [] if ends else self._memory.steps(loop, nets, looks, self._save, stopping.between_batches):
                self._log(step)
                update(step.step, loss=step.loss, lr=step.lr)
                stop = self._asked_to_stop()
                if stop or step.step == steps or due(step.step):
                    # The run's last step is followed by its result, which needs no optimizer state to go on from.
                    last = step.step == steps and not (loop.stage == 1 and self.recipe.stage2)
                    if not last:
                        self._save(loop)
                    if stop and not last:
                        stopping.leave()
                    with stopping.at_once():
                        ends = self._look(loop, steps, draw_samples)
                    if last:
                        stopping.hold()  # No checkpoint of this step is there to go on from.
                    if ends:
                        break
        loop.settle()
        self._settle_on_best(loop)
        if skipped := loop.broken.skipped:
            check.outcome["skipped"] = f"{skipped} of {loop.step} steps, whose loss or gradient was not finite"
            self.display.say(f"note: stage {loop.stage} skipped {check.outcome['skipped']}")
        with self.phase("checks"):
            check.look_at_result()
        self.accelerator.free_memory()

    def finish(self, write_last: Callable[[], None], **facts: Any) -> None:
        """Mark the run finished, and add facts to run.json.

        Args:
            write_last: writes what tells of these facts, before the run counts as finished: a kill leaves nothing out.
            facts: to add.
        """
        if self.is_main:
            if self.selection:
                facts["selection"] = self.selection.facts()
            self._save_facts(**facts)
            write_last()
            self._save_facts(finished=True)
        self.tracking.end()

    def _log(self, step: Step) -> None:
        if self.is_main:
            self.folder.log(step)
        self.tracking.log(step)

    def _asked_to_stop(self) -> bool:
        """Whether any process was asked, so that all stop at the same step."""
        return self._sum(self._stopping.asked) > 0

    def _sum(self, number: int) -> int:
        """Over all processes; exact below 2^24."""
        if self.accelerator.num_processes == 1:
            return int(number)
        return int(self.accelerator.reduce(torch.tensor(float(number), device=self.device), "sum"))

    def _save(self, loop: StageLoop) -> None:
        if not self.is_main:
            return
        with self.phase("save"):
            self._save_facts()  # First: who goes on from the checkpoint does not find anew what was found before it.
            progress = loop.progress()
            progress.numbers["selfcheck"] = self._check.progress()
            self.folder.checkpoints.save(loop.stage, progress, self.recipe.checkpoints, self._best)

    @property
    def _best(self) -> Callable[[Place], Place | None] | None:
        return self.selection.best if self.selection else None

    def _look(self, loop: StageLoop, steps: int, draw_samples: DrawSamples) -> bool:
        """Draw the samples of a checkpoint, and measure them; whether the stage ends here."""
        self._draw_samples(loop, draw_samples)
        if self.selection is None:
            return False
        with self.phase("samples"):
            return self._sum(self.is_main and self.selection.look(loop.stage, loop.step, steps)) > 0

    def _settle_on_best(self, loop: StageLoop) -> None:
        """Put the chosen checkpoint's weights in the place of the last one's."""
        if self.selection is None:
            return
        with self.phase("save"):
            step, weights = self.selection.choose(loop.stage, loop.step) if self.is_main else (0, None)
            step = self._sum(step)  # The main process decides for all.
            if step != loop.step:
                weights = weights or self.folder.checkpoints.weights_at(loop.stage, step)
                assert weights is not None, "the main process has read them"
                loop.put(weights)

    def _draw_samples(self, loop: StageLoop, draw_samples: DrawSamples) -> None:
        name = checkpoint_name(loop.stage, loop.step)
        columns = self.recipe.sample.per_prompt
        if not self.is_main or not columns or not self.recipe.sample.prompts or self.folder.has_samples(name):
            return
        with self.phase("samples"), self.accelerator.autocast(), loop.averaged():
            pictures = draw_samples()
        self.folder.save_samples(name, pictures, columns)
        self.tracking.show(loop.stage, loop.step, pictures, columns)

    def _save_facts(self, **facts: Any) -> None:
        self._count_seconds()  # Of phases under way too: a kill may come before they end.
        peak = max(self._memory.peak, self.folder.facts.get("peak_memory_bytes", 0))
        seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        self.folder.update(seconds=seconds, peak_memory_bytes=peak, checks=self.checks, **facts)
