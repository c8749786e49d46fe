"""Every storage from its creation to its end: what tensors occupy, and what was computed meanwhile."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from twostage.memory.allocator import CachingAllocator
from twostage.memory.host import EMPTY_ON_HOST, TO_HOST

T = TypeVar("T")
Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_ATEN = torch.ops.aten
_DEVICE, _VALUE = torch.ops.prim.device.default, _ATEN._local_scalar_dense.default
_COPY = _ATEN.copy_.default


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    flops: int = sdpa_flop_count(query.shape, key.shape, value.shape)
    return flops


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    flops: int = sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)
    return flops


# Attention on the CPU is the one that torch has no formula for.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class StorageTrace(TorchDispatchMode):
    """Within it, each operation's results are followed until nothing holds them. Views count once, with their storage.

    What an operation needs for itself while it runs is not seen. It works for real tensors and for fake ones; a fake
    tensor that is asked for its value says 1.

    Args:
        run: operation, arguments, keyword arguments -> its result; the operation itself when not given.

    Attributes:
        current: bytes of all storages on the card that are alive.
        peak: the most since `begin`.
        host: bytes of those that `memory.host` keeps beside the card.
        host_peak: the most since `begin`.
        flops: floating-point operations since `begin`, two for each multiplication and addition: matrix products,
            convolutions and attention.
        half_flops: those of them in bfloat16 or float16.
        copied: bytes copied between card and host since `begin`, both ways together.
    """

    def __init__(self, run: Run = lambda func, args, kwargs: func(*args, **kwargs)) -> None:
        super().__init__()
        self._run = run
        self.current = self.peak = self.host = self.host_peak = self.flops = self.half_flops = self.copied = 0
        self._alive: dict[int, tuple[Any, int]] = {}
        self._on_host: dict[int, Any] = {}
        self._beside = self._computes_beside = False
        self._notes: _Notes | None = None
        self._allocator = CachingAllocator()

    def begin(self) -> None:
        """Measure from here, as if what is alive had been brought to an empty card just now, piece by piece."""
        gc.collect()  # What only cycles still hold would be measured or not, as chance has it.
        self.peak, self.host_peak, self.flops, self.half_flops, self.copied = self.current, self.host, 0, 0, 0
        self._allocator = CachingAllocator()
        for key, (_, size) in self._alive.items():
            self._allocator.allocate(key, size)

    @property
    def reserved(self) -> int:
        """Bytes that a card's caching allocator would hold at the peak since `begin`."""
        return self._allocator.reserved

    @contextmanager
    def beside_card(self) -> Iterator[None]:
        """Within it, what is made is made on the host, for nets that compute there. From then on, what is made of
        nothing but tensors of the host is on the host too."""
        before, self._beside, self._computes_beside = self._beside, True, True
        try:
            yield
        finally:
            self._beside = before

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._see(tensor)

    def once(self, key: Any, work: Callable[[], T], known: dict[Any, Any]) -> T:
        """Do some work, or, where work of that key was done, count again what it took.

        It is done each time where it leaves something behind, frees what was there before, or keeps anything on the
        host.

        Args:
            key: equal for work that allocates, computes and copies the same, and has no other effect.
            work: to be done.
            known: what was done, by its key; it grows.

        Returns:
            What `work` returned when it was done.
        """
        if key not in known:
            assert self._notes is None, "work within work"
            self._notes = notes = _Notes(self)
            try:
                result = work()
            finally:
                self._notes = None
            if notes.complete(self):
                known[key] = notes, result
            return result
        notes, result = known[key]
        for number, size in notes.events:
            if size:
                self._allocate(number, size)
            else:
                self._allocator.release(number)
                self.current -= notes.sizes[number]
        self.flops, self.half_flops, self.copied = (
            sum(pair) for pair in zip(self._counted, notes.counted, strict=True)
        )
        return result

    @property
    def _counted(self) -> tuple[int, int, int]:
        return self.flops, self.half_flops, self.copied

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, and look at what came of it."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # Asked for more often than all else; the way through all modes takes longer.
        if func is _VALUE and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else args[0].dtype == torch.bool or 1
        kwargs = kwargs or {}
        out = self._run(func, args, kwargs)
        if func is TO_HOST or func is EMPTY_ON_HOST:
            self._see_on_host(out)
            self.copied += out.nbytes if func is TO_HOST else 0
        elif func is _COPY:
            self._see_copy(*args[:2])
        else:
            beside = self._computes_beside and self._is_beside(args)
            for part in out if isinstance(out, tuple | list) else (out,):
                if isinstance(part, Tensor):
                    self._see(part, beside)
        if formula := _FLOPS.get(func._overloadpacket):
            flops = int(formula(*args, **kwargs, out_val=out))
            self.flops += flops
            if args[0].dtype.itemsize == 2:
                self.half_flops += flops
        return out

    def _is_beside(self, args: Iterable[Any]) -> bool:
        """Whether what is made of these is on the host."""
        keys = [value.untyped_storage()._cdata for value in args if isinstance(value, Tensor)]
        return self._beside or bool(keys) and all(key in self._on_host for key in keys)

    def _see(self, tensor: Tensor, beside: bool = False) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or key in self._on_host or not size:
            return
        if beside:
            self._see_on_host(tensor)
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key)), size
        if self._notes:
            self._notes.note(key, size)
        self._allocate(key, size)

    def _allocate(self, key: int, size: int) -> None:
        self._allocator.allocate(key, size)
        self.current += size
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int) -> None:
        _, size = self._alive.pop(key)
        if self._notes:
            self._notes.note(key, 0)
        self._allocator.release(key)
        self.current -= size

    def _see_copy(self, target: Tensor, source: Tensor) -> None:
        sides = {tensor.untyped_storage()._cdata in self._on_host for tensor in (target, source)}
        self.copied += target.nbytes if len(sides) == 2 else 0

    def _see_on_host(self, tensor: Tensor) -> None:
        if self._notes:
            self._notes.repeatable = False
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._on_host[key] = weakref.ref(storage, lambda _: self._forget_on_host(key, size))
        self.host += size
        self.host_peak = max(self.host_peak, self.host)

    def _forget_on_host(self, key: int, size: int) -> None:
        if self._notes:
            self._notes.repeatable = False
        del self._on_host[key]
        self.host -= size


class _Notes:
    """What some work takes.

    Attributes:
        events: a number for each storage and its bytes when it comes, 0 when it goes; numbers are below 0, which no
            storage's key is.
        sizes: bytes by number.
        counted: operations, those in half precision, bytes copied.
        repeatable: whether all that came has gone again, and nothing else.
    """

    def __init__(self, trace: StorageTrace) -> None:
        self.events: list[tuple[int, int]] = []
        self.sizes: dict[int, int] = {}
        self.counted: tuple[int, ...] = trace._counted
        self.repeatable = True
        self._here: dict[int, int] = {}

    def note(self, key: int, size: int) -> None:
        """A storage of `size` bytes came, or, where that is 0, went."""
        if size:
            self._here[key] = number = -1 - len(self.events)
            self.sizes[number] = size
        elif key in self._here:
            number = self._here.pop(key)
        else:
            self.repeatable = False
            return
        self.events.append((number, size))

    def complete(self, trace: StorageTrace) -> bool:
        """The work is done; whether it can be counted again."""
        before = self.counted
        self.counted = tuple(now - then for now, then in zip(trace._counted, before, strict=True))
        return self.repeatable and not self._here
