"""Codes and scales: what comes back is the nearest number there is."""

from __future__ import annotations

import pytest
import torch

from twostage.memory.quantisation import Quantiser

KINDS = {
    "8 bits, signed": Quantiser(8, 256, signed=True),
    "8 bits": Quantiser(8, 256, signed=False),
    "4 bits, signed": Quantiser(4, 128, signed=True),
    "4 bits, linear": Quantiser(4, 128, signed=False, linear=True),
}


@pytest.mark.parametrize("quantiser", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("count", [1, 127, 256, 1001])
def test_what_comes_back_is_the_nearest_number(quantiser: Quantiser, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 1e-4
    values = values if min(quantiser._numbers) < 0 else values.abs()
    codes, scales = quantiser.pack(values)
    assert codes.dtype == torch.uint8
    assert len(codes) == -(-count * quantiser.bits // 8)
    assert len(scales) == -(-count // quantiser.block)
    found = quantiser.unpack(codes, scales, count)
    numbers = torch.tensor(quantiser._numbers)
    for block, scale in enumerate(scales):
        own = slice(block * quantiser.block, (block + 1) * quantiser.block)
        best = ((values[own] / scale).unsqueeze(1) - numbers).abs().min(1).values * scale
        torch.testing.assert_close((found[own] - values[own]).abs(), best, atol=1e-10, rtol=1e-4)


@pytest.mark.parametrize("quantiser", KINDS.values(), ids=KINDS)
def test_codes_are_those_of_a_binary_search(quantiser: Quantiser) -> None:
    found = quantiser._on(torch.device("cpu"))
    midpoints = (found.numbers[1:] + found.numbers[:-1]) / 2
    # Every float that could be looked up wrongly: both ends of each group, the midpoints and their neighbours.
    upper = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    ends = torch.cat([upper, upper | 0xFFFF]).view(torch.float32)
    ends = ends[~ends.isinf()]
    far = torch.tensor(torch.inf)
    values = torch.cat([ends, midpoints, midpoints.nextafter(far), midpoints.nextafter(-far)])
    expected = torch.bucketize(values, midpoints)
    assert torch.equal(found.places(values).long(), expected)


@pytest.mark.parametrize("quantiser", KINDS.values(), ids=KINDS)
def test_zeros_come_back(quantiser: Quantiser) -> None:
    sizes = quantiser.sizes(300)
    codes, scales = torch.full((sizes[0],), quantiser.zero, dtype=torch.uint8), torch.zeros(sizes[1])
    packed, largest = quantiser.pack(torch.zeros(300))
    assert torch.equal(codes, packed)
    assert torch.equal(scales, largest)
    assert not quantiser.unpack(codes, scales, 300).any()


def test_what_is_not_finite_is_not_hidden() -> None:
    for quantiser in KINDS.values():
        codes, scales = quantiser.pack(torch.tensor([1.0, torch.nan]))
        assert not quantiser.unpack(codes, scales, 2).isfinite().all()


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_code_is_that_of_bitsandbytes_but_for_a_zero_to_divide_by(signed: bool) -> None:
    stock = pytest.importorskip("bitsandbytes.functional").create_dynamic_map(signed=signed)
    ours = torch.tensor(Quantiser(8, 256, signed=signed)._numbers)
    torch.testing.assert_close(ours, stock.float() if signed else stock[stock > 0].float(), atol=1e-7, rtol=1e-6)
