"""The one training loop. A stage brings a learner, its examples and perhaps something to do after each step."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from twostage.memory.clipping import clip_gradients
from twostage.memory.in_backward import StepInBackward
from twostage.memory.optimizers import Updates, build_optimizer, build_schedule
from twostage.memory.streaming import Streaming
from twostage.memory.takeover import take_over
from twostage.method.broken_steps import BrokenSteps
from twostage.method.examples import Source
from twostage.recipe import Stage

Watch = Callable[[Mapping[str, Tensor] | None], None]


@dataclass(frozen=True)
class Step:
    """What one optimizer step did.

    Attributes:
        stage: 1 or 2.
        step: steps done, this one included.
        loss: mean over all samples of the step, before the update.
        lr: learning rate it was made with.
        grad_norm: before clipping.
        seconds: it took.
    """

    stage: int
    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """All that a stage needs to go on where it stood: tensors by name, and numbers that JSON keeps.

    `averaged` is empty where no average of what is trained is kept.
    """

    step: int
    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    numbers: dict[str, Any]
    averaged: dict[str, Tensor] = field(default_factory=dict)


class StageLoop:
    """Optimizer, schedule and position of one stage.

    Args:
        stage: 1 or 2; part of the address of every draw.
        learner: batch -> loss of each sample; its parameters that require a gradient are what trains.
        source: where batches come from.
        options: the recipe's section for the stage.
        accelerator: device, precision, processes.
        after_step: called with the step's learning rate once the parameters have moved.
        updates: how the parameters are moved, where it is not by AdamW, all at one rate; and what is kept where.
        streaming: of a net that the learner asks, if some of it waits on the host; the loop ends it.

    Attributes:
        step: how many are done.
        trained: parameters by name.
        broken: its steps that were skipped.
    """

    def __init__(
        self,
        stage: int,
        learner: nn.Module,
        source: Source,
        options: Stage,
        accelerator: Accelerator,
        after_step: Callable[[float], None] | None = None,
        updates: Updates | None = None,
        streaming: Streaming | None = None,
    ) -> None:
        self.stage, self.step, self._moving = stage, 0, False
        self._source, self._options, self._accelerator = source, options, accelerator
        self._after_step, self._streaming = after_step, streaming
        learner.to(accelerator.device)
        self.trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        updates = updates or Updates()
        self._keeping = updates.keeping
        self._optimizer = build_optimizer(self.trained, options, updates)
        # Not prepared by accelerate, which would step it once for every process.
        self._schedule = build_schedule(self._optimizer, options)
        self._learner, self._prepared = accelerator.prepare(learner, self._optimizer)
        self._in_backward = None
        if updates.memory.step_in_backward:
            assert accelerator.num_processes == 1, "refused with the recipe"
            self._in_backward = StepInBackward(self._optimizer, self.trained)
        self.broken = BrokenSteps(stage, options.learning_rate, accelerator.mixed_precision)
        self._average = EMAModel(self.trained.values(), decay=options.ema_decay) if options.ema_decay else None

    def steps(self, watch: Watch = lambda norms: None, between: Callable[[], None] = lambda: None) -> Iterator[Step]:
        """Train to the end of the stage, handing out each step once it is done.

        Args:
            between: called between a step's batches, before anything moves; what it raises breaks the step off.
            watch: called in each step when the gradients are there, before the parameters move. With a step in the
                backward pass, both is over then: it is given the gradients' norms by the parameters' names.

        Raises:
            UserError: loss or gradient was not finite for many steps in a row, which moved nothing.
        """
        while self.step < self._options.steps:
            yield self._advance(watch, between)

    def _advance(self, watch: Watch, between: Callable[[], None]) -> Step:
        started = time.perf_counter()
        mean = self._accumulate_gradients(between)
        if self._streaming:
            self._streaming.rest()
        norm = self._clip()
        loss = float(mean)  # Behind the norm, so that a GPU is waited for once.
        lr = float(self._optimizer.param_groups[0]["lr"])
        if self.broken.is_one(loss, norm):
            self._skip(loss)
            return Step(self.stage, self.step, loss, lr, norm, time.perf_counter() - started)
        watch(self._in_backward.norms if self._in_backward else None)
        self._moving = True
        if self._in_backward is None:
            self._prepared.step()
        else:
            self._in_backward.norms.clear()
        self._prepared.zero_grad()
        self._schedule.step()
        if self._after_step is not None:
            self._after_step(lr)
        if self._average is not None:
            self._average.step(self.trained.values())
        self.step, self._moving = self.step + 1, False
        return Step(self.stage, self.step, loss, lr, norm, time.perf_counter() - started)

    def _skip(self, loss: float) -> None:
        """Go on to the next step, as another noise or photo may do, and half the loss scale in half precision."""
        norms = self._in_backward.norms if self._in_backward else _norms(self.trained)
        self.broken.check(self.step + 1, loss, self.trained, norms)
        if self._in_backward:
            self._in_backward.norms.clear()
            if self._average is not None:
                self._average.step(self.trained.values())  # Other gradients of the step have moved weights.
        if self._accelerator.scaler:
            self._accelerator.scaler.update()
        self._prepared.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, where it is the first: that the optimizer made no step.
            self._schedule.step()
        self.step += 1

    @property
    def whole(self) -> bool:
        """Whether all that trains is where the last step left it: one that broke off had not begun to move it."""
        return not self._moving and not (self._in_backward and self._in_backward.norms)

    @property
    def _rows_per_step(self) -> int:
        options = self._options
        return options.batch_size * self._accelerator.num_processes * options.gradient_accumulation_steps

    def attempt(self) -> None:
        """Compute the loss of the next samples, and of the gradients one, back through the nets; nothing is kept."""
        batch = self._source.batch(self.stage, self.step, range(self._options.batch_size), self._rows_per_step)
        learner = self._accelerator.unwrap_model(self._learner)
        loss = learner(batch.to(self._accelerator.device)).mean()
        torch.autograd.grad(loss, next(iter(self.trained.values())))

    def forget_gradients(self) -> None:
        """Free those of a step that was broken off."""
        self._optimizer.zero_grad()

    def _clip(self) -> float:
        """Norm of the gradient as it was before it is clipped."""
        if self._in_backward:
            assert not self._options.max_grad_norm, "refused with the recipe"
            return float(self._in_backward.norm())
        self._accelerator.unscale_gradients()
        return clip_gradients(self.trained.values(), self._options.max_grad_norm or math.inf)

    def _accumulate_gradients(self, between: Callable[[], None]) -> Tensor:
        """Gradients of all the step's samples, over processes and accumulated batches; returns their mean loss."""
        accelerator, size = self._accelerator, self._options.batch_size
        accumulated = self._options.gradient_accumulation_steps
        # accelerate counts batches for the whole process, and stages differ in how many make a step.
        accelerator.gradient_accumulation_steps, accelerator.step = accumulated, 0
        total = torch.zeros((), device=accelerator.device)
        for micro in range(accumulated):
            between()
            first = (micro * accelerator.num_processes + accelerator.process_index) * size
            batch = self._source.batch(self.stage, self.step, range(first, first + size), self._rows_per_step)
            with accelerator.accumulate(self._learner):
                with self._keeping():
                    loss = self._learner(batch.to(accelerator.device)).mean()
                accelerator.backward(loss)
            total += loss.detach() / accumulated
        mean: Tensor = accelerator.reduce(total, "mean")
        return mean

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, what trains is its average, where one is kept."""
        if self._average is None:
            yield
            return
        self._average.store(self.trained.values())
        try:
            self._average.copy_to(self.trained.values())
            yield
        finally:
            self._average.restore(self.trained.values())

    def gathered(self) -> AbstractContextManager[None]:
        """Within it, between steps, what is streamed is whole and on the host, to read and to write."""
        return self._streaming.whole() if self._streaming else nullcontext()

    def settle(self) -> None:
        """End the stage: what was trained becomes its average for good, where one is kept; nothing is streamed more."""
        if self._streaming:
            self._streaming.end()
            self._streaming = None
        if self._average is not None:
            self._average.copy_to(self.trained.values())

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Have what trains take these values, by name."""
        assert weights.keys() == self.trained.keys(), "the checkpoint is of something else that trains"
        with self.gathered():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])

    def progress(self) -> Progress:
        """Where the stage stands. The tensors are those in use, not copies: write them before the next step."""
        state = self._optimizer.state_dict()
        entries = {
            f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()
        }
        tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
        numbers = {
            "optimizer_state": {name: value for name, value in entries.items() if name not in tensors},
            "param_groups": state["param_groups"],
            "schedule": self._schedule.state_dict(),
            "scaler": self._accelerator.scaler.state_dict() if self._accelerator.scaler else {},
            "broken": [self.broken.skipped, self.broken.in_a_row],
        }
        with self.gathered():
            trained = {name: parameter.detach() for name, parameter in self.trained.items()}
        average = dict(zip(self.trained, self._average.shadow_params, strict=True)) if self._average else {}
        return Progress(self.step, trained, tensors, numbers, average)

    @torch.no_grad()
    def restore(self, progress: Progress) -> None:
        """Go on from where another loop stood; with the same options, bit for bit. See `take_over` for others."""
        self.put(progress.trained)
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        entries: dict[int, dict[str, Any]] = {}
        with self.gathered():  # The state has the strides of weights that are there.
            for key, value in [*progress.optimizer.items(), *progress.numbers["optimizer_state"].items()]:
                index, name = key.split(".", 1)
                entries.setdefault(int(index), {})[name] = _in_order_of(parameters[int(index)], value)
            take_over(self._optimizer, {"state": entries, "param_groups": progress.numbers["param_groups"]})
        if self._streaming:
            # And it goes where they are used.
            self._optimizer.load_state_dict(self._optimizer.state_dict())
        self._schedule.load_state_dict(progress.numbers["schedule"])
        self.broken.skipped, self.broken.in_a_row = progress.numbers.get("broken", (0, 0))
        if self._accelerator.scaler and progress.numbers["scaler"]:
            self._accelerator.scaler.load_state_dict(progress.numbers["scaler"])
        if self._average is not None:
            for name, average in zip(self.trained, self._average.shadow_params, strict=True):
                average.copy_(progress.averaged[name])
            self._average.optimization_step = progress.step - (0 if self._in_backward else self.broken.skipped)
        self.step = progress.step


def _norms(trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.grad.norm() for name, parameter in trained.items() if parameter.grad is not None}


def _in_order_of(parameter: Tensor, value: Any) -> Any:
    """A moment as the optimizer keeps it: with the strides of its parameter, which files do not keep.

    On a CPU the optimizer would keep the tensor itself, and with it the file open: then it is a copy.
    """
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value.clone() if isinstance(value, Tensor) and parameter.device.type == "cpu" else value
    return torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype).copy_(value)
