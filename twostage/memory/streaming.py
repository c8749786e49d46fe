"""Streaming: a denoiser's blocks wait on the host, and each is on the card only while it is used.

A step then runs as it would with all of them on the card, bit for bit. In the forward pass a block's weights come, and
go when the next block is entered; what it computed on the way is dropped, as gradient checkpointing does. In the
backward pass they come again, the block computes once more, and its gradients follow; an optimizer that steps within
the backward pass moves the weights while they are there, and they are written back as they go.

On a GPU the next block's weights are on their way while this one computes, and the last one's on their way back: three
blocks are on the card at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from twostage.memory.blocks import blocks_of
from twostage.memory.host import empty_on_host, wait_for_copies


class Streaming:
    """The blocks of a denoiser that are streamed. From when it is made, it is used like any other.

    While a weight is away, its parameter is a tensor of the same device, shape and dtype that is NaN throughout and
    occupies one element. Vectors (biases, norms) stay on the card, a thousandth of it all; so does what blocks have
    that are not streamed.

    Args:
        net: on the host, with all that its weights will ever be: number format, memory format, adapter, checkpointing.
            Where it trains whole, whatever moves its parameters does so within the backward pass; where only some
            train, an adapter's, those stay on the card.
        share: of the weights in its blocks that is streamed, 0..1; the blocks that are lie evenly among the others.
        card: where the net is used.
    """

    def __init__(self, net: Any, share: float, card: torch.device) -> None:
        self._net, self._card = net, card
        self._coming, self._going = _Copies(card), _Copies(card)
        adapted = any(isinstance(module, BaseTunerLayer) for module in net.modules())
        trains = not adapted and any(parameter.requires_grad for parameter in net.parameters())
        self._blocks = [_Block(module, card, trains) for module in _choose(net, share)]
        self._here: list[_Block] = []
        self._left: list[tuple[list[Tensor], Any]] = []
        # Each block's neighbours in the order in which they were used last.
        self._after: dict[_Block, _Block] = {}
        self._before: dict[_Block, _Block] = {}
        self._last: _Block | None = None
        for block in self._blocks:
            block.module.forward = partial(self._run, block)
        self._leave_checkpointing_to_blocks()
        self._hook = net.register_forward_hook(self._after_use)

    def rest(self) -> None:
        """Call it when a backward pass is over: no block stays on the card."""
        self._dismiss([])
        self._let_go()
        self._last = None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it, every parameter is its weights, on the host, to read and to write; the net is not to be used."""
        self._show_whole()
        try:
            yield
        finally:
            for block in self._blocks:
                block.set_away()

    def end(self) -> None:
        """Streaming is over: what was streamed is whole, and on the host."""
        self._show_whole()
        for block in self._blocks:
            del block.module.forward
        self._hook.remove()
        self._blocks = []

    def _show_whole(self) -> None:
        self.rest()
        wait_for_copies(self._card)
        for block in self._blocks:
            block.set_whole()

    def _leave_checkpointing_to_blocks(self) -> None:
        """A block that is streamed recomputes by itself, whether or not the others do."""
        streamed = {block.module for block in self._blocks}
        for module in self._net.modules():
            usual = getattr(module, "_gradient_checkpointing_func", None)
            if usual is not None:
                module._gradient_checkpointing_func = partial(_checkpoint_others, streamed, usual)

    def _run(self, block: _Block, *args: Any, **kwargs: Any) -> Any:
        """In place of the block's own forward pass."""
        forward = partial(type(block.module).forward, block.module)
        if not torch.is_grad_enabled():
            with self._using(block, backward=False):
                return forward(*args, **kwargs)

        def contexts() -> tuple[Any, Any]:
            return self._using(block, backward=False), self._using(block, backward=True)

        # Of this form of it, the graph is the block's own: gradients are added up in the same order as without.
        output = checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
        for tensor in output if isinstance(output, tuple) else (output,):
            if tensor is not None and tensor.requires_grad:
                # It recomputes once something is asked for that it has dropped, and frozen layers may drop nothing.
                tensor.register_hook(lambda _: self._enter(block, backward=True))
        return output

    @contextmanager
    def _using(self, block: _Block, backward: bool) -> Iterator[None]:
        """The block is on the card from here until another is entered, or `rest`."""
        self._enter(block, backward)
        kind = self._card.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        # Its cache would hold copies of weights that have left.
        with torch.autocast(kind, dtype, cache_enabled=False) if enabled else nullcontext():
            yield

    def _enter(self, block: _Block, backward: bool) -> None:
        if backward:
            following = self._before.get(block)
            self._last = None
        else:
            if self._last is not None and self._last is not block:
                self._after[self._last], self._before[block] = block, self._last
            self._last, following = block, self._after.get(block)
        wanted = [block] if following is None else [block, following]
        self._let_go()
        self._dismiss(wanted)
        for other in wanted:
            if other not in self._here:
                other.fetch(self._coming)
                self._here.append(other)
        block.use(backward)

    def _dismiss(self, wanted: list[_Block]) -> None:
        """Blocks that are not wanted leave; what is written back keeps its place on the card until `_let_go`."""
        for block in [other for other in self._here if other not in wanted]:
            self._here.remove(block)
            leaving = block.leave(self._going)
            if leaving:
                self._left.append((leaving, block.written))

    def _let_go(self) -> None:
        for _, written in self._left:
            _wait_for(written)
        self._left = []

    def _after_use(self, *_: Any) -> None:
        # After a forward pass with gradients, the backward pass begins with the block that was used last.
        if not torch.is_grad_enabled():
            self.rest()


