"""torch's CUDA caching allocator, on paper: what a card holds reserved for what is allocated.

The rules are those of c10/cuda/CUDACachingAllocator.cpp with its default settings. Sizes are rounded up to 512 bytes.
Requests of up to 1 MiB are cut from segments of 2 MiB, those below 10 MiB from segments of 20 MiB, larger ones get a
segment of their own, rounded up to 2 MiB. A free block is taken if there is one that is large enough, the smallest of
them; what is left over of it stays free; neighbours that are both free are one. Segments are never given back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

_ROUND = 512
_SMALL = 1 << 20
_SMALL_SEGMENT = 2 << 20
_LARGE_SEGMENT = 20 << 20
_OWN_SEGMENT = 10 << 20
_ROUND_SEGMENT = 2 << 20


@dataclass(eq=False)
class _Block:
    """A piece of a segment; `before` and `after` are its neighbours there."""

    address: int
    size: int
    small: bool
    before: _Block | None = None
    after: _Block | None = None
    free: bool = False


class CachingAllocator:
    """Blocks and segments of one card whose memory never ends.

    Attributes:
        reserved: bytes of all segments; it only grows.
    """

    def __init__(self) -> None:
        self.reserved = 0
        self._taken: dict[int, _Block] = {}
        # Free blocks by size and then by address, apart for small requests and large ones.
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}

    def allocate(self, key: int, size: int) -> None:
        """Find room for `size` bytes, at least 1, that `release(key)` gives back."""
        size = _up(size, _ROUND)
        small = size <= _SMALL
        free = self._free[small]
        place = bisect_left(free, size, key=lambda entry: entry[0])
        block = free.pop(place)[2] if place < len(free) else self._segment(size, small)
        left = block.size - size
        if left >= _ROUND if small else left > _SMALL:
            rest = _Block(block.address + size, left, small, block, block.after)
            if block.after:
                block.after.before = rest
            block.size, block.after = size, rest
            self._put(rest)
        block.free = False
        self._taken[key] = block

    def release(self, key: int) -> None:
        """Free what `allocate(key, ...)` took."""
        block = self._taken.pop(key)
        for neighbour in (block.before, block.after):
            if neighbour and neighbour.free:
                self._take(neighbour)
                block = _joined(*sorted((block, neighbour), key=lambda one: one.address))
        self._put(block)

    def _segment(self, size: int, small: bool) -> _Block:
        length = _SMALL_SEGMENT if small else _LARGE_SEGMENT if size < _OWN_SEGMENT else _up(size, _ROUND_SEGMENT)
        block = _Block(self.reserved, length, small)  # Segments are no neighbours: their blocks do not know each other.
        self.reserved += length
        return block

    def _put(self, block: _Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.address, block), key=lambda entry: entry[:2])

    def _take(self, block: _Block) -> None:
        free = self._free[block.small]
        place = bisect_left(free, (block.size, block.address), key=lambda entry: entry[:2])
        assert free[place][2] is block
        del free[place]


def _joined(low: _Block, high: _Block) -> _Block:
    """Both in one, the lower."""
    low.size, low.after = low.size + high.size, high.after
    if high.after:
        high.after.before = low
    return low


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
