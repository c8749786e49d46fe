"""Frozen weights kept in 8 or 4 bits: a layer's are made whole for the moment in which it computes, and not kept.

A block of consecutive weights has one scale, the largest magnitude in it. In 8 bits a weight is that scale times
k / 127; in 4 bits, times one of the 16 numbers of NF4 (arXiv 2305.14314), which are dense where normal weights are.
Convolutions are never kept in fewer than 8 bits. Half of a U-Net's weights or more are theirs, and the linear layers
are what most libraries quantise.

Neither pass keeps a whole weight for the other, and no layer keeps its input: a frozen layer needs it for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

# Consecutive weights with one scale, which is kept in the number format that the layer computes in.
_BLOCK = 64
# Quantiles of the normal distribution, one of them zero: arXiv 2305.14314, appendix E.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class _Form(Protocol):
    """How weights are kept: blocks (n, 64) as codes and scales (n, 1)."""

    def pack(self, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Codes, and scales of that dtype, of float32 blocks."""

    def unpack(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The blocks, in the dtype of the scales."""


class _EightBits:
    def pack(self, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scales = (_largest(blocks) / 127).to(dtype)
        codes = (blocks / _divisor(scales)).round_().clamp_(-127, 127)
        return codes.to(torch.int8), scales

    def unpack(self, codes: Tensor, scales: Tensor) -> Tensor:
        return codes.to(scales.dtype).mul_(scales)


class _FourBits:
    """Two weights share a byte, the first of them its lower half; one look-up gives both."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def pack(self, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scales = _largest(blocks).to(dtype)
        numbers = torch.tensor(_NF4, device=blocks.device)
        codes = torch.bucketize(blocks / _divisor(scales), (numbers[1:] + numbers[:-1]) / 2, out_int32=True)
        first, second = codes.to(torch.uint8).view(-1, _BLOCK // 2, 2).unbind(2)
        return first | second << 4, scales

    def unpack(self, codes: Tensor, scales: Tensor) -> Tensor:
        pairs = self._both(codes.device, scales.dtype).index_select(0, codes.view(-1).int())
        return pairs.view(-1, _BLOCK).mul_(scales)

    def _both(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The two numbers of every byte, (256, 2)."""
        if (device, dtype) not in self._pairs:
            pairs = [(_NF4[byte & 15], _NF4[byte >> 4]) for byte in range(256)]
            self._pairs[device, dtype] = torch.tensor(pairs, dtype=dtype, device=device)
        return self._pairs[device, dtype]


def _largest(blocks: Tensor) -> Tensor:
    return torch.linalg.vector_norm(blocks, torch.inf, dim=1, keepdim=True)


def _divisor(scales: Tensor) -> Tensor:
    """Where all weights of a block are zero, so is the scale."""
    return scales.float().clamp_min(torch.finfo(torch.float32).tiny)


class _FrozenLayer(nn.Module):
    """A layer whose weight is codes and scales. Whoever asks for the weight, as adapters do, gets it whole."""

    codes: Tensor
    scales: Tensor
    _form: _Form
    _shape: torch.Size

    def keep(self, form: _Form, device: torch.device, dtype: torch.dtype) -> None:
        """Put codes and scales in the place of the weight, which is a parameter until then."""
        weight = self._parameters.pop("weight")
        assert weight is not None
        values = weight.detach().to(device, torch.float32).reshape(-1)
        blocks = F.pad(values, (0, -len(values) % _BLOCK)).view(-1, _BLOCK)
        codes, scales = form.pack(blocks, dtype)
        self._form, self._shape = form, weight.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:
        return self.whole(self.scales.dtype)

    @torch.no_grad()
    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight that the codes stand for."""
        values = self._form.unpack(self.codes, self.scales.to(dtype)).view(-1)
        return values[: math.prod(self._shape)].view(self._shape)


class _FrozenLinear(_FrozenLayer, nn.Linear):  # type: ignore[override]
    def forward(self, input: Tensor) -> Tensor:
        """As in `nn.Linear`."""
        return cast(Tensor, _Linear.apply(*_cast(input, self.bias), self))


class _FrozenConv2d(_FrozenLayer, nn.Conv2d):  # type: ignore[override]
    def forward(self, input: Tensor) -> Tensor:
        """As in `nn.Conv2d`."""
        return cast(Tensor, _Conv2d.apply(*_cast(input, self.bias), self))


def _cast(input: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both in the number format that the layer computes in, which is autocast's where that is on."""
    kind = input.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
    return input.to(dtype), None if bias is None else bias.to(dtype)


# Both hold on to the layer and not to its tensors, so that nothing that is done to what a graph keeps is done to these,
# and one whose codes have moved meanwhile computes all the same.
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, layer: _FrozenLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(input, layer.whole(input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.layer.whole(gradient.dtype), None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, layer: _FrozenConv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, input.shape
        return F.conv2d(input, layer.whole(input.dtype), bias, *_geometry(layer))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.layer.whole(gradient.dtype)
        return conv2d_input(ctx.shape, weight, gradient, *_geometry(ctx.layer)), None, None


def _geometry(layer: nn.Conv2d) -> tuple[Any, Any, Any, int]:
    return layer.stride, layer.padding, layer.dilation, layer.groups


_FORMS: dict[str, Mapping[type[nn.Module], type[_Form]]] = {
    "full": {},
    "8bit": {nn.Linear: _EightBits, nn.Conv2d: _EightBits},
    "4bit": {nn.Linear: _FourBits, nn.Conv2d: _EightBits},
}
_LAYERS: dict[type[nn.Module], type[_FrozenLayer]] = {nn.Linear: _FrozenLinear, nn.Conv2d: _FrozenConv2d}


def place_frozen(
    net: nn.Module,
    kept: str,
    device: torch.device,
    dtype: torch.dtype,
    casting: tuple[type[nn.Module], ...] = (),
) -> None:
    """Bring a frozen net to its device, in the number format it computes in, and its layers in the form they are kept.

    Layer by layer: what is on the device meanwhile is what stays there, and what quantising one layer takes.

    Args:
        net: float32, on the CPU; its linear layers and convolutions become others that are instances of the same
            classes, and give gradients to what they are shown and to nothing of their own.
        kept: "full", "8bit" or "4bit".
        device: to bring it to.
        dtype: float32, bfloat16 or float16.
        casting: the layers that take `dtype`, where the others stay float32.
    """
    # Made for each net: what they hold on the device goes with it, and a simulation's with the simulation.
    made = {kind: kind() for kind in set(_FORMS[kept].values())}
    forms = {kind: made[form] for kind, form in _FORMS[kept].items()}
    for layer in list(net.modules()):
        if (form := forms.get(type(layer))) and not _is_padded_otherwise(layer):
            # As torch's own parametrizations do it: names, hooks and whoever holds the layer stay as they are.
            layer.__class__ = _LAYERS[type(layer)]
            cast(_FrozenLayer, layer).keep(form, device, dtype)
    for layer in net.modules():
        if isinstance(layer, casting):
            layer.to(device, dtype)
    net.to(device, None if casting else dtype)


def _is_padded_otherwise(layer: nn.Module) -> bool:
    """Convolutions that are padded with something else than a number of zeros are left as they are."""
    return isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str))
