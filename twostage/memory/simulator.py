"""What code would occupy on a card, without the card: it runs on tensors that have shapes and no values."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, partialmethod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from twostage.memory.shapes import RememberedShapes
from twostage.memory.storages import StorageTrace
from twostage.memory.tensorwise import TensorwiseOptimizer

# What autocast computes in float32 on a card and not on a CPU, of what U-Nets, VAEs and text encoders are made of.
_IN_FLOAT32 = ("group_norm", "layer_norm")


@contextmanager
def simulation() -> Iterator[StorageTrace]:
    """Within it, no tensor that is made has values, and all that runs is followed as if it ran on a card.

    The tensors say that they are on the CPU: torch without CUDA makes no others. Autocast casts as it does on a card,
    in bfloat16; attention keeps what flash attention keeps, its output and a sum for each row.

    Yields:
        What is alive, its peak and its operations. An operation's own workspace, and what the driver, cuDNN and cuBLAS
        take, are not in it.
    """
    with ExitStack() as modes:
        fake = modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        modes.enter_context(card_autocast())
        modes.enter_context(_conversions_in_place())
        modes.enter_context(collected_on_demand())
        trace = StorageTrace(RememberedShapes(fake))
        modes.enter_context(_equal_moves_once(trace))
        yield modes.enter_context(trace)


def without_values(net: nn.Module) -> nn.Module:
    """A net on the meta device, given memory of the simulation in place; frozen, in eval mode."""
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_like(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _like(buffer)
    return net.eval()


@contextmanager
def collected_on_demand() -> Iterator[None]:
    """Within it, Python collects garbage when it is told to, and not when it pleases, which would be another peak; and
    it does not look through all that the libraries have loaded, which would take longer than what is simulated."""
    usual, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:  # Else it is the caller's, who would have the rest thawed too.
            gc.unfreeze()
        if usual:
            gc.enable()


@contextmanager
def _conversions_in_place() -> Iterator[None]:
    """Within it, `Module.to` converts fake parameters as it does real ones; torch would swap them, which it refuses
    where something refers to them."""
    usual = nn.Module._apply
    nn.Module._apply = _apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = usual  # type: ignore[method-assign]


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for child in self.children() if recurse else ():
        child._apply(fn)
    with torch.no_grad():
        for parameter in self._parameters.values():
            if parameter is not None and (converted := fn(parameter)) is not parameter:
                parameter.data = converted
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = fn(buffer)
    return self


@contextmanager
def _equal_moves_once(trace: StorageTrace) -> Iterator[None]:
    """Within it, our own optimizers' work on a tensor, thousands of small operations, is followed once for all tensors
    of the same kind."""
    usual = {kind: kind.move for kind in TensorwiseOptimizer.__subclasses__()}
    # For each apart: the first move may leave something behind for the others.
    known: WeakKeyDictionary[torch.optim.Optimizer, dict[Any, Any]] = WeakKeyDictionary()

    def once(move: Callable[..., None], optimizer: TensorwiseOptimizer, *args: Any) -> None:
        parameter, gradient, state, group, _ = args
        settings = tuple((name, value) for name, value in group.items() if name != "params")
        tensors = {"": parameter, "gradient": gradient, **state}
        key = settings, *(_kind(*item) for item in tensors.items())
        trace.once(key, partial(move, optimizer, *args), known.setdefault(optimizer, {}))

    for kind, move in usual.items():
        kind.move = partialmethod(partial(once, move))  # type: ignore[assignment]
    try:
        yield
    finally:
        for kind, move in usual.items():
            kind.move = move  # type: ignore[method-assign]


def _kind(name: str, value: Any) -> tuple[Any, ...]:
    return (name, value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else (name, value)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


@contextmanager
def card_autocast() -> Iterator[None]:
    """Within it, autocast on the CPU leaves to float32 what CUDA's does.

    The functions are replaced, since a mode for functions is off wherever checkpointing computes a second time.
    """
    usual = {name: getattr(F, name) for name in _IN_FLOAT32}
    for name, function in usual.items():
        setattr(F, name, partial(_in_float32, function))
    try:
        yield
    finally:
        for name, function in usual.items():
            setattr(F, name, function)


def _in_float32(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        args = tuple(_to_float32(value) for value in args)
        kwargs = {name: _to_float32(value) for name, value in kwargs.items()}
    return function(*args, **kwargs)


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
