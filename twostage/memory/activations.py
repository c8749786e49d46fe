"""Where what the forward pass keeps for the backward pass waits in between: on the card, or on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from twostage.memory.host import to_card, to_host
from twostage.recipe import Memory

Keeping = Callable[[], AbstractContextManager[Any]]

# Bytes; copying less there and back takes longer than its room is worth.
_SMALLEST = 1 << 16


def keeping(memory: Memory, nets: Iterable[nn.Module], card: torch.device) -> Keeping:
    """What to be within for each forward pass, as the recipe says; its backward pass may come outside.

    Args:
        memory: the recipe's table.
        nets: all that the forward pass asks, whether it trains or not.
        card: the device it runs on.
    """
    return KeptOnHost(nets, card, _SMALLEST) if memory.activations == "host" else nullcontext


class KeptOnHost:
    """Within what it gives, tensors that are kept for the backward pass wait on the host, and come back bit for bit.

    Whole storages go, each once, however many views of it are kept. Checkpointed blocks keep their inputs alone, and
    those go. What they compute a second time stays on the card.

    Args:
        nets: their parameters and buffers, which are kept anyway, are left where they are.
        card: the device whose tensors go.
        smallest: storage that goes, in bytes.
    """

    def __init__(self, nets: Iterable[nn.Module], card: torch.device, smallest: int) -> None:
        self._nets, self._card, self._smallest = tuple(nets), card.type, smallest

    def __call__(self) -> AbstractContextManager[Any]:
        tensors = [tensor for net in self._nets for tensor in (*net.parameters(), *net.buffers())]
        staying = {tensor.untyped_storage()._cdata for tensor in tensors}
        # By storage, and by what counts the changes to it: the copies there are of it already.
        copies: WeakKeyDictionary[torch.UntypedStorage, dict[Any, Tensor]] = WeakKeyDictionary()

        def pack(tensor: Tensor) -> Tensor | _Kept:
            storage = tensor.untyped_storage()
            if storage.nbytes() < self._smallest or storage._cdata in staying or tensor.device.type != self._card:
                return tensor
            known = copies.setdefault(storage, {})
            state = tensor._version, tensor.dtype
            if state not in known:
                size = storage.nbytes() // tensor.element_size()
                known[state] = to_host(tensor.detach().as_strided((size,), (1,), 0))
            return _Kept(known[state], tensor)

        return saved_tensors_hooks(pack, _unpack)


class _Kept:
    """A tensor as a view of a storage that waits on the host."""

    def __init__(self, storage: Tensor, tensor: Tensor) -> None:
        self.storage, self.device = storage, tensor.device
        self.view = tensor.size(), tensor.stride(), tensor.storage_offset()


def _unpack(kept: Tensor | _Kept) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    return to_card(kept.storage, kept.device).as_strided(*kept.view)
