"""What our own optimizers share: one tensor at a time, in chunks, whatever number format the weights have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from twostage.memory.host import empty_on_host, to_card, wait_for_copies
from twostage.memory.rounding import generator_at, round_stochastically_

# Elements worked on at once: temporaries then stay below 64 MiB, however large the tensor.
CHUNK = 1 << 21


class TensorwiseOptimizer(torch.optim.Optimizer):
    """Moves each parameter apart from the others, so that it may be done as soon as its gradient is there.

    Parameters are float32 or bfloat16; the arithmetic is float32, and what becomes bfloat16 is rounded stochastically.

    Args:
        groups: of parameters, as torch's optimizers take them.
        defaults: of what a group may set.
        address: what tells the roundings of this run and stage from others; integers of at least 0. A parameter's step
            and its place are added, so that a run that was interrupted draws what an unbroken one does.
        on_host: the state waits beside the card, and comes to it part by part; not a bit of the result changes.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], defaults: dict[str, Any], address: Sequence[int], on_host: bool = False
    ) -> None:
        super().__init__(groups, defaults)
        self._address, self._on_host = tuple(address), on_host
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._places = {parameter: place for place, parameter in enumerate(parameters)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "nothing here evaluates the loss again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(step=0, **self.fresh_state(parameter))
                state["step"] += 1
                address = (*self._address, state["step"], self._places[parameter])
                self.move(parameter, parameter.grad, state, group, address)

    @abstractmethod
    def fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is remembered of a parameter, before its first step."""

    @abstractmethod
    def move(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any], address: Sequence[int]
    ) -> None:
        """Make one step of one parameter; `state["step"]` counts it already."""

    def room(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """For a part of the state of a parameter on `device`, without values."""
        if self._on_host:
            return empty_on_host(size, stride, dtype, device)
        return torch.empty_strided(size, stride, dtype=dtype, device=device)

    def fetch(self, part: Tensor, device: torch.device) -> Tensor:
        """A dense part of the state, to work with: itself, or a copy on the card."""
        return to_card(part, device) if self._on_host else part

    def put_back(self, part: Tensor, values: Tensor) -> None:
        """Have a part of the state be what became of it since it was fetched."""
        if self._on_host:
            part.copy_(values, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """As torch's; what waits on the host can be read there."""
        if self._on_host:
            for device in {parameter.device for parameter in self._places}:
                wait_for_copies(device)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the tensors keep their own number format, where torch's would take the parameter's.

        It is the same wherever the state waits, and torch's AdamW's can be read too.
        """
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        parameters = list(self._places)
        for index, entries in state_dict["state"].items():
            parameter = parameters[index]
            self.state[parameter] = {
                name: self.room(value.shape, value.stride(), value.dtype, parameter.device).copy_(value)
                for name, value in entries.items()
                if name != "step"
            } | {"step": int(entries["step"])}


def flat(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor as (n,), its elements in the order in which `like`, of the same shape, has them in memory.

    Args:
        tensor: returned as a view where it is `like`, or has its strides.
        like: dense, in any memory format.
    """
    order = sorted(range(like.ndim), key=like.stride, reverse=True)
    assert like.permute(order).is_contiguous(), "a parameter with gaps between its elements"
    return tensor.permute(order).reshape(-1)


def write(target: Tensor, values: Tensor, generator: torch.Generator | None) -> None:
    """Put float32 values into a part of a parameter.

    Args:
        target: of a parameter; float32 is taken to be written already, since `target.float()` is `target` then.
        values: what became of `target.float()`; overwritten.
        generator: rounds them, where the parameter is bfloat16; None where it is float32.
    """
    if generator is not None:
        target.copy_(round_stochastically_(values, generator))


def rounding_generator(parameter: Tensor, address: Sequence[int]) -> torch.Generator | None:
    """For `write`: None for a parameter that needs no rounding."""
    return None if parameter.dtype == torch.float32 else generator_at(address, parameter.device)