@contextmanager
def streamed(net: Any, share: float, card: torch.device) -> Iterator[None]:
    """Within it, a net that does not train is streamed; see `Streaming`."""
    streaming = Streaming(net, share, card)
    try:
        yield
    finally:
        streaming.end()


class _Block:
    """A module of which the weights are on the host.

    Args:
        module: of a net.
        card: where it is used.
        trains: whether its weights are moved while they are on the card.

    Attributes:
        module: as given.
        written: on a GPU, the event of the weights having been written back last.
    """

    def __init__(self, module: nn.Module, card: torch.device, trains: bool) -> None:
        self.module, self._trains, self._used_backward = module, trains, False
        self.written: Any = None
        self._arrived: Any = None
        tensors = [*module.parameters(), *module.buffers()]
        self._tensors = [tensor for tensor in tensors if tensor.ndim > 1 and (trains or not tensor.requires_grad)]
        self._kept = [
            empty_on_host(tensor.size(), tensor.stride(), tensor.dtype, card).copy_(tensor.detach())
            for tensor in self._tensors
        ]
        self._away = [_nothing(tensor, card) for tensor in self._tensors]
        self.set_away()

    def fetch(self, copies: _Copies) -> None:
        """Have the weights come to the card."""
        # Room is made where the computation makes its own, so that none of it is in use once it has been given up.
        room = [
            torch.empty_strided(kept.size(), kept.stride(), dtype=kept.dtype, device=away.device)
            for kept, away in zip(self._kept, self._away, strict=True)
        ]
        self._arrived, self._used_backward = copies.begin(room, self._kept, self.written), False
        for tensor, here in zip(self._tensors, room, strict=True):
            tensor.data = here

    def use(self, backward: bool) -> None:
        """Have the computation wait until the weights are there."""
        _wait_for(self._arrived)
        self._arrived = None
        self._used_backward |= backward

    def leave(self, copies: _Copies) -> list[Tensor]:
        """Give up the place on the card; returns what of it is still being read, until `written`."""
        _wait_for(self._arrived)  # Of weights that came for nothing.
        self._arrived = None
        read: list[Tensor] = []
        if self._trains and self._used_backward:
            read = [tensor.data for tensor in self._tensors]
            self.written = copies.begin(self._kept, read)
        self.set_away()
        return read

    def set_away(self) -> None:
        for tensor, away in zip(self._tensors, self._away, strict=True):
            tensor.data = away

    def set_whole(self) -> None:
        for tensor, kept in zip(self._tensors, self._kept, strict=True):
            tensor.data = kept


class _Copies:
    """On a GPU, a stream of copies beside the one that computes; elsewhere copies are made at once."""

    def __init__(self, card: torch.device) -> None:
        self._stream = torch.cuda.Stream(card) if card.type == "cuda" else None

    def begin(self, targets: list[Tensor], sources: list[Tensor], after: Any = None) -> Any:
        """Copy, once all that was asked of the GPU so far is done, and the event `after` has been.

        Returns:
            The event of its end; None where that has been.
        """
        if self._stream is None:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        if after is not None:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
        return self._stream.record_event()


def _wait_for(event: Any) -> None:
    if event is not None:
        torch.cuda.current_stream().wait_event(event)


def _choose(net: nn.Module, share: float) -> list[nn.Module]:
    """Every so many-th block, counted by their bytes."""
    chosen, due = [], 0.0
    for block in blocks_of(net):
        size = sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers()))
        due += share * size
        if size and due >= size / 2:
            chosen.append(block)
            due -= size
    return chosen


def _nothing(tensor: Tensor, card: torch.device) -> Tensor:
    value = float("nan") if tensor.is_floating_point() else 0
    return torch.full((), value, dtype=tensor.dtype, device=card).expand(tensor.size())


def _checkpoint_others(streamed: set[nn.Module], usual: Callable[..., Any], module: Any, *args: Any) -> Any:
    return module(*args) if module in streamed else usual(module, *args)
