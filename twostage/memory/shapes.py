"""What operations on tensors without values give, worked out once for each kind of arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_CPU = torch.device("cpu")
# What an argument can be beside a tensor so that equal arguments give equal shapes. Their types count too: 1 == 1.0.
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
# A view by what it does, though its schema does not say so.
_VIEW = torch.ops.aten._unsafe_view.default
# Results whose shape is not said by the arguments' shapes.
_UNSAID = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view}


class _Other(Exception):
    """An argument or a result of another kind than is remembered."""


class RememberedShapes:
    """Does what `FakeTensorMode` does, several times faster where it has been asked the same.

    It keeps what an operation gave for arguments of these sizes, strides and number formats, and makes tensors of that
    size; the mode itself is asked whenever anything else could matter.

    Args:
        mode: whose tensors these are; all of them on the CPU, as they say.
    """

    # For the whole process: they do not depend on the mode.
    _results: ClassVar[dict[Any, Any]] = {}

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._alike: dict[str, Any] | None = None
        self._kinds: dict[Any, Callable[..., Any]] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func(*args, **kwargs)` gives."""
        way = self._kinds.get(func)
        if way is None:
            way = self._kinds[func] = self._way(func)
        return way(func, args, kwargs)

    def _way(self, func: Any) -> Callable[..., Any]:
        """How the results of an operation are found: it is new ones, its first argument written to, or views."""
        schema = func._schema
        aliases = [value.alias_info for value in (*schema.arguments, *schema.returns) if value.alias_info]
        if func.namespace != "aten" or _UNSAID & set(func.tags):
            return _asked
        if func is _VIEW:
            return self._view
        if not aliases:
            return self._new
        if not any(alias.is_write for alias in aliases):
            return self._view if func.is_view else _asked
        first = schema.arguments[0].alias_info
        in_place = first and first.is_write and len(aliases) == 2 and len(schema.returns) == 1
        return self._in_place if in_place else _asked

    def _new(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            key = func, _key(args, self._mode), _key(tuple(kwargs.items()), self._mode)
        except _Other:
            return func(*args, **kwargs)
        result = self._results.get(key, _asked)
        if result is _asked:
            out = func(*args, **kwargs)
            self._results[key] = _described(out, (*args, *kwargs.values()), self._mode)
            return out
        return func(*args, **kwargs) if result is None else self._made(result)

    def _in_place(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            key = func, _key(args, self._mode), _key(tuple(kwargs.items()), self._mode)
        except _Other:
            return func(*args, **kwargs)
        if key in self._results:
            return args[0]
        out = func(*args, **kwargs)
        if out is args[0]:
            self._results[key] = ()
        return out

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            _key(args, self._mode)
        except _Other:
            return func(*args, **kwargs)
        with in_kernel_invocation_manager(self._mode):
            out = func(*args, **kwargs)
        return self._fake(out) if isinstance(out, Tensor) else type(out)(self._fake(part) for part in out)

    def _made(self, result: Any) -> Any:
        kind, parts = result
        with torch._C._DisableTorchDispatch():
            made = [
                torch.empty_strided(part[0], part[1], dtype=part[2], device="meta") if type(part) is tuple else part
                for part in parts
            ]
        made = [self._fake(part) if isinstance(part, Tensor) else part for part in made]
        return made[0] if kind is None else kind(made)

    def _fake(self, tensor: Tensor) -> FakeTensor:
        """Of a tensor on the meta device: what `FakeTensor(mode, tensor, cpu)` makes, a third of whose time goes into
        checks and into attributes that are all alike."""
        if self._alike is None:
            fake = FakeTensor(self._mode, tensor, _CPU)
            self._alike = dict(vars(fake))
            return fake
        fake = Tensor._make_subclass(FakeTensor, tensor, False, dispatch_device=True, device_for_backend_keys=_CPU)
        vars(fake).update(self._alike)
        return fake


def _asked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _key(value: Any, mode: FakeTensorMode) -> Any:
    """Equal for arguments that give results of equal sizes.

    Raises:
        _Other: they may hold something that this cannot tell.
    """
    kind = type(value)
    if kind is FakeTensor:
        if value.constant is not None or value.fake_mode is not mode or value._fake_device != _CPU:
            raise _Other
        return value.shape, value.stride(), value.dtype, value.storage_offset(), value.layout
    if kind is tuple or kind is list:
        return kind, tuple([_key(part, mode) for part in value])
    if kind is torch.Generator:
        return kind
    if kind in _PLAIN:
        return kind, value
    raise _Other


def _described(out: Any, args: Any, mode: FakeTensorMode) -> Any:
    """What `_made` makes equal results of; None where they cannot be made anew, such as one that is an argument."""
    kind, parts = (None, (out,)) if isinstance(out, Tensor) else (type(out), out)
    if kind not in (None, tuple, list):
        return None
    seen = {tensor.untyped_storage()._cdata for tensor in _tensors(args)}
    described: list[Any] = []
    for part in parts:
        if type(part) in (int, type(None)):
            described.append(part)
            continue
        if type(part) is not FakeTensor or part.constant is not None or part.fake_mode is not mode:
            return None
        storage = part.untyped_storage()
        if storage._cdata in seen or part.storage_offset() or part._fake_device != _CPU:
            return None
        seen.add(storage._cdata)
        reach = sum((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True)) + 1
        if storage.nbytes() != (reach * part.dtype.itemsize if part.numel() else 0):
            return None
        described.append((part.shape, part.stride(), part.dtype))
    return kind, described


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple | list) else []
